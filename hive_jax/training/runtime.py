"""Process setup: join a distributed job."""

import glob
import importlib.util
import logging
import os
import re
from collections.abc import Mapping

import jax

from hive_jax.errors import ConfigError
from hive_jax.training import watchdog

_log = logging.getLogger(__name__)

_MAX_PROCESSES = 2**16


def join_job(
    distributed: str,
    coordinator_address: str | None,
    num_processes: int | None,
    process_id: int | None,
) -> None:
    """Joins the processes of a distributed job. Call before JAX touches a device.

    Args:
      distributed: "auto" joins on TPU hosts, as one of several tasks that srun
        started, and if a coordinator is given; "on" always joins; "off" never does.
      coordinator_address: "host:port" of process 0; None to detect the job.
      num_processes: processes of the job; with `coordinator_address`, else None.
      process_id: index of this process, from 0; with `coordinator_address`.

    Raises:
      ConfigError: only some of the last three arguments are given, one is invalid,
        the tasks cannot share the GPUs, or the processes do not find each other.
    """
    arguments = initialize_arguments(
        distributed, coordinator_address, num_processes, process_id, os.environ
    )
    if arguments is None:
        return
    try:
        with watchdog.limit_join():
            jax.distributed.initialize(**arguments, **watchdog.JAX_TIMEOUTS)
    # JAX raises any of these for a wrong address, a timeout or a used port.
    except (ValueError, RuntimeError, OSError) as error:
        raise ConfigError(
            f"the processes of the job did not find each other: {error}. Give each "
            f"coordinator_address, num_processes and process_id, or use "
            f"distributed=off for a single process"
        ) from error


def initialize_arguments(
    distributed: str,
    coordinator_address: str | None,
    num_processes: int | None,
    process_id: int | None,
    environment: Mapping[str, str],
) -> dict | None:
    """Returns the arguments of `jax.distributed.initialize`; None for one process.

    Args:
      distributed: as for `join_job`.
      coordinator_address: as for `join_job`.
      num_processes: as for `join_job`.
      process_id: as for `join_job`.
      environment: environment variables, os.environ.

    Raises:
      ConfigError: only some of the arguments are given, one is invalid, or the
        tasks of a node cannot share its GPUs evenly.
    """
    explicit = (coordinator_address, num_processes, process_id)
    # All three or none: JAX would guess the missing ones.
    if any(value is not None for value in explicit) and None in explicit:
        raise ConfigError(
            "coordinator_address, num_processes and process_id go together; "
            f"got {coordinator_address}, {num_processes}, {process_id}"
        )
    if coordinator_address is not None:
        _require_valid(coordinator_address, num_processes, process_id)
    if distributed == "off":
        return None
    tasks = _num_step_tasks(environment)
    # "on" joins where nothing shows a job: JAX then detects it, or fails.
    in_job = coordinator_address is not None or tasks > 1 or _on_tpu(environment)
    if distributed == "auto" and not in_job:
        _warn_without_srun(environment)
        return None
    arguments = _local_device_ids(environment)
    if coordinator_address is not None:
        # No detection: under Slurm JAX would override local_device_ids with one GPU a
        # task.
        return arguments | {
            "coordinator_address": coordinator_address,
            "num_processes": num_processes,
            "process_id": process_id,
            "cluster_detection_method": "deactivate",
        }
    # JAX counts SLURM_NTASKS, which `srun --preserve-env` leaves at the job's.
    return arguments | ({"num_processes": tasks} if tasks > 1 else {})


def _require_valid(address: str, num_processes: int, process_id: int) -> None:
    """Raises ConfigError for an address without a port, or a number out of range."""
    # A name, an IPv4 address, or an IPv6 address in brackets.
    match = re.fullmatch(r"(?:[^\s:/\[\]]+|\[[0-9A-Fa-f:.%]+\]):(\d{1,5})", address)
    if match is None or not 0 < int(match[1]) < 2**16:
        raise ConfigError(
            f"coordinator_address is {address!r}; expected HOST:PORT of process 0, with "
            "a port of 1 to 65535"
        )
    if not 0 <= process_id < num_processes <= _MAX_PROCESSES:
        raise ConfigError(
            f"process_id is {process_id} and num_processes is {num_processes}; expected "
            f"a number of 0 to below num_processes, of at most {_MAX_PROCESSES:,}"
        )


def _num_step_tasks(environment: Mapping[str, str]) -> int:
    """Returns the number of tasks of the srun that started this process, else 1.

    SLURM_NTASKS would not do: batch scripts and shells of salloc have it too, and are
    one process. A job step is only what srun started, or salloc's shell as one task.
    """
    return _slurm_number(environment, "SLURM_STEP_NUM_TASKS", "1")


