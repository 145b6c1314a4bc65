"""Parity with values of the reference implementation (big_vision), float32."""

import functools
import pathlib

import jax
import numpy as np
import pytest

from hive_jax.models.config import DecoderConfig, SiglipConfig, TextTowerConfig
from hive_jax.models.decoder import Decoder
from hive_jax.models.execution import Execution, ModelExecution
from hive_jax.models.siglip import SiglipEncoder, TwoTowers
from hive_jax.weights import load_decoder, load_two_towers

GOLDEN = pathlib.Path(__file__).parents[1] / "golden"
TOLERANCE = 1e-4

IMAGE = {"width": 64, "depth": 4, "mlp_dim": 128, "num_heads": 4, "image_size": 32}
TEXT = {"vocab_size": 61, "num_tokens": 8, "depth": 3, "mlp_dim": 128, "num_heads": 4}
GEMMA = {
    "vocab_size": 97,
    "depth": 3,
    "mlp_dim": 160,
    "num_heads": 4,
    "head_dim": 16,
}
GEMMAS = {
    "gemma1": DecoderConfig(**GEMMA, num_kv_heads=1),
    "gemma2": DecoderConfig(
        **GEMMA,
        num_kv_heads=2,
        attention_softcap=50.0,
        final_softcap=30.0,
        post_norms=True,
    ),
}
# scan, remat
PROGRAMS = [(False, "none"), (False, "full"), (True, "none"), (True, "dots")]


def expected(name):
    with np.load(GOLDEN / f"{name}_expected.npz") as file:
        return dict(file)


def assert_close(got, wanted):
    assert got.shape == wanted.shape
    np.testing.assert_allclose(got, wanted, rtol=0, atol=TOLERANCE)


@pytest.mark.parametrize(("scan", "remat"), PROGRAMS)
@pytest.mark.parametrize("layers", ["scan", "unrolled"])
def test_siglip_outputs_equal_recorded_big_vision_outputs(layers, scan, remat):
    image, text, params = load_two_towers(str(GOLDEN / f"siglip_{layers}_params.npz"))
    assert (image, text) == (SiglipConfig(**IMAGE), TextTowerConfig(**TEXT))
    wanted = expected(f"siglip_{layers}")
    run = towers(scan, remat)
    (zimg, ztxt, t, b), encoded = run(params, wanted["image"], wanted["text"])
    assert_close(zimg, wanted["zimg"])
    assert_close(ztxt, wanted["ztxt"])
    assert_close(t, wanted["t"])
    assert_close(b, wanted["b"])
    assert_close(encoded.tokens, wanted["encoded"])
    for block in range(4):
        assert_close(encoded.features[block], wanted[f"hidden/block{block:02}"])


@functools.cache
def towers(scan, remat):
    """(params, images, text) -> embeddings, and the image tower at all depths."""
    image, text = SiglipConfig(**IMAGE), TextTowerConfig(**TEXT)
    tower_execution = Execution(scan=scan, remat=remat)
    execution = ModelExecution(encoder=tower_execution, text_tower=tower_execution)

    @jax.jit
    def run(params, images, tokens):
        model = TwoTowers(image, text, execution=execution)
        embeddings = model.apply({"params": params}, images, tokens)
        encoder = SiglipEncoder(image, execution=tower_execution)
        return embeddings, encoder.apply(
            {"params": params["img"]}, images, (1, 2, 3, 4)
        )

    return run


@pytest.mark.parametrize("scan", [False, True])
@pytest.mark.parametrize("name", ["gemma1", "gemma2"])
def test_gemma_logits_equal_recorded_big_vision_logits(name, scan):
    def run(gemma, tokens):
        (layers,) = gemma.segments((gemma.config.depth,))
        hidden = gemma.final_norm(layers(gemma.embed(tokens))[0])
        return hidden, gemma.logits(hidden)

    config = GEMMAS[name]
    path = str(GOLDEN / f"{name}_params.npz")
    # The arrays of a Gemma 1 say what it is.
    loaded_config, params = load_decoder(path, None if name == "gemma1" else config)
    assert loaded_config == config
    wanted = expected(name)
    gemma = Decoder(config, execution=Execution(scan=scan))
    apply = jax.jit(lambda p, x: gemma.apply({"params": p}, x, method=run))
    hidden, logits = apply(params, wanted["tokens"])
    assert_close(hidden, wanted["pre_logits"])
    assert_close(logits, wanted["logits"])
