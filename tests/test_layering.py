"""Imports point one way, and every module is there for something.

models <- config <- data <- training <- export, inference <- evaluation <- analysis
weights between config and training; planning beside evaluation; commands above all
errors, console, and what knows files and buckets (SHARED) serve everything but models
"""

import ast
from pathlib import Path

import pytest

import hive_jax

PACKAGE = Path(hive_jax.__path__[0])
ROOT = PACKAGE.parent

# Imports of each room of the package, besides itself and SHARED.
SHARED = {
    *("bucket_lock", "buckets", "console", "downloads", "errors", "file_content"),
    *("io", "json_text", "locks", "log_file", "temporary"),
}
TRAINING = {"models", "config", "data", "weights", "training"}
BELOW = {
    **{name: set() for name in SHARED},
    "plotting": set(),
    "models": set(),
    "config": {"models"},
    "data": {"config"},
    "weights": {"models", "config"},
    "training": TRAINING,
    "export": TRAINING,
    "inference": {*TRAINING, "export"},  # to save a model
    "planning": TRAINING,
    "evaluation": {*TRAINING, "inference", "plotting"},
    "analysis": {*TRAINING, "inference", "evaluation", "plotting"},
}
COMMANDS = {
    "__main__",
    "chat",
    "compare",
    "evaluate",
    "export_hf",
    "import_weights",
    "make_tokenizer",
    "plan",
    "prepare_data",
    "probe",
    "train",
    "visualize",
}
_ALL = set(BELOW)
BELOW |= {command: _ALL for command in COMMANDS}
# Slow to import, or not needed to train: only inside of the functions that need them.
# ConfigDict stops at the door, which is config/cli.py.
OPTIONAL = {
    "datasets",
    "einops",
    "etils",
    "fsspec",
    "grain",
    "huggingface_hub",
    "ml_collections",
    "safetensors",
    "sentencepiece",
    "tensorflow",
    "tensorflow_datasets",
    "torch",
    "transformers",
}


def module_name(path):
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


# Goes out with exports, or is run by another Python or process; never imported here.
TORCH = {
    PACKAGE / "export/torch": {
        *("configuration_hive.py", "connections_hive.py", "joint_attention_hive.py"),
        *("modeling_hive.py", "run_exported.py"),
    },
    ROOT / "tools/benchmark/torch": {
        *("losses.py", "peers.py", "training.py", "worker.py"),
    },
}

TREES = {
    module_name(path): ast.parse(path.read_text(encoding="utf-8"))
    for path in sorted(PACKAGE.rglob("*.py"))
    if not TORCH.keys() & set(path.parents)
}


def imported(nodes):
    """Full names of the modules that the import statements in `nodes` load."""
    for node in nodes:
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"relative import of {node.module}"
            for alias in node.names:
                name = f"{node.module}.{alias.name}"
                yield name if name in TREES else node.module


def ours(tree):
    return {name for name in imported(ast.walk(tree)) if name.startswith("hive_jax.")}


def room_of(module):
    return module.split(".")[1]


MODULES = [name for name in TREES if name != "hive_jax"]


def test_every_room_is_listed():
    assert {room_of(name) for name in MODULES} == set(BELOW)
    assert "hive_jax.models.layer_stack" in ours(TREES["hive_jax.models.decoder"])


@pytest.mark.parametrize("module", MODULES)
def test_imports_point_one_way(module):
    room = room_of(module)
    allowed = BELOW[room] | {room} | (SHARED if room != "models" else set())
    assert {room_of(name) for name in ours(TREES[module])} <= allowed


def test_there_is_no_import_cycle():
    finished = set()

    def visit(module, above):
        assert module not in above, " > ".join([*above, module])
        if module not in finished:
            for name in sorted(ours(TREES[module])):
                visit(name, [*above, module])
            finished.add(module)

    for module in MODULES:
        visit(module, [])


@pytest.mark.parametrize("module", [m for m in MODULES if m != "hive_jax.config.cli"])
def test_optional_packages_are_imported_inside_functions(module):
    def loaded_with_the_module(node):
        for child in ast.iter_child_nodes(node):
            if not isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef):
                yield child
                yield from loaded_with_the_module(child)

    names = {
        name.split(".")[0] for name in imported(loaded_with_the_module(TREES[module]))
    }
    assert not names & OPTIONAL


def test_models_need_nothing_but_jax_and_flax():
    names = {
        name.split(".")[0]
        for module, tree in TREES.items()
        if module.startswith("hive_jax.models")
        for name in imported(ast.walk(tree))
    }
    assert names <= {
        "collections",
        "dataclasses",
        "flax",
        "functools",
        "hive_jax",
        "jax",
        "math",
        "numpy",
        "typing",
    }


def test_every_module_is_imported_or_a_command():
    """By the package, or by a tool; a test alone is no use."""
    tools = [
        ast.parse(path.read_text(encoding="utf-8"))
        for folder in ("tools", "configs")
        for path in sorted((ROOT / folder).rglob("*.py"))
    ]
    used = set().union(*map(ours, [*TREES.values(), *tools]))
    packages = {name.rpartition(".")[0] for name in TREES}
    commands = {f"hive_jax.{name}" for name in COMMANDS}
    assert set(TREES) - used - packages <= commands


def test_the_package_imports_no_tools_tests_or_configs():
    """tools/ may import everything; it stays out of the wheel, and out of the way."""
    roots = {
        name.split(".")[0]
        for tree in TREES.values()
        for name in imported(ast.walk(tree))
    }
    assert not roots & {"tools", "tests", "configs"}


@pytest.mark.parametrize("module", MODULES)
def test_every_module_has_a_docstring(module):
    tree = TREES[module]
    assert not tree.body or ast.get_docstring(tree)


@pytest.mark.parametrize("folder", TORCH)
def test_torch_is_imported_in_its_folders_only(folder):
    """And what is in there needs nothing of ours, nor JAX."""
    files = sorted(folder.glob("*.py"))
    assert {path.name for path in files} == TORCH[folder]
    for path in files:
        tree = ast.parse(path.read_text(encoding="utf-8"))
        found = {
            node.names[0].name if isinstance(node, ast.Import) else node.module or ""
            for node in ast.walk(tree)
            if isinstance(node, ast.Import | ast.ImportFrom)
        }
        roots = {name.split(".")[0] for name in found}
        assert not roots & {"hive_jax", "jax", "flax"}
