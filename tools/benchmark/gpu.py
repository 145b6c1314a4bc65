"""What one accelerator does: its ceilings, the grid at real batch sizes, ablations.

Each command ends within its time limit, and lists the cases without time as left out.
"""

import dataclasses
import statistics
import time
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor

import jax
import jax.numpy as jnp

from hive_jax.config import RunConfig
from hive_jax.models.attention import attend_to_all
from hive_jax.models.execution import Execution, ModelExecution
from tools.benchmark.cases import IMAGE_KV, Size, case
from tools.benchmark.grid import Rules
from tools.benchmark.timed_step import Step, compute_dtype, matmul_rate, noise

# Steps before the clock starts, measurements, and calls in each measurement.
_WARM_UP, _TIMED, _IN_A_ROW = 3, 15, 10
_TOGETHER = 6  # programs compiled concurrently


def ceilings(size: Size, dtype: str) -> Iterator[dict]:
    """Measures copy bandwidth, matrix products and attention at the shapes of a size.

    These are upper bounds for any implementation on this device.

    Args:
      size: towers, text length and batch size.
      dtype: of the matrix products and attention; copies are float32.

    Yields:
      A row for each operation: "what", and "bytes_per_second" or "flop_per_second".
    """
    dtype = jnp.dtype(compute_dtype(dtype))
    e, d, batch = size.encoder, size.decoder, size.batch_size
    patches, tokens = batch * e.num_patches, batch * size.num_tokens
    # 1 GiB on an accelerator, far more than its caches hold.
    x = noise((2**22 if jax.default_backend() == "cpu" else 2**28,), jnp.float32)
    seconds = _time(lambda x: x + 1.0, x)
    # Each byte is read and written.
    yield {"what": "copy", "bytes_per_second": 2 * x.nbytes / seconds}
    yield {"what": "square matmul", "flop_per_second": matmul_rate(str(dtype))}
    # [rows, inner] x [inner, columns] of a forward pass; the logits of one chunk.
    products = {
        "encoder attention": (patches, e.width, e.width),
        "encoder MLP": (patches, e.width, e.mlp_dim),
        "projector": (patches, e.width, d.width),
        "decoder MLP": (tokens, d.width, d.mlp_dim),
        "logits": (min(tokens, 512), d.width, d.vocab_size),
    }
    for name, (rows, inner, columns) in products.items():
        a = noise((rows, inner), dtype)
        # Scaled so that products have the size of their inputs.
        b = noise((inner, columns), dtype, scale=inner**-0.5)
        seconds = _time(lambda a, b: a @ b, a, b)
        yield {
            "what": f"{name} {rows} x {inner} x {columns}",
            "flop_per_second": 2 * rows * inner * columns / seconds,
        }
    shape = (batch, e.num_patches, e.num_heads, e.width // e.num_heads)
    heads = noise(shape, dtype)
    for use_flash in (True, False):

        def loss(q, use_flash=use_flash):
            out = attend_to_all(q, q, q, use_flash=use_flash)
            return out.astype(jnp.float32).sum()

        name = "as dispatched" if use_flash else "plain XLA"
        # Two products, two operations each; N heads of H are the width.
        flops = 4 * batch * e.num_patches**2 * e.width
        seconds = _time(loss, heads)
        yield {
            "what": f"encoder attention, forward, {name}",
            "flop_per_second": flops / seconds,
        }
        seconds = _time(jax.grad(loss), heads)
        yield {
            "what": f"encoder attention, with gradient, {name}",
            "flop_per_second": 3 * flops / seconds,
        }


def _time(function: Callable, *arguments) -> float:
    compiled = jax.jit(function)
    jax.block_until_ready(compiled(*arguments))
    seconds = []
    for _ in range(_TIMED):
        start = time.perf_counter()
        for _ in range(_IN_A_ROW):  # so that waiting for the last costs next to nothing
            result = compiled(*arguments)
        jax.block_until_ready(result)
        seconds.append((time.perf_counter() - start) / _IN_A_ROW)
    return statistics.median(seconds)


def grid(size: Size, rules: Rules, dtype: str, minutes: float) -> Iterator[dict]:
    """Measures HIVE in each stage at the full batch, then all fusions at half of it.

    Rows at half the batch have a `speed_up` over self-attention.

    Args:
      size: towers, text length and batch size.
      rules: optimizer rules by stage.
      dtype: of the computation.
      minutes: time limit; cases past it are left out.
    """
    # Self-attention at the full batch may exceed the memory: the two are compared at
    # half of it.
    half = max(1, size.batch_size // 2)
    compared = ("self_attention", "hive")
    # The rows that matter most come first, because time may run out.
    rest = ("joint", "cascaded")
    order = ((size.batch_size, ("hive",)), (half, compared), (half, rest))
    cases = [
        (
            f"stage {stage}, {fusion}",
            case(size, fusion, rules[stage], dtype, IMAGE_KV[stage]),
            batch,
        )
        for batch, fusions in order
        for stage in rules
        for fusion in fusions
    ]
    named = (
        (f"{name}, batch {batch}", dataclasses.replace(config, batch_size=batch))
        for name, config, batch in cases
    )
    return _against_self_attention(_measured(named, dtype, minutes))


def _against_self_attention(rows: Iterable[dict]) -> Iterator[dict]:
    """The rows of a grid, with `speed_up`: images/s over those of self-attention in
    the same stage at the same batch, which comes before."""
    speeds = {}
    for row in rows:
        stage, fusion, batch = row["what"].split(", ")
        speed = row.get("images_per_second")
        if fusion == "self_attention":
            speeds[stage, batch] = speed
        elif speed and speeds.get((stage, batch)):
            row["speed_up"] = speed / speeds[stage, batch]
        yield row


def ablations(size: Size, rules: Rules, dtype: str, minutes: float) -> Iterator[dict]:
    """Measures HIVE with one setting changed at a time, in each of the given stages.

    Args:
      size: towers, text length and batch size.
      rules: optimizer rules by stage.
      dtype: of the computation, except in the case "float32".
      minutes: time limit; cases past it are left out.
    """
    return _measured(ablation_cases(size, rules, dtype), dtype, minutes)


def ablation_cases(
    size: Size, rules: Rules, dtype: str
) -> Iterator[tuple[str, RunConfig]]:
    """Yields names and configs of HIVE with one setting changed at a time.

    Args:
      size: towers, text length and batch size.
      rules: optimizer rules by stage.
      dtype: of the computation, except in the case "float32".
    """

    def towers(**execution) -> Callable[[RunConfig], RunConfig]:
        both = Execution(**execution)
        return run(execution=ModelExecution(encoder=both, decoder=both))

    def run(**fields) -> Callable[[RunConfig], RunConfig]:
        return lambda config: dataclasses.replace(config, **fields)

    def tokens(number: int) -> Callable[[RunConfig], RunConfig]:
        def change(config: RunConfig) -> RunConfig:
            data = dataclasses.replace(config.data, num_tokens=number)
            return dataclasses.replace(config, data=data)

        return change

    batch = size.batch_size
    changes = {
        "as it is": lambda config: config,
        "no flash attention": towers(flash=False),
        "scanned, products kept": towers(scan=True, remat="dots"),
        "scanned, nothing kept": towers(scan=True, remat="full"),
        "products kept": towers(remat="dots"),
        "two parts": run(gradient_accumulation_steps=2),
        "half the batch": run(batch_size=max(1, batch // 2)),
        "an eighth of the batch": run(batch_size=max(1, batch // 8)),
        "half the tokens": tokens(size.num_tokens // 2),
        "float32": run(dtype="float32"),
    }
    for stage in rules:
        for name, change in changes.items():
            config = case(size, "hive", rules[stage], dtype)
            yield f"stage {stage}, {name}", change(config)


def _measured(
    named: Iterable[tuple[str, RunConfig]], dtype: str, minutes: float
) -> Iterator[dict]:
    """Yields a row for each config: several compile at once, then run one by one."""
    ends = time.monotonic() + 60 * minutes
    # Before anything else runs on the device.
    rate, longest = matmul_rate(compute_dtype(dtype)), 0.0
    named = list(named)
    with ThreadPoolExecutor(_TOGETHER) as pool:
        for first in range(0, len(named), _TOGETHER):
            start = time.monotonic()
            names, configs = zip(*named[first : first + _TOGETHER], strict=True)
            # A group may take as long as the slowest so far, and would then end too
            # late.
            if longest and start + longest > ends:
                left = {"left_out": f"{minutes} minutes are over"}
                yield from ({"what": name, **left} for name in names)
                continue
            # XLA compiles outside of the GIL.
            compiled = list(pool.map(_compiled, configs))
            for name in names:  # of what is timed, nothing is held any longer
                yield {"what": name, **_timed(compiled.pop(0), rate)}
            longest = max(longest, time.monotonic() - start)


def _compiled(config: RunConfig) -> Step | None:
    """Compiles the train step; None if autotuning its kernels exhausts the memory."""
    try:
        return Step(config)
    except jax.errors.JaxRuntimeError as error:
        return _require_exhausted(error)


def _timed(one: Step | None, rate: float) -> dict:
    try:
        if one is not None:
            return _steps(one, rate)
    except jax.errors.JaxRuntimeError as error:
        _require_exhausted(error)
    return {"left_out": "does not fit into the device's memory"}


def _require_exhausted(error: Exception) -> None:
    # The status of XLA's out-of-memory errors; any other error is a fault.
    if "RESOURCE_EXHAUSTED" not in str(error):
        raise error


def _steps(one: Step, rate: float) -> dict:
    config = one.config
    one.start().seconds(_WARM_UP)
    seconds = statistics.median(one.seconds() for _ in range(_TIMED))
    return {
        "images_per_second": config.batch_size / seconds,
        "seconds": seconds,
        "flop_per_second": one.flops / seconds,
        "matmul_share": one.flops / seconds / rate,
        "compile_seconds": one.compile_seconds,
        "peak_bytes": one.peak_bytes,
    }
