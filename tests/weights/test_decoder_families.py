"""Decoders of the Llama and Qwen families against transformers: generation, gradients,
and what a config.json may say."""

import dataclasses
import functools
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import safetensors.numpy
import transformers
from flax.traverse_util import flatten_dict
from helpers.huggingface_models import (
    LLAMAS,
    VISION,
    assert_close,
    llama,
    llama3,
    qwen2,
    qwen3,
    randomised,
    save,
    untied_qwen2,
)

from hive_jax.errors import CheckpointError
from hive_jax.inference.generate import Decoding, make_generate
from hive_jax.models.config import HiveConfig
from hive_jax.models.decoder import Decoder, head
from hive_jax.models.execution import SCANNED
from hive_jax.models.hive import Hive, unstack_layers
from hive_jax.training.losses import next_token_nll
from hive_jax.weights import hf_models, load_decoder
from hive_jax.weights.components import open_components

torch = pytest.importorskip("torch")

RNG = np.random.default_rng(0)
TOKENS = RNG.integers(2, 61, (2, 20))
NEW_TOKENS = 24


def edited(folder, **changes) -> str:
    file = folder / "config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | changes))
    return str(folder)


@pytest.mark.parametrize("family", LLAMAS)
def test_greedy_generation_with_a_cache_equals_transformers(tmp_path, family):
    model = randomised(family(2)[0])
    config, params = load_decoder(save(model, tmp_path))
    expected = model.generate(
        torch.tensor(TOKENS),
        attention_mask=torch.ones(TOKENS.shape, dtype=torch.long),
        max_new_tokens=NEW_TOKENS,
        do_sample=False,
        eos_token_id=None,
        pad_token_id=0,
    )[:, TOKENS.shape[1] :]
    hive = Hive(HiveConfig(None, config, "none"))
    decoding, no_ends = Decoding(NEW_TOKENS), np.zeros(0, np.int32)
    generate = make_generate(hive, decoding, no_ends, np.ones(61, bool))
    rows = len(TOKENS)
    tokens, counts = jax.jit(generate)(
        unstack_layers({"llm": jax.tree.map(jnp.asarray, params)}),
        jnp.zeros((rows, 1, 1, 3), jnp.uint8),
        jnp.asarray(TOKENS, jnp.int32),
        jnp.zeros(TOKENS.shape, bool),
        jnp.full(rows, TOKENS.shape[1]),
        jnp.arange(rows),
    )
    assert counts.tolist() == [NEW_TOKENS] * rows
    np.testing.assert_array_equal(tokens, expected)
    assert len(set(np.ravel(tokens))) >= 5


@pytest.mark.parametrize("family", [llama3, untied_qwen2, qwen3])
def test_gradients_equal_transformers(tmp_path, family):
    """Of the mean loss, with respect to every tensor."""
    model = randomised(family()[0])
    config, params = load_decoder(save(model, tmp_path))
    tokens = torch.tensor(TOKENS)
    model(tokens, labels=tokens).loss.backward()

    def loss(params):
        decoder = Decoder(config, execution=SCANNED.decoder)
        inputs = jnp.asarray(TOKENS, jnp.int32)
        hidden = decoder.apply({"params": params}, inputs, method=_hidden)
        return next_token_nll(hidden, *head(config, params), inputs).mean()

    gradients = flatten_dict(jax.jit(jax.grad(loss))(params), sep="/")
    layout = hf_models.decoder(config)
    arrays = {name: np.asarray(array) for name, array in gradients.items()}
    make, _ = hf_models.tensors(layout, arrays, np.dtype(np.float32))
    expected = dict(model.named_parameters())
    assert set(make) == set(expected)
    scale = max(p.grad.abs().max() for p in expected.values())
    assert scale > 0.1
    for name, parameter in expected.items():
        assert parameter.grad.abs().max() > 0, name
        np.testing.assert_allclose(
            make[name](), parameter.grad, rtol=0, atol=1e-5 * scale, err_msg=name
        )


def _hidden(decoder, tokens):
    (run_layers,) = decoder.segments((decoder.config.depth,))
    return decoder.final_norm(run_layers(decoder.embed(tokens))[0])


def mobilellm(folder, model_type):
    """A Llama whose head is the embedding table by a key of its own, as published."""
    model = randomised(llama3()[0])
    save(model, folder)
    changes = {"share_embedding": True, "layer_sharing": False, "mlp_bias": False}
    changes |= {"model_type": model_type, "tie_word_embeddings": False}
    return model, edited(folder, **changes)


