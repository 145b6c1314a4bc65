"""Programs as text: collectives, memory traffic and loops."""

import re
import types

import jax
import jax.numpy as jnp
import pytest
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

from hive_jax.planning.hlo import Module
from hive_jax.planning.hlo_costs import (
    Collective,
    collectives,
    group_size,
    memory_traffic,
)


def module_of(function, *arguments) -> Module:
    return Module(jax.jit(function).lower(*arguments).compile().as_text())


def test_collectives_count_as_often_as_their_loop_runs(mesh):
    """A scan over 7 layers, split over 8 devices, inside a scan of 3."""

    def step(weights, x):
        def layer(x, w):
            return jnp.tanh(x @ w), None

        def again(x, _):
            return jax.lax.scan(layer, x, weights)[0], None

        return jax.lax.scan(again, x, length=3)[0]

    split = NamedSharding(mesh, P(None, None, "fsdp"))
    weights = jax.ShapeDtypeStruct((7, 64, 64), jnp.float32, sharding=split)
    rows = NamedSharding(mesh, P("fsdp"))
    x = jax.ShapeDtypeStruct((16, 64), jnp.float32, sharding=rows)
    printed = jax.jit(step, out_shardings=rows).lower(weights, x).compile().as_text()
    module = Module(printed)
    assert module.partitions == 8 and not module.unknown_loops
    assert set(module.runs.values()) >= {1, 3, 21}
    found = collectives(module)
    gathered = 21 * 64 * 64 * 4  # the weights of a layer, in every round
    assert found["all-gather"] == Collective(21, gathered, gathered * 7 / 8)
    # TPUs' programs have no counts of their own: the conditions have to do.
    plain = re.sub(r'"known_trip_count":\{[^}]*\},?', "", printed)
    assert "known_trip_count" not in plain
    assert collectives(Module(plain)) == found


def test_bytes_of_an_all_reduce(mesh):
    x = jax.ShapeDtypeStruct(
        (8, 1000), jnp.float32, sharding=NamedSharding(mesh, P("fsdp"))
    )
    (found,) = collectives(module_of(lambda x: x.sum(axis=0), x)).items()
    kind, reduce = found
    assert kind == "all-reduce"
    assert (reduce.count, reduce.bytes) == (1, 4000)
    assert reduce.received == 2 * 4000 * 7 / 8


def test_a_loop_that_depends_on_data_is_named():
    module = module_of(
        lambda n: jax.lax.while_loop(lambda x: x < n, lambda x: x + 2, 0), 10
    )
    assert len(module.unknown_loops) == 1
    fixed = module_of(
        lambda x: jax.lax.fori_loop(3, 10, lambda i, x: jnp.sin(x) * i, x), jnp.ones(9)
    )
    assert not fixed.unknown_loops and 7 in fixed.runs.values()


def test_traffic_of_slices_and_of_whole_arrays():
    ones = jnp.ones((1000,), jnp.float32)
    assert memory_traffic(module_of(lambda x: x + 1, ones)) == 8000
    table = jnp.ones((100, 1000), jnp.float32)

    def total(table):
        return jax.lax.scan(lambda sum_, row: (sum_ + row, None), table[0], table)[0]

    # Each round reads a row and the sum, and writes the sum.
    assert memory_traffic(module_of(total, table)) == pytest.approx(1.2e6, rel=0.05)


@pytest.mark.parametrize(
    ("groups", "size"),
    [
        ("{{0,1,2,3},{4,5,6,7}}", 4),
        ("[2,8]<=[16]", 8),
        ("[4,2]<=[2,4]T(1,0)", 2),
        ("mesh['a'=2,'b'=4] {'b'}", 4),
        ("mesh['a'=2,'b'=4] {'a','b'}", 8),
        ("mesh['a'=2,'b'=8] {'b':(1)4}", 4),
        ("{}", 16),
    ],
)
def test_groups_of_collectives(groups, size):
    line = types.SimpleNamespace(attributes=f"channel_id=1, replica_groups={groups}, x")
    assert group_size(line, partitions=16) == size


