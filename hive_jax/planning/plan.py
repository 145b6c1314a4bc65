"""Ahead-of-time plan of a run on a machine: memory, work and time of a step."""

import dataclasses
import math
import re
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path

import jax
import numpy as np
from flax.traverse_util import flatten_dict

from hive_jax.config import MeshConfig, RunConfig
from hive_jax.planning.hardware import GIB, Topology
from hive_jax.planning.hlo import Module
from hive_jax.planning.hlo_costs import Collective, collectives, memory_traffic
from hive_jax.training import sharding
from hive_jax.training.flops import step_flops
from hive_jax.training.train_step import Program

# Model FLOPs utilisation that trainings of such sizes publish: levanter 1.4B on v3
# 42 %, MaxText 8B on v6e 45.5 %, axlearn 7B on v5e 46 %. Not measured on this code.
ASSUMED_MFU = (0.45, 0.40)


@dataclasses.dataclass(frozen=True)
class State:
    """Exact bytes of the arguments on each chip, from shapes, dtypes and shardings.

    Attributes:
      parameters: trainable and frozen, float32.
      trainable: trainable parameters alone; their gradients have the same size.
      moments: optimizer state and step counter.
      batch: all micro-batches of a global batch.
    """

    parameters: float
    trainable: float
    moments: float
    batch: float

    @property
    def bytes(self) -> float:
        return self.parameters + self.moments + self.batch


@dataclasses.dataclass(frozen=True)
class Memory:
    """Bytes on each chip while a compiled step runs.

    Attributes:
      arguments: with the padding of the chip's layouts, without unused arguments.
      temporaries: activations, gradients, gathered weights.
      outputs: outputs that are not aliased to (donated) arguments.
      code: the program itself.
      peak: the sum.
    """

    arguments: float
    temporaries: float
    outputs: float
    code: float
    peak: float


@dataclasses.dataclass(frozen=True)
class Compiled:
    """Compiler's figures for one step on one chip.

    Attributes:
      memory: None if the program is too large to be compiled.
      needed, available: bytes, of a program that is too large.
      xla_flops: by XLA's count, which counts the body of a loop once.
      traffic: bytes to and from HBM, times the iterations of loops; None if unknown.
      collectives: kind -> count and bytes, likewise.
      unknown_loops: loops with a data-dependent trip count; they count once.
      seconds: compile time.
    """

    memory: Memory | None
    needed: float | None = None
    available: float | None = None
    xla_flops: float | None = None
    traffic: float | None = None
    collectives: dict[str, Collective] | None = None
    unknown_loops: tuple[str, ...] = ()
    seconds: float = 0.0


