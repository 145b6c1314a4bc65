"""SigLIP's image tower, text tower and the two together.

Parameters carry the names of big_vision's models/vit.py, text_transformer.py and
two_towers.py, with the layers of a tower stacked on a leading axis.
"""

import dataclasses

import flax.linen as nn
import flax.struct
import jax
import jax.numpy as jnp

from hive_jax.models import layer_stack
from hive_jax.models.attention import attend_to_all
from hive_jax.models.layers import (
    ONE_DEVICE,
    Dense,
    LayerNorm,
    MergeHeads,
    MlpBlock,
    Placement,
    SplitHeads,
    add_to_all,
    last_axis,
    matmul,
)
from hive_jax.models.layer_stack import Execution, ModelExecution


@dataclasses.dataclass(frozen=True)
class SiglipConfig:
    """An image tower. Images are image_size x image_size; a remainder of
    image_size / patch_size is cut off at the right and the bottom."""

    width: int = 64
    depth: int = 8
    mlp_dim: int = 256
    num_heads: int = 2
    patch_size: int = 8
    image_size: int = 64
    map_head: bool = True

    @property
    def num_patches(self) -> int:
        return (self.image_size // self.patch_size) ** 2


@dataclasses.dataclass(frozen=True)
class TextTowerConfig:
    """A text tower; `num_tokens` is its fixed length, `out_dim` the image tower's
    width."""

    vocab_size: int = 512
    num_tokens: int = 32
    width: int = 64
    depth: int = 2
    mlp_dim: int = 256
    num_heads: int = 2
    out_dim: int = 64


@flax.struct.dataclass
class EncoderOutput:
    """tokens [B, P, D] after the final norm; pooled [B, D] (MAP head, or the mean
    of the tokens without one); features [M, B, P, D], the output of each requested
    block before the final norm, None if no depth was requested."""

    tokens: jax.Array
    pooled: jax.Array
    features: jax.Array | None


class Attention(nn.Module):
    """Multi-head attention with biases: query x[B, T, D], keys y[B, S, D]."""

    num_heads: int
    flash: bool = False

    @nn.compact
    def __call__(self, x: jax.Array, y: jax.Array) -> jax.Array:
        width, heads = x.shape[-1], self.num_heads
        head_dim = width // heads
        query = SplitHeads(heads, head_dim, name="query")(x)
        key = SplitHeads(heads, head_dim, name="key")(y)
        value = SplitHeads(heads, head_dim, name="value")(y)
        out = attend_to_all(query, key, value, use_flash=self.flash)
        return MergeHeads(width, name="out")(out)


class EncoderBlock(nn.Module):
    """Pre-norm transformer block, x[B, P, D] -> [B, P, D]."""

    mlp_dim: int
    num_heads: int
    flash: bool

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        y = LayerNorm(name="LayerNorm_0")(x)
        attention = Attention(
            self.num_heads, self.flash, name="MultiHeadDotProductAttention_0"
        )
        x = x + attention(y, y)
        y = LayerNorm(name="LayerNorm_1")(x)
        return x + MlpBlock(self.mlp_dim, name="MlpBlock_0")(y)


class Transformer(nn.Module):
    """A stack of blocks and a final norm; x[B, P, D] -> (normed, features)."""

    depth: int
    mlp_dim: int
    num_heads: int
    execution: Execution
    placement: Placement

    @nn.compact
    def __call__(
        self,
        x: jax.Array,
        depths: tuple[int, ...] = (),
        offsets: jax.Array | None = None,
    ) -> tuple[jax.Array, list[jax.Array]]:
        scan, remat = self.execution.scan, self.execution.remat
        flash = self.execution.flash
        block = EncoderBlock(self.mlp_dim, self.num_heads, flash, parent=None)
        init = layer_stack.stacked_init(block, self.depth, x[:1])
        layers = layer_stack.stacked_params(self, "encoderblock", init)
        placement = self.placement

        def apply(layer, x):
            params, offset = layer
            x = placement.shard_activations(
                block.apply({"params": placement.gather_params(params)}, x)
            )
            return x if offset is None else x + offset.astype(x.dtype)

        x = placement.shard_activations(x)
        ends = sorted({*depths, self.depth})
        at_depth = {}
        pieces = layer_stack.split_layers((layers, offsets), ends)
        for end, piece in zip(ends, pieces, strict=True):
            x = layer_stack.run_layers(apply, piece, x, scan=scan, remat=remat)
            at_depth[end] = x
        features = [at_depth[depth] for depth in depths]
        return LayerNorm(name="encoder_norm")(x), features


class MAPHead(nn.Module):
    """Multi-head attention pooling with one learned query, x[B, P, D] -> [B, D]."""

    mlp_dim: int
    num_heads: int

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        batch, _, width = x.shape
        probe = self.param("probe", nn.initializers.xavier_uniform(), (1, 1, width))
        probe = jnp.broadcast_to(probe.astype(x.dtype), (batch, 1, width))
        x = Attention(self.num_heads, name="MultiHeadDotProductAttention_0")(probe, x)
        y = LayerNorm(name="LayerNorm_0")(x)
        return (x + MlpBlock(self.mlp_dim, name="MlpBlock_0")(y))[:, 0]


class SiglipEncoder(nn.Module):
    """The image tower: images[B, image_size, image_size, 3] in [-1, 1] ->
    EncoderOutput. `dtype` is the dtype of the computation.

    `offsets` [L, B, P, D] are added to the outputs of all blocks: the gradient at zero
    is that at the features.
    """

    config: SiglipConfig
    dtype: jnp.dtype = jnp.float32
    placement: Placement = ONE_DEVICE
    execution: Execution = Execution()

    @nn.compact
    def __call__(
        self,
        images: jax.Array,
        depths: tuple[int, ...] = (),
        offsets: jax.Array | None = None,
    ) -> EncoderOutput:
        config = self.config
        wanted = (config.image_size, config.image_size, 3)
        if images.shape[1:] != wanted:
            raise ValueError(f"images are {images.shape}; expected [B, *{wanted}]")
        unknown = [depth for depth in depths if not 1 <= depth <= config.depth]
        if unknown:
            raise ValueError(
                f"encoder depths {unknown} requested; the encoder has blocks 1 to "
                f"{config.depth}"
            )
        x = PatchEmbedding(config.width, config.patch_size, name="embedding")(
            images.astype(self.dtype)
        )
        position = self.param(
            "pos_embedding",
            nn.initializers.normal(config.width**-0.5),
            (1, config.num_patches, config.width),
        )
        tokens, features = Transformer(
            config.depth,
            config.mlp_dim,
            config.num_heads,
            self.execution,
            self.placement,
            name="Transformer",
        )(add_to_all(x, position), depths, offsets)
        if config.map_head:
            head = MAPHead(config.mlp_dim, config.num_heads, name="MAPHead_0")
            pooled = head(tokens)
        else:
            pooled = tokens.mean(axis=1)
        return EncoderOutput(tokens, pooled, jnp.stack(features) if depths else None)


class PatchEmbedding(nn.Module):
    """Non-overlapping patches times `kernel` [patch, patch, 3, D], plus `bias`."""

    width: int
    patch_size: int

    @nn.compact
    def __call__(self, images: jax.Array) -> jax.Array:
        size = self.patch_size
        kernel = self.param(
            "kernel", nn.initializers.lecun_normal(), (size, size, 3, self.width)
        )
        bias = self.param("bias", nn.initializers.zeros, (self.width,))
        x = matmul(patches(images, size), kernel.reshape(-1, self.width))
        return x + last_axis(bias, x)


def patches(images: jax.Array, size: int) -> jax.Array:
    """images[B, height, width, 3] -> [B, P, size * size * 3], row by row."""
    batch, height, width, channels = images.shape
    rows, columns = height // size, width // size
    x = images[:, : rows * size, : columns * size]
    x = x.reshape(batch, rows, size, columns, size, channels)
    x = x.transpose(0, 1, 3, 2, 4, 5)
    return x.reshape(batch, rows * columns, size * size * channels)


class TextTower(nn.Module):
    """The text tower: tokens int32[B, num_tokens] -> [B, out_dim], read off the
    last position."""

    config: TextTowerConfig
    dtype: jnp.dtype = jnp.float32
    placement: Placement = ONE_DEVICE
    execution: Execution = Execution()

    @nn.compact
    def __call__(self, tokens: jax.Array) -> jax.Array:
        config = self.config
        if tokens.shape[1] != config.num_tokens:
            raise ValueError(
                f"tokens are {tokens.shape}; expected [B, {config.num_tokens}]"
            )
        x = nn.Embed(config.vocab_size, config.width, name="Embed_0")(tokens)
        position = self.param(
            "pos_embedding",
            nn.initializers.normal(config.width**-0.5),
            (1, config.num_tokens, config.width),
        )
        x, _ = Transformer(
            config.depth,
            config.mlp_dim,
            config.num_heads,
            self.execution,
            self.placement,
            name="Encoder_0",
        )(add_to_all(x, position).astype(self.dtype))
        return Dense(config.out_dim, name="head")(x[:, -1])


class TwoTowers(nn.Module):
    """Image and text tower with SigLIP's temperature and bias.

    Returns l2-normalised float32 embeddings zimg [B, D] and ztxt [B, D], and the
    scalars exp(t) and b of the sigmoid loss: logits = zimg ztxt^T exp(t) + b.
    """

    image: SiglipConfig
    text: TextTowerConfig
    dtype: jnp.dtype = jnp.float32
    placement: Placement = ONE_DEVICE
    execution: ModelExecution = ModelExecution()

    @nn.compact
    def __call__(
        self, images: jax.Array, tokens: jax.Array
    ) -> tuple[jax.Array, jax.Array, jax.Array, jax.Array]:
        image = SiglipEncoder(
            self.image, self.dtype, self.placement, self.execution.encoder, name="img"
        )
        text = TextTower(
            self.text, self.dtype, self.placement, self.execution.text_tower, name="txt"
        )
        zimg, ztxt = image(images).pooled, text(tokens)
        # SigLIP section 3.1: t' = log 10 and b = -10 at the start.
        log_t = self.param("t", nn.initializers.constant(jnp.log(10.0)), (1,))
        bias = self.param("b", nn.initializers.constant(-10.0), (1,))
        return l2_normalize(zimg), l2_normalize(ztxt), jnp.exp(log_t), bias


def l2_normalize(z: jax.Array) -> jax.Array:
    """z[B, D] / (|z| + 1e-8), in float32."""
    z = z.astype(jnp.float32)
    return z / (jnp.linalg.norm(z, axis=-1, keepdims=True) + 1e-8)
