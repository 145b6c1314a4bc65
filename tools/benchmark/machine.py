"""Where figures were measured: they say nothing without it."""

import importlib.metadata
import platform
from pathlib import Path

import jax

from tools.benchmark.worker_process import available_cpus


def machine() -> dict[str, str | int]:
    """Device, cores and versions, as JSON values."""
    device = jax.devices()[0]
    names = ("jax", "jaxlib", "flax", "optax", "torch", "transformers")
    return {
        "platform": device.platform,
        "device": _processor() if device.platform == "cpu" else device.device_kind,
        "cores": available_cpus(),
        "python": platform.python_version(),
        **{name: version for name in names if (version := _version(name))},
    }


def described(machine: dict) -> str:
    """One line for tables and charts."""
    return (
        f"{machine['device']}, {machine['cores']} cores, Python {machine['python']}, "
        f"jax {machine['jax']}"
    )


def _version(name: str) -> str | None:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return None


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text("utf-8").splitlines()
    except OSError:
        return platform.processor() or platform.machine()
    names = [line.split(":", 1)[1].strip() for line in lines if "model name" in line]
    return names[0] if names else platform.machine()
