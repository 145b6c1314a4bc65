"""Probes of frozen encoders: labels, features, classifiers, towers, what goes out."""

import dataclasses
import json

import numpy as np
import pytest
from export.test_export import run_config
from helpers.llava_sets import encoded, photograph
from helpers.random_runs import save_random
from helpers.tars import write_tar
from PIL import Image

import hive_jax.probe as command
from configs import probe as probe_config
from hive_jax.config import ProbeConfig, from_dict
from hive_jax.console import parse_unique_paths
from hive_jax.data.sources.base import SourceOptions
from hive_jax.data.sources.registry import whole_source
from hive_jax.data.tabletop.scene import MATERIALS, SHAPES
from hive_jax.data.types import Sample, Segment
from hive_jax.errors import CheckpointError, ConfigError, DataError, HiveError
from hive_jax.evaluation import zero_shot
from hive_jax.evaluation.probe import Probe, probe
from hive_jax.inference import model
from hive_jax.inference.encoder import load_encoder
from hive_jax.models.siglip import SiglipEncoder
from hive_jax.training.objectives import normalize_images

BUILTIN = "builtin:tabletop_siglip"
SMALL = ProbeConfig(
    train="tabletop:classes,take=first:400",
    test="tabletop:classes,split=test,take=first:100",
    epochs=20,
    batch_size=100,
    peak_lr=0.1,
    num_seeds=2,
)
HOW = SourceOptions(64, "hf_bicubic")


@pytest.fixture(scope="module")
def encoder():
    return load_encoder(BUILTIN, "base")


@pytest.fixture(scope="module")
def linear(encoder, tmp_path_factory):
    """A linear probe's results, classifiers and folder."""
    out = tmp_path_factory.mktemp("linear")
    return *probe(SMALL, encoder, out), out


def read(folder):
    lines = (folder / "samples.jsonl").read_text().splitlines()
    result = json.loads((folder / "result.json").read_text())
    return result, [json.loads(line) for line in lines]


def width(picture):
    with Image.open(picture) as image:
        return image.width


@pytest.fixture(scope="module")
def pets(tmp_path_factory):
    """A folder of two classes: dark and light images of several sizes."""
    root = tmp_path_factory.mktemp("pets")
    rng = np.random.default_rng(0)
    for name, low in (("black_cat", 0), ("white cat", 160)):
        (root / name).mkdir()
        for number in range(24):
            size = (*rng.integers(40, 90, 2), 3)
            pixels = rng.integers(low, low + 90, size, np.uint8)
            Image.fromarray(pixels).save(root / name / f"{number}.png")
    return root


# Classes.


def test_classes_of_the_built_in_world():
    source = whole_source("tabletop:classes,split=test,take=first:50", HOW)
    assert source.classes == tuple(f"{m} {s}" for m in MATERIALS for s in SHAPES)
    samples = [source[index] for index in range(50)]
    assert {sample.label for sample in samples} <= set(source.classes)
    assert len({sample.label for sample in samples}) > 15
    for sample in samples:
        article = "an" if sample.label[0] in "aeiou" else "a"
        assert sample.segments[0].text == f"A photo of {article} {sample.label}\n"
    train = whole_source("tabletop:classes,take=first:50", HOW)
    assert not np.array_equal(train[0].image, samples[0].image)


def test_classes_of_a_folder(pets):
    source = whole_source(f"folder:{pets}", HOW)
    assert source.classes == ("black_cat", "white cat")
    assert [source[i].label for i in (0, 47)] == ["black_cat", "white cat"]
    assert source[0].segments[0].text == "a photo of a black cat\n"


@pytest.mark.parametrize(
    ("column", "labels", "classes"),
    [
        ("label", ["b", "a", "b"], ("a", "b")),
        ("label", ["10", "9", "10"], ("9", "10")),
        ("text", ["b", "a", "b"], ()),
    ],
)
def test_classes_of_a_table(column, labels, classes, pets, tmp_path):
    rows = [f"black_cat/{i}.png,{label}" for i, label in enumerate(labels)]
    (tmp_path / "a.csv").write_text("\n".join([f"image,{column}", *rows]))
    source = whole_source(f"table:{tmp_path}/a.csv,images={pets}", HOW)
    assert source.classes == classes
    assert [source[i].label for i in range(3)] == (labels if classes else [""] * 3)


def test_parts_and_mixtures_keep_their_classes(pets):
    one = f"folder:{pets}"
    assert len(whole_source(f"{one},take=first:3", HOW).classes) == 2
    assert len(whole_source(f"{one} + {one}", HOW).classes) == 2


# Features and classifiers.


