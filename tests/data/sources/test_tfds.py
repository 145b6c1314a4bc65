"""Sets of TensorFlow Datasets, written here as ArrayRecord; without TensorFlow."""

import collections
import importlib.util
import io
import re
import shutil
import time

import numpy as np
import pytest
from helpers.llava_sets import encoded, photograph
from helpers.sources import opened

from hive_jax.data.invalid import InvalidSample
from hive_jax.errors import ConfigError, DataError, MissingInputError
from tools.fault_suite import micro_run

for package in ("tensorflow_datasets", "array_record"):
    if importlib.util.find_spec(package) is None:
        pytest.skip(f"needs {package}", allow_module_level=True)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A data_dir with tiny_captions, 20 and 5 samples."""
    import tensorflow_datasets as tfds

    features = tfds.features

    class TinyCaptions(tfds.core.GeneratorBasedBuilder):
        VERSION = tfds.core.Version("1.0.0")

        def _info(self):
            return tfds.core.DatasetInfo(
                builder=self,
                features=features.FeaturesDict(
                    {
                        "image": features.Image(encoding_format="jpeg"),
                        "captions": features.Sequence({"text": features.Text()}),
                        "label": features.ClassLabel(names=["hot_dog", "pizza"]),
                        "title": features.Text(),
                        # As COCO's captions are, by the code of newer versions.
                        "more": features.Sequence(
                            {"words": features.Tensor(shape=(), dtype=np.str_)}
                        ),
                        "alone": features.Tensor(shape=(), dtype=np.str_),
                        "info": {"photo/1": features.Image(encoding_format="jpeg")},
                        "labels": features.Sequence(features.ClassLabel(num_classes=3)),
                    }
                ),
            )

        def _split_generators(self, unused):
            return {
                "train": self._generate_examples(20),
                "val": self._generate_examples(5),
            }

        def _generate_examples(self, count):
            for i in range(count):
                yield (
                    i,
                    {
                        "image": io.BytesIO(encoded(photograph(i))),
                        "captions": [{"text": f"first {i}"}, {"text": f"second {i}"}],
                        "label": i % 2 if i != 7 else -1,
                        "title": f"title {i}" if i else "",
                        "more": [{"words": f"word {i}"}] if i else [],
                        "alone": b"caf\xc3\xa9" if i else b"\xff\xfe",
                        "info": {"photo/1": io.BytesIO(encoded(photograph(i)))},
                        "labels": [i % 3],
                    },
                )

    data_dir = str(tmp_path_factory.mktemp("tfds"))
    TinyCaptions(data_dir=data_dir, file_format="array_record").download_and_prepare()
    return data_dir


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("captions/text", "first {}\n"),
    ],
)
def test_every_sample_is_read(folder, text, said):
    source = opened(f"tfds:tiny_captions,dir={folder},image=image,text={text}")
    got = {source[i].segments[0].text: source[i].image for i in range(len(source))}
    for i in range(20):
        assert got[said.format(i)] == encoded(photograph(i))


def test_classes_are_captions_and_a_number_that_is_none_a_bad_sample(folder):
    source = opened(f"tfds:tiny_captions,dir={folder},image=image,text=label")
    texts, bad = collections.Counter(), []
    for index in range(20):
        try:
            texts[source[index].segments[0].text] += 1
        except InvalidSample as error:
            bad.append(error)
    assert texts == {"a photo of a hot dog\n": 10, "a photo of a pizza\n": 9}
    assert [error.detail for error in bad] == ["is of class -1; expected 0 to 1"]


@pytest.mark.parametrize(
    ("text", "said", "detail"),
    [
        ("more/words", "word {}\n", "has no text"),
        ("alone", "café\n", "alone is not UTF-8"),
        ("title", "title {}\n", "has no text"),
    ],
)
def test_any_text_will_do(folder, text, said, detail):
    image = "info/photo/1"
    source = opened(f"tfds:tiny_captions:1.0.0,dir={folder},image={image},text={text}")
    details, texts = [], set()
    for index in range(20):
        try:
            sample = source[index]
        except InvalidSample as error:
            details.append(error.detail)
        else:
            texts.add(sample.segments[0].text)
            assert sample.image.startswith(b"\xff\xd8")
    assert texts == {said.format(i) for i in range(1, 20)}
    assert len(details) == 1 and detail in details[0]


def test_a_version_by_its_folder_and_parts_of_a_split(folder):
    name = f"tfds:{folder}/tiny_captions/1.0.0,image=image,text=title"
    source, half = opened(name), opened(f"{name},split=train[:50%]")
    assert (len(source), len(half), len(opened(f"{name},split=val"))) == (20, 10, 5)
    assert half[3].image == source[3].image
    assert (
        len({s.fingerprint for s in (source, half, opened(f"{name},split=val"))}) == 3
    )
    with pytest.raises(ConfigError, match="is the folder of a version; leave dir= out"):
        opened(f"{name},dir={folder}")
    empty = [i for i in range(20) if not _has_text(source, i)]
    assert len(empty) == 1 and "tiny_captions/1.0.0, train" in source.describe(empty[0])


def _has_text(source, index):
    try:
        return bool(source[index])
    except DataError as error:
        assert error.reason == "record"
        return False


def test_what_is_not_there(folder):
    name = f"tfds:tiny_captions,dir={folder}"
    with pytest.raises(DataError, match=r"image=\?; .*: image, info/photo/1"):
        opened(f"{name},text=label")
    for text in ("labels", "image", "caption"):
        wanted = "alone, captions/text, label, more/words, title"
        with pytest.raises(DataError, match=f"text={text}; .*features: {wanted}"):
            opened(f"{name},image=image,text={text}")
    for split in ("test", "train[5:3]", "train[", "train[:200%]", ""):
        with pytest.raises(DataError, match=f"split {re.escape(split)}"):
            opened(f"{name},image=image,text=label,split={split or '+'}")
    for name in ("huge_captions", "mnist", "tiny_captions:2.0.0", "../x", "*"):
        with pytest.raises(
            MissingInputError, match=f"tfds:{re.escape(name)} was not found.*Prepare"
        ):
            opened(f"tfds:{name},dir={folder},text=label")


def test_versions_are_three_numbers(folder, tmp_path):
    """And what an interrupted preparation leaves is none."""
    root = tmp_path / "tiny_captions"
    for name in ("2.0.0.incompleteABC123_tiny_captions", "backup-9.9.9"):
        shutil.copytree(f"{folder}/tiny_captions/1.0.0", root / name)
    name = f"tfds:tiny_captions,dir={tmp_path},image=image,text=label"
    with pytest.raises(MissingInputError, match="no version but 2.0.0.incompleteABC"):
        opened(name)
    shutil.copytree(f"{folder}/tiny_captions/1.0.0", root / "1.0.0")
    assert len(opened(name)) == 20


TRAIN = """
import sys
from hive_jax.train import main
try:
    sys.exit(main())
