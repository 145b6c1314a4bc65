"""Runs in buckets, and every command on them."""

import os
import shutil
import time

import pytest
from helpers.exported_runs import run_config
from helpers.llava_sets import encoded, photograph
from helpers.random_runs import save_random

from hive_jax import chat, compare, evaluate, export_hf, prepare_data, probe, visualize
from hive_jax.buckets import as_path, filesystem, list_names
from hive_jax.data.tabletop.benchmarks import write_benchmarks
from tools.fault_suite import micro_run


def test_killed_run_in_a_bucket_ends_as_a_local_one(servers, tmp_path):
    overrides = (
        "--config.total_steps=8",
        "--config.checkpoint_every=2",
        "--config.log_every=1",
        "--config.eval_every=8",
        "--config.data.source=tabletop,take=first:60",
    )
    local, url = tmp_path / "local", f"{servers['s3']}/run"
    programs = tmp_path / "programs"
    run = micro_run.command("stage1.py", local, *overrides)
    micro_run.finish(micro_run.start(run, programs))
    run = micro_run.command("stage1.py", url, *overrides)

    process = micro_run.start(run, programs)
    while not list_names(f"{url}/checkpoints"):
        assert process.poll() is None, process.communicate()
        time.sleep(0.01)
    process.kill()  # in the first save
    process.communicate()
    micro_run.finish(micro_run.start(run, programs))
    assert micro_run.outcome(url) == micro_run.outcome(local)
    names = {"config.json", "metrics.jsonl", "result.json", "tensorboard", "tokenizer"}
    assert names <= {*list_names(url)}


# aiohttp's; large objects are uploaded in another thread than the caller's.
@pytest.mark.filterwarnings("ignore:Sending a large body:ResourceWarning")
def test_commands_read_and_write_buckets(servers, tmp_path, monkeypatch, capsys):
    folder = f"{servers['gs']}/commands"
    monkeypatch.chdir(tmp_path)
    write_benchmarks("benchmarks", 4, 3)
    filesystem(folder).put("benchmarks", f"{folder}/benchmarks", recursive=True)
    shutil.rmtree("benchmarks")
    (as_path(folder) / "photo.jpg").write_bytes(encoded(photograph(0)))
    run, exported = f"{folder}/run", f"{folder}/export"
    save_random(run_config("hive"), run)

    def code(command, *arguments):
        return command.main([*arguments])

    export = ("--run", run, "--component", "hive", "--out", exported, "--no_verify")
    assert code(export_hf, *export) == 0
    assert code(export_hf, *export) == 73
    photo = f"{folder}/photo.jpg"
    for model in (run, exported):
        assert code(chat, photo, "--run", model, "--max_new_tokens", "2") == 0
    answers = capsys.readouterr().out.splitlines()
    assert answers[-1] == answers[-2]

    data = ("--task", "mme", "--data", f"{folder}/benchmarks", "--max_new_tokens", "1")
    for _ in range(2):  # the second time from its results
        assert code(evaluate, "--run", run, *data) == 0
    out = f"{folder}/comparison"
    assert code(compare, f"a={run}", f"b={run}", "--out", out) == 0
    assert "compare.png" in list_names(out)

    config = ("--config", "probe", "--config.train=tabletop:classes,take=first:40")
    config += ("--config.epochs=1", "--config.num_seeds=1")
    out = f"{folder}/probe"
    assert code(probe, *config, "--run", exported, "--out", out) == 0
    curves = ("--curves", f"a={run}", "--out", f"{folder}/pictures", "--base", "")
    assert code(visualize, "--run", run, "--image", photo, *curves) == 0

    source = ("--from", "tabletop:classes,take=first:5")
    assert code(prepare_data, "check", *source, "--out", f"{folder}/report") == 0
    assert code(prepare_data, *source, "--out", f"{folder}/prepared") == 64
    written = {"benchmarks", "comparison", "export", "photo.jpg", "pictures", "probe"}
    assert {*list_names(folder)} == written | {"report", "run"}
    assert os.listdir() == []
