"""The list of commands that makes the paper's tables, and how it is worked through."""

import dataclasses
import importlib
import itertools

import pytest
from conftest import ROOT

from hive_jax.config import ProbeConfig, RunConfig, from_dict, to_dict
from hive_jax.errors import HiveError, OutputError
from tools.reproduce import reproduce, steps

SMALL = steps.Scale((2, 2, 2), (2, 2), 7, 50, 20, depths=False)


def todo(out, scale=SMALL, seeds=1):
    found = [steps.benchmarks(scale, out)]
    for seed in range(seeds):
        found += [*steps.steps_of_seed(scale, out, seed), steps.comparison(out, 1)]
    return [*found, steps.depths(scale, out)]


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


def test_all_commands_can_be_run(tmp_path):
    for step in todo(tmp_path):
        program = step.command[0]
        if program in ("train", "probe"):
            schema = RunConfig if program == "train" else ProbeConfig
            config = overridden(step.command, program, schema)
            assert config
        assert (ROOT / f"hive_jax/{program}.py").exists() or (
            ROOT / f"tools/{program}.py"
        ).exists()


def test_all_fusions_have_the_same_data_and_steps(tmp_path):
    by_arm = {}
    for step in steps.steps_of_seed(SMALL, tmp_path, 3):
        if step.command[0] == "train" and "stage" in str(step.done):
            config = overridden(step.command, "train", RunConfig)
            arm = step.done.parts[-3]
            config = dataclasses.replace(
                config, name="", previous="", init="", model=None
            )
            by_arm.setdefault(arm, []).append(config)
    hive, cascaded, self_attention = (by_arm[fusion] for fusion in steps.FUSIONS)
    assert hive == cascaded == self_attention
    assert [config.total_steps for config in hive] == [2, 2, 2]
    assert {config.seed for config in hive} == {3}


def initial_weights(command):
    """Paths that a command reads weights from: --KEY=PATH, --run [NAME=]PATH ..."""
    for flag in command:
        key, _, path = flag.partition("=")
        if key in ("--config.init", "--config.init_encoder", "--run") and path:
            yield path
    if "--run" in command:
        after = command[command.index("--run") + 1 :]
        for argument in itertools.takewhile(lambda a: not a.startswith("--"), after):
            yield argument.partition("=")[2] or argument


def test_each_step_starts_from_one_before_it(tmp_path):
    made = set()
    for step in todo(tmp_path, seeds=2):
        for path in initial_weights(step.command):
            assert path.startswith("builtin:") or path in made, step
        made.add(str(step.done.parent))
    assert len({step.name for step in todo(tmp_path)}) == len(todo(tmp_path))


def only(monkeypatch, *found):
    """Has nothing be done but these steps."""
    monkeypatch.setattr(steps, "benchmarks", lambda scale, out: found[0])
    monkeypatch.setattr(steps, "steps_of_seed", lambda scale, out, seed: found[1:])
    monkeypatch.setattr(steps, "comparison", lambda out, seeds: found[-1])


def test_it_goes_on_where_it_stopped(tmp_path, monkeypatch, capsys):
    out = tmp_path / "out"
    first = steps.benchmarks(SMALL, out)
    command = ("evaluate", "--run=nowhere", "--task=mme", f"--data={out}/benchmarks")
    fails = steps.Step("seed 0, base", command, out / "none")
    with monkeypatch.context() as patch:
        only(patch, first, fails)
        with pytest.raises(
            HiveError, match="(?s)seed 0, base ended with code 66.*no such run"
        ):
            reproduce.reproduce(str(out), SMALL, 1)
    said = capsys.readouterr().out
    assert "[1/3] benchmarks" in said and "[2/3] seed 0, base" in said
    assert first.done.exists()
    assert "no checkpoint in nowhere" in (out / "logs/seed_0_base.log").read_text()
    # What failed works now; what was done is not done again.
    command = ("tabletop", "benchmarks", f"--out={out}/more", "--count=1")
    works = steps.Step("seed 0, base", command, out / "more/mme")
    with monkeypatch.context() as patch:
        only(patch, first, works)
        reproduce.reproduce(str(out), SMALL, 1)
    said = capsys.readouterr().out
    assert "benchmarks" not in said and "[2/3] seed 0, base" in said
    with pytest.raises(OutputError, match="(?s)another scale.*images: 7 -> 350"):
        reproduce.reproduce(str(out), steps.SCALES["tabletop"], 1)


def test_no_seeds(tmp_path):
    with pytest.raises(HiveError, match="--seeds is 0"):
        reproduce.reproduce(str(tmp_path), SMALL, 0)
