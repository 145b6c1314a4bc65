"""Where figures were measured: they say nothing without it."""

import importlib.metadata
import platform

import jax

from hive_jax.training.peak_flops import available_cpus, processor_name


def machine() -> dict[str, str | int]:
    """Returns device, cores and versions as JSON values."""
    device = jax.devices()[0]
    names = ("jax", "jaxlib", "flax", "optax", "torch", "transformers")
    return {
        "platform": device.platform,
        "device": processor_name() if device.platform == "cpu" else device.device_kind,
        "cores": available_cpus(),
        "python": platform.python_version(),
        **{name: version for name in names if (version := _version(name))},
    }


def described(machine: dict) -> str:
    """Formats the machine as one line for tables and charts."""
    return (
        f"{machine['device']}, {machine['cores']} cores, Python {machine['python']}, "
        f"jax {machine['jax']}"
    )


def _version(name: str) -> str | None:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return None
