"""Joining a job: which processes do, with which GPUs, and two that really train."""

import re

import jax
import pytest

from hive_jax.errors import ConfigError
from hive_jax.training import runtime

NOTHING = (None, None, None)
GIVEN = ("host:1", 2, 0)
ADDRESS = {
    "coordinator_address": "host:1",
    "num_processes": 2,
    "process_id": 0,
    "cluster_detection_method": "deactivate",
}
# What Slurm sets in a batch script of an allocation for eight tasks on two nodes ...
BATCH_SCRIPT = {
    "SLURM_JOB_ID": "7",
    "SLURM_NTASKS": "8",
    "SLURM_PROCID": "0",
    "SLURM_LOCALID": "0",
    "SLURM_NODEID": "0",
    "SLURM_GPUS_ON_NODE": "4",
    "CUDA_VISIBLE_DEVICES": "0,1,2,3",
}
# ... in the shell that salloc opens there, which is a step of its own, ...
SHELL = {
    **BATCH_SCRIPT,
    "SLURM_STEP_NUM_TASKS": "1",
    "SLURM_STEP_TASKS_PER_NODE": "1",
}
# ... and in the seventh task of an srun.
TASK = {
    **BATCH_SCRIPT,
    "SLURM_STEP_NUM_TASKS": "8",
    "SLURM_STEP_TASKS_PER_NODE": "4(x2)",
    "SLURM_PROCID": "6",
    "SLURM_LOCALID": "2",
    "SLURM_NODEID": "1",
}
WITHOUT_GPUS = {key: TASK[key] for key in TASK if "DEVICES" not in key}
ONE_PER_NODE = {
    "SLURM_STEP_NUM_TASKS": "2",
    "SLURM_STEP_TASKS_PER_NODE": "1(x2)",
    "SLURM_LOCALID": "0",
}


@pytest.fixture(autouse=True)
def no_devices(monkeypatch):
    """Whatever this machine has, unless a test says otherwise."""
    monkeypatch.setattr(runtime.glob, "glob", lambda pattern: [])


def join(mode, environment, given=NOTHING):
    return runtime.initialize_arguments(mode, *given, environment)


@pytest.mark.parametrize(
    ("mode", "given", "environment", "expected"),
    [
        ("auto", NOTHING, {}, None),
        ("auto", NOTHING, {"TPU_WORKER_HOSTNAMES": "localhost"}, None),
        ("auto", NOTHING, {"TPU_WORKER_HOSTNAMES": ""}, None),
        ("auto", NOTHING, {"TPU_WORKER_HOSTNAMES": "10.0.0.1,10.0.0.2"}, {}),
        ("on", NOTHING, {}, {}),
        ("off", NOTHING, TASK, None),
        ("off", GIVEN, {}, None),
        ("auto", GIVEN, {}, ADDRESS),
        ("auto", NOTHING, {"SLURM_JOB_ID": "7"}, None),
        ("auto", NOTHING, BATCH_SCRIPT, None),
        ("auto", NOTHING, SHELL, None),
        ("auto", NOTHING, WITHOUT_GPUS, {"num_processes": 8}),
    ],
)
def test_processes_join_only_in_a_job(mode, given, environment, expected):
    assert join(mode, environment, given) == expected


def test_tpu_hosts_join_unless_they_use_another_platform(monkeypatch):
    monkeypatch.setattr(runtime, "_has_tpu", lambda: True)
    assert join("auto", {}) == {}
    assert join("auto", {"JAX_PLATFORMS": "tpu,cpu"}) == {}
    assert join("auto", {"JAX_PLATFORMS": "cpu"}) is None
    pod = {"JAX_PLATFORMS": "cpu", "TPU_WORKER_HOSTNAMES": "a,b"}
    assert join("auto", pod) is None


