"""Scenes: one to three toys on a table, as a pure function of (split, seed, index).

Positions are fractions of the picture, x to the right and y down:

    +-----------------+ 0
    |      wall       |
    |-----------------| HORIZON at most
    |  table   (x, y) |
    +-----------------+ 1
"""

import dataclasses
import zlib

import numpy as np

SHAPES = ("circle", "square", "triangle", "star", "heart", "cross")
COLOURS = ("red", "orange", "yellow", "green", "cyan", "blue", "purple", "pink")
SIZES = ("small", "large")
MATERIALS = ("plain", "striped", "dotted", "checked", "ringed", "marbled")

# How the 16 buckets of the scenes' checksums are dealt out to the splits.
SPLITS = {"train": range(14), "validation": range(14, 15), "test": range(15, 16)}

HORIZON = 0.30
RADII = {"small": (0.140, 0.160), "large": (0.190, 0.225)}
# Where a shape touches the table, in radii below its centre.
FOOT = {
    "circle": 0.90,
    "square": 0.76,
    "triangle": 0.55,
    "star": 0.81,
    "heart": 0.92,
    "cross": 0.92,
}
# A relation is only claimed where it can be seen without measuring.
MARGIN_ACROSS, MARGIN_DEPTH = 0.14, 0.12

_EDGE, _GAP = 0.03, 0.02
_COUNT_SHARES = (0.50, 0.27, 0.23)


@dataclasses.dataclass(frozen=True)
class Thing:
    """One toy: four attributes, and a disc around (x, y) that holds it."""

    shape: str
    colour: str
    size: str
    material: str
    x: float
    y: float
    radius: float

    @property
    def foot(self) -> float:
        """The y at which it touches the table: the larger, the nearer."""
        return self.y + FOOT[self.shape] * self.radius


@dataclasses.dataclass(frozen=True)
class Scene:
    """One to three toys on a table.

    Attributes:
      things: the toys; no two have both shape and colour in common.
      key: 63 random bits that seed everything else (brightness, wording, ...).
    """

    things: tuple[Thing, ...]
    key: int

    def stream(self, purpose: int) -> np.random.Generator:
        """Returns a random generator of this scene, independent for each purpose."""
        return np.random.default_rng([self.key, purpose])


def describe(things: tuple[Thing, ...]) -> str:
    """Returns the canonical description, which decides the split of a scene.

    Positions are rounded to 1/32, so that no other split has the same scene shifted
    by a fraction of a pixel.
    """
    return "; ".join(
        sorted(
            f"{thing.size} {thing.material} {thing.colour} {thing.shape} "
            f"at {round(thing.x * 32)},{round(thing.y * 32)}"
            for thing in things
        )
    )


def bucket(things: tuple[Thing, ...]) -> int:
    """Returns a checksum of the description, 0 to 15; SPLITS assigns it to a split."""
    return zlib.crc32(describe(things).encode()) % 16


def scene(split: str, seed: int, index: int, toys: int | None = None) -> Scene:
    """Generates scene `index` of a split, a pure function of the arguments.

    Args:
      split: a key of SPLITS. Scenes of other splits' buckets are drawn again.
      seed: of all scenes.
      index: of the scene.
      toys: number of toys; None for a random one.
    """
    rng = np.random.default_rng([seed, list(SPLITS).index(split), index])
    # Drawn once, so that crowded scenes, which fail more often, are not rarer.
    count = 1 + int(np.searchsorted(np.cumsum(_COUNT_SHARES), rng.random()))
    while True:
        things = _arrange(toys or count, rng)
        if things is not None and bucket(things) in SPLITS[split]:
            return Scene(things, key=int(rng.integers(2**63)))


def relations(first: Thing, second: Thing) -> list[str]:
    """The relations of `first` to `second`: "left" or "right", "behind" or "in front".

    Across the table the centres decide. In depth the feet do, and the centres must
    not contradict them: the centre of a large toy is higher than that of a small one.

    Args:
      first: a toy.
      second: another toy.
    """
    across, depth = second.x - first.x, second.foot - first.foot
    rise = second.y - first.y
    found = []
    if abs(across) >= MARGIN_ACROSS:
        found.append("left" if across > 0 else "right")
    if abs(depth) >= MARGIN_DEPTH and rise * depth > 0 and abs(rise) >= 0.06:
        found.append("behind" if depth > 0 else "in front")
    return found


def place(thing: Thing) -> str | None:
    """Returns the side of the table: "left", "right", "middle", or None in between."""
    if abs(thing.x - 0.5) < 0.06 and abs(thing.y - 0.56) < 0.12:
        return "middle"
    if abs(thing.x - 0.5) < 0.12:
        return None
    return "left" if thing.x < 0.5 else "right"


def _arrange(count: int, rng: np.random.Generator) -> tuple[Thing, ...] | None:
    """`count` toys that do not overlap, or None if the tries failed."""
    looks = rng.integers(
        (len(SHAPES), len(COLOURS), len(SIZES), len(MATERIALS)), size=(count, 4)
    ).tolist()
    if len({(shape, colour) for shape, colour, _, _ in looks}) < count:
        return None
    shapes = [SHAPES[look[0]] for look in looks]
    sizes = [SIZES[look[2]] for look in looks]
    draws = rng.random(count)
    radii = np.array([np.interp(d, (0, 1), RADII[s]) for d, s in zip(draws, sizes)])
    centres = _positions(radii, np.array([FOOT[s] for s in shapes]), rng)
    if centres is None:
        return None
    return tuple(
        Thing(shape, COLOURS[look[1]], size, MATERIALS[look[3]], x, y, radius)
        for look, shape, size, (x, y), radius in zip(
            looks, shapes, sizes, centres.tolist(), radii.tolist()
        )
    )


def _positions(
    radii: np.ndarray, feet: np.ndarray, rng: np.random.Generator
) -> np.ndarray | None:
    """float64[count, 2] centres (x, y), the first of 32 tries without overlap."""
    count = len(radii)
    # The sides of a block show above it and to its right.
    top = np.maximum(1.18 * radii, HORIZON + 0.06 - feet * radii)
    low = np.stack([radii, top], 1) + _EDGE
    high = 1 - _EDGE - np.stack([1.13 * radii, radii], 1)
    # All in one array operation, which costs little more than a single try.
    tries = low + rng.random((1 if count == 1 else 32, count, 2)) * (high - low)
    fits = np.ones(len(tries), bool)
    for i in range(count):
        for j in range(i):
            apart = ((tries[:, i] - tries[:, j]) ** 2).sum(-1)
            fits &= apart >= (radii[i] + radii[j] + _GAP) ** 2
    return tries[fits.argmax()] if fits.any() else None
