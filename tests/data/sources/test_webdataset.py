"""WebDataset tars, written here as its users write them."""

import json
import os
import tarfile

import pytest
from helpers.llava_sets import encoded, photograph
from helpers.sources import opened
from helpers.tars import write_tar

from hive_jax import prepare_data
from hive_jax.config import DataConfig
from hive_jax.data.invalid import InvalidSample
from hive_jax.data.sources.registry import make_source
from hive_jax.errors import ConfigError, DataError, MissingInputError

IMAGES = [encoded(photograph(i)) for i in range(4)]
TURNS = [
    {"from": "human", "value": "What is it?\n<image>"},
    {"from": "gpt", "value": "a photo"},
]


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / ".cache"))


def captions(start: int, count: int, folder="") -> dict:
    numbers = range(start, start + count)
    images = {f"{folder}{i:04}.jpg": IMAGES[i % 4] for i in numbers}
    return dict(
        sorted({**images, **{f"{folder}{i:04}.txt": f"a {i}" for i in numbers}}.items())
    )


def samples(source) -> list:
    everything = (source[i] for i in range(len(source)))
    return [(s.image, s.segments[0].text, s.label) for s in everything]


@pytest.mark.parametrize("format", [tarfile.PAX_FORMAT, tarfile.GNU_FORMAT])
@pytest.mark.parametrize("folder", ["", "./", "ü/" * 60])
def test_captions_of_several_tars(tmp_path, format, folder):
    for shard in range(12):
        path = tmp_path / f"set/{shard:03}.tar"
        write_tar(path, captions(3 * shard, 3, folder), format=format)
    wanted = [(IMAGES[i % 4], f"a {i}\n", "") for i in range(36)]
    paths = ("set/{000..011}.tar", "set/*.tar", "set", "set/{0..0}{00..11}.tar")
    sources = [opened(f"wds:{tmp_path}/{path}") for path in paths]
    assert all(samples(source) == wanted for source in sources)
    assert len({source.fingerprint for source in sources}) == 1
    assert samples(opened(f"wds:{tmp_path}/set/{{003..003}}.tar")) == wanted[9:12]
    assert f"{tmp_path}/set/011.tar, sample" in sources[0].describe(35)
    config = DataConfig(source=f"wds:{tmp_path}/set", validation_size=6)
    split = make_source(config, "train", image_size=16, with_image=False)
    assert len(split) == 30 and split[0].image is None


def test_the_index_is_made_once(tmp_path, monkeypatch):
    path = write_tar(tmp_path / "a.tar", captions(0, 3))
    first = opened(f"wds:{path}")
    (index,) = (tmp_path / ".cache/hive_jax/tar_index").iterdir()
    with monkeypatch.context() as patch:
        patch.setattr(tarfile, "open", None)
        assert samples(opened(f"wds:{path}")) == samples(first)
    index.write_bytes(b"\xc1")  # a damaged one is made again
    assert samples(opened(f"wds:{path}")) == samples(first)
    write_tar(path, captions(0, 4))
    assert len(opened(f"wds:{path}")) == 4
    monkeypatch.setenv("XDG_CACHE_HOME", "/proc/no")
    assert len(opened(f"wds:{path}")) == 4


def test_classes_and_keys_of_json(tmp_path):
    members = {}
    for i, label in enumerate(("10", "9", "9\n")):
        members |= {f"{i}.png": encoded(photograph(i), "PNG"), f"{i}.cls": label}
        members[f"{i}.json"] = {"caption": f"the {i}", "size": i}
    path = write_tar(tmp_path / "a.tar", members)
    source = opened(f"wds:{path}")
    assert source.classes == ("9", "10") and source[2].label == "9"
    assert source[0].segments[0].text == "a photo of a 10\n"
    numbers, unused = source.notes
    assert (
        "the numbers 9 to 10, and captions and prompts are as 'a photo of a 9'"
        in numbers
    )
    assert unused == f"{path}: members not used: 3 json"
    names = {"0.jpg": IMAGES[0], "0.cls": "Cat", "1.jpg": IMAGES[1], "1.cls": "cat"}
    with pytest.raises(
        DataError, match="classes 'Cat' and 'cat', which differ in case"
    ):
        opened(f"wds:{write_tar(tmp_path / 'c.tar', names)}")
    empty = opened(f"wds:{write_tar(tmp_path / 'b.tar', members | {'1.cls': ' '})}")
    with pytest.raises(InvalidSample, match="sample 1: has no class"):
        empty[1]
    assert samples(opened(f"wds:{path},text=json/caption"))[1][1:] == ("the 1\n", "")
    assert opened(f"wds:{path},label=json/size").classes == ("0", "1", "2")
    with pytest.raises(DataError, match="has the keys caption, size; expected conv"):
        opened(f"wds:{path},text=json")
    with pytest.raises(InvalidSample, match="0: json has no text or number title"):
        opened(f"wds:{path},text=json/title")[0]


@pytest.mark.parametrize("key", ["conversations", "messages"])
def test_conversations(tmp_path, key):
    alone = [TURNS[0] | {"value": "2 and 2?"}, TURNS[1]]
    members = {
        "a.jpg": IMAGES[0],
        "a.json": {key: TURNS, "image": "coco/000.jpg"},
        "b.json": {key: alone},
        "c.json": {key: TURNS},
        "d.jpg": IMAGES[1],
        "d.json": "{",
    }
    path = write_tar(tmp_path / "a.tar", members)
    source = opened(f"wds:{path},form=chat")
    assert source[0].image == IMAGES[0]
    assert [s.text for s in source[0].segments] == ["What is it?", "a photo"]
    assert source[1].image is None
    for index, message in ((2, "has no image, and <image> 1"), (3, "json is not JSON")):
        with pytest.raises(InvalidSample, match=message) as caught:
            source[index]
        assert caught.value.reason == "record"
    assert opened(f"wds:{path}")[0].segments[0].text == "a photo\n"


