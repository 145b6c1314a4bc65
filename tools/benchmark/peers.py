"""hive_jax against the same mathematics in PyTorch, on this machine.

Each variant trains in a process of its own, from the same weights in Hugging Face
folders and on the same batch. First the losses have to agree, at the start and after
two updates, and so gradients and optimizer too; only then is anything timed.
"""

import contextlib
import dataclasses
import importlib.util
import os
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from hive_jax.errors import ConfigError, HiveError, MissingInputError
from hive_jax.training.peak_flops import available_cpus
from tools.benchmark.cases import SIZES, Size
from tools.benchmark.variants import VARIANTS, Setting, make_jobs, write_inputs
from tools.benchmark.worker_process import OutOfMemory, Worker, in_turns, on_cpus

# Updates before the losses that are compared.
UPDATES = (0, 2)
# Largest difference of these, relative to their value: far above that of another order
# of sums, and far below that of a wrong gradient.
TOLERANCE = {"float32": 1e-4, "bfloat16": 2e-2}


class PeersDisagree(HiveError):
    """Two programs compute different losses, so their times cannot be compared."""

    exit_code = 70


def compare(
    size: Size,
    rules_by_stage: Mapping[int, tuple],
    *,
    rounds: int = 7,
    steps: int = 2,
    variants: Sequence[str] = tuple(VARIANTS),
    device: str = "",
    threads: int = 0,
    compile: str | None = None,
) -> dict:
    """Checks that the variants compute the same, then times their train steps.

    On a CPU in float32, all variants in turns; on a GPU in bfloat16, one after the
    other, for one alone may fill it, and after a check of small models in float32.

    Args:
      rules_by_stage: stage -> rules as in its config file; none may train the token
        embeddings.
      rounds: times that each variant is timed.
      steps: of a variant each time, made in a row.
      variants: names in VARIANTS, the references of the others among them.
      device: "cpu" or "gpu"; empty for what JAX finds.
      threads: of the CPU, for each variant; 0 for as many as there are CPUs.
      compile: a mode of torch.compile for the tuned peers, empty for eager; None for
        "default" on a GPU and eager on a CPU.

    Returns:
      A JSON-able dict: the fields of `Setting`, `batch_size`, `device_kind`,
      `versions`, `load` (processes ready to run in the minute before; with more
      than a few tenths the times are worth little, PyTorch's above all, whose threads
      wait for each other), and `stages`, stage -> variant -> its entry. An entry has
      `losses` (at the start, after one update, after two), `seconds` (of a step, for
      each round), their `median` and `minimum`, `images_per_second` (by the median),
      `peak_bytes` (on a GPU, else None), and `times`, variant of hive_jax -> how many
      times its seconds this one takes (the median over the rounds). It is
      {"out_of_memory": message} for a peer that the device is too small for.

    Raises:
      PeersDisagree: two losses differ; nothing is timed after that.
      ConfigError: arguments that cannot be used.
      MissingInputError: there is no torch.
      WorkerError: a worker ended; the message has what it wrote.
    """
    device = device or _platform()
    if compile is None:
        compile = "default" if device == "gpu" else ""
    dtype = "bfloat16" if device == "gpu" else "float32"
    # More threads than CPUs would wait for each other.
    cpus = min(threads or available_cpus(), available_cpus())
    setting = Setting(device, dtype, cpus, compile, rounds, steps)
    _require_possible(size, setting, variants)
    result = dataclasses.asdict(setting) | {"batch_size": size.batch_size}
    # Read before the workers start, which are load of their own.
    result |= {"device_kind": "", "versions": {}, "load": os.getloadavg()[0]}
    result["stages"] = {}
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        if device == "gpu":
            # bfloat16 alone could hide a small fault: the check is in float32, on small
            # models.
            exact = dataclasses.replace(setting, dtype="float32", rounds=0)
            write_inputs(folder / "small", SIZES["micro"], variants)
            for stage, rules in rules_by_stage.items():
                jobs = make_jobs(
                    folder / "small", SIZES["micro"], rules, variants, exact
                )
                measure(jobs, exact, f"stage {stage}, small models in float32")
        write_inputs(folder / "whole", size, variants)
        for stage, rules in rules_by_stage.items():
            jobs = make_jobs(folder / "whole", size, rules, variants, setting)
            entries = measure(jobs, setting, f"stage {stage}")
            for entry in entries.values():
                result["versions"] |= entry.pop("versions", {})
                result["device_kind"] = entry.pop("device", result["device_kind"])
            result["stages"][stage] = _compared(entries, size.batch_size)
    return result


