"""Commands of the smallest model: started as processes, waited for and compared."""

import importlib.metadata
import json
import os
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from hive_jax.buckets import as_path, is_url
from hive_jax.io import list_names

ROOT = Path(__file__).resolve().parents[2]

# Compiling is all the time that a tiny step takes; this makes it much shorter.
FAST_COMPILATION = (
    "--xla_backend_optimization_level=0 --xla_llvm_disable_expensive_passes=true"
)
# The newer emitters take almost twice as long; JAX 0.12 has no others.
if importlib.metadata.version("jaxlib").startswith(("0.10.", "0.11.")):
    FAST_COMPILATION += " --xla_cpu_use_fusion_emitters=false"

# The smallest model that the built-in tokenizer allows, on 16-pixel scenes: changes to
# named sizes, which are arguments of the config file.
TOWERS = "encoder=tiny/8-16,decoder=tiny"
MICRO = (
    "--config.model.encoder.width=16",
    "--config.model.encoder.depth=2",
    "--config.model.encoder.mlp_dim=32",
    "--config.model.decoder.width=16",
    "--config.model.decoder.depth=2",
    "--config.model.decoder.mlp_dim=32",
    "--config.model.num_connections=2",
    "--config.init_encoder=",
    "--config.init_decoder=",
    "--config.data.tokenizer=builtin:tabletop",
    "--config.data.num_tokens=24",
    "--config.data.validation_size=8",
    "--config.batch_size=8",
)
# Of two processes with two devices each.
MESH = ("--config.mesh.data=1", "--config.mesh.fsdp=2", "--config.mesh.tensor=2")
# Trains all towers from random parameters; stage 1 alone starts from these.
ALL_TRAIN = "--config.rules=(('llm/embedder/.*',None),('.*',1.0))"


def train_arguments(config: str, workdir: os.PathLike | str, *overrides: str) -> list:
    """Returns the arguments of `hive_jax.train` for a config file on the micro model.

    Args:
      config: name of a file in configs/, optionally with ":ARGUMENTS".
      workdir: folder of the run.
      *overrides: further arguments.
    """
    config = f"{ROOT}/configs/{config}{',' if ':' in config else ':'}{TOWERS}"
    return ["--config", config, "--workdir", str(workdir), *MICRO, *overrides]


def command(config: str, workdir: os.PathLike | str, *overrides: str) -> list[str]:
    """Returns the training command; arguments as for `train_arguments`."""
    arguments = train_arguments(config, workdir, *overrides)
    return [sys.executable, "-m", "hive_jax.train", *arguments]


