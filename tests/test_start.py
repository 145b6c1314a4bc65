"""Commands start fast: their help needs none of the libraries of a run."""

import dataclasses
import re
import subprocess
import sys
from pathlib import Path

import pytest

from hive_jax.__main__ import COMMANDS
from hive_jax.config import ProbeConfig, RunConfig
from hive_jax.config.cli import get_config
from hive_jax.config.key_help import attribute_descriptions
from hive_jax.export import choices, components
from hive_jax.models import fusion, layer_stack, layers
from hive_jax.models.config import ACTIVATIONS, DecoderConfig, HiveConfig
from hive_jax.models.execution import REMAT_POLICIES
from hive_jax.models.fusion_kinds import FUSIONS
from hive_jax.weights import safetensors

ROOT = Path(__file__).parent.parent
TOOLS = sorted(
    f"tools.{path.stem if path.suffix else path.name}"
    for path in (ROOT / "tools").iterdir()
    if (path.suffix == ".py" and path.stem != "__init__")
    or (path / "__main__.py").is_file()
)
# Each takes tenths of a second of a processor, or seconds, to import.
HEAVY = {
    *("flax", "grain", "huggingface_hub", "jax", "matplotlib", "optax", "orbax"),
    *("pyarrow", "scipy", "tensorstore", "tokenizers", "torch", "transformers"),
}
PROGRAM = """
import runpy, sys
module, *sys.argv[1:] = sys.argv[1:]
try:
    runpy.run_module(module, run_name="__main__", alter_sys=True)
except SystemExit as end:
    print(end.code, *sorted({name.partition(".")[0] for name in sys.modules}))
"""


def started(module: str, *arguments: str, cwd: Path = ROOT) -> tuple[str, int, set]:
    """The output, exit code and imported packages of a command."""
    done = subprocess.run(
        [
            sys.executable,
            "-c",
            f"import sys; sys.path.insert(0, {str(ROOT)!r})" + PROGRAM,
        ]
        + [module, *arguments],
        check=True,
        cwd=cwd,
        capture_output=True,
        text=True,
    )
    *lines, last = done.stdout.splitlines()
    code, *packages = last.split()
    return "\n".join(lines), int(code), set(packages)


@pytest.mark.parametrize("module", [*(f"hive_jax.{name}" for name in COMMANDS), *TOOLS])
def test_help_imports_no_library_of_a_run(module):
    text, code, packages = started(module, "--help")
    assert code == 0
    assert text.startswith("usage: ")
    assert "hive_jax" in packages
    assert not packages & HEAVY


def test_front_door_imports_no_library_of_a_run():
    program = "import sys, hive_jax; print(*sys.modules)"
    done = subprocess.run(
        [sys.executable, "-c", program], check=True, capture_output=True, text=True
    )
    modules = {name.partition(".")[0] for name in done.stdout.split()}
    assert not modules & (HEAVY | {"numpy", "ml_collections"})


def test_error_of_a_config_imports_no_library_of_a_run():
    _, code, packages = started(
        "hive_jax.train", "--config", "stage1", "--config.total_steps=0"
    )
    assert code == 64
    assert not packages & HEAVY


def test_help_with_a_config_lists_every_key():
    arguments = ("--help", "--config", "stage1", "--config.total_steps=7")
    text, code, packages = started("hive_jax.train", *arguments)
    assert code == 0
    assert not packages & HEAVY
    listed = set(re.findall(r"^  --config\.([^=]+)=", text, re.MULTILINE))
    expected = set(flat(get_config("stage1").to_dict()))
    assert listed == expected
    assert "--config.total_steps=7\n      number of optimizer steps." in text
    assert "--config.init_encoder=builtin:tabletop_siglip\n" in text
    assert "--config FILE --help" in started("hive_jax.train", "--help")[0]


@pytest.mark.parametrize("schema", [RunConfig, ProbeConfig, DecoderConfig, HiveConfig])
def test_every_key_is_described(schema):
    names = {field.name for field in dataclasses.fields(schema)}
    assert names == {
        name for name, text in attribute_descriptions(schema).items() if text
    }


def test_foreign_configs_package_is_not_imported(tmp_path):
    foreign = tmp_path / "configs"
    foreign.mkdir()
    for name in ("__init__", "base", "stage1"):
        (foreign / f"{name}.py").write_text("raise SystemExit('foreign')")
    own = tmp_path / "own.py"
    own.write_text((ROOT / "configs/stage1.py").read_text())
    for config in ("stage1", str(own)):
        arguments = ("--config", config, "--help")
        text, code, packages = started("hive_jax.train", *arguments, cwd=tmp_path)
        assert code == 0
        assert "--config.name=stage1" in text
        assert "configs" not in packages


def flat(values: dict, prefix: str = ""):
    for name, value in values.items():
        if isinstance(value, dict):
            yield from flat(value, f"{prefix}{name}.")
        else:
            yield prefix + name


def test_names_without_jax_are_those_of_the_tables():
    """Choices of flags and config keys, and what a run looks up by them."""
    assert [*FUSIONS] == [*fusion.FUSION_CLASSES]
    assert ACTIVATIONS == (*layers._ACTIVATIONS,)
    assert REMAT_POLICIES == (*layer_stack._CHECKPOINT_POLICIES,)
    assert choices.COMPONENTS == (*components.COMPONENTS,)
    assert choices.DTYPES == (*safetensors.DTYPES,)