def measure(jobs: Mapping[str, dict], setting: Setting, what: str) -> dict[str, dict]:
    """Runs jobs by name of the variant, those of references first; see `compare`.

    Args:
      what: is measured, for messages.

    Returns:
      Name -> `device`, `versions`, `losses`, and if setting.rounds is not 0, `seconds`
      and `peak_bytes`; or `out_of_memory`.
    """
    entries = {}
    together = setting.device == "cpu"
    # References come first, so that their losses are there when a peer is checked.
    for names in [list(jobs)] if together else [[name] for name in jobs]:
        try:
            with _running({name: jobs[name] for name in names}, setting) as workers:
                for worker in workers:
                    losses = worker.run(max(UPDATES) + 1)["losses"]
                    entries[worker.name] = worker.about | {"losses": losses}
                require_agreement(entries, TOLERANCE[setting.dtype], what)
                timed = in_turns(workers, setting.rounds, setting.steps)
        except OutOfMemory as error:
            # hive_jax without memory is an error; a peer without memory is a result.
            if together or not VARIANTS[names[0]].peer:
                raise
            entries[names[0]] = {"out_of_memory": str(error)}
            continue
        for name, answers in timed.items():
            entries[name]["seconds"] = [answer["seconds"] for answer in answers]
            entries[name]["peak_bytes"] = answers[-1]["peak_bytes"] if answers else None
    return entries


def require_agreement(
    entries: Mapping[str, Mapping], tolerance: float, what: str
) -> None:
    """Checks the loss of each entry against that of its reference.

    Entries without losses are skipped.

    Args:
      entries: by variant name; "losses" maps the number of updates to the loss.
      tolerance: largest difference, relative to the reference.
      what: start of the error message.

    Raises:
      PeersDisagree: a loss differs after one of UPDATES.
    """
    for name, entry in entries.items():
        reference = VARIANTS[name].reference
        for updates in UPDATES if "losses" in entry else ():
            expected = entries[reference]["losses"][updates]
            actual = entry["losses"][updates]
            # Not "if >": NaN must disagree.
            if not abs(actual - expected) <= tolerance * abs(expected):
                raise PeersDisagree(
                    f"{what}: after {updates} updates the loss of {name} is "
                    f"{actual:.7g} and that of {reference} is {expected:.7g}; expected the same "
                    f"within {tolerance:g} of its value. Nothing was timed: make the "
                    "two compute the same first"
                )


@contextlib.contextmanager
def _running(jobs: Mapping[str, dict], setting: Setting) -> Iterator[list[Worker]]:
    """A worker for each job, all of them loaded."""
    workers = []
    with tempfile.TemporaryDirectory() as temporary:
        # transformers copies a folder's modeling code there, and would find that of
        # before.
        environment = setting.environment() | {"HF_MODULES_CACHE": temporary}
        try:
            with on_cpus(setting.threads):
                for number, (name, job) in enumerate(jobs.items()):
                    folder = Path(temporary, str(number))
                    command = VARIANTS[name].command
                    workers.append(Worker(name, command, job, folder, environment))
            # All are started before one is waited for: they load at the same time.
            for worker in workers:
                worker.wait_until_ready()
            yield workers
        finally:
            for worker in workers:
                worker.close()


def _compared(entries: dict[str, dict], batch_size: int) -> dict[str, dict]:
    """The entries with what follows from their seconds."""
    references = [
        n for n in entries if not VARIANTS[n].peer and "seconds" in entries[n]
    ]
    for entry in entries.values():
        if "seconds" not in entry:
            continue
        seconds = entry["seconds"]
        median = statistics.median(seconds)
        entry |= {"median": median, "minimum": min(seconds)}
        entry["images_per_second"] = batch_size / median
        # Round by round: both were measured under the same load.
        entry["times"] = {
            name: statistics.median(
                own / reference
                for own, reference in zip(
                    seconds, entries[name]["seconds"], strict=True
                )
            )
            for name in references
        }
    return entries


def _require_possible(size: Size, setting: Setting, names: Sequence[str]) -> None:
    if importlib.util.find_spec("torch") is None:
        raise MissingInputError(
            "torch is not installed, and the peers need it: pip install torch"
        )
    if setting.device not in ("cpu", "gpu"):
        raise ConfigError(f"device is {setting.device!r}; expected 'cpu' or 'gpu'")
    if min(setting.rounds, setting.steps, setting.threads) < 1:
        raise ConfigError(
            f"rounds is {setting.rounds}, steps {setting.steps} and threads "
            f"{setting.threads}; expected 1 or more"
        )
    unknown = [name for name in names if name not in VARIANTS]
    if unknown:
        raise ConfigError(
            f"variant {unknown[0]!r}; expected some of {', '.join(VARIANTS)}"
        )
    for name in names:
        reference = VARIANTS[name].reference
        if reference not in names[: names.index(name) + 1]:
            raise ConfigError(f"variant {name!r} is compared with {reference!r}")
    if size.decoder.final_softcap:
        raise ConfigError("the peers have no final soft-cap; choose another decoder")


def _platform() -> str:
    """Returns the backend of JAX: "cpu", "gpu" or "tpu"."""
    # In a process of its own, because JAX holds memory of a GPU until it exits.
    code = "import jax; print(jax.default_backend())"
    command = [sys.executable, "-c", code]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
    return done.stdout.split()[-1]
