"""The commands in tools/, and the paper's recipe at full size."""

import importlib
import subprocess
import sys
from pathlib import Path

import jax
import numpy as np
import pytest
from PIL import Image

from hive_jax.config import from_dict
from hive_jax.plan import parameter_report
from hive_jax.training.stored_run import open_run
from hive_jax.weights.api import load_encoder
from tools.fault_suite import micro_run

ROOT = Path(__file__).resolve().parents[2]

# SigLIP L/16-384's image tower and Gemma 3 1B, as transformers count them.
SIGLIP_L_384 = 316_283_904
GEMMA3_1B, GEMMA3_1B_TABLE = 999_885_952, 262_144 * 1152


def tool(name: str, *arguments: str) -> tuple[int, str]:
    done = subprocess.run(
        [sys.executable, f"tools/{name}.py", *arguments],
        cwd=ROOT,
        check=False,
        capture_output=True,
        text=True,
    )
    return done.returncode, done.stdout + done.stderr


def counts(stage: int, fusion: str) -> dict[str, dict[str, int]]:
    """Parameters by branch of a `:paper` config, "trainable" and "frozen"."""
    module = importlib.import_module(f"configs.stage{stage}")
    config = from_dict(module.get_config(f"paper,fusion={fusion}").to_dict())
    found = {"trainable": {}, "frozen": {}}
    for line in parameter_report(config).splitlines()[2:-2]:
        part, number, kind = line.split()[:3]
        branch, number = part.split("/")[0], int(number.replace(",", ""))
        found[kind][branch] = found[kind].get(branch, 0) + number
    return found


@pytest.mark.parametrize("fusion", ["hive", "cascaded", "self_attention"])
def test_paper_trains_what_table_3_says(fusion):
    stages = {number: counts(number, fusion) for number in (1, 2, 3)}
    for found in stages.values():
        for branch, total in (("img", SIGLIP_L_384), ("llm", GEMMA3_1B)):
            parts = [kind.get(branch, 0) for kind in found.values()]
            assert sum(parts) == total
    trainable = {number: found["trainable"] for number, found in stages.items()}
    body = GEMMA3_1B - GEMMA3_1B_TABLE
    assert trainable[1].keys() == {"fusion"}
    assert trainable[2] == {**trainable[1], "llm": body}
    assert trainable[3].keys() == {"fusion", "llm", "img"}
    # All of the tower that features depend on: not the pooling head, the last norm.
    beside = 12_595_200 + 2 * 1024
    assert trainable[3]["img"] == SIGLIP_L_384 - beside


def test_contact_sheet(tmp_path):
    path = tmp_path / "sheet.png"
    code, output = tool(
        "tabletop", "preview", "--out", str(path), "--count", "2", "--size", "64"
    )
    assert code == 0, output
    with Image.open(path) as image:
        assert len(image.convert("RGB").getcolors(2**24)) > 500


def test_export_and_start_from_it(tmp_path):
    """An encoder out of one run, as .npz and as a folder, into another."""
    run, npz = tmp_path / "run", tmp_path / "encoder.npz"
    start = micro_run.command("stage1.py", run, "--config.total_steps=1")
    micro_run.finish(micro_run.start(start, tmp_path / "cache"))
    chosen = ("export_hf", "--run", str(run), "--component", "encoder")
    code, output = tool(*chosen, "--out", str(npz), "--format", "big_vision")
    assert code == 0 and f"{npz}: encoder, float32" in output
    folder = tmp_path / "encoder"
    code, output = tool(*chosen, "--out", str(folder), "--no_verify")
    assert code == 0 and "not verified: it was not asked for" in output
    _, wanted = load_encoder(str(npz))
    again = micro_run.command(
        "stage1.py",
        tmp_path / "again",
        "--config.total_steps=1",
        f"--config.init_encoder={folder}",
        "--config.seed=5",
    )
    micro_run.finish(micro_run.start(again, tmp_path / "cache"))
    params, _ = open_run(str(tmp_path / "again")).read_params()
    jax.tree.map(np.testing.assert_array_equal, params["img"], wanted)


def test_import_tool(tmp_path):
    out = str(tmp_path / "weights")
    towers = ("--encoder=builtin:tabletop_siglip", "--decoder=builtin:tabletop_llm")
    code, output = tool("import_weights", *towers, "--out", out)
    assert code == 0 and f"--config.init={out}" in output
    code, output = tool("import_weights", *towers, "--out", out)
    assert code == 73 and "exists" in output


def test_weights_tools_errors_are_messages(tmp_path):
    out = str(tmp_path / "x")
    for name, *arguments in (
        ("export_hf", "--run", "no", "--component", "encoder", "--out", out),
        ("import_weights", "--encoder", "no", "--out", out),
        ("export_hf", "verify", "no"),
    ):
        code, output = tool(name, *arguments)
        assert code == 66 and "error: " in output and "Traceback" not in output


def test_tokenizer_is_reproducible(tmp_path):
    code, output = tool(
        "tabletop", "tokenizer", "--out", str(tmp_path / "tokenizer.json")
    )
    assert code == 0, output
    made = (tmp_path / "tokenizer.json").read_bytes()
    assert made == (ROOT / "hive_jax/assets/tokenizer.json").read_bytes()
