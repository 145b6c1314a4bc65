"""The subcommands of the fault suite: goals, counts, and what other projects do."""

import dataclasses
import importlib
import tempfile
import time
from pathlib import Path

from hive_jax.buckets import as_path
from hive_jax.io import require_absent
from tools.fault_suite.figure import Figure


@dataclasses.dataclass(frozen=True)
class Subject:
    """A subcommand.

    Attributes:
      id: of the figure.
      module: in this package, with a function `measure(count, folder, cache)`.
      fault: what is caused.
      goal: what must come of every case.
      count: cases of a full run.
      elsewhere: what other projects promise, and what their tests do.
    """

    id: str
    module: str
    fault: str
    goal: str
    count: int
    elsewhere: str


# fmt: off
SUBJECTS = {
    "kill": Subject("G1", "kill", "SIGKILL in all stages, half of them in a save, and at hand-overs",
        "equal losses, results and fingerprints", 200,
        "MaxText: one clean restart, one loss equal or within 10 %. Levanter promises it, without a test"),
    "crash_states": Subject("G2", "crash_states", "what a kill or power failure leaves in checkpoints/",
        "the newest complete step, or for a damaged one an older, with the right bits", 500,
        "Orbax: left temporary folders, and a final rename that is mocked"),
    "sigterm": Subject("G3", "sigterm", "SIGTERM in training, validation and start-up, of one process and of two",
        "code 75 within 10 s, no step lost", 50,
        "Orbax saves on preemption, tested with a mocked flag; Lightning tests its exit code"),
    "damage": Subject("G4", "damage", "a damaged file in a checkpoint",
        "verified equal, or the older step with a message; never wrong values", 1000,
        "Orbax: ten kinds of missing files; array values have no checksum"),
    "disk_full": Subject("G5", "disk_full", "a full disk",
        "the run goes on, or ends with 73; then the bits of an undisturbed one", 7,
        "no test found; torchtitan survives a failed deletion"),
    "order": Subject("G6", "order", "a resume at any step, with other hosts and threads",
        "the same batches; each sample once an epoch", 1000,
        "torchtitan: 8 batches on two ranks; Grain's elastic iterator refuses filters"),
    "reshard": Subject("G7", "reshard", "a checkpoint restored on another mesh; two processes in place of one",
        "equal bits; losses within 1e-5, of processes within 2e-6", 15,
        "MaxText: losses within 10 %"),
    "bad_images": Subject("G8", "bad_images", "damaged images, 0 to 50 %",
        "each counted and named, none used, every other once an epoch", 5,
        "torchtitan drops them without a count; LLaVA-NeXT trains on the next sample instead"),
    "config_fuzz": Subject("G9", "config_fuzz", "a wrong key or value of a config",
        "refused by name, or taken as given", 20_000,
        "MaxText: one unknown key"),
    "mismatch": Subject("G10", "mismatch", "a tensor that is missing, renamed, or of another shape, dtype or value",
        "nothing loaded, the tensor named", 10_000,
        "MaxText: three cases by name; dtypes are cast silently by Orbax"),
    "nan": Subject("G11", "non_finite", "NaN or infinity in a parameter, a moment or the loss",
        "never in a checkpoint; code 70", 100,
        "torchtitan and MaxText stop on a loss that is not finite"),
    "hosts": Subject("G12", "hosts", "a process of a job killed, stopped or asleep",
        "all end within 30 s with code 75, the process named; equal bits at the end", 28,
        "JAX: a killed worker ends the others after 94 s, a sleeping one never"),
    "hostile": Subject("G13", "hostile", "hostile names, weights, JSON, pipes and images",
        "no code, no network, nothing outside of the folder; an error within 5 s", 20_000,
        "huggingface_hub: 13 names; safetensors and Pillow are fuzzed"),
    "export": Subject("G14", "export", "a killed export",
        "nothing partial under the final name; equal bits when read back", 50,
        "Levanter and transformers test round trips, without kills"),
    "goodput": Subject("G15", "goodput", "the default run, killed once a minute",
        "equal bits; the share of the undisturbed speed is reported", 3,
        "MaxText reports goodput on Google Cloud"),
    "messages": Subject("G16", "messages", "mistakes of users, and spoiled files",
        "a message that names it, the right exit code, no traceback", 200,
        "none found"),
}
# fmt: on


def measure(name: str, count: int | None, workdir: str, cache: Path) -> Figure:
    """Causes the faults of a subcommand.

    Args:
      name: key of SUBJECTS.
      count: cases; None for a full run.
      workdir: folder for runs, local or a URL; empty for a temporary one.
      cache: folder of compiled programs.

    Raises:
      OutputError: the folder of the fault exists.
    """
    subject = SUBJECTS[name]
    module = importlib.import_module(f"tools.fault_suite.{subject.module}")
    with tempfile.TemporaryDirectory() as temporary:
        folder = as_path(workdir or temporary) / name
        require_absent(folder)  # a run in it would be resumed
        folder.mkdir(parents=True)
        began = time.monotonic()
        figure = module.measure(count or subject.count, folder, cache)
        figure.seconds = round(time.monotonic() - began, 1)
    return figure
