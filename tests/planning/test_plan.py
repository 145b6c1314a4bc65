"""Plans: bytes of the state, advice, times, tables, the command."""

import dataclasses
import importlib.util
import json
import os
import subprocess
import sys
import types
from pathlib import Path

import jax
import jax.numpy as jnp
import pytest
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

from hive_jax.config import MeshConfig, cli
from hive_jax.errors import ConfigError, OutputError
from hive_jax.models.execution import SCANNED
from hive_jax.planning import report
from hive_jax.planning.advice import accumulate_that_fits, advise
from hive_jax.planning.hardware import CHIPS, GIB, Topology, find_topology
from hive_jax.planning.plan import (
    Compiled,
    Memory,
    Plan,
    compile_step,
    make_plan,
    shard_bytes,
)
from hive_jax.training import sharding
from tools.fault_suite.micro_run import FAST_COMPILATION

ROOT = Path(__file__).resolve().parents[2]
needs_libtpu = pytest.mark.skipif(
    importlib.util.find_spec("libtpu") is None, reason="needs libtpu"
)


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


def test_meshes_and_batches_that_do_not_fit(run):
    machine = find_topology("cpu:8")
    with pytest.raises(ConfigError, match="number of devices, 8"):
        make_plan(dataclasses.replace(run, mesh=MeshConfig(1, 3, 1)), machine)
    with pytest.raises(ConfigError, match="cannot be sharded over .* = 8 devices"):
        make_plan(dataclasses.replace(run, batch_size=12), machine)


def test_the_small_recipe_fits_a_gpu_of_24_gb(monkeypatch):
    """Its largest stage, in the three quarters of the memory that JAX takes."""
    monkeypatch.setenv("XLA_FLAGS", os.environ["XLA_FLAGS"])
    config = cli.read_config("configs/stage3.py:small", [])
    plan = make_plan(config, find_topology("l4:1"))
    assert plan.fits and 8 * GIB < plan.needed < 0.75 * 24 * GIB
    assert plan.config.dtype == "bfloat16"
    # Matrix products at 40 % of 121 TFLOP/s, all stages together about two hours.
    assert 0.5 < plan.hours(plan.at_mfu(0.4)) < 1.5
    described = report.describe(plan)
    assert "It fits" in described and "temporaries are an upper bound" in described


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
