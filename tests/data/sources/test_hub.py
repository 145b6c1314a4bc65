"""Datasets of the hub: folders in its layout, its cache, and what is in neither."""

import importlib.util
import json
import os
import subprocess
import sys

import pytest
from helpers.llava_sets import encoded, photograph
from helpers.sources import opened

from hive_jax.data.invalid import InvalidSample
from hive_jax.errors import ConfigError, DataError, MissingInputError

if importlib.util.find_spec("datasets") is None:
    pytest.skip("needs datasets", allow_module_level=True)

COUNT = 6
IMAGES = [encoded(photograph(i)) for i in range(COUNT)]


parquet = pytest.importorskip("pyarrow.parquet")


@pytest.fixture(scope="module", autouse=True)
def cache(tmp_path_factory):
    """The cache of the package, which it reads from the environment when imported."""
    import datasets

    with pytest.MonkeyPatch.context() as patch:
        folder = tmp_path_factory.mktemp("cache")
        patch.setattr(datasets.config, "HF_DATASETS_CACHE", folder)
        yield


def rows() -> dict:
    turns = [
        {"role": "user", "content": "<image>\nWhat is it?"},
        {"role": "assistant", "content": "a photo"},
    ]
    # Two captions of image 0; a row without an image; one with two.
    paths = ["0.jpg", "0.jpg", "2.jpg", "3.jpg"]
    images = [[{"bytes": IMAGES[i], "path": path}] for i, path in enumerate(paths)]
    return {
        "images": [*images, [], images[0] + images[2]],
        "photo": [x[0] for x in images] + [None, {"bytes": None, "path": "../x"}],
        "messages": [turns] * COUNT,
        "caption": [f"caption {i}" for i in range(COUNT)],
        "class": [i % 2 for i in range(COUNT)],
    }


def dataset(count: int = COUNT):
    import datasets
    from datasets import Value

    turn = {"role": Value("string"), "content": Value("string")}
    features = {
        "images": datasets.List(datasets.Image()),
        "photo": datasets.Image(),
        "messages": datasets.List(turn),
        "caption": Value("string"),
        "class": datasets.ClassLabel(names=["hot_dog", "pizza"]),
    }
    columns = {name: values[:count] for name, values in rows().items()}
    return datasets.Dataset.from_dict(columns, datasets.Features(features))


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    root = tmp_path_factory.mktemp("set")
    (root / "data").mkdir()
    for split in ("train", "test"):
        path = root / f"data/{split}-00000-of-00001.parquet"
        parquet.write_table(dataset().data.table, path)
    return root


def test_conversations(folder):
    source = opened(f"hf:{folder},image=images,form=chat")
    assert [source[i].image for i in (0, 3)] == [IMAGES[0], IMAGES[3]]
    assert [s.text for s in source[3].segments] == ["What is it?", "a photo"]
    with pytest.raises(InvalidSample, match="record 5: has 2 images; expected one"):
        source[5]
    with pytest.raises(InvalidSample, match="record 4: has no image"):
        source[4]
    assert source.image_name(2) != source.image_name(0)
    assert source.image_name(4) is None
    assert opened(f"hf:{folder},image=none,text=caption")[4].image is None


def test_captions_and_classes(folder):
    source = opened(f"hf:{folder},image=photo,text=caption,split=test[:50%]")
    assert len(source) == 3 and source.classes == ()
    assert (source[2].image, source[2].segments[0].text) == (IMAGES[2], "caption 2\n")
    # The images of rows 0 and 1 have one name, as of one image with two captions.
    assert source.image_name(0) == source.image_name(1) != source.image_name(2)
    source = opened(f"hf:{folder},image=photo,label=class")
    assert source.classes == ("hot_dog", "pizza")
    assert (source[1].image, source[1].label) == (IMAGES[1], "pizza")
    for index, reason in ((4, "missing"), (5, "unsafe path")):
        with pytest.raises(InvalidSample) as caught:
            source[index]
        assert caught.value.reason == reason


def test_folders_that_datasets_saves(tmp_path):
    import datasets

    dataset(4).save_to_disk(tmp_path / "one")
    datasets.DatasetDict(val=dataset(4)).save_to_disk(tmp_path / "several")
    options = "image=photo,text=caption"
    one = opened(f"hf:{tmp_path}/one,{options}")
    several = opened(f"hf:{tmp_path}/several,{options},split=val")
    assert one.fingerprint == several.fingerprint
    assert several[3].image == IMAGES[3]
    with pytest.raises(DataError, match="expected one of the splits val; check"):
        opened(f"hf:{tmp_path}/several,{options}")


