"""Probes of frozen encoders: labels, features, classifiers, towers, what goes out."""

import dataclasses

import numpy as np
import pytest
from helpers.exported_runs import run_config
from helpers.probes import BUILTIN, HOW, SMALL, read
from helpers.random_runs import save_random
from PIL import Image

import hive_jax.probe as command
from configs import probe as probe_config
from hive_jax.config import ProbeConfig, from_dict
from hive_jax.console import parse_unique_paths
from hive_jax.data.sources.registry import whole_source
from hive_jax.data.tabletop.scene import MATERIALS, SHAPES
from hive_jax.errors import ConfigError, DataError, HiveError
from hive_jax.evaluation.probe import Probe, probe
from hive_jax.inference.encoder import load_encoder
from hive_jax.models.siglip import SiglipEncoder
from hive_jax.training.objectives import normalize_images


@pytest.fixture(scope="module")
def encoder():
    return load_encoder(BUILTIN, "base")


@pytest.fixture(scope="module")
def linear(encoder, tmp_path_factory):
    """A linear probe's results, classifiers and folder."""
    out = tmp_path_factory.mktemp("linear")
    return *probe(SMALL, encoder, out), out


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


@pytest.mark.parametrize("depth", [-1, -2])
def test_a_fresh_norm_is_trained_with_the_classifier(depth, encoder, tmp_path):
    """Its scale and bias on normalised tokens, before their mean; that of the encoder is
    left out, at the last block too."""
    config = dataclasses.replace(SMALL, depth=depth, fresh_norm=True, epochs=5)
    results, fitted, work = probe(config, encoder, tmp_path)
    block = 9 + depth
    assert [*results] == [block]
    task = "probe_linear" + ("_depth7" if depth == -2 else "")
    result, samples = read(tmp_path / task)
    assert result["recipe"]["fresh_norm"] and result["checkpoint"]["depth"] == block
    source = whole_source(SMALL.test, HOW)
    images = np.stack([source[i].image for i in range(100)])
    model, params = SiglipEncoder(encoder.config), {"params": encoder.params}
    features = model.apply(params, normalize_images(images), (block,)).features[0]
    tokens = np.asarray(features, np.float64)
    tokens -= tokens.mean(axis=-1, keepdims=True)
    tokens /= np.sqrt((tokens**2).mean(axis=-1, keepdims=True) + 1e-6)
    for number, one in enumerate(fitted[0]):
        norm, classifier = one["norm"], one["classifier"]
        assert np.ptp(norm["scale"]) > 0.01 and np.ptp(norm["bias"]) > 0.01
        mean = (tokens * norm["scale"] + norm["bias"]).mean(axis=1)
        logits = mean @ classifier["kernel"] + classifier["bias"]
        found = [work.classes[i] for i in logits.argmax(-1)]
        said = [sample["output"][number] for sample in samples]
        assert np.mean([a == b for a, b in zip(found, said, strict=True)]) > 0.98


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


@pytest.mark.parametrize(
    "changes",
    [
        {"augment": True},
        {"probe": "attentive"},
        {"probe": "attentive", "fresh_norm": True},
    ],
)
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
        (
            {"depth": 9},
            "base: config.depth is 9; expected 1 to 8, -1 to -8 from the end",
        ),
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
