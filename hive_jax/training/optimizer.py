"""Which parameters train, and fully decoupled AdamW over them.

Everything here works on flat dicts, name -> leaf, with names as in
"llm/layers/mlp/linear".
"""

import re
from collections.abc import Callable, Iterable, Mapping

import jax
import jax.numpy as jnp
import numpy as np
import optax

from hive_jax.config import OptimizerConfig, Rule
from hive_jax.errors import ConfigError
from hive_jax.training.report import parts

# Parameters with the layers, or connections, of a stack on their first axis.
STACKED = re.compile(r"(llm/layers|fusion|.*/encoderblock)/.*")


def assign_rules(
    names: Iterable[str],
    rules: tuple[Rule, ...],
    elsewhere: Callable[[], Iterable[str]] = lambda: (),
) -> dict[str, Rule]:
    """The rule of each parameter: the first whose pattern matches its whole name.

    Raises ConfigError for a parameter without a rule, and for a rule that decides
    nothing here unless it would match one of `elsewhere()`: names of the model under
    its other fusions, so that one list of rules serves all of them.
    """
    names = list(names)
    for rule in rules:
        try:
            re.compile(rule.pattern)
        except re.error as error:
            raise ConfigError(f"config.rules: {rule.pattern!r}: {error}") from None
    assigned = {}
    for name in names:
        rule = next((r for r in rules if _matches(r, name)), None)
        if rule is None:
            raise ConfigError(
                f"no rule of config.rules matches parameter {name!r}; add one, or end "
                f"the rules with ('.*', None) to freeze the rest"
            )
        assigned[name] = rule
    idle = [rule for rule in rules if rule not in assigned.values()]
    if idle:
        others = list(elsewhere())
        for rule in idle:
            if any(_matches(rule, name) for name in names):
                raise ConfigError(
                    f"config.rules: {rule.pattern!r} decides nothing, for earlier "
                    f"rules match all that it matches; put it before them"
                )
            if not any(_matches(rule, name) for name in others):
                raise ConfigError(
                    f"config.rules: {rule.pattern!r} matches no parameter; the model "
                    f"has {', '.join(parts(names))}"
                )
    if not any(trains(rule) for rule in assigned.values()):
        raise ConfigError("config.rules freeze every parameter: nothing would train")
    return assigned


def trains(rule: Rule) -> bool:
    return rule.multiplier is not None


def _matches(rule: Rule, name: str) -> bool:
    """A rule with `layers` speaks of stacked parameters alone."""
    if rule.layers and not STACKED.fullmatch(name):
        return False
    return re.fullmatch(rule.pattern, name) is not None


def split(params: Mapping, assigned: Mapping[str, Rule]) -> tuple[dict, dict]:
    """A flat dict as (trainable, frozen)."""
    trainable = {n: p for n, p in params.items() if trains(assigned[n])}
    frozen = {n: p for n, p in params.items() if not trains(assigned[n])}
    return trainable, frozen


def learning_rate(config: OptimizerConfig, total_steps: int) -> optax.Schedule:
    """Updates done -> learning rate of the next: linear from peak / warm-up to peak at
    the last step of the warm-up, then a cosine to the minimum at the last step."""
    warmup = max(1, min(config.warmup_steps, total_steps))
    cosine_steps = max(total_steps - warmup, 1)

    def schedule(done):
        step = jnp.asarray(done, jnp.float32) + 1.0
        progress = jnp.clip((step - warmup) / cosine_steps, 0.0, 1.0)
        cosine = 0.5 * (1.0 + jnp.cos(jnp.pi * progress))
        fall = config.min_lr + (config.peak_lr - config.min_lr) * cosine
        return jnp.where(step < warmup, config.peak_lr * step / warmup, fall)

    return schedule


def make_optimizer(
    config: OptimizerConfig, total_steps: int, assigned: Mapping[str, Rule]
) -> optax.GradientTransformation:
    """AdamW over the trainable leaves, clipped by their global norm.

    Weight decay is fully decoupled (paper, table 3): it follows the schedule's shape
    and not the learning rate, p -= shape * (peak_lr * multiplier * adam + decay * p).
    """
    schedule = learning_rate(config, total_steps)
    return optax.chain(
        _scale_leaves(assigned, lambda rule: 1.0),
        optax.clip_by_global_norm(config.clip_norm),
        optax.scale_by_adam(config.beta1, config.beta2),
        _scale_leaves(assigned, lambda rule: rule.multiplier * config.peak_lr),
        optax.add_decayed_weights(config.weight_decay),
        _scale_leaves(assigned, lambda rule: -1.0),
        optax.scale_by_schedule(lambda step: schedule(step) / config.peak_lr),
    )


def _scale_leaves(
    assigned: Mapping[str, Rule], factor: Callable[[Rule], float]
) -> optax.GradientTransformation:
    """Multiplies each leaf by its rule's factor, and by 0 the layers it leaves out."""

    def scale(name: str, leaf: jax.Array) -> jax.Array:
        rule = assigned[name]
        if not rule.layers:
            return leaf * factor(rule)
        depth = leaf.shape[0]
        if max(rule.layers) > depth or min(rule.layers) < 1:
            raise ConfigError(
                f"config.rules: {rule.pattern!r} names layers {rule.layers}; {name} "
                f"has layers 1 to {depth}"
            )
        chosen = np.zeros(depth, np.float32)
        chosen[np.asarray(rule.layers) - 1] = factor(rule)
        chosen = chosen.reshape((depth,) + (1,) * (leaf.ndim - 1))
        return leaf * jnp.broadcast_to(chosen, leaf.shape)

    return optax.stateless(
        lambda updates, params: {n: scale(n, leaf) for n, leaf in updates.items()}
    )
