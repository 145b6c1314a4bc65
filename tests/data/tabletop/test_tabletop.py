"""The built-in dataset: scenes, splits, pictures and arguments."""

import dataclasses

import numpy as np
import pytest

from hive_jax.data.tabletop import Tabletop
from hive_jax.data.tabletop.questions import VALUES
from hive_jax.data.tabletop.render import render
from hive_jax.data.tabletop.scene import (
    COLOURS,
    MATERIALS,
    RADII,
    SPLITS,
    Scene,
    Thing,
    bucket,
    describe,
    scene,
)
from hive_jax.errors import ConfigError


def test_samples_do_not_depend_on_order_or_instance():
    one, other = (Tabletop("train", text="text") for _ in range(2))
    forward = [one[index] for index in range(20)]
    for index in reversed(range(20)):
        sample = other[index]
        assert sample.segments == forward[index].segments
        np.testing.assert_array_equal(sample.image, forward[index].image)


def test_seeds_and_indices_give_different_scenes():
    scenes = [scene("train", seed, index) for seed in (0, 1) for index in range(100)]
    assert len({describe(one.things) for one in scenes}) > 195


def test_splits_share_no_scene():
    seen = {}
    for split in SPLITS:
        things = [scene(split, 0, index).things for index in range(300)]
        assert all(bucket(one) in SPLITS[split] for one in things)
        seen[split] = {describe(one) for one in things}
    dealt = sorted(bucket for buckets in SPLITS.values() for bucket in buckets)
    assert dealt == list(range(16))
    assert not seen["train"] & seen["validation"]
    assert not seen["train"] & seen["test"]
    assert not seen["validation"] & seen["test"]


def test_the_description_ignores_the_order_of_the_toys(scenes):
    one = next(one for one in scenes if len(one.things) == 3)
    assert describe(one.things) == describe(one.things[::-1])


def test_toys_stay_in_the_picture_and_apart(scenes):
    for one in scenes:
        for i, thing in enumerate(one.things):
            low, high = RADII[thing.size]
            assert low <= thing.radius <= high
            assert thing.radius < thing.x < 1 - thing.radius
            assert thing.radius < thing.y < 1 - thing.radius
            for other in one.things[:i]:
                apart = np.hypot(thing.x - other.x, thing.y - other.y)
                assert apart > thing.radius + other.radius


def test_attributes_are_about_equally_frequent(scenes):
    things = [thing for one in scenes for thing in one.things]
    for attribute in ("shape", "colour", "material"):
        values = [getattr(thing, attribute) for thing in things]
        shares = [values.count(value) / len(values) for value in VALUES[attribute]]
        even = 1 / len(VALUES[attribute])
        assert 0.8 * even < min(shares) and max(shares) < 1.2 * even
    alone = np.mean([len(one.things) == 1 for one in scenes])
    assert 0.45 < alone < 0.55


@pytest.mark.parametrize("image_size", [8, 33, 64, 224])
def test_any_image_size(image_size):
    image = Tabletop("test", image_size=image_size)[3].image
    assert image.shape == (image_size, image_size, 3) and image.dtype == np.uint8
    assert image.std() > 10


def face(material: str, colour: str, key: int) -> np.ndarray:
    """The middle of a large toy's picture, float64[12, 12]."""
    thing = Thing("square", colour, "large", material, 0.5, 0.55, 0.21)
    return render(Scene((thing,), key))[29:41, 26:38].mean(-1)


def test_textures_can_be_seen_and_brightness_gives_little_away():
    plain = np.array([face("plain", "green", key) for key in range(40)])
    for material in MATERIALS[1:]:
        faces = np.array([face(material, "green", key) for key in range(40)])
        assert faces.std((1, 2)).min() > 2 * plain.std((1, 2)).max()
        means = faces.mean((1, 2))
        spread = plain.mean((1, 2)).std()
        assert abs(means.mean() - plain.mean()) < spread


def test_colours_can_be_told_apart():
    def hue(colour: str) -> np.ndarray:
        thing = Thing("circle", colour, "large", "plain", 0.5, 0.55, 0.21)
        mean = render(Scene((thing,), 1))[29:41, 26:38].mean((0, 1))
        return mean / np.linalg.norm(mean)

    hues = np.array([hue(colour) for colour in COLOURS])
    alike = hues @ hues.T - np.eye(len(COLOURS))
    assert alike.max() < 0.985


def test_text_only_samples_have_no_image():
    with_image, without = Tabletop("train"), Tabletop("train", with_image=False)
    assert without[5].image is None
    assert without[5].segments == with_image[5].segments


def test_lengths_and_bounds():
    assert len(Tabletop("train")) == 1_048_576
    assert len(Tabletop("validation")) == len(Tabletop("test")) == 4096
    source = Tabletop("train", size=3, with_image=False)
    assert len(source) == len(list(source)) == 3
    for index in (3, -1):
        with pytest.raises(IndexError, match="which has 3"):
            source[index]


def test_the_fingerprint_tells_arguments_apart():
    sources = [
        Tabletop("train"),
        Tabletop("test"),
        Tabletop("train", seed=1),
        Tabletop("train", image_size=32),
        Tabletop("train", text="vague"),
        Tabletop("train", with_image=False),
        Tabletop("train", size=10),
    ]
    assert len({source.fingerprint for source in sources}) == len(sources)
    assert Tabletop("train").fingerprint == sources[0].fingerprint


@pytest.mark.parametrize(
    "arguments, message",
    [
        ({"split": "validate"}, "did you mean 'validation'"),
        ({"split": "train", "text": "caption"}, "did you mean 'captions'"),
        ({"split": "train", "image_size": 0}, "image_size must be a whole number"),
        ({"split": "train", "seed": -1}, "seed must be a whole number"),
        ({"split": "train", "size": 0}, "size must be a whole number"),
    ],
)
def test_wrong_arguments_are_explained(arguments, message):
    with pytest.raises(ConfigError, match=message):
        Tabletop(**arguments)


def test_scenes_are_frozen(scenes):
    with pytest.raises(dataclasses.FrozenInstanceError):
        scenes[0].key = 1
