"""Loading runs no code of the files, watched by Python's own audit events."""

import json
import pathlib
import subprocess
import sys

import numpy as np
from conftest import ROOT
from helpers.tiny_weights import IMAGE, write_folder

from hive_jax.weights import hf_models

# What it prints is compared below; a second hand at the same files shows that the
# watch would see them run.
WATCH = """
import sys
import numpy as np
from hive_jax.errors import CheckpointError
from hive_jax.weights import load_decoder, load_encoder

folder, seen = sys.argv[1], set()

def watch(event, args):
    if event == "pickle.find_class":
        seen.add(event)
    if event in ("exec", "compile", "open", "import"):
        code = args[0] if event != "compile" else args[1]
        where = str(getattr(code, "co_filename", code))
        if "hostile" in where:
            seen.add(f"{event} {where.removeprefix(folder)}")

load_encoder("builtin:tabletop_siglip")
sys.addaudithook(watch)
for load in (load_encoder, load_decoder):
    for name in ("trusting", "unknown", "model.npz", "model.bin"):
        try:
            load(f"{folder}/{name}")
            print(name, "loaded")
        except CheckpointError:
            print(name, "refused")
print(sorted(seen))
np.load(f"{folder}/model.npz", allow_pickle=True)["img/embedding/kernel"]
sys.path.insert(0, f"{folder}/trusting")
import hostile
print(sorted(seen))
"""


def hostile_files(folder):
    """Folders whose configuration points at code beside it, and pickled objects."""
    for name in ("trusting", "unknown"):
        path = folder / name
        write_folder(path, hf_models.encoder(IMAGE))
        (path / "hostile.py").write_text("open(__file__ + '.was_here', 'w').close()")
        config = json.loads((path / "config.json").read_text())
        config["auto_map"] = dict.fromkeys(
            ("AutoConfig", "AutoModel", "AutoImageProcessor"), "hostile.Hostile"
        )
        config["trust_remote_code"] = True
        (path / "config.json").write_text(json.dumps(config))
        (path / "pytorch_model.bin").write_bytes(b"\x80\x02chostile\nHostile\n.")
    config["model_type"] = "hostile"
    (path / "config.json").write_text(json.dumps(config))
    (folder / "model.bin").write_bytes(b"\x80\x02chostile\nHostile\n.")
    objects = np.array([pathlib.PurePath("object")], dtype=object)
    np.savez(folder / "model.npz", **{"img/embedding/kernel": objects})


def test_loading_never_runs_code_from_the_files(tmp_path):
    hostile_files(tmp_path)
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", WATCH, str(tmp_path)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    )
    *results, seen, seen_by_others = done.stdout.splitlines()
    names = ("unknown", "model.npz", "model.bin")
    refused = [f"{name} refused" for name in names]
    assert results == ["trusting loaded", *refused, "trusting refused", *refused]
    assert seen == "[]"
    for event in ("pickle.find_class", "import hostile", "exec /trusting/hostile.py"):
        assert f"'{event}'" in seen_by_others
    assert list(tmp_path.rglob("*.was_here")) == [
        tmp_path / "trusting" / "hostile.py.was_here"
    ]
