"""Exponents of growth: fitted, counted and timed."""

import json

import jax
import numpy as np
import pytest

from hive_jax.training import sharding
from hive_jax.training.flops import example_flops
from hive_jax.training.train_step import Program
from tools.benchmark import growth
from tools.benchmark.__main__ import main
from tools.benchmark.cases import FUSIONS, SIZES, case
from tools.benchmark.commands import rules

# Patches of 8 pixels: 4 and 16 image tokens.
POINTS = ((16, 8), (32, 8), (16, 12))


def planted(exponent, text, sides=(4, 9, 16)):
    return [
        {
            "stage": 2,
            "fusion": "hive",
            "image_tokens": tokens,
            "text_tokens": text,
            "cost": 3 * tokens**exponent,
        }
        for tokens in sides
    ]


@pytest.mark.parametrize("exponent", [0, 1, 1.5, 2])
def test_a_power_law_has_its_exponent(exponent):
    # Other lengths of text are no part of the fit.
    rows = planted(exponent, text=8) + planted(7, text=16)
    fitted = growth.exponents(rows, "cost")
    assert list(fitted) == [(2, "hive")]
    np.testing.assert_allclose(fitted[2, "hive"], exponent, atol=1e-9)


@pytest.mark.parametrize("fusion", ["hive", "self_attention"])
def test_attention_is_counted_as_a_part_of_the_decoder(fusion):
    size = SIZES["tiny"]
    config = case(size, fusion, rules([2])[2])
    mesh = sharding.make_mesh(config.mesh, jax.devices()[:1])
    cost = example_flops(config, Program(config, mesh).assigned)
    assert cost.attention < cost.text + cost.cross_attention < cost.total
    # Both products and both gradients of each: text to text in all layers, and to the
    # image in the connected ones; or all tokens to all.
    text, image, decoder = size.num_tokens, size.encoder.num_patches, size.decoder
    connected = len(config.model.resolved_connections())
    pairs = {
        "hive": decoder.depth * text**2 + connected * text * image,
        "self_attention": decoder.depth * (text + image) ** 2,
    }
    width = decoder.num_heads * decoder.head_dim
    assert cost.attention == 3 * 4 * width * pairs[fusion]


def test_the_command_writes_exponents_of_flops(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(growth, "POINTS", POINTS)
    command = ["growth", "--part", "flops", "--size", "micro", "--stages", "2"]
    assert main([*command, "--out", str(tmp_path)]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split(" | ")[1] for line in lines[2:6]] == list(FUSIONS)
    rows = json.loads((tmp_path / "growth_flops.json").read_text())["rows"]
    tokens = [(row["image_tokens"], row["text_tokens"]) for row in rows]
    assert list(dict.fromkeys(tokens)) == [(4, 8), (16, 8), (4, 12)]
    fitted = growth.exponents(rows, "attention")
    assert fitted[2, "self_attention"] > fitted[2, "hive"]
    assert (tmp_path / "growth_flops.png").read_bytes().startswith(b"\x89PNG")


def test_steps_are_timed_with_and_without_the_encoder():
    # Stage 3 trains the encoder, so that its gradient runs alone, too.
    inputs = SIZES["micro"], rules([3]), "float32"
    rows = list(growth.step(*inputs, rounds=2, points=POINTS[:1]))
    assert [row["fusion"] for row in rows] == list(FUSIONS)
    for row in rows:
        assert row["seconds_without_encoder"] < row["seconds"]