def test_bad_samples_are_named(tmp_path, capsys):
    members = captions(0, 9) | {
        "0001.jpg": b"<html>",
        "0002.txt": b"\xff",
        "0003.txt": "",
    }
    members |= {"0010.txt": "no image", "0011.jpg": IMAGES[0]}
    members |= {
        "._0000.jpg": b"x",
        "__MACOSX/0.jpg": b"x",
        ".DS_Store": b"x",
        "README": "x",
    }
    path = write_tar(tmp_path / "a.tar", members)
    out = tmp_path / "report"
    code = prepare_data.main(["check", "--from", f"wds:{path}", "--out", str(out)])
    assert code == 65
    lines = (out / "bad_samples.jsonl").read_text().splitlines()
    found = {(x := json.loads(line))["where"].split()[-1]: x for line in lines}
    assert {name: one["reason"] for name, one in found.items()} == {
        "0001": "not an image",
        "0002": "record",
        "0003": "record",
        "0010": "missing",
        "0011": "record",
    }
    assert found["0011"]["detail"] == "has no txt"
    assert found["0010"]["detail"] == "has no jpg"
    assert json.loads((out / "report.json").read_text())["bad"] == len(found)
    assert "cannot be used   5" in capsys.readouterr().out


def test_damaged_tars_are_refused(tmp_path):
    path = write_tar(tmp_path / "a.tar", captions(0, 9))
    content = path.read_bytes()
    header = content.index(b"0005.jpg")
    for damaged, message in (
        (content[:header] + b"\0x" + content[header + 2 :], f"at byte {header:,}"),
        (content[: header + 700], "damaged"),
        (b"", "damaged: empty file"),
        (b"x" * 2000, "is not a tar, or is damaged"),
    ):
        (tmp_path / "b.tar").write_bytes(damaged)
        with pytest.raises(DataError, match=message):
            opened(f"wds:{tmp_path}/b.tar")
    write_tar(tmp_path / "c.tar", captions(0, 2), mode="w:gz")
    with pytest.raises(DataError, match="it is compressed, and only plain tars"):
        opened(f"wds:{tmp_path}/c.tar")
    # Without the blocks of zeros at the end, as some programs write it.
    (tmp_path / "d.tar").write_bytes(
        content.rstrip(b"\0") + bytes(-len(content.rstrip(b"\0")) % 512)
    )
    assert len(opened(f"wds:{tmp_path}/d.tar")) == 9


def test_a_tar_that_shrinks_is_bad_samples(tmp_path):
    path = write_tar(tmp_path / "a.tar", captions(0, 9))
    source = opened(f"wds:{path}")
    os.truncate(path, 9000)
    with pytest.raises(InvalidSample, match="0008: txt is cut off in the tar"):
        source[8]
    path.unlink()
    with pytest.raises(InvalidSample, match="sample 0000: No such file"):
        source[0]


@pytest.mark.parametrize(
    ("text", "error", "message"),
    [
        ("{0}/{{000..002}}.tar", MissingInputError, "001.tar: no such file; 2 of 3"),
        ("{0}/x.tar", MissingInputError, "x.tar: no such file"),
        ("hdfs://bucket/a.tar", ConfigError, "mount the bucket or download the files"),
        ("{0}/000.tar,image=png", DataError, "extensions cls, jpg, txt; expected png"),
        ("{0}/000.tar", DataError, "text=txt, or the classes with label=cls"),
        (
            "{0}/000.tar,text=txt,label=cls",
            ConfigError,
            "text=txt and label=cls; expected one",
        ),
        ("{0}/000.tar,text=txt,form=chat", ConfigError, "is for conversations in json"),
        ("{0}/masks.tar", DataError, "0 has jpg and png; choose one: image=jpg or"),
        ("{0}/texts.tar", DataError, "extensions txt; name the one of the images"),
        (
            "{0}/images.tar",
            DataError,
            "extensions jpg; expected txt, cls or json: name",
        ),
        ("{0}/dots.tar", DataError, "7.png and 2 more .*begins at the first dot"),
        (
            "{0}/compressed",
            MissingInputError,
            "no .tar in this folder; it has a.tar.gz",
        ),
        ("{0}/none.tar", DataError, "none.tar has no samples"),
        ("{0}/twice.tar", DataError, "has 0.txt twice"),
    ],
)
def test_what_is_no_dataset_is_named(tmp_path, text, error, message):
    write_tar(tmp_path / "000.tar", {"0.jpg": IMAGES[0], "0.txt": "a", "0.cls": "1"})
    write_tar(
        tmp_path / "masks.tar", {"0.jpg": IMAGES[0], "0.png": IMAGES[0], "0.txt": "a"}
    )
    write_tar(tmp_path / "texts.tar", {"0.txt": "a"})
    write_tar(tmp_path / "images.tar", {"a/0.jpg": IMAGES[0], "b/1.jpg": IMAGES[1]})
    write_tar(tmp_path / "dots.tar", {f"v1.{i}.png": IMAGES[0] for i in range(12)})
    write_tar(tmp_path / "compressed/a.tar.gz", {"0.txt": "a"}, "w:gz")
    write_tar(tmp_path / "none.tar", {"README": "a"})
    write_tar(
        tmp_path / "twice.tar", {"0.jpg": IMAGES[0], "0.txt": "a", "./0.txt": "b"}
    )
    with pytest.raises(error, match=message):
        opened("wds:" + text.format(tmp_path))
    assert opened(f"wds:{tmp_path}/texts.tar,image=none")[0].image is None
