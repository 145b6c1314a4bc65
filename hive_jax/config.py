"""What a run is: frozen dataclasses, built once from the config file's tree.

Every key and every default is here and nowhere else. `configs/*.py` change values
of `to_dict(RunConfig())`; `from_dict` turns the result back and refuses what it does
not know.
"""

import dataclasses
import difflib
import math
import typing
from collections.abc import Mapping

from hive_jax.errors import ConfigError
from hive_jax.models.hive import HiveConfig
from hive_jax.models.siglip import TextTowerConfig


@dataclasses.dataclass(frozen=True)
class Rule:
    """Which parameters train, and how fast. The first rule that matches a name wins.

    Attributes:
      pattern: regular expression that must match the whole name, e.g. "llm/.*".
      multiplier: factor on the learning rate; None freezes.
      layers: of stacked parameters only these layers train (counted from 1); empty
        for all of them.
    """

    pattern: str
    multiplier: float | None
    layers: tuple[int, ...] = ()


@dataclasses.dataclass(frozen=True)
class OptimizerConfig:
    """Fully decoupled AdamW with linear warm-up (at most the whole run) and a cosine
    to `min_lr` at the last step."""

    peak_lr: float = 1e-3
    min_lr: float = 0.0
    warmup_steps: int = 0
    beta1: float = 0.9
    beta2: float = 0.999
    weight_decay: float = 0.0
    clip_norm: float = 1.0


@dataclasses.dataclass(frozen=True)
class DataConfig:
    """What is read. Text is cut at `num_tokens`, its first token included.

    Attributes:
      source: "tabletop", or "llava": LLaVA's JSON with images in a folder.
      path, image_folder: of the source's files; empty for the built-in world.
      text: what tabletop says of a scene: "captions", "vague", "questions", "text".
      tokenizer: "builtin:tabletop", or a tokenizer.json, a SentencePiece .model, or
        a folder with either.
      validation_size: samples held out, and read at each evaluation.
      threads: that read and decode.
    """

    source: str = "tabletop"
    path: str = ""
    image_folder: str = ""
    text: str = "captions"
    seed: int = 0
    tokenizer: str = "builtin:tabletop"
    num_tokens: int = 77
    validation_size: int = 512
    threads: int = 2


@dataclasses.dataclass(frozen=True)
class MeshConfig:
    """Devices along each axis of the mesh; one of them may be -1, for the rest."""

    data: int = -1
    fsdp: int = 1
    tensor: int = 1


@dataclasses.dataclass(frozen=True)
class RunConfig:
    """One stage of training.

    Attributes:
      name: names the default workdir.
      objective: "caption" (next token of the text, given the image), or
        "contrastive" (SigLIP's loss between `model.encoder` and `text_tower`).
      init: a workdir whose last parameters this run starts from. Empty: `previous`.
      previous: the name of the stage before this one, whose default workdir is
        used where `init` is empty; empty: none.
      init_encoder, init_decoder: big_vision .npz for `img` and `llm`, where there
        is neither `init` nor `previous`; "builtin:NAME" is one that comes along.
      whiten_patches: start the patch embedding from the whitening transform of
        the data's patches.
      batch_size: samples an optimizer step, over all devices.
      accumulate: parts a batch is sent through in, one after the other.
      dtype: of the computation: "float32", "bfloat16", or "auto" (bfloat16 on
        accelerators, float32 on CPU). Parameters are float32.
      keep: checkpoints kept.
    """

    name: str = "run"
    objective: str = "caption"
    seed: int = 0
    init: str = ""
    previous: str = ""
    init_encoder: str = ""
    init_decoder: str = ""
    whiten_patches: bool = False
    total_steps: int = 100
    batch_size: int = 64
    accumulate: int = 1
    dtype: str = "auto"
    log_every: int = 10
    eval_every: int = 100
    checkpoint_every: int = 50
    keep: int = 3
    model: HiveConfig = HiveConfig()
    text_tower: TextTowerConfig = TextTowerConfig()
    data: DataConfig = DataConfig()
    optimizer: OptimizerConfig = OptimizerConfig()
    mesh: MeshConfig = MeshConfig()
    rules: tuple[Rule, ...] = (Rule(".*", 1.0),)


# May differ between a run and its continuation: they change what is seen of a run
# or where it computes, not what it computes.
HARMLESS = {"log_every", "eval_every", "checkpoint_every", "keep", "mesh", "data.threads"}


def to_dict(config) -> dict:
    """A tree of dicts, tuples and scalars; rules become tuples."""

    def plain(value):
        if isinstance(value, Rule):
            return dataclasses.astuple(value)
        if dataclasses.is_dataclass(value):
            return {f.name: plain(getattr(value, f.name)) for f in _fields(value)}
        return tuple(map(plain, value)) if isinstance(value, tuple) else value

    return plain(config)


def from_dict(tree: Mapping) -> RunConfig:
    """Builds and checks a RunConfig. Raises ConfigError naming the key."""
    config = _build(RunConfig, tree, "")
    _check(config)
    return config


def differences(old: Mapping, new: Mapping, prefix: str = "") -> list[str]:
    """Lines "key: old -> new" for every key that differs, other than HARMLESS."""
    lines = []
    for key in sorted({*old, *new}):
        path = prefix + key
        before, after = old.get(key, "(absent)"), new.get(key, "(absent)")
        if path in HARMLESS or _listed(before) == _listed(after):
            continue
        if isinstance(before, Mapping) and isinstance(after, Mapping):
            lines += differences(before, after, path + ".")
        else:
            lines.append(f"{path}: {before} -> {after}")
    return lines


