"""The text of a scene, in each of five modes.

captions    for training: names nearly every attribute
vague       for the contrastive training of the base encoder: seldom names a
            material, so that there is something left to learn from a language model
questions   a question, which is not a target, and its answer
text        captions and questions, three to one
classes     of a single toy: its material and shape, which are its class
"""

import dataclasses

import numpy as np

from hive_jax.data.tabletop.questions import Question, ask
from hive_jax.data.tabletop.scene import (
    MATERIALS,
    SHAPES,
    Scene,
    Thing,
    place,
    relations,
)
from hive_jax.data.tabletop.templates import (
    COUNTS,
    PHRASES,
    TAG_NAMES,
    article,
    mark,
    pick,
    plural,
    refer,
)
from hive_jax.data.types import Segment

MODES = ("captions", "vague", "questions", "text", "classes")
CLASSES = tuple(f"{material} {shape}" for material in MATERIALS for shape in SHAPES)

_STANDS = ("stands", "sits", "is")
_STAND = ("stand", "sit", "are")
_SURFACES = ("on the table", "on a table", "on a wooden table")
_PICTURES = ("a picture", "a photo", "an image")


@dataclasses.dataclass(frozen=True)
class Rates:
    """Probabilities that a caption names each attribute of a toy.

    Attributes:
      size, material, colour, shape: the probabilities.
      refers: whether toys are referred to again ("the red star"); a reference names
        what singles out the toy, whatever the rates.
    """

    size: float
    material: float
    colour: float
    shape: float = 1.0
    refers: bool = True


CAPTIONS = Rates(size=0.70, material=0.90, colour=0.90)
VAGUE = Rates(size=0.40, material=0.05, colour=0.45, shape=0.90, refers=False)


def segments(scene: Scene, mode: str) -> tuple[Segment, ...]:
    """Returns the text of a scene: one caption, or a question and its answer.

    Each segment ends with a newline, where generation stops.

    Args:
      scene: the scene; it settles the wording too.
      mode: one of MODES.
    """
    if mode == "classes":
        return (mark(f"a photo of {article(class_of(scene))}"),)
    # A stream of its own: the picture of a scene is the same in all modes.
    rng = scene.stream(1)
    if mode == "questions" or mode == "text" and rng.random() < 0.25:
        return dialogue(ask(scene, rng))
    return (mark(caption(scene, VAGUE if mode == "vague" else CAPTIONS, rng)),)


def class_of(scene: Scene) -> str:
    """Returns the class of a scene of one toy, one of CLASSES."""
    (thing,) = scene.things
    return f"{thing.material} {thing.shape}"


def dialogue(question: Question) -> tuple[Segment, Segment]:
    """Returns a question as segments: the prompt, not a target, and the answer."""
    answer = Segment(question.answer + "\n")
    if question.kind in TAG_NAMES:
        span = (0, len(question.answer), question.kind)
        answer = dataclasses.replace(answer, tags=(span,))
    return Segment(question.prompt + "\n", target=False), answer


def caption(scene: Scene, rates: Rates, rng: np.random.Generator) -> str:
    """Returns a caption as a template; see templates.mark.

    Args:
      scene: the scene.
      rates: of the attributes that it names.
      rng: chooses the wording.
    """
    if len(scene.things) == 1:
        return _one(scene.things[0], rates, rng)
    things = [scene.things[i] for i in rng.permutation(len(scene.things))]
    related = relations(things[0], things[1])
    if related and rng.random() < 0.7:
        return _related(scene, things, pick(related, rng), rates, rng)
    return _listed(scene, things, rates, rng)


def _noun(thing: Thing, rates: Rates, rng: np.random.Generator) -> str:
    """A toy with an article: "a small|size striped|material red|colour star|shape"."""
    says_size, says_material, says_colour, says_shape = rng.random(4) < (
        rates.size,
        rates.material,
        rates.colour,
        rates.shape,
    )
    words, tail = [], ""
    if says_colour:
        words.append(f"{thing.colour}|colour")
    if says_material:
        style = rng.random()
        material = f"{thing.material}|material"
        if style < 0.2:
            tail = f" with a {material} surface"
        else:
            words.insert(0 if style < 0.6 else len(words), material)
    if says_size:
        words.insert(0, f"{thing.size}|size")
    words.append(f"{thing.shape}|shape" if says_shape else "object")
    return article(" ".join(words)) + tail


