"""Processes that join a job, train together and end together."""

import json
import shutil
import signal
import sys
import time

from flax.traverse_util import unflatten_dict
from helpers.llava_sets import encoded, photograph, record, write_set

from hive_jax.training.checkpointing import trees
from hive_jax.training.checkpointing.integrity import fingerprint
from hive_jax.training.checkpointing.manager import Checkpoints
from tools.fault_suite import micro_run
from tools.fault_suite.micro_run import (
    MESH,
    finish_all,
    free_port,
    joined,
    start,
)
from tools.fault_suite.processes import TOLERANCE, difference, run_alone, run_joined

MEETING = """
from hive_jax.training import runtime

runtime.join_job("auto", None, None, None)

import jax

print(jax.process_index(), jax.process_count(), jax.device_count())
"""


def test_two_slurm_tasks_join_by_their_environment(tmp_path):
    """As srun on one node a task would set it; --preserve-env keeps the job's
    SLURM_NTASKS."""
    code = [sys.executable, "-c", MEETING]
    port = str(free_port())
    tasks = [
        start(
            code,
            tmp_path,
            devices=2,
            SLURM_JOB_ID="7",
            SLURM_STEP_NODELIST="localhost",
            SLURM_NTASKS="8",
            SLURM_STEP_NUM_TASKS="2",
            SLURM_STEP_NUM_NODES="2",
            SLURM_PROCID=str(task),
            SLURM_LOCALID="0",
            JAX_COORDINATOR_PORT=port,
        )
        for task in (0, 1)
    ]
    outputs = finish_all(tasks, timeout=60)
    assert [out.split()[-3:] for out in outputs] == [["0", "2", "4"], ["1", "2", "4"]]


# Stage 3's rules from random parameters, for stage 1 alone starts from these.
STAGE = (
    "--config.rules=(('llm/embedder/.*',None),('.*',1.0))",
    "--config.total_steps=6",
)


def test_two_processes_train_as_one_and_hand_over_to_it(tmp_path, cache):
    """The same losses; and one process goes on from what the two have saved."""
    alone, together = tmp_path / "alone", tmp_path / "together"
    options = (*STAGE, "--config.checkpoint_every=4", "--config.log_every=1")
    run_alone(micro_run.command("stage1.py", alone, *options), cache)
    command = micro_run.command("stage1.py", together, *options)
    outputs = run_joined(command, cache)
    assert "nats per token" in outputs[0]
    assert "nats per token" not in outputs[1]  # process 0 alone reports
    assert difference(alone, together) <= TOLERANCE

    shutil.rmtree(together / "checkpoints/6")
    assert_restored_bit_by_bit(together)
    output = run_alone([*command, "--allow_config_change"], cache)
    assert "continuing from step 4" in output
    assert difference(alone, together) <= TOLERANCE


def test_bad_samples_of_both_processes_are_counted(tmp_path, cache):
    """Each names its own in a file of its own; one that both have read is one."""
    files = {record(i)["image"]: encoded(photograph(i)) for i in range(24)}
    bad = [3, 6, 10, 13, 16, 20]  # every third is held out
    for i in bad:
        whole = files[record(i)["image"]]
        files[record(i)["image"]] = b"<html>" if i in (6, 16) else whole[:300]
    source = write_set(tmp_path, files, [record(i) for i in range(24)])["folder"]
    workdir = tmp_path / "run"
    command = micro_run.command(
        "stage1.py",
        workdir,
        *STAGE,
        f"--config.data.source={source}",
        "--config.data.max_bad_fraction=0.5",
        "--config.data.buckets=(8,12)",
    )
    output = run_joined(command, cache)[0]
    assert "bad samples, train: 3 damaged, 1 not an image; each is named" in output
    assert "bad samples, validation: 1 " in output
    assert json.loads((workdir / "result.json").read_text())["bad_samples"] == {
        "train": {"damaged": 3, "not an image": 1},
        "validation": {"damaged": 1, "not an image": 1},
    }
    named = []
    for name in ("bad_samples.jsonl", "bad_samples.1.jsonl"):
        lines = [*map(json.loads, (workdir / name).read_text().splitlines())]
        named.append([one["index"] for one in lines if one["split"] == "train"])
    assert {*named[0], *named[1]} == {i - i // 3 - 1 for i in bad[2:]}
    assert len(named[0]) + len(named[1]) > 4  # three epochs


def assert_restored_bit_by_bit(workdir):
    """All leaves on one device have the fingerprints they had when saved."""
    with Checkpoints(str(workdir), read_only=True) as checkpoints:
        meta = checkpoints.read_meta()
        leaves = {
            name: trees.parse_description(text) for name, text in meta["leaves"].items()
        }
        restored, _ = checkpoints.restore(unflatten_dict(leaves, sep="/"))
    assert fingerprint(restored) == meta["fingerprints"]


def test_sigterm_for_one_process_saves_and_ends_both(tmp_path, cache):
    """At one step, with exit code 75, as launchers expect it."""
    options = ("--config.total_steps=3000", "--config.log_every=1", *MESH)
    command = micro_run.command("stage1.py", tmp_path, *options)
    port, log = free_port(), tmp_path / "metrics.jsonl"
    processes = [start(joined(command, i, port), cache, devices=2) for i in (0, 1)]
    try:
        deadline = time.monotonic() + 200
        while not (log.exists() and len(log.read_text().splitlines()) > 2):
            assert time.monotonic() < deadline
            assert [process.poll() for process in processes] == [None, None]
            time.sleep(0.05)
        processes[1].send_signal(signal.SIGTERM)
        outputs = [process.communicate(timeout=60)[0] for process in processes]
    finally:
        for process in processes:
            process.kill()
    assert [process.returncode for process in processes] == [75, 75], outputs
    step = max(micro_run.losses(tmp_path))
    assert f"stopped at step {step}, saved" in outputs[0]
    assert [p.name for p in (tmp_path / "checkpoints").iterdir()] == [str(step)]
