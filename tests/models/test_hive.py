"""The whole model: parameters, gates, masks, execution and dtypes."""

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
    WITH_IMAGES,
    model,
    random_params,
    run,
    with_gates,
)

from hive_jax.models.execution import Execution, ModelExecution
from hive_jax.models.fusion_kinds import FUSIONS
from hive_jax.models.hive import Hive

# The parameter tree.


@pytest.mark.parametrize("fusion", FUSIONS)
def test_parameter_tree_has_the_branches_of_its_fusion(fusion):
    params = random_params(fusion)
    assert set(params) == ({"llm"} if fusion == "none" else {"img", "llm", "fusion"})
    if fusion in ("hive", "cascaded"):
        assert set(params["fusion"]) == {"projector", "cross_attention"}
        assert params["fusion"]["cross_attention"]["gate"].shape == (2, 1)
    if fusion == "joint":
        assert set(params["fusion"]) == {"projector", "joint_attention"}
        assert set(params["fusion"]["joint_attention"]) == {"query_norm", "key_norm"}
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


# Not "joint", whose norms of queries and keys change all text of an example with an image.
@pytest.mark.parametrize("fusion", ["hive", "cascaded", "self_attention"])
def test_masked_text_equals_text_without_an_image(fusion):
    alone = run("none", params={"llm": random_params(fusion)["llm"]})
    difference = np.abs(run(fusion) - alone).max(axis=-1)
    assert difference[~IMAGE_MASK].max() < 1e-5
    assert difference[IMAGE_MASK].min() > 1e-3


@pytest.mark.parametrize("fusion", ["hive", "joint", "self_attention"])
def test_right_padding_does_not_change_earlier_tokens(fusion):
    tokens, image_mask = TOKENS.copy(), IMAGE_MASK.copy()
    tokens[:, 5:] = 0
    image_mask[:, 5:] = False
    before = run(fusion)[:, :5]
    padded = run(fusion, tokens=tokens, image_mask=image_mask)[:, :5]
    np.testing.assert_array_equal(padded, before)
    shorter = run(fusion, tokens=TOKENS[:, :5], image_mask=IMAGE_MASK[:, :5])
    np.testing.assert_allclose(shorter, before, atol=1e-5)


# Execution and dtypes.


@pytest.mark.parametrize("fusion", ["hive", "joint", "self_attention"])
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
