"""The files of configs/ say what they do."""

import dataclasses
import importlib
import subprocess
import sys
from pathlib import Path

import pytest

from hive_jax.config import (
    Rule,
    as_run_config,
    from_dict,
    recipes,
)
from hive_jax.data.batch import Batch
from hive_jax.errors import ConfigError
from hive_jax.models.fusion_kinds import FUSIONS
from hive_jax.models.presets import decoder_config, siglip_config
from hive_jax.training.objectives import names_under_all_fusions
from hive_jax.training.optimizer import assign_rules, trains
from hive_jax.training.resolve import resolve_config

ROOT = Path(__file__).resolve().parents[2]
BASELINES = ("hive", "cascaded", "joint", "self_attention")


def load(stage, arguments=None):
    tree = importlib.import_module(f"configs.stage{stage}").get_config(arguments)
    run = from_dict(tree.to_dict())
    return resolve_config(run).config if run.model.encoder is None else run


ALL = [(0, "siglip"), (0, "llm")] + [
    (stage, f"{size}fusion={fusion}")
    for stage in (1, 2, 3)
    for size in ("", "paper,", "small,")
    for fusion in BASELINES
]


@pytest.fixture(scope="module")
def other_names():
    run = load(1)
    return names_under_all_fusions(run, Batch.spec(1, 40, 64))


@pytest.mark.parametrize(("stage", "arguments"), ALL)
def test_every_config_builds(parameter_shapes, other_names, stage, arguments):
    """Abstract shapes of the full-size models, and a rule for each parameter."""
    run = load(stage, arguments)
    shapes = parameter_shapes(run)
    assigned = assign_rules(shapes, run.rules, lambda: other_names)
    millions = sum(p.size for p in shapes.values()) / 1e6
    trainable = sum(p.size for n, p in shapes.items() if trains(assigned[n])) / 1e6
    assert 0 < trainable <= millions
    if stage:
        fusion = arguments.split("=")[1]
        suffix = "" if fusion == "hive" else f"_{fusion}"
        assert run.model.fusion == fusion
        assert run.previous == (f"stage{stage - 1}{suffix}" if stage > 1 else "")
        assert run.name == f"stage{stage}{suffix}"
    if "paper" in arguments:
        assert 1300 < millions < 1500  # 316 M, 1000 M, and the fusion
        assert run.gradient_accumulation_steps == (4 if stage == 3 else 1)
    elif "small" in arguments:
        assert 360 < millions < 380  # 93 M, 268 M, and the fusion
    elif stage:
        assert millions < 1.1


@pytest.mark.parametrize("fusion", BASELINES)
@pytest.mark.parametrize(
    ("stage", "table"),
    [
        (1, (0.9, 0.999, 1e-3, 1e-4, 0.0, 256, 1.0, 70, 2326)),
        (2, (0.9, 0.95, 2e-5, 2e-6, 0.0, 256, 10.0, 140, 4652)),
        (3, (0.9, 0.95, 2e-6, 0.0, 0.0, 1024, 10.0, 18, 581)),
    ],
)
def test_the_paper_recipes_are_those_of_table_3(stage, fusion, table):
    run = load(stage, f"paper,fusion={fusion}")
    optimizer = run.optimizer
    assert table == (
        optimizer.beta1,
        optimizer.beta2,
        optimizer.peak_lr,
        optimizer.min_lr,
        optimizer.weight_decay,
        run.batch_size,
        optimizer.clip_norm,
        optimizer.warmup_steps,
        run.total_steps,
    )
    assert all(rule.multiplier in (1.0, None) for rule in run.rules)
    assert all(rule.layers == () for rule in run.rules)
    epochs = {1: 1, 2: 2, 3: 1}[stage]
    samples = run.total_steps * run.batch_size
    assert samples == pytest.approx(epochs * 595_375, rel=0.001)


def test_the_paper_recipe_has_the_paper_sizes():
    run = load(1, "paper")
    encoder, decoder = run.model.encoder, run.model.decoder
    assert (encoder.width, encoder.depth, encoder.num_heads) == (1024, 24, 16)
    assert (encoder.patch_size, encoder.image_size) == (16, 384)
    assert (decoder.width, decoder.depth, decoder.vocab_size) == (1152, 26, 262_144)
    depths = [depth for depth, _ in run.model.resolved_connections()]
    assert depths == [4, 8, 12, 16, 20, 24]  # 25 % of 24, the last one included


@pytest.mark.parametrize("stage", [1, 2, 3])
def test_the_small_recipe_is_the_paper_s_with_smaller_towers(stage):
    small, paper = load(stage, "small"), load(stage, "paper")
    assert small.model.encoder == siglip_config("B", 16, 256)
    assert small.model.decoder == decoder_config("gemma3_270m")
    assert small.init_encoder == "google/siglip2-base-patch16-256"
    assert small.init_decoder == "google/gemma-3-270m"
    same = dataclasses.replace(
        small,
        model=paper.model,
        init_encoder=paper.init_encoder,
        init_decoder=paper.init_decoder,
        gradient_accumulation_steps=paper.gradient_accumulation_steps,
    )
    assert same == paper
    qwen = load(stage, "small,decoder=qwen3_0_6b")
    assert qwen.model.decoder == decoder_config("qwen3_0_6b")
    assert qwen.model.encoder == small.model.encoder


