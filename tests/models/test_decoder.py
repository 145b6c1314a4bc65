"""The decoder: sizes, windows, causality, execution and dtypes."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from hive_jax.models.config import DecoderConfig
from hive_jax.models.decoder import Decoder, head
from hive_jax.models.execution import SCANNED, Execution
from hive_jax.models.layers import unembed
from hive_jax.models.presets import DECODERS, decoder_config

TINY = DecoderConfig(
    vocab_size=31,
    width=16,
    depth=7,
    mlp_dim=24,
    num_heads=4,
    num_kv_heads=2,
    head_dim=8,
    post_norms=True,
    qk_norm=True,
    local_layers=2,
    window=3,
    rope_base=1000.0,
    local_rope_base=10.0,
)
TOKENS = np.random.default_rng(0).integers(0, 31, (2, 8))


@pytest.fixture(scope="module")
def params():
    """Of TINY, all leaves random, so that the norms' scales matter."""
    rng = np.random.default_rng(0)
    shapes = jax.eval_shape(Decoder(TINY).init, jax.random.key(0), TOKENS)["params"]
    return jax.tree.map(
        lambda leaf: jnp.asarray(rng.normal(0, 0.3, leaf.shape), leaf.dtype), shapes
    )


def logits(params, tokens, config=TINY):
    return compiled(config)({"params": params}, tokens)


@functools.cache
def compiled(config):
    return jax.jit(Decoder(config, execution=SCANNED.decoder).apply)


def cut_to(params, depth):
    layers = jax.tree.map(lambda leaf: leaf[:depth], params["layers"])
    return params | {"layers": layers}


def abstract(config):
    rng = jax.eval_shape(lambda: jax.random.key(0))
    tokens = jax.ShapeDtypeStruct((2, 5), "i4")
    return jax.eval_shape(Decoder(config).init_with_output, rng, tokens)


@pytest.mark.parametrize(
    ("preset", "count"),
    [
        ("gemma_2b", 2_506_172_416),
        ("gemma2_2b", 2_614_341_888),
        ("gemma3_270m", 268_098_176),
        ("gemma3_1b", 999_885_952),
        ("gemma3_4b", 3_880_099_328),
        ("llama3_2_1b", 1_235_814_400),
        ("mobilellm_350m", 345_355_200),
        ("mobilellm_600m", 603_188_352),
        ("smollm2_135m", 134_515_008),
        ("smollm2_360m", 361_821_120),
        ("qwen2_5_0_5b", 494_032_768),
        ("qwen3_0_6b", 596_049_920),
    ],
)
def test_presets_have_the_published_parameter_counts(preset, count):
    config = decoder_config(preset)
    out, variables = abstract(config)
    assert out.shape == (2, 5, config.vocab_size)
    assert out.dtype == jnp.float32
    assert sum(leaf.size for leaf in jax.tree.leaves(variables)) == count


HUGGING_FACE = {
    "gemma_2b": (
        "Gemma",
        {
            "vocab_size": 256_000,
            "hidden_size": 2048,
            "num_hidden_layers": 18,
            "intermediate_size": 16_384,
            "num_attention_heads": 8,
            "num_key_value_heads": 1,
            "head_dim": 256,
        },
    ),
    "gemma2_2b": (
        "Gemma2",
        {
            "vocab_size": 256_000,
            "hidden_size": 2304,
            "num_hidden_layers": 26,
            "intermediate_size": 9216,
            "num_attention_heads": 8,
            "num_key_value_heads": 4,
            "head_dim": 256,
        },
    ),
    "gemma3_270m": (
        "Gemma3",
        {
            "vocab_size": 262_144,
            "hidden_size": 640,
            "num_hidden_layers": 18,
            "intermediate_size": 2048,
            "num_attention_heads": 4,
            "num_key_value_heads": 1,
            "head_dim": 256,
            "sliding_window": 512,
        },
    ),
    "gemma3_1b": (
        "Gemma3",
        {
            "vocab_size": 262_144,
            "hidden_size": 1152,
            "num_hidden_layers": 26,
            "intermediate_size": 6912,
            "num_attention_heads": 4,
            "num_key_value_heads": 1,
            "head_dim": 256,
            "sliding_window": 512,
        },
    ),
    "gemma3_4b": (
        "Gemma3",
        {
            "vocab_size": 262_144,
            "hidden_size": 2560,
            "num_hidden_layers": 34,
            "intermediate_size": 10_240,
            "num_attention_heads": 8,
            "num_key_value_heads": 4,
            "head_dim": 256,
            "sliding_window": 1024,
            "rope_parameters": {
                "full_attention": {
                    "rope_type": "linear",
                    "factor": 8.0,
                    "rope_theta": 1_000_000.0,
                },
                "sliding_attention": {"rope_type": "default", "rope_theta": 10_000.0},
            },
        },
    ),
}


