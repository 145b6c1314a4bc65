"""The command as users run it: stages, resuming, kills, signals, errors."""

import dataclasses
import json
import re
import shutil

import jax
import pytest
from helpers.llava_sets import encoded, write_set
from PIL import Image

from hive_jax.config import MeshConfig, from_dict
from hive_jax.data.batch import Batch
from hive_jax.data.tabletop.dataset import Tabletop
from hive_jax.data.tokenizer import load_tokenizer
from hive_jax.errors import CheckpointError
from hive_jax.training import resolve, run_timing
from hive_jax.training.checkpointing.manager import Checkpoints
from hive_jax.training.initialization import initial_params
from hive_jax.training.objectives import abstract_params, build_model
from hive_jax.training.sharding import make_mesh
from hive_jax.training.train_step import TrainState
from tools.fault_suite import micro_run


@pytest.fixture(scope="module")
def stages(tmp_path_factory, cache):
    """Folder and output of stages 1, 2, 3, each from the one before."""
    folder = tmp_path_factory.mktemp("stages")
    outputs, previous = {}, ()
    for number in (1, 2, 3):
        workdir = folder / f"stage{number}"
        arguments = micro_run.command(
            f"stage{number}.py", workdir, "--config.total_steps=6", *previous
        )
        outputs[number] = micro_run.finish(micro_run.start(arguments, cache))
        previous = (f"--config.init={workdir}",)
    return folder, outputs


def test_only_the_trainable_parameters_of_a_stage_change(stages):
    folder, _ = stages
    moved = {
        number: json.loads((folder / f"stage{number}/result.json").read_text())[
            "relative_distance"
        ]
        for number in (1, 2, 3)
    }
    trained = {
        1: ["fusion/cross_attention", "fusion/projector"],
        2: ["llm/layers", "llm/final_norm"],
        3: ["img/Transformer", "img/embedding", "img/pos_embedding"],
    }
    for number, distances in moved.items():
        names = [name for n in range(1, number + 1) for name in trained[n]]
        assert all(distances[name] > 0 for name in names)
        assert all(distances[name] == 0 for name in set(distances) - set(names))


def test_a_stage_starts_from_the_parameters_of_the_previous_one(stages):
    folder, _ = stages
    first = micro_run.outcome(folder / "stage1")["fingerprints"]
    second = micro_run.outcome(folder / "stage2")["fingerprints"]
    frozen = [n for n in first if n.startswith(("params/img/", "params/llm/embedder"))]
    assert frozen and all(first[name] == second[name] for name in frozen)


def test_the_output_names_trainable_parameters_and_the_image_gain(stages):
    _, outputs = stages
    assert "frozen" in outputs[1] and "trainable" in outputs[1]
    assert "nats per token" in outputs[3]
    assert "relative distance moved" in outputs[3]


def test_files_of_a_run(stages):
    folder, _ = stages
    workdir = folder / "stage1"
    assert json.loads((workdir / "config.json").read_text())["total_steps"] == 6
    assert list((workdir / "tensorboard").glob("events.out.tfevents.*"))
    rows = [json.loads(s) for s in (workdir / "metrics.jsonl").read_text().splitlines()]
    assert {"train/loss", "train/learning_rate", "train/grad_norm"} <= rows[0].keys()
    assert {"train/images_per_second", "train/mfu"} <= rows[1].keys()
    assert 0 < rows[1]["train/mfu"] < 2
    assert "validation/image_gain" in rows[-1]


def test_the_time_of_a_run_is_written_by_phase(stages):
    folder, outputs = stages
    timing = json.loads((folder / "stage2/timing.json").read_text())
    seconds = timing["seconds"]
    assert sum(seconds.values()) == pytest.approx(timing["total"], abs=0.02)
    assert 0 < timing["first_step"] < timing["total"]
    assert (timing["start"], timing["step"]) == (0, 6)
    # Each phase has a name of its own.
    assert set(seconds) == set(run_timing._NAMES.values()) | {"tracing", "compiling"}
    assert f"\n{run_timing.summary_line(timing)}\n" in outputs[2]


def test_a_finished_run_is_not_trained_again(stages, cache):
    folder, _ = stages
    workdir = folder / "stage1"
    before = (workdir / "metrics.jsonl").read_bytes()
    arguments = micro_run.command("stage1.py", workdir, "--config.total_steps=6")
    code, output = micro_run.run(arguments, cache)
    assert code == 0 and "finished already" in output
    assert (workdir / "metrics.jsonl").read_bytes() == before


