"""Trains with one process on one device, then with two processes of two devices each,
and compares the losses.

    python tests/distributed_grid.py

Every fusion and every stage through the real command on the micro model; the two
processes find each other on localhost. Prints the largest relative difference of the
losses of each run, and fails where it is more than rounding.
"""

import argparse
import json
import os
import socket
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

import kill_loop

FUSIONS, STAGES = ("hive", "cascaded", "joint", "self_attention"), (1, 2, 3)
MESH = ("--config.mesh.data=1", "--config.mesh.fsdp=2", "--config.mesh.tensor=2")
STEPS = ("--config.total_steps=6", "--config.log_every=1", "--config.eval_every=3")

# Of losses, relative. float32 rounds by up to 6e-8; sums over other parts of a batch,
# and five updates through Adam, have made up to 4e-7 of it.
TOLERANCE = 2e-6


def start(
    arguments: Sequence[str], cache: Path, devices: int = 1, **environment: str
) -> subprocess.Popen:
    """Starts a command on some fake devices; compiled programs are kept in `cache`."""
    flag = f"--xla_force_host_platform_device_count={devices}"
    return subprocess.Popen(
        arguments,
        cwd=kill_loop.ROOT,
        env={
            **os.environ,
            "JAX_PLATFORMS": "cpu",
            "XLA_FLAGS": f"{kill_loop.FAST_COMPILATION} {flag}",
            "JAX_COMPILATION_CACHE_DIR": str(cache),
            "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
            **environment,
        },
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def joined(arguments: Sequence[str], process: int, port: int) -> list[str]:
    """The command of one of two processes that meet at a port of this machine."""
    address = f"--coordinator_address=localhost:{port}"
    return [*arguments, address, "--num_processes=2", f"--process_id={process}"]


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("", 0))
        return probe.getsockname()[1]


def finish(processes: Sequence[subprocess.Popen], timeout: int = 300) -> list[str]:
    """What each process printed; none is left behind if one of them fails."""
    try:
        outputs = [process.communicate(timeout=timeout)[0] for process in processes]
    finally:
        for process in processes:
            process.kill()
    codes = [process.returncode for process in processes]
    assert not any(codes), f"exit codes {codes}\n" + "\n".join(outputs)
    return outputs


def run_alone(arguments: Sequence[str], cache: Path) -> str:
    """Trains with one process on one device; returns what it printed."""
    return finish([start(arguments, cache)])[0]


def run_joined(arguments: Sequence[str], cache: Path) -> list[str]:
    """Trains with two processes of two devices each; returns what each printed."""
    port = free_port()
    commands = [joined([*arguments, *MESH], process, port) for process in (0, 1)]
    return finish([start(command, cache, devices=2) for command in commands])


def losses(workdir: Path) -> dict[tuple[str, int], float]:
    """(name, step) -> every loss in metrics.jsonl."""
    lines = (workdir / "metrics.jsonl").read_text().splitlines()
    return {
        (name, row["step"]): value
        for row in map(json.loads, lines)
        for name, value in row.items()
        if name == "train/loss" or name.startswith("validation/loss")
    }


def difference(workdir: Path, other: Path) -> float:
    """The largest relative difference of the losses of two runs, of the same steps."""
    left, right = losses(workdir), losses(other)
    assert left and left.keys() == right.keys()
    return max(abs(left[key] - right[key]) / abs(left[key]) for key in left)


def compare(fusion: str, stage: int, folder: Path, cache: Path) -> float:
    """Trains both ways from the same parameters: those of the stage before."""
    alone = folder / f"{fusion}{stage}"
    together = folder / f"{fusion}{stage}_joined"
    config = f"stage{stage}.py:fusion={fusion}"
    init = (f"--config.init={folder / f'{fusion}{stage - 1}'}",) if stage > 1 else ()
    run_alone(kill_loop.command(config, alone, *STEPS, *init), cache)
    run_joined(kill_loop.command(config, together, *STEPS, *init), cache)
    return difference(alone, together)


def main() -> None:
    argparse.ArgumentParser(description=__doc__.splitlines()[0]).parse_args()
    found = []
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        for fusion in FUSIONS:
            for stage in STAGES:
                found.append(compare(fusion, stage, folder, folder / "cache"))
                print(f"{fusion:15} stage {stage}: {found[-1]:.1e}", flush=True)
    sys.exit(0 if max(found) <= TOLERANCE else 1)


if __name__ == "__main__":
    sys.path.insert(0, str(kill_loop.ROOT))
    main()