# As libtpu prints a scan of 7 rounds whose all-gather is spread over other work, and a
# reduce-scatter; shortened.
TPU = """HloModule jit_f, num_partitions=4

%start (p.1: bf16[16,64]) -> (bf16[16,64], bf16[64,64]) {
  %p.1 = bf16[16,64]{1,0:T(8,128)(2,1)} parameter(0)
  %all-gather.1 = bf16[64,64]{1,0} all-gather(%p.1), channel_id=7, replica_groups=mesh['x'=4] {'x'}, dimensions={0}
  ROOT %custom-call.1 = (bf16[16,64]{1,0}, bf16[64,64]{1,0}) custom-call(%all-gather.1), custom_call_target="AsyncCollectiveStart"
}

%done (p.2: bf16[16,64]) -> bf16[64,64] {
  %p.2 = bf16[16,64]{1,0:T(8,128)(2,1)} parameter(0)
  %all-gather.2 = bf16[64,64]{1,0} all-gather(%p.2), channel_id=7, replica_groups=mesh['x'=4] {'x'}, dimensions={0}
  ROOT %custom-call.2 = bf16[64,64]{1,0} custom-call(%all-gather.2), custom_call_target="AsyncCollectiveDone"
}

%scatter (p.3: f32[64,64], p.4: s32[]) -> f32[16,64] {
  %p.3 = f32[64,64]{1,0} parameter(0)
  %p.4 = s32[] parameter(1)
  %all-reduce.1 = f32[64,64]{1,0} all-reduce(%p.3), channel_id=9, replica_groups={{0,1,2,3}}, to_apply=%sum
  ROOT %dynamic-slice.1 = f32[16,64]{1,0} dynamic-slice(%all-reduce.1, %p.4), dynamic_slice_sizes={16,64}
}

%body (t.1: (s32[], bf16[16,64])) -> (s32[], bf16[16,64]) {
  %t.1 = (s32[]{:T(128)}, bf16[16,64]{1,0}) parameter(0)
  %i.1 = s32[]{:T(128)} get-tuple-element(%t.1), index=0
  %x.1 = bf16[16,64]{1,0} get-tuple-element(%t.1), index=1
  %one = s32[] constant(1)
  %next = s32[] add(%i.1, %one)
  %s = (bf16[16,64]{1,0}, bf16[64,64]{1,0}) fusion(%x.1), kind=kCustom, calls=%start
  %e.1 = bf16[64,64]{1,0} fusion(%x.1), kind=kCustom, calls=%done
  ROOT %r.1 = (s32[], bf16[16,64]{1,0}) tuple(%next, %x.1)
}

%condition (t.2: (s32[], bf16[16,64])) -> pred[] {
  %t.2 = (s32[]{:T(128)}, bf16[16,64]{1,0}) parameter(0)
  %i.2 = s32[]{:T(128)} get-tuple-element(%t.2), index=0
  %seven = s32[]{:T(128)} constant(7)
  ROOT %lt = pred[]{:T(512)} compare(%i.2, %seven), direction=LT
}

ENTRY %main (a: bf16[16,64], b: f32[64,64]) -> f32[16,64] {
  %a = bf16[16,64]{1,0} parameter(0)
  %b = f32[64,64]{1,0} parameter(1)
  %zero = s32[] constant(0)
  %copy.1 = s32[]{:T(128)} copy(%zero)
  %t.3 = (s32[], bf16[16,64]{1,0}) tuple(%copy.1, %a)
  %w = (s32[]{:T(128)}, bf16[16,64]{1,0}) while(%t.3), condition=%condition, body=%body
  %f = f32[64,64]{1,0:T(8,128)S(1)} fusion(%b), kind=kLoop, calls=%sum
  ROOT %o = f32[16,64]{1,0} fusion(%f, %zero), kind=kCustom, calls=%scatter
}

%sum (p.5: f32[64,64]) -> f32[64,64] {
  %p.5 = f32[64,64]{1,0} parameter(0)
  ROOT %n = f32[64,64]{1,0} negate(%p.5)
}
"""


def test_programs_of_tpus():
    module = Module(TPU)
    assert module.runs["body"] == 7 and not module.unknown_loops
    found = collectives(module)
    assert found.keys() == {"all-gather", "reduce-scatter"}
    gather, scatter = found["all-gather"], found["reduce-scatter"]
    assert (gather.count, gather.bytes) == (7, 7 * 64 * 64 * 2)
    assert gather.received == gather.bytes * 3 / 4
    assert (scatter.count, scatter.bytes) == (1, 64 * 64 * 4)
    assert scatter.received == scatter.bytes * 3 / 4