def test_spoilt_files_that_derive_from_the_run_are_replaced(stages, cache, tmp_path):
    folder, _ = stages
    workdir = tmp_path / "run"
    shutil.copytree(folder / "stage1", workdir)
    result, tokenizer = (
        (workdir / name).read_bytes()
        for name in ("result.json", "tokenizer/tokenizer.json")
    )
    (workdir / "result.json").write_bytes(result[:20])
    (workdir / "tokenizer/tokenizer.json").write_bytes(b"")
    (workdir / "metrics.jsonl").unlink()
    (workdir / "metrics.jsonl").mkdir()
    shutil.rmtree(workdir / "tensorboard")
    (workdir / "tensorboard").write_text("")
    (workdir / "run.lock").write_text("[" * 4000)
    arguments = micro_run.command("stage1.py", workdir, "--config.total_steps=6")
    code, output = micro_run.run(arguments, cache)
    assert code == 0 and "Traceback" not in output, output
    assert output.count("written anew") == 4
    assert (workdir / "result.json").read_bytes() == result
    assert (workdir / "tokenizer/tokenizer.json").read_bytes() == tokenizer
    assert (workdir / "metrics.jsonl").is_file()
    assert (workdir / "tensorboard").is_dir()


def test_changed_config_is_refused_by_name(stages, cache, tmp_path):
    folder, _ = stages
    workdir = tmp_path / "run"
    shutil.copytree(folder / "stage1", workdir)
    changed = ("--config.total_steps=8", "--config.optimizer.peak_lr=0.5")
    arguments = micro_run.command("stage1.py", workdir, *changed)
    code, output = micro_run.run(arguments, cache)
    assert code == 78
    assert "optimizer.peak_lr: 0.003 -> 0.5" in output
    assert "total_steps: 6 -> 8" in output
    assert "Traceback" not in output
    code, output = micro_run.run([*arguments, "--allow_config_change"], cache)
    assert code == 0, output
    assert "continuing from step 6" in output


def test_an_unfinished_previous_stage_is_refused(stages, tmp_path):
    """Unless it is named; `previous` means the stage, `init` what is there."""
    folder, _ = stages
    run = from_dict(json.loads((folder / "stage2/config.json").read_text()))
    run = dataclasses.replace(run, init="", previous="stage1")
    model, batch = build_model(run), Batch.spec(1, 24, 16)
    abstract = abstract_params(model, batch, make_mesh(MeshConfig()))

    def start(run, tokenizer):
        resolved = resolve.resolve_config(run)
        return initial_params(resolved, model, abstract, batch, tokenizer)

    named = dataclasses.replace(run, init=str(folder / "stage1"))
    tokenizer = load_tokenizer(run.data.tokenizer).fingerprint
    assert set(start(named, tokenizer)) == {"img", "llm", "fusion"}
    with pytest.raises(CheckpointError, match="another tokenizer"):
        start(named, "0123")
    with Checkpoints(str(tmp_path / "run")) as checkpoints:
        with Checkpoints(str(folder / "stage1"), read_only=True) as stage1:
            params, meta = stage1.restore_params(abstract)
        meta["config"]["total_steps"] = 9
        state = TrainState(jax.numpy.int32(6), params, ())
        checkpoints.save(6, state, meta)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(resolve, "default_workdir", lambda *_: str(tmp_path / "run"))
        with pytest.raises(CheckpointError, match="at step 6 of 9"):
            start(run, tokenizer)


def test_fewer_total_steps_than_done_are_refused(stages, cache, tmp_path):
    folder, _ = stages
    shutil.copytree(folder / "stage1", tmp_path / "run")
    arguments = micro_run.command(
        "stage1.py", tmp_path / "run", "--config.total_steps=3", "--allow_config_change"
    )
    code, output = micro_run.run(arguments, cache)
    assert code == 64 and "at step 6 already" in output


def test_resuming_removes_the_old_result(stages, cache, tmp_path):
    folder, _ = stages
    workdir = tmp_path / "run"
    shutil.copytree(folder / "stage1", workdir)
    arguments = micro_run.command(
        "stage1.py", workdir, "--config.total_steps=8", "--allow_config_change"
    )
    micro_run.finish(micro_run.start(arguments, cache))
    assert json.loads((workdir / "result.json").read_text())["step"] == 8