def test_arguments_select_sizes():
    run = load(1, "paper,encoder=B/16-224,decoder=gemma3_270m")
    assert run.model.encoder == siglip_config("B", 16, 224)
    assert run.model.decoder == decoder_config("gemma3_270m")
    tree = importlib.import_module("configs.stage1").get_config(
        "paper,encoder=weights,decoder=weights"
    )
    config = from_dict(tree.to_dict())
    assert (config.model.encoder, config.model.decoder) == (None, None)
    assert config.execution == load(1, "paper").execution
    assert config.optimizer == load(1, "paper").optimizer


def test_a_config_file_gives_a_run_config():
    tree = importlib.import_module("configs.stage1").get_config()
    config = from_dict(tree.to_dict())
    assert as_run_config(tree) == as_run_config(tree.to_dict()) == config
    assert as_run_config(config) is config
    with pytest.raises(ConfigError, match="config.batch_size is 0"):
        as_run_config(dataclasses.replace(config, batch_size=0))


@pytest.mark.parametrize("tower", ["encoder", "decoder"])
def test_one_value_of_an_architecture_of_none_is_refused(tower):
    """Says how to name one, instead of the parser's own message."""
    key = f"--config.model.{tower}.width=128"
    command = [sys.executable, "tools/plan.py", "--config=configs/stage1.py", key]
    done = subprocess.run(
        command, check=False, cwd=ROOT, capture_output=True, text=True
    )
    assert done.returncode == 64 and "Traceback" not in done.stderr
    assert f"config.model.{tower} is None" in done.stderr
    assert f"--config FILE:{tower}=" in done.stderr


def test_stages_of_one_size_share_their_model_and_data():
    """But for the image's projections, which a joint fusion has from stage 2 on."""
    for size in ("", "paper", "small", "authors"):
        first, *others = [load(stage, size) for stage in (1, 2, 3)]
        assert first.model.image_kv == "shared"
        for run in others:
            model = dataclasses.replace(first.model, image_kv="own")
            assert (run.model, run.data) == (model, first.data)


def test_stage_0_trains_the_towers_of_stage_1():
    siglip, llm = load(0, "siglip"), load(0, "llm")
    assert siglip.objective == "contrastive"
    assert siglip.text_tower.num_tokens == siglip.data.num_tokens
    assert (llm.objective, llm.model.fusion) == ("caption", "none")
    stage1 = load(1)
    assert siglip.model.encoder == stage1.model.encoder
    assert llm.model.decoder == stage1.model.decoder
    for run in (siglip, llm):
        assert (run.init_encoder, run.init_decoder) == ("", "")
        assert run.rules == (Rule(".*", 1.0),)


@pytest.mark.parametrize(
    ("stage", "arguments", "message"),
    [
        (
            1,
            "papr",
            "'papr'; expected some of paper, small, authors, fusion=hive, ",
        ),
        (1, "paper,small", "config arguments paper, small; expected one of them"),
        (1, "papr", "did you mean 'paper'?"),
        (
            2,
            "paper,fusion=cascade",
            "is 'cascade'; expected one of ('hive', 'cascaded'",
        ),
        (2, "cascaded", "did you mean 'fusion=cascaded'?"),
        (3, "fusion", "did you mean 'fusion="),
        (3, "paper=1", "config argument 'paper=1'"),
        (1, "encoder=L/16", "encoder=L/16: 'L/16'; expected SIZE/PATCH-IMAGE"),
        (1, "encoder=XXL/16-224", "SigLIP variant is 'XXL'; expected one of ["),
        (1, "decoder=gemma3", "decoder is 'gemma3'; expected one of ['tiny', "),
        (1, "encodr=L/16-224", "did you mean 'encoder="),
        (0, "siglp", "did you mean 'siglip'?"),
        (0, "siglip,fusion=cascaded", "expected some of siglip, llm"),
        (0, None, "choose configs/stage0.py:siglip or configs/stage0.py:llm"),
        (0, "", "choose configs/stage0.py:siglip or"),
        (0, "siglip,llm", "choose configs/stage0.py:siglip or"),
    ],
)
def test_wrong_arguments_are_refused(stage, arguments, message):
    with pytest.raises(ConfigError) as caught:
        load(stage, arguments)
    assert message in str(caught.value)


def test_stage_0_trains_another_decoder_under_another_name():
    assert load(0, "llm").name == "stage0_llm"
    run = load(0, "llm,decoder=tiny_llama")
    assert run.name == "stage0_llm_tiny_llama"
    assert run.model.decoder == decoder_config("tiny_llama")


def test_arguments_are_parsed():
    def parse(text):
        return recipes.parse(text, ("paper",), fusion="hive")

    expected = {"paper": True, "fusion": "cascaded"}
    assert parse("paper,fusion=cascaded") == expected
    assert parse("fusion=cascaded,,paper") == expected
    assert parse(None) == parse("") == {"paper": False, "fusion": "hive"}
    for fusion in FUSIONS:
        assert parse(f"fusion={fusion}")["fusion"] == fusion
