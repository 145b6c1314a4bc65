"""Templates and phrases that captions and questions share.

"a small|size star|shape" is the text "a small star" with the tags of two words; an
underscore in a tagged word stands for a space.
"""

import re

import numpy as np

from hive_jax.data.tabletop.scene import Scene, Thing
from hive_jax.data.types import Segment

# Tags of words; the first is for all others. Validation reports the loss of each.
TAG_NAMES = ("other", "colour", "shape", "material", "relation", "size", "count")
COUNTS = ("zero", "one", "two", "three")
OPPOSITES = {
    "left": "right",
    "right": "left",
    "behind": "in front",
    "in front": "behind",
}
# Phrases for each relation, to go before the second toy.
PHRASES = {
    "left": ("to the left|relation of", "left|relation of"),
    "right": ("to the right|relation of", "right|relation of"),
    "behind": ("behind|relation",),
    "in front": ("in_front|relation of",),
}

_MARK = re.compile(r"(\w+)\|(\w+)")
# Attributes that may single out a toy, the most natural combination first.
_REFERENCES = (
    ("shape",),
    ("colour", "shape"),
    ("size", "shape"),
    ("material", "shape"),
    ("colour",),
    ("material",),
    ("size",),
    ("size", "colour"),
    ("material", "colour"),
    ("size", "material"),
)


def mark(template: str, target: bool = True) -> Segment:
    """Converts a template to a Segment: sentences capitalised, a newline at the end.

    Args:
      template: with tags.
      target: whether it is supervised; the tags of other text are dropped.
    """
    text, tags, end = "", [], 0
    for match in _MARK.finditer(template):
        text += template[end : match.start()]
        word = match[1].replace("_", " ")
        tags.append((len(text), len(text) + len(word), match[2]))
        text, end = text + word, match.end()
    text += template[end:]
    text = re.sub(r"(^|[.] )([a-z])", lambda m: m[1] + m[2].upper(), text)
    return Segment(text + "\n", target, tuple(tags) if target else ())


def strip_marks(template: str) -> str:
    """Converts a template to plain text."""
    return _MARK.sub(lambda match: match[1].replace("_", " "), template)


def sentence(template: str) -> str:
    """Converts a template to plain text that begins with a capital letter."""
    text = strip_marks(template)
    return text[0].upper() + text[1:]


def pick(options, rng: np.random.Generator):
    """Returns a random element of a sequence.

    Args:
      options: a non-empty sequence; all elements are equally likely.
      rng: advanced by one draw.
    """
    return options[int(rng.integers(len(options)))]


def article(phrase: str) -> str:
    """Prepends "a" or "an" to a phrase."""
    return ("an " if phrase[0] in "aeiou" else "a ") + phrase


def plural(shape: str) -> str:
    return shape + ("es" if shape.endswith("ss") else "s")


def refer(
    scene: Scene, thing: Thing, rng: np.random.Generator, hidden: str | None = None
) -> str | None:
    """Returns a template, such as "the red|colour star|shape", that fits one toy only.

    Args:
      scene: the scene of the toy.
      thing: the toy to refer to.
      rng: chooses between phrases where several fit.
      hidden: an attribute that the phrase must not give away.

    Returns:
      The phrase, or None if the toy cannot be told from the others without `hidden`.
    """
    unique = [
        names
        for names in _REFERENCES
        if hidden not in names and _fits(scene, thing, names) == 1
    ]
    if not unique:
        return None
    # Mostly the most natural one; the others for variety.
    names = unique[0]
    if rng.random() < 0.3:
        names = pick(unique, rng)
    words = [f"{getattr(thing, name)}|{name}" for name in names]
    return " ".join(["the", *words] + ([] if "shape" in names else ["object"]))


def _fits(scene: Scene, thing: Thing, names: tuple[str, ...]) -> int:
    """How many toys of the scene share these attributes with `thing`."""
    return sum(
        all(getattr(other, name) == getattr(thing, name) for name in names)
        for other in scene.things
    )