def _where(thing: Thing, rng: np.random.Generator) -> str:
    """The position of a single toy, sometimes with the side of the table."""
    side = place(thing)
    if side is None or rng.random() < 0.5:
        return pick(_SURFACES, rng)
    if side == "middle":
        return "in the middle|relation of the table"
    return f"on the {side}|relation side of the table"


def _one(thing: Thing, rates: Rates, rng: np.random.Generator) -> str:
    # Always named of a single toy, for its class is a material and a shape.
    if rates.material > 0.5:
        rates = dataclasses.replace(rates, material=1.0)
    noun, where = _noun(thing, rates, rng), _where(thing, rng)
    stands, picture = pick(_STANDS, rng), pick(_PICTURES, rng)
    match int(rng.integers(6 if rates.refers else 5)):
        case 0:
            return f"{noun} {stands} {where}."
        case 1:
            return f"there is {noun} {where}."
        case 2:
            return f"{picture} of {noun} {where}."
        case 3:
            return f"{where} {stands} {noun}."
        case 4:
            return f"one|count object {stands} {where}: {noun}."
    shape, size = f"{thing.shape}|shape", f"{thing.size}|size"
    told = [f"{thing.material}|material", f"{thing.colour}|colour"]
    first, second = told if rng.random() < 0.5 else reversed(told)
    return f"{article(f'{size} {shape}')} {stands} {where}. it is {first} and {second}."


def _related(
    scene: Scene,
    things: list[Thing],
    relation: str,
    rates: Rates,
    rng: np.random.Generator,
) -> str:
    """A caption about the relation of the first toy to the second."""
    first, second = (_noun(thing, rates, rng) for thing in things[:2])
    phrase, stands = pick(PHRASES[relation], rng), pick(_STANDS, rng)
    match int(rng.integers(4)):
        case 0:
            text = f"{first} {stands} {phrase} {second}"
        case 1:
            text = f"there is {first} {phrase} {second}"
        case 2:
            text = f"{phrase} {second} {stands} {first}"
        case 3:
            text = f"{pick(_PICTURES, rng)} of {first} {phrase} {second}"
    if len(things) == 3:
        text += _third(scene, things, rates, rng)
    return text + "."


def _third(
    scene: Scene, things: list[Thing], rates: Rates, rng: np.random.Generator
) -> str:
    """The rest of a caption about two toys, for the third."""
    noun, other = _noun(things[2], rates, rng), pick(things[:2], rng)
    related = relations(things[2], other)
    name = refer(scene, other, rng) if rates.refers else None
    if not related or name is None:
        return f", and there is {noun}"
    return f", and {noun} is {pick(PHRASES[pick(related, rng)], rng)} {name}"


def _listed(
    scene: Scene, things: list[Thing], rates: Rates, rng: np.random.Generator
) -> str:
    """A caption that counts and lists toys, and may relate two of them."""
    nouns = [_noun(thing, rates, rng) for thing in things]
    listed = f"{', '.join(nouns[:-1])} and {nouns[-1]}"
    where, stand = pick(_SURFACES, rng), pick(_STAND, rng)
    count = f"{COUNTS[len(things)]}|count"
    match int(rng.integers(4)):
        case 0:
            return f"{listed} {stand} {where}."
        case 1:
            return f"{pick(_PICTURES, rng)} of {count} objects: {listed}."
        case 2:
            text = f"{count} objects {stand} {where}: {listed}."
        case 3:
            text = f"there are {count} objects {where}: {listed}."
    # Toys of one shape are called by it, "two stars", and not objects.
    shapes = [thing.shape for thing in things]
    shape = max(shapes, key=shapes.count)
    if (number := shapes.count(shape)) == len(things):
        return text.replace("objects", f"{plural(shape)}|shape", 1)
    if number == 2:
        return text[:-1] + f". two|count of them are {plural(shape)}|shape."
    related = relations(things[0], things[1])
    if len(things) == 2 and related and rates.refers:
        first, second = (refer(scene, thing, rng) for thing in things)
        if first and second:
            phrase = pick(PHRASES[pick(related, rng)], rng)
            text += f" {first} is {phrase} {second}."
    return text
