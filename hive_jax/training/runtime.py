"""Process setup: join a distributed job, abort it on errors, cache compiled programs."""

import contextlib
import glob
import importlib.util
import logging
import os
import re
import threading
from collections.abc import Mapping

import jax

from hive_jax.errors import ConfigError

_log = logging.getLogger(__name__)

# Grace period before a failed process exits: most errors reach all processes.
PATIENCE_SECONDS = 10


def join_job(
    mode: str,
    coordinator: str | None,
    num_processes: int | None,
    process_id: int | None,
) -> None:
    """Joins the processes of a job. Call before anything touches a device.

    Args:
      mode: "auto" joins on TPU hosts, as one of several tasks that srun started, and
        when a coordinator is given; "on" always; "off" never.
      coordinator: "host:port" of process 0, or None to find it out.
      num_processes, process_id: with `coordinator`.

    Raises:
      ConfigError: the flags or the GPUs do not fit, or the processes do not find
        each other.
    """
    arguments = how_to_join(mode, coordinator, num_processes, process_id, os.environ)
    if arguments is None:
        return
    try:
        jax.distributed.initialize(**arguments)
    except (ValueError, RuntimeError, OSError) as error:
        raise ConfigError(
            f"the processes of the job did not find each other: {error}. Give each "
            f"--coordinator_address, --num_processes and --process_id, or use "
            f"--distributed=off for a single process"
        ) from error


@contextlib.contextmanager
def abort_job_on_error():
    """Context manager that ends a process of a job with its error's exit code.

    Without it JAX waits five minutes for the other processes and then aborts. They
    cannot continue without this one: their next collective fails, or the coordinator
    ends them.
    """
    try:
        yield
    except Exception as error:
        if jax.process_count() > 1:
            code = getattr(error, "exit_code", 1)
            timer = threading.Timer(PATIENCE_SECONDS, os._exit, (code,))
            timer.daemon = True
            timer.start()
        raise


def how_to_join(
    mode: str,
    coordinator: str | None,
    num_processes: int | None,
    process_id: int | None,
    environment: Mapping[str, str],
) -> dict | None:
    """The arguments of `jax.distributed.initialize`, or None for a single process.

    Arguments and errors are those of `join_job`; `environment` is os.environ.
    """
    explicit = (coordinator, num_processes, process_id)
    if any(value is not None for value in explicit) and None in explicit:
        raise ConfigError(
            "--coordinator_address, --num_processes and --process_id go together; "
            f"got {coordinator}, {num_processes}, {process_id}"
        )
    tasks = _tasks(environment)
    if mode == "off":
        return None
    found = coordinator is not None or tasks > 1 or _on_tpu(environment)
    if mode == "auto" and not found:
        _say_if_alone(environment)
        return None
    arguments = _own_gpus(environment)
    if coordinator is not None:
        # Not detected again: JAX would take one GPU a Slurm task after all.
        return arguments | {
            "coordinator_address": coordinator,
            "num_processes": num_processes,
            "process_id": process_id,
            "cluster_detection_method": "deactivate",
        }
    # JAX counts SLURM_NTASKS, which `srun --preserve-env` leaves at the job's.
    return arguments | ({"num_processes": tasks} if tasks > 1 else {})


def _tasks(environment: Mapping[str, str]) -> int:
    """Tasks of the srun that started this process; 1 without srun.

    Batch scripts and shells of salloc have SLURM_NTASKS and SLURM_PROCID as well, but
    are one process. Only what srun starts belongs to a step; the shell that salloc
    opens may be a step too, of one task.
    """
    return int(environment.get("SLURM_STEP_NUM_TASKS", "1"))


def _say_if_alone(environment: Mapping[str, str]) -> None:
    allocated = environment.get("SLURM_NTASKS", "1")
    if allocated != "1":
        _log.warning(
            "Slurm gives this job %s tasks, but this process was started without srun "
            "and trains alone. Put srun before the command to use all of them.",
            allocated,
        )


