"""JAX's persistent cache of compiled programs."""

import logging
import os

import jax

_log = logging.getLogger(__name__)


def enable_compilation_cache() -> str | None:
    """Enables JAX's persistent compilation cache on GPUs and TPUs.

    Programs that take more than a second to compile are stored in
    ~/.cache/hive_jax/compilation and reused by the next start with the same config,
    devices and versions. CPUs have no cache by default: their programs are compiled
    for the instruction set of one host. JAX_COMPILATION_CACHE_DIR overrides all of
    this: a directory, or the empty string for no cache. Only process 0 of a job
    writes, so the directory must be shared by all hosts.

    The default folder is used only if it belongs to this user and nobody else can
    write to it, because cached executables are loaded and run. Otherwise a warning
    says so, and there is no cache.

    Call after joining a job and before the first compilation.

    Returns:
      The cache directory, or None where JAX uses its own settings.
    """
    if "JAX_COMPILATION_CACHE_DIR" in os.environ or jax.default_backend() == "cpu":
        return None
    # The XDG base directory specification: an empty variable counts as unset.
    caches = os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache")
    parent = os.path.join(caches, "hive_jax")
    folder = os.path.join(parent, "compilation")
    try:
        # One by one: the mode is that of the last folder alone.
        os.makedirs(parent, mode=0o700, exist_ok=True)
        os.makedirs(folder, mode=0o700, exist_ok=True)
        reason = _reason_not_private(parent) or _reason_not_private(folder)
    except OSError as error:
        reason = str(error)
    if reason:
        _log.warning("no compilation cache, each start compiles again: %s", reason)
        return None
    jax.config.update("jax_compilation_cache_dir", folder)
    return folder


def _reason_not_private(folder: str) -> str:
    """Returns why others may have written to a folder; empty if they cannot."""
    about = os.stat(folder)
    if about.st_uid != os.geteuid():
        return f"{folder} belongs to user {about.st_uid}; expected {os.geteuid()}"
    if about.st_mode & 0o022:
        mode = about.st_mode & 0o777
        return f"{folder} can be written by others (mode {mode:o}): chmod 700 {folder}"
    return ""
