"""The losses against plain loops."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from hive_jax.training.losses import next_token_nll, sigmoid_contrastive_loss

BATCH, LENGTH, WIDTH, VOCAB = 3, 8, 5, 11


@pytest.fixture(scope="module")
def inputs():
    rng = np.random.default_rng(0)
    return (
        rng.normal(size=(BATCH, LENGTH, WIDTH)).astype(np.float32),
        rng.normal(size=(VOCAB, WIDTH)).astype(np.float32),
        rng.integers(0, VOCAB, (BATCH, LENGTH), np.int32),
    )


@pytest.mark.parametrize("softcap", [0.0, 2.0])
def test_next_token_nll_is_the_plain_computation(inputs, softcap):
    hidden, table, tokens = inputs
    got = next_token_nll(hidden, table, softcap, tokens)
    assert got.shape == (BATCH, LENGTH - 1)
    assert got.dtype == jnp.float32
    for row in range(BATCH):
        for t in range(LENGTH - 1):
            logits = np.float64(table) @ np.float64(hidden[row, t])
            if softcap:
                logits = np.tanh(logits / softcap) * softcap
            expected = np.log(np.exp(logits).sum()) - logits[tokens[row, t + 1]]
            np.testing.assert_allclose(got[row, t], expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("positions", [0, 1, 3, 6, 7])
def test_chunks_change_no_value(inputs, positions):
    """7 positions in chunks of 1 (at least), 3, 6 (the last ones padded) and 7."""
    hidden, table, tokens = inputs
    plain = next_token_nll(hidden, table, 2.0, tokens)
    chunked = next_token_nll(hidden, table, 2.0, tokens, positions * BATCH * VOCAB)
    np.testing.assert_allclose(chunked, plain, rtol=1e-6, atol=1e-6)


def test_bfloat16_hidden_states_give_a_float32_loss(inputs):
    hidden, table, tokens = inputs
    got = next_token_nll(hidden.astype(jnp.bfloat16), table, 0.0, tokens)
    assert got.dtype == jnp.float32
    np.testing.assert_allclose(
        got, next_token_nll(hidden, table, 0.0, tokens), atol=0.1
    )


@pytest.mark.parametrize("shape", [(), (1,)])
def test_sigmoid_loss_is_the_sum_over_all_pairs(shape):
    rng = np.random.default_rng(1)
    zimg, ztxt = rng.normal(size=(2, 4, 6)).astype(np.float32)
    t, b = 1.7, -0.9
    got = sigmoid_contrastive_loss(
        *map(jnp.asarray, (zimg, ztxt)),
        jnp.full(shape, t),
        jnp.full(shape, b),
        jnp.ones(4, bool),
    )
    expected = 0.0
    for i in range(4):
        for j in range(4):
            logit = float(zimg[i] @ ztxt[j]) * t + b
            sign = 1.0 if i == j else -1.0
            expected += np.log1p(np.exp(-sign * logit)) / 4
    assert got.shape == ()
    np.testing.assert_allclose(got, expected, rtol=1e-5)


def test_sigmoid_loss_ignores_invalid_samples():
    """Loss and gradient are those of the others alone."""
    rng = np.random.default_rng(1)
    z = jnp.asarray(rng.normal(size=(2, 5, 6)).astype(np.float32))
    t, b = jnp.full(1, 1.7), jnp.full(1, -0.9)
    there = jnp.asarray([True, False, True, True, False])

    def loss(z, there):
        return sigmoid_contrastive_loss(*z, t, b, there)

    value, gradient = jax.value_and_grad(loss)(z, there)
    expected, others = jax.value_and_grad(loss)(z[:, there], jnp.ones(3, bool))
    np.testing.assert_allclose(value, expected, rtol=1e-6)
    np.testing.assert_allclose(gradient[:, there], others, rtol=1e-5, atol=1e-7)
    assert not gradient[:, ~there].any()
    assert loss(z, jnp.zeros(5, bool)) == 0


@pytest.mark.parametrize("fusion", ["hive", "self_attention"])
def test_a_batch_without_a_target_has_loss_and_gradient_zero(
    training, tiny_run, stage_rules, fusion
):
    """And one without an image, all at once: nothing may turn into NaN."""
    one = training(tiny_run(fusion, rules=stage_rules(3, fusion)))
    batch = one.batch
    nothing = np.zeros_like(batch.target)
    before = one.start()
    after, metrics = one.steps(1, batch.replace(target=nothing, image_mask=nothing))
    assert metrics[0]["loss"] == 0
    assert all(metrics[0][name] == 0 for name in metrics[0] if "norm" in name)
    jax.tree.map(np.testing.assert_array_equal, after.params, before.params)


@pytest.mark.parametrize("fusion", ["hive", "self_attention"])
def test_samples_without_an_image_have_finite_gradients(
    training, tiny_run, stage_rules, fusion
):
    one = training(tiny_run(fusion, rules=stage_rules(3, fusion)))
    blind = np.zeros_like(one.batch.image_mask)
    after, metrics = one.steps(2, one.batch.replace(image_mask=blind))
    assert metrics[0]["loss"] > 0
    assert metrics[0]["grad_norm/img"] == 0
    assert metrics[0]["grad_norm/fusion"] == 0
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(after.params))
