"""What the benchmarks count, compile and time; no time is judged here."""

import dataclasses
import functools
import importlib
import json
import subprocess
import sys
from pathlib import Path

import jax
import numpy as np
import pytest

from hive_jax.config import recipes
from hive_jax.training import sharding
from hive_jax.training.flops import example_flops, step_flops
from hive_jax.training.train_step import Program
from tools.benchmark import data_wait, gpu, grid, tables
from tools.benchmark.cases import FUSIONS, IMAGE_KV, SIZES, STAGES, case
from tools.benchmark.data_throughput import reading
from tools.benchmark.timed_step import Step

ROOT = Path(__file__).resolve().parents[2]
RULES = {
    stage: importlib.import_module(f"configs.stage{stage}").get_config("paper").rules
    for stage in STAGES
}
FULL = SIZES["siglip_l16_384+gemma3_1b"]


def counted(size, fusion, stage):
    config = case(size, fusion, RULES[stage], "bfloat16", IMAGE_KV[stage])
    mesh = sharding.make_mesh(config.mesh, jax.devices()[:1])
    return example_flops(config, Program(config, mesh).assigned)


@pytest.mark.parametrize("stage", STAGES)
def test_the_ratios_of_the_full_size(stage):
    """The shares that follow from the shapes, whole and without the encoder."""
    hive, joint, cascaded, plain = (counted(FULL, name, stage) for name in FUSIONS)
    assert hive == cascaded
    # No queries and outputs of its own; its layers' own attention is trained through.
    assert joint.cross_attention < hive.cross_attention
    assert joint.total < hive.total
    whole = {1: 0.304, 2: 0.257, 3: 0.395}[stage]
    language = {1: 0.177, 2: 0.164, 3: 0.167}[stage]
    np.testing.assert_allclose(hive.total / plain.total, whole, rtol=0.03)
    ratio = hive.without_encoder / plain.without_encoder
    np.testing.assert_allclose(ratio, language, rtol=0.03)


@functools.cache
def rows_at_full_width(stage, rules):
    """Of all fusions, on four layers of each tower, for the time that tracing takes."""
    size = dataclasses.replace(
        FULL,
        encoder=dataclasses.replace(FULL.encoder, depth=4),
        decoder=dataclasses.replace(FULL.decoder, depth=4, vocab_size=4096),
    )
    return {row["fusion"]: row for row in grid.flops(size, {stage: rules})}


# Of the LLM the attention alone, as in the authors' scripts.
ATTENTION = (recipes.FUSION, ("llm/layers/attn/.*", 1.0), recipes.FROZEN_REST)


@pytest.mark.parametrize(
    ("stage", "fusion", "rules"),
    [
        (1, "hive", RULES[1]),
        (1, "joint", RULES[1]),
        (2, "joint", ATTENTION),
        (3, "self_attention", RULES[3]),
    ],
)
def test_our_count_is_that_of_xla(stage, fusion, rules):
    row = rows_at_full_width(stage, rules)[fusion]
    np.testing.assert_allclose(row["xla"], row["total"], rtol=0.02)


def test_a_layer_below_the_first_connection_has_no_gradient():
    """Stage 1 trains fusion alone: each layer before its first one costs less."""
    size = SIZES["tiny"]

    def text(connections):
        config = case(size, "hive", RULES[1], "float32")
        model = dataclasses.replace(config.model, connections=connections)
        config = dataclasses.replace(config, model=model)
        mesh = sharding.make_mesh(config.mesh, jax.devices()[:1])
        return example_flops(config, Program(config, mesh).assigned).text

    costs = [text(((3, layer), (6, 6))) for layer in (1, 2, 5)]
    saved = costs[0] - costs[1]
    assert 0.4 * costs[0] / 6 < saved < 0.6 * costs[0] / 6
    np.testing.assert_allclose(costs[0] - costs[2], 4 * saved)


@pytest.mark.parametrize("rule", ["llm/embedder/.*", "llm/(embedder|lm_head)/.*"])
def test_an_untied_head_counts_its_own_gradient(rule):
    """As large as that of a table tied to the head."""
    size = SIZES["micro"]
    rules = ((rule, None), (".*", 1.0))
    tied = size.decoder
    untied = dataclasses.replace(tied, tied_head=False)
    counts = {}
    for decoder in (tied, untied):
        config = case(
            dataclasses.replace(size, decoder=decoder), "hive", rules, "float32"
        )
        mesh = sharding.make_mesh(config.mesh, jax.devices()[:1])
        counts[decoder] = example_flops(config, Program(config, mesh).assigned)
    trains = "lm_head" not in rule
    ratio = counts[untied].logits / counts[tied].logits
    np.testing.assert_allclose(ratio, 3 / 2 if trains else 1)


@pytest.fixture(scope="module")
def one_step():
    return Step(case(SIZES["micro"], "hive", RULES[3], "float32")).start()


def test_a_step_learns_from_its_batch(one_step):
    first = one_step.loss
    assert one_step.seconds(20) > 0
    assert one_step.loss < first


