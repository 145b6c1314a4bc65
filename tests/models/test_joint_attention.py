"""Fusion "joint" against a reimplementation in torch, and its special cases."""

import dataclasses
import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax.traverse_util import flatten_dict, unflatten_dict
from helpers.tiny_hive import IMAGE_MASK, IMAGES, TINY, TOKENS, model, random_params

from hive_jax.models.attention import KeyValues, attend, attention_with_weights
from hive_jax.models.config import DecoderConfig
from hive_jax.models.execution import Execution, ModelExecution
from hive_jax.models.hive import Hive
from hive_jax.models.joint_attention import attend_jointly
from hive_jax.models.rotary import grid_positions

# Two connections: layers 1 and 3, so that the second has an input that the image changed.
LLAMA = DecoderConfig(
    *(31, 32, 3, 48, 4, 2, 16),
    activation="silu",
    norm_offset=0.0,
    norm_eps=1e-5,
    embed_scale=False,
)
# Frequencies of Llama 3.1 in all three ranges, and a head of its own.
LLAMA3 = dataclasses.replace(
    LLAMA, rope_factor=8.0, rope_original_length=60, tied_head=False
)
QWEN2 = dataclasses.replace(LLAMA, qkv_bias=True, tied_head=False)
GEMMA = dataclasses.replace(
    TINY.decoder,
    local_layers=1,
    window=3,
    rope_factor=2.0,
    local_rope_base=100.0,
    attention_softcap=5.0,
)
# The image comes first, after three tokens, not at all; as in IMAGE_MASK.
STARTS = (0, 3, None)


@functools.cache
def joint(decoder, **changes):
    return Hive(dataclasses.replace(TINY, fusion="joint", decoder=decoder, **changes))


@functools.cache
def joint_params(decoder, **changes):
    """Flat, of the decoder and the fusion; norms about 1, all other leaves about 0.2."""
    rng = np.random.default_rng(0)
    inputs = IMAGES, TOKENS, IMAGE_MASK
    shapes = jax.eval_shape(joint(decoder, **changes).init, jax.random.key(0), *inputs)
    params = {}
    for name, leaf in flatten_dict(shapes["params"], sep="/").items():
        value = rng.normal(0, 0.2, leaf.shape)
        params[name] = (value + name.endswith("norm/scale")).astype(np.float32)
    return params


@functools.cache
def outputs(decoder, **changes):
    """Logits, and gradients of a loss by parameter name and of the features."""
    hive, params = joint(decoder, **changes), joint_params(decoder, **changes)
    features = np.random.default_rng(1).normal(size=(2, 3, 9, 16)).astype(np.float32)

    def apply(hive, features):
        text, layers = hive.llm.embed(TOKENS), hive._connected_layers()
        x, _, image = hive.fusion.prepare(features, text, IMAGE_MASK, layers)
        x, _, _ = hive._run_layers(x, image, IMAGE_MASK)
        return hive.logits(hive.llm.final_norm(x))

    def loss(params, features):
        params = {"params": unflatten_dict(params, sep="/")}
        logits = hive.apply(params, features, method=apply)
        return jnp.sin(logits).mean(), logits

    grad = jax.jit(jax.grad(loss, (0, 1), has_aux=True))
    (gradients, of_features), logits = grad(params, features)
    return features, logits, gradients | {"features": of_features}


@pytest.mark.parametrize(
    ("decoder", "image_kv", "image_rope"),
    [
        *itertools.product([LLAMA], ["shared", "own"], [True, False]),
        (GEMMA, "shared", True),
        (GEMMA, "own", False),
        (LLAMA3, "shared", True),
        (QWEN2, "shared", True),
        (QWEN2, "own", True),
    ],
)
def test_logits_and_gradients_equal_those_of_the_reference(
    decoder, image_kv, image_rope
):
    torch = pytest.importorskip("torch")
    from helpers import joint_reference

    changes = {"image_rope": image_rope, "image_kv": image_kv}
    features, logits, gradients = outputs(decoder, **changes)
    tensors = {
        name: torch.tensor(leaf, dtype=torch.float64, requires_grad=True)
        for name, leaf in joint_params(decoder, **changes).items()
        if not name.startswith("img/")
    }
    tensors["features"] = torch.tensor(features).double().requires_grad_()
    options = {"layers": [1, 3], "own_kv": image_kv == "own", "image_rope": image_rope}
    arguments = tensors["features"], torch.tensor(TOKENS), STARTS
    expected = joint_reference.logits(decoder, options, tensors, *arguments)
    np.testing.assert_allclose(logits, expected.detach(), atol=1e-5)
    torch.sin(expected).mean().backward()
    for name, tensor in tensors.items():
        got = gradients[name]
        assert np.any(got), name
        np.testing.assert_allclose(got, tensor.grad, atol=1e-5, err_msg=name)


@pytest.mark.parametrize("projector", ["mlp", "linear"])
def test_other_projectors_equal_the_reference(projector):
    torch = pytest.importorskip("torch")
    from helpers import joint_reference

    features, logits, _ = outputs(LLAMA, projector=projector)
    params = joint_params(LLAMA, projector=projector)
    assert "fusion/projector/norm/scale" not in params
    tensors = {name: torch.tensor(leaf).double() for name, leaf in params.items()}
    options = {"layers": [1, 3], "own_kv": False, "image_rope": True}
    arguments = torch.tensor(features).double(), torch.tensor(TOKENS), STARTS
    expected = joint_reference.logits(LLAMA, options, tensors, *arguments)
    np.testing.assert_allclose(logits, expected, atol=1e-5)


