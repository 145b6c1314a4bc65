"""Runs that are stopped, killed, damaged, or short of disk."""

import contextlib
import os
import signal
import subprocess
import sys
import time

import pytest

from tools.fault_suite import micro_run


# In training, and in the validation after the first step, which takes minutes.
@pytest.mark.parametrize(
    ("lines", "overrides"),
    [(3, ()), (1, ("--config.eval_every=1", "--config.data.validation_size=80000"))],
)
def test_sigterm_saves_and_the_same_command_continues(
    lines, overrides, cache, tmp_path
):
    overrides += ("--config.total_steps=3000", "--config.checkpoint_every=100000")
    arguments = micro_run.command("stage1.py", tmp_path / "run", *overrides)
    process = micro_run.start(arguments, cache)
    log = tmp_path / "run/metrics.jsonl"
    deadline = time.monotonic() + 200
    while not (log.exists() and len(log.read_text().splitlines()) >= lines):
        assert time.monotonic() < deadline and process.poll() is None
        time.sleep(0.05)
    process.send_signal(signal.SIGTERM)
    output, _ = process.communicate(timeout=60)
    assert process.returncode == 75, output
    steps = [int(p.name) for p in (tmp_path / "run/checkpoints").iterdir()]
    assert steps == [max(micro_run.losses(tmp_path / "run"))]
    assert f"stopped at step {steps[0]}, saved" in output


# Sends the signal as soon as the first step is logged.
SIGNAL_AT_FIRST_LINE = """
import os, signal, sys
from hive_jax.train import main
from hive_jax.training.metrics import MetricsWriter
write = MetricsWriter.write
def write_and_stop(*arguments):
    MetricsWriter.write = write
    write(*arguments)
    os.kill(os.getpid(), signal.SIGTERM)
MetricsWriter.write = write_and_stop
sys.exit(main())
"""


def test_the_first_logged_step_is_saved(cache, tmp_path):
    arguments = micro_run.train_arguments("stage1.py", tmp_path / "run")
    program = [sys.executable, "-c", SIGNAL_AT_FIRST_LINE, *arguments]
    code, output = micro_run.run(program, cache)
    assert code == 75, output
    # The step after it ends before the stop, and is logged too.
    assert max(micro_run.losses(tmp_path / "run")) == 2
    assert micro_run.steps(tmp_path / "run") == [2]


@pytest.fixture
def small_disk(tmp_path):
    """A file system of 9 MB."""
    disk = tmp_path / "disk"
    disk.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=9000k", "tmpfs", str(disk)]
    if subprocess.run(mount, check=False, capture_output=True).returncode:
        pytest.skip("needs the right to mount a file system")
    yield disk
    subprocess.run(["umount", "--lazy", disk], check=True)


def test_training_goes_on_while_the_disk_is_full(small_disk, cache):
    """Metrics are lost meanwhile, and steps are saved later."""
    workdir = small_disk / "run"
    options = ("--config.total_steps=200", "--config.log_every=1")
    arguments = micro_run.command("stage1.py", workdir, *options)
    process = micro_run.start(arguments, cache)
    log, rest = workdir / "metrics.jsonl", small_disk / "rest"
    while not (log.exists() and log.read_bytes().count(b"\n") >= 3):
        assert process.poll() is None
        time.sleep(0.005)
    with rest.open("wb", buffering=0) as file, contextlib.suppress(OSError):
        while True:
            file.write(bytes(4096))
    for line in process.stdout:
        if "metrics are lost until" in line:
            break
    rest.unlink()
    output = micro_run.finish(process)
    assert "metrics are lost" not in output and "Traceback" not in output
    losses = micro_run.losses(workdir)
    assert {1, 2, 3, 200} <= losses.keys() and len(losses) < 200
    assert micro_run.outcome(workdir)["result"]["step"] == 200


def test_a_damaged_checkpoint_costs_the_steps_since_the_one_before(cache, tmp_path):
    workdir = tmp_path / "run"
    arguments = micro_run.command(
        "stage1.py",
        workdir,
        "--config.total_steps=6",
        "--config.checkpoint_every=2",
        "--config.log_every=1",
    )
    micro_run.finish(micro_run.start(arguments, cache))
    undisturbed = micro_run.outcome(workdir)
    (workdir / "result.json").unlink()
    largest = max(
        (p for p in (workdir / "checkpoints/6/params").rglob("*") if p.is_file()),
        key=lambda path: path.stat().st_size,
    )
    content = bytearray(largest.read_bytes())
    content[len(content) // 2] ^= 1
    largest.write_bytes(content)
    output = micro_run.finish(micro_run.start(arguments, cache))
    assert "checkpoint 6 is damaged" in output
    assert "continuing from step 4" in output
    assert micro_run.outcome(workdir) == undisturbed


def test_a_second_run_in_the_same_workdir_is_refused(cache, tmp_path):
    workdir = tmp_path / "run"
    arguments = micro_run.command("stage1.py", workdir, "--config.total_steps=3000")
    first = micro_run.start(arguments, cache)
    while not (workdir / "metrics.jsonl").exists():
        assert first.poll() is None
        time.sleep(0.05)
    code, output = micro_run.run(arguments, cache)
    first.kill()
    first.communicate()
    assert code == 73
    assert str(first.pid) in output and str(workdir) in output
    assert os.getpid() != first.pid
