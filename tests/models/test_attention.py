"""Masks, softmax attention, rotary positions and flash attention."""

import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from hive_jax.models import attention
from hive_jax.models.attention import (
    attend,
    attend_causally,
    attention_with_weights,
    causal_mask,
    supports_flash,
)
from hive_jax.models.rotary import rotate


def drawing(mask):
    return ["".join(str(int(seen)) for seen in row) for row in np.asarray(mask)]


def positions(batch, length):
    return jnp.broadcast_to(jnp.arange(length), (batch, length))


@pytest.mark.parametrize(
    ("window", "table"),
    [
        (0, ["10000", "11000", "11100", "11110", "11111"]),
        (1, ["10000", "01000", "00100", "00010", "00001"]),
        (2, ["10000", "11000", "01100", "00110", "00011"]),
        (3, ["10000", "11000", "11100", "01110", "00111"]),
        (9, ["10000", "11000", "11100", "11110", "11111"]),
    ],
)
def test_causal_mask_allows_earlier_positions_within_the_window(window, table):
    position = positions(2, 5)
    mask = causal_mask(position, position, window)
    assert mask.dtype == bool
    assert [drawing(row) for row in mask] == [table, table]
    traced = jax.jit(causal_mask)(position, position, jnp.asarray(window))
    np.testing.assert_array_equal(traced, mask)


def test_causal_mask_depends_on_positions_not_on_array_order():
    # Two image tokens, stored first, stand after the first of three text tokens.
    position = jnp.array([[1, 2, 0, 3, 4]])
    table = ["10100", "11100", "00100", "11110", "11111"]
    assert drawing(causal_mask(position, position)[0]) == table
    table = ["10100", "11000", "00100", "01010", "00011"]
    assert drawing(causal_mask(position, position, 2)[0]) == table


def test_causal_mask_of_new_queries_and_cached_keys_excludes_empty_slots():
    mask = causal_mask(jnp.array([[3, 4]]), positions(1, 6))
    assert drawing(mask[0]) == ["111100", "111110"]


