"""Attention (plain and flash), causal masks, the KV cache."""

import flax.struct
import jax
import jax.numpy as jnp

from hive_jax.models.attention_rows import attend_by_rows, rows_to_heads

# Below this many keys, the weights are so few that XLA's fused softmax is as fast.
_MIN_FLASH_KEYS = 256


@flax.struct.dataclass
class KeyValues:
    """Keys and values of attention, or a KV cache.

    Attributes:
      key, value: [B, S, K, H]; slot s of a KV cache holds the token at position s.
    """

    key: jax.Array
    value: jax.Array


def update_kv_cache(
    cache: KeyValues, key: jax.Array, value: jax.Array, position: jax.Array
) -> KeyValues:
    """Writes new keys and values into a KV cache.

    Args:
      cache: keys and values [B, S, K, H].
      key: [B, T, K, H], cast to the dtype of the cache.
      value: [B, T, K, H], likewise.
      position: int32[B, T], the slot to write each token to.

    Returns:
      The updated cache.
    """
    # By position, not appended: prompts of a batch differ in length. Slots after an
    # example's last token may hold anything, because causal attention masks them until
    # they are written.
    # Indices [B, 1] and [B, T] select [B, T, K, H].
    example = jnp.arange(position.shape[0])[:, None]
    return KeyValues(
        cache.key.at[example, position].set(key.astype(cache.key.dtype)),
        cache.value.at[example, position].set(value.astype(cache.value.dtype)),
    )


def attend_to_all(
    query_BTNH: jax.Array,
    key_BSNH: jax.Array,
    value_BSNH: jax.Array,
    *,
    use_flash: bool,
) -> jax.Array:
    """Computes attention without a mask, scaled by H ** -0.5, as the encoder's.

    Args:
      query_BTNH: queries.
      key_BSNH, value_BSNH: keys and values, with as many heads as the queries.
      use_flash: use flash attention where `supports_flash`.

    Returns:
      [B, T, N, H].
    """
    scale = query_BTNH.shape[-1] ** -0.5
    if use_flash and supports_flash(query_BTNH, key_BSNH):
        return flash_attention(query_BTNH, key_BSNH, value_BSNH, scale=scale)
    return attend(query_BTNH, key_BSNH, value_BSNH, scale=scale)


def attend_causally(
    query_BTNH: jax.Array,
    key_BTKH: jax.Array,
    value_BTKH: jax.Array,
    *,
    is_sliding: jax.Array,
    window: int,
    scale: float,
    softcap: float,
    use_flash: bool,
) -> jax.Array:
    """Computes causal self-attention of a whole sequence, for training.

    Args:
      query_BTNH: queries, token t at position t.
      key_BTKH, value_BTKH: keys and values of the same tokens.
      is_sliding: bool scalar; True limits a query to the last `window` positions.
      window: of sliding-window layers; 0 if the decoder has none.
      scale, softcap: see `attention_with_weights`.
      use_flash: use flash attention where `supports_flash`; it has no soft-cap.

    Returns:
      [B, T, N, H].
    """
    length = query_BTNH.shape[1]
    # A window as long as the sequence excludes nothing.
    has_window = 0 < window < length
    if use_flash and not softcap and supports_flash(query_BTNH, key_BTKH):

        def run(window, *operands):
            return flash_attention(*operands, scale=scale, causal=True, window=window)

        operands = query_BTNH, key_BTKH, value_BTKH
        if not has_window:
            return run(0, *operands)
        # cuDNN needs a static window, and `is_sliding` is traced in a scan over layers:
        # compile both kernels and run one.
        return jax.lax.cond(
            is_sliding, lambda *x: run(window, *x), lambda *x: run(0, *x), *operands
        )
    mask_window = jnp.where(is_sliding, window, 0) if has_window else 0
    # [1, T]: one mask serves the batch, because texts are padded on the right only.
    position = jnp.arange(length)[None]
    mask = causal_mask(position, position, mask_window)
    return attend(query_BTNH, key_BTKH, value_BTKH, mask, scale=scale, softcap=softcap)


def attend(
    query_BTNH: jax.Array,
    key_BSKH: jax.Array,
    value_BSKH: jax.Array,
    mask_BTS: jax.Array | None = None,
    *,
    scale: float,
    softcap: float = 0.0,
) -> jax.Array:
    """Computes grouped-query attention, softmax(scale * Q K^T) V.

    Args:
      query_BTNH: query head n attends to kv head n // (N / K).
      key_BSKH, value_BSKH: keys and values.
      mask_BTS: see `attention_with_weights`.
      scale, softcap: see `attention_with_weights`.

    Returns:
      [B, T, N, H].
    """
    return attention_with_weights(
        query_BTNH, key_BSKH, value_BSKH, mask_BTS, scale=scale, softcap=softcap
    )[0]