@pytest.mark.parametrize("model_type", ["mobilellm", "llama"])
def test_mobilellm_shares_its_embeddings(tmp_path, model_type):
    """The type of the published models, and that of the code that trained them."""
    model, path = mobilellm(tmp_path, model_type)
    config, params = load_decoder(path)
    assert config == llama3()[1]
    assert list(open_components(path)) == ["decoder"]
    apply = jax.jit(Decoder(config, execution=SCANNED.decoder).apply)
    assert_close(apply({"params": params}, TOKENS), model(torch.tensor(TOKENS)).logits)


def test_mobilellm_that_shares_layers_is_refused(tmp_path):
    _, path = mobilellm(tmp_path, "mobilellm")
    edited(tmp_path, layer_sharing=True)
    with pytest.raises(
        CheckpointError, match="layer_sharing is True; expected a Mobil"
    ):
        load_decoder(path)


@pytest.mark.parametrize(
    ("family", "changes", "message"),
    [
        (llama, {"attention_bias": True}, "attention_bias is True; expected False"),
        (llama, {"mlp_bias": True}, "mlp_bias is True; expected False"),
        (llama, {"hidden_act": "gelu"}, "hidden_act is 'gelu'; expected 'silu'"),
        (qwen3, {"attention_bias": True}, "attention_bias is True; expected False"),
        (
            qwen2,
            {
                "use_sliding_window": True,
                "sliding_window": 8,
                "max_window_layers": 1,
                "layer_types": None,
            },
            "use_sliding_window is True and layer_types has 'sliding_attention'",
        ),
        (
            qwen3,
            {"layer_types": ["full_attention", "sliding_attention"]},
            "layer_types has 'sliding_attention'; expected 'full_attention' in all",
        ),
        (
            llama,
            {"rope_parameters": {"rope_type": "dynamic", "factor": 2.0}},
            "rope_type is 'dynamic'; expected 'default' or 'linear' or 'llama3'",
        ),
        (
            qwen2,
            {
                "rope_parameters": {
                    "rope_type": "yarn",
                    "factor": 4.0,
                    "original_max_position_embeddings": 32768,
                }
            },
            "rope_type is 'yarn'; expected 'default'",
        ),
        (
            llama,
            {"partial_rotary_factor": 0.5, "rope_parameters": {"rope_theta": 1e4}},
            "partial_rotary_factor is 0.5; expected 1.0",
        ),
        (
            llama3,
            {
                "rope_parameters": {
                    "rope_type": "llama3",
                    "factor": 8.0,
                    "low_freq_factor": 2.0,
                    "high_freq_factor": 4.0,
                    "original_max_position_embeddings": 8192,
                }
            },
            "low_freq_factor is 2.0; expected 1.0",
        ),
        (
            llama,
            {"model_type": "smollm3"},
            "model_type is 'smollm3'; expected one with",
        ),
    ],
)
def test_unsupported_options_are_refused_by_name(tmp_path, family, changes, message):
    path = save(family()[0], tmp_path)
    with pytest.raises(CheckpointError) as error:
        load_decoder(edited(tmp_path, **changes))
    assert message in str(error.value)
    assert path in str(error.value)


def test_an_untied_head_that_is_missing_is_named(tmp_path):
    """As a folder of the model without its head has it."""
    path = save(llama()[0].model, tmp_path)
    with pytest.raises(CheckpointError, match=r"missing: lm_head\.weight \[61, 32\]"):
        load_decoder(path)


def llama_1(folder, path):
    """A config.json without all that Llama 2 and 3 brought."""
    config = json.loads((folder / "config.json").read_text())
    for key in ("num_key_value_heads", "rope_parameters", "head_dim", "attention_bias"):
        config.pop(key, None)
    (folder / "config.json").write_text(json.dumps(config | {"rope_theta": 5000.0}))
    return path


def test_config_json_of_llama_1_loads(tmp_path):
    config = transformers.LlamaConfig(
        vocab_size=61,
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=4,
        rope_parameters={"rope_type": "default", "rope_theta": 5000.0},
    )
    model = randomised(transformers.LlamaForCausalLM(config))
    path = save(model, tmp_path)
    reference = load_decoder(path)
    got = load_decoder(llama_1(tmp_path, path))
    assert got[0] == reference[0] and got[0].num_kv_heads == 4
    jax.tree.map(np.testing.assert_array_equal, got[1], reference[1])


