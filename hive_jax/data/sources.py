"""Samples by the name of their source."""

from hive_jax.config import DataConfig, nearest
from hive_jax.data.llava import LlavaCaptions
from hive_jax.data.tabletop import Tabletop
from hive_jax.errors import ConfigError

_SOURCES = ("tabletop", "llava")


def make_source(config: DataConfig, split: str, *, image_size: int, with_image: bool):
    """The random-access source that `config` names.

    Args:
      split: "train" or "validation".
      image_size: of the square images, in pixels.
      with_image: False leaves them out, where the source can.
    """
    if config.source == "tabletop":
        return Tabletop(
            split,
            seed=config.seed,
            image_size=image_size,
            text=config.text,
            with_image=with_image,
        )
    if config.source == "llava":
        return LlavaCaptions(
            config.path,
            config.image_folder,
            split,
            image_size=image_size,
            validation_size=config.validation_size,
            preprocessing=config.preprocessing,
        )
    raise ConfigError(
        f"config.data.source is {config.source!r}; expected one of {_SOURCES}"
        + nearest(config.source, _SOURCES)
    )