def _own_gpus(environment: Mapping[str, str]) -> dict:
    """{"local_device_ids": indices into the visible GPUs} of a Slurm task.

    Without them JAX takes one GPU a task, the one of the task's number on its node.
    That leaves GPUs idle where a task has several, and finds none where Slurm shows
    each task its own GPU alone, as GPU 0.
    """
    if "SLURM_LOCALID" not in environment or _gpus(environment) == 0:
        return {}
    count, task = _gpus(environment), int(environment["SLURM_LOCALID"])
    tasks = _tasks_on_node(environment)
    if tasks == 1 or count == 1 or _bound(environment, count):
        return {"local_device_ids": list(range(count))}
    if count % tasks:
        raise ConfigError(
            f"{tasks} tasks on this node share {count} GPUs, which cannot be split "
            f"evenly: start one task a node (srun --ntasks-per-node=1), or one a GPU"
        )
    each = count // tasks
    return {"local_device_ids": list(range(task * each, (task + 1) * each))}


def _gpus(environment: Mapping[str, str]) -> int:
    """GPUs that this process can see."""
    visible = environment.get("CUDA_VISIBLE_DEVICES")
    if visible is None:
        return len(glob.glob("/dev/nvidia[0-9]*"))
    return len([name for name in visible.split(",") if name])


def _bound(environment: Mapping[str, str], count: int) -> bool:
    """Whether the `count` visible GPUs are this task's alone, not all of its node's."""
    per_task = environment.get("SLURM_GPUS_PER_TASK", "").rpartition(":")[2]
    on_node = environment.get("SLURM_GPUS_ON_NODE", "")
    if "CUDA_VISIBLE_DEVICES" not in environment:
        return False
    return str(count) in per_task.split(",") or str(count) != on_node


def _tasks_on_node(environment: Mapping[str, str]) -> int:
    """From Slurm's "2(x3),1": two tasks on each of three nodes, one on the fourth."""
    counts = []
    for part in environment.get("SLURM_STEP_TASKS_PER_NODE", "1").split(","):
        tasks, repeated = re.fullmatch(r"(\d+)(?:\(x(\d+)\))?", part).groups()
        counts += [int(tasks)] * int(repeated or 1)
    return counts[min(int(environment.get("SLURM_NODEID", "0")), len(counts) - 1)]


def _on_tpu(environment: Mapping[str, str]) -> bool:
    """Whether this is a TPU host that will use its TPU. On its own it is a job of one
    process."""
    platforms = environment.get("JAX_PLATFORMS", "")
    if platforms and "tpu" not in platforms:
        return False
    return "," in environment.get("TPU_WORKER_HOSTNAMES", "") or _has_tpu()


def _has_tpu() -> bool:
    """A libtpu to drive them, and the device files of TPU chips."""
    if importlib.util.find_spec("libtpu") is None:
        return False
    return bool(glob.glob("/dev/accel[0-9]*") or glob.glob("/dev/vfio/[0-9]*"))


def enable_compilation_cache() -> str | None:
    """Enables JAX's persistent compilation cache on GPUs and TPUs.

    Programs that take more than a second to compile are stored in
    ~/.cache/hive_jax/compilation and reused by the next start with the same config,
    devices and versions. CPUs have no cache by default: their programs are compiled
    for the instruction set of one host. JAX_COMPILATION_CACHE_DIR overrides all of
    this: a directory, or the empty string for no cache. Only process 0 of a job
    writes, so the directory must be shared by all hosts.

    Call after joining a job and before the first compilation.

    Returns:
      The cache directory, or None where JAX uses its own settings.
    """
    if "JAX_COMPILATION_CACHE_DIR" in os.environ or jax.default_backend() == "cpu":
        return None
    caches = os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache")
    folder = os.path.join(caches, "hive_jax", "compilation")
    try:
        # Private to the owner: cached executables are loaded and run.
        os.makedirs(folder, mode=0o700, exist_ok=True)
    except OSError as error:
        _log.warning("no compilation cache: %s", error)
        return None
    jax.config.update("jax_compilation_cache_dir", folder)
    return folder
