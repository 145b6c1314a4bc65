"""Parity with big_vision's own modules and loaders, where they can be imported.

They need a checkout of github.com/google-research/big_vision on PYTHONPATH, and
`pip install einops tensorflow-cpu`.
"""

import dataclasses

import jax
import ml_collections
import numpy as np
import pytest
from flax.traverse_util import flatten_dict

from hive_jax.models.config import DecoderConfig, SiglipConfig, TextTowerConfig
from hive_jax.models.decoder import Decoder
from hive_jax.models.execution import SCANNED, Execution
from hive_jax.models.presets import SIGLIP_VARIANTS, decoder_config, siglip_config
from hive_jax.models.siglip import SiglipEncoder, TwoTowers
from hive_jax.weights import load_decoder, load_encoder, load_two_towers, save_encoder
from hive_jax.weights.big_vision import save_npz

two_towers = pytest.importorskip("big_vision.models.proj.image_text.two_towers")
utils = pytest.importorskip("big_vision.utils")
vit = pytest.importorskip("big_vision.models.vit")
gemma = pytest.importorskip("big_vision.models.ppp.gemma")
paligemma = pytest.importorskip("big_vision.models.proj.paligemma.paligemma")


IMAGE = {"width": 32, "depth": 3, "mlp_dim": 48, "num_heads": 2}
TEXT = {"vocab_size": 61, "width": 24, "depth": 2, "mlp_dim": 40, "num_heads": 3}
HIVE_IMAGE = SiglipConfig(**IMAGE, patch_size=8, image_size=24)
HIVE_TEXT = TextTowerConfig(**TEXT, num_tokens=8, out_dim=32)
DECODER = {"vocab_size": 61, "width": 48, "depth": 3, "mlp_dim": 64, "num_heads": 4}
# What the arrays do not show: our keywords and big_vision's.
GEMMAS = {
    "gemma1": ({}, {}),
    "gemma2": (
        {"attention_softcap": 2.0, "final_softcap": 1.5},
        {"attn_logits_softcap": 2.0, "final_logits_softcap": 1.5},
    ),
    "gemma2_27b": (
        {"query_scale": 12**-0.5},
        {"query_pre_attn_norm": "rsqrt_emb_per_head"},
    ),
}
RNG = np.random.default_rng(0)
PIXELS = RNG.uniform(-1, 1, (3, 28, 28, 3)).astype(np.float32)
TOKENS = RNG.integers(0, 61, (2, 16), np.int32)


def image_fields(scan, pool_type="map"):
    return {**IMAGE, "patch_size": (8, 8), "scan": scan, "pool_type": pool_type}


def towers_config(scan):
    """Configuration for big_vision's model and for its loader."""
    towers = {"image": image_fields(scan), "text": {**TEXT, "scan": scan}}
    return ml_collections.ConfigDict({**towers, "out_dim": (None, 32), "bias_init": 0})


def decoders(name, kv_heads):
    """A configuration of hive_jax and the big_vision model with the same sizes."""
    fields, options = GEMMAS[name]
    both = {**DECODER, "num_kv_heads": kv_heads, "head_dim": 16}
    both["post_norms"] = name != "gemma1"
    model = gemma.Model(variant=name, norm_eps=1e-6, scan=True, **both, **options)
    return DecoderConfig(**both, **fields), model


def with_rank_promotion(function, *arguments):
    """Calls a function of big_vision, which relies on implicit rank promotion."""
    with jax.numpy_rank_promotion("allow"):
        return function(*arguments)


def abstract(model, *inputs):
    """The parameters that a model starts with, without values."""
    return with_rank_promotion(jax.eval_shape, model.init, jax.random.key(0), *inputs)[
        "params"
    ]


def randomized(model, *inputs):
    """Parameters of these names and shapes; norms and biases matter too."""
    rng = np.random.default_rng(0)

    def values(path, leaf):
        mean = 0.5 if path[-1].key == "scale" else 0.0
        return rng.normal(mean, 0.1, leaf.shape).astype(np.float32)

    return jax.tree.map_with_path(values, abstract(model, *inputs))


