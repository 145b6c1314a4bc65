"""The launch scripts, against stand-ins for gcloud and Slurm that record their calls."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

TOOLS = Path(__file__).resolve().parents[2] / "tools"

RECORDER = f"""#!{sys.executable}
import json, os, subprocess, sys
from pathlib import Path

folder = Path(os.environ["STAND_INS"])
name, arguments = Path(sys.argv[0]).name, sys.argv[1:]
with (folder / "calls").open("a") as file:
    file.write(json.dumps([name, *arguments]) + "\\n")


def next_code(name):
    codes = json.loads((folder / name).read_text())
    (folder / name).write_text(json.dumps(codes[1:]))
    return codes[0]

"""

# A slice that becomes ready once its queue has been looked at, and whose hosts run the
# training command for real, with `python` as a stand-in. A training that ends with
# "PREEMPTED" takes the slice along.
GCLOUD = """
node, queue = json.loads((folder / "slice").read_text())
kind, action = arguments[2:4]
if action == "describe":
    state = node if kind == "tpu-vm" else queue
    if kind == "queued-resources" and queue == "WAITING_FOR_RESOURCES":
        node, queue = "READY", "ACTIVE"
    print(state if state != "MISSING" else "", end="")
    code = state == "MISSING"
elif action == "create":
    code = queue != "MISSING" or node != "MISSING"
    queued = kind == "queued-resources"
    node, queue = ("CREATING", "WAITING_FOR_RESOURCES") if queued else ("READY", queue)
    if (folder / "no_capacity").exists():
        queue = "FAILED"
elif action == "delete":
    node = queue = "MISSING"
    code = 0
elif action == "ssh" and "hive_jax.train" in " ".join(arguments):
    command = next(a for a in arguments if a.startswith("--command="))[10:]
    code = subprocess.call(["bash", "-c", command], cwd=folder / "host")
    if (folder / "preempted").exists():
        (folder / "preempted").unlink()
        node, queue, code = "PREEMPTED", "SUSPENDED", 255
else:
    code = 0
(folder / "slice").write_text(json.dumps([node, queue]))
sys.exit(code)
"""

TRAIN = """
code = next_code("codes")
if code == "PREEMPTED":
    (folder / "preempted").touch()
