"""Articles in the captions of classes."""

import pytest

from hive_jax.data.class_captions import class_caption, fill_template


@pytest.mark.parametrize(
    ("name", "caption"),
    [
        ("owl", "an owl"),
        ("hot_dog", "a hot dog"),
        ("Abyssinian", "an Abyssinian"),
        ("European gallinule", "a European gallinule"),
        ("unicycle", "a unicycle"),
        ("unidentified object", "an unidentified object"),
        ("hourglass", "an hourglass"),
        ("8", "an 8"),
        ("3", "a 3"),
        ("glass", "a glass"),
        ("cactus", "a cactus"),
        ("french_fries", "french fries"),
        ("Animals & Nature", "Animals & Nature"),
        ("fish and chips", "fish and chips"),
        ("ice cream", "an ice cream"),
    ],
)
def test_article(name, caption):
    assert class_caption(name) == f"a photo of {caption}"


def test_templates():
    assert fill_template("a {} or {}", "an_{}") == "an an {} or an {}"
    assert fill_template("extra {}, the {}.", "owl") == "extra owl, the owl."
    assert fill_template("a bad photo of a {}.", "owls") == "a bad photo of owls."