def test_columns_that_are_no_images_by_type(tmp_path):
    """Plain Parquet: bytes are images all the same, names of files are not read."""
    import pyarrow

    for name, image in (("bytes", IMAGES), ("names", ["0.jpg"] * COUNT)):
        (tmp_path / name).mkdir()
        table = pyarrow.table({"image": image, "text": ["a"] * COUNT})
        parquet.write_table(table, tmp_path / name / "train.parquet")
    assert opened(f"hf:{tmp_path}/bytes")[3].image == IMAGES[3]
    with pytest.raises(DataError, match="none holds images; image=none reads texts"):
        opened(f"hf:{tmp_path}/names")
    assert opened(f"hf:{tmp_path}/names,image=none")[0].image is None


def test_image_folders_of_the_hub(tmp_path):
    """Whose rows name files, which may be links."""
    for name in ("cat", "dog"):
        (tmp_path / "set/train" / name).mkdir(parents=True)
        (tmp_path / "set/train" / name / "0.jpg").write_bytes(IMAGES[0])
    (tmp_path / "elsewhere.jpg").write_bytes(IMAGES[1])
    (tmp_path / "set/train/cat/1.jpg").symlink_to(tmp_path / "elsewhere.jpg")
    source = opened(f"hf:{tmp_path}/set")
    assert source.classes == ("cat", "dog") and len(source) == 3
    assert source[0].image == IMAGES[0]
    with pytest.raises(InvalidSample, match="cp -rL"):
        source[1]


@pytest.mark.parametrize(
    ("text", "error", "message"),
    [
        ("{0}", DataError, "several columns of images; .*image=images or image=photo"),
        ("{0},image=photo,text=title", DataError, "columns images, photo.*title"),
        ("{0},image=caption", DataError, "images, photo are of images; image is"),
        (
            "{0},image=photo,split=val",
            DataError,
            "Should be one of .*check config= and",
        ),
        ("{0},config=en", DataError, "'en' not found. Available.*check config=en"),
        ("{0},image=photo,label=class,form=chat", ConfigError, "for conversations"),
        (
            "{0},image=photo,text=caption,label=class",
            ConfigError,
            "expected one of them",
        ),
        ("{0},image=images,form=caht", ConfigError, "did you mean 'chat'"),
        (
            "{0}/data/test-00000-of-00001.parquet",
            DataError,
            "is a file; .*Use table: or",
        ),
        ("{0}/missing", MissingInputError, "missing: no such folder, and not a hub id"),
    ],
)
def test_what_is_not_there_is_named(folder, text, error, message):
    with pytest.raises(error, match=message):
        opened("hf:" + text.format(folder))


OFFLINE = """
import json, sys
from hive_jax.data.sources.base import SourceOptions
from hive_jax.data.sources.registry import whole_source
from hive_jax.errors import HiveError
for text in sys.argv[1:]:
    try:
        source = whole_source(text, SourceOptions(16, "hf_bicubic"))
        print(json.dumps([len(source), len(source[2].image)]))
    except HiveError as error:
        print(json.dumps(str(error)))
"""


def test_the_cache_of_the_hub_without_a_network(tmp_path, folder):
    """As `hf download acme/tiny --repo-type dataset` fills it."""
    repository = tmp_path / "hub/datasets--acme--tiny"
    commit = "0123456789abcdef0123456789abcdef01234567"
    (repository / "refs").mkdir(parents=True)
    (repository / "refs/main").write_text(commit)
    data = repository / "snapshots" / commit / "data"
    data.mkdir(parents=True)
    (repository / "blobs").mkdir()
    for file in (folder / "data").iterdir():
        (repository / "blobs" / file.name).write_bytes(file.read_bytes())
        (data / file.name).symlink_to(f"../../../blobs/{file.name}")
    options = "image=photo,text=caption"
    texts = [
        f"hf:acme/tiny,{options}",
        f"hf:acme/tiny,{options},revision={commit}",
        f"hf:acme/huge,{options}",
    ]
    environment = {**os.environ, "HF_HOME": str(tmp_path), "HF_HUB_OFFLINE": "1"}
    for name in ("HF_HUB_CACHE", "HF_DATASETS_CACHE"):
        environment.pop(name, None)
    done = subprocess.run(
        [sys.executable, "-c", OFFLINE, *texts],
        env=environment,
        capture_output=True,
        text=True,
        check=True,
        timeout=120,
    )
    *found, error = map(json.loads, done.stdout.splitlines())
    assert found == [[COUNT, len(IMAGES[2])]] * 2
    assert "hf:acme/huge is not a folder here, and could not be downloaded" in error
