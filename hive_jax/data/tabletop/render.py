"""Renders scenes with implicit shapes in plain NumPy, at any size.

Each toy is a block cut from a board: a textured face, a plain dark side behind it,
and a soft shadow on the table. Only its own crop is supersampled.
"""

import functools

import numpy as np

from hive_jax.data.tabletop.scene import Scene, Thing

RGB = {
    "red": (214, 48, 44),
    "orange": (232, 126, 24),
    "yellow": (228, 200, 36),
    "green": (54, 158, 66),
    "cyan": (52, 186, 196),
    "blue": (48, 88, 206),
    "purple": (128, 62, 172),
    "pink": (232, 124, 170),
}
# A pattern is told from a plain face by its contrast, not by its mean brightness,
# which varies from toy to toy for this very reason.
CONTRAST = 0.30
BRIGHTNESS = (0.72, 1.05)
PERIODS = 16  # of a texture across the picture: 4 pixels each of 64

_SUPERSAMPLE = 2  # enough, for edges are soft by themselves
_TURN = np.float32(2 * np.pi)
_WALL = np.array((222, 219, 212), np.float32)
_TABLE = np.array((178, 148, 118), np.float32)


def render(scene: Scene, image_size: int = 64) -> np.ndarray:
    """Renders a scene.

    Args:
      scene: the scene; its own random stream settles the rest.
      image_size: side of the image in pixels.

    Returns:
      uint8[image_size, image_size, 3], the same for the same arguments.
    """
    rng = scene.stream(0)
    image = _backdrop(image_size, rng)
    things = sorted(scene.things, key=lambda thing: thing.foot)
    for thing in things:
        _cast_shadow(image, thing)
    for thing in things:
        _paint(image, thing, rng)
    image += 2.5 * rng.standard_normal(image.shape, dtype=np.float32)
    return np.clip(image, 0, 255).astype(np.uint8)


@functools.lru_cache(maxsize=8)
def _coordinates(image_size: int) -> np.ndarray:
    """float32[image_size] centres of the pixels, 0 to 1."""
    return ((np.arange(image_size) + 0.5) / image_size).astype(np.float32)


def _backdrop(image_size: int, rng: np.random.Generator) -> np.ndarray:
    """float32[s, s, 3] of a wall, and of a table of boards that run across."""
    x = _coordinates(image_size)
    y = x[:, None]
    horizon, wall, table, boards, *phases = rng.random(8, dtype=np.float32)
    horizon = 0.20 + 0.08 * horizon
    tint = 1 + 0.022 * rng.standard_normal((2, 3), dtype=np.float32)

    depth = np.maximum(y - horizon, 0)
    board = 6 / (depth + 0.5) + boards  # farther boards look narrower
    tone = 0.03 * np.sin(37 * np.floor(board))  # each board its own, at no cost
    seam = np.clip(1 - np.abs(board - np.round(board)) * 18, 0, 1)
    sway = 2 * np.sin(5 * x + _TURN * phases[0])
    grain = np.sin(70 * board + 9 * phases[1] + 2 * sway)
    grain += np.sin(31 * board - sway + 9 * phases[2])
    wood = (0.92 + 0.12 * table) * (0.94 + 0.16 * depth + tone - 0.10 * seam)
    wood = wood + 0.012 * grain

    lit = (0.90 + 0.12 * wall) * (1.02 - 0.10 * np.abs(x - phases[3]))
    lit = lit - 0.10 * np.clip(1 - (horizon - y) * 12, 0, 1)
    edge = np.clip((y - horizon) * image_size + 0.5, 0, 1)
    return ((1 - edge) * lit)[..., None] * (_WALL * tint[0]) + (edge * wood)[
        ..., None
    ] * (_TABLE * tint[1])


def _window(low: float, high: float, image_size: int) -> slice:
    """The pixels from `low` to `high`, given as fractions of the picture."""
    first = max(int(np.floor(low * image_size)), 0)
    return slice(first, min(int(np.ceil(high * image_size)), image_size))


