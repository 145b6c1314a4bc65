"""Augmentation: what is drawn, and what it does to an image."""

import collections
import itertools

import numpy as np
import pytest
from PIL import Image

from hive_jax.data.augmentation import (
    ENHANCERS,
    Augmentation,
    apply_augmentation,
    augment_image,
    draw_augmentation,
)

WEIGHTS = np.array([0.299, 0.587, 0.114])  # of red, green and blue in grey


@pytest.fixture(scope="module")
def image():
    rng = np.random.default_rng(0)
    small = Image.fromarray(rng.integers(0, 256, (6, 8, 3), np.uint8))
    soft = np.asarray(small.resize((90, 70), Image.Resampling.BICUBIC))
    noisy = soft + rng.normal(0, 20, soft.shape)
    return Image.fromarray(noisy.clip(0, 255).astype(np.uint8))


def whole(image, *colours, flip=False, box=None):
    return Augmentation(box or (0, 0, *image.size), flip, colours)


def test_a_crop_is_resized_to_the_square_and_flipped(image):
    box = (5, 10, 65, 58)
    wanted = np.asarray(image)[10:58, 5:65]
    wanted = Image.fromarray(wanted).resize((32, 32), Image.Resampling.BICUBIC)
    np.testing.assert_array_equal(
        apply_augmentation(image, whole(image, box=box), 32), wanted
    )
    flipped = apply_augmentation(image, whole(image, box=box, flip=True), 32)
    np.testing.assert_array_equal(flipped, np.asarray(wanted)[:, ::-1])


@pytest.mark.parametrize("factor", [0.8, 0.93, 1.0, 1.07, 1.2])
@pytest.mark.parametrize("name", ENHANCERS)
def test_a_colour_is_a_blend_as_in_torchvision(image, name, factor):
    """factor * image + (1 - factor) * other, where the other one is black, the mean of
    the grey image, or the grey image."""
    before = apply_augmentation(image, whole(image), 64).astype(float)
    grey = (before @ WEIGHTS)[:, :, None]
    other = {"brightness": 0.0, "contrast": grey.mean(), "saturation": grey}[name]
    wanted = (factor * before + (1 - factor) * other).clip(0, 255)
    got = apply_augmentation(image, whole(image, (name, factor)), 64)
    assert np.abs(got - wanted).max() < 1.5  # both are rounded to whole numbers
    assert (np.abs(got - before).max() > 5) == (factor != 1.0)


def test_colours_are_changed_in_the_given_order(image):
    factors = dict(zip(ENHANCERS, (1.2, 0.8, 1.2), strict=True))
    results = set()
    for names in itertools.permutations(ENHANCERS):
        colours = tuple((name, factors[name]) for name in names)
        one = image
        for colour in colours:
            one = Image.fromarray(apply_augmentation(one, whole(one, colour), 64))
        got = apply_augmentation(image, whole(image, *colours), 64)
        np.testing.assert_array_equal(got, one)
        results.add(got.tobytes())
    assert len(results) > 3  # the contrast does not commute


@pytest.fixture(scope="module")
def drawn():
    rng = np.random.default_rng(1)
    return [draw_augmentation(rng, 640, 480) for _ in range(6000)]


def test_crops_have_the_areas_and_ratios_of_table_4(drawn):
    left, top, right, bottom = np.array([p.box for p in drawn]).T
    width, height = right - left, bottom - top
    assert left.min() == 0 and right.max() == 640
    assert top.min() == 0 and bottom.max() == 480
    area, ratio = width * height / (640 * 480), width / height
    assert 0.398 < area.min() < 0.41 and 0.98 < area.max() <= 1.0
    assert 0.745 < ratio.min() < 0.77 and 1.31 < ratio.max() < 1.34
    # Where the crop begins is uniform in what is left; so is what is cut off behind it.
    room = width < 600
    places = left[room] / (640 - width[room])
    histogram, _ = np.histogram(places, 5, (0, 1))
    np.testing.assert_allclose(histogram / room.sum(), 0.2, atol=0.03)


def test_small_crops_have_any_area_and_ratio_alike():
    """On a square image all areas up to 0.75 fit with every ratio: none is drawn anew."""
    rng = np.random.default_rng(2)
    boxes = np.array([draw_augmentation(rng, 1000, 1000).box for _ in range(8000)])
    width, height = (boxes[:, 2:] - boxes[:, :2]).T
    area, ratio = width * height / 1e6, np.log(width / height)
    small = area < 0.75
    uniform, _ = np.histogram(area[small], 7, (0.4, 0.75))
    np.testing.assert_allclose(uniform / small.sum(), 1 / 7, atol=0.025)
    uniform, _ = np.histogram(ratio[small], 5, np.log((0.75, 1.33)))
    np.testing.assert_allclose(uniform / small.sum(), 1 / 5, atol=0.025)


def test_flips_and_colours_are_evenly_drawn(drawn):
    assert abs(np.mean([p.flip for p in drawn]) - 0.5) < 0.03
    orders = collections.Counter(tuple(n for n, _ in p.colours) for p in drawn)
    assert len(orders) == 6
    np.testing.assert_allclose([n / 6000 for n in orders.values()], 1 / 6, atol=0.025)
    for name in ENHANCERS:
        factors = [dict(p.colours)[name] for p in drawn]
        histogram, _ = np.histogram(factors, 4, (0.8, 1.2))
        np.testing.assert_allclose(histogram / 6000, 0.25, atol=0.03)


@pytest.mark.parametrize(
    ("size", "box"),
    [((1000, 100), (433, 0, 566, 100)), ((100, 1000), (0, 433, 100, 566))],
)
def test_of_a_strip_it_is_the_middle(size, box):
    assert draw_augmentation(np.random.default_rng(0), *size).box == box


@pytest.mark.parametrize("size", [(1, 1), (1, 50), (2, 3)])
def test_the_smallest_images(size):
    image = Image.new("RGB", size, (10, 20, 30))
    for position in range(20):
        assert augment_image(image, 8, seed=0, position=position).shape == (8, 8, 3)


def test_it_is_a_function_of_the_seed_and_the_position(image):
    def several(seed):
        return [augment_image(image, 16, seed, p).tobytes() for p in range(10)]

    assert several(0) == several(0)
    assert len({*several(0), *several(1)}) == 20
