"""Fills a small disk while a run trains on it."""

import contextlib
import os
import shutil
import signal
import subprocess
import threading
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

from tools.fault_suite import micro_run
from tools.fault_suite.figure import Figure, format_counts

_TOTAL_STEPS = 40
_LIMIT_SECONDS = 180
_SIZE = "9000k"
# Name -> steps between two saves, bytes that are left free, when the disk is full, until
# what, and the expected exit code.
_CASES = {
    "for one save": (3, 0, "running", "not written", 0),
    "but for 60 KB": (3, 60_000, "running", "not written", 0),
    "with a save at every step": (1, 0, "running", "not written", 0),
    "until the end": (3, 0, "running", "", 73),
    "at the start": (3, 0, "new", "", 73),
    "when resuming": (3, 0, "resumed", "", 73),
    "between saves": (35, 0, "running", "metrics are lost", 0),
}


def measure(count: int, folder: Path, cache: Path) -> Figure:
    """Trains on a disk of 9 MB; whatever was full, the run must end as an undisturbed one.

    Args:
      count: cases.
      folder: for the disk and for undisturbed runs.
      cache: folder of compiled programs.
    """
    codes, failures, references = Counter(), [], {}
    for name, (every, left, when, until, code) in list(_CASES.items())[:count]:
        if every not in references:
            references[every] = folder / f"every_{every}"
            micro_run.finish(_start(references[every], every, cache))
        try:
            with _small_disk(folder / "disk") as disk:
                got, output = _train(disk, every, left, when, until, cache)
                codes[f"with code {got}"] += 1
                problem = _problem(disk, got, code, output)
                (disk / "fill").unlink(missing_ok=True)
                # The next start removes what a failed save has left.
                if not problem and (got or micro_run.unfinished_saves(disk / "run")):
                    micro_run.finish(_start(disk / "run", every, cache))
                problem = problem or _difference(disk / "run", references[every])
        except PermissionError:
            reason = "needs the right to mount a file system"
            return Figure(0, "", skipped=reason)
        if problem:
            failures.append(f"full {name}: {problem}")
    seen = (
        f"{format_counts(codes)}; {len(failures)} hung or lost; each then ends with the "
        "losses and fingerprints of an undisturbed run"
    )
    return Figure(codes.total(), seen, failures)


def _start(workdir: Path, every: int, cache: Path) -> subprocess.Popen:
    options = (
        *(f"--config.total_steps={_TOTAL_STEPS}", f"--config.checkpoint_every={every}"),
        *(
            "--config.log_every=1",
            "--config.eval_every=1000",
            "--config.data.threads=1",
        ),
    )
    return micro_run.start(micro_run.command("stage1.py", workdir, *options), cache)


def _train(
    disk: Path, every: int, left: int, when: str, until: str, cache: Path
) -> tuple[int | str, str]:
    """Returns the exit code, or "hung", and the output of a run on a disk that fills."""
    workdir, output = disk / "run", []
    if when == "resumed":
        first = _start(workdir, every, cache)
        micro_run.wait_until(lambda: micro_run.num_logged(workdir) >= 8, first)
        first.send_signal(signal.SIGTERM)
        first.communicate()
    if when != "running":
        _fill(disk)
    process = _start(workdir, every, cache)
    # Read by a thread, so that the process never waits for the pipe.
    reader = threading.Thread(target=lambda: output.extend(process.stdout))
    reader.start()
    if when == "running":
        micro_run.wait_until(lambda: micro_run.num_logged(workdir) >= 5, process)
        process.send_signal(signal.SIGSTOP)
        _fill(disk, left)
        process.send_signal(signal.SIGCONT)
    if until:
        micro_run.wait_until(lambda: any(until in line for line in output), process)
        (disk / "fill").unlink()
    try:
        code = process.wait(_LIMIT_SECONDS)
    except subprocess.TimeoutExpired:
        code = "hung"
        process.kill()
    reader.join()
    return code, "".join(output)


def _problem(disk: Path, got: int | str, expected: int, output: str) -> str:
    """Returns what is wrong with the end of a run; empty if nothing is."""
    if got != expected or "Traceback" in output:
        return f"exit code {got}; expected {expected}: {output}"
    steps = micro_run.steps(disk / "run")
    # Of a failed save nothing may be taken for a step.
    return "" if all(step <= _TOTAL_STEPS for step in steps) else f"steps {steps}"


def _difference(workdir: Path, reference: Path) -> str:
    """Returns what differs from an undisturbed run; lines of metrics may be missing."""
    different = micro_run.unequal(workdir, reference, common_steps=True)
    if leftovers := micro_run.unfinished_saves(workdir):
        different.append(f"left behind {leftovers}")
    return ", ".join(different)


@contextlib.contextmanager
def _small_disk(path: Path) -> Iterator[Path]:
    """Mounts a file system in memory. Raises PermissionError if that is not allowed."""
    path.mkdir(exist_ok=True)
    mount = ["mount", "-t", "tmpfs", "-o", f"size={_SIZE}", "tmpfs", str(path)]
    if (
        not shutil.which("mount")
        or subprocess.run(mount, check=False, capture_output=True).returncode
    ):
        raise PermissionError(path)
    try:
        yield path
    finally:
        subprocess.run(["umount", "--lazy", path], check=True)


def _fill(disk: Path, left: int = 0) -> None:
    """Fills a disk by one file, up to some bytes."""
    path = disk / "fill"
    with path.open("wb", buffering=0) as file, contextlib.suppress(OSError):
        while file.write(bytes(4096)):
            pass
    if left:
        os.truncate(path, max(0, path.stat().st_size - left))