def test_a_step_knows_its_cost(one_step):
    config, assigned = one_step.config, one_step.program.assigned
    assert one_step.flops == step_flops(config, assigned)
    assert one_step.flops == 4 * example_flops(config, assigned).total
    parameters = sum(p.size for p in jax.tree.leaves(one_step.program.abstract_params))
    assert one_step.peak_bytes > 3 * 4 * 0.8 * parameters  # with both moments


def test_the_parts_for_one_gpu_run_through_anywhere(monkeypatch):
    monkeypatch.setattr(gpu, "_TOGETHER", 1)
    size, rules = SIZES["micro"], {2: RULES[2]}
    rows = list(gpu.ceilings(size, "float32"))
    assert len(rows) == 11
    rows = list(gpu.grid(size, rules, "float32", minutes=0.001))
    fusions = [row["what"].split(", ")[1] for row in rows]
    assert fusions == ["hive", "self_attention", "hive", "joint", "cascaded"]
    assert rows[0]["images_per_second"] > 0  # the first one always runs
    assert all("minutes are over" in row["left_out"] for row in rows[1:])
    table = tables.gpu_table(rows).splitlines()
    assert len(table) == 2 + len(rows)
    assert len({line.count("|") for line in table}) == 1


def test_a_grid_compares_equal_batches():
    speeds = {
        "stage 2, hive, batch 8": 9.0,
        "stage 2, self_attention, batch 4": 2.0,
        "stage 2, hive, batch 4": 7.0,
    }
    rows = [{"what": n, "images_per_second": s} for n, s in speeds.items()]
    rows.append({"what": "stage 2, cascaded, batch 4", "left_out": "no time"})
    found = [row.get("speed_up") for row in gpu._against_self_attention(rows)]
    assert found == [None, None, 3.5, None]


def test_ablations_are_other_programs_for_the_same_work():
    cases = dict(gpu.ablation_cases(SIZES["micro"], {1: RULES[1]}, "bfloat16"))
    assert len(cases) == 10
    mesh = sharding.make_mesh(cases["stage 1, as it is"].mesh, jax.devices()[:1])
    programs = {
        name: Program(config, mesh).lower_train_step().as_text()
        for name, config in cases.items()
    }
    # No CPU has flash attention.
    without_flash = programs.pop("stage 1, no flash attention")
    assert without_flash == programs["stage 1, as it is"]
    assert len({*programs.values()}) == 9


def test_the_command_prints_a_table_and_writes_json_and_a_chart(tmp_path):
    command = [sys.executable, "-m", "tools.benchmark", "flops", "--size", "micro"]
    command += ["--stages", "1", "--out", str(tmp_path)]
    done = subprocess.run(
        command, check=False, cwd=ROOT, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    assert [line.split(" | ")[1] for line in lines[2:6]] == list(FUSIONS)
    written = json.loads((tmp_path / "flops.json").read_text())
    assert written["machine"]["jax"] == jax.__version__
    assert [row["fusion"] for row in written["rows"]] == list(FUSIONS)
    assert (tmp_path / "flops.png").read_bytes().startswith(b"\x89PNG")


def test_reading_is_timed_in_its_parts_and_from_every_form():
    rows = list(reading(image_size=16, count=32, threads=2))
    parts = [f"decode{more}" for more in ("", " and resize", " and augment")]
    names = [*parts, "batches, folder", "batches, zip"]
    assert [row["what"] for row in rows][:5] == names
    assert all(row["images_per_second"] > 0 for row in rows)
    assert tables.reading_table(rows).count("\n") == len(rows) + 1


def test_what_data_costs_a_step(monkeypatch):
    monkeypatch.setattr(data_wait, "_BUCKETS", (6,))
    monkeypatch.setattr(data_wait, "_LONGEST", 16)
    monkeypatch.setattr(data_wait, "_CAPTIONS", (4, 16))
    inputs = SIZES["micro"], {1: RULES[1]}, "float32"
    (row,) = data_wait.waiting(*inputs, steps=2, threads=2)
    assert row["images_per_second"] > 0 and 0 <= row["data_wait"] < 1
    assert tables.waiting_table([row]).count("\n") == 2
    (row,) = data_wait.padding(*inputs, rounds=2)
    assert 0.5 * row["flops"] < row["flops_by_length"] < row["flops"]
    assert row["seconds_by_length"] > 0
    assert tables.padding_table([row]).count("\n") == 2


def test_memory_is_compiled_and_not_used(tmp_path):
    rows = grid.memory(SIZES["micro"], {2: RULES[2]}, "float32", batch_size=8)
    assert [row["fusion"] for row in rows] == list(FUSIONS)
    for row in rows:
        assert row["peak"] == row["state"] + row["temporary"]
        assert row["temporary"] > 0
    tables.chart(tmp_path / "memory.png", rows, "peak", 1e9, "GB")
    assert tables.memory_table(rows).count("\n") == 5