def with_images(name, text, vision=VISION, **options):
    config = getattr(transformers, f"{name}Config")(
        text_config=text, vision_config=vision, **options
    )
    return getattr(transformers, f"{name}ForConditionalGeneration")(config)


SIGLIP = {"model_type": "siglip_vision_model", **VISION, "vision_use_head": False}
MODELS_WITH_IMAGES = {
    "llava": functools.partial(with_images, "Llava", vision=SIGLIP),
    "llava_next": functools.partial(with_images, "LlavaNext", vision=SIGLIP),
    "llava_onevision": functools.partial(with_images, "LlavaOnevision", vision=SIGLIP),
    "idefics3": functools.partial(with_images, "Idefics3"),
    "smolvlm": functools.partial(with_images, "SmolVLM"),
    "internvl": functools.partial(
        with_images,
        "InternVL",
        vision=VISION | {"image_size": [28, 28], "patch_size": [14, 14]},
    ),
}
QWEN_VISION = {
    "depth": 1,
    "embed_dim": 32,
    "hidden_size": 32,
    "out_hidden_size": 32,
    "intermediate_size": 48,
    "num_heads": 2,
    "deepstack_visual_indexes": [0],
}


@pytest.mark.parametrize("family", [llama, qwen2], ids=["untied", "tied"])
@pytest.mark.parametrize("kind", MODELS_WITH_IMAGES)
def test_decoders_load_from_models_with_images(tmp_path, kind, family):
    decoder, expected = family()
    options = {}
    if kind in ("idefics3", "smolvlm"):
        options["tie_word_embeddings"] = decoder.config.tie_word_embeddings
        options["pad_token_id"] = 0
    model = randomised(MODELS_WITH_IMAGES[kind](decoder.config.to_dict(), **options))
    path = save(model, tmp_path)
    config, params = load_decoder(path)
    # Not every class ties the head because its decoder's configuration does.
    tied = model.lm_head.weight is model.get_input_embeddings().weight
    assert config == dataclasses.replace(expected, tied_head=tied)
    out = model(input_ids=torch.tensor(TOKENS)).logits
    apply = jax.jit(Decoder(config, execution=SCANNED.decoder).apply)
    assert_close(apply({"params": params}, TOKENS), out)


@pytest.mark.parametrize("flat", [False, True])
@pytest.mark.parametrize(
    ("name", "family"),
    [("Qwen2VL", qwen2), ("Qwen2_5_VL", untied_qwen2), ("Qwen3VL", qwen3)],
)
def test_decoders_load_from_qwen_vl(tmp_path, name, family, flat):
    """Also from a config.json with the decoder's keys at the top, as first published."""
    decoder, expected = family(2)
    sections = [2, 3, 3]
    text = decoder.config.to_dict()
    del text["model_type"]
    if name != "Qwen3VL":  # the older classes always divide the width by the heads
        del text["head_dim"]
        expected, sections = dataclasses.replace(expected, head_dim=8), [1, 1, 2]
    rope = {"rope_type": "default", "rope_theta": 5000.0, "mrope_section": sections}
    text["rope_parameters"] = rope
    vision, tied = QWEN_VISION, decoder.config.tie_word_embeddings
    model = with_images(name, text, vision, tie_word_embeddings=tied)
    path = save(randomised(model), tmp_path)
    if flat:
        file = tmp_path / "config.json"
        config = json.loads(file.read_text())
        text = config.pop("text_config")
        rope = {"type": "mrope", "mrope_section": sections}
        text |= {"rope_theta": 5000.0, "rope_scaling": rope}
        del text["rope_parameters"]
        file.write_text(json.dumps(text | config))
    config, params = load_decoder(path)
    assert config == expected
    out = model(input_ids=torch.tensor(TOKENS)).logits
    apply = jax.jit(Decoder(config, execution=SCANNED.decoder).apply)
    assert_close(apply({"params": params}, TOKENS), out)


def test_a_repeated_tied_head_is_left_out(tmp_path):
    """As the published folder of Qwen3-0.6B has it."""
    path = save(randomised(qwen3()[0]), tmp_path)
    reference = load_decoder(path)
    file = tmp_path / "model.safetensors"
    tensors = safetensors.numpy.load_file(file)
    tensors["lm_head.weight"] = tensors["model.embed_tokens.weight"]
    safetensors.numpy.save_file(tensors, file)
    got = load_decoder(path)
    assert got[0] == reference[0]
    jax.tree.map(np.testing.assert_array_equal, got[1], reference[1])
