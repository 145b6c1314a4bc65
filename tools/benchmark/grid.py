"""The same grid, fusions x stages, counted, compiled and timed.

The paper's claims, each HIVE against self-attention (arXiv 2604.00086, abstract):
0.14x the training FLOPs, 3.43x faster, 59.3 % less memory.
"""

import dataclasses
import statistics
from collections.abc import Iterator, Mapping

import jax
import optax
from tqdm import tqdm

from hive_jax.config import RunConfig
from hive_jax.models.layer_stack import Execution, ModelExecution
from hive_jax.training import sharding
from hive_jax.training.flops import example_flops
from hive_jax.training.train_step import Program
from tools.benchmark.cases import FUSIONS, Size, case
from tools.benchmark.timed_step import Step, compute_dtype, matmul_rate, peak_bytes

PAPER = {"flops": 0.14, "memory": 1 - 0.593, "step": 1 / 3.43}

Rules = Mapping[int, tuple]  # stage -> rules


def _cells(size: Size, rules: Rules, dtype: str, what: str) -> Iterator[tuple]:
    """(stage, fusion, config) of the whole grid, with a progress bar."""
    grid = [(stage, fusion) for stage in rules for fusion in FUSIONS]
    for stage, fusion in tqdm(grid, desc=what):
        yield stage, fusion, case(size, fusion, rules[stage], dtype)


def _program(config: RunConfig) -> Program:
    return Program(config, sharding.make_mesh(config.mesh, jax.devices()[:1]))


def flops(size: Size, rules: Rules) -> list[dict]:
    """FLOPs of one example by our count and by XLA's, which also has what is not a
    matrix product. Nothing is compiled.

    XLA counts the body of a loop once and a call of cuDNN not at all, so layers are
    unrolled, attention is plain, and the batch is so small that all logits are made
    at once; what an optimizer update costs whatever the batch is taken off.
    """
    plain = Execution(flash=False)
    execution = ModelExecution(encoder=plain, decoder=plain)
    rows = []
    for stage, fusion, config in _cells(size, rules, "bfloat16", "flops"):
        config = dataclasses.replace(config, batch_size=6, execution=execution)
        program = _program(config)
        counted = example_flops(config, program.assigned)
        lowered = program.lower_train_step().cost_analysis()["flops"]
        update = _update_flops(program)
        rows.append(
            {
                "stage": stage,
                "fusion": fusion,
                **dataclasses.asdict(counted),
                "total": counted.total,
                "without_encoder": counted.without_encoder,
                "xla": (lowered - update) / config.batch_size,
                "optimizer_update": update,
            }
        )
    return rows


def _update_flops(program: Program) -> float:
    state = program.abstract_state

    def update(grads, opt_state, params):
        updates, opt_state = program.optimizer.update(grads, opt_state, params)
        return optax.apply_updates(params, updates), opt_state

    trainable = program.trainable(state.params)
    lowered = jax.jit(update).lower(trainable, state.opt_state, trainable)
    return lowered.cost_analysis()["flops"]


def memory(size: Size, rules: Rules, dtype: str, batch_size: int) -> list[dict]:
    """Bytes of a compiled step on one device: state and batch, temporaries
    (activations, gradients), and the peak of both. Layers are scanned and keep the
    results of matrix products, as the paper's configs do."""
    size = dataclasses.replace(size, batch_size=batch_size)
    scanned = Execution(scan=True, remat="dots")
    execution = ModelExecution(encoder=scanned, decoder=scanned)
    rows = []
    for stage, fusion, config in _cells(size, rules, dtype, "memory"):
        config = dataclasses.replace(config, execution=execution)
        found = _program(config).lower_train_step().compile().memory_analysis()
        kept, peak = found.argument_size_in_bytes, peak_bytes(found)
        rows.append(
            {
                "stage": stage,
                "fusion": fusion,
                "state": kept,
                "temporary": peak - kept,
                "peak": peak,
            }
        )
    return rows


def step(
    size: Size, rules: Rules, dtype: str, rounds: int, steps: int = 3
) -> list[dict]:
    """Seconds of a step, all programs taking turns so that whatever else the machine
    does falls on all of them alike; `steps` in a row, as training makes them."""
    timed = {
        (stage, fusion): Step(config).start()
        for stage, fusion, config in _cells(size, rules, dtype, "compiling")
    }
    seconds = {key: [] for key in timed}
    rates = []
    for _ in tqdm(range(rounds), desc="rounds"):
        rates.append(matmul_rate(compute_dtype(dtype), seconds=0.3))
        for key, one in timed.items():
            seconds[key].append(one.seconds(steps) / steps)
    rate = statistics.median(rates)
    rows = []
    for (stage, fusion), one in timed.items():
        median = statistics.median(seconds[stage, fusion])
        rows.append(
            {
                "stage": stage,
                "fusion": fusion,
                "seconds": median,
                "fastest": min(seconds[stage, fusion]),
                "compile_seconds": one.compile_seconds,
                "peak_bytes": one.peak_bytes,
                "images_per_second": size.batch_size / median,
                "flop_per_second": one.flops / median,
                "flops": one.flops,
                "matmul_share": one.flops / median / rate,
                "matmul_rate": rate,
            }
        )
    return rows
