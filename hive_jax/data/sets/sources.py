"""Samples by the name of their source.

A source has a length, gives sample `index` (or raises BadSample), says `where` it is,
and has a fingerprint that changes when its samples do; and the names of its `classes`,
if its samples are of some.
"""

import dataclasses

from hive_jax.config import DataConfig, nearest
from hive_jax.data.sets.llava import FORMS, Llava
from hive_jax.data.sets.named import NAMED, resolve
from hive_jax.data.sets.pairs import open_class_folder
from hive_jax.data.sets.parts import Mixture, held_out, take
from hive_jax.data.sets.prepared import Prepared
from hive_jax.data.sets.shares import apportioned, require_length, shares_of
from hive_jax.data.sets.tables import open_table
from hive_jax.data.sets.tfds import Tfds
from hive_jax.data.tabletop import Tabletop
from hive_jax.data.tabletop.language import MODES
from hive_jax.errors import ConfigError

# The kinds of sources, and the options of each.
_KINDS = {
    "tabletop": ("split", "take"),
    "llava": ("images", "form", "take"),
    "prepared": ("take",),
    "tfds": ("dir", "split", "image", "text", "take"),
    "folder": ("take",),
    "table": ("images", "image", "text", "label", "take"),
    **{name: ("split", "take") for name in NAMED},
}
_AND = " + "


@dataclasses.dataclass(frozen=True)
class Spec:
    """A source in words: "2*llava:chat.json,images=images.zip,form=chat"."""

    kind: str
    path: str
    options: dict[str, str]
    weight: float | None


def parse(text: str) -> tuple[Spec, ...]:
    """[WEIGHT*]KIND:PATH,option=value,... and more of them after " + ".

    Raises ConfigError.
    """
    specs = tuple(_parse_one(part.strip()) for part in text.split(_AND))
    if len({spec.weight is None for spec in specs}) > 1:
        raise ConfigError(
            f"config.data.source is {text!r}; expected a weight for each source, as in "
            f"2*llava:a.json + 1*llava:b.json, or for none"
        )
    if len(specs) > 1 and any(spec.kind == "tabletop" for spec in specs):
        raise ConfigError(f"config.data.source is {text!r}; tabletop cannot be mixed")
    return specs


def _parse_one(text: str) -> Spec:
    head, *options = text.split(",")
    weight, star, rest = head.partition("*")
    try:
        weight = float(weight) if star else None
        head = rest if star else head
    except ValueError:  # a star that belongs to a path
        weight = None
    if weight is not None and not 0 < weight < float("inf"):
        raise ConfigError(f"config.data.source: weight {weight}; expected more than 0")
    kind, _, path = head.partition(":")
    if kind not in _KINDS:
        raise ConfigError(
            f"config.data.source is {text!r}; expected one of {tuple(_KINDS)}, with a "
            f"path and options as in llava:chat.json,images=images.zip"
            + nearest(kind, _KINDS)
        )
    if not path and kind not in ("tabletop", *NAMED):
        raise ConfigError(
            f"config.data.source is {text!r}; expected a path, {kind}:PATH"
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
    return Spec(kind, path, values, weight)


@dataclasses.dataclass(frozen=True)
class Opening:
    """What sources are opened for.

    Attributes:
      image_size, preprocessing: of the images that are wanted.
      seed: of the built-in world, and of take=random:N.
      max_bad_fraction: of images that may be missing.
      with_image: False leaves images out, where the source can.
    """

    image_size: int
    preprocessing: str
    seed: int = 0
    max_bad_fraction: float = 1.0
    with_image: bool = True


def make_source(config: DataConfig, split: str, *, image_size: int, with_image: bool):
    """The random-access source of a split, "train" or "validation"."""
    specs = parse(config.source)
    how = Opening(
        image_size,
        config.preprocessing,
        config.seed,
        config.max_bad_fraction,
        with_image,
    )
    if specs[0].kind == "tabletop":  # has splits of its own
        if "split" in specs[0].options:
            raise ConfigError(
                f"config.data.source is {config.source!r}; a run reads the splits train "
                "and validation: leave split= out"
            )
        return _opened(specs[0], how, split)
    shares = shares_of([spec.weight or 1.0 for spec in specs])
    sizes = apportioned(config.validation_size, shares)
    parts = [
        held_out(_opened(spec, how), split, size)
        for spec, size in zip(specs, sizes, strict=True)
    ]
    if len(parts) == 1:
        return parts[0]
    if split == "validation" or specs[0].weight is None:
        return Mixture(parts)
    require_length([s.path for s in specs], [len(part) for part in parts], shares)
    return Mixture(parts, shares)


def whole_source(text: str, how: Opening):
    """All samples that a `data.source` names, in order; of tabletop, where it names no
    split, those to train on."""
    specs = parse(text)
    parts = [_opened(spec, how) for spec in specs]
    if specs[0].weight is not None:
        raise ConfigError(f"{text}: weights are for training; leave them out here")
    return parts[0] if len(parts) == 1 else Mixture(parts)


def _opened(spec: Spec, how: Opening, split: str = "train"):
    """All samples of one source, or those that its `take` names."""
    option = spec.options.get
    if spec.kind in NAMED:
        found = resolve(spec.kind, spec.path, option("split", ""))
        source = _opened(Spec(*found, weight=None), how)
    elif spec.kind == "tabletop":
        source = Tabletop(
            option("split", split),
            seed=how.seed,
            image_size=how.image_size,
            text=_one_of(MODES, "tabletop", spec.path or "captions"),
            with_image=how.with_image,
        )
    elif spec.kind == "prepared":
        source = Prepared(
            spec.path,
            image_size=how.image_size,
            preprocessing=how.preprocessing,
            with_image=how.with_image,
        )
    elif spec.kind == "tfds":
        source = Tfds(
            spec.path,
            folder=option("dir", ""),
            split=option("split", "train"),
            image=option("image", ""),
            text=option("text", ""),
            with_image=how.with_image,
        )
    elif spec.kind == "folder":
        source = open_class_folder(spec.path, how.with_image)
    elif spec.kind == "table":
        source = open_table(
            spec.path,
            images=option("images", ""),
            image=option("image", "image"),
            text=option("text", "text"),
            label=option("label", "label"),
            with_image=how.with_image,
        )
    else:
        source = Llava(
            spec.path,
            images=option("images", ""),
            form=_one_of(FORMS, "form", option("form", "plain")),
            max_bad_fraction=how.max_bad_fraction,
            with_image=how.with_image,
        )
    if "take" in spec.options:
        source = take(source, spec.options["take"], how.seed)
    return source


def _one_of(known: tuple[str, ...], name: str, value: str) -> str:
    if value in known:
        return value
    raise ConfigError(
        f"config.data.source: {name} is {value!r}; expected one of {known}"
        + nearest(value, known)
    )


def prompt_style(text: str) -> str:
    """Style of the benchmark prompts that suit a model trained on `data.source`.

    "plain" is the question alone, as the built-in world asks it; "lmms_eval" adds the
    instructions of LLaVA's data.
    """
    return "plain" if text.split(":")[0] == "tabletop" else "lmms_eval"
