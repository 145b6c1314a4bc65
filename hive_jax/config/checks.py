"""Values that are of the right type and still cannot be."""

import dataclasses
from collections.abc import Iterable

from hive_jax.config.schema import RunConfig
from hive_jax.errors import ConfigError
from hive_jax.models.stack import REMAT_POLICIES


def check(config: RunConfig) -> None:
    """Raises ConfigError for the first value that cannot be, naming its key."""
    expect = _Expect(config)
    _check_run(config, expect)
    _check_optimizer(config, expect)
    contrastive = config.objective == "contrastive"
    _check_sizes(config, expect, "model.encoder")
    _check_sizes(config, expect, "text_tower" if contrastive else "model.decoder")
    expect.multiple("model.encoder.width", "model.encoder.num_heads")
    patch_size = config.model.encoder.patch_size
    expect(
        config.model.encoder.num_patches > 0,
        "model.encoder.image_size",
        f"patch_size = {patch_size} or more",
    )
    if contrastive:
        _check_two_towers(config, expect)
    else:
        _check_decoder(config, expect)


class _Expect:
    """What values must be; `expect(holds, key, wanted)` and shorthands of it."""

    def __init__(self, config: RunConfig):
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
    expect.one_of(("auto", "float32", "bfloat16"), "dtype")
    expect.at_least(1, "total_steps", "batch_size", "accumulate", "data.threads")
    expect.at_least(1, "log_every", "eval_every", "checkpoint_every", "keep")
    expect.at_least(2, "data.num_tokens", "data.validation_size")
    expect.at_least(0, "seed", "data.seed")
    expect.multiple("batch_size", "accumulate")
    if config.data.source == "tabletop":
        for key in ("data.path", "data.image_folder"):
            expect(not expect.value(key), key, "nothing: data.source is tabletop")
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
        if field.type is not str and field.type is not bool:
            optional = field.type is float or field.name == "local_layers"
            expect.at_least(0 if optional else 1, f"{tower}.{field.name}")
    expect.one_of(REMAT_POLICIES, f"{tower}.remat")


def _check_two_towers(config: RunConfig, expect: _Expect) -> None:
    expect.multiple("text_tower.width", "text_tower.num_heads")
    width = config.model.encoder.width
    expect(
        config.text_tower.out_dim == width,
        "text_tower.out_dim",
        f"model.encoder.width = {width}",
    )


def _check_decoder(config: RunConfig, expect: _Expect) -> None:
    expect.multiple("model.decoder.num_heads", "model.decoder.num_kv_heads")
    expect(config.model.decoder.head_dim % 2 == 0, "model.decoder.head_dim", "even")
    try:
        config.model.resolved_connections()
    except ValueError as error:
        raise ConfigError(f"config.model: {error}") from None
