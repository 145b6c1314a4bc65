"""Tabletop, the built-in dataset, as a DataSource."""

import hashlib

from hive_jax.config import nearest
from hive_jax.data.tabletop.language import CLASSES, MODES, class_of, segments
from hive_jax.data.tabletop.render import render
from hive_jax.data.tabletop.scene import SPLITS, scene
from hive_jax.data.tabletop.templates import TAG_NAMES
from hive_jax.data.types import Sample
from hive_jax.errors import ConfigError

# To be raised when the same arguments give other samples than before.
VERSION = 1

_SIZES = {"train": 1_048_576, "validation": 4096, "test": 4096}


class Tabletop:
    """Generates scenes with an image and text, on access.

    Sample `index` is a function of the arguments and the index alone, so any number of
    workers may read any of them in any order. Splits have no scene in common.

        >>> source = Tabletop("train", image_size=64)
        >>> source[7].image.shape
        (64, 64, 3)
    """

    tag_names, notes, has_conversations = TAG_NAMES, (), False

    def __init__(
        self,
        split: str,
        *,
        seed: int = 0,
        image_size: int = 64,
        text: str = "captions",
        with_image: bool = True,
        size: int | None = None,
    ):
        """
        Args:
          split: "train", "validation" or "test".
          seed: of the scenes; each split keeps to its own for every seed.
          image_size: side of the images in pixels, at least 8.
          text: "captions", "vague", "questions", "text" or "classes"; see `language`.
          with_image: False for text alone; nothing is rendered then.
          size: number of samples; None for the default of the split.

        Raises:
          ConfigError: an argument is out of range.
        """
        self.split = _one_of("split", split, tuple(SPLITS))
        self.text = _one_of("text", text, MODES)
        self.seed = _at_least("seed", seed, 0)
        self.image_size = _at_least("image_size", image_size, 8)
        self.size = _SIZES[split] if size is None else _at_least("size", size, 1)
        self.with_image = with_image
        self.classes = CLASSES if text == "classes" else ()

    def __len__(self) -> int:
        return self.size

    def __getitem__(self, index: int) -> Sample:
        """Sample `index`; its image is uint8[image_size, image_size, 3] or None."""
        if not 0 <= index < self.size:
            raise IndexError(f"index {index} of {self!r}, which has {self.size}")
        one = scene(self.split, self.seed, int(index), 1 if self.classes else None)
        image = render(one, self.image_size) if self.with_image else None
        label = class_of(one) if self.classes else ""
        return Sample(image, segments(one, self.text), label=label)

    def image_name(self, index: int) -> None:
        """None: each sample has a scene of its own."""

    def describe(self, index: int) -> str:
        return f"scene {index} of {self!r}"

    def __repr__(self) -> str:
        return (
            f"Tabletop({self.split!r}, seed={self.seed}, image_size={self.image_size}, "
            f"text={self.text!r}, with_image={self.with_image}, size={self.size})"
        )

    @property
    def fingerprint(self) -> str:
        """12 hex digits that change when the samples do."""
        return hashlib.sha256(f"{VERSION} {self!r}".encode()).hexdigest()[:12]


def _one_of(name: str, value: str, known: tuple[str, ...]) -> str:
    if value in known:
        return value
    raise ConfigError(
        f"Tabletop: {name} is {value!r}; expected one of {', '.join(known)}"
        + nearest(str(value), known)
    )


def _at_least(name: str, value: int, least: int) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or value < least:
        raise ConfigError(
            f"Tabletop: {name} must be a whole number of at least {least}; "
            f"got {value!r}."
        )
    return value
