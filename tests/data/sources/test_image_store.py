"""Names that somebody else has written, looked up in a folder and in a zip."""

import os
import struct
import subprocess
import sys
import unicodedata
import zipfile
from zlib import crc32

import pytest

from hive_jax.data import image_io
from hive_jax.data.invalid import InvalidSample
from hive_jax.data.sources import image_store as stores
from hive_jax.data.sources.image_store import open_store, require_images
from hive_jax.errors import ConfigError, DataError, MissingInputError
from tools.fault_suite import hostile_files
from tools.fault_suite.hostile_files import HOSTILE, IRREGULAR, LINKS, MISSING, SECRET


@pytest.fixture
def folder(tmp_path):
    return hostile_files.write_images(tmp_path)[0]


@pytest.fixture
def archive(tmp_path):
    path = tmp_path / "zip"
    path.mkdir()
    return hostile_files.write_images(path)[1]


def test_files_are_read(folder, archive):
    for store in (
        open_store(str(folder), "images"),
        open_store(str(archive), "images"),
    ):
        assert store.read("a.jpg") == b"image" and store.has("a.jpg")
        assert store.read("folder/b.jpg") == b"other"
        assert not store.has("missing.jpg") and not store.has("../secret.txt")
    assert open_store(str(folder), "images").read("inside.jpg") == b"other"


@pytest.mark.parametrize("name", HOSTILE + IRREGULAR + MISSING)
def test_no_name_leads_anywhere_else(folder, archive, name):
    for store in (
        open_store(str(folder), "images"),
        open_store(str(archive), "images"),
    ):
        with pytest.raises(InvalidSample) as caught:
            store.read(name)
        wanted = {"unsafe path"}
        if name in LINKS[:2] and store.path == str(archive):
            wanted = {"missing"}
        if name in IRREGULAR + MISSING:
            wanted = {"missing", "unreadable", "unsafe path"}
        assert caught.value.reason in wanted
        assert SECRET.decode() not in caught.value.detail


@pytest.mark.parametrize("name", LINKS)
def test_links_out_of_the_folder_do_not_exist_there(folder, name):
    assert not open_store(str(folder), "images").has(name)


