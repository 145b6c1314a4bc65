"""The optimizer: rules that select trainable parameters, schedule, decoupled AdamW.

Everything here works on flat dicts of parameters by slash-joined name, such as
"llm/layers/mlp/linear".
"""

import re
from collections.abc import Callable, Iterable, Mapping

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax.traverse_util import flatten_dict

from hive_jax.config import OptimizerConfig, Rule
from hive_jax.console import text_table
from hive_jax.errors import ConfigError

# Parameters whose first axis indexes layers or connections.
STACKED = re.compile(r"(llm/layers|fusion|.*/encoderblock)/.*")


def assign_rules(
    names: Iterable[str],
    rules: tuple[Rule, ...],
    other_names: Callable[[], Iterable[str]] = lambda: (),
) -> dict[str, Rule]:
    """Returns the rule of each parameter: the first whose pattern matches its name.

    Args:
      names: slash-joined parameter names of the model.
      rules: ordered rules; patterns must match a whole name.
      other_names: returns parameter names of the model under its other fusions. A
        rule that matches one of these may be unused here, so one list of rules serves
        all fusions. Called only if a rule is unused, because it traces models.

    Raises:
      ConfigError: a parameter without a rule, a rule that decides nothing, or rules
        that freeze everything.
    """
    names = list(names)
    assigned = {}
    for name in names:
        rule = next((r for r in rules if _matches(r, name)), None)
        if rule is None:
            raise ConfigError(
                f"no rule of config.rules matches parameter {name!r}; add one, or end "
                f"the rules with ('.*', None) to freeze the rest"
            )
        assigned[name] = rule
    # A rule without effect is an error, because the likeliest cause, a misspelt pattern,
    # would silently train or freeze the wrong parameters.
    unused = [rule for rule in rules if rule not in assigned.values()]
    if unused:
        others = list(other_names())
        for rule in unused:
            if any(_matches(rule, name) for name in names):
                raise ConfigError(
                    f"config.rules: {rule.pattern!r} has no effect: earlier rules match "
                    f"all of its parameters; move it before them"
                )
            if not any(_matches(rule, name) for name in others):
                raise ConfigError(
                    f"config.rules: {rule.pattern!r} matches no parameter; the model "
                    f"has {', '.join(group_names(names))}"
                )
    if not any(trains(rule) for rule in assigned.values()):
        raise ConfigError("config.rules freeze every parameter: nothing would train")
    return assigned


def trains(rule: Rule) -> bool:
    """Returns whether parameters of this rule are trained."""
    return rule.multiplier is not None


def _matches(rule: Rule, name: str) -> bool:
    """Returns whether the rule matches; one with `layers` matches stacked parameters
    only."""
    if rule.layers and not STACKED.fullmatch(name):
        return False
    return re.fullmatch(rule.pattern, name) is not None


def split(params: Mapping, assigned: Mapping[str, Rule]) -> tuple[dict, dict]:
    """Splits flat parameters into (trainable, frozen).

    Args:
      params: parameters by name.
      assigned: rule of each parameter, from `assign_rules`.
    """
    trainable = {n: p for n, p in params.items() if trains(assigned[n])}
    frozen = {n: p for n, p in params.items() if not trains(assigned[n])}
    return trainable, frozen


def make_schedule(config: OptimizerConfig, total_steps: int) -> optax.Schedule:
    """Returns the learning-rate schedule: updates done -> rate of the next update.

    Linear from peak_lr / warmup_steps to peak_lr at the last warm-up step, then a
    cosine to min_lr at the last step.

    Args:
      config: peak_lr, min_lr and warmup_steps.
      total_steps: length of the run.
    """
    # A run shorter than its warm-up ends at peak_lr.
    warmup = max(1, min(config.warmup_steps, total_steps))
    # At least 1, not to divide by 0 in a run that ends with its warm-up.
    cosine_steps = max(total_steps - warmup, 1)

    def schedule(done):
        # Steps count from 1: the first update has a rate above 0, the last min_lr.
        step = jnp.asarray(done, jnp.float32) + 1.0
        progress = jnp.clip((step - warmup) / cosine_steps, 0.0, 1.0)
        cosine = 0.5 * (1.0 + jnp.cos(jnp.pi * progress))
        decayed = config.min_lr + (config.peak_lr - config.min_lr) * cosine
        return jnp.where(step < warmup, config.peak_lr * step / warmup, decayed)

    return schedule


