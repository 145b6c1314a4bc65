"""Config files that fail: one error, with the file and the line."""

import importlib
import subprocess
import sys

import pytest

from hive_jax.config import cli
from hive_jax.console import report_errors
from hive_jax.errors import ConfigError, MissingInputError

GOOD = """
from ml_collections import ConfigDict
from hive_jax.config import RunConfig, to_dict

def get_config(name="x"):
    config = ConfigDict(to_dict(RunConfig()))
    config.name = name
    return config
"""


def read(tmp_path, code: str | bytes, *overrides: str, arguments: str = ""):
    path = tmp_path / "config.py"
    path.write_bytes(code if isinstance(code, bytes) else code.encode())
    return cli.read_config(f"{path}{arguments}", overrides)


def test_a_file_with_an_argument_and_overrides(tmp_path):
    config = read(tmp_path, GOOD, "--config.batch_size=32", arguments=":y")
    assert (config.name, config.batch_size) == ("y", 32)


@pytest.mark.parametrize(
    ("code", "message"),
    [
        ("def get_config(:", "line 1: SyntaxError: invalid syntax"),
        ("x = 1\n  y = 2", "line 2: IndentationError: unexpected indent"),
        ("import no_such_module", "line 1: ModuleNotFoundError: No module named 'no_s"),
        (
            "def get_config():\n\n    return 1 / 0",
            "line 3: ZeroDivisionError: division",
        ),
        ("def get_config():\n    return get_config()", "line 2: RecursionError: "),
        ("def get_config():\n    raise SystemExit(3)", "line 2: SystemExit: 3"),
        ("# A README\nwith *text*", "line 2: SyntaxError: invalid syntax"),
        (
            "{'name': 'x'}",
            " has no get_config(); expected one that returns a ConfigDict",
        ),
        (b"a\0b", ": SyntaxError: source code "),
        (b"\xff\xfe", "SyntaxError: (unicode error)"),
        ("def get_config(): pass", ": get_config() returned NoneType; expected a Conf"),
        (
            "def get_config(): return {}",
            ": get_config() returned dict; expected a Conf",
        ),
        ("get_config = 3", ": TypeError: 'int' object is not callable"),
        (
            GOOD.replace("config.name", "config.optimzer.peak_lr"),
            "line 7: AttributeError: ",
        ),
    ],
)
def test_errors_in_a_config_file(tmp_path, code, message):
    with pytest.raises(ConfigError) as caught:
        read(tmp_path, code)
    where, found = str(tmp_path / "config.py"), str(caught.value)
    assert found.startswith(where) and message in found
    assert "Traceback" not in found and found.count(where) == 1


def test_arguments_that_a_config_file_does_not_take(tmp_path):
    with pytest.raises(ConfigError, match="config.py: TypeError: get_config.. takes 0"):
        read(tmp_path, "def get_config(): pass", arguments=":paper")


def test_errors_of_a_value_that_is_computed_later(tmp_path):
    code = GOOD.replace(
        "config.name = name",
        "config.data.get_ref('seed')\n    config.b"
        "atch_size = 1 // config.data.get_ref('seed')",
    )
    with pytest.raises(ConfigError, match="zero"):
        read(tmp_path, code)


def test_what_is_no_file(tmp_path):
    for path in (tmp_path, tmp_path / "none.py"):
        with pytest.raises(MissingInputError, match="no such file"):
            cli.read_config(str(path), [])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--workdir="], "workdir is ''; expected the path of a folder"),
        (
            ["--workdir=hdfs://host/run"],
            "workdir is 'hdfs://host/run'; expected a local path, gs:// or s3://",
        ),
        (["--config.data.source=llava:s3://b/*.json"], "llava is 's3://b/*.json'"),
        (["--config.data.source=food101:/"], "a whole disk"),
        (["--config.rules=(('img/(', 1.0),)"], "expected"),
        (["--config.name=../../x"], "config.name is '../../x'"),
        (["--config.name="], "config.name is ''"),
        (["--config.optimizer.peak_lr=1e38"], "config.optimizer.peak_lr is 1e+38"),
    ],
)
def test_the_command_refuses_before_any_work(
    tmp_path, monkeypatch, capsys, arguments, message
):
    from hive_jax.training import trainer

    monkeypatch.chdir(tmp_path)

    def built(*unused_arguments):
        raise AssertionError("the program was built")

    monkeypatch.setattr(trainer, "Experiment", built)

    @report_errors
    def main():
        options = [a.removeprefix("--workdir=") for a in arguments if "workdir" in a]
        overrides = [a for a in arguments if a.startswith("--config.")]
        config = cli.read_config("stage1", overrides)
        return trainer.train(config, *options)

    assert main() == 64
    error = capsys.readouterr().err
    assert error.startswith("error: ") and message in error
    assert not [*tmp_path.iterdir()]


def test_a_reference_that_overrides_break_is_named(tmp_path):
    path = tmp_path / "config.py"
    path.write_text(
        "from configs import stage1\n"
        "def get_config():\n"
        "    config = stage1.get_config()\n"
        "    size = config.get_ref('batch_size')\n"
        "    config.log_every = size // (size - 7)\n"
        "    return config\n"
    )
    assert cli.read_config(str(path), ["--config.batch_size=8"]).log_every == 8
    with pytest.raises(ConfigError) as error:
        cli.read_config(str(path), ["--config.batch_size=7"])
    expected = (
        f"{path}: a value cannot be computed: ZeroDivisionError: integer division"
    )
    assert str(error.value).startswith(expected)


def test_the_process_prints_no_traceback(tmp_path):
    (tmp_path / "config.py").write_text("import no_such_module")
    command = [sys.executable, "-m", "hive_jax.train", f"--config={tmp_path}/config.py"]
    done = subprocess.run(command, check=False, capture_output=True, text=True)
    assert done.returncode == 64
    (line,) = done.stderr.splitlines()
    assert line.startswith(f"error: {tmp_path}/config.py, line 1: ModuleNotFoundError")


@pytest.mark.parametrize("module", ["plan", "probe", "train"])
def test_a_missing_config_is_an_error(capsys, module):
    assert importlib.import_module(f"hive_jax.{module}").main([]) == 64
    assert capsys.readouterr().err.startswith("error: --config is missing, e.g. ")


@pytest.mark.parametrize(
    ("module", "config", "message"),
    [
        ("train", "probe", "is a config of probes; expected one of training"),
        ("probe", "stage1", "is a config of training; expected one of probes"),
    ],
)
def test_the_config_of_another_command_is_named(capsys, module, config, message):
    main = importlib.import_module(f"hive_jax.{module}").main
    assert main(["--config", config, "--config.seed=1"]) == 64
    assert message in capsys.readouterr().err