def test_results_are_those_of_the_samples(linear):
    results, _, work, out = linear
    result, samples = read(out / "probe_linear")
    assert result == results[8]
    assert result["task"] == "probe_linear" and result["n"] == len(samples) == 100
    hits = [
        [output == sample["answers"][0] for output in sample["output"]]
        for sample in samples
    ]
    each = 100 * np.mean(hits, axis=0)
    assert result["scores"]["accuracy"] == pytest.approx(each.mean())
    assert result["scores"]["accuracy_std"] == pytest.approx(each.std(ddof=1))
    assert [sample["score"] for sample in samples] == np.mean(hits, axis=1).tolist()
    parts = result["parts"]
    assert sum(part["n"] for part in parts.values()) == 100
    total = sum(part["n"] * part["accuracy"] for part in parts.values()) / 100
    assert total == pytest.approx(each.mean())
    assert width(out / "probe_linear/confusion.png") > 300
    assert len(work.classes) == 36


def test_a_probe_learns(linear):
    """A guess is right once in 36 times."""
    assert linear[0][8]["scores"]["accuracy"] > 10


def test_features_are_those_of_the_encoder(linear, encoder):
    """And the classifier is one product with the mean of the normalised tokens."""
    _, fitted, work, out = linear
    source = whole_source(SMALL.test, HOW)
    images = np.stack([source[i].image for i in range(100)])
    model, params = SiglipEncoder(encoder.config), {"params": encoder.params}
    tokens = np.asarray(model.apply(params, normalize_images(images)).tokens)
    _, samples = read(out / "probe_linear")
    for number, one in enumerate(fitted[0]):
        classifier = one["classifier"]
        logits = tokens.mean(axis=1) @ classifier["kernel"]
        logits += classifier["bias"][None]
        found = [work.classes[i] for i in logits.argmax(-1)]
        assert found == [sample["output"][number] for sample in samples]


def test_the_same_seeds_give_the_same_bits(linear, encoder):
    fitted = Probe(SMALL, encoder, (8,)).fitted()
    for one, other in zip(fitted[0], linear[1][0], strict=True):
        np.testing.assert_array_equal(
            one["classifier"]["kernel"], other["classifier"]["kernel"]
        )
    first, second = (params["classifier"]["kernel"] for params in fitted[0])
    assert np.abs(first - second).max() > 1e-3


def test_what_is_done_is_kept(linear, encoder):
    results, _, _, out = linear
    again, fitted, _ = probe(SMALL, encoder, out)
    assert again == results and fitted is None
    other = dataclasses.replace(SMALL, peak_lr=0.05)
    with pytest.raises(HiveError, match=r"recipe.peak_lr: 0.1 -> 0.05"):
        probe(other, encoder, out)


def test_every_depth(encoder, tmp_path):
    config = dataclasses.replace(SMALL, num_seeds=1, epochs=5)
    results, fitted, _ = probe(config, encoder, tmp_path, every_depth=True)
    assert list(results) == list(range(1, 9)) and len(fitted) == 8
    names = {path.name for path in tmp_path.iterdir()}
    assert names == {"probe_linear", *(f"probe_linear_depth{d}" for d in range(1, 8))}
    one, _, _ = probe(dataclasses.replace(config, depth=3), encoder, tmp_path / "3")
    same = ("scores", "parts", "checkpoint")
    assert all(one[3][key] == results[3][key] for key in same)
    assert results[3]["checkpoint"]["depth"] == 3


@pytest.mark.parametrize("changes", [{"augment": True}, {"probe": "attentive"}])
def test_other_ways_to_probe(changes, pets, encoder, tmp_path):
    config = dataclasses.replace(
        SMALL,
        train=f"folder:{pets}",
        test=f"folder:{pets}",
        epochs=8,
        batch_size=16,
        peak_lr=0.03,
        num_seeds=1,
        **changes,
    )
    results, _, _ = probe(config, encoder, tmp_path)
    assert results[8]["scores"] == {"accuracy": 100.0, "accuracy_std": 0.0}
    assert results[8]["task"] == f"probe_{config.probe}"


def test_features_that_do_not_fit_are_made_anew(pets, encoder, monkeypatch):
    config = dataclasses.replace(
        SMALL, train=f"folder:{pets}", test=f"folder:{pets}", batch_size=16, epochs=2
    )
    kept = Probe(config, encoder, (8,)).fitted()
    monkeypatch.setattr("hive_jax.evaluation.frozen_features.MAX_CACHED_BYTES", 100)
    anew = Probe(config, encoder, (8,)).fitted()
    for one, other in zip(kept[0], anew[0], strict=True):
        np.testing.assert_allclose(
            one["classifier"]["kernel"], other["classifier"]["kernel"], atol=1e-5
        )
    with pytest.raises(ConfigError, match="take=first:N"):
        Probe(config, encoder, (7, 8)).fitted()


