"""Tables of what trains, and of how far it moved."""

from collections.abc import Mapping

import jax
import jax.numpy as jnp
from flax.traverse_util import flatten_dict

from hive_jax.config import Rule
from hive_jax.console import text_table


def parts(names) -> dict[str, list[str]]:
    """Parameter names by part: the first two levels, "llm/layers", "img/MAPHead_0"."""
    grouped = {}
    for name in sorted(names):
        grouped.setdefault("/".join(name.split("/")[:2]), []).append(name)
    return grouped


def parameter_table(
    shapes: Mapping[str, jax.ShapeDtypeStruct],
    assigned: Mapping[str, Rule],
    peak_lr: float,
) -> str:
    """Part, parameters, trainable or frozen, peak learning rate; then the totals."""
    rows, total, trainable = [], 0, 0
    for part, names in parts(shapes).items():
        by_rate = {}
        for name in names:
            by_rate.setdefault(assigned[name].multiplier, []).append(name)
        for multiplier, members in by_rate.items():
            count = sum(shapes[name].size for name in members)
            total += count
            if multiplier is None:
                rows.append((part, f"{count:,}", "frozen", ""))
                continue
            trainable += count
            rows.append(
                (part, f"{count:,}", "trainable", f"{peak_lr * multiplier:.1e}")
            )
    rows.append(("all", f"{total:,}", f"{trainable:,} trainable", ""))
    return text_table(("part", "parameters", "", "peak lr"), rows)


def distances(before: dict, after: dict) -> dict[str, float]:
    """|after - before| / |before| of each part; a part that was all zero and moved
    has no ratio, and its |after| is given."""

    @jax.jit
    def squares(before, after):
        return {
            name: (jnp.sum(jnp.square(after[name] - leaf)), jnp.sum(jnp.square(leaf)))
            for name, leaf in before.items()
        }

    sums = jax.device_get(
        squares(flatten_dict(before, sep="/"), flatten_dict(after, sep="/"))
    )
    moved = {}
    for part, names in parts(sums).items():
        change = float(sum(sums[name][0] for name in names)) ** 0.5
        size = float(sum(sums[name][1] for name in names)) ** 0.5
        moved[part] = change / size if size else change
    return moved
