"""Sets by their names, in the layouts that Hugging Face and TFDS have them in."""

import importlib.util
import io
import json
from pathlib import Path

import pytest
from helpers.llava_sets import encoded, photograph
from helpers.sources import opened

from hive_jax.data.sources.catalog import CATALOG
from hive_jax.errors import ConfigError, MissingInputError

CLASSES = ["hot_dog", "pizza"]
IMAGES = [encoded(photograph(number)) for number in range(6)]


def needs(package: str):
    there = importlib.util.find_spec(package) is not None
    return pytest.mark.skipif(not there, reason=f"needs {package}")


def write_hub(folder: Path, name: str, split: str, images: list[bytes]) -> None:
    """A split in two files, as `hf download` leaves them."""
    import pyarrow
    import pyarrow.parquet

    one = CATALOG[name]
    (folder / "data").mkdir(parents=True, exist_ok=True)
    features = {one.label: {"names": CLASSES, "_type": "ClassLabel"}}
    about = json.dumps({"info": {"features": features}})
    half = len(images) // 2
    for number, part in enumerate((images[:half], images[half:])):
        rows = [
            {one.image: {"bytes": image, "path": None}, one.label: i % 2}
            for i, image in enumerate(part, half * number)
        ]
        table = pyarrow.Table.from_pylist(rows)
        table = table.replace_schema_metadata({"huggingface": about})
        file = folder / f"data/{split}-{number:05d}-of-00002.parquet"
        pyarrow.parquet.write_table(table, file)


@needs("pyarrow")
@pytest.mark.parametrize("name", CATALOG)
def test_a_set_of_hugging_face(tmp_path, name):
    first, last = CATALOG[name].splits
    write_hub(tmp_path, name, first, IMAGES)
    write_hub(tmp_path, name, last, IMAGES[:2])
    source, other = (
        opened(f"{name}:{tmp_path}"),
        opened(f"{name}:{tmp_path},split={last}"),
    )
    assert [source[i].image for i in range(len(source))] == IMAGES
    assert [other[i].image for i in range(len(other))] == IMAGES[:2]
    texts = [source[i].segments[0].text for i in range(6)]
    assert texts == ["a photo of a hot dog\n", "a photo of a pizza\n"] * 3
    alone = opened(f"{name}:{tmp_path}", with_image=False)
    assert [alone[i].image for i in range(6)] == [None] * 6
    assert [alone[i].segments[0].text for i in range(6)] == texts
    assert alone.fingerprint == source.fingerprint != other.fingerprint


@needs("pyarrow")
def test_a_whole_disk_is_not_searched(tmp_path):
    """Files are at most two folders below that of the set."""
    write_hub(tmp_path / "a/b", "food101", "train", IMAGES)
    assert len(opened(f"food101:{tmp_path / 'a'}")) == 6
    with pytest.raises(MissingInputError, match=f"is not in {tmp_path}"):
        opened(f"food101:{tmp_path}")


@needs("tensorflow_datasets")
@needs("array_record")
def test_a_set_of_tfds(tmp_path, monkeypatch):
    import tensorflow_datasets as tfds

    class Food101(tfds.core.GeneratorBasedBuilder):
        VERSION = tfds.core.Version("2.0.0")

        def _info(self):
            features = {
                "image": tfds.features.Image(encoding_format="jpeg"),
                "label": tfds.features.ClassLabel(names=CLASSES),
            }
            return tfds.core.DatasetInfo(
                builder=self, features=tfds.features.FeaturesDict(features)
            )

        def _split_generators(self, unused):
            return {s: self._generate_examples() for s in ("train", "validation")}

        def _generate_examples(self):
            for i, image in enumerate(IMAGES):
                yield i, {"image": io.BytesIO(image), "label": i % 2}

    Food101(data_dir=tmp_path, file_format="array_record").download_and_prepare()
    source = opened(f"food101:{tmp_path},split=validation")
    assert sorted(source[i].image for i in range(6)) == sorted(IMAGES)
    monkeypatch.setenv("TFDS_DATA_DIR", str(tmp_path))
    texts = {opened("food101")[i].segments[0].text for i in range(6)}
    assert texts == {"a photo of a hot dog\n", "a photo of a pizza\n"}


@pytest.mark.parametrize("name", CATALOG)
def test_what_is_not_there_says_how_it_is_had(tmp_path, name):
    one = CATALOG[name]
    with pytest.raises(MissingInputError) as error:
        opened(f"{name}:{tmp_path}")
    said = str(error.value)
    assert f"{one.title} is not in {tmp_path}" in said
    assert f"hf download {one.hub} --repo-type dataset --local-dir {tmp_path}" in said
    assert (f"tfds.builder({one.tfds!r}" in said) == bool(one.tfds)
    assert one.note in said
    with pytest.raises(ConfigError, match="has the splits .*; split is 'dev'"):
        opened(f"{name}:{tmp_path},split=dev")


def test_what_only_hugging_face_has_needs_a_folder():
    with pytest.raises(
        MissingInputError, match="--local-dir DIR, as in caltech256:DIR"
    ):
        opened("caltech256")


def test_what_tfds_does_not_have_says_both_ways(tmp_path, monkeypatch):
    monkeypatch.setenv("TFDS_DATA_DIR", str(tmp_path))
    with pytest.raises(
        MissingInputError, match=r"hf download uoft-cs/cifar10"
    ) as error:
        opened("cifar10:")
    assert "or, with tensorflow installed: tfds.builder('cifar10'" in str(error.value)