def test_what_is_no_folder_or_zip_is_refused(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    for path in (tmp_path / "pipe", "/dev/zero"):
        with pytest.raises(DataError, match="is a pipe, socket or device"):
            open_store(str(path), "images")
    with pytest.raises(ConfigError, match="images is 'gs://bucket/images'"):
        open_store("gs://bucket/images", "images")


def test_a_file_that_is_too_large(folder, archive, monkeypatch):
    monkeypatch.setattr(image_io, "MAX_BYTES", 4)
    for store in (
        open_store(str(folder), "images"),
        open_store(str(archive), "images"),
    ):
        with pytest.raises(
            InvalidSample, match="5 bytes; expected at most 4"
        ) as caught:
            store.read("a.jpg")
        assert caught.value.reason == "too large"


def test_a_zip_of_the_future(archive):
    """One that only a later program can read, and a member that one can."""
    content = archive.read_bytes()
    central = content.index(b"PK\1\2")
    newer = bytearray(content)
    newer[central + 6] = 99
    archive.write_bytes(newer)
    with pytest.raises(DataError, match="expected a folder of images, or a zip"):
        open_store(str(archive), "images")
    newer = bytearray(content)
    newer[central + 10] = 98  # the method
    archive.write_bytes(newer)
    with pytest.raises(InvalidSample, match="compressed by method 98") as caught:
        open_store(str(archive), "images").read("a.jpg")
    assert caught.value.reason == "unreadable"


def test_damage_in_a_zip_is_one_sample(archive):
    content = bytearray(archive.read_bytes())
    content[content.index(b"a.jpg") + 5] ^= 0xFF  # the first byte of its data
    archive.write_bytes(content)
    store = open_store(str(archive), "images")
    with pytest.raises(InvalidSample) as caught:
        store.read("a.jpg")
    assert caught.value.reason == "damaged"
    assert store.read("folder/b.jpg") == b"other"


BOMB = """
import sys
sys.path.insert(0, sys.argv[1])
from hive_jax.data.invalid import InvalidSample
from hive_jax.data.transforms import decode
from hive_jax.data.sources.image_store import open_store
store = open_store(sys.argv[2], "images")
for name in sys.argv[3:]:
    try:
        decode(store.read(name), 32, "hf_bicubic", name)
    except InvalidSample as error:
        print(name, error.reason)
# getrusage would count what the parent had before this program began.
peak = next(line for line in open("/proc/self/status") if line.startswith("VmHWM"))
print(peak.split()[1])
"""


def test_bombs_are_refused_before_they_are_large(tmp_path):
    """400 megabytes of zeros, a zip that lies of them, in the ways to pack that know
    no bound as well, and a picture of 10^10 pixels."""
    path = tmp_path / "bombs.zip"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as out:
        with out.open("zeros", "w", force_zip64=True) as member:
            for _ in range(40):
                member.write(bytes(10_000_000))
        for method in (zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA):
            out.writestr(f"method {method}", bytes(50_000_000), method)
        out.writestr("liar", bytes(50_000_000))
        header = b"IHDR" + struct.pack(">IIBBBBB", 100_000, 100_000, 8, 2, 0, 0, 0)
        png = b"\x89PNG\r\n\x1a\n" + struct.pack(">I", 13) + header
        png += struct.pack(">I", crc32(header)) + struct.pack(">I", 9) + b"IDAT"
        out.writestr("picture.png", png + bytes(9))
    content = path.read_bytes()
    size = struct.pack("<I", 50_000_000)
    path.write_bytes(content.replace(size, struct.pack("<I", 1000)))
    names = ("zeros", "liar", "method 12", "method 14", "picture.png")
    root = str(stores.__file__).rsplit("/hive_jax/", 1)[0]
    done = subprocess.run(
        [sys.executable, "-c", BOMB, root, str(path), *names],
        capture_output=True,
        text=True,
        check=True,
        timeout=60,
    )
    *found, memory = done.stdout.splitlines()
    assert found == [
        "zeros too large",
        "liar damaged",
        "method 12 unreadable",
        "method 14 unreadable",
        "picture.png too large",
    ]
    assert int(memory) < 1_000_000  # kB


COMPOSED, DECOMPOSED = (unicodedata.normalize(form, "é.jpg") for form in ("NFC", "NFD"))


def write_zip(path, *names, flagged=True):
    """A zip of empty files; without the flag their names are UTF-8 all the same."""
    with zipfile.ZipFile(path, "w") as out:
        for name in names:
            out.writestr(name, b"image")
    if not flagged:
        content = bytearray(path.read_bytes())
        for mark, offset in ((b"PK\3\4", 7), (b"PK\1\2", 9)):
            start = content.find(mark)
            while start >= 0:
                content[start + offset] &= ~8 & 0xFF
                start = content.find(mark, start + 1)
        path.write_bytes(content)
    return open_store(str(path), "images")


@pytest.mark.parametrize(
    ("there", "name"),
    [
        (COMPOSED, DECOMPOSED),
        (DECOMPOSED, COMPOSED),
        (f"{DECOMPOSED}/a.jpg", f"{COMPOSED}/a.jpg"),
        ("a.jpg", "./a.jpg"),
        ("./b/a.jpg", "b//./a.jpg"),
    ],
)
def test_equal_spellings_are_one_name(tmp_path, there, name):
    path = tmp_path / "images" / there
    path.parent.mkdir(parents=True)
    path.write_bytes(b"image")
    archive = write_zip(tmp_path / "a.zip", there, "other.jpg")
    for store in (open_store(str(tmp_path / "images"), "images"), archive):
        assert store.has(name) and store.read(name) == b"image"


def test_names_of_zips_as_programs_write_them(tmp_path):
    store = write_zip(tmp_path / "a.zip", COMPOSED, "b/c.jpg", flagged=False)
    assert not zipfile.ZipFile(tmp_path / "a.zip").infolist()[0].flag_bits & 0x800
    assert store.read(COMPOSED) == store.read(DECOMPOSED) == b"image"
    assert write_zip(tmp_path / "b.zip", "b\\c.jpg").read("b/c.jpg") == b"image"
    # Of two members with one name, neither is guessed.
    store = write_zip(tmp_path / "c.zip", "./a.jpg", ".//a.jpg", "b.jpg")
    assert not store.has("a.jpg")


@pytest.mark.parametrize(
    ("name", "nearest"),
    [
        ("000.jpg", "images/000.jpg"),
        ("cats/001.JPG", "images/cats/001.jpg"),
        ("images/cats/001.png", "images/cats/001.jpg"),
        ("nothing like it", "images/000.jpg"),
    ],
)
def test_a_missing_name_comes_with_the_nearest(tmp_path, name, nearest):
    names = ("images/000.jpg", "images/cats/001.jpg", "dogs/001.jpg")
    names = ("__MACOSX/images/._000.jpg", "__MACOSX/000.jpg", *names)
    archive = write_zip(tmp_path / "a.zip", *names)
    with zipfile.ZipFile(tmp_path / "a.zip") as opened:
        opened.extractall(tmp_path / "folder")
    folder = open_store(str(tmp_path / "folder"), "images")
    for store in (archive, folder):
        if name == "nothing like it" and store is folder:
            nearest = "dogs/001.jpg"
        with pytest.raises(InvalidSample, match=f"the nearest: {nearest}") as caught:
            store.read(name)
        assert caught.value.reason == "missing"
        with pytest.raises(MissingInputError, match=f"the first: {name}: no such file"):
            require_images([name], store, 0.01)
        require_images([name, names[2]], store, 0.5)


def test_the_folder_above_can_be_named(tmp_path):
    store = write_zip(tmp_path / "a.zip", "images/000.jpg")
    remedy = f"images={tmp_path}/a.zip/images"
    assert remedy in store.explain_missing("000.jpg")
    store = open_store(remedy.removeprefix("images="), "images")
    assert store.read("000.jpg") == b"image" and store.path in remedy
    with pytest.raises(MissingInputError, match="a.zip has no folder pictures"):
        open_store(f"{tmp_path}/a.zip/pictures", "images")


def test_refusals_name_the_remedy(folder):
    store = open_store(str(folder), "images")
    with pytest.raises(InvalidSample, match="cp -rL .* COPY, or name the folder"):
        store.read("link.txt")
    assert not store.has("link.txt")
    with pytest.raises(MissingInputError, match="of 1 images .* link.txt: a symbolic"):
        require_images(["link.txt"], store, 0.01)
    with pytest.raises(InvalidSample, match=r"with / and not \\ between folders"):
        store.read("folder\\b.jpg")
