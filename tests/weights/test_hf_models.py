"""Parity with transformers: its own tiny random models, saved by it, loaded by us."""

import dataclasses
import functools
import json

import jax
import ml_dtypes
import numpy as np
import pytest
import safetensors.numpy
import transformers
from helpers.huggingface_models import (
    DTYPES,
    LLAMAS,
    VISION,
    assert_close,
    gemma1,
    gemma2,
    gemma3,
    multimodal,
    randomised,
    save,
    siglip,
    siglip2,
    stretched_gemma3,
    torch_images,
    untied_qwen2,
    vision_tower,
)

from hive_jax.models.decoder import Decoder
from hive_jax.models.execution import SCANNED
from hive_jax.models.siglip import SiglipEncoder, TwoTowers
from hive_jax.weights import load_decoder, load_encoder, load_two_towers

torch = pytest.importorskip("torch")
pytest.importorskip("transformers")


RNG = np.random.default_rng(0)
IMAGES = RNG.uniform(-1, 1, (3, 28, 28, 3)).astype(np.float32)
TOKENS = RNG.integers(2, 61, (2, 20))
SHORT = RNG.integers(2, 61, (2, 8))


@functools.cache
def compiled(module, *configs):
    """The layers in a scan, which compiles faster, unrolled in other tests."""
    execution = {SiglipEncoder: SCANNED.encoder, Decoder: SCANNED.decoder}
    scanned = module(*configs, execution=execution.get(module, SCANNED))
    return jax.jit(scanned.apply, static_argnames="depths")


def run(module, *configs):
    *configs, params = configs
    return functools.partial(compiled(module, *configs), {"params": params})


def num_scalars(params):
    return sum(leaf.size for leaf in jax.tree.leaves(params))


def assert_same(got, reference):
    """Two results of a load function: configurations and every bit."""
    assert got[:-1] == reference[:-1]
    assert jax.tree.structure(got[-1]) == jax.tree.structure(reference[-1])
    jax.tree.map(np.testing.assert_array_equal, got[-1], reference[-1])


def renamed(folder, rename):
    """The same tensors under other names, as other versions save them."""
    file = folder / "model.safetensors"
    tensors = safetensors.numpy.load_file(file)
    new = {rename(name): tensor for name, tensor in tensors.items()}
    assert set(new) != set(tensors)
    safetensors.numpy.save_file(new, file)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("use_head", [True, False])
def test_image_tower_equals_transformers(tmp_path, use_head, dtype):
    model, expected = vision_tower(use_head)
    config, params = load_encoder(save(randomised(model), tmp_path, dtype))
    assert config == expected
    assert num_scalars(params) == sum(p.numel() for p in model.parameters())
    assert {leaf.dtype for leaf in jax.tree.leaves(params)} == {np.dtype(np.float32)}

    reference = model(torch_images(IMAGES), output_hidden_states=True)
    out = run(SiglipEncoder, config, params)(IMAGES, depths=(1, 2, 3))
    assert_close(out.tokens, reference.last_hidden_state)
    if use_head:
        assert_close(out.pooled, reference.pooler_output)
    assert len(reference.hidden_states) == 4
    for features, hidden in zip(out.features, reference.hidden_states[1:], strict=True):
        assert_close(features, hidden)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("family", [siglip, siglip2])
def test_two_towers_equal_transformers(tmp_path, family, dtype):
    model, *expected = family()
    path = save(randomised(model), tmp_path, dtype)
    image, text, params = load_two_towers(path)
    assert [image, text] == expected
    assert num_scalars(params) == sum(p.numel() for p in model.parameters())

    reference = model(torch.tensor(SHORT), torch_images(IMAGES))
    zimg, ztxt, t, b = run(TwoTowers, image, text, params)(IMAGES, SHORT)
    assert_close(zimg, reference.image_embeds)
    assert_close(ztxt, reference.text_embeds)
    logits = np.asarray(zimg) @ np.asarray(ztxt).T * t.item() + b.item()
    assert_close(logits, reference.logits_per_image)
    assert_same(load_encoder(path), (image, params["img"]))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("kv_heads", [1, 2])