@pytest.mark.parametrize("environment", [BATCH_SCRIPT, SHELL])
def test_a_missing_srun_is_a_warning(caplog, environment):
    assert join("auto", environment) is None
    assert "8 tasks, but this process was started without srun" in caplog.text


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        # One task a node drives all of the node's GPUs.
        (ONE_PER_NODE, [0, 1, 2, 3]),
        # Four tasks see the four GPUs of their node: one each.
        ({}, [2]),
        # Two tasks on the second node see them: two each.
        ({"SLURM_STEP_TASKS_PER_NODE": "4,2", "SLURM_LOCALID": "1"}, [2, 3]),
        # --gpus-per-task=1 shows each its own, numbered from 0 or by UUID ...
        ({"CUDA_VISIBLE_DEVICES": "0"}, [0]),
        ({"CUDA_VISIBLE_DEVICES": "GPU-8a4b-4d0f"}, [0]),
        # ... and --gpus-per-task=2 two of eight.
        ({"CUDA_VISIBLE_DEVICES": "4,5", "SLURM_GPUS_ON_NODE": "8"}, [0, 1]),
        (
            {
                "CUDA_VISIBLE_DEVICES": "0,1",
                "SLURM_GPUS_ON_NODE": "2",
                "SLURM_GPUS_PER_TASK": "a100:2",
            },
            [0, 1],
        ),
    ],
)
def test_each_task_gets_its_own_gpus(changes, expected):
    environment = {**TASK, **changes}
    assert join("auto", environment)["local_device_ids"] == expected
    # Also with an address: JAX would look at Slurm's variables again.
    assert join("auto", environment, GIVEN) == {**ADDRESS, "local_device_ids": expected}


def test_one_process_drives_all_gpus_of_its_node(monkeypatch):
    """JAX would take the first alone where Slurm does not hand out GPUs."""
    files = [f"/dev/nvidia{i}" for i in range(8)]
    monkeypatch.setattr(runtime.glob, "glob", lambda pattern: files)
    environment = {**WITHOUT_GPUS, **ONE_PER_NODE}
    assert join("auto", environment)["local_device_ids"] == list(range(8))


def test_gpus_that_do_not_divide_over_tasks_are_refused():
    environment = {**TASK, "SLURM_STEP_TASKS_PER_NODE": "3(x2)"}
    with pytest.raises(ConfigError, match="3 tasks on this node share 4 GPUs"):
        join("auto", environment)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("SLURM_STEP_NUM_TASKS", ""),
        ("SLURM_STEP_NUM_TASKS", "2(x2)"),
        ("SLURM_LOCALID", ""),
        ("SLURM_NODEID", "x"),
        ("SLURM_STEP_TASKS_PER_NODE", "4(2)"),
    ],
)
def test_variables_of_slurm_that_are_not_numbers_are_named(name, value):
    environment = {**TASK, name: value}
    with pytest.raises(
        ConfigError, match=f"{name} is '{re.escape(value)}'; expected n"
    ):
        join("auto", environment)
    assert join("off", environment) is None


@pytest.mark.parametrize("mode", ["auto", "on", "off"])
@pytest.mark.parametrize(
    "given",
    [("host:1", None, None), ("host:1", 2, None), (None, None, 0), (None, 2, 0)],
)
def test_coordinator_arguments_go_together(mode, given):
    with pytest.raises(ConfigError, match="go together; got"):
        runtime.join_job(mode, *given)


@pytest.mark.parametrize(
    "address",
    [
        "x",
        "",
        "x:",
        ":1",
        "x:y",
        "x:0",
        "x:65536",
        "http://x:1",
        "a b:1",
        "::1",
        "x:1:2",
    ],
)
def test_addresses_without_a_port_are_refused(address):
    with pytest.raises(ConfigError, match=f"coordinator_address is '{address}'; expec"):
        runtime.join_job("auto", address, 2, 0)


@pytest.mark.parametrize(
    "address", ["10.0.0.1:8476", "host-1.pod:65535", "[fe80::1]:80"]
)
def test_other_addresses_are_taken(address):
    joined = join("auto", {}, (address, 2, 1))
    assert joined["coordinator_address"] == address


@pytest.mark.parametrize("numbers", [(2, 2), (2, -1), (0, 0), (-1, 0), (10**9, 0)])
def test_impossible_numbers_of_processes_are_refused(numbers):
    with pytest.raises(ConfigError, match="expected a number of 0 to below num_proc"):
        runtime.join_job("auto", "host:1", *numbers)


@pytest.mark.parametrize("error", [RuntimeError, ValueError, ConnectionError])
def test_a_failed_join_is_a_config_error(monkeypatch, error):
    def initialize(**unused):
        raise error("nobody there")

    monkeypatch.setattr(jax.distributed, "initialize", initialize)
    with pytest.raises(ConfigError, match="nobody there. Give each"):
        runtime.join_job("auto", *GIVEN)
