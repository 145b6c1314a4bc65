"""Disturbs a job of three processes, and compares its end with an undisturbed job's.

    python tests/host_loop.py --faults 6

Kills (SIGKILL) and stops (SIGSTOP) a random process in turn, in a save or at a random
moment of the training. A supervisor of ten lines starts the job again after exit code 75.
Prints how long the job took to end, with which codes, and whether all bits agree.
"""

import argparse
import random
import shutil
import signal
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


def start(workdir: Path, cache: Path, total_steps: int) -> list:
    """Starts all processes of the job."""
    steps = f"--config.total_steps={total_steps}"
    command = kill_loop.command("stage1.py", workdir, *OPTIONS, steps)
    address = f"--coordinator_address=localhost:{distributed_grid.free_port()}"
    job = [address, f"--num_processes={PROCESSES}"]
    return [
        distributed_grid.start([*command, *job, f"--process_id={i}"], cache)
        for i in range(PROCESSES)
    ]


def ended(processes: list) -> tuple[list[int], list[str]]:
    """Waits for all processes; returns their exit codes and outputs."""
    outputs = [process.communicate(timeout=600)[0] for process in processes]
    return [process.returncode for process in processes], outputs


def disturb(processes: list, workdir: Path, number: int, draw: random.Random) -> int:
    """Kills or stops one process; returns its index."""
    # Training, not start-up: before they join, the processes do not watch each other.
    old, log = set(kill_loop.unfinished_saves(workdir)), workdir / "metrics.jsonl"
    modified = log.stat().st_mtime if log.exists() else 0
    while not log.exists() or log.stat().st_mtime == modified:
        time.sleep(0.1)
    time.sleep(draw.uniform(0, 2))
    while number % 4 < 2 and processes[0].poll() is None:
        if set(kill_loop.unfinished_saves(workdir)) - old:
            break
        time.sleep(0.002)
    victim = draw.randrange(PROCESSES)
    fault = signal.SIGKILL if number % 2 == 0 else signal.SIGSTOP
    processes[victim].send_signal(fault)
    print(f"{fault.name} to process {victim}", end=": ", flush=True)
    return victim


def supervise(workdir: Path, cache: Path, total_steps: int, faults: int) -> None:
    """Starts the job again while it ends with 75."""
    draw, number = random.Random(0), 0
    while True:
        processes = start(workdir, cache, total_steps)
        victim = disturb(processes, workdir, number, draw) if number < faults else None
        began = time.monotonic()
        codes, outputs = ended(processes)
        if victim is not None:
            lines = [
                line for line in outputs[victim - 1].splitlines() if "error" in line
            ]
            print(
                f"{time.monotonic() - began:.1f} s, codes {codes}, {lines}", flush=True
            )
        number += 1
        if 75 not in codes:
            assert codes == [0] * PROCESSES, "\n".join(outputs)
            return


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--faults", type=int, default=6)
    parser.add_argument("--total_steps", type=int, default=400)
    args = parser.parse_args()
    folder = Path(tempfile.mkdtemp())
    cache = folder / "cache"
    try:
        reference, disturbed = folder / "reference", folder / "disturbed"
        codes, outputs = ended(start(reference, cache, args.total_steps))
        assert codes == [0] * PROCESSES, "\n".join(outputs)
        supervise(disturbed, cache, args.total_steps, args.faults)
        expected, actual = kill_loop.outcome(reference), kill_loop.outcome(disturbed)
    finally:
        shutil.rmtree(folder)
    same = {name: actual[name] == expected[name] for name in expected}
    print("bit-equal:", ", ".join(f"{name} {equal}" for name, equal in same.items()))
    sys.exit(0 if all(same.values()) else 1)


if __name__ == "__main__":
    sys.path.insert(0, str(kill_loop.ROOT))
    main()
