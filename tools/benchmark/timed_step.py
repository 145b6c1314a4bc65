"""Train steps on one device, compiled and fed, to be timed."""

import statistics
import time

import jax
import jax.numpy as jnp
import numpy as np
from flax.traverse_util import flatten_dict, unflatten_dict

from hive_jax.config import RunConfig
from hive_jax.data.batch import Batch
from hive_jax.training import sharding
from hive_jax.training.flops import step_flops
from hive_jax.training.train_step import Program


class Step:
    """The train step of a config on the first device, compiled; `start` it once.

    Attributes:
      flops: of matrix products in one step.
      compile_seconds: what tracing and compiling took.
      peak_bytes: of the compiled step: state, batch, activations, gradients.
    """

    def __init__(self, config: RunConfig):
        device = jax.devices()[:1]
        self.config = config
        self.program = Program(config, sharding.make_mesh(config.mesh, device))
        # Model FLOPs: the same for all ways to compute the step.
        self.flops = step_flops(config, self.program.assigned)
        start = time.perf_counter()
        self._step = self.program.lower_train_step().compile()
        self.compile_seconds = time.perf_counter() - start
        self.peak_bytes = peak_bytes(self._step.memory_analysis())
        self._state = self._micro_batches = None

    def start(self) -> "Step":
        """Makes the state and the batch, which take room, and one step; returns self."""
        self._state = self.program.start(_some_params(self.program.abstract_params))
        self._micro_batches = _some_batches(self.config)
        self.seconds()
        return self

    def step(self, micro_batches: tuple[Batch, ...]) -> dict[str, jax.Array]:
        """Starts a step on a batch of its own; its metrics."""
        self._state, metrics = self._step(self._state, micro_batches)
        return metrics

    def seconds(self, count: int = 1) -> float:
        """Wall-clock time of `count` steps, one after the other."""
        start = time.perf_counter()
        for _ in range(count):
            metrics = self.step(self._micro_batches)
        # Waits for the last step, and with it for all before.
        self.loss = float(metrics["loss"])
        return time.perf_counter() - start


def peak_bytes(memory) -> int:
    """Of a program's `memory_analysis()`; donated arguments are counted once."""
    new = memory.output_size_in_bytes - memory.alias_size_in_bytes
    return memory.argument_size_in_bytes + memory.temp_size_in_bytes + new


def _some_params(abstract: dict) -> dict:
    """Values of the usual size and of no meaning, made on the device in no time; none
    is zero, so that every gate is open."""

    def make(shape: jax.ShapeDtypeStruct) -> jax.Array:
        fan_in = shape.shape[-2] if len(shape.shape) > 1 else 1
        scale = min(0.1, fan_in**-0.5)
        # Cheaper than random numbers, whose generators take long to compile for so many
        # shapes.
        wave = jnp.sin(jnp.arange(shape.size, dtype=jnp.float32) * 12.9898 + 1.0)
        return (wave * scale).reshape(shape.shape).astype(shape.dtype)

    flat = flatten_dict(abstract, sep="/")
    params = {
        name: jax.jit(make, static_argnums=0, out_shardings=leaf.sharding)(
            jax.ShapeDtypeStruct(leaf.shape, leaf.dtype)
        )
        for name, leaf in flat.items()
    }
    return unflatten_dict(params, sep="/")


def _some_batches(config: RunConfig) -> tuple[Batch, ...]:
    """Random images and captions without padding: every target is supervised."""
    rng = np.random.default_rng(0)
    spec = Batch.spec(
        config.batch_size // config.gradient_accumulation_steps,
        config.data.num_tokens,
        config.model.encoder.image_size,
    )
    vocab_size = config.model.decoder.vocab_size
    target = np.ones(spec.target.shape, bool)
    # Nothing predicts the first token.
    target[:, 0] = False

    def one() -> Batch:
        return Batch(
            image=rng.integers(0, 256, spec.image.shape, np.uint8),
            tokens=rng.integers(0, vocab_size, spec.tokens.shape, np.int32),
            target=target,
            image_mask=np.ones(spec.image_mask.shape, bool),
        )

    return tuple(
        jax.device_put(one()) for _ in range(config.gradient_accumulation_steps)
    )


def matmul_rate(dtype: str, seconds: float = 1.0) -> float:
    """Measures the FLOP/s of consecutive large square matrix products.

    The inputs are random, and scaled so that products stay of the same size: chips that
    save power on zeros would be faster on those.

    Args:
      dtype: of the matrices.
      seconds: to measure for.
    """
    # Large enough to be limited by compute, not by memory; several products in a row
    # hide the launch and the synchronization.
    size = 2048 if jax.default_backend() == "cpu" else 8192
    count = 1 if jax.default_backend() == "cpu" else 20
    x = noise((size, size), dtype, scale=size**-0.5)
    product = jax.jit(lambda x, y: x @ y)
    y = product(x, noise((size, size), dtype)).block_until_ready()
    measured, ends = [], time.perf_counter() + seconds
    while not measured or time.perf_counter() < ends:
        start = time.perf_counter()
        for _ in range(count):
            y = product(x, y)
        y.block_until_ready()
        measured.append((time.perf_counter() - start) / count)
    return 2 * size**3 / statistics.median(measured)


def noise(shape: tuple[int, ...], dtype, scale: float = 1.0) -> jax.Array:
    """Returns normally distributed numbers, the same in every call.

    Args:
      shape: of the array.
      dtype: of the array.
      scale: standard deviation.
    """

    @jax.jit
    def make():
        return (jax.random.normal(jax.random.key(0), shape) * scale).astype(dtype)

    return make()


def compute_dtype(dtype: str) -> str:
    """Resolves the dtype "auto" for this machine."""
    on_cpu = jax.default_backend() == "cpu"
    return {"auto": "float32" if on_cpu else "bfloat16"}.get(dtype, dtype)