def plain_attention(query, key, value, mask, scale, softcap):
    """The textbook, in float64: one row, query and head at a time."""
    query, key, value = (np.asarray(x, np.float64) for x in (query, key, value))
    out = np.zeros(query.shape)
    group = query.shape[2] // key.shape[2]
    for b, t, n in np.ndindex(query.shape[:3]):
        logits = scale * key[b, :, n // group] @ query[b, t, n]
        if softcap:
            logits = softcap * np.tanh(logits / softcap)
        weights = np.where(mask[b, t], np.exp(logits), 0)
        out[b, t, n] = weights / weights.sum() @ value[b, :, n // group]
    return out


def random_inputs(heads=4, kv_heads=2, batch=2, queries=3, keys=5, head_dim=8):
    rng = np.random.default_rng(0)

    def normal(length, heads):
        return jnp.asarray(
            rng.normal(size=(batch, length, heads, head_dim)), jnp.float32
        )

    mask = rng.random((batch, queries, keys)) < 0.5
    mask[:, :, 1] = True
    return normal(queries, heads), normal(keys, kv_heads), normal(keys, kv_heads), mask


@pytest.mark.parametrize("softcap", [0.0, 1.5])
@pytest.mark.parametrize(("heads", "kv_heads"), [(4, 4), (4, 2), (4, 1), (1, 1)])
def test_attend_equals_textbook_softmax_attention(heads, kv_heads, softcap):
    query, key, value, mask = random_inputs(heads, kv_heads)
    out = attend(query, key, value, mask, scale=0.7, softcap=softcap)
    expected = plain_attention(query, key, value, mask, 0.7, softcap)
    np.testing.assert_allclose(out, expected, atol=1e-6)
    out = attend(query, key, value, scale=0.7, softcap=softcap)
    expected = plain_attention(query, key, value, mask | True, 0.7, softcap)
    np.testing.assert_allclose(out, expected, atol=1e-6)


@pytest.mark.parametrize("softcap", [0.0, 1.5])
@pytest.mark.parametrize(("heads", "kv_heads"), [(4, 2), (4, 1)])
def test_attention_weights_times_values_are_the_output(heads, kv_heads, softcap):
    query, key, value, mask = random_inputs(heads, kv_heads)
    mask[0, 1] = False
    how = {"scale": 0.7, "softcap": softcap}
    out, weights = attention_with_weights(query, key, value, mask, **how)
    batch, length = query.shape[:2]
    assert weights.shape == (batch, heads, length, key.shape[1])
    assert weights.dtype == jnp.float32
    seen = np.broadcast_to(mask[:, None], weights.shape)
    assert (np.asarray(weights)[~seen] == 0).all() and (weights >= 0).all()
    anywhere = np.broadcast_to(mask.any(axis=-1)[:, None], weights.shape[:3])
    np.testing.assert_allclose(weights.sum(axis=-1), anywhere, atol=1e-6)
    values = np.repeat(value, heads // kv_heads, axis=2)
    expected = np.einsum("bnts,bsnh->btnh", weights, values)
    np.testing.assert_allclose(out, expected, atol=1e-6)


def test_mask_broadcasts_over_keys():
    query, key, value, _ = random_inputs()
    image_mask = jnp.array([[True, False, True], [False, True, True]])
    out = attend(query, key, value, image_mask[:, :, None], scale=1.0)
    everything = attend(query, key, value, scale=1.0)
    expected = jnp.where(image_mask[:, :, None, None], everything, 0.0)
    np.testing.assert_array_equal(out, expected)


def test_fully_masked_query_has_zero_output_and_zero_gradient():
    query, key, value, mask = random_inputs()
    mask[0, 1] = False
    mask[1] = False

    def total(query, key, value):
        out = attend(query, key, value, mask, scale=1.0, softcap=2.0)
        return jnp.sum(out**2 + out), out

    gradients, out = jax.grad(total, argnums=(0, 1, 2), has_aux=True)(query, key, value)
    assert not np.any(out[0, 1])
    assert not np.any(out[1])
    assert np.all(np.any(out[0, jnp.array([0, 2])], axis=-1))
    for gradient in gradients:
        assert np.all(np.isfinite(gradient))
        assert not np.any(gradient[1])
        assert np.any(gradient[0])
    assert not np.any(gradients[0][0, 1])


def test_masked_keys_and_values_do_not_change_the_output():
    query, key, value, mask = random_inputs()
    mask[:, :, 3] = False
    before = attend(query, key, value, mask, scale=1.0)
    after = attend(
        query, key.at[:, 3].set(1e6), value.at[:, 3].set(-1e6), mask, scale=1.0
    )
    np.testing.assert_array_equal(after, before)


def test_bfloat16_attention_accumulates_in_float32():
    """1024 equal weights of 1/1024: a bfloat16 sum would stop growing at 0.25."""
    query, ones = jnp.zeros((1, 1, 1, 8)), jnp.ones((1, 1024, 1, 8))
    query, ones = query.astype(jnp.bfloat16), ones.astype(jnp.bfloat16)
    out = attend(query, ones, ones, scale=1.0)
    assert out.dtype == jnp.bfloat16
    np.testing.assert_array_equal(out, jnp.ones_like(out))


def test_bfloat16_attention_matches_float32_up_to_rounding():
    query, key, value, mask = random_inputs(head_dim=64)
    half = [x.astype(jnp.bfloat16) for x in (query, key, value)]
    out = attend(*half, mask, scale=0.125)
    expected = attend(*(x.astype(jnp.float32) for x in half), mask, scale=0.125)
    # Two roundings to 8 bits, of the weights and of the sum.
    atol = 2**-8 * float(jnp.abs(value).max())
    np.testing.assert_allclose(out.astype(jnp.float32), expected, atol=atol)


def test_rotation_angle_is_position_times_frequency():
    # Head dimension 4: the pairs (0, 2) and (1, 3), with the frequencies 1 and
    # base ** -1/2.
    x = jnp.array([1.0, 1.0, 0.0, 0.0]).reshape(1, 1, 1, 4)
    for position in (0, 1, 7):
        rotated = rotate(x, jnp.array([[position]]), 100.0)
        angles = np.array([position, position * 0.1])
        expected = np.concatenate([np.cos(angles), np.sin(angles)])
        np.testing.assert_allclose(rotated[0, 0, 0], expected, atol=1e-6)


def test_rotation_preserves_norms_and_products_depend_on_distance_only():
    query, key, _, _ = random_inputs(kv_heads=4, keys=3, head_dim=16)
    position = jnp.array([[3, 5, 9], [0, 1, 2]])

    def products(shift):
        rotated = (
            rotate(query, position + shift, 1e4),
            rotate(key, position + shift, 1e4),
        )
        norms = [jnp.linalg.norm(x, axis=-1) for x in rotated]
        return jnp.einsum("BTNH,BSNH->BNTS", *rotated), norms

    near, norms = products(0)
    far, _ = products(200)
    np.testing.assert_allclose(far, near, atol=2e-4)
    plain = jnp.einsum("BTNH,BSNH->BNTS", query, key)
    np.testing.assert_allclose(
        jnp.einsum("BNTT->BNT", near), jnp.einsum("BNTT->BNT", plain), atol=1e-5
    )
    assert np.abs(near - plain).max() > 0.1
    np.testing.assert_allclose(norms[0], jnp.linalg.norm(query, axis=-1), rtol=1e-6)


def test_rotation_preserves_the_dtype_and_accepts_a_traced_base():
    x = jnp.ones((1, 2, 1, 4), jnp.bfloat16)
    rotated = jax.jit(rotate)(x, positions(1, 2), jnp.asarray(1e4))
    assert rotated.dtype == jnp.bfloat16
    np.testing.assert_array_equal(rotated[:, 0], x[:, 0])


@pytest.mark.parametrize("kv_heads", [1, 2, 4])
@pytest.mark.parametrize("window", [0, 3, 8])
@pytest.mark.parametrize("is_sliding", [False, True])
def test_flash_attention_equals_plain_attention_in_value_and_gradient(
    monkeypatch, kv_heads, window, is_sliding
):
    """Scale, grouped heads and window as cuDNN takes them, by XLA's implementation of
    the same function, for cuDNN needs a GPU."""
    reference = jax.nn.dot_product_attention
    implementations = []

    def xla_attention(*operands, implementation, **options):
        implementations.append(implementation)
        return reference(*operands, implementation="xla", **options)

    rng = np.random.default_rng(0)
    query = rng.normal(size=(2, 8, 4, 16)).astype(np.float32)
    key, value = rng.normal(size=(2, 2, 8, kv_heads, 16)).astype(np.float32)

    def run_attention(use_flash):
        def loss(*operands):
            out = attend_causally(
                *operands,
                is_sliding=jnp.asarray(is_sliding),
                window=window,
                scale=0.3,
                softcap=0.0,
                use_flash=use_flash,
            )
            return (out * (jnp.arange(16.0) - 7.5)[None, None, None]).sum(), out

        run = jax.value_and_grad(loss, (0, 1, 2), has_aux=True)
        return jax.jit(run)(query, key, value)

    expected = run_attention(use_flash=True)  # there is no GPU: XLA's plain one
    monkeypatch.setattr(attention, "supports_flash", lambda query, key: True)
    monkeypatch.setattr(jax.nn, "dot_product_attention", xla_attention)
    assert not implementations
    got = run_attention(use_flash=True)
    assert set(implementations) == {"cudnn"}
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, atol=1e-4), got, expected
    )
    if window == 3:
        other = run_attention(use_flash=False)
        jax.tree.map(
            lambda a, b: np.testing.assert_allclose(a, b, atol=1e-4), other, expected
        )


@pytest.mark.parametrize(
    ("capability", "largest"), [("9.0", 256), ("8.6", 128), ("7.5", 0), ("gfx90a", 0)]
)
def test_supports_flash_depends_on_gpu_generation_and_head_dim(
    monkeypatch, capability, largest
):
    device = types.SimpleNamespace(compute_capability=capability)
    monkeypatch.setattr(jax, "devices", lambda: [device])
    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
    for head_dim in (64, 128, 256):
        query = jnp.zeros((1, 512, 1, head_dim), jnp.bfloat16)
        assert supports_flash(query, query) == (head_dim <= largest)
