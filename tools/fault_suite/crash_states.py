"""Restores what a crash leaves in checkpoints/: photographs of saves, and made-up states.

A photograph is a copy of the folder while the process is stopped, which is what its kill
at that moment would leave. A power failure may also leave files empty or half.
"""

import hashlib
import itertools
import random
import shutil
import signal
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path

from tools.fault_suite import micro_run, stored_bits
from tools.fault_suite.figure import Figure, format_counts

_MADE_UP = 0.3  # of all states, at most


def measure(count: int, folder: Path, cache: Path) -> Figure:
    """Restores distinct states of a folder of checkpoints.

    Args:
      count: states, of which at most 30 % are made up.
      folder: for workdirs.
      cache: folder of compiled programs.
    """
    reference, outcomes, failures = folder / "reference", Counter(), []
    total_steps = 10 + count // 6
    stored_bits.train_short(reference, cache, total_steps, every=1)
    abstract = stored_bits.abstract_leaves(reference)
    bits = stored_bits.bits_of_steps(reference, abstract)
    state = folder / "state"
    made_up = [*_made_up_states(reference, folder / "small", state)]
    random.Random(0).shuffle(made_up)
    made_up = made_up[: round(_MADE_UP * count)]
    photographs = count - len(made_up)
    cases = itertools.chain(
        ((f"made up: {name}", make()) for name, make in made_up),
        _photographs(folder, state, cache, photographs, total_steps),
    )
    for name, allowed in cases:
        restored = stored_bits.restore(state, abstract, read_only=False)
        if problem := _problem(restored, allowed, bits):
            failures.append(f"{name}: {problem}")
        kind = "made-up states" if name.startswith("made up") else "photographs"
        before = restored.step is None and kind == "photographs"
        outcomes[kind + " before the first save" * before] += 1
    seen = f"{format_counts(outcomes)}; {len(failures)} unreadable, wrong or forgotten"
    return Figure(outcomes.total(), seen, failures)


def _problem(restored: stored_bits.Restored, allowed: set, bits: dict[int, str]) -> str:
    """Returns what is wrong with a restored state; empty if nothing is."""
    if restored.error:
        return restored.error
    if restored.step not in allowed:
        return f"restored {restored.step}; expected one of {allowed}"
    if restored.step is not None and restored.bits != bits[restored.step]:
        return f"wrong bits of step {restored.step}"
    return ""


def _photographs(
    folder: Path, state: Path, cache: Path, count: int, total_steps: int
) -> Iterator[tuple[str, set]]:
    """Yields (name, steps that may be restored) of each distinct photograph in `state`."""
    workdir, seen = folder / "photographed", set()
    options = (
        *(f"--config.total_steps={total_steps}", "--config.checkpoint_every=1"),
        f"--config.max_to_keep={total_steps}",
    )
    command = micro_run.command("stage1.py", workdir, micro_run.ALL_TRAIN, *options)
    while len(seen) < count:
        shutil.rmtree(workdir, ignore_errors=True)
        process = micro_run.start(command, cache)
        draw = random.Random(len(seen))
        try:
            checkpoints = workdir / "checkpoints"
            micro_run.wait_until(checkpoints.exists, process)
            while process.poll() is None and len(seen) < count:
                time.sleep(draw.uniform(0, 0.03))
                process.send_signal(signal.SIGSTOP)
                _copy(workdir, state)
                process.send_signal(signal.SIGCONT)
                if (digest := _digest(state)) not in seen:
                    seen.add(digest)
                    newest = max(micro_run.steps(state), default=None)
                    yield f"photograph {len(seen)}", {newest}
        finally:
            process.kill()
            process.communicate()


def _made_up_states(
    reference: Path, small: Path, state: Path
) -> Iterator[tuple[str, Callable[[], set]]]:
    """Yields the name of each state, and a function that makes it in `state` and returns
    the steps that may be restored.

    Args:
      reference: workdir of a finished run.
      small: workdir to write, with three of its steps.
      state: workdir to write, from `small` each time.
    """
    newest = max(micro_run.steps(reference))
    kept = {1, newest - 1, newest}
    for step in kept:
        path = Path("checkpoints", str(step))
        shutil.copytree(reference / path, small / path)
    damaged = small / "checkpoints" / str(newest)
    paths = sorted(damaged.rglob("*"))
    changes = [
        (f"{name} {path.relative_to(damaged)}", change, path.relative_to(damaged))
        for path in paths
        for name, change in (_FOLDERS if path.is_dir() else _FILES)
    ]
    changes += [(name, change, Path()) for name, change in _STEPS]
    for name, change, path in changes:

        def make(change=change, path=path) -> set:
            _copy(small, state)
            change(state / "checkpoints" / str(newest) / path)
            return kept

        yield name, make


def _copy(workdir: Path, state: Path) -> None:
    shutil.rmtree(state, ignore_errors=True)
    shutil.copytree(workdir / "checkpoints", state / "checkpoints")


def _digest(state: Path) -> str:
    sha = hashlib.sha256()
    for path in sorted(state.rglob("*")):
        sha.update(str(path.relative_to(state)).encode())
        sha.update(path.read_bytes() if path.is_file() else b"folder")
    return sha.hexdigest()


def _halve(path: Path) -> None:
    content = path.read_bytes()
    path.write_bytes(content[: len(content) // 2])


def _empty(path: Path) -> None:
    shutil.rmtree(path)
    path.mkdir()


def _make(name: str, is_folder: bool = True) -> Callable[[Path], None]:
    """Returns a function that puts an entry beside a step."""

    def make(step: Path) -> None:
        path = step.parent / name
        path.mkdir() if is_folder else path.write_text("")

    return make


_FILES = (
    ("empty file", lambda path: path.write_bytes(b"")),
    ("half a file", _halve),
    ("no file", Path.unlink),
)
_FOLDERS = (("empty folder", _empty), ("no folder", shutil.rmtree))
_STEPS = (
    ("empty step", _empty),
    ("no newest step", shutil.rmtree),
    (
        "unfinished save",
        lambda step: step.rename(f"{step}.orbax-checkpoint-tmp-1234567"),
    ),
    ("unfinished save of a later step", _make("999.orbax-checkpoint-tmp")),
    ("stray folder", _make("notes")),
    ("stray file", _make("7.txt", is_folder=False)),
    ("step set aside", _make("998.damaged-1700000000")),
    ("empty later step", _make("999")),
)
