"""Peak FLOP/s of devices, the denominator of model FLOPs utilization (MFU)."""

import contextlib
import os
import platform
import time
from collections.abc import Sequence
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

from hive_jax.errors import HiveError, OutputError
from hive_jax.io import read_json, write_json

# Dense bfloat16 FLOP/s by the beginning of `device_kind`, from the data sheets:
# docs.cloud.google.com/tpu/docs (half a chip is a device of v2 and v3), and NVIDIA's,
# without sparsity. The first match counts, so longer names come first.
PEAK_FLOPS = {
    "TPU v2": 22.5e12,
    "TPU v3": 61.5e12,
    "TPU v4": 275e12,
    "TPU v5 lite": 197e12,
    "TPU v5": 459e12,
    "TPU v6 lite": 918e12,
    "NVIDIA A100": 312e12,
    "NVIDIA L40S": 362e12,
    "NVIDIA L4": 121e12,
    "NVIDIA H100 PCIe": 756e12,
    "NVIDIA H100": 989e12,
    "NVIDIA H200": 989e12,
    "NVIDIA GH200": 989e12,
    "NVIDIA B200": 2250e12,
}
# Enough products for one that nothing disturbs, and hardly noticed at a start.
_MEASUREMENT_SECONDS = 0.2


def peak_flops(devices: Sequence[jax.Device]) -> float:
    """Returns the peak FLOP/s of all devices together.

    From data sheets, or for other devices the measured matmul rate, which takes about
    0.3 s once a machine: `measured_matmul_rate`.
    """
    kind = devices[0].device_kind
    for name, peak in PEAK_FLOPS.items():
        if kind.startswith(name):
            return peak * len(devices)
    if devices[0].platform == "cpu":  # the devices of a process share its cores
        return measured_matmul_rate() * len({d.process_index for d in devices})
    return measured_matmul_rate() * len(devices)


def measured_matmul_rate() -> float:
    """Returns the FLOP/s of square matrix products on one local device, float32 on a
    CPU and bfloat16 elsewhere.

    Measured once a machine and cached in ~/.cache/hive_jax/matmul_rate.json (under
    XDG_CACHE_HOME if set); delete the file to measure again. A cache that cannot be
    read or written is ignored.
    """
    caches = os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache")
    path = Path(caches, "hive_jax", "matmul_rate.json")
    # One file for several machines that share a home directory.
    key, rates = machine_fingerprint(), {}
    with contextlib.suppress(HiveError):  # no cache yet, or a damaged one
        rates = read_json(path)
    rate = rates.get(key)
    # The file may have been edited, or written by another version.
    if isinstance(rate, int | float) and rate > 0:
        return rate
    rates[key] = rate = _measure_matmul_rate()
    with contextlib.suppress(OSError, OutputError):
        path.parent.mkdir(parents=True, exist_ok=True)
        write_json(path, rates)
    return rate


def machine_fingerprint() -> str:
    """Returns the cache key of a measured rate: device, usable cores, JAX version."""
    device = jax.local_devices()[0]
    kind = processor_name() if device.platform == "cpu" else device.device_kind
    return f"{kind}, {available_cpus()} cores, jax {jax.__version__}"


def processor_name() -> str:
    """Returns the model name of the CPU."""
    try:
        lines = Path("/proc/cpuinfo").read_text("utf-8").splitlines()
    except OSError:
        return platform.processor() or platform.machine()
    names = [line.split(":", 1)[1].strip() for line in lines if "model name" in line]
    return names[0] if names else platform.machine()


def available_cpus() -> int:
    """Returns the number of CPUs that this process may run on."""
    # Linux alone: containers and Slurm limit a process to some of the CPUs.
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def _measure_matmul_rate() -> float:
    """Returns the rate of the fastest of several products: other processes can only
    slow one down."""
    device = jax.local_devices()[0]
    dtype = jnp.float32 if device.platform == "cpu" else jnp.bfloat16
    # Large enough to reach the peak, small enough to be repeated in the time.
    size = 512 if device.platform == "cpu" else 8192
    # Random numbers: some chips save power, and so gain speed, on zeros.
    values = np.random.default_rng(0).standard_normal((size, size), np.float32)
    x = jax.device_put(jnp.asarray(values * size**-0.5, dtype), device)
    product = jax.jit(jnp.matmul)
    # Compiles. Scaled by size**-0.5, repeated products neither overflow nor vanish.
    y = product(x, x).block_until_ready()
    seconds, end = [], time.perf_counter() + _MEASUREMENT_SECONDS
    while not seconds or time.perf_counter() < end:
        start = time.perf_counter()
        y = product(x, y).block_until_ready()
        seconds.append(time.perf_counter() - start)
    # Two operations, a multiplication and an addition, for each of n^3 terms.
    return 2 * size**3 / min(seconds)
