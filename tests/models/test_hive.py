"""The whole model: fusions, masks, gradients, prefill and decoding."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from hive_jax.models.attention import KeyValues
from hive_jax.models.decoder import DecoderConfig
from hive_jax.models.fusion import (
    FUSIONS,
    text_position,
)
from hive_jax.models.fusion_base import Fusion
from hive_jax.models.hive import Hive, HiveConfig
from hive_jax.models.layer_stack import Execution, ModelExecution
from hive_jax.models.siglip import SiglipConfig

# 9 patches; block 3 of the encoder is connected to nothing.
TINY = HiveConfig(
    SiglipConfig(16, 3, 24, 2, patch_size=8, image_size=24, map_head=False),
    DecoderConfig(31, 24, 3, 32, 4, 2, 8, post_norms=True, qk_norm=True),
    connections=((1, 1), (2, 3)),
)
WITH_IMAGES = ("hive", "cascaded", "self_attention")

RNG = np.random.default_rng(0)
IMAGES = RNG.uniform(-1, 1, (3, 24, 24, 3)).astype(np.float32)
TOKENS = RNG.integers(0, 31, (3, 7))
# The image comes first, after three tokens, not at all.
IMAGE_MASK = np.array([[1, 1, 1, 1, 1, 1, 1], [0, 0, 0, 1, 1, 1, 1], [0] * 7], bool)


@functools.cache
def model(fusion, **changes):
    return Hive(dataclasses.replace(TINY, fusion=fusion, **changes))


@functools.cache
def random_params(fusion):
    """All leaves random: norms, biases and gates matter."""
    rng = np.random.default_rng(0)
    shapes = jax.eval_shape(
        model(fusion).init, jax.random.key(0), IMAGES, TOKENS, IMAGE_MASK
    )
    return jax.tree.map(
        lambda leaf: jnp.asarray(rng.normal(0, 0.3, leaf.shape), leaf.dtype),
        shapes["params"],
    )


@functools.cache
def compiled(fusion):
    return jax.jit(model(fusion).apply)


def run(fusion, images=IMAGES, tokens=TOKENS, image_mask=IMAGE_MASK, params=None):
    params = random_params(fusion) if params is None else params
    return np.asarray(compiled(fusion)({"params": params}, images, tokens, image_mask))


def with_gates(params, gates):
    """The same parameters with the gates of the two connections set."""
    gate = jnp.asarray(gates, jnp.float32)[:, None]
    cross_attention = params["fusion"]["cross_attention"] | {"gate": gate}
    fusion = params["fusion"] | {"cross_attention": cross_attention}
    return params | {"fusion": fusion}


# The parameter tree.


@pytest.mark.parametrize("fusion", FUSIONS)
def test_parameter_tree_has_the_branches_of_its_fusion(fusion):
    params = random_params(fusion)
    assert set(params) == ({"llm"} if fusion == "none" else {"img", "llm", "fusion"})
    if fusion in ("hive", "cascaded"):
        assert set(params["fusion"]) == {"projector", "cross_attention"}
        assert params["fusion"]["cross_attention"]["gate"].shape == (2, 1)
    if fusion == "self_attention":
        assert set(params["fusion"]) == {"projector"}
        assert "norm" not in params["fusion"]["projector"]


def test_gates_start_at_zero():
    def gate(rng):
        variables = model("hive").init(rng, IMAGES, TOKENS, IMAGE_MASK)
        return variables["params"]["fusion"]["cross_attention"]["gate"]

    assert not np.any(jax.jit(gate)(jax.random.key(0)))


# Dependence on the image.


@pytest.mark.parametrize("fusion", ["hive", "cascaded"])
def test_image_has_no_effect_while_gates_are_zero(fusion):
    params = with_gates(random_params(fusion), [0, 0])
    blind = run(fusion, image_mask=np.zeros_like(IMAGE_MASK))
    np.testing.assert_array_equal(run(fusion, params=params), blind)


def test_zero_gates_give_the_decoder_alone_bit_for_bit():
    # Not compiled: XLA fuses, and so rounds, two programs in different ways.
    params = with_gates(random_params("hive"), [0, 0])
    inputs = IMAGES, TOKENS, IMAGE_MASK
    hidden = model("hive").apply({"params": params}, *inputs)
    alone = model("none").apply({"params": {"llm": params["llm"]}}, *inputs)
    np.testing.assert_array_equal(hidden, alone)


@pytest.mark.parametrize("fusion", WITH_IMAGES)
def test_masked_text_does_not_depend_on_the_image_and_other_text_does(fusion):
    """A text before the image, and a row without one, do not depend on it."""
    changed = np.any(run(fusion) != run(fusion, images=-IMAGES), axis=-1)
    np.testing.assert_array_equal(changed, IMAGE_MASK)


@pytest.mark.parametrize("fusion", WITH_IMAGES)
def test_masked_text_equals_text_without_an_image(fusion):
    alone = run("none", params={"llm": random_params(fusion)["llm"]})
    difference = np.abs(run(fusion) - alone).max(axis=-1)
    assert difference[~IMAGE_MASK].max() < 1e-5
    assert difference[IMAGE_MASK].min() > 1e-3


@pytest.mark.parametrize("fusion", ["hive", "self_attention"])
def test_right_padding_does_not_change_earlier_tokens(fusion):
    tokens, image_mask = TOKENS.copy(), IMAGE_MASK.copy()
    tokens[:, 5:] = 0
    image_mask[:, 5:] = False
    before = run(fusion)[:, :5]
    padded = run(fusion, tokens=tokens, image_mask=image_mask)[:, :5]
    np.testing.assert_array_equal(padded, before)
    shorter = run(fusion, tokens=TOKENS[:, :5], image_mask=IMAGE_MASK[:, :5])
    np.testing.assert_allclose(shorter, before, atol=1e-5)


# Where the image enters.


@pytest.mark.parametrize("fusion", ["hive", "cascaded"])
def test_each_connected_layer_attends_to_its_encoder_depth_before_it_runs(fusion):
    depths = {"hive": (1, 2), "cascaded": (3, 3)}[fusion]

    def stepwise_model(hive):
        features = hive.img(IMAGES, (1, 2, 3)).features
        features = features[jnp.array(depths) - 1]
        text = hive.llm.embed(TOKENS)
        _, _, image_kv = hive.fusion.prepare(features, text, IMAGE_MASK)
        layer_1, layer_2, layer_3 = hive.llm.segments((1, 2, 3))
        x, _ = hive.fusion.before_layer(0, text, image_kv, IMAGE_MASK)
        x, _ = layer_2(layer_1(x)[0])
        x, _ = hive.fusion.before_layer(1, x, image_kv, IMAGE_MASK)
        return hive.llm.final_norm(layer_3(x)[0])

    expected = jax.jit(
        lambda params: model(fusion).apply({"params": params}, method=stepwise_model)
    )(random_params(fusion))
    np.testing.assert_allclose(run(fusion), expected, atol=1e-5)


# Gradients.


@functools.cache
def gradient(fusion):
    """(params, images) -> the gradients of the encoder and of the images."""

    def loss(img, params, images):
        params = {"params": params | {"img": img}}
        hidden = model(fusion).apply(params, images, TOKENS, IMAGE_MASK)
        return jnp.sum(jnp.sin(hidden))

    return jax.jit(
        lambda params, images: jax.grad(loss, (0, 2))(params["img"], params, images)
    )


@pytest.mark.parametrize(
    ("fusion", "gates", "reached"),
    [
        ("hive", [1, 0], [True, False, False]),
        ("hive", [0, 1], [True, True, False]),
        ("hive", [0, 0], [False, False, False]),
        ("cascaded", [1, 0], [True, True, True]),
    ],
)
def test_gradient_of_a_connection_reaches_its_depth_and_earlier_blocks_only(
    fusion, gates, reached
):
    params = with_gates(random_params(fusion), gates)
    img, _ = gradient(fusion)(params, IMAGES)
    for leaf in jax.tree.leaves(img["Transformer"]["encoderblock"]):
        assert np.any(leaf.reshape(3, -1), axis=1).tolist() == reached
    for leaf in jax.tree.leaves(img["embedding"]):
        assert np.any(leaf) == any(reached)


@pytest.mark.parametrize("fusion", WITH_IMAGES)
def test_gradient_reaches_every_pixel_of_an_unmasked_image_only(fusion):
    _, images = gradient(fusion)(random_params(fusion), IMAGES)
    reached = np.any(images, axis=-1)
    assert np.all(reached[:2])
    assert not np.any(reached[2])


@pytest.mark.parametrize("fusion", ["hive", "cascaded"])
def test_gradient_reaches_every_patch_of_every_connection(fusion):
    params = random_params(fusion)["fusion"]
    module = FUSIONS[fusion](2, 16, TINY.decoder)
    rng = np.random.default_rng(0)
    features = rng.normal(size=(2, 3, 9, 16)).astype(np.float32)
    x = rng.normal(size=(3, 7, 24)).astype(np.float32)

    def attend(fusion, features):
        _, _, image_kv = fusion.prepare(features, x, IMAGE_MASK)
        arguments = x, image_kv, IMAGE_MASK
        return [fusion.before_layer(number, *arguments)[0] for number in range(2)]

    def total(features):
        outputs = module.apply({"params": params}, features, method=attend)
        return sum(jnp.sum(jnp.sin(x)) for x in outputs)

    reached = np.any(jax.jit(jax.grad(total))(features), axis=-1)
    has_image = IMAGE_MASK.any(axis=1)
    np.testing.assert_array_equal(
        reached, np.broadcast_to(has_image[None, :, None], (2, 3, 9))
    )


# Image tokens in the text.


def test_self_attention_equals_the_decoder_on_text_with_inserted_image_tokens():
    def stepwise_model(hive, image, tokens, before):
        features = hive.img(image, (2,)).features
        image_tokens = hive.fusion.project(features)[0]
        text = hive.llm.embed(tokens)
        x = jnp.concatenate([text[:, :before], image_tokens, text[:, before:]], axis=1)
        (layers,) = hive.llm.segments((3,))
        hidden = hive.llm.final_norm(layers(x)[0])
        end = before + image_tokens.shape[1]
        return jnp.concatenate([hidden[:, :before], hidden[:, end:]], axis=1)

    params = {"params": random_params("self_attention")}
    hidden = run("self_attention")
    for row, before in ((0, 0), (1, 3)):
        example = slice(row, row + 1)
        expected = jax.jit(
            lambda image, tokens, before=before: model("self_attention").apply(
                params, image, tokens, before, method=stepwise_model
            )
        )(IMAGES[example], TOKENS[example])
        np.testing.assert_allclose(hidden[example], expected, atol=1e-5)


# A fusion within the decoder's own attention.


class Joint(Fusion):
    """The image's keys and values join those of the text in one softmax."""

    extends_attention = True

    def prepare(self, features, text, image_mask):
        heads = self.config.num_kv_heads, self.config.head_dim
        size = heads[0] * heads[1]
        return (
            text,
            text_position(text),
            tuple(
                KeyValues(*(x.reshape(*x.shape[:2], *heads) for x in key_value))
                for projected in self.project(features)
                for key_value in [(projected[..., :size], projected[..., -size:])]
            ),
        )

    def before_layer(self, connection, x, image_kv, image_mask):
        image = image_kv[connection]

        def extend(query, key, value, mask):
            shape = *image_mask.shape, image.key.shape[1]
            sees = jnp.broadcast_to(image_mask[:, :, None], shape)
            mask = jnp.broadcast_to(mask, (len(sees), *mask.shape[1:]))
            return (
                query,
                jnp.concatenate([image.key, key], axis=1),
                jnp.concatenate([image.value, value], axis=1),
                jnp.concatenate([sees, mask], axis=2),
            )

        return x, extend


