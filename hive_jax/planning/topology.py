"""The machine a run is planned for: a TPU slice, fake CPU devices, or GPUs at hand."""

import dataclasses
import importlib.util
import math
import os
import re

import jax
from jax.experimental import topologies

from hive_jax.errors import ConfigError, UnavailableError
from hive_jax.planning.chips import CHIPS, Chip

EXAMPLES = "v5e:4x4, v5p:2x2x2, cpu:8 or gpu"

# libtpu looks for the host's own TPUs and writes what it does not find to the
# terminal; a slice that is only compiled for has no host. Two processes may compile.
_QUIET = {
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
    """name: as it was asked for; shape: chips along each axis; devices: of jax."""

    name: str
    chip: Chip
    shape: tuple[int, ...]
    devices: tuple

    @property
    def ici_bandwidth(self) -> float | None:
        """Bytes a second that every chip can receive from the others."""
        return self.chip.ici_bandwidth(self.shape)


def find(name: str) -> Topology:
    """The topology of a name, e.g. "v5e:4x4", "cpu:8" or "gpu".

    Call before anything touches a device: the number of CPU devices is fixed then.

    Raises:
      ConfigError: no topology has that name.
      UnavailableError: libtpu, or a GPU, is not there.
    """
    if name == "gpu":
        return _gpus()
    kind, _, size = name.partition(":")
    if kind == "cpu" and re.fullmatch("[1-9][0-9]*", size):
        return _cpus(name, int(size))
    if kind not in CHIPS:
        raise ConfigError(
            f"--topology is {name!r}; expected a chip ({', '.join(CHIPS)}) and the "
            f"shape of its slice, such as {EXAMPLES}"
        )
    return _tpus(name, CHIPS[kind], size)


def shapes(chip: Chip) -> list[tuple[int, ...]]:
    """Slices of whole hosts in growing order: each the double of the one before."""
    shape, found = (2, 2, 1)[: chip.axes], []
    while max(shape) <= chip.largest and math.prod(shape) <= 4096:
        found.append(shape)
        smallest = max(i for i, size in enumerate(shape) if size == min(shape))
        shape = tuple(s * 2 if i == smallest else s for i, s in enumerate(shape))
    return found


def _tpus(name: str, chip: Chip, size: str) -> Topology:
    example = f"{chip.name}:{'x'.join(['4'] * chip.axes)}"
    if not re.fullmatch(r"[1-9]\d*(x[1-9]\d*)*", size):
        raise ConfigError(
            f"--topology is {name!r}; expected the chips along each axis after the "
            f"colon, such as {example}"
        )
    shape = tuple(int(length) for length in size.split("x"))
    if len(shape) != chip.axes or max(shape) > chip.largest:
        raise ConfigError(
            f"--topology is {name!r}; slices of {chip.name} have {chip.axes} axes of "
            f"1 to {chip.largest} chips, such as {example}"
        )
    if importlib.util.find_spec("libtpu") is None:
        raise UnavailableError(
            f"--topology is {name!r}, and TPU programs are compiled by libtpu, which is "
            f"not installed: pip install libtpu, or pip install -e '.[tpu]'"
        )
    os.environ.update(_QUIET)
    jax.config.update("jax_platforms", "cpu")  # no search for TPUs of this host
    options = {"chip_config_name": chip.config} if chip.config else {}
    try:
        found = topologies.get_topology_desc(name, platform="tpu", **options)
    except (RuntimeError, ValueError) as error:
        raise ConfigError(
            f"--topology is {name!r}, which libtpu does not know: {error}. Slices are "
            f"made of hosts with 2 x 2 chips: try {example}"
        ) from None
    return Topology(name, chip, shape, tuple(found.devices))


def _cpus(name: str, count: int) -> Topology:
    flag = f"--xla_force_host_platform_device_count={count}"
    os.environ["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} {flag}".strip()
    jax.config.update("jax_platforms", "cpu")
    devices = jax.devices("cpu")
    if len(devices) < count:
        raise ConfigError(
            f"--topology is {name!r}; jax has already started with {len(devices)} CPU "
            f"devices, and cannot have more"
        )
    return Topology(name, Chip("cpu"), (count,), tuple(devices[:count]))


def _gpus() -> Topology:
    try:
        devices = jax.devices("gpu")
    except RuntimeError as error:
        raise UnavailableError(
            f"--topology is 'gpu', and jax finds no GPU here: {error}. Run it on a "
            f"machine with GPUs, after pip install -e '.[gpu]'"
        ) from None
    usable = (devices[0].memory_stats() or {}).get("bytes_limit")
    chip = Chip(devices[0].device_kind, usable_bytes=usable)
    return Topology("gpu", chip, (len(devices),), tuple(devices))
