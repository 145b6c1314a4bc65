"""What there is to do, as commands: encoders, a VLM on each, probes, benchmarks."""

import dataclasses
from collections.abc import Iterator
from pathlib import Path

BASE = "base"
FUSIONS = ("hive", "cascaded", "self_attention")
_BASE_ENCODER = "builtin:tabletop_siglip"
# Those that the paper reports of its VLM.
TASKS = ("mme", "gqa", "okvqa", "scienceqa")


@dataclasses.dataclass(frozen=True)
class Scale:
    """Numbers of training steps and images.

    Attributes:
      stages: steps of the three stages, the same for all fusions.
      vlm: steps of the connector, and of the LLM's training.
      images: of each benchmark.
      train, test: images of the probes.
      depths: whether every depth is probed.
    """

    stages: tuple[int, int, int] = (200, 150, 500)
    vlm: tuple[int, int] = (100, 500)
    images: int = 350
    train: int = 4000
    test: int = 2000
    depths: bool = True


# By name: what --scale takes.
SCALES = {
    "tabletop": Scale(),
    "tabletop_long": Scale(stages=(200, 150, 2000)),
}
# Enough to see every command run; the scores mean nothing.
QUICK = Scale((40, 40, 80), (30, 100), 70, 2000, 500, depths=False)


@dataclasses.dataclass(frozen=True)
class Step:
    """A command, and a file that exists once it has succeeded.

    Attributes:
      command: module or tool, then its arguments.
    """

    name: str
    command: tuple[str, ...]
    done: Path


def steps_of_seed(scale: Scale, out: Path, seed: int) -> Iterator[Step]:
    """Yields the training of each encoder and of a VLM on it, and their evaluations.

    Args:
      scale: steps and images.
      out: folder of the reproduction.
      seed: of all runs.
    """
    # Base is the encoder as it comes: no pre-training, the same VLM and probe.
    for arm in (BASE, *FUSIONS):
        folder, encoder = out / f"seed{seed}" / arm, _BASE_ENCODER
        name = f"seed {seed}, {arm}"
        if arm != BASE:
            yield from _training_steps(scale, folder, name, arm, seed)
            encoder = str(folder / "stage3")
        yield from _evaluation_steps(scale, out, folder, name, encoder, seed)


def benchmarks(scale: Scale, out: Path) -> Step:
    """Returns the step that writes the files of the four benchmarks.

    Args:
      scale: its `images` is the size of each benchmark.
      out: folder of the reproduction.
    """
    folder = out / "benchmarks"
    command = ("tabletop", "benchmarks", f"--out={folder}", f"--count={scale.images}")
    # The last file that the command writes.
    return Step("benchmarks", command, folder / "scienceqa/pid_splits.json")


def depths(scale: Scale, out: Path) -> Step:
    """Returns the step that probes the encoders of seed 0 at every depth.

    Args:
      scale: images of the probes.
      out: folder of the reproduction.
    """
    # One seed: the sweep is a figure, not a row of the tables.
    arms = {arm: str(out / f"seed0/{arm}/stage3") for arm in FUSIONS}
    encoders = {BASE: _BASE_ENCODER} | arms
    runs = [f"{name}={path}" for name, path in encoders.items()]
    folder = out / "depths"
    command = (*_probe(scale, *runs), "--sweep_depths", f"--out={folder}")
    return Step("depths", command, folder / "depths.png")


def comparison(out: Path, seeds: int) -> Step:
    """Returns the step that writes the comparison tables of the first seeds.

    Its `done` file never exists: the step runs each time.

    Args:
      out: folder of the reproduction.
      seeds: number of seeds to compare.
    """
    runs = [
        f"{arm}={out}/seed{seed}/{arm}"
        for arm in (BASE, *FUSIONS)
        for seed in range(seeds)
    ]
    folder = out / "comparison"
    command = ("compare", *runs, f"--out={folder}", "--paper")
    return Step(f"tables of {seeds} seeds", command, folder / "none")


def _training_steps(scale: Scale, folder: Path, name: str, fusion: str, seed: int):
    # Each stage starts from the one before; the first from its config's initial
    # weights.
    previous = ""
    for number, steps in enumerate(scale.stages, 1):
        workdir = folder / f"stage{number}"
        command = (
            *("train", "--config", f"configs/stage{number}.py:fusion={fusion}"),
            *_run(workdir, steps, seed),
            *([f"--config.init={previous}"] if previous else []),
        )
        yield Step(f"{name}, stage {number}", command, workdir / "result.json")
        previous = workdir


def _evaluation_steps(
    scale: Scale, out: Path, folder: Path, name: str, encoder: str, seed: int
):
    """Yields the probe, the VLM on the encoder, and its benchmark answers."""
    vlm1, vlm2, evaluation = folder / "vlm1", folder / "vlm2", folder / "evaluation"
    yield Step(
        f"{name}, probe",
        (*_probe(scale, encoder), f"--out={evaluation}"),
        evaluation / "probe_linear/result.json",
    )
    yield Step(
        f"{name}, VLM 1",
        (
            *("train", "--config", "configs/vlm1.py"),
            *_run(vlm1, scale.vlm[0], seed),
            f"--config.init_encoder={encoder}",
        ),
        vlm1 / "result.json",
    )
    yield Step(
        f"{name}, VLM 2",
        (
            *("train", "--config", "configs/vlm2.py"),
            *_run(vlm2, scale.vlm[1], seed),
            f"--config.init={vlm1}",
        ),
        vlm2 / "result.json",
    )
    yield Step(
        f"{name}, benchmarks",
        (
            *("evaluate", f"--run={vlm2}", f"--task={','.join(TASKS)}"),
            *(
                f"--data={out / 'benchmarks'}",
                f"--out={evaluation}",
                "--max_new_tokens=16",
            ),
        ),
        evaluation / TASKS[-1] / "result.json",
    )


def _run(workdir: Path, steps: int, seed: int) -> tuple[str, ...]:
    return (
        f"--workdir={workdir}",
        f"--config.total_steps={steps}",
        f"--config.seed={seed}",
    )


def _probe(scale: Scale, *runs: str) -> tuple[str, ...]:
    return (
        *("probe", "--config", "configs/probe.py", "--run", *runs),
        f"--config.train=tabletop:classes,take=first:{scale.train}",
        f"--config.test=tabletop:classes,split=test,take=first:{scale.test}",
    )