@dataclasses.dataclass(frozen=True)
class Plan:
    """Cost of a train step of `config` on `topology`.

    Attributes:
      config: with its dtype resolved.
      mesh: axis -> size.
      state: exact bytes of the arguments on each chip.
      flops: model FLOPs of a whole step on all chips together; None for the contrastive
        objective.
      compiled: costs of the compiled step.
      static_bytes: fsdp -> bytes on each chip of parameters, moments and gradients.
    """

    config: RunConfig
    topology: Topology
    mesh: dict[str, int]
    state: State
    flops: float | None
    compiled: Compiled
    static_bytes: Mapping[int, float]

    @property
    def chips(self) -> int:
        return len(self.topology.devices)

    @property
    def images_per_chip(self) -> int:
        """Images of a micro-batch on each chip."""
        split = self.mesh["data"] * self.mesh["fsdp"]
        # Each chip has its share of a micro-batch.
        return (
            self.config.batch_size // self.config.gradient_accumulation_steps // split
        )

    @property
    def available(self) -> float | None:
        """Bytes of a chip's memory that a program may use; None if unknown."""
        return self.compiled.available or self.topology.chip.usable_bytes

    @property
    def needed(self) -> float | None:
        """Peak bytes on a chip; for a program that is too large, the compiler's
        estimate."""
        memory = self.compiled.memory
        return memory.peak if memory else self.compiled.needed

    @property
    def fits(self) -> bool | None:
        """Whether the step fits in memory; None if the chip's memory is unknown."""
        if self.compiled.needed is not None:
            return False
        if self.needed is None or self.available is None:
            return None
        return self.needed <= self.available

    @property
    def limits(self) -> dict[str, tuple[float, float, float]]:
        """Resource -> (amount a step needs of a chip, amount/s of the chip, seconds),
        for resources of which both are known."""
        chip, collectives = self.topology.chip, self.compiled.collectives
        # None for a program that was not compiled.
        received = None
        if collectives is not None:
            received = sum(c.received for c in collectives.values())
        amounts = {
            "compute": (self.flops and self.flops / self.chips, chip.peak_flops),
            "memory": (self.compiled.traffic, chip.hbm_bandwidth),
            "interconnect": (received, self.topology.ici_bandwidth),
        }
        return {
            name: (amount, rate, amount / rate)
            for name, (amount, rate) in amounts.items()
            if amount is not None and rate
        }

    @property
    def roofline(self) -> float | None:
        """Lower bound in seconds of a step: the slowest limit, all overlapping."""
        # The slowest, not the sum: a roofline lets computation hide all transfers.
        return max((seconds for *_, seconds in self.limits.values()), default=None)

    def at_mfu(self, utilisation: float) -> float | None:
        """Returns seconds of a step at this MFU; None if below the roofline."""
        if "compute" not in self.limits:
            return None
        seconds = self.limits["compute"][2] / utilisation
        # No program is faster than its slowest limit.
        return seconds if seconds >= self.roofline else None

    def hours(self, seconds: float) -> float:
        """Returns hours of the whole stage at `seconds` a step."""
        return seconds * self.config.total_steps / 3600


def make_plan(config: RunConfig, topology: Topology) -> Plan:
    """Compiles the train step of a run for a machine, without running it.

    Args:
      config: the run; dtype "auto" is resolved for the chip of the topology.
      topology: the machine to plan for.

    Raises:
      ConfigError: the mesh does not fit the number of chips, or the batch the mesh.
    """
    if config.dtype == "auto":  # which would look at the machine that plans
        dtype = "float32" if topology.chip.name == "cpu" else "bfloat16"
        config = dataclasses.replace(config, dtype=dtype)
    # The program of the trainer, on devices that need not exist here.
    mesh = sharding.make_mesh(config.mesh, topology.devices)
    program = Program(config, mesh)
    return Plan(
        config=config,
        topology=topology,
        mesh=dict(mesh.shape),
        state=argument_bytes(program),
        flops=step_flops(config, program.assigned),
        compiled=compile_step(program),
        static_bytes=_static_bytes(program, topology),
    )