def stacked(tower, name="Transformer"):
    """A tower with its layers stacked, by big_vision itself where they are not."""
    if "encoderblock" in tower[name]:
        return tower
    renamed = vit.pyloop_to_scan({"Transformer": tower[name]})
    return {**tower, name: renamed["Transformer"]}


def shapes(tree):
    flat = flatten_dict(tree, sep="/")
    return {name: (leaf.shape, leaf.dtype.name) for name, leaf in flat.items()}


def assert_close(got, expected):
    assert got.shape == expected.shape
    assert np.abs(expected).max() > 0.01
    np.testing.assert_allclose(got, expected, rtol=0, atol=1e-5)


def assert_same(got, expected):
    assert shapes(got) == shapes(expected)
    jax.tree.map(np.testing.assert_array_equal, got, expected)


def write_npz(path, params, prefix=""):
    """A file as big_vision's notebooks write it, under the names that it gives."""
    named, _ = utils.tree_flatten_with_names(params)
    np.savez(path, **{prefix + name: leaf for name, leaf in named})
    return str(path)


@pytest.mark.parametrize(
    ("pool_type", "scan"),
    [("map", True), ("map", False), ("gap", True), ("none", True)],
)
def test_image_tower_equals_big_vision_vit(pool_type, scan):
    model = vit.Model(**image_fields(scan, pool_type))
    params = randomized(model, PIXELS)  # 28 = 3 * 8 + 4: the remainder is cut off
    pooled, out = with_rank_promotion(jax.jit(model.apply), {"params": params}, PIXELS)

    params, map_head = stacked(params), pool_type == "map"
    hive_model = SiglipEncoder(
        dataclasses.replace(HIVE_IMAGE, image_size=28, map_head=map_head),
        execution=Execution(scan=scan),
    )
    assert shapes(abstract(hive_model, PIXELS)) == shapes(params)
    apply = jax.jit(hive_model.apply, static_argnums=2)
    got = apply({"params": params}, PIXELS, (1, 2, 3))
    assert_close(got.tokens, out["encoded"])
    assert_close(got.tokens if pool_type == "none" else got.pooled, pooled)
    for block, features in enumerate(got.features):
        assert_close(features, out["encoder"][f"block{block:02}"]["+mlp"])


@pytest.mark.parametrize("scan", [True, False])
def test_two_towers_and_their_files_equal_big_vision(tmp_path, scan):
    """Released SigLIPs have the prefix `params/`."""
    inputs = PIXELS[:, :24, :24], TOKENS[:, :8]
    model = two_towers.Model(**towers_config(scan))
    params = randomized(model, *inputs)
    zimg, ztxt, out = with_rank_promotion(
        jax.jit(model.apply), {"params": params}, *inputs
    )
    path = write_npz(tmp_path / "big_vision.npz", params, "params/")

    params["img"] = stacked(params["img"])
    params["txt"] = stacked(params["txt"], "Encoder_0")
    image, text, loaded = load_two_towers(path)
    assert (image, text) == (HIVE_IMAGE, HIVE_TEXT)
    assert_same(loaded, params)
    hive_model = TwoTowers(image, text)
    assert shapes(abstract(hive_model, *inputs)) == shapes(params)
    got = jax.jit(hive_model.apply)({"params": params}, *inputs)
    for value, expected in zip(got, (zimg, ztxt, out["t"], out["b"]), strict=True):
        assert_close(value, expected)

    path = str(tmp_path / "saved.npz")
    save_npz(path, params, {"note": "ignored"})
    assert_same(utils.load_params(path), params)
    nothing = jax.tree.map(np.zeros_like, params)
    assert_same(two_towers.load(nothing, path, towers_config(True)), params)


