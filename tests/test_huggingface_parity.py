"""Parity with transformers: tiny random models, converted, in float32."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from hive_jax.models.gemma import Gemma, GemmaConfig
from hive_jax.models.siglip import (
    SiglipConfig,
    SiglipEncoder,
    TextTower,
    TextTowerConfig,
    TwoTowers,
)

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

from huggingface_weights import gemma_params, siglip_params

TOLERANCE = 1e-4


def randomised(model):
    """Every parameter matters: norms and biases too, and all activations are O(1)."""
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for weight in model.parameters():
            noise = torch.randn(weight.shape, generator=generator)
            if weight.ndim > 1:
                weight.copy_(noise / weight[0].numel() ** 0.5)
            else:
                weight.add_(0.3 * noise)
    return model.eval()


def assert_close(got, wanted):
    wanted = wanted.detach().numpy()
    assert got.shape == wanted.shape
    assert np.abs(wanted).max() > 0.1
    np.testing.assert_allclose(got, wanted, rtol=0, atol=TOLERANCE)


def num_scalars(tree):
    return sum(leaf.size for leaf in jax.tree.leaves(tree))


@pytest.fixture(scope="module")
def siglip():
    tower = {
        "hidden_size": 32,
        "intermediate_size": 48,
        "num_hidden_layers": 3,
        "num_attention_heads": 2,
    }
    tokens = {"bos_token_id": 0, "eos_token_id": 1, "pad_token_id": 1}
    config = transformers.SiglipConfig(
        text_config=dict(
            tower,
            **tokens,
            vocab_size=61,
            max_position_embeddings=8,
            projection_size=32,
        ),
        # 28 = 3 * 8 + 4: the remainder is cut off.
        vision_config=dict(tower, image_size=28, patch_size=8),
        attn_implementation="eager",
    )
    model = randomised(transformers.SiglipModel(config))
    rng = np.random.default_rng(0)
    images = rng.uniform(-1, 1, (3, 28, 28, 3)).astype(np.float32)
    return model, siglip_params(model), images, rng.integers(0, 61, (2, 8))


VISION = SiglipConfig(32, 3, 48, 2, patch_size=8, image_size=28, scan=True)
TEXT = TextTowerConfig(61, 8, 32, 3, 48, 2, out_dim=32, scan=True)


def torch_images(images):
    return torch.tensor(images).permute(0, 3, 1, 2)


def test_siglip_converts_every_parameter(siglip):
    model, params, _, _ = siglip
    assert num_scalars(params) == sum(p.numel() for p in model.parameters())


def test_siglip_image_tower(siglip):
    model, params, images, _ = siglip
    wanted = model.vision_model(torch_images(images), output_hidden_states=True)
    apply = jax.jit(SiglipEncoder(VISION).apply, static_argnums=2)
    out = apply({"params": params["img"]}, images, (1, 2, 3))
    assert_close(out.tokens, wanted.last_hidden_state)
    assert_close(out.pooled, wanted.pooler_output)
    assert len(wanted.hidden_states) == 4
    for features, hidden in zip(out.features, wanted.hidden_states[1:], strict=True):
        assert_close(features, hidden)


def test_siglip_text_tower(siglip):
    model, params, _, tokens = siglip
    wanted = model.text_model(torch.tensor(tokens)).pooler_output
    apply = jax.jit(TextTower(TEXT).apply)
    assert_close(apply({"params": params["txt"]}, tokens), wanted)


def test_siglip_logits(siglip):
    model, params, images, tokens = siglip
    wanted = model(torch.tensor(tokens), torch_images(images)).logits_per_image
    apply = jax.jit(TwoTowers(VISION, TEXT).apply)
    zimg, ztxt, t, b = apply({"params": params}, images, tokens)
    assert_close(np.asarray(zimg) @ np.asarray(ztxt).T * t.item() + b.item(), wanted)


SIZES = {
    "vocab_size": 61,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_attention_heads": 4,
    "head_dim": 16,
    "attn_implementation": "eager",
}


def gemma1(kv_heads):
    config = transformers.GemmaConfig(
        **SIZES, num_hidden_layers=2, num_key_value_heads=kv_heads
    )
    ours = GemmaConfig(61, 32, 2, 48, 4, kv_heads, 16)
    return transformers.GemmaForCausalLM(config), ours


def gemma2(kv_heads):
    config = transformers.Gemma2Config(
        **SIZES,
        num_hidden_layers=3,
        num_key_value_heads=kv_heads,
        attn_logit_softcapping=2.0,
        final_logit_softcapping=1.5,
        sliding_window=5,
        query_pre_attn_scalar=6,
    )
    ours = GemmaConfig(
        61,
        32,
        3,
        48,
        4,
        kv_heads,
        16,
        query_scale=6**-0.5,
        attention_softcap=2.0,
        final_softcap=1.5,
        post_norms=True,
        local_layers=1,
        window=5,
    )
    return transformers.Gemma2ForCausalLM(config), ours


def gemma3(kv_heads):
    config = transformers.Gemma3TextConfig(
        **SIZES,
        num_hidden_layers=7,
        num_key_value_heads=kv_heads,
        sliding_window=4,
        query_pre_attn_scalar=10,
        rope_parameters={
            "full_attention": {"rope_type": "default", "rope_theta": 5000.0},
            "sliding_attention": {"rope_type": "default", "rope_theta": 20.0},
        },
    )
    ours = GemmaConfig(
        61,
        32,
        7,
        48,
        4,
        kv_heads,
        16,
        query_scale=10**-0.5,
        post_norms=True,
        qk_norm=True,
        local_layers=5,
        window=4,
        rope_base=5000.0,
        local_rope_base=20.0,
        scan=True,
    )
    return transformers.Gemma3ForCausalLM(config), ours


@pytest.mark.parametrize("kv_heads", [1, 2])
@pytest.mark.parametrize("family", [gemma1, gemma2, gemma3])
def test_gemma_logits(family, kv_heads):
    model, config = family(kv_heads)
    params = gemma_params(randomised(model))
    assert num_scalars(params) == sum(p.numel() for p in model.parameters())
    tokens = np.random.default_rng(0).integers(2, 61, (2, 20))
    wanted = model(torch.tensor(tokens)).logits
    apply = jax.jit(Gemma(config).apply)
    assert_close(apply({"params": params}, jnp.asarray(tokens)), wanted)


@pytest.mark.parametrize("key", ["window", "local_rope_base", "rope_base"])
def test_gemma3_logits_depend_on(key):
    """The comparison above would notice a wrong value."""
    model, config = gemma3(1)
    params = gemma_params(randomised(model))
    tokens = np.random.default_rng(0).integers(2, 61, (1, 20))
    changed = dataclasses.replace(config, **{key: 2 * getattr(config, key)})
    apply = jax.jit(Gemma(changed).apply)
    wanted = model(torch.tensor(tokens)).logits.detach().numpy()
    assert np.abs(apply({"params": params}, tokens) - wanted).max() > 0.01