finally:
    assert "tensorflow" not in sys.modules
"""


def test_it_trains_and_resumes_without_tensorflow(folder, tmp_path):
    """Killed on the way and resumed, as in one go."""
    source = f"tfds:tiny_captions,dir={folder},image=image,text=captions/text"

    def start(workdir):
        command = micro_run.command(
            "stage1.py",
            tmp_path / workdir,
            "--config.total_steps=12",
            "--config.checkpoint_every=2",
            f"--config.data.source={source}",
        )
        at = command.index("-m")
        return micro_run.start(
            [*command[:at], "-c", TRAIN, *command[at + 2 :]], tmp_path / "cache"
        )

    micro_run.finish(start("whole"))
    process, saved = start("killed"), tmp_path / "killed/checkpoints/4"
    while not saved.exists() and process.poll() is None:
        time.sleep(0.01)
    process.kill()
    process.communicate()
    output = micro_run.finish(start("killed"))
    assert "continuing from step" in output
    one, two = (micro_run.outcome(tmp_path / name) for name in ("whole", "killed"))
    losses = one.pop("losses").items(), two.pop("losses").items()
    assert one == two  # the final losses, and the bits of every parameter
    assert len(dict(losses[0]).keys() & dict(losses[1]).keys()) >= 5
    assert len(dict([*losses[0], *losses[1]]).items()) == len({*losses[0], *losses[1]})
