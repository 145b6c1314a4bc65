"""How each fusion attends to the image, step by step; fusions that extend attention."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers.tiny_hive import (
    IMAGE_MASK,
    IMAGES,
    TINY,
    TOKENS,
    model,
    random_params,
    run,
)

from hive_jax.models.attention import KeyValues
from hive_jax.models.fusion import (
    FUSIONS,
    text_position,
)
from hive_jax.models.fusion_base import Fusion
from hive_jax.models.hive import Hive
from hive_jax.models.layer_stack import Execution, ModelExecution

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
