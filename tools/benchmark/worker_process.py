"""Processes that train on request, and their steps timed in turns.

A worker is given a job, a JSON file, as its last argument. It then answers requests, a
line of JSON each, on its standard output:

    it starts     {"ready": {"device": ..., "versions": {...}}}
    {"steps": n}  {"seconds": s, "losses": [n numbers], "peak_bytes": b or null}

`seconds` is the time of one of the n steps, made in a row and waited for at the end. A
worker that runs out of memory answers {"out_of_memory": "..."} and ends, as all do
when their standard input is closed.
"""

import contextlib
import json
import os
import subprocess
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from hive_jax.errors import HiveError


class WorkerError(HiveError):
    """A worker exited, or violated the protocol."""

    exit_code = 70


class OutOfMemory(WorkerError):
    """A worker ran out of device memory."""


class Worker:
    """A running worker process; its standard error goes to a log file.

    Attributes:
      name: for messages.
      about: `device` and `versions`, once the worker is ready.
    """

    def __init__(
        self,
        name: str,
        command: Sequence[str],
        job: Mapping,
        folder: Path,
        environment: Mapping[str, str],
    ):
        """Starts `command`, with the path of the job as its last argument; `folder` is
        made, for the job and the log."""
        folder.mkdir(parents=True)
        self.name, self.about = name, {}
        self._log = folder / "log.txt"
        path = folder / "job.json"
        path.write_text(json.dumps(job), encoding="utf-8")
        # A file and not a pipe, which would fill and block the worker.
        with open(self._log, "wb") as log:
            self._process = subprocess.Popen(
                [*command, str(path)],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=log,
                env={**os.environ, **environment},
                text=True,
            )

    def wait_until_ready(self) -> None:
        """Waits until the worker has loaded its weights."""
        self.about = self._answer()["ready"]

    def run(self, steps: int) -> dict:
        """Makes train steps and returns the worker's answer.

        Raises:
          OutOfMemory, WorkerError: the worker has ended.
        """
        # A worker that has ended: `_answer` says why.
        with contextlib.suppress(BrokenPipeError):
            self._process.stdin.write(json.dumps({"steps": steps}) + "\n")
            self._process.stdin.flush()
        return self._answer()

    def close(self) -> None:
        """Asks the worker to exit, and waits for it."""
        with contextlib.suppress(BrokenPipeError):
            self._process.stdin.close()
        try:
            self._process.wait(timeout=30)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        self._process.stdout.close()

    def _answer(self) -> dict:
        line = self._process.stdout.readline()
        if not line:
            # End of its output: the process is about to exit, or has.
            code = self._process.wait()
            output = self._log.read_text(encoding="utf-8", errors="replace").strip()
            raise WorkerError(
                f"{self.name}: the worker ended with exit code {code}:\n{output[-2000:]}"
            )
        answer = json.loads(line)
        if "out_of_memory" in answer:
            raise OutOfMemory(f"{self.name}: {answer['out_of_memory']}")
        return answer


@contextlib.contextmanager
def on_cpus(count: int) -> Iterator[None]:
    """Pins processes started in this block to the first `count` CPUs.

    Libraries that start a thread for each CPU then all start equally many.
    """
    if not hasattr(os, "sched_setaffinity"):
        yield
        return
    before = os.sched_getaffinity(0)
    # Child processes inherit it.
    os.sched_setaffinity(0, sorted(before)[:count])
    try:
        yield
    finally:
        os.sched_setaffinity(0, before)


def in_turns(
    workers: Sequence[Worker], rounds: int, steps: int
) -> dict[str, list[dict]]:
    """Runs all workers in turns and returns their answers by worker name.

    In a round each worker makes `steps` steps while the others wait. A warm-up round
    before the first is not counted.

    Args:
      workers: started workers.
      rounds: counted rounds; 0 runs nothing.
      steps: train steps of a worker in a round.
    """
    answers = {worker.name: [] for worker in workers}
    for number in range(rounds + 1 if rounds else 0):
        for worker in workers:
            answer = worker.run(steps)
            # Round 0 warms up: compilation, caches, autotuning.
            if number:
                answers[worker.name].append(answer)
    return answers
