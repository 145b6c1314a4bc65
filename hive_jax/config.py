"""What a run is: frozen dataclasses, built once from the config file's tree.

Every key and every default is here and nowhere else. `configs/*.py` change values
of `to_dict(RunConfig())`; `from_dict` turns the result back and refuses what it does
not know.
"""

import dataclasses
import difflib
import math
import typing
from collections.abc import Iterable, Mapping

from hive_jax.errors import ConfigError
from hive_jax.models.hive import HiveConfig
from hive_jax.models.siglip import TextTowerConfig
from hive_jax.models.stack import REMAT_POLICIES


@dataclasses.dataclass(frozen=True)
class Rule:
    """Which parameters train, and how fast. The first rule that matches a name wins.

    Attributes:
      pattern: regular expression that must match the whole name, e.g. "llm/.*".
      multiplier: factor on the learning rate; None freezes.
      layers: the rule is for stacked parameters alone, and only these layers of
        them train (counted from 1); empty for no such limit.
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
    model: HiveConfig = dataclasses.field(default_factory=HiveConfig)
    text_tower: TextTowerConfig = dataclasses.field(default_factory=TextTowerConfig)
    data: DataConfig = DataConfig()
    optimizer: OptimizerConfig = OptimizerConfig()
    mesh: MeshConfig = MeshConfig()
    rules: tuple[Rule, ...] = (Rule(".*", 1.0),)


# May differ between a run and its continuation: they change what is seen of a run
# or where it computes, not what it computes.
HARMLESS = {
    "log_every",
    "eval_every",
    "checkpoint_every",
    "keep",
    "mesh",
    "data.threads",
}


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
            if len(value) > len(hints):
                raise ConfigError(f"config.{path} is {value!r}; expected {list(hints)}")
            value = dict(zip(hints, value, strict=False))
        else:
            raise ConfigError(
                f"config.{path} is {value!r}; expected keys {list(hints)}"
            )
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
    return field.default is field.default_factory is dataclasses.MISSING


def _check(config: RunConfig) -> None:
    """Refuses values that are of the right type and still cannot be."""

    def value_of(key: str):
        value = config
        for name in key.split("."):
            value = getattr(value, name)
        return value

    def expect(holds: bool, key: str, wanted: str):
        if not holds:
            raise ConfigError(f"config.{key} is {value_of(key)!r}; expected {wanted}")

    def at_least(least: int, *keys: str):
        for key in keys:
            expect(value_of(key) >= least, key, f"{least} or more")

    def one_of(known: Iterable[str], key: str):
        expect(value_of(key) in known, key, f"one of {tuple(known)}")

    def multiple(key: str, divisor: str):
        divides = value_of(key) % value_of(divisor) == 0
        expect(divides, key, f"a multiple of {divisor} = {value_of(divisor)}")

    one_of(("caption", "contrastive"), "objective")
    one_of(("auto", "float32", "bfloat16"), "dtype")
    at_least(1, "total_steps", "batch_size", "accumulate", "data.threads")
    at_least(1, "log_every", "eval_every", "checkpoint_every", "keep")
    at_least(2, "data.num_tokens", "data.validation_size")
    at_least(0, "seed", "data.seed")
    multiple("batch_size", "accumulate")
    contrastive = config.objective == "contrastive"
    expect(
        config.accumulate == 1 or not contrastive,
        "accumulate",
        "1: the contrastive loss compares all pairs of a batch",
    )

    optimizer = config.optimizer
    expect(optimizer.peak_lr > 0, "optimizer.peak_lr", "more than 0")
    expect(
        0 <= optimizer.min_lr <= optimizer.peak_lr,
        "optimizer.min_lr",
        f"0 to peak_lr = {optimizer.peak_lr}",
    )
    expect(optimizer.clip_norm > 0, "optimizer.clip_norm", "more than 0")
    at_least(0, "optimizer.warmup_steps", "optimizer.weight_decay")
    for key in ("optimizer.beta1", "optimizer.beta2"):
        expect(0 <= value_of(key) < 1, key, "0 to below 1")
    for number, rule in enumerate(config.rules):
        if rule.multiplier is not None and rule.multiplier <= 0:
            raise ConfigError(
                f"config.rules[{number}].multiplier is {rule.multiplier}; expected more "
                f"than 0, or None to freeze"
            )

    other = "text_tower" if contrastive else "model.decoder"
    for tower in ("model.encoder", other):
        for field in _fields(value_of(tower)):
            if field.type is not str and field.type is not bool:
                # What may be left out, by 0, is a factor or the local layers.
                optional = field.type is float or field.name == "local_layers"
                at_least(0 if optional else 1, f"{tower}.{field.name}")
        one_of(REMAT_POLICIES, f"{tower}.remat")
    multiple("model.encoder.width", "model.encoder.num_heads")
    expect(
        config.model.encoder.num_patches > 0,
        "model.encoder.image_size",
        f"patch_size = {config.model.encoder.patch_size} or more",
    )
    if contrastive:
        multiple("text_tower.width", "text_tower.num_heads")
        width = config.model.encoder.width
        expect(
            config.text_tower.out_dim == width,
            "text_tower.out_dim",
            f"model.encoder.width = {width}",
        )
        return
    multiple("model.decoder.num_heads", "model.decoder.num_kv_heads")
    expect(config.model.decoder.head_dim % 2 == 0, "model.decoder.head_dim", "even")
    try:
        config.model.resolved_connections()
    except ValueError as error:
        raise ConfigError(f"config.model: {error}") from None
