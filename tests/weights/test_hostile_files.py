"""Loading runs no code of the files, watched by Python's own audit events."""

import subprocess
import sys

from conftest import ROOT

from tools.fault_suite.hostile_files import write_code

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


def test_loading_never_runs_code_from_the_files(tmp_path):
    write_code(tmp_path)
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