@pytest.mark.parametrize("scan", [False, True])
def test_a_fusion_may_extend_the_attention_of_connected_layers(monkeypatch, scan):
    monkeypatch.setitem(FUSIONS, "joint", Joint)
    execution = ModelExecution(decoder=Execution(scan=scan, remat="full"))
    joint = Hive(dataclasses.replace(TINY, fusion="joint"), execution=execution)
    params = random_params("hive")
    params = {
        "params": params | {"fusion": {"projector": params["fusion"]["projector"]}}
    }
    apply = jax.jit(joint.apply)
    hidden = apply(params, IMAGES, TOKENS, IMAGE_MASK)
    changed = np.any(hidden != apply(params, -IMAGES, TOKENS, IMAGE_MASK), axis=-1)
    np.testing.assert_array_equal(changed, IMAGE_MASK)
    alone = run("none", params={"llm": params["params"]["llm"]})
    np.testing.assert_allclose(
        np.where(IMAGE_MASK[..., None], 0, hidden - alone), 0, atol=1e-5
    )

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

    stepwise = jax.jit(lambda params: joint.apply(params, method=decode))(params)
    np.testing.assert_allclose(stepwise, hidden, atol=1e-5)


# Execution and dtypes.


@pytest.mark.parametrize("fusion", ["hive", "self_attention"])
def test_scanned_and_rematerialized_layers_equal_unrolled_layers(fusion):
    execution = ModelExecution(
        encoder=Execution(scan=True, remat="dots"),
        decoder=Execution(scan=True, remat="full"),
    )
    config = dataclasses.replace(TINY, fusion=fusion)
    scanned = Hive(config, execution=execution)
    params = {"params": random_params(fusion)}
    hidden = jax.jit(scanned.apply)(params, IMAGES, TOKENS, IMAGE_MASK)
    np.testing.assert_allclose(hidden, run(fusion), atol=1e-5)


@pytest.mark.parametrize("fusion", FUSIONS)
def test_hidden_states_have_the_dtype_of_the_computation(fusion):
    half = Hive(dataclasses.replace(TINY, fusion=fusion), jnp.bfloat16)
    params = {"params": random_params(fusion)}
    hidden = jax.eval_shape(half.apply, params, IMAGES, TOKENS, IMAGE_MASK)
    assert hidden.shape == (3, 7, 24)
    assert hidden.dtype == jnp.bfloat16


def test_bfloat16_hidden_states_are_close_to_float32():
    half = Hive(TINY, jnp.bfloat16)
    params = {"params": random_params("hive")}
    hidden = jax.jit(half.apply)(params, IMAGES, TOKENS, IMAGE_MASK)
    difference = np.asarray(hidden, np.float32) - run("hive")
    assert np.linalg.norm(difference) < 0.1 * np.linalg.norm(run("hive"))


def test_logits_are_hidden_states_times_the_embedding_table():
    params = {"params": random_params("hive")}
    hidden = run("hive")
    logits = model("hive").apply(params, hidden, method="logits")
    table = np.asarray(params["params"]["llm"]["embedder"]["input_embedding"])
    np.testing.assert_allclose(logits, hidden @ table.T, atol=1e-5)
