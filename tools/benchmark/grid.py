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
from hive_jax.models.execution import Execution, ModelExecution
from hive_jax.training import sharding
from hive_jax.training.flops import example_flops
from hive_jax.training.train_step import Program
from tools.benchmark.cases import FUSIONS, IMAGE_KV, Size, case
from tools.benchmark.timed_step import Step, compute_dtype, matmul_rate, peak_bytes

# As ratios of HIVE to self-attention, by name of the benchmark.
PAPER = {"flops": 0.14, "memory": 1 - 0.593, "step": 1 / 3.43}

Rules = Mapping[int, tuple]  # stage -> rules

# As in the paper's configs.
_TOWER = Execution(scan=True, remat="dots")
SCANNED = ModelExecution(encoder=_TOWER, decoder=_TOWER)


def cells(size: Size, rules: Rules, dtype: str, what: str) -> Iterator[tuple]:
    """Yields (stage, fusion, config) of the whole grid, with a progress bar."""
    grid = [(stage, fusion) for stage in rules for fusion in FUSIONS]
    for stage, fusion in tqdm(grid, desc=what):
        config = case(size, fusion, rules[stage], dtype, IMAGE_KV[stage])
        yield stage, fusion, config


def make_program(config: RunConfig) -> Program:
    """Returns the program of a run on the first device."""
    return Program(config, sharding.make_mesh(config.mesh, jax.devices()[:1]))


def flops(size: Size, rules: Rules) -> list[dict]:
    """Counts the FLOPs of one example, by hive_jax and by XLA's cost analysis.

    XLA's count includes more than matrix products. Nothing is compiled.

    XLA counts the body of a loop once and a cuDNN call not at all, so layers are
    unrolled and attention is plain. The batch is so small that all logits are computed
    at once. The cost of an optimizer update, which no batch changes, is subtracted.

    Args:
      size: towers and text length; the batch size is not used.
      rules: optimizer rules by stage.
    """
    plain = Execution(flash=False)
    execution = ModelExecution(encoder=plain, decoder=plain)
    rows = []
    for stage, fusion, config in cells(size, rules, "bfloat16", "flops"):
        config = dataclasses.replace(config, batch_size=6, execution=execution)
        program = make_program(config)
        counted = example_flops(config, program.assigned)
        # Of the lowered program and not of the compiled one, whose fusions differ by
        # machine.
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
    """Returns the memory of a compiled step on one device, in bytes.

    Layers are scanned and keep the results of matrix products, as in the paper's
    configs.

    Args:
      size: towers and text length.
      rules: optimizer rules by stage.
      dtype: of the computation.
      batch_size: in place of that of `size`.

    Returns:
      A row for each stage and fusion: "state" (with the batch), "temporary"
      (activations and gradients), and "peak", which is their sum.
    """
    size = dataclasses.replace(size, batch_size=batch_size)
    rows = []
    for stage, fusion, config in cells(size, rules, dtype, "memory"):
        config = dataclasses.replace(config, execution=SCANNED)
        analysis = make_program(config).lower_train_step().compile().memory_analysis()
        # Arguments are there all the time; all else comes and goes within a step.
        state, peak = analysis.argument_size_in_bytes, peak_bytes(analysis)
        rows.append(
            {
                "stage": stage,
                "fusion": fusion,
                "state": state,
                "temporary": peak - state,
                "peak": peak,
            }
        )
    return rows


def step(
    size: Size, rules: Rules, dtype: str, rounds: int, steps: int = 3
) -> list[dict]:
    """Times the train step of every stage and fusion.

    The programs take turns, so that other load on the machine affects all alike.

    Args:
      size: towers, text length and batch size.
      rules: optimizer rules by stage.
      dtype: of the computation.
      rounds: measurements of each program.
      steps: consecutive steps of a measurement, as in training.

    Returns:
      A row for each stage and fusion: "seconds" is the median over the rounds, and
      "matmul_share" the FLOP rate as a share of `matmul_rate`.
    """
    timed = {
        (stage, fusion): Step(config).start()
        for stage, fusion, config in cells(size, rules, dtype, "compiling")
    }
    seconds = {key: [] for key in timed}
    rates = []
    for _ in tqdm(range(rounds), desc="rounds"):
        # In each round, because the machine's speed changes with its load and
        # temperature.
        rates.append(matmul_rate(compute_dtype(dtype), seconds=0.3))
        for key, one in timed.items():
            seconds[key].append(one.seconds(steps) / steps)
    # Medians: other processes disturb some rounds.
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
