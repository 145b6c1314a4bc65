"""Machines a run can be planned for: TPU slices, GPUs, fake CPU devices.

Memory and its bandwidth are those of docs.cloud.google.com/tpu/docs/ (v4, v5e, v5p,
v6e); links and wraparound those of "How to Scale Your Model", part 2
(jax-ml.github.io/scaling-book/tpus). Usable memory is what libtpu 0.0.52 refuses to
exceed.
"""

import dataclasses
import importlib.util
import math
import os
import re

import jax
from jax.experimental import topologies

from hive_jax.errors import ConfigError, UnavailableError
from hive_jax.planning import TOPOLOGY_EXAMPLES
from hive_jax.training.peak_flops import PEAK_FLOPS

GIB = 2**30


@dataclasses.dataclass(frozen=True)
class Chip:
    """One accelerator; None for an unknown figure.

    Attributes:
      name: in topologies, such as "v5e".
      peak_flops: dense bfloat16 FLOP/s.
      hbm_bytes: capacity on the data sheet.
      usable_bytes: capacity left for a program.
      hbm_bandwidth: bytes/s.
      link_bandwidth: bytes/s over one ICI link in one direction.
      axes: dimensions of the torus; a chip has a link both ways along each.
      wrap: an axis closes to a ring where its size is a multiple of this.
      largest: chips along an axis, at most.
      config: libtpu's name of the chip with all its cores as one device, where it has
        another default.
    """

    name: str
    peak_flops: float | None = None
    hbm_bytes: float | None = None
    usable_bytes: float | None = None
    hbm_bandwidth: float | None = None
    link_bandwidth: float | None = None
    axes: int = 0
    wrap: int = 0
    largest: int = 0
    config: str = ""

    def links(self, shape: tuple[int, ...]) -> int:
        """Links of the chip with the fewest of them, in a slice of this shape.

        v5e 4x4: 2, a corner's. v5e 16x16: 4, for both axes are rings.
        """
        return sum(
            # A ring has a link both ways; an open end has a single one.
            0 if size == 1 else 2 if size % self.wrap == 0 else 1
            for size in shape
        )

    def ici_bandwidth(self, shape: tuple[int, ...]) -> float | None:
        """Bytes/s that every chip of a slice can receive at once; None if unknown, or
        for a single chip."""
        if self.link_bandwidth is None or not self.links(shape):
            return None
        return self.link_bandwidth * self.links(shape)


CHIPS = {
    chip.name: chip
    for chip in (
        Chip(
            "v4",
            peak_flops=PEAK_FLOPS["TPU v4"],
            hbm_bytes=32 * GIB,
            usable_bytes=30.75 * GIB,
            hbm_bandwidth=1200e9,
            link_bandwidth=45e9,
            axes=3,
            wrap=4,
            largest=16,
            config="megacore",
        ),
        Chip(
            "v5e",
            peak_flops=PEAK_FLOPS["TPU v5 lite"],
            hbm_bytes=16 * GIB,
            usable_bytes=15.75 * GIB,
            hbm_bandwidth=819e9,
            link_bandwidth=45e9,
            axes=2,
            wrap=16,
            largest=16,
        ),
        Chip(
            "v5p",
            peak_flops=PEAK_FLOPS["TPU v5"],
            hbm_bytes=95 * GIB,
            usable_bytes=95 * GIB,
            hbm_bandwidth=2765e9,
            link_bandwidth=90e9,
            axes=3,
            wrap=4,
            largest=28,
        ),
        Chip(
            "v6e",
            peak_flops=PEAK_FLOPS["TPU v6 lite"],
            hbm_bytes=32 * GIB,
            usable_bytes=31.24 * GIB,
            hbm_bandwidth=1638e9,
            link_bandwidth=90e9,
            axes=2,
            wrap=16,
            largest=16,
        ),
    )
}

# Of NVIDIA's data sheets; memory as the driver reports it, of which JAX takes three
# quarters. Without bandwidths: the program is compiled for a CPU, whose memory traffic
# says nothing about theirs.
GPUS = {
    name: Chip(
        name,
        peak_flops=PEAK_FLOPS[f"NVIDIA {name.upper()}"],
        hbm_bytes=gib * GIB,
        usable_bytes=0.75 * gib * GIB,
    )
    for name, gib in (("l4", 22.5), ("a100", 80), ("h100", 79.6), ("h200", 140.4))
}


# Keep libtpu from searching this host for TPUs and from logging that there are none;
# and allow two processes to compile at a time.
_LIBTPU_ENVIRONMENT = {
    "TPU_SKIP_MDS_QUERY": "1",
    "TPU_ACCELERATOR_TYPE": "v5litepod-4",
    "TPU_WORKER_HOSTNAMES": "localhost",
    "TPU_WORKER_ID": "0",
    "TPU_LOG_DIR": "disabled",
    "TPU_MIN_LOG_LEVEL": "3",
    "TPU_STDERR_LOG_LEVEL": "3",
    "ALLOW_MULTIPLE_LIBTPU_LOAD": "1",
}