def _cast_shadow(image: np.ndarray, thing: Thing) -> None:
    """Darkens the table under a toy: a wide soft pool and a narrow dark contact."""
    size, radius = len(image), thing.radius
    rows = _window(thing.foot - 0.4 * radius, thing.foot + 0.4 * radius, size)
    columns = _window(thing.x - 1.2 * radius, thing.x + 1.4 * radius, size)
    grid = _coordinates(size)
    across = ((grid[columns] - thing.x - 0.1 * radius) / radius) ** 2
    depth = ((grid[rows, None] - thing.foot) / radius) ** 2
    pool = np.clip(1 - across / 1.4 - depth / 0.13, 0, 1)
    contact = np.clip(1 - across / 0.8 - depth / 0.02, 0, 1)
    image[rows, columns] *= (1 - 0.42 * pool - 0.22 * contact)[..., None]


def _paint(image: np.ndarray, thing: Thing, rng: np.random.Generator) -> None:
    """Lays one toy over the picture."""
    size, radius, finer = len(image), thing.radius, _SUPERSAMPLE
    rows = _window(thing.y - 1.35 * radius, thing.y + 1.1 * radius, size)
    columns = _window(thing.x - 1.1 * radius, thing.x + 1.3 * radius, size)
    grid = _coordinates(size * finer)
    x = (grid[finer * columns.start : finer * columns.stop] - thing.x) / radius
    y = (grid[finer * rows.start : finer * rows.stop, None] - thing.y) / radius

    low, high = BRIGHTNESS
    brightness, tilt, angle = rng.random(3)
    brightness = low + (high - low) * brightness
    p, q = _rotate(x, y, 0.2 * (tilt - 0.5))
    distance = _SHAPES[thing.shape](p, q)
    pixels = radius * size * finer
    face = np.clip(0.5 - distance * pixels, 0, 1)
    block = _sweep(face, 0.13 * pixels, 0.18 * pixels)

    periods = radius * PERIODS * rng.uniform(0.92, 1.08)
    a, b = _rotate(p * periods, q * periods, np.pi * angle)
    sharp = np.float32(max(1, size / 80))  # a pattern's edges stay a pixel wide
    texture = _MATERIALS[thing.material](a, b, sharp, rng)
    light = 1 - 0.07 * (x + y) + CONTRAST * texture
    light *= 1 - 0.22 * np.clip(1 + distance / 0.07, 0, 1)  # a worn, darker rim
    light = brightness * (face * light + 0.5 * (block - face))

    cover, light = _shrink(block, finer)[..., None], _shrink(light, finer)[..., None]
    patch = image[rows, columns]
    patch *= 1 - cover
    patch += light * np.array(RGB[thing.colour], np.float32)


def _rotate(x, y, angle: float) -> tuple[np.ndarray, np.ndarray]:
    cosine, sine = np.float32(np.cos(angle)), np.float32(np.sin(angle))
    return cosine * x + sine * y, cosine * y - sine * x


def _sweep(mask: np.ndarray, right: float, up: float) -> np.ndarray:
    """The area a mask covers on its way to the upper right, in doubling steps."""
    swept, reach, length = mask, 0, max(int(np.ceil(max(right, up))), 1)
    while reach < length:
        step = min(reach + 1, length - reach)
        dx, dy = round(step / length * right), round(step / length * up)
        shifted = np.zeros_like(swept)
        height, width = swept.shape
        shifted[: height - dy, dx:] = swept[dy:, : width - dx]
        swept, reach = np.maximum(swept, shifted), reach + step
    return swept


def _shrink(values: np.ndarray, factor: int) -> np.ndarray:
    """Means over factor x factor pixels; sums of slices are faster than a reshape."""
    values = sum(values[i::factor] for i in range(factor))
    return sum(values[:, i::factor] for i in range(factor)) / np.float32(factor**2)


# Shapes: (x, y) in radii, y down -> about the distance to the outline, < 0 inside.


def _circle(x, y):
    return np.sqrt(x * x + y * y) - 0.90


