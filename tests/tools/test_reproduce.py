"""The list of commands that makes the paper's tables, and how it is worked through."""

import dataclasses
import importlib
import itertools

import pytest
from conftest import ROOT

from hive_jax.config import ProbeConfig, RunConfig, from_dict, to_dict
from hive_jax.errors import HiveError, OutputError
from tools.reproduce import reproduce, steps
from tools.reproduce.__main__ import main

SMALL = steps.Scale((2, 2, 2), (2, 2), 2, 7, 50, 20, depths=False)


def plan(out, **changes):
    return steps.Reproduction(out, SMALL, **changes)


def todo(reproduction, seeds=1):
    found = [steps.benchmarks(reproduction), *steps.decoder(reproduction)]
    for seed in range(seeds):
        found += steps.steps_of_seed(reproduction, seed)
        found.append(steps.comparison(reproduction, seed + 1))
    return [*found, *steps.depths(reproduction)]


# Everything that differs from the published tables.
OTHER = {
    "fusions": ("hive", "joint", "cascaded", "self_attention"),
    "decoder": "tiny_llama",
}


def overridden(command, module, schema):
    """The config that a command would run with."""
    name, _, arguments = command[2].removeprefix("configs/").partition(".py")
    config = importlib.import_module(f"configs.{name}").get_config(arguments[1:])
    for flag in command:
        if flag.startswith("--config."):
            key, _, value = flag.removeprefix("--config.").partition("=")
            assert key in to_dict(schema()), flag
            kind = type(getattr(config, key))
            config[key] = kind(value)
    return from_dict(config.to_dict(), schema)


@pytest.mark.parametrize("changes", [{}, OTHER])
def test_all_commands_can_be_run(tmp_path, changes):
    for step in todo(plan(tmp_path, **changes)):
        program = step.command[0]
        if program in ("train", "probe"):
            schema = RunConfig if program == "train" else ProbeConfig
            config = overridden(step.command, program, schema)
            assert config
        assert (ROOT / f"hive_jax/{program}.py").exists() or (
            ROOT / f"tools/{program}.py"
        ).exists()


@pytest.mark.parametrize("changes", [{}, OTHER])
def test_all_fusions_have_the_same_data_and_steps(tmp_path, changes):
    by_arm = {}
    for step in steps.steps_of_seed(plan(tmp_path, **changes), 3):
        if step.command[0] == "train" and "stage" in str(step.done):
            config = overridden(step.command, "train", RunConfig)
            arm = step.done.parts[-3]
            config = dataclasses.replace(
                config, name="", previous="", init="", model=None
            )
            by_arm.setdefault(arm, []).append(config)
    fusions = changes.get("fusions", ("hive", "cascaded", "self_attention"))
    assert tuple(by_arm) == fusions
    hive = by_arm["hive"]
    assert all(configs == hive for configs in by_arm.values())
    assert [config.total_steps for config in hive] == [2, 2, 2]
    assert {config.seed for config in hive} == {3}


def initial_weights(command):
    """Paths that a command reads weights from: --KEY=PATH, --run [NAME=]PATH ..."""
    for flag in command:
        key, _, path = flag.partition("=")
        if (key.startswith("--config.init") or key == "--run") and path:
            yield path
    if "--run" in command:
        after = command[command.index("--run") + 1 :]
        for argument in itertools.takewhile(lambda a: not a.startswith("--"), after):
            yield argument.partition("=")[2] or argument


@pytest.mark.parametrize("changes", [{}, OTHER])
def test_each_step_starts_from_one_before_it(tmp_path, changes):
    made, reproduction = set(), plan(tmp_path, **changes)
    for step in todo(reproduction, seeds=2):
        for path in initial_weights(step.command):
            assert path.startswith("builtin:") or path in made, step
        made.add(str(step.done.parent))
    names = [step.name for step in todo(reproduction)]
    assert len({*names}) == len(names)


def test_another_decoder_is_that_of_pre_training_and_of_the_vlms(tmp_path):
    flag = f"--config.init_decoder={tmp_path / 'decoder'}"
    starts = {}
    for step in todo(plan(tmp_path, **OTHER)):
        if step.command[0] == "train":
            starts[step.name] = flag in step.command
    assert next(iter(starts)) == "decoder"
    first = {n for n in starts if n.endswith((", stage 1", ", VLM 1"))}
    assert {name for name, starts_from_it in starts.items() if starts_from_it} == first
    assert len(first) == 4 + 5
    assert not any(flag in step.command for step in todo(plan(tmp_path)))


def test_every_depth_is_compared(tmp_path):
    probe, compare = steps.depths(plan(tmp_path, fusions=("joint",)))
    joint = tmp_path / "seed0/joint/stage3"
    assert f"joint={joint}" in probe.command and "--sweep_depths" in probe.command
    runs = [f"{name}={tmp_path / 'depths' / name}" for name in ("base", "joint")]
    assert compare.command[:3] == ("compare", *runs)


def only(monkeypatch, *found):
    """Has nothing be done but these steps."""
    monkeypatch.setattr(steps, "benchmarks", lambda plan: found[0])
    monkeypatch.setattr(steps, "steps_of_seed", lambda plan, seed: found[1:])
    monkeypatch.setattr(steps, "comparison", lambda plan, seeds: found[-1])


def test_it_goes_on_where_it_stopped(tmp_path, monkeypatch, capsys):
    out = tmp_path / "out"
    first = steps.benchmarks(plan(out))
    command = ("evaluate", "--run=nowhere", "--task=mme", f"--data={out}/benchmarks")
    fails = steps.Step("seed 0, base", command, out / "none")
    with monkeypatch.context() as patch:
        only(patch, first, fails)
        with pytest.raises(
            HiveError, match="(?s)seed 0, base ended with code 66.*no such run"
        ):
            reproduce.reproduce(plan(out), 1)
    said = capsys.readouterr().out
    assert "[1/3] benchmarks" in said and "[2/3] seed 0, base" in said
    assert first.done.exists()
    assert "no checkpoint in nowhere" in (out / "logs/seed_0_base.log").read_text()
    # What failed works now; what was done is not done again.
    command = ("tabletop", "benchmarks", f"--out={out}/more", "--count=1")
    works = steps.Step("seed 0, base", command, out / "more/mme")
    with monkeypatch.context() as patch:
        only(patch, first, works)
        reproduce.reproduce(plan(out), 1)
    said = capsys.readouterr().out
    assert "benchmarks" not in said and "[2/3] seed 0, base" in said
    with pytest.raises(OutputError, match="(?s)another scale.*images: 7 -> 350"):
        reproduce.reproduce(steps.Reproduction(out, steps.SCALES["tabletop"]), 1)
    with pytest.raises(OutputError, match="or decoder.*\n.*tiny -> tiny_llama"):
        reproduce.reproduce(plan(out, decoder="tiny_llama"), 1)
    # Other fusions are added to those of before.
    with monkeypatch.context() as patch:
        only(patch, first, works)
        reproduce.reproduce(plan(out, fusions=("hive", "joint")), 1)


def test_no_seeds(tmp_path):
    with pytest.raises(HiveError, match="--seeds is 0"):
        reproduce.reproduce(plan(tmp_path), 0)


def test_fusions_of_the_command(capsys):
    assert main(["--out=unused", "--fusions=joint,hve,none"]) == 64
    assert (
        "--fusions has 'hve', 'none'; expected some of hive, cascaded, joint, "
        "self_attention, with commas between them"
    ) in capsys.readouterr().err
