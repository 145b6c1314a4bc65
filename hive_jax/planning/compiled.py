"""A train step, compiled for a machine that need not be here: what it takes."""

import dataclasses
import re
import tempfile
import time
from pathlib import Path

import jax
import numpy as np

from hive_jax.planning.chips import GIB
from hive_jax.planning.collectives import Collective, collectives
from hive_jax.planning.hlo import Module
from hive_jax.planning.traffic import memory_traffic
from hive_jax.training.program import Program


@dataclasses.dataclass(frozen=True)
class State:
    """Bytes of the arguments on each chip, exact, from shapes, dtypes and shardings.

    Attributes:
      parameters: trainable and frozen, float32.
      trainable: of these, the trainable; their gradients have the same size.
      moments: of the optimizer, and its counters.
      batch: all parts of a global batch.
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
    """Bytes on each chip while a step runs, as compiled.

    Attributes:
      arguments: with the padding of the chip's layouts, without what nothing reads.
      temporaries: activations, gradients, gathered weights.
      outputs: that do not take the place of an argument.
      code: the program itself.
      peak: of all of them together.
    """

    arguments: float
    temporaries: float
    outputs: float
    code: float
    peak: float


@dataclasses.dataclass(frozen=True)
class Compiled:
    """What the compiler says of one step on one chip.

    Attributes:
      memory: None if the program is too large to be compiled.
      needed, available: bytes, of a program that is too large.
      xla_flops: by XLA's count, which takes the body of a loop once.
      traffic: bytes to and from HBM, loops as often as they run; None if not read.
      collectives: kind -> count and bytes, likewise.
      unknown_loops: loops whose rounds are decided by the data; they count once.
      seconds: that compiling took.
    """

    memory: Memory | None
    needed: float | None = None
    available: float | None = None
    xla_flops: float | None = None
    traffic: float | None = None
    collectives: dict[str, Collective] | None = None
    unknown_loops: tuple[str, ...] = ()
    seconds: float = 0.0


def state_of(program: Program) -> State:
    """The exact part of a step's memory."""
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
    """Bytes of an array on each of its devices."""
    return float(np.prod(leaf.sharding.shard_shape(leaf.shape)) * leaf.dtype.itemsize)


def compile_step(program: Program) -> Compiled:
    """Compiles the train step of a program; one that is too large is no error."""
    lowered, start = program.lower_train_step(), time.perf_counter()
    try:
        compiled, text = _compiled(lowered, program.mesh.devices.flat[0].platform)
    except jax.errors.JaxRuntimeError as error:
        amounts = _amounts(str(error))
        if amounts is None:
            raise
        seconds = time.perf_counter() - start
        return Compiled(None, *amounts, seconds=seconds)
    seconds = time.perf_counter() - start
    module = Module(text)
    return Compiled(
        _memory(compiled.memory_analysis()),
        xla_flops=(compiled.cost_analysis() or {}).get("flops"),
        traffic=memory_traffic(module),
        collectives=collectives(module),
        unknown_loops=tuple(sorted(module.unknown_loops)),
        seconds=seconds,
    )


def _compiled(lowered: jax.stages.Lowered, platform: str):
    """(compiled, its text). jax reads a program back before it prints it, which fails
    for programs of a libtpu that is newer than jax; the compiler prints them itself."""
    if platform != "tpu":
        compiled = lowered.compile()
        return compiled, compiled.as_text()
    with tempfile.TemporaryDirectory(prefix="hive_jax_plan_") as folder:
        options = {"xla_dump_to": folder, "xla_dump_hlo_as_text": True}
        compiled = lowered.compile(compiler_options=options)
        (path,) = Path(folder).glob("*.after_optimizations.txt")
        return compiled, path.read_text("utf-8")


def _memory(stats) -> Memory:
    parts = (
        stats.argument_size_in_bytes,
        stats.temp_size_in_bytes,
        stats.output_size_in_bytes - stats.alias_size_in_bytes,
        stats.generated_code_size_in_bytes,
    )
    return Memory(*map(float, parts), peak=float(sum(parts)))


def _amounts(message: str) -> tuple[float, float] | None:
    """(needed, available) bytes of the compiler's complaint, None if it is another.

    "... memory required for HLO temporaries (19.85G) exceeds available HBM (15.75G)";
    "... in memory space hbm. Used 19.85G of 15.75G hbm." Both count the arguments.
    """
    number = r"([\d.]+)([KMGT]?)"
    for pattern in (
        rf"\({number}\) exceeds available HBM \({number}\)",
        rf"Used {number} of {number} hbm",
    ):
        if found := re.search(pattern, message):
            scale = {"": 1, "K": 2**10, "M": 2**20, "G": GIB, "T": 2**40}
            needed, unit, available, other = found.groups()
            return float(needed) * scale[unit], float(available) * scale[other]
    return None