@pytest.mark.parametrize("kv_heads", [1, 2])
@pytest.mark.parametrize("name", GEMMAS)
def test_decoder_equals_big_vision_gemma(name, kv_heads):
    config, model = decoders(name, kv_heads)
    params = randomized(model, TOKENS)
    logits, _ = with_rank_promotion(jax.jit(model.apply), {"params": params}, TOKENS)
    assert shapes(abstract(Decoder(config), TOKENS)) == shapes(params)
    assert_close(jax.jit(Decoder(config).apply)({"params": params}, TOKENS), logits)


@pytest.mark.parametrize("name", ["gemma1", "gemma2"])
def test_encoder_and_decoder_load_from_a_paligemma_file(tmp_path, name):
    config, model = decoders(name, 2)
    llm = randomized(model, TOKENS)
    tower = vit.Model(num_classes=48, **image_fields(True, "none"))
    img = randomized(tower, PIXELS)
    path = write_npz(tmp_path / "paligemma.npz", {"img": img, "llm": llm})
    decoder, hive_model = load_decoder(path, None if name == "gemma1" else config)
    assert decoder == config
    assert_same(hive_model, llm)
    encoder, hive_model = load_encoder(path)
    assert encoder == dataclasses.replace(HIVE_IMAGE, map_head=False)
    assert_same(hive_model, {key: leaf for key, leaf in img.items() if key != "head"})


@pytest.mark.parametrize("preset", ["gemma_2b", "gemma2_2b"])
def test_presets_have_the_shapes_of_paligemma(preset):
    """Names, shapes and soft-caps of PaliGemma 1 and 2."""
    image, text = np.zeros((1, 224, 224, 3), np.float32), TOKENS[:1]
    img = {"variant": "So400m/14", "pool_type": "none", "scan": True}
    model = paligemma.Model(img=img, llm={"variant": preset, "vocab_size": 257_152})
    both = abstract(model, image, text, text)
    encoder = siglip_config("So400m", 14, 224)
    encoder = dataclasses.replace(encoder, map_head=False)
    decoder = dataclasses.replace(decoder_config(preset), vocab_size=257_152)
    connector = both["img"].pop("head")
    assert connector["kernel"].shape == (encoder.width, decoder.width)
    img = abstract(SiglipEncoder(encoder, execution=SCANNED.encoder), image)
    llm = abstract(Decoder(decoder, execution=SCANNED.decoder), text)
    assert shapes({"img": img, "llm": llm}) == shapes(both)
    hidden = gemma.get_config(preset)
    assert decoder.attention_softcap == hidden.get("attn_logits_softcap", 0.0)
    assert decoder.final_softcap == hidden.get("final_logits_softcap", 0.0)


def test_siglip_variants_equal_big_vision_table():
    for variant in SIGLIP_VARIANTS.keys() - {"tiny"}:
        sizes = vit.decode_variant(variant)
        assert SIGLIP_VARIANTS[variant] == tuple(sizes[key] for key in IMAGE)


@pytest.mark.parametrize(("scan", "dtype"), [(True, "float32"), (False, "bfloat16")])
def test_big_vision_loads_a_saved_encoder(tmp_path, scan, dtype):
    params = randomized(vit.Model(**image_fields(scan)), PIXELS)
    params = jax.tree.map(lambda leaf: leaf.astype(dtype), params)
    path = str(tmp_path / "encoder.npz")
    save_encoder(path, HIVE_IMAGE, stacked(params), "big_vision", dtype)
    nothing = jax.tree.map(np.zeros_like, params)
    assert_same(vit.load(nothing, path, {"scan": scan}), params)


@pytest.mark.parametrize("size", [16, 40])
def test_position_embeddings_are_resized_as_big_vision_does(tmp_path, size):
    params = randomized(vit.Model(**image_fields(True)), PIXELS)
    path = write_npz(tmp_path / "encoder.npz", params)
    new = {**params, "pos_embedding": np.zeros((1, (size // 8) ** 2, 32))}
    _, hive_model = load_encoder(path, image_size=size)
    assert_same(hive_model, vit.load(new, path, {"scan": True}))