@pytest.mark.parametrize("family", [gemma1, gemma2, gemma3, stretched_gemma3, *LLAMAS])
def test_decoder_equals_transformers(tmp_path, family, kv_heads, dtype):
    model, expected = family(kv_heads)
    config, params = load_decoder(save(randomised(model), tmp_path, dtype))
    assert config == expected
    assert num_scalars(params) == sum(p.numel() for p in model.parameters())
    reference = model(torch.tensor(TOKENS)).logits
    assert_close(run(Decoder, config, params)(TOKENS), reference)


@pytest.mark.parametrize(
    "key", ["window", "local_rope_base", "rope_base", "rope_factor", "query_scale"]
)
def test_parity_would_notice_a_wrong_config_value(tmp_path, key):
    """The comparison above would notice a wrong value."""
    model, _ = stretched_gemma3()
    config, params = load_decoder(save(randomised(model), tmp_path))
    changed = dataclasses.replace(config, **{key: 2 * getattr(config, key)})
    reference = model(torch.tensor(TOKENS)).logits.detach().numpy()
    assert np.abs(run(Decoder, changed, params)(TOKENS) - reference).max() > 0.01


def norms_in_float32(name, tensor):
    """As fine-tuning on quantized weights leaves them."""
    return tensor if "norm" in name else tensor.astype(ml_dtypes.bfloat16)


def positions_in_float16(name, tensor):
    return tensor.astype(np.float16) if "position" in name else tensor


def every_second_in_bfloat16(name, tensor):
    return tensor.astype(ml_dtypes.bfloat16) if len(name) % 2 else tensor


@pytest.mark.parametrize(
    ("make", "load", "change"),
    [
        (lambda: gemma3()[0], load_decoder, norms_in_float32),
        (lambda: untied_qwen2()[0], load_decoder, norms_in_float32),
        (lambda: vision_tower(True)[0], load_encoder, positions_in_float16),
        (lambda: siglip()[0], load_two_towers, every_second_in_bfloat16),
    ],
    ids=["norms", "norms of qwen2", "positions", "every second"],
)
def test_float_dtypes_may_differ_from_tensor_to_tensor(tmp_path, make, load, change):
    """Each is read exactly: the values are those of transformers in float32."""
    path = save(randomised(make()), tmp_path)
    file = tmp_path / "model.safetensors"
    tensors = safetensors.numpy.load_file(file)
    mixed = {name: change(name, tensor) for name, tensor in tensors.items()}
    assert len({tensor.dtype for tensor in mixed.values()}) == 2
    safetensors.numpy.save_file(mixed, file)
    got = load(path)
    exact = {name: tensor.astype(np.float32) for name, tensor in mixed.items()}
    safetensors.numpy.save_file(exact, file)
    assert_same(got, load(path))


def with_classifier():
    config = transformers.SiglipConfig(text_config={}, vision_config=VISION)
    config.vision_config.vision_use_head = False
    config.num_labels = 5
    model = transformers.SiglipForImageClassification(config)
    return model, model.vision_model, "classifier.bias, classifier.weight"


def with_score():
    model = transformers.GemmaForSequenceClassification(gemma1()[0].config)
    return model, model.model, "score.weight"


def with_value_head():
    """As trl stores the critic of a decoder."""
    model = gemma1()[0]
    model.v_head = torch.nn.Module()
    model.v_head.summary = torch.nn.Linear(32, 1)
    return model, model.model, "v_head.summary.bias, v_head.summary.weight"


@pytest.mark.parametrize("make", [with_classifier, with_score, with_value_head])
def test_heads_of_others_are_left_out_and_named(tmp_path, make, caplog):
    model, tower, names = make()
    load = load_encoder if make is with_classifier else load_decoder
    path = save(randomised(model), tmp_path / "whole")
    reference = load(save(tower, tmp_path / "tower"))
    assert_same(load(path), reference)
    assert f"{path}: left out the head {names}" in caplog.text