def test_init_of_another_model_lists_every_difference(stages, cache, tmp_path):
    folder, _ = stages
    arguments = micro_run.command(
        "stage2.py",
        tmp_path / "stage2",
        f"--config.init={folder / 'stage1'}",
        "--config.model.fusion=cascaded",
        "--config.model.decoder.mlp_dim=48",
    )
    code, output = micro_run.run(arguments, cache)
    assert code == 78
    assert "model.fusion: hive -> cascaded" in output
    assert "model.decoder.mlp_dim: 32 -> 48" in output


@pytest.mark.parametrize(
    ("override", "code", "expected"),
    [
        (("--config.total_stepz=3",), 64, "total_steps"),
        (("--config.optimizer.peak_lr=-1",), 64, "optimizer.peak_lr"),
        (("--config.rules=(('fuson/.*',1.0),('.*',None))",), 64, "fuson"),
        (("--config.rules=(('fusion/.*',1.0),)",), 64, "no rule"),
        (("--config.init=nowhere",), 66, "no checkpoint in nowhere"),
        (("--config.init_encoder=no.npz",), 66, "no.npz"),
        (("--config.init_decoder=builtin:tabletop_llm",), 78, "the weights have 64"),
        (("--config.model.decoder.width=0",), 64, "decoder.width is 0; expected 1"),
        (("--config.accumulate=2",), 64, "config.accumulate is not a key"),
        (("--config.data.tokenizer=",), 64, "no tokenizer came with the weights"),
        (("--config.data.tokenizer=no.json",), 66, "no.json"),
        (("config.seed=1",), 64, "--config.KEY=VALUE"),
    ],
)
def test_errors_are_messages_before_any_work(override, code, expected, cache, tmp_path):
    arguments = micro_run.command("stage1.py", tmp_path / "run", *override)
    got, output = micro_run.run(arguments, cache)
    assert got == code, output
    assert expected in output
    assert "Traceback" not in output
    assert not list(tmp_path.glob("run/checkpoints/*"))


def test_workdir_that_cannot_be_written(cache, tmp_path):
    (tmp_path / "file").write_text("")
    arguments = micro_run.command("stage1.py", tmp_path / "file" / "run")
    code, output = micro_run.run(arguments, cache)
    assert code == 73 and "cannot write" in output and "Traceback" not in output


def test_own_captions_in_llava_form(cache, tmp_path):
    """Scenes written to files as users have them; three are damaged."""
    scenes = Tabletop("train", image_size=40)
    files, records = {}, []
    for i in range(32):
        name, text = f"{i}.jpg", scenes[i].segments[0].text
        files[name] = encoded(Image.fromarray(scenes[i].image))
        turns = [{"from": "human", "value": "<image>"}, {"from": "gpt", "value": text}]
        records.append({"id": str(i), "image": name, "conversations": turns})
    files["9.jpg"], files["21.jpg"] = b"not an image", files["21.jpg"][:400]
    files["4.jpg"] = files["4.jpg"][:400]  # held out, as is every fourth
    sources = write_set(tmp_path, files, records)

    def arguments(workdir, source, *more):
        return micro_run.command(
            "stage1.py",
            tmp_path / workdir,
            "--config.total_steps=4",
            f"--config.data.source={sources[source]}",
            *more,
        )

    losses = []
    for source in ("folder", "zip"):
        allowed = arguments(source, source, "--config.data.max_bad_fraction=0.2")
        output = micro_run.finish(micro_run.start(allowed, cache))
        match = re.search("bad samples, train: 1 (.*), 1 (.*); each is", output)
        assert sorted(match.groups()) == ["damaged", "not an image"]
        losses.append(micro_run.outcome(tmp_path / source))
        bad = (tmp_path / source / "bad_samples.jsonl").read_text().splitlines()
        images = {json.loads(line)["where"].split(" ")[-1] for line in bad}
        assert images == {"4.jpg", "9.jpg", "21.jpg"}
        result = json.loads((tmp_path / source / "result.json").read_text())
        train = {"not an image": 1, "damaged": 1}
        validation = {"damaged": 1}
        assert result["bad_samples"] == {"train": train, "validation": validation}
    assert losses[0] == losses[1]
    # Of a run that is finished, all stay in the file.
    assert "finished already" in micro_run.finish(micro_run.start(allowed, cache))
    again = (tmp_path / "zip/bad_samples.jsonl").read_text().splitlines()
    assert again == bad
    code, output = micro_run.run(arguments("again", "zip"), cache)
    assert code == 65 and "max_bad_fraction allows 1.00%" in output
    assert "Traceback" not in output
