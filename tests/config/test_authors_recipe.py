"""Every value of `:authors` is that of the authors' scripts.

Expected values are from HIVE_florence.sh and SA_florence.sh of the authors' repository
at a5160ced, and defaults of transformers' TrainingArguments where a script has none
(clipping 1.0, betas 0.9 and 0.999, seed 42). A script for two GPUs has batches of
per-device size x 2 x accumulation. Depths and LLM layers are counted from 1.
"""

import dataclasses
import importlib

import pytest

from hive_jax.config import from_dict
from hive_jax.data.batch import Batch
from hive_jax.errors import ConfigError
from hive_jax.models.presets import decoder_config, siglip_config
from hive_jax.training.flops import example_flops
from hive_jax.training.objectives import names_under_all_fusions
from hive_jax.training.optimizer import assign_rules

# mm_vision_select_layer, and mm_cross_select_layer + 1; the alternative of 6 in the
# script's comments, which is the paper's 25 %.
DEPTHS, LAYERS = (3, 7, 11, 15, 19, 23), (7, 14, 21, 28, 34, 40)
# CC3M: 0.2 epochs in batches of 256 are the 2326 iterations of the paper's table 3.
IMAGES = 5 * 2326 * 256

# Stage -> values: gradient_accumulation_steps is that of two GPUs, weight_decay that of
# PyTorch's AdamW, which multiplies it by the learning rate.
FLORENCE = {
    1: {
        "epochs": 0.2,
        "batch": 64 * 2 * 2,
        "accumulation": 2,
        "peak": 1e-3,
        "minimum": 1e-4,  # cosine_with_min_lr: a tenth
        "beta2": 0.999,
        "decay": 1e-5,
        "clip": 1.0,
        "seed": 40,
        "image_kv": "shared",  # mm_kvproj False
    },
    2: {
        "epochs": 1,
        "batch": 64 * 2 * 8,
        "accumulation": 8,
        "peak": 1e-4,
        "minimum": 1e-5,
        "beta2": 0.95,
        "decay": 1e-5,
        "clip": 0.6,
        "seed": 41,
        "image_kv": "own",
    },
    3: {
        "epochs": 1,
        "batch": 32 * 2 * 16,
        "accumulation": 16,
        "peak": 5e-6,
        "minimum": 0.0,  # cosine
        "beta2": 0.95,
        "decay": 1e-5,
        "clip": 0.8,
        "seed": 42,
        "image_kv": "own",
    },
}
SELF_ATTENTION = {
    1: FLORENCE[1] | {"accumulation": 4},
    2: FLORENCE[2] | {"accumulation": 16, "clip": 1.0},
    3: FLORENCE[3] | {"accumulation": 32, "clip": 1.0},
}
WARMUP = 0.03  # warmup_ratio, rounded up

# Stage -> names of parameters that train, from mm_tunable_parts; layers from 1.
TUNABLE = {
    "joint": {
        1: {"fusion/projector", "fusion/joint_attention"},
        2: {"fusion/projector", "fusion/joint_attention", "llm/layers/attn"},
        3: {
            "fusion/projector",
            "fusion/joint_attention",
            "llm/layers/attn",
            "img/Transformer/encoderblock",
            "img/embedding",
            "img/pos_embedding",
        },
    },
    "self_attention": {
        1: {"fusion/projector"},
        2: {"fusion/projector", "llm/layers/attn"},
        3: {
            "fusion/projector",
            "llm/layers/attn",
            "img/Transformer/encoderblock",
            "img/embedding",
            "img/pos_embedding",
        },
    },
}


def load(file, arguments="authors"):
    module = importlib.import_module(f"configs.{file}")
    run = from_dict(module.get_config(arguments).to_dict())
    run.validate()
    return run


SCRIPTS = [
    (stage, arguments, fusion, values[stage])
    for stage in (1, 2, 3)
    for arguments, fusion, values in (
        ("authors", "joint", FLORENCE),
        ("authors,fusion=self_attention", "self_attention", SELF_ATTENTION),
    )
]


