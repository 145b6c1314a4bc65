"""A run planned on a machine: memory, work and time of a step, hours of the stage."""

import dataclasses
import math

from flax.traverse_util import flatten_dict

from hive_jax.benchmark.flops import step_flops
from hive_jax.config import MeshConfig, RunConfig
from hive_jax.planning import advice
from hive_jax.planning.compiled import Compiled, State, compile_step, state_of
from hive_jax.planning.topology import Topology
from hive_jax.training import sharding
from hive_jax.training.program import Program

# Model FLOPs utilisation that trainings of such sizes publish: levanter 1.4B on v3
# 42 %, MaxText 8B on v6e 45.5 %, axlearn 7B on v5e 46 %. Not measured on this code.
ASSUMED_MFU = (0.45, 0.40)


@dataclasses.dataclass(frozen=True)
class Plan:
    """What a step of `config` takes on `topology`.

    Attributes:
      config: with its dtype decided.
      state: exact bytes of the arguments on each chip.
      flops: of the matrix products of a whole step, all chips together, without any
        recomputation; None for objectives that are not counted.
      compiled: what the compiler says.
      advice: what to change, the first first.
    """

    config: RunConfig
    topology: Topology
    mesh: dict[str, int]
    state: State
    flops: float | None
    compiled: Compiled
    advice: tuple[str, ...] = ()

    @property
    def chips(self) -> int:
        return len(self.topology.devices)

    @property
    def rows(self) -> int:
        """Images on a chip at a time."""
        split = self.mesh["data"] * self.mesh["fsdp"]
        return (
            self.config.batch_size // self.config.gradient_accumulation_steps // split
        )

    @property
    def available(self) -> float | None:
        """Bytes of a chip's memory that a program may use."""
        return self.compiled.available or self.topology.chip.usable_bytes

    @property
    def needed(self) -> float | None:
        """Bytes on a chip; of a program that is too large, as the compiler says."""
        memory = self.compiled.memory
        return memory.peak if memory else self.compiled.needed

    @property
    def fits(self) -> bool | None:
        """None where the memory of the chip is not known."""
        if self.compiled.needed is not None:
            return False
        if self.needed is None or self.available is None:
            return None
        return self.needed <= self.available

    @property
    def limits(self) -> dict[str, tuple[float, float, float]]:
        """name -> (amount of a step on a chip, what the chip does a second, seconds),
        as far as both are known."""
        chip, collectives = self.topology.chip, self.compiled.collectives
        received = collectives and sum(c.received for c in collectives.values())
        found = {
            "compute": (self.flops and self.flops / self.chips, chip.peak_flops),
            "memory": (self.compiled.traffic, chip.hbm_bandwidth),
            "interconnect": (received, self.topology.ici_bandwidth),
        }
        return {
            name: (amount, rate, amount / rate)
            for name, (amount, rate) in found.items()
            if amount is not None and rate
        }

    @property
    def roofline(self) -> float | None:
        """Seconds that a step takes at least: its slowest limit, all overlapped."""
        return max((seconds for *_, seconds in self.limits.values()), default=None)

    def at_mfu(self, utilisation: float) -> float | None:
        """Seconds of a step at a share of the peak; None if a limit is slower."""
        if "compute" not in self.limits:
            return None
        seconds = self.limits["compute"][2] / utilisation
        return seconds if seconds >= self.roofline else None

    def hours(self, seconds: float) -> float:
        """Of the whole stage, at so many seconds a step."""
        return seconds * self.config.total_steps / 3600

    def to_dict(self) -> dict:
        """Numbers and names, for JSON: bytes, FLOPs, seconds, hours."""
        config, chip, compiled = self.config, self.topology.chip, self.compiled
        stage = {}
        if self.roofline is not None and self.fits is not False:
            times = {"roofline": self.roofline}
            for share in ASSUMED_MFU:
                times[f"assumed_mfu_{share:.0%}"] = self.at_mfu(share)
            for name, seconds in times.items():
                hours = None if seconds is None else self.hours(seconds)
                stage[name] = {
                    "step_seconds": seconds,
                    "hours": hours,
                    "chip_hours": hours and hours * self.chips,
                }
        return {
            "run": {
                "name": config.name,
                "fusion": config.model.fusion,
                "dtype": config.dtype,
                "batch_size": config.batch_size,
                "gradient_accumulation_steps": config.gradient_accumulation_steps,
                "rows_per_chip": self.rows,
                "total_steps": config.total_steps,
                "remat": [
                    config.execution.encoder.remat,
                    config.execution.decoder.remat,
                ],
            },
            "topology": self.topology.name,
            "chips": self.chips,
            "chip": dataclasses.asdict(chip),
            "ici_bandwidth": self.topology.ici_bandwidth,
            "mesh": self.mesh,
            "state": dataclasses.asdict(self.state),
            "compiled": dataclasses.asdict(compiled),
            "needed": self.needed,
            "available": self.available,
            "fits": self.fits,
            "flops": self.flops,
            "limits": {
                name: {"amount": amount, "rate": rate, "seconds": seconds}
                for name, (amount, rate, seconds) in self.limits.items()
            },
            "stage": stage,
            "advice": list(self.advice),
        }


def make_plan(config: RunConfig, topology: Topology) -> Plan:
    """Compiles the train step of a run for a machine.

    Raises:
      ConfigError: the mesh does not fit the number of chips, or the batch the mesh.
    """
    if config.dtype == "auto":  # which would look at the machine that plans
        dtype = "float32" if topology.chip.name == "cpu" else "bfloat16"
        config = dataclasses.replace(config, dtype=dtype)
    mesh = sharding.make_mesh(config.mesh, topology.devices)
    program = Program(config, mesh)
    flops = None
    if config.objective == "caption":
        flops = step_flops(config, program.assigned)
    plan = Plan(
        config=config,
        topology=topology,
        mesh=dict(mesh.shape),
        state=state_of(program),
        flops=flops,
        compiled=compile_step(program),
    )
    split = _splitter(config, topology, program)
    return dataclasses.replace(plan, advice=tuple(advice.advise(plan, split)))


def _splitter(config: RunConfig, topology: Topology, program: Program):
    """fsdp -> bytes of parameters, moments and gradients on each chip."""

    def state_bytes(fsdp: int) -> float:
        sizes = MeshConfig(data=-1, fsdp=fsdp, tensor=config.mesh.tensor)
        mesh = sharding.make_mesh(sizes, topology.devices)
        total = 0.0
        for name, leaf in flatten_dict(program.abstract_params, sep="/").items():
            rule = program.assigned[name]
            shard = sharding.param_sharding(mesh, name, leaf.shape).shard_shape
            copies = 1 if rule.multiplier is None else 4
            total += copies * math.prod(shard(leaf.shape)) * leaf.dtype.itemsize
        return total

    return state_bytes
