"""Questions about a scene, each with one right answer; and claims for yes and no.

kind        answer
material    the word; so for colour, shape, size
count       zero, one, two or three
relation    left, right, behind or in front
yes_no      yes or no, as often the one as the other
choice      the letter of one of four options
"""

import dataclasses
import functools
from collections.abc import Callable

import numpy as np

from hive_jax.data.tabletop.scene import (
    COLOURS,
    MATERIALS,
    SHAPES,
    SIZES,
    Scene,
    Thing,
    relations,
)
from hive_jax.data.tabletop.templates import (
    COUNTS,
    OPPOSITES,
    PHRASES,
    article,
    pick,
    plural,
    refer,
    sentence,
)

LETTERS = "ABCD"
VALUES = {"material": MATERIALS, "colour": COLOURS, "shape": SHAPES, "size": SIZES}

_ASKED = {
    "material": (
        "what pattern does {} have?",
        "what is the pattern of {}?",
        "what does the surface of {} look like?",
    ),
    "colour": ("what colour is {}?", "what is the colour of {}?"),
    "shape": ("what shape is {}?", "what is the shape of {}?"),
    "size": ("what size is {}?", "is {} small or large?"),
}


@dataclasses.dataclass(frozen=True)
class Question:
    """A question and its right answer.

    Attributes:
      kind: a key of ASKERS.
      question: plain text, without the choices.
      answer: a word, or the letter of a choice.
      choices: of a multiple-choice question, in the order of LETTERS; else empty.
    """

    kind: str
    question: str
    answer: str
    choices: tuple[str, ...] = ()

    @property
    def prompt(self) -> str:
        """The question with its choices, on one line."""
        options = zip(LETTERS, self.choices)
        return " ".join([self.question, *(f"({a}) {option}" for a, option in options)])


def questions(scene: Scene) -> list[Question]:
    """Asks one question of every possible kind, in the order of ASKERS."""
    # A stream of its own: what captions say does not depend on the questions.
    rng = scene.stream(2)
    found = [asker(scene, rng) for asker in ASKERS.values()]
    return [question for question in found if question]


def ask(scene: Scene, rng: np.random.Generator) -> Question:
    """Asks one question, its kind uniform over those possible for the scene.

    Args:
      scene: the scene.
      rng: chooses the question.
    """
    # Some kinds do not suit every scene; others, such as counts, suit all.
    kinds = list(ASKERS)
    while True:
        if question := ASKERS[pick(kinds, rng)](scene, rng):
            return question


def _question(kind: str, text: str, answer: str, choices=()) -> Question:
    return Question(kind, sentence(text), answer, tuple(choices))


def _about(scene: Scene, attribute: str, rng: np.random.Generator):
    """A toy that can be referred to without naming the attribute, as (toy, phrase)."""
    for i in rng.permutation(len(scene.things)):
        thing = scene.things[i]
        name = refer(scene, thing, rng, hidden=attribute)
        if name is None:
            continue
        # A toy alone can be meant without any attribute, which gives nothing away.
        if len(scene.things) == 1 and rng.random() < 0.4:
            name = "the object"
        return thing, name
    return None


def _attribute(attribute: str) -> Callable:
    def asker(scene: Scene, rng: np.random.Generator) -> Question | None:
        if (about := _about(scene, attribute, rng)) is None:
            return None
        thing, name = about
        text = pick(_ASKED[attribute], rng).format(name)
        return _question(attribute, text, getattr(thing, attribute))

    return asker


def _count(scene: Scene, rng: np.random.Generator) -> Question:
    things, style = scene.things, rng.random()
    if style < 0.4:
        text = pick(
            ("how many objects are there?", "how many objects are on the table?"), rng
        )
        return _question("count", text, COUNTS[len(things)])
    attribute = pick(("shape", "colour", "material"), rng)
    # Toys that exist are asked about more often than others.
    here = [getattr(thing, attribute) for thing in things]
    value = pick(here if rng.random() < 0.75 else VALUES[attribute], rng)
    noun = plural(value) if attribute == "shape" else f"{value} objects"
    text = pick(("how many {} are there?", "how many {} are on the table?"), rng)
    return _question("count", text.format(noun), COUNTS[here.count(value)])


def _pair(scene: Scene, rng: np.random.Generator):
    """Two toys with a relation that is plain to see, as (toys, their names), or None."""
    if len(scene.things) == 1:
        return None
    toys = [scene.things[i] for i in rng.permutation(len(scene.things))[:2]]
    names = [refer(scene, toy, rng) for toy in toys]
    return (toys, names) if relations(*toys) and all(names) else None


