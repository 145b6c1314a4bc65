"""The emoji dataset, from small archives in the layout of the npm packages."""

import base64
import hashlib
import io
import json
import tarfile

import pytest
from PIL import Image

from hive_jax.errors import DataError, MissingInputError
from tools import emoji

NAMES = [f"1f4{i:02x}" for i in range(13)]


def add(archive: tarfile.TarFile, name: str, content: bytes) -> None:
    member = tarfile.TarInfo(name)
    member.size = len(content)
    archive.addfile(member, io.BytesIO(content))


def write_package(folder, package: emoji.Package, codes) -> emoji.Package:
    """Writes an archive with an image of each code and the list of all emoji."""
    path = folder / f"{package.name.split('/')[-1]}-{package.version}.tgz"
    rows = [
        {
            "unified": code.upper(),
            "name": f"ANIMAL {code}",
            # Two emoji are of a class that is too small.
            "subcategory": "animal-mammal" if i < 11 else "animal-bug",
        }
        for i, code in enumerate(NAMES)
    ]
    with tarfile.open(path, "w:gz") as archive:
        add(archive, emoji.LIST_OF_EMOJI, json.dumps(rows).encode())
        for code in codes:
            image = io.BytesIO()
            kind = "WEBP" if package.images.endswith("webp") else "PNG"
            Image.new("RGBA", (8, 8), (int(code, 16) % 256, 0, 0, 255)).save(
                image, kind
            )
            add(archive, package.images.format(code=code), image.getvalue())
    digest = hashlib.sha512(path.read_bytes()).digest()
    return package._replace(sha512=base64.b64encode(digest).decode())


def test_train_and_test_have_the_same_classes_by_other_artists(tmp_path):
    train = tuple(write_package(tmp_path, package, NAMES) for package in emoji.TRAIN)
    test = write_package(tmp_path, emoji.TEST, NAMES[1:])  # the first is not drawn
    out = tmp_path / "emoji"
    records = emoji.write_dataset(train, test, tmp_path, out)
    assert json.loads((out / "chat.json").read_text()) == records
    assert len(records) == 2 * 10
    assert records[1] == {
        "image": "animal-mammal/twemoji_1f401.png",
        "conversations": [
            {"from": "human", "value": "<image>\nWhat is this?"},
            {"from": "gpt", "value": "animal 1f401, animal mammal"},
        ],
    }
    for split, artists in (("train", {"noto", "twemoji"}), ("test", {"fluent"})):
        assert [p.name for p in (out / split).iterdir()] == ["animal-mammal"]
        files = [p.name for p in (out / split / "animal-mammal").iterdir()]
        assert {name.split("_")[0] for name in files} == artists
        assert len(files) == 10 * len(artists)


def test_a_damaged_archive_is_named(tmp_path):
    package = write_package(tmp_path, emoji.TEST, NAMES)
    path = tmp_path / "fluent-emoji-3d-1.1.0.tgz"
    path.write_bytes(path.read_bytes() + b"x")
    with pytest.raises(DataError, match=r"fluent-emoji-3d-1\.1\.0\.tgz is damaged"):
        emoji.download(package, tmp_path)


def test_without_a_network_the_message_says_where_to_put_the_archive(
    tmp_path, monkeypatch
):
    monkeypatch.setattr(emoji, "REGISTRY", "http://127.0.0.1:9")
    with pytest.raises(MissingInputError, match="download it elsewhere and put it at"):
        emoji.download(emoji.TEST, tmp_path)