LOADERS = [
    (lambda: vision_tower(True)[0], load_encoder),
    (lambda: siglip()[0], load_two_towers),
    (lambda: gemma3()[0], load_decoder),
    (lambda: untied_qwen2()[0], load_decoder),
]


@pytest.mark.parametrize(
    ("make", "load"), LOADERS, ids=["image", "two", "gemma3", "qwen2"]
)
def test_sharded_folder_loads_like_a_single_file(tmp_path, make, load):
    model = randomised(make())
    whole, shards = tmp_path / "whole", tmp_path / "shards"
    reference = load(save(model, whole, "bfloat16"))
    got = load(save(model, shards, "bfloat16", max_shard_size="20KB"))
    assert len(list(shards.glob("*-of-*.safetensors"))) > 2
    assert_same(got, reference)


def test_image_tower_with_the_names_of_transformers_4_loads(tmp_path):
    path = save(randomised(vision_tower(True)[0]), tmp_path)
    reference = load_encoder(path)
    renamed(tmp_path, lambda name: f"vision_model.{name}")
    assert_same(load_encoder(path), reference)


def test_decoder_saved_without_its_head_loads(tmp_path):
    model = randomised(gemma3()[0])
    reference = load_decoder(save(model, tmp_path / "whole"))
    assert_same(load_decoder(save(model.model, tmp_path / "bare")), reference)


def test_gemma3_configuration_of_transformers_4_loads(tmp_path):
    """One base a key, a pattern instead of a list, and a scaling of its own."""
    reference = load_decoder(save(randomised(stretched_gemma3()[0]), tmp_path))
    config = json.loads((tmp_path / "config.json").read_text())
    for key in ("rope_parameters", "layer_types", "dtype", "_sliding_window_pattern"):
        config.pop(key, None)
    config |= {
        "rope_theta": 5000.0,
        "rope_local_base_freq": 20.0,
        "rope_scaling": {"rope_type": "linear", "factor": 8.0},
        "sliding_window_pattern": 6,
        "torch_dtype": "float32",
        "transformers_version": "4.50.0.dev0",
    }
    (tmp_path / "config.json").write_text(json.dumps(config))
    assert_same(load_decoder(str(tmp_path)), reference)


def test_repeated_tied_head_is_ignored_and_an_untied_one_raises(tmp_path):
    """As fine-tuning scripts leave it; another head than the table is refused."""
    path = save(randomised(gemma1()[0]), tmp_path)
    reference = load_decoder(path)
    file = tmp_path / "model.safetensors"
    tensors = safetensors.numpy.load_file(file)
    tensors["lm_head.weight"] = tensors["model.embed_tokens.weight"]
    safetensors.numpy.save_file(tensors, file)
    assert_same(load_decoder(path), reference)
    tensors["lm_head.weight"] = tensors["lm_head.weight"] + 1
    safetensors.numpy.save_file(tensors, file)
    with pytest.raises(ValueError, match=r"lm_head\.weight is not the embedding table"):
        load_decoder(path)


def older(name):
    """As version 4 saved: "vision_tower." before "vision_model."."""
    return name.replace("vision_tower.", "vision_tower.vision_model.", 1)


def in_between(name):
    """As the modules are named in versions 4.52 to 5."""
    name = name.replace("language_model.model.", "language_model.", 1)
    return f"model.{older(name)}"


@pytest.mark.parametrize("kind", ["gemma3", "paligemma", "llava"])
def test_encoder_and_decoder_load_from_multimodal_models(tmp_path, kind):
    model, vision, decoder = multimodal(kind)
    image = load_encoder(save(vision, tmp_path / "vision"))
    text = load_decoder(save(decoder, tmp_path / "decoder"))
    folder = tmp_path / "whole"
    path = save(model, folder)
    for rename in (None, older, in_between):
        if rename is not None:
            save(model, folder)
            renamed(folder, rename)
        assert_same(load_encoder(path), image)
        assert_same(load_decoder(path), text)