def _square(x, y):
    x, y = np.abs(x) - 0.68, np.abs(y) - 0.68
    corner = np.sqrt(np.maximum(x, 0) ** 2 + np.maximum(y, 0) ** 2)
    return corner + np.minimum(np.maximum(x, y), 0) - 0.08


def _triangle(x, y):
    return np.maximum(np.float32(0.866) * np.abs(x) - 0.5 * y, y) - 0.55


def _star(x, y):
    # Folds the plane into half a ray, after Inigo Quilez, "2D distance functions".
    x, y = np.abs(x), -y
    for kx, ky in ((0.80901699, -0.58778525), (-0.80901699, -0.58778525)):
        kx, ky = np.float32(kx), np.float32(ky)
        over = 2 * np.maximum(kx * x + ky * y, 0)
        x, y = x - over * kx, y - over * ky
    x, y = np.abs(x), y - 1
    # The ray's edge runs from its tip (0, 0) to the notch between two rays.
    notch_x, notch_y = np.float32(0.52 * 0.58778525), np.float32(0.52 * 0.80901699 - 1)
    length = np.hypot(notch_x, notch_y)
    return (y * notch_x - x * notch_y) / length


def _heart(x, y):
    # A square on its corner, and a circle on each of its upper sides.
    x, half = np.abs(x), np.float32(0.46)
    y = y + 0.02
    diamond = (x + np.abs(y)) * np.float32(0.7071) - np.float32(0.65)
    lobe = np.sqrt((x - half) ** 2 + (y + half) ** 2) - np.float32(0.65)
    return np.minimum(diamond, lobe) + np.float32(0.04)


def _cross(x, y):
    x, y = np.abs(x), np.abs(y)
    return np.maximum(np.maximum(x, y) - 0.92, np.minimum(x, y) - 0.36)


# Materials: (a, b) in periods, edges `sharp` times as steep -> about -1 to 1, mean 0.


def _clip(values):
    return np.clip(values, -1, 1)


def _plain(a, b, sharp, rng):
    return np.float32(0)


def _striped(a, b, sharp, rng):
    return _clip(2 * sharp * np.sin(_TURN * (a + np.float32(rng.random()))))


def _dotted(a, b, sharp, rng):
    shift = rng.random(2, dtype=np.float32)
    turn = np.float32(0.88) * _TURN
    lattice = np.cos(turn * (a + shift[0])) + np.cos(turn * (b + shift[1]))
    return np.clip(sharp * (2.5 * lattice - 1.8), -0.45, 1.4)


def _checked(a, b, sharp, rng):
    shift = rng.random(2, dtype=np.float32)
    turn = np.float32(0.58) * _TURN
    lattice = np.sin(turn * (a + shift[0])) * np.sin(turn * (b + shift[1]))
    return _clip(4 * sharp * lattice)


def _ringed(a, b, sharp, rng):
    shift = rng.random(3, dtype=np.float32) - 0.5
    distance = np.sqrt((a - shift[0]) ** 2 + (b - shift[1]) ** 2)
    return _clip(2 * sharp * np.sin(_TURN * (distance + shift[2])))


def _marbled(a, b, sharp, rng):
    # Waves that cross at irregular angles make blotches without a direction.
    waves = 0
    for i, (turn, phase) in enumerate(rng.random((5, 2)).tolist()):
        angle, speed = np.pi * (i + turn) / 5, (0.55 + 0.1 * i) * 2 * np.pi
        kx, ky = np.float32(speed * np.cos(angle)), np.float32(speed * np.sin(angle))
        waves = waves + np.sin(kx * a + ky * b + np.float32(2 * np.pi * phase))
    return _clip(sharp * waves)


_SHAPES = {
    "circle": _circle,
    "square": _square,
    "triangle": _triangle,
    "star": _star,
    "heart": _heart,
    "cross": _cross,
}
_MATERIALS = {
    "plain": _plain,
    "striped": _striped,
    "dotted": _dotted,
    "checked": _checked,
    "ringed": _ringed,
    "marbled": _marbled,
}