# What is wrong with the data.


def test_bad_images_to_train_on_are_counted(pets, encoder, tmp_path, capsys):
    broken = tmp_path / "pets"
    for path in pets.glob("*/*.png"):
        target = broken / path.relative_to(pets)
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes(path.read_bytes())
    (broken / "black_cat/3.png").write_bytes(b"no image")
    config = dataclasses.replace(
        SMALL, train=f"folder:{broken}", test=f"folder:{pets}", max_bad_fraction=0.1
    )
    probe(config, encoder, tmp_path / "out")
    assert "1 of 48 training images cannot be read" in capsys.readouterr().out
    few = dataclasses.replace(config, max_bad_fraction=0.01)
    with pytest.raises(DataError, match=r"1 of 48 .*begins with b'no image'"):
        probe(few, encoder, tmp_path / "other")
    swapped = dataclasses.replace(config, train=config.test, test=config.train)
    with pytest.raises(DataError, match=r"3\.png.*a subset is not comparable"):
        probe(swapped, encoder, tmp_path / "third")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"train": "tabletop"}, "has no classes; expected folder:"),
        ({"depth": 9}, "config.depth is 9; base has blocks 1 to 8"),
    ],
)
def test_what_cannot_be_probed(changes, message, encoder, tmp_path):
    with pytest.raises(HiveError, match=message):
        probe(dataclasses.replace(SMALL, **changes), encoder, tmp_path)


def test_test_classes_are_those_to_train_on(pets, encoder, tmp_path):
    config = dataclasses.replace(SMALL, test=f"folder:{pets}")
    with pytest.raises(DataError, match="'black_cat', which the training data lacks"):
        probe(config, encoder, tmp_path)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"probe": "mlp"}, "probe is 'mlp'; expected one of"),
        ({"epochs": 0}, "epochs is 0"),
        ({"templates": ("a photo",)}, "templates"),
        ({"preprocessing": "bicubic"}, "preprocessing is 'bicubic'"),
        ({"peak_lr": 0.0}, "peak_lr is 0.0"),
    ],
)
def test_configs_that_cannot_be(changes, message):
    with pytest.raises(ConfigError, match=message):
        from_dict(changes, ProbeConfig)


def test_weights_are_named_by_the_user_or_by_their_path():
    def parse(arguments):
        return parse_unique_paths(arguments, command._default_name)

    assert parse(["a/b/stage3"]) == {"stage3": "a/b/stage3"}
    assert parse(["x=a", "y=b"]) == {"x": "a", "y": "b"}
    assert parse([BUILTIN]) == {"tabletop_siglip": BUILTIN}
    for arguments in (["x=a", "x=b"], ["x="], ["=a"], ["a/b", "c/b"]):
        with pytest.raises(
            ConfigError, match="expected a name for each|expected NAME=PATH"
        ):
            parse(arguments)


@pytest.mark.parametrize("arguments", ["", "paper", "attentive", "paper,retrieval"])
def test_the_config(arguments):
    config = from_dict(probe_config.get_config(arguments).to_dict(), ProbeConfig)
    if "paper" in arguments:  # table 4
        assert (config.peak_lr, config.weight_decay, config.clip_norm) == (
            2e-4,
            0.01,
            3,
        )
        assert (config.epochs, config.warmup_epochs) == (5, 1.5)
        assert config.batch_size == 512 and config.augment and config.num_seeds == 3


# Encoders of runs, and the two towers.


def test_a_run_is_an_encoder(tmp_path):
    save_random(run_config("hive"), str(tmp_path / "run"))
    found = load_encoder(str(tmp_path / "run"), "run")
    assert found.config == run_config("hive").model.encoder
    assert found.preprocessing == "hf_bicubic"
    other = load_encoder(BUILTIN, "base")
    assert found.fingerprint != other.fingerprint
    assert other.fingerprint == load_encoder(BUILTIN, "again").fingerprint


def test_zero_shot(tmp_path):
    config = dataclasses.replace(SMALL, probe="zero_shot")
    found = zero_shot.evaluate_towers(config, model.load(BUILTIN), tmp_path)
    result, samples = read(tmp_path / "zero_shot")
    assert result == found and len(samples) == 100
    # Shapes are named in its texts, materials hardly ever.
    shapes = [s["output"].split()[1] == s["answers"][0].split()[1] for s in samples]
    assert np.mean(shapes) > 0.8
    assert found["scores"]["accuracy_top5"] > found["scores"]["accuracy"] > 5
    again = zero_shot.evaluate_towers(config, model.load(BUILTIN), tmp_path)
    assert again == found


