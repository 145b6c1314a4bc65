"""Datasets by name: every kind of source, its checks, and the splits of a run.

To add a format, write a class or function `open(path, options, **named)`, whose named
arguments are texts, and add it to _KINDS.
"""

import dataclasses
import functools
import os
from collections.abc import Callable, Sequence

from hive_jax.buckets import is_url
from hive_jax.config import DataConfig, Source, nearest
from hive_jax.config.bounds import require_in_bounds
from hive_jax.data.sources.array_record import ArrayRecordSource
from hive_jax.data.sources.base import (
    DataSource,
    Mixture,
    SourceOptions,
    largest_remainder,
    normalize_weights,
    require_epoch_length,
    take,
)
from hive_jax.data.sources.catalog import CATALOG, open_catalog
from hive_jax.data.sources.class_folder import open_class_folder
from hive_jax.data.sources.hub import open_hub
from hive_jax.data.sources.image_text import open_table
from hive_jax.data.sources.llava import open_llava
from hive_jax.data.sources.source_text import parse, to_text
from hive_jax.data.sources.split import train_validation_splits
from hive_jax.data.sources.tfds import TfdsSource
from hive_jax.data.sources.webdataset import WebDatasetSource
from hive_jax.data.tabletop.dataset import Tabletop
from hive_jax.downloads import local_copy
from hive_jax.errors import ConfigError
from hive_jax.io import require_local, require_path

_EXAMPLE = "llava:chat.json,images=images.zip"
# Names of formats that people write as a kind.
_FORMATS = {
    "csv": "table",
    "tsv": "table",
    "parquet": "table",
    "json": "llava",
    "jsonl": "llava",
    "tar": "wds",
    "webdataset": "wds",
    "huggingface": "hf",
    "imagefolder": "folder",
    "array_record": "prepared",
}
# Options that name a file or a folder.
_PATH_OPTIONS = ("images", "dir")


def _open_tabletop(text: str, options: SourceOptions, *, split: str) -> Tabletop:
    return Tabletop(
        split,
        seed=options.seed,
        image_size=options.image_size,
        text=text or "captions",
        with_image=options.with_image,
    )


@dataclasses.dataclass(frozen=True)
class _Kind:
    """A kind of source.

    Attributes:
      open: (path, options, **named) -> the dataset.
      names: its named arguments; `take` is understood by all kinds.
      needs_path: whether the path may not be empty.
    """

    open: Callable[..., DataSource]
    names: tuple[str, ...] = ()
    needs_path: bool = True


_KINDS = {
    "tabletop": _Kind(_open_tabletop, ("split",), needs_path=False),
    "llava": _Kind(open_llava, ("images", "form")),
    "prepared": _Kind(ArrayRecordSource),
    "tfds": _Kind(TfdsSource, ("dir", "split", "image", "text")),
    "hf": _Kind(
        open_hub, ("config", "split", "revision", "image", "text", "label", "form")
    ),
    "wds": _Kind(WebDatasetSource, ("image", "text", "label", "form")),
    "folder": _Kind(open_class_folder),
    "table": _Kind(open_table, ("images", "image", "text", "label")),
    **{
        name: _Kind(functools.partial(open_catalog, name), ("split",), needs_path=False)
        for name in CATALOG
    },
}


def checked_sources(sources: str | Sequence[Source]) -> tuple[Source, ...]:
    """Validates the sources of a config, in either form.

    Raises:
      ConfigError: a kind, path, option or weight cannot be used, or sources cannot be
        mixed.
    """
    text = to_text(sources)
    if isinstance(sources, str):
        sources = parse(sources)
    if not sources:
        raise ConfigError("config.data.source is empty; expected one source or more")
    for source in sources:
        _check(source)
    if len({source.weight is None for source in sources}) > 1:
        raise ConfigError(
            f"config.data.source is {text!r}; expected a weight for each source, as in "
            f"2*llava:a.json + 1*llava:b.json, or for none"
        )
    if len(sources) > 1 and any(source.kind == "tabletop" for source in sources):
        raise ConfigError(f"config.data.source is {text!r}; tabletop cannot be mixed")
    return tuple(sources)


def _check(source: Source) -> None:
    require_in_bounds(source, "data.source.")
    if source.kind not in _KINDS:
        # A URL is parsed as a kind, its scheme, and a path.
        url = f"{source.kind}:{source.path}"
        require_path(url, "config.data.source")
        name = url if is_url(url) else source.kind
        raise ConfigError(
            f"config.data.source is {name!r}; expected one of {tuple(_KINDS)}, "
            f"with a path and options as in {_EXAMPLE}{_likely_kind(name)}"
        )
    kind = _KINDS[source.kind]
    if kind.needs_path and not source.path:
        raise ConfigError(
            f"config.data.source is {source.kind!r}; expected a path, {source.kind}:PATH"
        )
    paths = {source.kind: source.path} | dict(source.options)
    for name in (source.kind, *_PATH_OPTIONS):
        path, key = paths.get(name, ""), f"config.data.source: {name}"
        require_path(path, key)
        # TensorFlow Datasets finds a dataset by the folders around it.
        if source.kind == "tfds":
            require_local(path, key)
        if is_url(path) and any(character in path for character in "*?[{"):
            raise ConfigError(
                f"{key} is {path!r}; expected no pattern in a bucket, but the folder of "
                "the files, all of which are downloaded"
            )
    # To list one would take hours.
    if source.path and os.path.realpath(source.path) == "/":
        raise ConfigError(
            f"config.data.source: {source.kind} is {source.path!r}, a whole disk; "
            "expected the folder of a dataset"
        )
    given, before = [name for name, _ in source.options], source.path
    for name, value in source.options:
        if given.count(name) > 1:
            raise ConfigError(f"config.data.source: {name}= is given twice")
        _check_option(source.kind, name, value, before)
        before = value


