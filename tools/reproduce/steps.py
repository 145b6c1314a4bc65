"""What there is to do, as commands: encoders, a VLM on each, probes, benchmarks."""

import dataclasses
from collections.abc import Iterator
from pathlib import Path

BASE = "base"
# Those of docs/reproduction; --fusions takes others.
FUSIONS = ("hive", "cascaded", "self_attention")
# Names of hive_jax/models/presets.py. The first is the built-in one.
DECODERS = ("tiny", "tiny_llama")
_BASE_ENCODER = "builtin:tabletop_siglip"
# Those that the paper reports of its VLM.
TASKS = ("mme", "gqa", "okvqa", "scienceqa")


@dataclasses.dataclass(frozen=True)
class Scale:
    """Numbers of training steps and images.

    Attributes:
      stages: steps of the three stages, the same for all fusions.
      vlm: steps of the connector, and of the LLM's training.
      decoder: steps of a decoder that is not built in.
      images: of each benchmark.
      train, test: images of the probes.
      depths: whether every depth is probed.
    """

    stages: tuple[int, int, int] = (200, 150, 500)
    vlm: tuple[int, int] = (100, 500)
    decoder: int = 1000
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
QUICK = Scale((40, 40, 80), (30, 100), 200, 70, 2000, 500, depths=False)


@dataclasses.dataclass(frozen=True)
class Reproduction:
    """What is compared.

    Attributes:
      out: folder for the runs and tables; absolute.
      scale: numbers of steps and images.
      fusions: those to compare with the base.
      decoder: one of DECODERS, the LLM of the pre-training and of the VLMs.
    """

    out: Path
    scale: Scale
    fusions: tuple[str, ...] = FUSIONS
    decoder: str = DECODERS[0]


@dataclasses.dataclass(frozen=True)
class Step:
    """A command, and a file that exists once it has succeeded.

    Attributes:
      command: module or tool, then its arguments.
    """

    name: str
    command: tuple[str, ...]
    done: Path


def decoder(plan: Reproduction) -> Iterator[Step]:
    """Yields the training of the decoder, unless it is the built-in one."""
    if plan.decoder != DECODERS[0]:
        workdir = _decoder_folder(plan)
        config = f"configs/stage0.py:llm,decoder={plan.decoder}"
        command = ("train", "--config", config, f"--workdir={workdir}")
        command = (*command, f"--config.total_steps={plan.scale.decoder}")
        yield Step("decoder", command, workdir / "result.json")


def steps_of_seed(plan: Reproduction, seed: int) -> Iterator[Step]:
    """Yields the training of each encoder and of a VLM on it, and their evaluations.

    Args:
      plan: see Reproduction.
      seed: of all runs.
    """
    # Base is the encoder as it comes: no pre-training, the same VLM and probe.
    for arm in (BASE, *plan.fusions):
        folder, encoder = plan.out / f"seed{seed}" / arm, _BASE_ENCODER
        name = f"seed {seed}, {arm}"
        if arm != BASE:
            yield from _training_steps(plan, folder, name, arm, seed)
            encoder = str(folder / "stage3")
        yield from _evaluation_steps(plan, folder, name, encoder, seed)


def benchmarks(plan: Reproduction) -> Step:
    """Returns the step that writes the files of the four benchmarks."""
    folder, count = plan.out / "benchmarks", plan.scale.images
    command = ("tabletop", "benchmarks", f"--out={folder}", f"--count={count}")
    # The last file that the command writes.
    return Step("benchmarks", command, folder / "scienceqa/pid_splits.json")


def depths(plan: Reproduction) -> Iterator[Step]:
    """Yields the steps that probe the encoders of seed 0 at every depth, and compare them.

    Their `done` files never exist, as the encoders may have become more; a finished probe
    is not repeated.
    """
    # One seed: the sweep is a figure, not a row of the tables.
    arms = {arm: str(plan.out / f"seed0/{arm}/stage3") for arm in plan.fusions}
    encoders = {BASE: _BASE_ENCODER} | arms
    runs = [f"{name}={path}" for name, path in encoders.items()]
    folder = plan.out / "depths"
    command = (*_probe(plan.scale, *runs), "--sweep_depths", f"--out={folder}")
    yield Step("depths", command, folder / "none")
    # With the base at its best depth.
    runs = [f"{name}={folder / name}" for name in encoders]
    out = plan.out / "comparison_of_depths"
    yield Step("tables of depths", ("compare", *runs, f"--out={out}"), out / "none")


def comparison(plan: Reproduction, seeds: int) -> Step:
    """Returns the step that writes the comparison tables of the first seeds.

    Its `done` file never exists: the step runs each time.

    Args:
      plan: see Reproduction.
      seeds: number of seeds to compare.
    """
    runs = [
        f"{arm}={plan.out}/seed{seed}/{arm}"
        for arm in (BASE, *plan.fusions)
        for seed in range(seeds)
    ]
    folder = plan.out / "comparison"
    command = ("compare", *runs, f"--out={folder}", "--paper")
    return Step(f"tables of {seeds} seeds", command, folder / "none")


def _training_steps(
    plan: Reproduction, folder: Path, name: str, fusion: str, seed: int
) -> Iterator[Step]:
    # Each stage starts from the one before; the first from its config's initial
    # weights.
    start = _init_decoder(plan)
    for number, steps in enumerate(plan.scale.stages, 1):
        workdir = folder / f"stage{number}"
        command = (
            *("train", "--config", f"configs/stage{number}.py:fusion={fusion}"),
            *_run(workdir, steps, seed),
            *start,
        )
        yield Step(f"{name}, stage {number}", command, workdir / "result.json")
        start = (f"--config.init={workdir}",)


def _evaluation_steps(
    plan: Reproduction, folder: Path, name: str, encoder: str, seed: int
) -> Iterator[Step]:
    """Yields the probe, the VLM on the encoder, and its benchmark answers."""
    vlm1, vlm2, evaluation = folder / "vlm1", folder / "vlm2", folder / "evaluation"
    yield Step(
        f"{name}, probe",
        (*_probe(plan.scale, encoder), f"--out={evaluation}"),
        evaluation / "probe_linear/result.json",
    )
    yield Step(
        f"{name}, VLM 1",
        (
            *("train", "--config", "configs/vlm1.py"),
            *_run(vlm1, plan.scale.vlm[0], seed),
            f"--config.init_encoder={encoder}",
            *_init_decoder(plan),
        ),
        vlm1 / "result.json",
    )
    yield Step(
        f"{name}, VLM 2",
        (
            *("train", "--config", "configs/vlm2.py"),
            *_run(vlm2, plan.scale.vlm[1], seed),
            f"--config.init={vlm1}",
        ),
        vlm2 / "result.json",
    )
    yield Step(
        f"{name}, benchmarks",
        (
            *("evaluate", f"--run={vlm2}", f"--task={','.join(TASKS)}"),
            *(
                f"--data={plan.out / 'benchmarks'}",
                f"--out={evaluation}",
                "--max_new_tokens=16",
            ),
        ),
        evaluation / TASKS[-1] / "result.json",
    )


def _decoder_folder(plan: Reproduction) -> Path:
    return plan.out / "decoder"


def _init_decoder(plan: Reproduction) -> tuple[str, ...]:
    if plan.decoder == DECODERS[0]:
        return ()  # that of the configs
    return (f"--config.init_decoder={_decoder_folder(plan)}",)


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