def _warn_without_srun(environment: Mapping[str, str]) -> None:
    """Warns if Slurm allocated several tasks and this process uses one."""
    allocated = environment.get("SLURM_NTASKS", "1")
    if allocated != "1":
        _log.warning(
            "Slurm gives this job %s tasks, but this process was started without srun "
            "and trains alone. Put srun before the command to use all of them.",
            allocated,
        )


def _local_device_ids(environment: Mapping[str, str]) -> dict:
    """Returns {"local_device_ids": indices into the visible GPUs} of a Slurm task.

    By default JAX takes one GPU a task, numbered as the task is on its node. That
    leaves GPUs idle if a task has several, and finds none if Slurm binds each task to
    one GPU, which is then visible as GPU 0.
    """
    # Outside of Slurm, and on TPUs and CPUs, JAX's own default is right.
    if "SLURM_LOCALID" not in environment or _num_visible_gpus(environment) == 0:
        return {}
    count = _num_visible_gpus(environment)
    task = _slurm_number(environment, "SLURM_LOCALID", "0")
    tasks = _num_tasks_on_node(environment)
    # All visible GPUs belong to this task.
    if tasks == 1 or count == 1 or _is_bound(environment, count):
        return {"local_device_ids": list(range(count))}
    if count % tasks:
        raise ConfigError(
            f"{tasks} tasks on this node share {count} GPUs, which cannot be split "
            f"evenly: start one task a node (srun --ntasks-per-node=1), or one a GPU"
        )
    per_task = count // tasks
    ids = range(task * per_task, (task + 1) * per_task)
    return {"local_device_ids": list(ids)}


def _num_visible_gpus(environment: Mapping[str, str]) -> int:
    """Returns the number of GPUs visible to this process; asks no driver, because JAX
    must not be initialized yet."""
    visible = environment.get("CUDA_VISIBLE_DEVICES")
    if visible is None:
        return len(glob.glob("/dev/nvidia[0-9]*"))
    return len([name for name in visible.split(",") if name])


def _is_bound(environment: Mapping[str, str], count: int) -> bool:
    """Returns whether the `count` visible GPUs belong to this task alone, rather than
    to all tasks of its node."""
    per_task = environment.get("SLURM_GPUS_PER_TASK", "").rpartition(":")[2]
    on_node = environment.get("SLURM_GPUS_ON_NODE", "")
    if "CUDA_VISIBLE_DEVICES" not in environment:
        return False
    # As many as each task was promised, or not all of the node's: Slurm has bound them.
    return str(count) in per_task.split(",") or str(count) != on_node


def _num_tasks_on_node(environment: Mapping[str, str]) -> int:
    """Returns the number of tasks of this step on this node."""
    # "2(x3),1": two tasks on each of three nodes, one on the fourth.
    counts = []
    name = "SLURM_STEP_TASKS_PER_NODE"
    for group in environment.get(name, "1").split(","):
        match = re.fullmatch(r"(\d+)(?:\(x(\d+)\))?", group)
        if match is None:
            raise _slurm_error(name, environment[name])
        counts += [int(match[1])] * int(match[2] or 1)
    return counts[min(_slurm_number(environment, "SLURM_NODEID", "0"), len(counts) - 1)]


def _slurm_number(environment: Mapping[str, str], name: str, default: str) -> int:
    """Returns the number in a variable of Slurm. Raises ConfigError."""
    text = environment.get(name, default)
    if not text.isdecimal():
        raise _slurm_error(name, text)
    return int(text)


def _slurm_error(name: str, text: str) -> ConfigError:
    return ConfigError(
        f"{name} is {text!r}; expected numbers, as srun sets them: unset it outside of "
        "Slurm, or use distributed=off"
    )


def _on_tpu(environment: Mapping[str, str]) -> bool:
    """Returns whether this host uses a TPU; a single host is a job of one process."""
    platforms = environment.get("JAX_PLATFORMS", "")
    # JAX_PLATFORMS excludes the TPU that this host may have.
    if platforms and "tpu" not in platforms:
        return False
    return "," in environment.get("TPU_WORKER_HOSTNAMES", "") or _has_tpu()


def _has_tpu() -> bool:
    """Returns whether libtpu and the device files of TPU chips are present."""
    if importlib.util.find_spec("libtpu") is None:
        return False
    # The device files of older and of newer TPU generations.
    return bool(glob.glob("/dev/accel[0-9]*") or glob.glob("/dev/vfio/[0-9]*"))