def test_sections_of_the_positions():
    """3/16 of the head by row, 3/16 by column, 2/16 at the centre."""
    position = grid_positions(4, 16)
    assert position.shape == (16, 16)
    assert position[4 * 2 + 3].tolist() == [2, 3] * 6 + [2] * 4
    assert position[1].tolist() == [0, 1] * 6 + [2] * 4


# Without an image.


@pytest.mark.parametrize("image_kv", ["shared", "own"])
def test_text_without_an_image_has_the_bits_of_the_decoder_alone(image_kv):
    """In a batch with images, and in one without. Operation by operation: XLA fuses, and
    so rounds, two programs in different ways."""
    changes = {"image_kv": image_kv}
    params = unflatten_dict(joint_params(GEMMA, **changes), sep="/")
    decoder = Hive(dataclasses.replace(TINY, fusion="none", decoder=GEMMA))
    inputs = IMAGES, TOKENS, IMAGE_MASK
    blind = IMAGES, TOKENS, np.zeros_like(IMAGE_MASK)
    with jax.disable_jit():
        alone = decoder.apply({"params": {"llm": params["llm"]}}, *inputs)
        mixed = joint(GEMMA, **changes).apply({"params": params}, *inputs)
        without = joint(GEMMA, **changes).apply({"params": params}, *blind)
    np.testing.assert_array_equal(without, alone)
    np.testing.assert_array_equal(mixed[2], alone[2])
    assert np.abs(mixed[:2] - alone[:2]).max() > 0.1
    compiled = jax.jit(joint(GEMMA, **changes).apply)({"params": params}, *blind)
    np.testing.assert_allclose(compiled, alone, atol=1e-5)


def test_an_image_gets_no_gradient_from_text_that_does_not_see_it():
    hive, params = (
        joint(LLAMA),
        {"params": unflatten_dict(joint_params(LLAMA), sep="/")},
    )

    def loss(images):
        return jnp.sin(hive.apply(params, images, TOKENS, IMAGE_MASK)[:, 2]).sum()

    gradient = jax.jit(jax.grad(loss))(IMAGES)
    reached = np.any(gradient, axis=(1, 2, 3))
    assert reached.tolist() == [True, False, False]
    assert np.isfinite(gradient).all()


# One softmax.


def test_attention_to_text_and_image_is_one_softmax():
    rng = np.random.default_rng(0)
    sizes = (2, 3, 4, 8), *[(2, 5, 2, 8)] * 2, *[(2, 6, 2, 8)] * 2
    query, *key_values = (rng.normal(size=size).astype(np.float32) for size in sizes)
    text, image = KeyValues(*key_values[:2]), KeyValues(*key_values[2:])
    text_mask = np.tril(np.ones((3, 5), bool), 2)[None]
    sees = np.array([[0, 1, 1], [0, 0, 0]], bool)
    inputs = query, text, text_mask, image, sees
    out, weights = attend_jointly(*inputs, scale=0.7, softcap=2.0)
    both = [
        np.concatenate(pair, axis=1)
        for pair in zip((text.key, text.value), (image.key, image.value), strict=True)
    ]
    mask = np.concatenate(
        [
            np.broadcast_to(text_mask, (2, 3, 5)),
            np.broadcast_to(sees[..., None], (2, 3, 6)),
        ],
        axis=2,
    )
    expected = attention_with_weights(query, *both, mask, scale=0.7, softcap=2.0)
    np.testing.assert_allclose(out, expected[0], atol=1e-6)
    np.testing.assert_allclose(weights, expected[1][..., 5:], atol=1e-6)
    plain = attend(query, text.key, text.value, text_mask, scale=0.7, softcap=2.0)
    np.testing.assert_array_equal(out[~sees], plain[~sees])


# Programs.


@pytest.mark.parametrize("scan", [False, True])
def test_decoding_with_a_cache_equals_the_whole_sequence(scan):
    execution = ModelExecution(decoder=Execution(scan=scan, remat="full"))
    hive = Hive(joint(GEMMA, image_kv="own").config, execution=execution)
    params = {"params": unflatten_dict(joint_params(GEMMA, image_kv="own"), sep="/")}

    def decode(hive):
        first, position, state = hive.prefill(
            IMAGES, TOKENS[:, :5], IMAGE_MASK[:, :5], 2
        )
        outputs = [first]
        for step in (5, 6):
            position = position[:, -1:] + 1
            x, state = hive.decode_step(TOKENS[:, step : step + 1], position, state)
            outputs.append(x)
        return jnp.concatenate(outputs, axis=1)

    whole = jax.jit(hive.apply)(params, IMAGES, TOKENS, IMAGE_MASK)
    stepwise = jax.jit(lambda params: hive.apply(params, method=decode))(params)
    np.testing.assert_allclose(stepwise, whole, atol=1e-5)


def test_attention_weights_are_the_image_columns_of_the_softmax():
    params = {"params": random_params("joint")}
    apply = functools.partial(model("joint").apply, method="attention_weights")
    weights = jax.jit(apply)(params, IMAGES, TOKENS, IMAGE_MASK)
    assert weights.shape == (2, 3, 4, 7, 9)
    share = np.asarray(weights.sum(axis=-1))
    sees = np.broadcast_to(IMAGE_MASK[None, :, None], share.shape)
    assert not share[~sees].any()
    assert 0 < share[sees].min() and share[sees].max() < 1
