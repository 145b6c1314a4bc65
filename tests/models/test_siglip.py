"""SigLIP's towers: sizes, shapes, features, execution and dtypes."""

import dataclasses
import functools
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from hive_jax.models.config import SiglipConfig, TextTowerConfig
from hive_jax.models.execution import SCANNED, Execution
from hive_jax.models.presets import siglip_config
from hive_jax.models.siglip import SiglipEncoder, TextTower, TwoTowers, patches

# 20 = 2 * 8 + 4: a remainder of 4 pixels.
TINY = SiglipConfig(
    width=16, depth=4, mlp_dim=24, num_heads=2, patch_size=8, image_size=20
)


def random_images(batch, size):
    rng = np.random.default_rng(0)
    return rng.uniform(-1, 1, (batch, size, size, 3)).astype(np.float32)


def random_params(module, *args):
    """Parameters of a module, all random, so that biases and scales matter."""
    rng = np.random.default_rng(0)
    shapes = jax.eval_shape(module.init, jax.random.key(0), *args)["params"]
    return jax.tree.map(
        lambda leaf: jnp.asarray(rng.normal(0, 0.3, leaf.shape), leaf.dtype), shapes
    )


@pytest.fixture(scope="module")
def params():
    return random_params(SiglipEncoder(TINY), random_images(1, 20))


def encode(params, images, depths=(), execution=SCANNED.encoder, **changes):
    apply = compiled(dataclasses.replace(TINY, **changes), execution)
    return apply({"params": params}, images, depths)


@functools.cache
def compiled(config, execution):
    return jax.jit(SiglipEncoder(config, execution=execution).apply, static_argnums=2)


def abstract(config, depths=(), execution=SCANNED.encoder):
    images = jax.ShapeDtypeStruct((2, config.image_size, config.image_size, 3), "f4")
    rng = jax.eval_shape(lambda: jax.random.key(0))
    encoder = SiglipEncoder(config, execution=execution)
    out, variables = jax.eval_shape(
        lambda rng, images: encoder.init_with_output(rng, images, depths), rng, images
    )
    return out, sum(leaf.size for leaf in jax.tree.leaves(variables))


SIZES = [
    # variant, patch size, image size, patches, parameters
    ("B", 16, 224, 196, 92_884_224),
    ("L", 16, 384, 576, 316_283_904),
    ("So400m", 14, 384, 729, 428_225_600),
]


@pytest.mark.parametrize(("variant", "patch", "image", "num_patches", "count"), SIZES)
def test_named_sizes_have_the_published_parameter_counts(
    variant, patch, image, num_patches, count
):
    config = siglip_config(variant, patch, image)
    assert config.num_patches == num_patches
    depths = (1, config.depth)
    out, size = abstract(config, depths)
    assert out.tokens.shape == (2, num_patches, config.width)
    assert out.pooled.shape == (2, config.width)
    assert out.features.shape == (2, 2, num_patches, config.width)
    assert size == count


@pytest.mark.parametrize(("variant", "patch", "image", "num_patches", "count"), SIZES)
def test_named_sizes_have_the_parameter_counts_of_transformers(
    variant, patch, image, num_patches, count
):
    torch = pytest.importorskip("torch")
    transformers = pytest.importorskip("transformers")
    config = siglip_config(variant, patch, image)
    with torch.device("meta"):
        model = transformers.SiglipVisionModel(
            transformers.SiglipVisionConfig(
                hidden_size=config.width,
                intermediate_size=config.mlp_dim,
                num_hidden_layers=config.depth,
                num_attention_heads=config.num_heads,
                image_size=image,
                patch_size=patch,
            )
        )
    assert sum(p.numel() for p in model.parameters()) == count


def test_block_parameters_are_stacked_on_a_leading_axis():
    images = jax.ShapeDtypeStruct((1, 20, 20, 3), "f4")
    rng = jax.eval_shape(lambda: jax.random.key(0))
    tree = jax.eval_shape(SiglipEncoder(TINY).init, rng, images)["params"]
    assert set(tree) == {"embedding", "pos_embedding", "Transformer", "MAPHead_0"}
    block = tree["Transformer"]["encoderblock"]
    assert block["LayerNorm_0"]["scale"].shape == (4, 16)
    attention = block["MultiHeadDotProductAttention_0"]
    assert attention["query"]["kernel"].shape == (4, 16, 2, 8)
    assert attention["out"]["kernel"].shape == (4, 2, 8, 16)


def test_unknown_variant_raises_and_lists_the_known_ones():
    with pytest.raises(ValueError, match="'XXL'.*So400m"):
        siglip_config("XXL", 16, 224)


@pytest.mark.parametrize("shape", [(1, 24, 20, 3), (1, 20, 20, 1), (20, 20, 3)])
def test_wrong_image_shape_raises(shape):
    with pytest.raises(ValueError, match=re.escape(str(shape))):
        jax.eval_shape(SiglipEncoder(TINY).init, jax.random.key(0), jnp.zeros(shape))


@pytest.mark.parametrize("depth", [0, 5, -1])
def test_depth_outside_of_the_encoder_raises(depth):
    with pytest.raises(ValueError, match=rf"depths \[{depth}\].*1 to 4"):
        abstract(TINY, (2, depth))


def test_unknown_remat_policy_raises():
    with pytest.raises(ValueError, match="'some'.*full"):
        abstract(TINY, execution=Execution(remat="some"))


def test_patches_are_in_row_major_order():
    image = np.arange(5 * 5).reshape(1, 5, 5, 1)
    assert patches(image, 2).tolist() == [
        [[0, 1, 5, 6], [2, 3, 7, 8], [10, 11, 15, 16], [12, 13, 17, 18]]
    ]


