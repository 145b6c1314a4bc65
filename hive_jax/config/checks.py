"""Values that are of the right type and still cannot be."""

import dataclasses
import functools
import itertools
from collections.abc import Iterable

from hive_jax.config.schema import (
    DECODER_OF_WEIGHTS,
    ENCODER_OF_WEIGHTS,
    ProbeConfig,
    RunConfig,
)
from hive_jax.errors import ConfigError
from hive_jax.models.decoder import ACTIVATIONS
from hive_jax.models.fusion import FUSIONS
from hive_jax.models.stack import PROGRAM, REMAT_POLICIES


@functools.singledispatch
def check(config) -> None:
    """Raises ConfigError for the first value that cannot be, naming its key."""
    raise TypeError(f"a {type(config).__name__} is no config")


@check.register
def _check_run_config(config: RunConfig) -> None:
    expect = _Expect(config)
    _check_run(config, expect)
    _check_optimizer(config, expect)
    _check_encoder(config, expect)
    if config.objective == "contrastive":
        _check_two_towers(config, expect)
    else:
        _check_decoder(config, expect)
        _check_connections(config)


@check.register
def _check_probe_config(config: ProbeConfig) -> None:
    expect = _Expect(config)
    expect.one_of(PROBES, "probe")
    expect.one_of(tuple(FUSIONS), "model.fusion")
    expect.one_of(("auto", "float32", "bfloat16"), "dtype")
    expect.one_of(("", *PREPROCESSING), "preprocessing")
    expect.at_least(1, "epochs", "batch_size", "num_seeds", "threads")
    expect.at_least(0, "depth", "seed", "warmup_epochs", "weight_decay")
    expect(config.peak_lr > 0, "peak_lr", "more than 0")
    expect(config.clip_norm > 0, "clip_norm", "more than 0")
    expect(0 <= config.max_bad_fraction <= 1, "max_bad_fraction", "0 to 1")
    expect(
        bool(config.templates) and all("{}" in text for text in config.templates),
        "templates",
        "texts with {} for the name of a class",
    )


PROBES = ("linear", "attentive", "zero_shot", "retrieval")
# Of image files; see hive_jax/data/preprocessing.py.
PREPROCESSING = (
    *("hf_bicubic", "hf_bilinear", "hf_bicubic_pad", "hf_bilinear_pad"),
    "bv_bilinear",
)


class _Expect:
    """What values must be; `expect(holds, key, wanted)` and shorthands of it."""

    def __init__(self, config: RunConfig | ProbeConfig):
        self._config = config

    def value(self, key: str):
        value = self._config
        for name in key.split("."):
            value = getattr(value, name)
        return value

    def __call__(self, holds: bool, key: str, wanted: str) -> None:
        if not holds:
            raise ConfigError(f"config.{key} is {self.value(key)!r}; expected {wanted}")

    def at_least(self, least: int, *keys: str) -> None:
        for key in keys:
            self(self.value(key) >= least, key, f"{least} or more")

    def one_of(self, known: Iterable[str], key: str) -> None:
        self(self.value(key) in known, key, f"one of {tuple(known)}")

    def multiple(self, key: str, divisor: str) -> None:
        number = self.value(divisor)
        self(self.value(key) % number == 0, key, f"a multiple of {divisor} = {number}")


def _check_run(config: RunConfig, expect: _Expect) -> None:
    expect.one_of(("caption", "contrastive"), "objective")
    expect.one_of(tuple(FUSIONS), "model.fusion")
    expect.one_of(("auto", "float32", "bfloat16"), "dtype")
    expect.at_least(1, "total_steps", "batch_size", "accumulate", "data.threads")
    expect.at_least(1, "log_every", "eval_every", "checkpoint_every", "keep")
    expect.at_least(2, "data.num_tokens", "data.validation_size")
    expect.at_least(0, "seed", "data.seed")
    expect.one_of(("", *PREPROCESSING), "data.preprocessing")
    expect.multiple("batch_size", "accumulate")
    lengths = (1, *config.data.buckets, config.data.num_tokens)
    expect(
        all(a < b for a, b in itertools.pairwise(lengths)),
        "data.buckets",
        f"increasing numbers from 2 to below data.num_tokens = {lengths[-1]}",
    )
    expect(
        not config.data.buckets or config.objective != "contrastive",
        "data.buckets",
        "none: a text tower reads texts of one length",
    )
    share = config.data.max_bad_fraction
    expect(0 <= share <= 1, "data.max_bad_fraction", "0 to 1")
    expect(
        config.accumulate == 1 or config.objective != "contrastive",
        "accumulate",
        "1: the contrastive loss compares all pairs of a batch",
    )


