"""Tiny random models of transformers, what they are in our words, and their folders."""

import copy

import numpy as np
import pytest
import transformers

from hive_jax.models.config import DecoderConfig, SiglipConfig, TextTowerConfig

torch = pytest.importorskip("torch")  # skips the tests that import this file

# Threads that wait for each other cost these sizes a hundred times what they bring.
torch.set_num_threads(1)

TOLERANCE = 1e-4
DTYPES = ("float32", "bfloat16", "float16")

_TOWER = {
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 3,
    "num_attention_heads": 2,
    "attn_implementation": "eager",
}
# 28 = 3 * 8 + 4: the remainder is cut off.
VISION = {**_TOWER, "image_size": 28, "patch_size": 8}
OUR_VISION = SiglipConfig(32, 3, 48, 2, patch_size=8, image_size=28)
_TOKENS = {"bos_token_id": 0, "eos_token_id": 1, "pad_token_id": 1}
_TEXT = {**_TOWER, **_TOKENS, "vocab_size": 61, "max_position_embeddings": 8}


def vision_tower(use_head: bool):
    config = transformers.SiglipVisionConfig(**VISION, vision_use_head=use_head)
    ours = SiglipConfig(32, 3, 48, 2, patch_size=8, image_size=28, map_head=use_head)
    return transformers.SiglipVisionModel(config), ours


def siglip():
    """The text tower's `projection_size` is its width, by default."""
    return _siglip(_TEXT), OUR_VISION, TextTowerConfig(61, 8, 32, 3, 48, 2, out_dim=32)


def siglip2():
    """Another width than the image tower's, and more words."""
    text = _TEXT | {"hidden_size": 24, "num_attention_heads": 3, "vocab_size": 67}
    ours = TextTowerConfig(67, 8, 24, 3, 48, 3, out_dim=32)
    return _siglip({**text, "projection_size": 32}), OUR_VISION, ours


def _siglip(text):
    config = transformers.SiglipConfig(
        text_config=text, vision_config=VISION, attn_implementation="eager"
    )
    return transformers.SiglipModel(config)


_SIZES = {
    "vocab_size": 61,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_attention_heads": 4,
    "head_dim": 16,
    "attn_implementation": "eager",
}
_OUR_SIZES = {
    "vocab_size": 61,
    "width": 32,
    "mlp_dim": 48,
    "num_heads": 4,
    "head_dim": 16,
}


def gemma1(kv_heads: int = 1):
    config = transformers.GemmaConfig(
        **_SIZES, num_hidden_layers=2, num_key_value_heads=kv_heads
    )
    ours = DecoderConfig(**_OUR_SIZES, depth=2, num_kv_heads=kv_heads)
    return transformers.GemmaForCausalLM(config), ours


def gemma2(kv_heads: int = 1):
    config = transformers.Gemma2Config(
        **_SIZES,
        num_hidden_layers=3,
        num_key_value_heads=kv_heads,
        attn_logit_softcapping=2.0,
        final_logit_softcapping=1.5,
        sliding_window=5,
        query_pre_attn_scalar=6,
    )
    ours = DecoderConfig(
        **_OUR_SIZES,
        depth=3,
        num_kv_heads=kv_heads,
        query_scale=6**-0.5,
        attention_softcap=2.0,
        final_softcap=1.5,
        post_norms=True,
        local_layers=1,
        window=5,
    )
    return transformers.Gemma2ForCausalLM(config), ours


def gemma3(kv_heads: int = 1, rope_factor: float = 1.0):
    whole = {"rope_type": "default", "rope_theta": 5000.0}
    if rope_factor != 1:
        whole |= {"rope_type": "linear", "factor": rope_factor}
    config = transformers.Gemma3TextConfig(
        **_SIZES,
        num_hidden_layers=7,
        num_key_value_heads=kv_heads,
        sliding_window=4,
        query_pre_attn_scalar=10,
        rope_parameters={
            "full_attention": whole,
            "sliding_attention": {"rope_type": "default", "rope_theta": 20.0},
        },
    )
    ours = DecoderConfig(
        **_OUR_SIZES,
        depth=7,
        num_kv_heads=kv_heads,
        query_scale=10**-0.5,
        post_norms=True,
        qk_norm=True,
        local_layers=5,
        window=4,
        rope_base=5000.0,
        local_rope_base=20.0,
        rope_factor=rope_factor,
    )
    return transformers.Gemma3ForCausalLM(config), ours


def stretched_gemma3(kv_heads: int = 1):
    """As from 4B on."""
    return gemma3(kv_heads, rope_factor=8.0)


_OUR_LLAMA = _OUR_SIZES | {
    "depth": 2,
    "activation": "silu",
    "norm_offset": 0.0,
    "embed_scale": False,
    "rope_base": 5000.0,
    "local_rope_base": 5000.0,
}
_LLAMA3_ROPE = {
    "rope_type": "llama3",
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 16,
}