sys.exit(code if isinstance(code, int) else 1)
"""

ARGUMENTS = (
    "--config=configs/stage1.py:paper",
    "--config.rules=(('fusion/.*', 1.0), ('.*', None))",
)


class Machine:
    """A shell with stand-ins first on the PATH."""

    def __init__(self, folder: Path):
        self.folder, self.host = folder, folder / "host"
        (self.host / "hive_jax").mkdir(parents=True)
        (folder / "slice").write_text('["MISSING", "MISSING"]')
        self.add("gcloud", GCLOUD)
        self.add("git", "")
        self.add("srun", TRAIN)
        self.add("scontrol", "")
        (self.host / "env/bin").mkdir(parents=True)
        self.add("python", TRAIN, self.host / "env/bin")

    def add(self, name: str, code: str, folder: Path | None = None) -> None:
        path = (folder or self.folder) / name
        path.write_text(RECORDER + code)
        path.chmod(0o755)

    def run(self, script: str, *arguments: str, codes=(0,), **variables: str):
        (self.folder / "codes").write_text(json.dumps(codes))
        base = {k: v for k, v in os.environ.items() if not k.startswith("SLURM_")}
        path = f"{self.folder}:{os.environ['PATH']}"
        return subprocess.run(
            ["bash", str(TOOLS / script), *arguments],
            cwd=self.folder,
            env={**base, "PATH": path, "STAND_INS": str(self.folder), **variables},
            check=False,
            capture_output=True,
            text=True,
            timeout=60,
        )

    def calls(self, name: str) -> list[list[str]]:
        if not (self.folder / "calls").exists():
            return []
        lines = map(json.loads, (self.folder / "calls").read_text().splitlines())
        return [arguments for called, *arguments in lines if called == name]

    def actions(self) -> list[str]:
        """What was done to the slice, without looking at it."""
        actions = []
        for _, _, kind, action, *rest in self.calls("gcloud"):
            trains = "hive_jax.train" in " ".join(rest)
            actions.append("train" if trains else f"{kind} {action}")
        return [a for a in actions if not a.endswith("describe")]


@pytest.fixture
def machine(tmp_path):
    return Machine(tmp_path)


SLICE = {
    "TPU": "hive",
    "ZONE": "us-east5-b",
    "TYPE": "v6e-32",
    "RUNTIME": "v2-alpha-tpuv6e",
    "WORKDIR": "/disk/my run",
    "POLL": "0",
}
CREATE, DELETE = "queued-resources create", "queued-resources delete"
INSTALL = ["tpu-vm scp", "tpu-vm ssh"]


def launch(machine, *arguments, codes=(0,), **variables):
    return machine.run(
        "launch_tpu.sh", *arguments, codes=codes, **{**SLICE, **variables}
    )


def test_a_slice_is_created_installed_and_trains(machine):
    done = launch(machine, "run", *ARGUMENTS, PREPARE="mount /disk")
    assert done.returncode == 0, done.stderr
    assert machine.actions() == [CREATE, *INSTALL, "train"]
    calls = {tuple(call[2:4]): call for call in machine.calls("gcloud")}
    create = calls["queued-resources", "create"]
    assert create[4] == "hive"
    assert {
        "--zone=us-east5-b",
        "--accelerator-type=v6e-32",
        "--runtime-version=v2-alpha-tpuv6e",
        "--node-id=hive",
        "--spot",
    } == set(create[5:])
    assert {"hive:", "--worker=all", "--zone=us-east5-b"} <= set(calls["tpu-vm", "scp"])
    install = next(c for c in machine.calls("gcloud") if "pip" in " ".join(c))
    assert "--worker=all" in install
    assert "set -e; mount /disk; tar" in " ".join(install)
    assert "rm hive_jax.tar.gz" in " ".join(install)
    archive = calls["tpu-vm", "scp"][4]
    assert archive.endswith("/hive_jax.tar.gz") and not Path(archive).parent.exists()
    (train,) = (call[-1] for call in machine.calls("gcloud") if "train" in str(call))
    assert "JAX_COMPILATION_CACHE_DIR=/disk/compilation" in train
    # What the hosts have run, after their shell has read the command.
    module = ["-m", "hive_jax.train", "--workdir", "/disk/my run"]
    assert machine.calls("python") == [[*module, *ARGUMENTS]]


def test_a_slice_that_is_there_is_used(machine):
    (machine.folder / "slice").write_text('["READY", "ACTIVE"]')
    assert launch(machine, "run").returncode == 0
    assert machine.actions() == [*INSTALL, "train"]


def test_without_the_queue(machine):
    done = launch(machine, "run", codes=["PREEMPTED", 0], QUEUED="0", SPOT="0")
    assert done.returncode == 0, done.stderr
    again = ["tpu-vm delete", "tpu-vm create", *INSTALL, "train"]
    assert machine.actions() == ["tpu-vm create", *INSTALL, "train", *again]
    create = next(c for c in machine.calls("gcloud") if c[3] == "create")
    assert "--version=v2-alpha-tpuv6e" in create and "--spot" not in create


def test_a_run_that_saved_and_stopped_is_resumed(machine):
    done = launch(machine, "run", *ARGUMENTS, codes=[75, 137, 0])
    assert done.returncode == 0, done.stderr
    assert machine.actions() == [CREATE, *[*INSTALL, "train"] * 3]
    first, *others = machine.calls("python")
    assert others == [first, first]
    assert "stopped with code 75; going on" in done.stderr


def test_a_tpu_run_is_not_started_again_for_ever(machine):
    """A process that is killed for its memory is killed again."""
    done = launch(machine, "run", *ARGUMENTS, codes=[137] * 4, MAX_RESTARTS="2")
    assert done.returncode == 137
    assert done.stderr.count("going on from the last checkpoint") == 2


def test_a_slice_that_was_preempted_is_created_again(machine):
    done = launch(machine, "run", codes=["PREEMPTED", 0])
    assert done.returncode == 0, done.stderr
    once = [CREATE, *INSTALL, "train"]
    assert machine.actions() == [*once, DELETE, *once]


@pytest.mark.parametrize("code", [1, 64, 73, 134])
def test_other_codes_end_it(machine, code):
    done = launch(machine, "run", codes=[code])
    assert done.returncode == code
    assert machine.actions().count("train") == 1


def test_a_request_that_fails(machine):
    (machine.folder / "no_capacity").touch()
    done = launch(machine, "run")
    assert done.returncode == 69 and "request has failed" in done.stderr
    assert machine.actions() == [CREATE]


def test_logs_and_delete(machine):
    assert launch(machine, "delete").returncode == 0
    assert machine.actions() == [DELETE]
    assert {"--force", "--quiet"} <= set(machine.calls("gcloud")[-1])
    assert launch(machine, "logs").returncode == 0
    assert f"--output-directory={machine.folder}" in machine.calls("gcloud")[-1]


@pytest.mark.parametrize("missing", ["TPU", "ZONE", "TYPE", "RUNTIME", "WORKDIR"])
def test_a_missing_variable_is_named(machine, missing):
    done = launch(machine, "run", **{missing: ""})
    assert done.returncode != 0 and f"{missing}: " in done.stderr
    assert not {"train", CREATE} & set(machine.actions())


def test_a_command_it_does_not_know(machine):
    done = launch(machine, "start")
    assert done.returncode == 64 and "launch_tpu.sh run --config" in done.stderr


JOB = {"SLURM_JOB_ID": "7", "SLURM_SUBMIT_DIR": str(TOOLS.parent)}
WORKDIR = ("--workdir", "/shared/run")


@pytest.mark.parametrize(
    ("code", "restarts", "again"),
    [
        (0, 0, False),
        (1, 0, False),
        (65, 0, False),
        (75, 0, True),
        (75, 99, True),
        (137, 0, True),  # one task was killed, and the rest ended with 75
        (137, 100, False),
    ],
)
def test_a_slurm_job_is_queued_again_if_that_can_help(machine, code, restarts, again):
    done = machine.run(
        "slurm.sbatch",
        *WORKDIR,
        *ARGUMENTS,
        codes=[code],
        PYTHON="python3.12",
        SLURM_RESTART_COUNT=str(restarts),
        **JOB,
    )
    assert done.returncode == code, done.stderr
    (srun,) = machine.calls("srun")
    assert (
        srun[-6:] == ["python3.12", "-m", "hive_jax.train", *WORKDIR, *ARGUMENTS][-6:]
    )
    assert "--kill-on-bad-exit=0" in srun
    assert machine.calls("scontrol") == ([["requeue", "7"]] if again else [])


def test_slurm_is_asked_for_a_signal_ahead_of_time():
    lines = (TOOLS / "slurm.sbatch").read_text().splitlines()
    options = [line.split()[1] for line in lines if line.startswith("#SBATCH ")]
    assert {"--signal=TERM@300", "--requeue", "--ntasks-per-node=1"} <= set(options)


@pytest.mark.parametrize(
    ("arguments", "variables", "code", "expected"),
    [
        (WORKDIR, {}, 64, "start it with sbatch"),
        (WORKDIR, {**JOB, "HIVE_JAX": "/"}, 66, "is not the repository"),
        ((), JOB, 64, "--workdir is missing"),
        (("--workdirs=x",), JOB, 64, "--workdir is missing"),
    ],
)
def test_mistakes_in_a_slurm_job(machine, arguments, variables, code, expected):
    done = machine.run("slurm.sbatch", *arguments, **variables)
    assert done.returncode == code and expected in done.stderr
    assert machine.calls("srun") == []


@pytest.mark.parametrize("script", ["launch_tpu.sh", "slurm.sbatch"])
def test_scripts_are_sound(script):
    checker = shutil.which("shellcheck")
    command = [checker] if checker else ["bash", "-n"]
    done = subprocess.run(
        [*command, TOOLS / script], check=False, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stdout + done.stderr