def test_pixels_beyond_the_last_whole_patch_are_cropped(params):
    images = random_images(2, 20)
    before = encode(params, images).tokens
    images[:, 16:] = 0
    images[:, :, 16:] = 0
    np.testing.assert_array_equal(encode(params, images).tokens, before)
    images[:, 15, 15] += 1
    assert not np.array_equal(encode(params, images).tokens, before)


def test_scan_equals_unrolled(params):
    images = random_images(2, 20)
    scanned = encode(params, images, (1, 2, 4))
    unrolled = encode(params, images, (1, 2, 4), Execution())
    for a, b in zip(jax.tree.leaves(scanned), jax.tree.leaves(unrolled), strict=True):
        np.testing.assert_allclose(a, b, atol=1e-5)


def test_scan_and_remat_do_not_change_gradients(params):
    """Of three blocks, cut after the second."""
    images = random_images(2, 20)
    blocks = params["Transformer"]["encoderblock"]
    three = jax.tree.map(lambda leaf: leaf[:3], blocks)
    params = params | {"Transformer": params["Transformer"] | {"encoderblock": three}}

    def gradient(scan, remat):
        config = dataclasses.replace(TINY, depth=3)
        encoder = SiglipEncoder(config, execution=Execution(scan=scan, remat=remat))

        def loss(params):
            out = encoder.apply({"params": params}, images, (2,))
            return jnp.mean(out.pooled**2) + jnp.mean(out.features**2)

        return jax.jit(jax.grad(loss))(params)

    expected = gradient(False, "none")
    assert all(np.any(leaf) for leaf in jax.tree.leaves(expected))
    for program in ((True, "none"), (True, "dots"), (True, "full")):
        jax.tree.map(
            lambda a, b: np.testing.assert_allclose(a, b, atol=1e-5),
            gradient(*program),
            expected,
        )


def test_features_may_be_requested_in_any_order_and_repeatedly(params):
    images = random_images(2, 20)
    plain = encode(params, images)
    assert plain.features is None
    in_order = encode(params, images, (1, 2, 4))
    mixed = encode(params, images, (4, 1, 4, 2))
    assert mixed.features.shape == (4, 2, 4, 16)
    for index, depth in enumerate((2, 0, 2, 1)):
        np.testing.assert_allclose(
            mixed.features[index], in_order.features[depth], atol=1e-6
        )
    assert np.abs(mixed.features[0] - mixed.features[1]).max() > 0.1
    np.testing.assert_allclose(mixed.tokens, plain.tokens, atol=1e-5)
    np.testing.assert_allclose(mixed.pooled, plain.pooled, atol=1e-5)


def test_features_do_not_depend_on_later_blocks(params):
    images = random_images(2, 20)
    blocks = params["Transformer"]["encoderblock"]
    changed = jax.tree.map(lambda leaf: leaf.at[2:].add(1.0), blocks)
    changed = {
        **params,
        "Transformer": params["Transformer"] | {"encoderblock": changed},
    }
    before = encode(params, images, (1, 2, 4)).features
    after = encode(changed, images, (1, 2, 4)).features
    np.testing.assert_array_equal(after[:2], before[:2])
    assert not np.allclose(after[2], before[2])


def test_without_map_head_pooled_is_the_mean_of_the_tokens(params):
    headless = {key: params[key] for key in params if key != "MAPHead_0"}
    out = encode(headless, random_images(2, 20), map_head=False)
    np.testing.assert_allclose(out.pooled, out.tokens.mean(axis=1), atol=1e-6)


def test_bfloat16_outputs_are_close_to_float32(params):
    images = random_images(2, 20)
    expected = encode(params, images, (4,))
    out = jax.jit(SiglipEncoder(TINY, jnp.bfloat16).apply, static_argnums=2)(
        {"params": params}, images, (4,)
    )
    for half, full in zip(jax.tree.leaves(out), jax.tree.leaves(expected), strict=True):
        assert half.dtype == jnp.bfloat16
        difference = np.asarray(half, np.float32) - full
        assert np.linalg.norm(difference) < 0.03 * np.linalg.norm(full)


def test_text_tower_rejects_other_lengths():
    tower = TextTower(TextTowerConfig(num_tokens=8))
    tokens = jnp.zeros((1, 7), jnp.int32)
    with pytest.raises(ValueError, match=r"\(1, 7\).*\[B, 8\]"):
        jax.eval_shape(tower.init, jax.random.key(0), tokens)


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_two_tower_embeddings_are_float32_unit_vectors(dtype):
    text = TextTowerConfig(32, 8, 16, 2, 24, 2, out_dim=16)
    inputs = random_images(2, 20), jnp.arange(16).reshape(2, 8)
    towers = TwoTowers(TINY, text, dtype, execution=SCANNED)
    params = random_params(towers, *inputs)
    zimg, ztxt, t, b = jax.jit(towers.apply)({"params": params}, *inputs)
    for z in (zimg, ztxt):
        assert z.dtype == jnp.float32
        assert z.shape == (2, 16)
        np.testing.assert_allclose(np.linalg.norm(z, axis=1), 1, atol=1e-5)
    np.testing.assert_allclose(t, np.exp(params["t"]), rtol=1e-6)
    np.testing.assert_array_equal(b, params["b"])


def test_temperature_and_bias_have_siglips_initial_values():
    def start(rng):
        variables = TwoTowers(TINY, TextTowerConfig(num_tokens=8, out_dim=16)).init(
            rng, jnp.zeros((1, 20, 20, 3)), jnp.zeros((1, 8), jnp.int32)
        )
        return variables["params"]["t"], variables["params"]["b"]

    t, b = jax.jit(start)(jax.random.key(0))
    np.testing.assert_allclose(np.exp(t), [10.0], rtol=1e-6)
    np.testing.assert_array_equal(b, [-10.0])