def _check_optimizer(config: RunConfig, expect: _Expect) -> None:
    optimizer = config.optimizer
    expect(optimizer.peak_lr > 0, "optimizer.peak_lr", "more than 0")
    expect(
        0 <= optimizer.min_lr <= optimizer.peak_lr,
        "optimizer.min_lr",
        f"0 to peak_lr = {optimizer.peak_lr}",
    )
    expect(optimizer.clip_norm > 0, "optimizer.clip_norm", "more than 0")
    expect.at_least(0, "optimizer.warmup_steps", "optimizer.weight_decay")
    for key in ("optimizer.beta1", "optimizer.beta2"):
        expect(0 <= expect.value(key) < 1, key, "0 to below 1")
    for number, rule in enumerate(config.rules):
        if rule.multiplier is not None and rule.multiplier <= 0:
            raise ConfigError(
                f"config.rules[{number}].multiplier is {rule.multiplier}; expected more "
                f"than 0, or None to freeze"
            )


def _check_sizes(config: RunConfig, expect: _Expect, tower: str) -> None:
    """All numbers of a tower are positive; 0 leaves out a factor, or local layers."""
    for field in dataclasses.fields(expect.value(tower)):
        if field.type in (int, float):
            optional = field.type is float or field.name == "local_layers"
            expect.at_least(0 if optional else 1, f"{tower}.{field.name}")
    expect.one_of(REMAT_POLICIES, f"{tower}.remat")


def _check_of_weights(expect: _Expect, tower: str, blank, free: set[str]) -> None:
    """A tower of width 0 has no other value of its own, but for the `free` ones."""
    for field in dataclasses.fields(blank):
        wanted = getattr(blank, field.name)
        if field.name not in {*free, *PROGRAM}:
            key = f"{tower}.{field.name}"
            expect(
                expect.value(key) == wanted,
                key,
                f"{wanted}: {tower}.width is 0, for the tower of the weights that the "
                "run starts from. For another one give its width and all other sizes",
            )
    expect.one_of(REMAT_POLICIES, f"{tower}.remat")


def _check_encoder(config: RunConfig, expect: _Expect) -> None:
    tower = "model.encoder"
    if config.model.encoder.width == 0:
        _check_of_weights(expect, tower, ENCODER_OF_WEIGHTS, {"image_size"})
        expect.at_least(0, f"{tower}.image_size")
        return
    _check_sizes(config, expect, tower)
    expect.multiple(f"{tower}.width", f"{tower}.num_heads")
    patch_size = config.model.encoder.patch_size
    expect(
        config.model.encoder.num_patches > 0,
        f"{tower}.image_size",
        f"patch_size = {patch_size} or more",
    )


def _check_two_towers(config: RunConfig, expect: _Expect) -> None:
    _check_sizes(config, expect, "text_tower")
    expect.multiple("text_tower.width", "text_tower.num_heads")
    width = config.model.encoder.width
    expect(
        config.text_tower.out_dim == width or width == 0,
        "text_tower.out_dim",
        f"model.encoder.width = {width}",
    )


def _check_decoder(config: RunConfig, expect: _Expect) -> None:
    tower = "model.decoder"
    if config.model.decoder.width == 0:
        _check_of_weights(expect, tower, DECODER_OF_WEIGHTS, set())
        return
    _check_sizes(config, expect, tower)
    expect.multiple(f"{tower}.num_heads", f"{tower}.num_kv_heads")
    expect(config.model.decoder.head_dim % 2 == 0, f"{tower}.head_dim", "even")
    expect.one_of(tuple(ACTIVATIONS), f"{tower}.activation")
    expect(config.model.decoder.rope_factor > 0, f"{tower}.rope_factor", "more than 0")


def _check_connections(config: RunConfig) -> None:
    """Only where both towers are known."""
    if 0 in (config.model.encoder.width, config.model.decoder.width):
        return
    try:
        config.model.resolved_connections()
    except ValueError as error:
        raise ConfigError(f"config.model: {error}") from None