@pytest.mark.parametrize(("stage", "arguments", "fusion", "expected"), SCRIPTS)
def test_hyperparameters_are_those_of_the_script(stage, arguments, fusion, expected):
    run = load(f"stage{stage}", arguments)
    optimizer, steps = run.optimizer, int(expected["epochs"] * IMAGES / run.batch_size)
    assert {
        "epochs": expected["epochs"] if run.total_steps == steps else run.total_steps,
        "batch": run.batch_size,
        "accumulation": run.gradient_accumulation_steps,
        "peak": optimizer.peak_lr,
        "minimum": optimizer.min_lr,
        "beta2": optimizer.beta2,
        "decay": pytest.approx(optimizer.weight_decay / optimizer.peak_lr),
        "clip": optimizer.clip_norm,
        "seed": run.seed,
        "image_kv": run.model.image_kv,
    } == expected
    assert optimizer.beta1 == 0.9
    assert optimizer.warmup_steps == -(-run.total_steps * WARMUP // 1)
    assert run.name == f"stage{stage}_{fusion}"
    assert run.previous == (f"stage{stage - 1}_{fusion}" if stage > 1 else "")
    assert run.objective == "caption"  # alt_enable False
    assert not run.data.augment


@pytest.mark.parametrize("stage", [1, 2, 3])
def test_models_are_those_of_the_scripts(stage):
    joint = load(f"stage{stage}")
    for run in (joint, load(f"stage{stage}", "authors,fusion=self_attention")):
        assert run.init_encoder == "google/siglip-large-patch16-384"
        assert run.init_decoder == "facebook/MobileLLM-600M"
        assert run.model.encoder == siglip_config("L", 16, 384)
        assert run.model.decoder == decoder_config("mobilellm_600m")
        assert run.data.num_tokens == 2048  # model_max_length
        assert "CC3M_florence_filtered.json" in run.data.source
    assert joint.model.fusion == "joint" and joint.model.image_rope  # mm_rope True
    assert joint.model.projector_kind == "ln_mlp"
    assert joint.model.resolved_connections() == tuple(zip(DEPTHS, LAYERS, strict=True))
    # The same depth as mm_vision_select_layer -2 of SA_florence.sh.
    assert run.model.resolved_connections() == ((23, 1),)
    assert run.model.projector_kind == "mlp"  # mlp2x_gelu


@pytest.mark.parametrize(("stage", "arguments", "fusion", "expected"), SCRIPTS)
def test_what_trains_is_what_the_script_names(
    parameter_shapes, stage, arguments, fusion, expected
):
    run = load(f"stage{stage}", arguments)
    shapes = parameter_shapes(run)
    others = names_under_all_fusions(run, Batch.spec(1, 64, 384))
    assigned = assign_rules(shapes, run.rules, lambda: others)
    trained = {name: rule for name, rule in assigned.items() if rule.multiplier}
    assert {rule.multiplier for rule in trained.values()} == {1.0}
    groups = TUNABLE[fusion][stage]
    assert {
        next((group for group in groups if name.startswith(group)), name)
        for name in trained
    } == groups
    for name, rule in trained.items():
        if name.startswith("llm/"):
            assert rule.layers == (LAYERS if fusion == "joint" else (1,))
        elif name.startswith("img/Transformer/encoderblock/"):
            # hidden_states[23] is the deepest: block 24 stays as it is.
            assert rule.layers == tuple(range(1, 24))
        else:
            assert rule.layers == ()


def test_parameters_at_full_size(parameter_shapes):
    """MobileLLM-600M has 603 M parameters, the encoder 316 M with its pooling head."""
    run = load("stage2")
    shapes = parameter_shapes(run)
    millions = {
        branch: sum(p.size for n, p in shapes.items() if n.startswith(branch)) / 1e6
        for branch in ("img/", "llm/", "fusion/projector", "fusion/joint_attention")
    }
    assert millions == pytest.approx(
        {
            "img/": 316.3,
            "llm/": 603.2,
            # LayerNorm, 1024 x 1152 and 1152 x 1152 with biases, six times.
            "fusion/projector": 15.07,
            # Keys and values of 6 heads of 64 from 1152, and two norms, six times.
            "fusion/joint_attention": 5.31,
        },
        abs=0.05,
    )


# GFLOP of an example with 77 tokens and 6 connections by an analytic count of the authors'
# model; the whole LLM trains in stages 2 and 3.
COST = {1: 599, 2: 706, 3: 1444}


@pytest.mark.parametrize("stage", [1, 2, 3])
def test_flops_at_full_size(parameter_shapes, stage):
    run = load(f"stage{stage}")
    names = [*parameter_shapes(run)]

    def flops(run):
        return example_flops(run, assign_rules(names, run.rules, lambda: names), 77)

    if stage == 1:
        whole = flops(run)
    else:
        whole = flops(
            dataclasses.replace(run, rules=load(f"stage{stage}", "paper").rules)
        )
        # The scripts spare the gradients of the LLM's MLPs.
        c = run.model.decoder
        mlps = 2 * 77 * c.depth * 3 * c.width * c.mlp_dim
        assert whole.total - flops(run).total == pytest.approx(mlps)
    assert whole.total / 1e9 == pytest.approx(COST[stage], rel=0.005)


def test_the_vlm_is_that_of_the_scripts():
    for file, paper in (("vlm1", 2180), ("vlm2", 11_540)):
        run, table = load(file), load(file, "paper")
        assert run.init_encoder == "google/siglip-large-patch16-384"
        assert run.init_decoder == "Qwen/Qwen2-0.5B-Instruct"
        assert run.model.decoder == decoder_config("qwen2_5_0_5b")
        assert run.model.resolved_connections() == ((23, 1),)
        assert run.model.projector_kind == "mlp"
        assert (run.seed, run.gradient_accumulation_steps) == (42, 2)
        # What else the scripts give is in the paper's table 5.
        assert run.optimizer == table.optimizer
        assert run.total_steps == table.total_steps == paper
        assert (run.batch_size, run.rules) == (table.batch_size, table.rules)
        assert run.data == table.data
    assert run.data.source.endswith("form=chat")
    assert run.data.preprocessing == "hf_bicubic_pad"  # image_aspect_ratio pad


def test_recipes_exclude_each_other():
    with pytest.raises(ConfigError, match="arguments paper, authors; expected one of"):
        load("stage1", "authors,paper")
    with pytest.raises(ConfigError, match="'alt'; expected some of paper, small"):
        load("stage1", "authors,alt")
    with pytest.raises(ConfigError, match="'small'; expected some of paper, authors"):
        load("vlm1", "small")
