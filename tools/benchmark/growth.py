"""How cost grows with the number of image tokens and with the length of the text.

The paper has linear growth for cross-attention against quadratic growth for
self-attention over image tokens (arXiv 2604.00086). An exponent here is the slope
of log cost over log image tokens: 1 is linear, 2 quadratic, 0 constant.
"""

import dataclasses
import statistics
import time
from collections.abc import Callable, Iterator, Sequence

import jax
import jax.numpy as jnp
import numpy as np
from tqdm import tqdm

from hive_jax.config import RunConfig
from hive_jax.models.siglip import SiglipEncoder
from hive_jax.training.flops import example_flops
from tools.benchmark import grid
from tools.benchmark.cases import Size
from tools.benchmark.grid import SCANNED, Rules
from tools.benchmark.timed_step import Step, compute_dtype

# (image size in pixels, tokens of text): three resolutions at the paper's length of
# text, then two other lengths at its resolution.
POINTS = ((224, 77), (384, 77), (512, 77), (384, 32), (384, 256))

# Costs of a row by part, each with its label.
COSTS = {
    "flops": {
        "total": "whole model",
        "without_encoder": "all but the encoder",
        "attention": "the decoder's attention",
    },
    "memory": {"peak": "peak", "temporary": "temporary"},
    "step": {
        "seconds": "whole model",
        "seconds_without_encoder": "all but the encoder",
    },
}

Points = Sequence[tuple[int, int]]


def flops(size: Size, rules: Rules, points: Points) -> list[dict]:
    """Counts the FLOPs of one example at each point; `grid.flops` has XLA's count.

    Args:
      size: towers; the image size and the length of the text are those of the points.
      rules: optimizer rules by stage.
      points: (image size in pixels, tokens of text).

    Returns:
      A row for each point, stage and fusion: the fields of `Flops`, "total" and
      "without_encoder".
    """
    rows = []
    for stage, fusion, config in grid.cells(size, rules, "bfloat16", "flops"):
        # Rules go by name: the same at every point.
        assigned = grid.make_program(config).assigned
        for point in points:
            sized = at_point(size, point)
            model = dataclasses.replace(config.model, encoder=sized.encoder)
            at = dataclasses.replace(config, model=model)
            counted = example_flops(at, assigned, sized.num_tokens)
            rows.append(
                {
                    "stage": stage,
                    "fusion": fusion,
                    **_tokens(sized),
                    **dataclasses.asdict(counted),
                    "total": counted.total,
                    "without_encoder": counted.without_encoder,
                }
            )
    return rows


def memory(
    size: Size, rules: Rules, dtype: str, batch_size: int, points: Points
) -> list[dict]:
    """Returns the memory of the compiled step at each point; see `grid.memory`.

    Args:
      size: towers.
      rules: optimizer rules by stage.
      dtype: of the computation.
      batch_size: images a step.
      points: (image size in pixels, tokens of text).

    Returns:
      Rows of `grid.memory` with "image_tokens" and "text_tokens".
    """
    rows = []
    for point in points:
        sized = at_point(size, point)
        measured = grid.memory(sized, rules, dtype, batch_size)
        rows += [_tokens(sized) | row for row in measured]
    return rows


def step(
    size: Size,
    rules: Rules,
    dtype: str,
    rounds: int,
    points: Points,
) -> Iterator[dict]:
    """Times the train step at each point, and the encoder alone.

    All programs of a stage take turns; layers are scanned, as in `memory`. The encoder
    runs backward in a stage that trains it.

    Args:
      size: towers and batch size.
      rules: optimizer rules by stage.
      dtype: of the computation.
      rounds: measurements of each program, one step each.
      points: (image size in pixels, tokens of text).

    Yields:
      A row for each stage, point and fusion: "seconds" and "seconds_without_encoder",
      medians over the rounds.
    """
    for stage, of_stage in rules.items():
        timed, encoders = {}, {}
        for point in points:
            sized = at_point(size, point)
            for _, fusion, config in grid.cells(
                sized, {stage: of_stage}, dtype, f"compiling {point}"
            ):
                one = Step(dataclasses.replace(config, execution=SCANNED)).start()
                timed[point, fusion] = one.seconds
            # The encoder is the same in all fusions and at all lengths of text.
            trains = any(
                name.startswith("img/") and rule.multiplier is not None
                for name, rule in one.program.assigned.items()
            )
            encoders.setdefault(point[0], _encoder(config, trains))
        seconds = {key: [] for key in timed}
        without = {key: [] for key in timed}
        for _ in tqdm(range(rounds), desc=f"stage {stage}, rounds"):
            of_encoder = {side: run() for side, run in encoders.items()}
            for key, run in timed.items():
                seconds[key].append(run())
                without[key].append(seconds[key][-1] - of_encoder[key[0][0]])
        for (point, fusion), measured in seconds.items():
            yield {
                "stage": stage,
                "fusion": fusion,
                **_tokens(at_point(size, point)),
                "seconds": statistics.median(measured),
                "seconds_without_encoder": statistics.median(without[point, fusion]),
            }


def exponents(rows: list[dict], cost: str) -> dict[tuple[int, str], float]:
    """Fits cost = factor x image_tokens^exponent by least squares of the logarithms.

    Args:
      rows: of one benchmark; those with the text length of the first row count.
      cost: key of a row.

    Returns:
      (stage, fusion) -> exponent.
    """
    fitted = {}
    for key, series in by_resolution(rows).items():
        tokens = np.log([row["image_tokens"] for row in series])
        costs = np.log([row[cost] for row in series])
        fitted[key] = float(np.polyfit(tokens, costs, 1)[0])
    return fitted


def by_resolution(rows: list[dict]) -> dict[tuple[int, str], list[dict]]:
    """Returns (stage, fusion) -> the rows with the text length of the first row."""
    series = {}
    for row in rows:
        if row["text_tokens"] == rows[0]["text_tokens"]:
            series.setdefault((row["stage"], row["fusion"]), []).append(row)
    return series


def at_point(size: Size, point: tuple[int, int]) -> Size:
    """Returns the size at (image size in pixels, tokens of text)."""
    encoder = dataclasses.replace(size.encoder, image_size=point[0])
    return dataclasses.replace(size, encoder=encoder, num_tokens=point[1])


def _tokens(size: Size) -> dict[str, int]:
    return {
        "image_tokens": size.encoder.num_patches,
        "text_tokens": size.num_tokens,
    }


def _encoder(config: RunConfig, trains: bool) -> Callable[[], float]:
    """Returns a function that times the encoder of a config, alone, once."""
    depth = max(depth for depth, _ in config.model.resolved_connections())
    dtype = jnp.dtype(compute_dtype(config.dtype))
    model = SiglipEncoder(config.model.encoder, dtype, execution=SCANNED.encoder)
    side = config.model.encoder.image_size
    shape = (config.batch_size, side, side, 3)
    images = jnp.asarray(np.random.default_rng(0).uniform(-1, 1, shape), jnp.float32)
    params = jax.jit(model.init)(jax.random.key(0), images)

    def loss(params):
        features = model.apply(params, images, (depth,)).features
        return jnp.square(features.astype(jnp.float32)).mean()

    run = jax.jit(jax.grad(loss) if trains else loss)
    jax.block_until_ready(run(params))

    def seconds() -> float:
        start = time.perf_counter()
        jax.block_until_ready(run(params))
        return time.perf_counter() - start

    return seconds
