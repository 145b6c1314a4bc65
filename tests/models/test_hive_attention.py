"""How each fusion attends to the image, step by step; fusions that extend attention."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers.tiny_hive import (
    IMAGE_MASK,
    IMAGES,
    TOKENS,
    model,
    random_params,
    run,
)

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