def test_retrieval(tmp_path):
    test = "tabletop:vague,split=test,take=first:60"
    config = dataclasses.replace(SMALL, probe="retrieval", test=test)
    found = zero_shot.evaluate_towers(config, model.load(BUILTIN), tmp_path)
    scores = found["scores"]
    for way in ("image_to_text", "text_to_image"):
        one, five, ten = (scores[f"{way}_recall@{k}"] for k in zero_shot.RANKS)
        assert 20 < one < five < ten <= 100  # of 60 texts, a guess finds 1.7 %
    _, samples = read(tmp_path / "retrieval")
    hits = [sample["output"] == sample["answers"][0] for sample in samples]
    assert scores["image_to_text_recall@1"] == pytest.approx(100 * np.mean(hits))


def test_ranks():
    likeness = np.array([[0.1, 0.9, 0.5], [0.3, 0.2, 0.1]])
    assert zero_shot._ranks(likeness, np.array([2, 0])).tolist() == [1, 0]


def captions(texts: str, images: str) -> list[Sample]:
    """Samples of one letter each, and the content of their images."""
    return [
        Sample(image.encode(), (Segment(text + "\n"),))
        for text, image in zip(texts, images, strict=True)
    ]


def retrieval(monkeypatch, source, images, words):
    """Samples and scores of one-hot embeddings: `images` by row, `words` by text."""

    class Model:
        def embed_texts(self, texts):
            return np.eye(4, dtype=np.float32)[[words[text] for text in texts]]

    def embed_images(config, model, source, rows):
        return np.eye(4, dtype=np.float32)[np.take(images, rows)]

    monkeypatch.setattr(zero_shot, "_embed_images", embed_images)
    samples, scores, _, counts = zero_shot._retrieval(SMALL, Model(), source)
    samples = list(samples)
    assert set(counts) == set(scores)
    assert counts["image_to_text_recall@1"] == len(samples)
    assert counts["text_to_image_recall@1"] == len(words)
    return samples, scores


def test_captions_of_one_image_are_one_candidate(monkeypatch):
    """As in COCO: six rows, of two images with two captions and two with one."""
    source = captions("abcdef", "001123")
    words = {"a": 0, "b": 1, "c": 0, "d": 1, "e": 2, "f": 3}
    samples, scores = retrieval(monkeypatch, source, [0, 0, 1, 1, 2, 3], words)
    assert [s["id"] for s in samples] == ["0", "2", "4", "5"]
    assert samples[1]["answers"] == ["c", "d"] and samples[1]["score"] == 1.0
    assert scores["image_to_text_recall@1"] == 100.0
    # "b" and "c" are nearer to the other image.
    assert scores["text_to_image_recall@1"] == pytest.approx(400 / 6)


def test_equal_texts_are_equally_good(monkeypatch):
    source = captions("aab", "012")
    words = {"a": 1, "b": 2}
    _, scores = retrieval(monkeypatch, source, [0, 1, 2], words)
    # The second and third image find their text; both texts find one of their images.
    assert scores["text_to_image_recall@1"] == 100.0
    assert scores["image_to_text_recall@1"] == 100.0


def test_retrieval_of_captions_in_a_tar(tmp_path, monkeypatch):
    """A tar has no names of images: each caption comes with the whole file."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    members = {}
    for row, text in enumerate("abcd"):
        image = encoded(photograph(row // 2))
        members |= {f"{row}.jpg": image, f"{row}.txt": text}
    write_tar(tmp_path / "a.tar", members)
    source = whole_source(f"wds:{tmp_path}/a.tar", HOW)
    words = {"a": 0, "b": 0, "c": 1, "d": 2}
    samples, scores = retrieval(monkeypatch, source, [0, 0, 1, 1], words)
    assert [s["answers"] for s in samples] == [["a", "b"], ["c", "d"]]
    assert scores["image_to_text_recall@1"] == 100.0


def test_zero_shot_needs_a_text_tower(tmp_path):
    save_random(run_config("hive"), str(tmp_path / "run"))
    config = dataclasses.replace(SMALL, probe="zero_shot")
    one_tower = model.load(tmp_path / "run")
    with pytest.raises(CheckpointError, match="has no text tower"):
        zero_shot.evaluate_towers(config, one_tower, tmp_path)
    with pytest.raises(CheckpointError, match="has no text tower"):
        one_tower.embed_texts(["a"])
    save_random(run_config("contrastive"), str(tmp_path / "two"))
    embeddings = model.load(tmp_path / "two").embed_texts(["a red star", "a cube"])
    np.testing.assert_allclose(np.linalg.norm(embeddings, axis=1), 1, rtol=1e-5)
