"""Plans: bytes of the state, collectives with their loops, advice, the command."""

import dataclasses
import importlib.util
import json
import os
import re
import subprocess
import sys
import types
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P
from kill_loop import FAST_COMPILATION

from hive_jax.config import MeshConfig
from hive_jax.errors import ConfigError, OutputError, UnavailableError
from hive_jax.models.layer_stack import SCANNED
from hive_jax.planning import report
from hive_jax.planning.advice import accumulate_that_fits, advise
from hive_jax.planning.hardware import CHIPS, GIB, Topology, find_topology, slice_shapes
from hive_jax.planning.hlo import Module
from hive_jax.planning.hlo_costs import (
    Collective,
    collectives,
    group_size,
    memory_traffic,
)
from hive_jax.planning.plan import (
    Compiled,
    Memory,
    Plan,
    compile_step,
    make_plan,
    shard_bytes,
)
from hive_jax.training import sharding

ROOT = Path(__file__).resolve().parents[2]
needs_libtpu = pytest.mark.skipif(
    importlib.util.find_spec("libtpu") is None, reason="needs libtpu"
)


@pytest.fixture(scope="module")
def mesh():
    return sharding.make_mesh(MeshConfig(1, 8, 1))


@pytest.fixture(scope="module")
def run(tiny_run, stage_rules):
    """Stage 3 in two parts, its layers scanned, on a mesh of 2 x 4."""
    made = tiny_run("hive", rules=stage_rules(3, "hive"), mesh=MeshConfig(2, 4, 1))
    return dataclasses.replace(
        made, batch_size=16, gradient_accumulation_steps=2, execution=SCANNED
    )


@pytest.fixture(scope="module")
def plan(run):
    return make_plan(run, find_topology("cpu:8"))


def module_of(function, *arguments) -> Module:
    return Module(jax.jit(function).lower(*arguments).compile().as_text())


# State and memory.


def test_bytes_of_the_state_are_those_of_its_arrays(plan, run, training):
    """Of a real state, on one of its devices."""
    mesh = sharding.make_mesh(run.mesh)
    whole = dataclasses.replace(run, batch_size=8, gradient_accumulation_steps=1)
    state = training(whole, mesh).start()

    def on_a_device(tree):
        return sum(x.addressable_shards[0].data.nbytes for x in jax.tree.leaves(tree))

    assert plan.state.parameters == on_a_device(state.params)
    assert plan.state.moments == on_a_device((state.opt_state, state.step))
    assert 0 < plan.state.trainable < plan.state.parameters
    # Two micro-batches of one sample a device: an image of 16 x 16, and for each of 6
    # tokens the id (4 bytes), whether it is a target and whether it sees the image.
    assert plan.state.batch == 2 * (16 * 16 * 3 + 6 * (4 + 1 + 1))


def test_bytes_of_a_shard(mesh):
    leaf = jax.ShapeDtypeStruct(
        (16, 3), jnp.bfloat16, sharding=NamedSharding(mesh, P("fsdp"))
    )
    assert shard_bytes(leaf) == 2 * 3 * 2


def test_memory_as_compiled(plan):
    memory = plan.compiled.memory
    assert memory.arguments == plan.state.bytes
    assert memory.temporaries > plan.state.trainable
    parts = memory.arguments, memory.temporaries, memory.outputs, memory.code
    assert memory.peak == sum(parts) == plan.needed
    assert plan.fits is None and plan.roofline is None and not list(advise(plan))
    assert plan.images_per_chip == 1 and plan.config.dtype == "float32"


# Programs as text.


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


# Machines.


@pytest.mark.parametrize(
    ("name", "wanted"),
    [
        ("v9:4x4", r"expected a chip \(v4, v5e, v5p, v6e\)"),
        ("cpu:none", "expected a chip"),
        ("v5e", "expected the chips along each axis after the colon, such as v5e:4x4"),
        ("v5e:4by4", "expected the chips along each axis"),
        ("v5e:4x4x4", "slices of v5e have 2 axes of 1 to 16 chips"),
        ("v5p:4x4", "slices of v5p have 3 axes"),
        ("cpu:4096", "already started with 8 CPU devices"),
    ],
)
def test_names_that_are_no_machine(name, wanted, monkeypatch):
    monkeypatch.setenv("XLA_FLAGS", os.environ["XLA_FLAGS"])
    with pytest.raises(ConfigError, match=f"topology is '{name}'.*{wanted}"):
        find_topology(name)