def start(
    arguments: Sequence[str], cache: Path, devices: int = 1, **environment: str
) -> subprocess.Popen:
    """Starts a command on virtual CPU devices.

    Args:
      arguments: the command line.
      cache: folder of compiled programs, kept for the next start.
      devices: number of virtual devices.
      **environment: further environment variables.
    """
    flag = f"--xla_force_host_platform_device_count={devices}"
    return subprocess.Popen(
        arguments,
        cwd=ROOT,
        env={
            **os.environ,
            "JAX_PLATFORMS": "cpu",
            "XLA_FLAGS": f"{FAST_COMPILATION} {flag}",
            "JAX_COMPILATION_CACHE_DIR": str(cache),
            "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
            **environment,
        },
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def joined(
    arguments: Sequence[str], process: int, port: int, processes: int = 2
) -> list[str]:
    """Returns the command of one process of a job on this machine.

    Args:
      arguments: the command line of a single process.
      process: index of the process.
      port: of the coordinator.
      processes: number of processes of the job.
    """
    address = f"--coordinator_address=localhost:{port}"
    job = [address, f"--num_processes={processes}", f"--process_id={process}"]
    return [*arguments, *job]


def free_port() -> int:
    """Returns a TCP port that is free now."""
    with socket.socket() as probe:
        probe.bind(("", 0))
        return probe.getsockname()[1]


def run(arguments: Sequence[str], cache: Path) -> tuple[int, str]:
    """Runs a command; returns its exit code and output. Arguments as for `start`."""
    process = start(arguments, cache)
    output, _ = process.communicate(timeout=300)
    return process.returncode, output


def finish(process: subprocess.Popen) -> str:
    """Waits until a process succeeds; returns its output. Raises as `finish_all`."""
    return finish_all([process])[0]


def finish_all(
    processes: Sequence[subprocess.Popen], timeout: float = 600
) -> list[str]:
    """Waits until all processes succeed; returns the output of each.

    None is left behind if one of them fails.

    Args:
      processes: started by `start`.
      timeout: in seconds, for each.

    Raises:
      RuntimeError: an exit code is not 0; with all outputs.
    """
    try:
        outputs = [process.communicate(timeout=timeout)[0] for process in processes]
    finally:
        for process in processes:
            process.kill()
    codes = [process.returncode for process in processes]
    if any(codes):
        raise RuntimeError(f"exit codes {codes}\n" + "\n".join(outputs))
    return outputs


def wait_until(
    condition: Callable[[], bool], process: subprocess.Popen, seconds: float = 200
) -> bool:
    """Waits for a condition; returns False if the process ends or time is up first.

    Args:
      condition: called every 2 ms.
      process: that makes it true.
      seconds: limit.
    """
    deadline = time.monotonic() + seconds
    while not condition():
        if process.poll() is not None or time.monotonic() > deadline:
            return False
        time.sleep(0.002)
    return True


def num_logged(workdir: os.PathLike) -> int:
    """Returns the number of lines in metrics.jsonl; 0 if there is none."""
    try:
        return (workdir / "metrics.jsonl").read_bytes().count(b"\n")
    except FileNotFoundError:
        return 0


def losses(workdir: os.PathLike) -> dict[int, float]:
    """Returns step -> training loss, from metrics.jsonl.

    Raises RuntimeError if a step is there twice.
    """
    lines = (as_path(workdir) / "metrics.jsonl").read_text().splitlines()
    rows = [row for row in map(json.loads, lines) if "train/loss" in row]
    by_step = {row["step"]: row["train/loss"] for row in rows}
    if len(by_step) != len(rows):
        raise RuntimeError(f"{workdir}: a step was logged twice")
    return by_step


def outcome(workdir: os.PathLike | str) -> dict:
    """Returns what equal runs have in common: result.json, the fingerprint of every
    leaf of the newest checkpoint, and all training losses."""
    from hive_jax.training.checkpointing.manager import Checkpoints

    with Checkpoints(str(workdir), read_only=True) as checkpoints:
        meta = checkpoints.read_meta()
    return {
        "result": json.loads((as_path(workdir) / "result.json").read_text()),
        "fingerprints": meta["fingerprints"],
        "losses": losses(workdir),
    }


def unequal(
    workdir: os.PathLike, reference: os.PathLike, common_steps: bool = False
) -> list[str]:
    """Returns the keys of `outcome` in which two runs differ.

    Args:
      workdir: of a run.
      reference: workdir of another one.
      common_steps: compare only the losses of steps that both have logged.
    """
    actual, expected = outcome(workdir), outcome(reference)
    if common_steps:
        common = actual["losses"].keys() & expected["losses"].keys()
        for one in (actual, expected):
            one["losses"] = {step: one["losses"][step] for step in common}
    return [key for key in expected if actual[key] != expected[key]]


def steps(workdir: Path) -> list[int]:
    """Returns the complete steps in a workdir's checkpoints/, ascending."""
    return sorted(map(int, filter(str.isdecimal, list_names(workdir / "checkpoints"))))


def unfinished_saves(workdir: os.PathLike) -> list[str]:
    """Returns the folders in checkpoints/ of saves that have not ended."""
    folder = workdir / "checkpoints"
    names = list_names(folder)
    if is_url(workdir):  # nothing is renamed in a bucket
        return [name for name in names if not (folder / name / "meta.json").exists()]
    return [name for name in names if ".orbax-checkpoint-tmp" in name]