def _descendant_of_llama(name, kv_heads, rope=None, **options):
    config = getattr(transformers, f"{name}Config")(
        **_SIZES,
        num_hidden_layers=2,
        num_key_value_heads=kv_heads,
        rope_parameters={"rope_type": "default", "rope_theta": 5000.0, **(rope or {})},
        **options,
    )
    return getattr(transformers, f"{name}ForCausalLM")(config)


def llama(kv_heads: int = 1):
    """As Llama 1 and 2: an output head of its own."""
    model = _descendant_of_llama("Llama", kv_heads, rms_norm_eps=1e-5)
    sizes = {"num_kv_heads": kv_heads, "norm_eps": 1e-5, "tied_head": False}
    return model, DecoderConfig(**_OUR_LLAMA, **sizes)


def llama3(kv_heads: int = 1):
    """As Llama 3.2: a longer context, and a tied head."""
    model = _descendant_of_llama(
        "Llama", kv_heads, _LLAMA3_ROPE, rms_norm_eps=1e-5, tie_word_embeddings=True
    )
    sizes = {"num_kv_heads": kv_heads, "norm_eps": 1e-5}
    rope = {"rope_factor": 8.0, "rope_original_length": 16}
    return model, DecoderConfig(**_OUR_LLAMA, **sizes, **rope)


def stretched_llama(kv_heads: int = 1):
    """With the linear scaling of older models of longer context."""
    rope = {"rope_type": "linear", "factor": 4.0}
    model = _descendant_of_llama("Llama", kv_heads, rope, tie_word_embeddings=True)
    sizes = {"num_kv_heads": kv_heads, "rope_factor": 4.0}
    return model, DecoderConfig(**_OUR_LLAMA, **sizes)


def qwen2(kv_heads: int = 1):
    """As the small ones: a tied head."""
    model = _descendant_of_llama("Qwen2", kv_heads, tie_word_embeddings=True)
    return model, DecoderConfig(**_OUR_LLAMA, num_kv_heads=kv_heads, qkv_bias=True)


def untied_qwen2(kv_heads: int = 1):
    """As from 7B on."""
    model = _descendant_of_llama("Qwen2", kv_heads)
    sizes = {"num_kv_heads": kv_heads, "qkv_bias": True, "tied_head": False}
    return model, DecoderConfig(**_OUR_LLAMA, **sizes)


def qwen3(kv_heads: int = 1):
    model = _descendant_of_llama("Qwen3", kv_heads, tie_word_embeddings=True)
    return model, DecoderConfig(**_OUR_LLAMA, num_kv_heads=kv_heads, qk_norm=True)


LLAMAS = [llama, llama3, stretched_llama, qwen2, untied_qwen2, qwen3]


def multimodal(kind: str):
    """A model with an image tower and a decoder, and both of them alone."""
    vision, _ = vision_tower(use_head=kind == "llava")
    decoder, _ = {"llava": gemma2, "gemma3": gemma3}.get(kind, gemma1)()
    text = copy.deepcopy(decoder.config)  # PaliGemma's class changes it
    if kind == "gemma3":
        config = transformers.Gemma3Config(
            text_config=text, vision_config=vision.config, mm_tokens_per_image=9
        )
        model = transformers.Gemma3ForConditionalGeneration(config)
    elif kind == "paligemma":
        config = transformers.PaliGemmaConfig(
            text_config=text, vision_config=vision.config, projection_dim=32
        )
        model = transformers.PaliGemmaForConditionalGeneration(config)
    else:
        config = transformers.LlavaConfig(
            text_config=text, vision_config=vision.config, image_token_index=60
        )
        model = transformers.LlavaForConditionalGeneration(config)
    randomised(model)
    vision.load_state_dict(model.model.vision_tower.state_dict())
    decoder.model.load_state_dict(model.model.language_model.state_dict())
    return model, vision, decoder


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


def save(model, folder, dtype: str = "float32", **options) -> str:
    """Saves in a dtype; the model keeps the rounded values, and computes in float32."""
    # A copy, for `to` would round the rotary frequencies too.
    rounded = copy.deepcopy(model).to(getattr(torch, dtype))
    rounded.save_pretrained(folder, **options)
    with torch.no_grad():
        for weight, value in zip(model.parameters(), rounded.parameters(), strict=True):
            weight.copy_(value)
    return str(folder)


def torch_images(images: np.ndarray) -> torch.Tensor:
    return torch.tensor(images).permute(0, 3, 1, 2)


def assert_close(got, wanted) -> None:
    wanted = np.asarray(wanted.detach()) if torch.is_tensor(wanted) else wanted
    assert got.shape == wanted.shape
    assert np.abs(wanted).max() > 0.1
    np.testing.assert_allclose(got, wanted, rtol=0, atol=TOLERANCE)