def _relation(scene: Scene, rng: np.random.Generator) -> Question | None:
    if (pair := _pair(scene, rng)) is None:
        return None
    toys, (first, second) = pair
    found = relations(*toys)
    answer = pick(found, rng)
    # An open question has one right answer: no toy to the left that is in front as well.
    if len(found) == 1 and _in_line(*toys) and rng.random() < 0.6:
        text = f"where is {first} relative to {second}?"
        return _question("relation", text, answer)
    options = [answer, OPPOSITES[answer]]
    if rng.random() < 0.5:
        options.reverse()
    one, other = (PHRASES[option][0] for option in options)
    if answer in ("left", "right"):
        one = one.removesuffix(" of")  # "to the left or to the right of"
    return _question("relation", f"is {first} {one} or {other} {second}?", answer)


def _in_line(first: Thing, second: Thing) -> bool:
    """Whether the distance of the toys is mostly in one direction."""
    across, depth = abs(first.x - second.x), abs(first.foot - second.foot)
    return max(across, depth) >= 2 * min(across, depth)


def _yes_no(scene: Scene, rng: np.random.Generator) -> Question | None:
    true = bool(rng.random() < 0.5)
    claim = pick((_claim_any_attribute, claim_presence, claim_relation), rng)
    text = claim(scene, true, rng)
    return text and _question("yes_no", text, "yes" if true else "no")


def _claim_any_attribute(
    scene: Scene, true: bool, rng: np.random.Generator
) -> str | None:
    attribute = pick(("material", "colour", "size"), rng)
    return claim_attribute(scene, true, rng, attribute)


# Claims are templates, true or false; None where none is possible for the scene.


def claim_attribute(
    scene: Scene, true: bool, rng: np.random.Generator, attribute: str
) -> str | None:
    """Asks whether a toy has a value of an attribute, as in "is the cube red?".

    Args:
      scene: the scene to ask about.
      true: whether the right answer is yes.
      rng: picks the toy, and the wrong value of a false claim.
      attribute: a key of VALUES.

    Returns:
      The question; None if no toy of the scene can be named without the attribute.
    """
    if (about := _about(scene, attribute, rng)) is None:
        return None
    thing, name = about
    value = getattr(thing, attribute)
    if not true:
        value = pick([other for other in VALUES[attribute] if other != value], rng)
    return f"is {name} {value}?"


def claim_presence(scene: Scene, true: bool, rng: np.random.Generator) -> str:
    """Asks whether the scene has a toy of some colour and shape.

    Args:
      scene: the scene to ask about.
      true: whether the right answer is yes.
      rng: picks a toy of the scene, or a combination that the scene does not have.
    """
    thing = pick(scene.things, rng)
    looks = thing.colour, thing.shape
    here = {(thing.colour, thing.shape) for thing in scene.things}
    # Ends soon: three of the 48 combinations at most are there.
    while not true and looks in here:
        looks = pick(COLOURS, rng), pick(SHAPES, rng)
    return f"is there {article(' '.join(looks))}?"


def claim_relation(scene: Scene, true: bool, rng: np.random.Generator) -> str | None:
    """Asks whether two toys stand in a spatial relation.

    Args:
      scene: the scene to ask about.
      true: whether the right answer is yes; a false claim has the opposite relation.
      rng: picks the toys and the relation.

    Returns:
      The question; None if the scene has no suitable pair.
    """
    if (pair := _pair(scene, rng)) is None:
        return None
    toys, (first, second) = pair
    relation = pick(relations(*toys), rng)
    phrase = PHRASES[relation if true else OPPOSITES[relation]][0]
    return f"is {first} {phrase} {second}?"


def _choice(scene: Scene, rng: np.random.Generator) -> Question | None:
    attribute = pick(("material", "colour", "shape"), rng)
    if (about := _about(scene, attribute, rng)) is None:
        return None
    thing, name = about
    right = getattr(thing, attribute)
    wrong = [value for value in VALUES[attribute] if value != right]
    options = [*rng.permutation(wrong).tolist()[:3], right]
    # So that each letter is right equally often.
    options = rng.permutation(options).tolist()
    text = pick(_ASKED[attribute], rng).format(name)
    return _question("choice", text, LETTERS[options.index(right)], options)


ASKERS = {
    "material": _attribute("material"),
    "colour": _attribute("colour"),
    "shape": _attribute("shape"),
    "size": _attribute("size"),
    "count": _count,
    "relation": _relation,
    "yes_no": _yes_no,
    "choice": _choice,
}


def true_and_false(
    scene: Scene, category: str, rng: np.random.Generator
) -> tuple[str, str] | None:
    """Two questions in a category of MME, the first to answer yes and the second no.

    Args:
      scene: the scene.
      category: a key of CLAIMS.
      rng: chooses the questions.

    Returns:
      The questions; None where one of them is not possible for the scene.
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
    """About two toys of different sizes, without naming the sizes."""
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


# The first five are categories of MME's perception, the others of its cognition.
CLAIMS: dict[str, Callable] = {
    "existence": claim_presence,
    "count": _claim_count,
    "position": claim_relation,
    "color": functools.partial(claim_attribute, attribute="colour"),
    "artwork": functools.partial(claim_attribute, attribute="material"),
    "commonsense_reasoning": _claim_larger,
    "numerical_calculation": _claim_rest,
}