def _static_bytes(program: Program, topology: Topology) -> dict[int, float]:
    """Computes `Plan.static_bytes` for each fsdp size that divides the chips."""
    tensor = program.config.mesh.tensor
    params = flatten_dict(program.abstract_params, sep="/")

    def on_each_chip(fsdp: int) -> float:
        # Every other device goes to the data axis.
        mesh = sharding.make_mesh(MeshConfig(-1, fsdp, tensor), topology.devices)
        total = 0.0
        for name, leaf in params.items():
            shard = sharding.param_sharding(mesh, name, leaf.shape).shard_shape
            # Itself and, if it trains, a gradient and two moments.
            copies = 1 if program.assigned[name].multiplier is None else 4
            total += copies * math.prod(shard(leaf.shape)) * leaf.dtype.itemsize
        return total

    return {n: on_each_chip(n) for n in divisors(len(topology.devices) // tensor)}


def divisors(number: int) -> list[int]:
    """Returns all divisors of a positive number, in increasing order."""
    return [divisor for divisor in range(1, number + 1) if number % divisor == 0]


def argument_bytes(program: Program) -> State:
    """Returns the bytes of state and batch on each chip."""
    state, assigned = program.abstract_state, program.assigned
    names = jax.tree_util.tree_leaves_with_path(state.params)
    trainable = 0.0
    for path, leaf in names:
        name = "/".join(key.key for key in path)
        if assigned[name].multiplier is not None:
            trainable += shard_bytes(leaf)
    return State(
        parameters=sum(map(shard_bytes, jax.tree.leaves(state.params))),
        trainable=trainable,
        moments=sum(map(shard_bytes, jax.tree.leaves((state.opt_state, state.step)))),
        batch=program.config.gradient_accumulation_steps
        * sum(map(shard_bytes, jax.tree.leaves(program.batch))),
    )


def shard_bytes(leaf: jax.ShapeDtypeStruct) -> float:
    """Returns the bytes of a sharded array on each device."""
    return float(np.prod(leaf.sharding.shard_shape(leaf.shape)) * leaf.dtype.itemsize)


def compile_step(program: Program) -> Compiled:
    """Compiles the train step of a program; exceeding the memory is not an error."""
    lowered, start = program.lower_train_step(), time.perf_counter()
    try:
        compiled, text = _compiled(lowered, program.mesh.devices.flat[0].platform)
    # The TPU compiler refuses a program that is too large, and says how much it needs.
    except jax.errors.JaxRuntimeError as error:
        needed_and_available = _parse_out_of_memory(str(error))
        if needed_and_available is None:
            raise
        seconds = time.perf_counter() - start
        return Compiled(None, *needed_and_available, seconds=seconds)
    seconds = time.perf_counter() - start
    module = Module(text)
    return Compiled(
        _memory(compiled.memory_analysis()),
        # Not every backend has a cost analysis.
        xla_flops=(compiled.cost_analysis() or {}).get("flops"),
        traffic=memory_traffic(module),
        collectives=collectives(module),
        unknown_loops=tuple(sorted(module.unknown_loops)),
        seconds=seconds,
    )


def _compiled(lowered: jax.stages.Lowered, platform: str):
    """Returns (compiled, HLO text). `as_text` parses the program, which fails for a
    libtpu newer than jax; there the text comes from the compiler's own dump."""
    if platform != "tpu":
        compiled = lowered.compile()
        return compiled, compiled.as_text()
    with tempfile.TemporaryDirectory(prefix="hive_jax_plan_") as folder:
        options = {"xla_dump_to": folder, "xla_dump_hlo_as_text": True}
        compiled = lowered.compile(compiler_options=options)
        (path,) = Path(folder).glob("*.after_optimizations.txt")
        return compiled, path.read_text("utf-8")


def _memory(stats) -> Memory:
    components = (
        stats.argument_size_in_bytes,
        stats.temp_size_in_bytes,
        # Donated arguments become outputs: those bytes are counted above.
        stats.output_size_in_bytes - stats.alias_size_in_bytes,
        stats.generated_code_size_in_bytes,
    )
    return Memory(*map(float, components), peak=float(sum(components)))


def _parse_out_of_memory(message: str) -> tuple[float, float] | None:
    """Parses (needed, available) bytes from an out-of-memory message; None for others.

    "... memory required for HLO temporaries (19.85G) exceeds available HBM (15.75G)";
    "... in memory space hbm. Used 19.85G of 15.75G hbm." Both count the arguments.
    """
    number = r"([\d.]+)([KMGT]?)"
    for pattern in (
        rf"\({number}\) exceeds available HBM \({number}\)",
        rf"Used {number} of {number} hbm",
    ):
        if match := re.search(pattern, message):
            scale = {"": 1, "K": 2**10, "M": 2**20, "G": GIB, "T": 2**40}
            needed, unit, available, other_unit = match.groups()
            return float(needed) * scale[unit], float(available) * scale[other_unit]
    return None
