"""Questions to answer with yes or no, in categories of MME, a true and a false one."""

import functools
from collections.abc import Callable

import numpy as np

from hive_jax.data.tabletop.questions import (
    claim_attribute,
    claim_presence,
    claim_relation,
)
from hive_jax.data.tabletop.scene import Scene
from hive_jax.data.tabletop.words import COUNTS, pick, refer, sentence


def true_and_false(
    scene: Scene, category: str, rng: np.random.Generator
) -> tuple[str, str] | None:
    """A question of the category to say yes to, and one to say no to.

    None where the scene does not allow both.
    """
    claims = [CLAIMS[category](scene, true, rng) for true in (True, False)]
    return tuple(map(sentence, claims)) if all(claims) else None


def _claim_count(scene: Scene, true: bool, rng: np.random.Generator) -> str:
    verb, objects = _objects(_number(len(scene.things), true, range(1, 4), rng))
    return f"{verb} there exactly {objects}?"


def _claim_rest(scene: Scene, true: bool, rng: np.random.Generator) -> str:
    verb, objects = _objects(_number(len(scene.things) - 1, true, range(3), rng))
    return f"{verb} {objects} left if one is taken away?"


def _claim_larger(scene: Scene, true: bool, rng: np.random.Generator) -> str | None:
    """About two toys of different sizes, neither of which is said."""
    by_size = {thing.size: thing for thing in scene.things}
    if len(by_size) < 2:
        return None
    names = [refer(scene, by_size[size], rng, "size") for size in ("large", "small")]
    first, second = names if true else reversed(names)
    return f"is {first} larger than {second}?" if all(names) else None


def _number(right: int, true: bool, known: range, rng: np.random.Generator) -> int:
    return right if true else pick([n for n in known if n != right], rng)


def _objects(number: int) -> tuple[str, str]:
    if number == 1:
        return "is", "one object"
    return "are", f"{COUNTS[number]} objects"


# The first five are of MME's perception, the others of its cognition.
CLAIMS: dict[str, Callable] = {
    "existence": claim_presence,
    "count": _claim_count,
    "position": claim_relation,
    "color": functools.partial(claim_attribute, attribute="colour"),
    "artwork": functools.partial(claim_attribute, attribute="material"),
    "commonsense_reasoning": _claim_larger,
    "numerical_calculation": _claim_rest,
}