def test_machines_that_are_not_there(monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(UnavailableError, match="pip install libtpu") as error:
        find_topology("v5e:4x4")
    assert error.value.exit_code == 69
    with pytest.raises(UnavailableError, match="finds no GPU here"):
        find_topology("gpu")


def test_links_of_a_slice():
    v5e, v5p = CHIPS["v5e"], CHIPS["v5p"]
    assert [v5e.links(shape) for shape in [(1, 1), (4, 4), (8, 16), (16, 16)]] == [
        0,
        2,
        3,
        4,
    ]
    assert v5p.links((2, 2, 2)) == 3 and v5p.links((4, 4, 4)) == 6
    assert v5e.ici_bandwidth((4, 4)) == 90e9 and v5e.ici_bandwidth((1, 1)) is None
    assert (4, 4) in slice_shapes(v5e) and (2, 2, 2) in slice_shapes(v5p)


def test_meshes_and_batches_that_do_not_fit(run):
    machine = find_topology("cpu:8")
    with pytest.raises(ConfigError, match="number of devices, 8"):
        make_plan(dataclasses.replace(run, mesh=MeshConfig(1, 3, 1)), machine)
    with pytest.raises(ConfigError, match="cannot be sharded over .* = 8 devices"):
        make_plan(dataclasses.replace(run, batch_size=12), machine)


# What a plan says.


def on_v5e(plan: Plan, needed: float, **changes) -> Plan:
    """The plan as if 8 chips of v5e needed so many bytes each."""
    machine = Topology("v5e:2x4", CHIPS["v5e"], (2, 4), plan.topology.devices)
    large = needed > 15.75 * GIB
    memory = None if large else Memory(needed / 2, needed / 2, 0.0, 0.0, needed)
    compiled = Compiled(
        memory,
        needed=needed if large else None,
        available=15.75 * GIB if large else None,
        traffic=8.19e9,
        collectives=plan.compiled.collectives,
    )
    state = dataclasses.replace(
        plan.state, parameters=GIB, trainable=GIB / 2, moments=GIB
    )
    config = dataclasses.replace(plan.config, batch_size=1024, **changes)
    return dataclasses.replace(
        plan,
        topology=machine,
        compiled=compiled,
        state=state,
        config=config,
        static_bytes={fsdp: 8 * GIB / fsdp for fsdp in plan.static_bytes},
    )


def test_advice_where_it_does_not_fit(plan):
    large = on_v5e(plan, 30 * GIB)
    lines = list(advise(large))
    assert large.fits is False and large.available == 15.75 * GIB
    assert "Too large by 14.25 GiB" in lines[0] and "take 2.50 GiB" in lines[0]
    assert "config.mesh.fsdp=8" in lines[1] and "2.50 -> 1.00 GiB" in lines[1]
    assert "config.execution.encoder.remat=full" in lines[2]
    assert "config.execution.decoder.remat=full" in lines[2]
    # 2.5 + 27.5 x 2 / parts < 0.9 x 15.75, and parts divide the batch.
    assert "config.gradient_accumulation_steps=8 sends 16 images" in lines[3]
    assert "topology v5e:4x8 with config.mesh.fsdp=32" in lines[4]
    assert accumulate_that_fits(large) == 8
    described = report.describe(large)
    assert "It does not fit: a chip would need 30.00 GiB and has 15.75." in described
    assert json.loads(json.dumps(report.to_dict(large)))["fits"] is False


def test_advice_where_there_is_room(plan):
    small = on_v5e(plan, 4 * GIB)
    assert small.fits
    lines = list(advise(small))
    assert "11.75 GiB of each chip stay free (75%" in lines[0]
    # 2.5 + 1.5 x 2 / 1 = 5.5 GiB.
    assert (
        "config.gradient_accumulation_steps=1" in lines[1]
        and "about 5.50 GiB" in lines[1]
    )
    tight = on_v5e(plan, 15.5 * GIB)
    assert "0.25 GiB to spare" in next(advise(tight))


def test_times_of_a_plan(plan):
    small = on_v5e(plan, 4 * GIB, total_steps=3600)
    small = dataclasses.replace(small, flops=8 * 197e12)  # a second at the peak
    assert small.limits["compute"] == (197e12, 197e12, 1.0)
    assert small.limits["memory"] == (8.19e9, 819e9, 0.01)
    assert small.roofline == 1.0 and small.hours(small.roofline) == 1.0
    assert small.at_mfu(0.4) == 2.5
    slow = dataclasses.replace(small, flops=8 * 197e9)
    assert slow.roofline == 0.01 and slow.at_mfu(0.4) is None
    described = report.describe(small)
    assert "roofline (matrix products)" in described
    assert "40% of the peak, an assumption" in described
    stage = report.to_dict(small)["stage"]
    assert stage["roofline"]["chip_hours"] == 8.0
    assert stage["assumed_mfu_40%"]["hours"] == 2.5


def test_a_file_that_cannot_be_written_is_known_before_the_work(tmp_path):
    (tmp_path / "file").write_text("")
    for path in (tmp_path / "file" / "plan.json", tmp_path):
        with pytest.raises(OutputError, match="cannot write"):
            report.require_writable(str(path))
    report.require_writable(str(tmp_path / "new" / "plan.json"))
    assert not any((tmp_path / "new").iterdir())


def test_tables_keep_what_is_done(plan, run, tmp_path, monkeypatch):
    """Runs that do not fit are planned again in more parts."""

    def planned(config, machine):
        made = on_v5e(plan, 30 * GIB * 2 / config.gradient_accumulation_steps)
        config = dataclasses.replace(
            made.config, gradient_accumulation_steps=config.gradient_accumulation_steps
        )
        return dataclasses.replace(made, config=config)

    monkeypatch.setattr(report, "make_plan", planned)
    out = tmp_path / "new" / "pod.json"
    plans = []
    for made in report.plan_all([run, run], plan.topology, str(out)):
        plans.append(made)
        assert len(json.loads(out.read_text("utf-8"))) == len(plans)
    assert [made.config.gradient_accumulation_steps for made in plans] == [8, 8]
    lines = report.markdown(plans).splitlines()
    assert len(lines) == 4 and lines[2].startswith(f"| {run.name} | hive | 8 | 16 |")
    with pytest.raises(OutputError, match="cannot write"):
        report.require_writable(str(out / "below_a_file.json"))


def test_command(tmp_path):
    out = tmp_path / "plan.json"
    command = [sys.executable, "-m", "hive_jax.plan", "--config", "configs/stage1.py"]
    small = ("--config.model.num_connections=1", "--config.data.num_tokens=4")
    done = subprocess.run(
        [*command, "--topology=cpu:4", "--config.mesh.fsdp=2", *small, f"--out={out}"],
        cwd=ROOT,
        check=False,
        capture_output=True,
        text=True,
        env={**os.environ, "XLA_FLAGS": FAST_COMPILATION},
    )
    assert done.returncode == 0, done.stderr
    assert "cpu:4: 4 chips, mesh data=2 fsdp=2 tensor=1" in done.stdout
    values = json.loads(out.read_text("utf-8"))
    assert values["mesh"] == {"data": 2, "fsdp": 2, "tensor": 1}
    assert values["needed"] == values["compiled"]["memory"]["peak"] > 0
    assert values["run"]["rows_per_chip"] == 16 and values["fits"] is None


# With libtpu.


@needs_libtpu
def test_a_plan_on_tpus(run):
    machine = find_topology("v5e:2x4")
    assert len(machine.devices) == 8
    made = make_plan(dataclasses.replace(run, dtype="auto"), machine)
    assert made.fits and made.config.dtype == "bfloat16"
    assert made.compiled.collectives and made.roofline > 0
    memory = made.compiled.memory
    assert memory.arguments >= made.state.parameters + made.state.moments
    assert "It fits" in report.describe(made)


@needs_libtpu
def test_what_the_tpu_compiler_finds_too_large():
    machine = find_topology("v5e:2x2")
    mesh = sharding.make_mesh(MeshConfig(4, 1, 1), machine.devices)
    everywhere = sharding.replicated(mesh)
    x = jax.ShapeDtypeStruct((120_000, 120_000), jnp.bfloat16, sharding=everywhere)
    lowered = jax.jit(lambda x: ((x @ x) @ x).sum()).lower(x)
    program = types.SimpleNamespace(mesh=mesh, lower_train_step=lambda: lowered)
    found = compile_step(program)
    assert found.memory is None and found.available == 15.75 * GIB
    assert found.needed == pytest.approx(2 * 120_000**2 * 2, rel=0.01)


def test_every_chip_is_described():
    for name, chip in CHIPS.items():
        values = dataclasses.asdict(chip)
        assert values.pop("name") == name and values.pop("config") in ("", "megacore")
        assert all(np.asarray(value) > 0 for value in values.values())
