"""Compiled programs are kept on disk, so that a resumed run need not compile again."""

import logging
import os

import jax

_log = logging.getLogger(__name__)


def keep_compiled_programs() -> str | None:
    """Has JAX keep what takes it more than a second to compile; the next start with
    the same config, devices and versions reads it back.

    On GPUs and TPUs by default, in ~/.cache/hive_jax/compilation. Not on CPUs: their
    programs are made for the instruction set of one host. JAX_COMPILATION_CACHE_DIR
    goes first on all of them: a folder, or nothing for no cache. Of the processes of a
    job the first alone writes, so that they need a folder that all of them see.

    Call after joining a job and before anything is compiled.

    Returns:
      The folder, or None where JAX goes by its own settings.
    """
    if "JAX_COMPILATION_CACHE_DIR" in os.environ or jax.default_backend() == "cpu":
        return None
    caches = os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache")
    folder = os.path.join(caches, "hive_jax", "compilation")
    try:
        # For the owner alone: what is read from here is run.
        os.makedirs(folder, mode=0o700, exist_ok=True)
    except OSError as error:
        _log.warning("compiled programs are not kept: %s", error)
        return None
    jax.config.update("jax_compilation_cache_dir", folder)
    return folder