@pytest.mark.parametrize("preset", HUGGING_FACE)
def test_presets_match_transformers_configurations(preset):
    torch = pytest.importorskip("torch")
    transformers = pytest.importorskip("transformers")
    family, sizes = HUGGING_FACE[preset]
    text = "Text" if family == "Gemma3" else ""
    hf = getattr(transformers, f"{family}{text}Config")(**sizes)
    with torch.device("meta"):
        model = getattr(transformers, f"{family}ForCausalLM")(hf)
    config = decoder_config(preset)
    _, variables = abstract(config)
    count = sum(leaf.size for leaf in jax.tree.leaves(variables))
    assert count == sum(p.numel() for p in model.parameters())

    # Gemma 1 has no such keys.
    layers = getattr(hf, "layer_types", None) or ["full_attention"] * config.depth
    local = [layer == "sliding_attention" for layer in layers]
    assert config.is_sliding().tolist() == local
    if any(local):
        assert config.window == hf.sliding_window
    scale = getattr(hf, "query_pre_attn_scalar", hf.head_dim) ** -0.5
    assert (config.query_scale or config.head_dim**-0.5) == scale
    attention_softcap = getattr(hf, "attn_logit_softcapping", None) or 0
    final_softcap = getattr(hf, "final_logit_softcapping", None) or 0
    assert config.attention_softcap == attention_softcap
    assert config.final_softcap == final_softcap
    rope = hf.rope_parameters
    if family == "Gemma3":
        assert config.rope_base == rope["full_attention"]["rope_theta"]
        assert config.local_rope_base == rope["sliding_attention"]["rope_theta"]
        assert config.rope_factor == rope["full_attention"].get("factor", 1.0)
    else:
        assert config.rope_base == config.local_rope_base == rope["rope_theta"]


def test_unknown_preset_raises_and_lists_the_known_ones():
    with pytest.raises(ValueError, match="'gemma9'.*gemma3_1b"):
        decoder_config("gemma9")


def test_tiny_presets_are_a_gemma3_and_a_llama_of_one_size():
    assert DECODERS["tiny"].qk_norm
    assert DECODERS["tiny"].post_norms
    gemma, llama = (dataclasses.asdict(DECODERS[n]) for n in ("tiny", "tiny_llama"))
    differ = {name for name in gemma if gemma[name] != llama[name]}
    assert differ == {
        *("activation", "norm_offset", "norm_eps", "embed_scale"),
        *("qk_norm", "post_norms"),
    }


@pytest.mark.parametrize(
    ("depth", "local_layers", "table"),
    [
        (4, 0, "gggg"),
        (5, 1, "lglgl"),
        (8, 2, "llgllgll"),
        (13, 5, "lllllglllllgl"),
        (3, 5, "lll"),
    ],
)
def test_layers_alternate_between_sliding_window_and_global(depth, local_layers, table):
    config = DecoderConfig(depth=depth, local_layers=local_layers)
    assert "".join("l" if local else "g" for local in config.is_sliding()) == table


def test_scan_equals_unrolled_in_value_and_gradient(params):
    def loss_and_gradient(execution):
        gemma = Decoder(dataclasses.replace(TINY, depth=3), execution=execution)

        def loss(params):
            logits = gemma.apply({"params": params}, TOKENS)
            return jnp.mean(logits**2), logits

        return jax.jit(jax.grad(loss, has_aux=True))(cut_to(params, 3))

    gradient, values = loss_and_gradient(Execution())
    assert np.abs(values).max() > 0.1
    assert all(np.any(leaf) for leaf in jax.tree.leaves(gradient))
    for remat in ("none", "dots", "full"):
        same_gradient, same_values = loss_and_gradient(
            Execution(scan=True, remat=remat)
        )
        np.testing.assert_allclose(same_values, values, atol=1e-5)
        jax.tree.map(
            lambda a, b: np.testing.assert_allclose(a, b, atol=1e-5),
            same_gradient,
            gradient,
        )


