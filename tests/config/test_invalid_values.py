"""Impossible values of a config are refused by name."""

import dataclasses

import pytest
from helpers.config_trees import changed, refused

from hive_jax.config import (
    from_dict,
    to_dict,
)
from tools.fault_suite.config_fuzz import FULL


@pytest.mark.parametrize(
    ("rules", "message"),
    [
        (
            [("llm/.*", "x")],
            "config.rules[0].multiplier is 'x'; expected float or None",
        ),
        ([("a", 1.0), (3, 1.0)], "config.rules[1].pattern is 3; expected str"),
        ([(".*", True)], "config.rules[0].multiplier is True; expected float or None"),
        (
            [(".*", float("nan"))],
            "config.rules[0].multiplier is nan; expected 1e-09 to",
        ),
        ([(".*", 0.0)], "config.rules[0].multiplier is 0.0; expected 1e-09 to"),
        ([(".*", -1)], "config.rules[0].multiplier is -1.0; expected 1e-09 to"),
        ([(".*", 1.0, 3)], "config.rules[0].layers is 3; expected a tuple"),
        ([(".*", 1.0, (1.5,))], "config.rules[0].layers[0] is 1.5; expected int"),
        ([(".*",)], "config.rules[0].multiplier is missing"),
        ([], "config.rules is (); expected one rule or more"),
        (
            [(".*", 1.0), ("img/(", None)],
            "config.rules[1].pattern is 'img/('; expected a regular expression: missing )",
        ),
        ([("a{99999999999}", 1.0)], "pattern is 'a{99999999999}'; expected a regular"),
        ([(".*", 1.0, (), 5)], "expected ['pattern', 'multiplier', 'layers']"),
        ([".*"], "config.rules[0] is '.*'; expected keys ['pattern', "),
        ([{"patern": ".*"}], "config.rules[0].patern is not a key; did you mean 'pat"),
        (".*", "config.rules is '.*'; expected a tuple"),
    ],
)
def test_invalid_rules_are_refused(rules, message):
    assert message in refused({"rules": rules})


@pytest.mark.parametrize(
    ("key", "value", "expected"),
    [
        ("total_steps", 0, "1 to "),
        ("batch_size", -8, "1 to "),
        ("gradient_accumulation_steps", 0, "1 to "),
        (
            "gradient_accumulation_steps",
            3,
            "a multiple of gradient_accumulation_steps = 3",
        ),
        ("log_every", 0, "1 to "),
        ("eval_every", 0, "1 to "),
        ("checkpoint_every", -1, "1 to "),
        ("max_to_keep", 0, "1 to "),
        ("image_size", -1, "0 to "),
        ("seed", -1, "0 to "),
        ("dtype", "float16", "('auto', 'float32', 'bfloat16')"),
        ("objective", "classify", "('caption', 'contrastive')"),
        ("model.projector", "res", "('', 'ln_mlp', 'mlp', 'linear')"),
        ("model.image_kv", "both", "('shared', 'own')"),
        ("optimizer.peak_lr", 0.0, "1e-20 to 1000"),
        ("optimizer.peak_lr", -1e-3, "1e-20 to 1000"),
        ("optimizer.min_lr", 1.0, "at most peak_lr = 0.001"),
        ("optimizer.min_lr", -1.0, "0 to 1000"),
        ("optimizer.warmup_steps", -1, "0 to "),
        ("optimizer.beta1", 1.0, "0 to 0.999999"),
        ("optimizer.beta2", -0.1, "0 to 0.999999"),
        ("optimizer.weight_decay", -0.1, "0 to "),
        ("optimizer.clip_norm", 0.0, "1e-20 to 1e+20"),
        ("data.num_tokens", 1, "2 to "),
        ("data.validation_size", 1, "2 to "),
        ("data.buckets", (16, 12), "increasing numbers from 2"),
        ("data.buckets", (16, 16), "increasing numbers from 2"),
        ("data.buckets", (16, 77), "to below data.num_tokens = 77"),
        ("data.threads", 0, "1 to "),
        ("data.seed", -1, "0 to "),
        ("model.encoder.depth", 0, "1 to "),
        ("model.encoder.num_heads", 0, "1 to "),
        ("model.encoder.num_heads", 3, "a multiple of model.encoder.num_heads = 3"),
        ("model.encoder.image_size", 7, "patch_size = 8 or more"),
        ("execution.encoder.remat", "some", "('none', 'dots', 'full')"),
        ("execution.decoder.remat", "", "('none', 'dots', 'full')"),
        ("model.decoder.num_kv_heads", 0, "1 to "),
        ("model.decoder.num_kv_heads", 3, "multiple of model.decoder.num_kv_heads"),
        ("model.decoder.head_dim", 7, "even"),
        ("model.decoder.local_layers", -1, "0 to "),
        ("model.decoder.window", 0, "1 to "),
        ("model.decoder.final_softcap", -1.0, "0 to "),
        ("model.fusion", "hivee", "expected one of ('hive',"),
        ("model.connections", ((9, 1),), "expected an encoder depth of 1 to 8"),
        ("model.connections", ((1, 1), (2, 1)), "must increase"),
        ("model.connections", ((1, 2, 3),), "expected 2 values"),
    ],
)
def test_impossible_values_are_refused(key, value, expected):
    message = refused(changed(key.split("."), value))
    # A number that is not divided is what the message is about.
    named = {
        "gradient_accumulation_steps": ("gradient_accumulation_steps", "batch_size"),
        "model.encoder.num_heads": ("model.encoder.num_heads", "model.encoder.width"),
        "model.decoder.num_kv_heads": ("model.decoder.num_",),
        "model.connections": ("model",),
    }.get(key, (key,))
    assert message.startswith(tuple(f"config.{name}" for name in named))
    assert expected in message


@pytest.mark.parametrize(
    ("key", "value", "expected"),
    [
        (
            "gradient_accumulation_steps",
            2,
            "config.gradient_accumulation_steps is 2; expected 1: the contrastive loss",
        ),
        ("text_tower.num_heads", 3, "expected a multiple of text_tower.num_heads = 3"),
        ("text_tower.depth", 0, "config.text_tower.depth is 0; expected 1 to 1,000"),
        ("text_tower.out_dim", 32, "expected model.encoder.width = 64"),
    ],
)
def test_impossible_values_of_two_towers_are_refused(key, value, expected):
    tree = to_dict(dataclasses.replace(FULL, objective="contrastive"))
    assert expected in refused(changed(key.split("."), value, tree))
    if key.endswith(("num_heads", "out_dim")):  # which captions do not use
        from_dict(changed(key.split("."), value))