def nearest(name: str, known) -> str:
    """ "; did you mean 'x'?" for the most similar known name, or nothing."""
    close = difflib.get_close_matches(name, [str(k) for k in known], n=1, cutoff=0.5)
    return f"; did you mean {close[0]!r}?" if close else ""


def _fields(cls):
    return dataclasses.fields(cls)


def _listed(value):
    """Tuples as lists, as they come back from JSON."""
    if isinstance(value, Mapping):
        return {key: _listed(item) for key, item in value.items()}
    return [_listed(x) for x in value] if isinstance(value, list | tuple) else value


def _build(kind, value, path: str):
    """`value` as the type `kind`; recursive over dataclasses and tuples."""
    if dataclasses.is_dataclass(kind):
        return _build_dataclass(kind, value, path)
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
    allowed = typing.get_args(kind) or (kind,)  # float | None
    if value is None and type(None) in allowed:
        return None
    if float in allowed and isinstance(value, int) and not isinstance(value, bool):
        value = float(value)
    if type(value) not in allowed:
        names = " or ".join(t.__name__ for t in allowed)
        raise ConfigError(f"config.{path} is {value!r}; expected {names}")
    if isinstance(value, float) and not math.isfinite(value):
        raise ConfigError(f"config.{path} is {value}; expected a finite number")
    return value


def _build_dataclass(cls, value, path: str):
    hints = typing.get_type_hints(cls)
    if not isinstance(value, Mapping):
        if cls is Rule and isinstance(value, list | tuple):
            value = dict(zip(hints, value, strict=False))
        else:
            raise ConfigError(f"config.{path} is {value!r}; expected keys {list(hints)}")
    dot = path + "." if path else ""
    unknown = [key for key in value if key not in hints]
    if unknown:
        hint = nearest(unknown[0], hints)
        raise ConfigError(f"config.{dot}{unknown[0]} is not a key{hint}")
    missing = [f.name for f in _fields(cls) if f.name not in value and _required(f)]
    if missing:
        raise ConfigError(f"config.{dot}{missing[0]} is missing")
    built = {key: _build(hints[key], item, dot + key) for key, item in value.items()}
    return cls(**built)


def _required(field) -> bool:
    return field.default is dataclasses.MISSING


def _check(config: RunConfig) -> None:
    """Refuses values that are of the right type and still cannot be."""

    def expect(holds: bool, key: str, wanted: str):
        if not holds:
            value = config
            for name in key.split("."):
                value = getattr(value, name)
            raise ConfigError(f"config.{key} is {value!r}; expected {wanted}")

    for key in ("total_steps", "batch_size", "accumulate", "log_every", "eval_every"):
        expect(getattr(config, key) >= 1, key, "1 or more")
    for key in ("checkpoint_every", "keep"):
        expect(getattr(config, key) >= 1, key, "1 or more")
    expect(config.seed >= 0, "seed", "0 or more")
    expect(
        config.batch_size % config.accumulate == 0,
        "batch_size",
        f"a multiple of accumulate = {config.accumulate}",
    )
    objectives = ("caption", "contrastive")
    expect(config.objective in objectives, "objective", f"one of {objectives}")
    expect(
        config.accumulate == 1 or config.objective != "contrastive",
        "accumulate",
        "1: the contrastive loss compares all pairs of a batch",
    )
    dtypes = ("auto", "float32", "bfloat16")
    expect(config.dtype in dtypes, "dtype", f"one of {dtypes}")
    optimizer = config.optimizer
    expect(optimizer.peak_lr > 0, "optimizer.peak_lr", "more than 0")
    expect(
        0 <= optimizer.min_lr <= optimizer.peak_lr,
        "optimizer.min_lr",
        f"0 to peak_lr = {optimizer.peak_lr}",
    )
    expect(optimizer.clip_norm > 0, "optimizer.clip_norm", "more than 0")
    expect(optimizer.warmup_steps >= 0, "optimizer.warmup_steps", "0 or more")
    for key in ("beta1", "beta2"):
        expect(0 <= getattr(optimizer, key) < 1, f"optimizer.{key}", "0 to below 1")
    expect(optimizer.weight_decay >= 0, "optimizer.weight_decay", "0 or more")
    expect(config.data.num_tokens >= 2, "data.num_tokens", "2 or more")
    expect(config.data.validation_size >= 2, "data.validation_size", "2 or more")
    expect(config.data.threads >= 1, "data.threads", "1 or more")
    if config.objective == "caption":
        _check_towers(config.model)


def _check_towers(model: HiveConfig) -> None:
    encoder, decoder = model.encoder, model.decoder
    pairs = (
        (encoder.width, encoder.num_heads, "model.encoder", "width", "num_heads"),
        (decoder.num_heads, decoder.num_kv_heads, "model.decoder", "num_heads", "num_kv_heads"),
    )
    for whole, part, where, name, divisor in pairs:
        if part < 1 or whole % part:
            raise ConfigError(
                f"config.{where}.{name} is {whole}; expected a multiple of "
                f"{divisor} = {part}"
            )
    try:
        model.resolved_connections()
    except ValueError as error:
        raise ConfigError(f"config.model: {error}") from None
