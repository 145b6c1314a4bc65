"""Conversion of configs to nested dicts and back, and differences between two."""

import dataclasses
import difflib
import math
import typing
from collections.abc import Mapping

from hive_jax.config.schema import Rule, RunConfig, Source
from hive_jax.errors import ConfigError

# Keys that may change when a run is resumed: they decide what it reports and where it
# computes, not the numbers. `execution` is not among them, because scanned and unrolled
# layers round differently.
RESUMABLE_KEYS = {
    "log_every",
    "eval_every",
    "checkpoint_every",
    "max_to_keep",
    "hang_timeout",
    "mesh",
    "data.threads",
    # The path; the tokenizer itself has a fingerprint in every checkpoint.
    "data.tokenizer",
}


def to_dict(config) -> dict:
    """Returns a config dataclass as nested dicts of tuples, scalars and None.

    A Rule becomes a tuple, the options of a Source a dict.
    """

    def plain(value):
        if isinstance(value, Rule):
            return dataclasses.astuple(value)
        if isinstance(value, Source):
            return vars(value) | {"options": dict(value.options)}
        if dataclasses.is_dataclass(value):
            return {
                f.name: plain(getattr(value, f.name)) for f in dataclasses.fields(value)
            }
        return tuple(map(plain, value)) if isinstance(value, tuple) else value

    return plain(config)


def from_dict(tree: Mapping, schema: type = RunConfig):
    """Builds and validates a config from nested dicts.

    Args:
      tree: nested dicts as from `to_dict`; absent keys get their defaults.
      schema: RunConfig or ProbeConfig.

    Raises:
      ConfigError: names an unknown key, a wrong type or an invalid value.
    """
    config = _build(schema, tree, "")
    config.validate()
    return config


def as_run_config(config) -> RunConfig:
    """Returns a validated RunConfig.

    Args:
      config: a RunConfig, a dict as from `to_dict`, or the ConfigDict of a config
        file's `get_config`.

    Raises:
      ConfigError: as `from_dict`.
    """
    if isinstance(config, RunConfig):
        config.validate()
        return config
    return from_dict(config if isinstance(config, dict) else config.to_dict())


def differences(old: Mapping, new: Mapping, prefix: str = "") -> list[str]:
    """Returns a line "key: old -> new" for every different key but RESUMABLE_KEYS.

    Args:
      old: nested dicts.
      new: nested dicts.
      prefix: prepended to every key.
    """
    lines = []
    for key in sorted({*old, *new}):
        path = prefix + key
        before, after = old.get(key, "(absent)"), new.get(key, "(absent)")
        if path in RESUMABLE_KEYS or _listed(before) == _listed(after):
            continue
        if isinstance(before, Mapping) and isinstance(after, Mapping):
            lines += differences(before, after, path + ".")
        else:
            lines.append(f"{path}: {before} -> {after}")
    return lines


def nearest(name: str, known) -> str:
    """Returns "; did you mean 'x'?" for the most similar known name, or "".

    Args:
      name: the unknown name.
      known: valid names.
    """
    close = difflib.get_close_matches(name, [str(k) for k in known], n=1, cutoff=0.5)
    return f"; did you mean {close[0]!r}?" if close else ""


def _listed(value):
    """Returns the value with tuples as lists, as JSON has them."""
    if isinstance(value, Mapping):
        return {key: _listed(item) for key, item in value.items()}
    return [_listed(x) for x in value] if isinstance(value, list | tuple) else value


def _build(kind, value, path: str):
    """Converts a plain value to the type `kind`, recursively; `path` is its key."""
    allowed = typing.get_args(kind) or (kind,)  # of float | None: float, None
    if value is None and type(None) in allowed:
        return None
    if typing.get_origin(kind) is tuple:
        if not isinstance(value, list | tuple):
            raise ConfigError(f"config.{path} is {value!r}; expected a tuple")
        items = typing.get_args(kind)
        items = items[:1] * len(value) if items[-1] is Ellipsis else items
        if len(items) != len(value):
            raise ConfigError(
                f"config.{path} is {value!r}; expected {len(items)} values"
            )
        return tuple(
            _build(k, v, f"{path}[{i}]")
            for i, (k, v) in enumerate(zip(items, value, strict=True))
        )
    if dataclasses.is_dataclass(allowed[0]):
        return _build_dataclass(allowed[0], value, path)
    sequence = next((k for k in allowed if typing.get_origin(k) is tuple), None)
    if sequence is not None and isinstance(value, list | tuple):
        # ml_collections gives the type of the old value to an override: a string that
        # replaces a tuple of the config file arrives as (string,).
        if str in allowed and len(value) == 1 and isinstance(value[0], str):
            return value[0]
        return _build(sequence, value, path)
    if float in allowed and isinstance(value, int) and not isinstance(value, bool):
        try:
            value = float(value)
        except OverflowError:
            value = math.inf if value > 0 else -math.inf
    if type(value) not in allowed:
        names = " or ".join(t.__name__ for t in allowed)
        raise ConfigError(f"config.{path} is {value!r}; expected {names}")
    return value


def _build_dataclass(cls, value, path: str):
    """Converts a dict, or a tuple for a Rule, to a dataclass."""
    hints = typing.get_type_hints(cls)
    if not isinstance(value, Mapping):
        if cls is Rule and isinstance(value, list | tuple):
            if len(value) > len(hints):
                raise ConfigError(f"config.{path} is {value!r}; expected {list(hints)}")
            value = dict(zip(hints, value, strict=False))
        else:
            raise ConfigError(
                f"config.{path} is {value!r}; expected keys {list(hints)}"
            )
    if cls is Source and isinstance(value.get("options"), Mapping):
        options = sorted(value["options"].items(), key=lambda item: str(item[0]))
        value = {**value, "options": tuple(options)}
    dot = path + "." if path else ""
    unknown = [key for key in value if key not in hints]
    if unknown:
        hint = nearest(str(unknown[0]), hints)  # of a dict made in Python: any type
        raise ConfigError(f"config.{dot}{unknown[0]} is not a key{hint}")
    missing = [
        f.name for f in dataclasses.fields(cls) if f.name not in value and _required(f)
    ]
    if missing:
        raise ConfigError(f"config.{dot}{missing[0]} is missing")
    built = {key: _build(hints[key], item, dot + key) for key, item in value.items()}
    return cls(**built)


def _required(field) -> bool:
    return field.default is field.default_factory is dataclasses.MISSING