def attention_with_weights(
    query_BTNH: jax.Array,
    key_BSKH: jax.Array,
    value_BSKH: jax.Array,
    mask_BTS: jax.Array | None = None,
    *,
    scale: float,
    softcap: float = 0.0,
) -> tuple[jax.Array, jax.Array]:
    """Computes grouped-query attention and its weights.

    Logits and softmax are float32 whatever the dtype of the arguments. XLA does not
    compute weights that the caller does not use.

    Args:
      query_BTNH: query head n attends to kv head n // (N / K).
      key_BSKH, value_BSKH: keys and values.
      mask_BTS: bool, broadcastable; True where a query may attend. A query that may
        attend to no key gets exactly zero.
      scale: factor on the logits Q K^T.
      softcap: squashes the logits to (-softcap, softcap) as Gemma 2 does; 0 for none.

    Returns:
      softmax(scale * Q K^T) V [B, T, N, H] and the weights float32[B, N, T, S].
    """
    inputs = query_BTNH, key_BSKH, value_BSKH, mask_BTS
    rows = attend_by_rows(*inputs, scale, softcap)
    out = (rows.out / rows.total).astype(value_BSKH.dtype)
    return rows_to_heads(out, query_BTNH.shape), rows.weights_by_head(query_BTNH.shape)


def supports_flash(query: jax.Array, key: jax.Array) -> bool:
    """Returns whether cuDNN's flash attention supports these operands, and is faster.

    It needs an NVIDIA GPU (Ampere or later), half precision, and a head dimension within
    the limits of jax/_src/cudnn.

    Args:
      query: [B, T, N, H].
      key: [B, S, K, H].
    """
    head_dim = query.shape[-1]
    return (
        jax.default_backend() == "gpu"
        and query.dtype in (jnp.bfloat16, jnp.float16)
        and key.shape[1] >= _MIN_FLASH_KEYS
        and head_dim % 8 == 0
        and head_dim <= _max_flash_head_dim()
    )


def _max_flash_head_dim() -> int:
    # 8.0 is Ampere, 9.0 is Hopper: cuDNN supports heads of 256 from Hopper on.
    capability = getattr(jax.devices()[0], "compute_capability", "")
    major = str(capability).partition(".")[0]
    if not major.isdecimal():  # not an NVIDIA GPU, "gfx90a" for example
        return 0
    major = int(major)
    return 256 if major >= 9 else 128 if major >= 8 else 0


def flash_attention(
    query_BTNH: jax.Array,
    key_BSKH: jax.Array,
    value_BSKH: jax.Array,
    *,
    scale: float,
    causal: bool = False,
    window: int = 0,
) -> jax.Array:
    """Computes softmax(scale * Q K^T) V by cuDNN, without [T, S] weights in memory.

    Args:
      query_BTNH: queries; see `supports_flash`.
      key_BSKH, value_BSKH: keys and values; grouped heads as for `attend`.
      scale: factor on the logits Q K^T.
      causal: let position t attend to positions up to t only.
      window: with `causal`, only to the last `window` of these, t included; 0 for all.

    Returns:
      [B, T, N, H].
    """
    return jax.nn.dot_product_attention(
        query_BTNH,
        key_BSKH,
        value_BSKH,
        scale=scale,
        is_causal=causal,
        # JAX counts the positions to the left and right of the query.
        local_window_size=(window - 1, 0) if window else None,
        implementation="cudnn",
    )


def causal_mask(
    query_position: jax.Array,
    key_position: jax.Array,
    window: int | jax.Array = 0,
) -> jax.Array:
    """Returns the causal mask: key position <= query position, within the window.

    Positions 0..4, without a window and with window 2:

        1 0 0 0 0      1 0 0 0 0
        1 1 0 0 0      1 1 0 0 0
        1 1 1 0 0      0 1 1 0 0
        1 1 1 1 0      0 0 1 1 0
        1 1 1 1 1      0 0 0 1 1

    Args:
      query_position: int32[B, T].
      key_position: int32[B, S].
      window: number of positions to attend to, the query's own included; 0 for all.

    Returns:
      bool[B, T, S], True where the query may attend to the key.
    """
    distance = query_position[:, :, None] - key_position[:, None, :]
    return (distance >= 0) & ((distance < window) | (jnp.asarray(window) == 0))