@dataclasses.dataclass(frozen=True)
class Topology:
    """A machine to compile for.

    Attributes:
      name: as given to `find_topology`.
      shape: chips along each axis.
      devices: JAX devices, of which none need be attached.
    """

    name: str
    chip: Chip
    shape: tuple[int, ...]
    devices: tuple

    @property
    def ici_bandwidth(self) -> float | None:
        """Bytes/s that every chip can receive from the others."""
        return self.chip.ici_bandwidth(self.shape)


def find_topology(name: str) -> Topology:
    """Finds a topology by name, e.g. "v5e:4x4", "l4:1", "cpu:8" or "gpu".

    "gpu" is the GPUs of this machine. For a named one, such as "l4:1", programs are
    compiled by XLA's CPU backend.

    Call before anything touches a device, which fixes the number of CPU devices.

    Raises:
      ConfigError: unknown name.
      UnavailableError: libtpu is not installed, or there is no GPU.
    """
    if name == "gpu":
        return _gpus()
    kind, _, size = name.partition(":")
    fake = {"cpu": Chip("cpu")} | GPUS
    if kind in fake and re.fullmatch("[1-9][0-9]*", size):
        return _cpus(name, fake[kind], int(size))
    if kind not in CHIPS:
        raise ConfigError(
            f"topology is {name!r}; expected a chip ({', '.join(CHIPS)}) and the "
            f"shape of its slice, or a GPU ({', '.join(GPUS)}) and their number, such as "
            f"{TOPOLOGY_EXAMPLES}"
        )
    return _tpus(name, CHIPS[kind], size)


def slice_shapes(chip: Chip) -> list[tuple[int, ...]]:
    """Returns slices of whole hosts, each twice the size of the one before."""
    # A host has 2 x 2 chips.
    shape, result = (2, 2, 1)[: chip.axes], []
    while max(shape) <= chip.largest and math.prod(shape) <= 4096:
        result.append(shape)
        # Slices grow at their shortest axis, the last one of several.
        smallest = max(i for i, size in enumerate(shape) if size == min(shape))
        shape = tuple(s * 2 if i == smallest else s for i, s in enumerate(shape))
    return result


def _tpus(name: str, chip: Chip, size: str) -> Topology:
    example = f"{chip.name}:{'x'.join(['4'] * chip.axes)}"
    if not re.fullmatch(r"[1-9]\d*(x[1-9]\d*)*", size):
        raise ConfigError(
            f"topology is {name!r}; expected the chips along each axis after the "
            f"colon, such as {example}"
        )
    shape = tuple(int(length) for length in size.split("x"))
    if len(shape) != chip.axes or max(shape) > chip.largest:
        raise ConfigError(
            f"topology is {name!r}; slices of {chip.name} have {chip.axes} axes of "
            f"1 to {chip.largest} chips, such as {example}"
        )
    if importlib.util.find_spec("libtpu") is None:
        raise UnavailableError(
            f"topology is {name!r}, and TPU programs are compiled by libtpu, which is "
            f"not installed: pip install libtpu, or pip install -e '.[tpu]'"
        )
    # Read by libtpu when it is loaded.
    os.environ.update(_LIBTPU_ENVIRONMENT)
    jax.config.update("jax_platforms", "cpu")  # no search for TPUs of this host
    options = {"chip_config_name": chip.config} if chip.config else {}
    try:
        description = topologies.get_topology_desc(name, platform="tpu", **options)
    except (RuntimeError, ValueError) as error:
        raise ConfigError(
            f"topology is {name!r}, which libtpu does not know: {error}. Slices are "
            f"made of hosts with 2 x 2 chips: try {example}"
        ) from None
    return Topology(name, chip, shape, tuple(description.devices))


def _cpus(name: str, chip: Chip, count: int) -> Topology:
    # Read when JAX starts its CPU backend, and never again.
    flag = f"--xla_force_host_platform_device_count={count}"
    os.environ["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} {flag}".strip()
    jax.config.update("jax_platforms", "cpu")
    devices = jax.devices("cpu")
    if len(devices) < count:
        raise ConfigError(
            f"topology is {name!r}; jax has already started with {len(devices)} CPU "
            f"devices, and cannot have more"
        )
    return Topology(name, chip, (count,), tuple(devices[:count]))


def _gpus() -> Topology:
    try:
        devices = jax.devices("gpu")
    except RuntimeError as error:
        raise UnavailableError(
            f"topology is 'gpu', and jax finds no GPU here: {error}. Run it on a "
            f"machine with GPUs, after pip install -e '.[gpu]'"
        ) from None
    # What JAX allocates by default, three quarters of the memory.
    usable = (devices[0].memory_stats() or {}).get("bytes_limit")
    # No roofline: bandwidths of GPUs are not in the table.
    chip = Chip(devices[0].device_kind, usable_bytes=usable)
    return Topology("gpu", chip, (len(devices),), tuple(devices))
