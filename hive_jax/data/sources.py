"""Samples by the name of their source.

A source has a length, gives sample `index` (or raises BadSample), says `where` it is,
and has a fingerprint that changes when its samples do.
"""

import dataclasses

from hive_jax.config import DataConfig, nearest
from hive_jax.data.llava import FORMS, Llava
from hive_jax.data.tabletop import Tabletop
from hive_jax.data.tabletop.language import MODES
from hive_jax.errors import ConfigError

# The kinds of sources, and the options of each.
_KINDS = {"tabletop": (), "llava": ("images", "form")}


@dataclasses.dataclass(frozen=True)
class Spec:
    """A source in words: "llava:chat.json,images=images.zip,form=chat"."""

    kind: str
    path: str
    options: dict[str, str]


def parse(text: str) -> Spec:
    """KIND:PATH,option=value,... as a Spec. Raises ConfigError."""
    head, *options = text.split(",")
    kind, _, path = head.partition(":")
    if kind not in _KINDS:
        raise ConfigError(
            f"config.data.source is {text!r}; expected one of {tuple(_KINDS)}, with a "
            f"path and options as in llava:chat.json,images=images.zip"
            + nearest(kind, _KINDS)
        )
    values = {}
    for option in options:
        name, equals, value = option.partition("=")
        known = _KINDS[kind]
        if name not in known or not equals or not value:
            raise ConfigError(
                f"config.data.source: {option!r}; expected "
                + (" or ".join(f"{n}=..." for n in known) or "no options")
                + f" for {kind}{nearest(name, known)}"
            )
        values[name] = value
    return Spec(kind, path, values)


def make_source(config: DataConfig, split: str, *, image_size: int, with_image: bool):
    """The random-access source that `config` names.

    Args:
      split: "train" or "validation".
      image_size: of images that are drawn and not read, in pixels.
      with_image: False leaves them out, where the source can.
    """
    spec = parse(config.source)
    if spec.kind == "tabletop":
        return Tabletop(
            split,
            seed=config.seed,
            image_size=image_size,
            text=_one_of(MODES, "tabletop", spec.path or "captions"),
            with_image=with_image,
        )
    return Llava(
        spec.path,
        split,
        images=spec.options.get("images", ""),
        form=_one_of(FORMS, "form", spec.options.get("form", "plain")),
        validation_size=config.validation_size,
        max_bad_fraction=config.max_bad_fraction,
        with_image=with_image,
    )


def _one_of(known: tuple[str, ...], name: str, value: str) -> str:
    if value in known:
        return value
    raise ConfigError(
        f"config.data.source: {name} is {value!r}; expected one of {known}"
        + nearest(value, known)
    )