def make_optimizer(
    config: OptimizerConfig, total_steps: int, assigned: Mapping[str, Rule]
) -> optax.GradientTransformation:
    """Returns AdamW over the trainable leaves, clipped by their global norm.

    Weight decay is fully decoupled (paper, table 3): it follows the shape of the
    schedule, schedule / peak_lr, and not the learning rate:
    p -= shape * (peak_lr * multiplier * adam + decay * p).

    Args:
      config: hyperparameters.
      total_steps: length of the run.
      assigned: rule of each parameter, from `assign_rules`.
    """
    schedule = make_schedule(config, total_steps)
    # The order matters. Layers outside of `rule.layers` are zeroed before the norm is
    # taken, so that they do not clip the others; and masked again at the end, so that
    # they do not decay. The decay comes after the rates, which must not scale it.
    # Adam's epsilon is 1e-8, the default of optax and of torch.
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
    """Scales each leaf by its rule's factor; layers outside `rule.layers` by 0."""

    def scale(name: str, leaf: jax.Array) -> jax.Array:
        rule = assigned[name]
        if not rule.layers:
            return leaf * factor(rule)
        # Only stacked parameters have a rule with layers: axis 0 is the layer.
        depth = leaf.shape[0]
        if max(rule.layers) > depth or min(rule.layers) < 1:
            raise ConfigError(
                f"config.rules: {rule.pattern!r} names layers {rule.layers}; {name} "
                f"has layers 1 to {depth}"
            )
        factors = np.zeros(depth, np.float32)
        factors[np.asarray(rule.layers) - 1] = factor(rule)
        # [L, 1, ..., 1]
        factors = factors.reshape((depth,) + (1,) * (leaf.ndim - 1))
        return leaf * jnp.broadcast_to(factors, leaf.shape)

    return optax.stateless(
        lambda updates, params: {n: scale(n, leaf) for n, leaf in updates.items()}
    )


def group_names(names) -> dict[str, list[str]]:
    """Groups parameter names by their first two levels: "llm/layers", "img/MAPHead_0"."""
    grouped = {}
    for name in sorted(names):
        grouped.setdefault("/".join(name.split("/")[:2]), []).append(name)
    return grouped


def parameter_table(
    shapes: Mapping[str, jax.ShapeDtypeStruct],
    assigned: Mapping[str, Rule],
    peak_lr: float,
) -> str:
    """Returns a text table of parameter groups: size, trainable or frozen, peak rate.

    Args:
      shapes: abstract parameters by name.
      assigned: rule of each parameter, from `assign_rules`.
      peak_lr: of the schedule, before the rules' multipliers.
    """
    rows, total, trainable = [], 0, 0
    for group, names in group_names(shapes).items():
        # A group is one row unless its parameters have different rates.
        by_rate = {}
        for name in names:
            by_rate.setdefault(assigned[name].multiplier, []).append(name)
        for multiplier, members in by_rate.items():
            count = sum(shapes[name].size for name in members)
            total += count
            if multiplier is None:
                rows.append((group, f"{count:,}", "frozen", ""))
                continue
            trainable += count
            rows.append(
                (group, f"{count:,}", "trainable", f"{peak_lr * multiplier:.1e}")
            )
    rows.append(("all", f"{total:,}", f"{trainable:,} trainable", ""))
    return text_table(("group", "parameters", "", "peak lr"), rows)


def relative_distances(before: dict, after: dict) -> dict[str, float]:
    """Returns |after - before| / |before|, L2 norms, of each parameter group.

    For a group that was all zero, |after| is returned instead.

    Args:
      before: nested dict of the parameters that may have changed.
      after: nested dict of all parameters later.
    """
    before, after = flatten_dict(before, sep="/"), flatten_dict(after, sep="/")
    # Frozen parameters count in the size of their group.
    # One at a time: see `integrity.fingerprint_arrays`.
    sums = {
        name: jax.device_get(_squares(before.get(name, leaf), leaf))
        for name, leaf in after.items()
    }
    distances = {}
    for group, names in group_names(sums).items():
        change = float(sum(sums[name][0] for name in names)) ** 0.5
        size = float(sum(sums[name][1] for name in names)) ** 0.5
        # `change` is |after| where all of `before` is 0, as in a gate.
        distances[group] = change / size if size else change
    return distances


@jax.jit  # a program for each shape
def _squares(before: jax.Array, after: jax.Array) -> tuple[jax.Array, jax.Array]:
    return jnp.sum(jnp.square(after - before)), jnp.sum(jnp.square(before))
