"""Disturbs a job of three processes, and compares its end with an undisturbed job's.

    python tests/host_loop.py --rounds 2
    python tests/host_loop.py --workdir s3://bucket/run  # the undisturbed one is local

Each round kills a process (SIGKILL), stops one (SIGSTOP), and, of a run in a folder, fills
the disk of one; which one, and whether in a save or at another moment, is drawn. A supervisor
starts the job again after exit code 75. Prints the seconds until all processes have
ended, their codes and messages, and whether all bits agree.
"""

import argparse
import random
import resource
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import distributed_grid
import kill_loop

PROCESSES = 3
OPTIONS = (
    "--config.rules=(('llm/embedder/.*',None),('.*',1.0))",
    "--config.log_every=1",
    "--config.eval_every=20",
    "--config.checkpoint_every=5",
    "--config.mesh.fsdp=3",
    "--config.mesh.data=1",
    "--config.batch_size=12",
    "--config.data.augment=True",
)
FAULTS = ("SIGKILL", "SIGSTOP", "full disk")
FULL_DISK_SECONDS = 10


def start(workdir, cache: Path, total_steps: int) -> list[subprocess.Popen]:
    """Starts all processes of the job."""
    steps = f"--config.total_steps={total_steps}"
    command = kill_loop.command("stage1.py", workdir, *OPTIONS, steps)
    address = f"--coordinator_address=localhost:{distributed_grid.free_port()}"
    job = [address, f"--num_processes={PROCESSES}"]
    return [
        distributed_grid.start([*command, *job, f"--process_id={i}"], cache)
        for i in range(PROCESSES)
    ]


def finish(processes: list[subprocess.Popen]) -> tuple[list[int], list[str]]:
    """Waits for all processes; returns their exit codes and outputs."""
    try:
        outputs = [process.communicate(timeout=1800)[0] for process in processes]
    finally:
        for process in processes:
            process.kill()
    return [process.returncode for process in processes], outputs


def disturb(processes: list, workdir, fault: str, draw: random.Random) -> int:
    """Waits until the job trains; kills or stops a process or fills its disk."""
    # Training, not start-up: before they join, the processes do not watch each other.
    old, state = set(kill_loop.unfinished_saves(workdir)), progress(workdir)
    while progress(workdir) == state:
        time.sleep(0.1)
    time.sleep(draw.uniform(0, 2))
    in_save = draw.random() < 0.5
    while in_save and not set(kill_loop.unfinished_saves(workdir)) - old:
        time.sleep(0.002)
    victim = draw.randrange(PROCESSES)
    where = "in a save" if in_save else "elsewhere"
    print(f"{fault}, process {victim}, {where}: ", end="", flush=True)
    if fault == "full disk":
        # Writes beyond the limit fail, as they do on a full disk.
        process, kind = processes[victim].pid, resource.RLIMIT_FSIZE
        limits = resource.prlimit(process, kind)
        resource.prlimit(process, kind, (1, limits[1]))
        time.sleep(FULL_DISK_SECONDS)
        if processes[victim].poll() is None:
            resource.prlimit(process, kind, limits)
    else:
        processes[victim].send_signal(getattr(signal, fault))
    return victim


def progress(workdir):
    """A value that changes while the job trains: in a bucket, logs come with saves."""
    from hive_jax.buckets import list_names

    if not isinstance(workdir, Path):
        return list_names(workdir / "checkpoints")
    log = workdir / "metrics.jsonl"
    return log.stat().st_mtime if log.exists() else 0


def supervise(workdir, cache: Path, total_steps: int, rounds: int) -> None:
    """Starts the job again while it ends with 75."""
    faults = FAULTS if isinstance(workdir, Path) else FAULTS[:2]
    faults, draw = list(faults) * rounds, random.Random(0)
    codes = [75]
    while 75 in codes:
        processes = start(workdir, cache, total_steps)
        survived = True
        while survived and faults:
            fault = faults.pop(0)
            victim = disturb(processes, workdir, fault, draw)
            if fault == "full disk" and all(p.poll() is None for p in processes):
                print("goes on", flush=True)
                continue
            survived, began = False, time.monotonic()
        codes, outputs = finish(processes)
        if not survived:
            report(codes, outputs, victim, time.monotonic() - began)
    assert codes == [0] * PROCESSES, "\n".join(outputs)


def report(codes: list, outputs: list, victim: int, seconds: float) -> None:
    """Prints how a job ended, with the message of a process that was not disturbed."""
    survivor = outputs[victim - 1].splitlines()
    message = next((line for line in survivor if line.startswith("error")), "")
    print(f"{seconds:.1f} s, codes {codes}, {message}", flush=True)


def main() -> None:
    from hive_jax.buckets import as_path

    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--total_steps", type=int, default=200)
    parser.add_argument("--workdir", default="", help="of the disturbed job, a URL")
    args = parser.parse_args()
    folder = Path(tempfile.mkdtemp())
    cache = folder / "cache"
    try:
        reference = folder / "reference"
        disturbed = as_path(args.workdir or folder / "disturbed")
        codes, outputs = finish(start(reference, cache, args.total_steps))
        assert codes == [0] * PROCESSES, "\n".join(outputs)
        supervise(disturbed, cache, args.total_steps, args.rounds)
        expected, actual = kill_loop.outcome(reference), kill_loop.outcome(disturbed)
    finally:
        shutil.rmtree(folder)
    same = {name: actual[name] == expected[name] for name in expected}
    print("bit-equal:", ", ".join(f"{name} {equal}" for name, equal in same.items()))
    sys.exit(0 if all(same.values()) else 1)


if __name__ == "__main__":
    sys.path.insert(0, str(kill_loop.ROOT))
    main()