@pytest.mark.parametrize("ends", [(1, 7), (2, 3, 7), (4, 5, 6, 7)])
def test_running_segments_one_by_one_equals_running_the_whole_decoder(params, ends):
    def run(gemma, tokens):
        x = gemma.embed(tokens)
        segments = gemma.segments(ends)
        assert len(segments) == len(ends)
        for segment in segments:
            x, _ = segment(x)
        return gemma.logits(gemma.final_norm(x))

    stepwise = jax.jit(
        lambda params: Decoder(TINY).apply({"params": params}, TOKENS, method=run)
    )(params)
    np.testing.assert_allclose(stepwise, logits(params, TOKENS), atol=1e-5)


def test_logits_do_not_depend_on_later_tokens(params):
    before = logits(params, TOKENS)
    changed = TOKENS.copy()
    changed[:, 5] = (changed[:, 5] + 1) % 31
    after = logits(params, changed)
    np.testing.assert_array_equal(after[:, :5], before[:, :5])
    assert np.all(np.any(after[:, 5:] != before[:, 5:], axis=-1))


@pytest.mark.parametrize(("local_layers", "reach"), [(1, 3), (0, 8)])
def test_sliding_window_limits_how_far_one_layer_attends(params, local_layers, reach):
    """A local layer of window 3 sees itself and two tokens back."""
    config = dataclasses.replace(TINY, depth=1, local_layers=local_layers)
    one_layer = cut_to(params, 1)
    before = logits(one_layer, TOKENS, config)
    changed = TOKENS.copy()
    changed[:, 0] = (changed[:, 0] + 1) % 31
    after = logits(one_layer, changed, config)
    np.testing.assert_array_equal(after[:, reach:], before[:, reach:])
    assert np.all(np.any(after[:, :reach] != before[:, :reach], axis=-1))


@pytest.mark.parametrize("execution", [Execution(), SCANNED.decoder])
def test_an_untied_head_alone_makes_the_logits(params, execution):
    config = dataclasses.replace(TINY, tied_head=False)
    table = params["embedder"]["input_embedding"]
    untied = params | {"lm_head": {"output_embedding": 2.0 * table}}
    decoder = Decoder(config, execution=execution)
    shapes = jax.eval_shape(decoder.init, jax.random.key(0), TOKENS)["params"]
    assert jax.tree.structure(shapes) == jax.tree.structure(untied)
    out = jax.jit(decoder.apply)({"params": untied}, TOKENS)
    np.testing.assert_allclose(out, 2.0 * logits(params, TOKENS), atol=1e-5)
    for tied, tree, expected in ((True, params, table), (False, untied, 2.0 * table)):
        config = dataclasses.replace(TINY, tied_head=tied, final_softcap=3.0)
        np.testing.assert_array_equal(head(config, tree)[0], expected)
        assert head(config, tree)[1] == 3.0


def test_final_softcap_limits_the_logits():
    hidden, table = 100 * jnp.eye(2, 4), jnp.eye(3, 4)
    capped = unembed(hidden, table, softcap=5.0)
    np.testing.assert_allclose(capped, [[5, 0, 0], [0, 5, 0]], atol=1e-6)
    plain = unembed(hidden, table, softcap=0.0)
    np.testing.assert_array_equal(plain, [[100, 0, 0], [0, 100, 0]])


def test_embeddings_are_multiplied_by_the_square_root_of_the_width(params):
    x = Decoder(TINY).apply({"params": params}, TOKENS, method="embed")
    table = params["embedder"]["input_embedding"]
    np.testing.assert_allclose(x, 4 * np.asarray(table)[TOKENS], rtol=1e-6)


def test_bfloat16_logits_are_float32_and_close_to_float32_computation(params):
    expected = logits(params, TOKENS)
    half = jax.jit(Decoder(TINY, jnp.bfloat16).apply)({"params": params}, TOKENS)
    assert half.dtype == jnp.float32
    assert np.linalg.norm(half - expected) < 0.05 * np.linalg.norm(expected)