def _check_option(kind: str, name: str, value: str, before: str) -> None:
    """Raises ConfigError for an option that a kind does not have, or without a value.

    Args:
      kind: of the source.
      name: of the option.
      value: of the option.
      before: the path or value before it, to which the comma may belong.
    """
    names = (*_KINDS[kind].names, "take")
    if name in names and value:
        return
    problem = f"{name!r} {'needs a value' if name in names else 'is not an option'}"
    if "/" in name and before:
        problem = f"{before},{name} does not exist, and {problem}"
    raise ConfigError(
        f"config.data.source: {problem}; expected "
        + " or ".join(f"{known}=..." for known in names)
        + f" for {kind}{nearest(name, names)}"
    )


def _likely_kind(kind: str) -> str:
    """What to write in place of an unknown kind, which may be a path or a dataset."""
    if "/" in kind or os.path.exists(kind):
        return f". Write the format of a path before it, such as folder:{kind}"
    if kind in _FORMATS:
        return f"; did you mean {_FORMATS[kind]!r}?"
    if known := nearest(kind, _KINDS):
        return known
    if not kind.isidentifier():
        return ""
    return (
        f". For the dataset {kind} write tfds:{kind} (prepared by TensorFlow Datasets), or "
        f"hf:ORG/NAME with its id on the Hugging Face hub"
    )


def make_source(
    config: DataConfig, split: str, *, image_size: int, with_image: bool
) -> DataSource:
    """Opens the dataset of one split of a run.

    Args:
      config: of the run's data.
      split: "train" or "validation".
      image_size: side of the images, in pixels.
      with_image: False to skip reading images.

    Raises:
      ConfigError, DataError, MissingInputError: it cannot be opened.
    """
    sources = checked_sources(config.source)
    options = SourceOptions(
        image_size,
        config.preprocessing,
        config.seed,
        config.max_bad_fraction,
        with_image,
    )
    if sources[0].kind == "tabletop":  # which has splits of its own
        if "split" in dict(sources[0].options):
            raise ConfigError(
                f"config.data.source is {to_text(config.source)!r}; a run reads the splits "
                "train and validation: leave split= out"
            )
        return _open(sources[0], options, split)
    shares = normalize_weights([source.weight or 1.0 for source in sources])
    # Both splits are made of all sources: an image that two of them share is held out of
    # both.
    sizes = largest_remainder(config.validation_size, shares)
    opened = [_open(source, options) for source in sources]
    train, validation = train_validation_splits(opened, sizes)
    subsets = train if split == "train" else validation
    if len(subsets) == 1:
        return subsets[0]
    # The validation split has each sample once: its sizes already follow the weights.
    if split == "validation" or sources[0].weight is None:
        return Mixture(subsets)
    require_epoch_length(
        [source.path for source in sources], [len(s) for s in subsets], shares
    )
    return Mixture(subsets, shares)


def whole_source(source: str | Sequence[Source], options: SourceOptions) -> DataSource:
    """Opens a whole dataset, in order, without a validation split.

    Args:
      source: as `data.source`, without weights; of tabletop the split "train" unless
        it names another.
      options: of the run.

    Raises:
      ConfigError, DataError, MissingInputError: it cannot be opened.
    """
    sources = checked_sources(source)
    opened = [_open(one, options) for one in sources]
    if sources[0].weight is not None:
        raise ConfigError(
            f"{to_text(source)}: weights are for training; leave them out here"
        )
    return opened[0] if len(opened) == 1 else Mixture(opened)


def _open(source: Source, options: SourceOptions, split: str = "train") -> DataSource:
    """All samples of one source, or those that its `take` names."""
    named = dict(source.options)
    subset = named.pop("take", "")
    if source.kind == "tabletop":
        named.setdefault("split", split)
    named = {name: _local_path(value) for name, value in named.items()}
    path = _local_path(source.path)
    opened = _KINDS[source.kind].open(path, options, **named)
    return take(opened, subset, options.seed) if subset else opened


def _local_path(path: str) -> str:
    """Returns the local path of a path of a source, downloaded if it is a URL."""
    if not is_url(path):
        # A shell leaves the "~" of "folder:~/data" to the program.
        return os.path.expanduser(path)
    archive, suffix, folder = path.partition(".zip/")  # a folder in a zip
    return f"{local_copy(archive + suffix.rstrip('/'))}{suffix and '/'}{folder}"


def prompt_style(source: str | tuple[Source, ...]) -> str:
    """Style of the benchmark prompts that suit a model trained on `data.source`.

    "plain" is the question alone, as the built-in dataset asks it; "lmms_eval" adds the
    instructions of LLaVA's data.
    """
    return "plain" if checked_sources(source)[0].kind == "tabletop" else "lmms_eval"
