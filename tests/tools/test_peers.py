"""hive_jax and PyTorch from the same weights: equal losses, or no times."""

import importlib
import json
import re
import shutil
import sys

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from hive_jax.errors import ConfigError
from tools.benchmark import peers
from tools.benchmark.cases import SIZES
from tools.benchmark.peer_inputs import random_params
from tools.benchmark.variants import VARIANTS
from tools.benchmark.worker_process import OutOfMemory, Worker, WorkerError

pytest.importorskip("torch")


STAGE_3 = {3: importlib.import_module("configs.stage3").get_config("paper").rules}


def compare(rules=STAGE_3, **options):
    options = {"rounds": 1, "steps": 1, "threads": 1, "device": "cpu", **options}
    return peers.compare(SIZES["micro"], rules, **options)


def test_all_variants_agree_and_are_timed():
    result = json.loads(json.dumps(compare()))
    entries = result["stages"]["3"]
    assert list(entries) == list(VARIANTS)
    for entry in entries.values():
        assert len(entry["losses"]) == 3
        assert len(entry["seconds"]) == 1
        assert entry["median"] == entry["minimum"] > 0
        assert entry["images_per_second"] == result["batch_size"] / entry["median"]
        assert set(entry["times"]) == {"hive_jax HIVE", "hive_jax SA"}
    assert entries["hive_jax HIVE"]["times"]["hive_jax HIVE"] == 1
    assert {"jax", "torch", "transformers"} <= set(result["versions"])
    # The updates are large enough for a wrong one to be seen.
    first, _, third = entries["hive_jax HIVE"]["losses"]
    assert abs(third - first) > 100 * peers.TOLERANCE["float32"] * first


def test_another_weight_is_refused(monkeypatch, tmp_path):
    make_jobs = peers.make_jobs

    def with_closed_gate(*arguments):
        jobs = make_jobs(*arguments)
        copy = tmp_path / "weights"
        shutil.copytree(jobs["torch HIVE"]["weights"], copy)
        tensors = load_file(copy / "model.safetensors")
        tensors["cross_attentions.0.gate"] = np.zeros(1, np.float32)
        save_file(tensors, copy / "model.safetensors", metadata={"format": "pt"})
        jobs["torch HIVE"]["weights"] = str(copy)
        return jobs

    monkeypatch.setattr(peers, "make_jobs", with_closed_gate)
    names = ("hive_jax HIVE", "torch HIVE")
    with pytest.raises(peers.PeersDisagree, match="after 0 updates") as error:
        compare(variants=names)
    for name in names:
        assert re.search(rf"{name} is \d\.\d+", str(error.value))


def test_a_worker_that_ends_says_why(tmp_path):
    code = "import sys; print('no such file', file=sys.stderr); sys.exit(3)"
    worker = Worker("one", [sys.executable, "-c", code], {}, tmp_path / "one", {})
    with pytest.raises(WorkerError, match="one: .* exit code 3:\nno such file"):
        worker.run(1)
    worker.close()


def test_a_worker_without_memory_is_told_apart(tmp_path):
    code = 'input(); print(\'{"out_of_memory": "2 GB wanted"}\')'
    worker = Worker("one", [sys.executable, "-c", code], {}, tmp_path / "one", {})
    with pytest.raises(OutOfMemory, match="one: 2 GB wanted"):
        worker.run(1)
    worker.close()


def test_agreement_is_relative_and_names_both_losses():
    entries = {
        "hive_jax HIVE": {"losses": [9.0, 8.0, 7.0]},
        "torch HIVE": {"losses": [9.0001, 1.0, 7.0]},
    }
    peers.require_agreement(entries, 1e-4, "stage 1")
    entries["torch HIVE"]["losses"][2] = 7.01
    with pytest.raises(peers.PeersDisagree, match=r"stage 1: .*7\.01 .* is 7;"):
        peers.require_agreement(entries, 1e-4, "stage 1")
    entries["torch HIVE"]["losses"][2] = float("nan")
    with pytest.raises(peers.PeersDisagree, match="nan"):
        peers.require_agreement(entries, 1e-4, "stage 1")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"variants": ("torch HIVE",)}, "is compared with 'hive_jax HIVE'"),
        ({"variants": ("torch",)}, "expected some of hive_jax HIVE"),
        ({"device": "tpu"}, "expected 'cpu' or 'gpu'"),
        ({"rounds": 0}, "expected 1 or more"),
        ({"rules": {1: (("fusion/.*", 1.0, (1,)), (".*", None))}}, "without `layers`"),
        ({"rules": {1: ((".*", 1.0),)}}, "token embeddings"),
    ],
)
def test_impossible_arguments(options, message):
    with pytest.raises(ConfigError, match=message):
        compare(**options)


def test_no_parameter_is_zero():
    shapes = {"img/a/LayerNorm_0/scale": (8,), "llm/final_norm/scale": (8,)}
    params = random_params(shapes, seed=0)
    assert all(np.all(value != 0) for value in params.values())
    assert params["img/a/LayerNorm_0/scale"].mean() > 0.5
    assert abs(params["llm/final_norm/scale"].mean()) < 0.5
