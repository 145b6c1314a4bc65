"""SigLIP: the image tower, which is the vision encoder that HIVE trains, and the text tower.

Parameters carry the names of big_vision's models/vit.py, text_transformer.py and
two_towers.py, with the layers of a tower stacked on a leading axis.
"""

import flax.linen as nn
import flax.struct
import jax
import jax.numpy as jnp

from hive_jax.models.config import SiglipConfig, TextTowerConfig
from hive_jax.models.execution import Execution, ModelExecution
from hive_jax.models.layers import (
    Dense,
    add_to_batch,
    expand_to_rank,
    matmul,
)
from hive_jax.models.placement import ONE_DEVICE, Placement
from hive_jax.models.transformer import MAPHead, Transformer


@flax.struct.dataclass
class EncoderOutput:
    """Outputs of the image tower.

    Attributes:
      tokens: [B, P, D] after the final norm.
      pooled: [B, D] of the MAP head, or the mean of the tokens without one.
      features: [M, B, P, D], output of each requested block before the final norm; None
        if no depth was requested.
    """

    tokens: jax.Array
    pooled: jax.Array
    features: jax.Array | None


class SiglipEncoder(nn.Module):
    """The image tower: the vision encoder that HIVE trains.

    Attributes:
      config: architecture.
      dtype: of the computation.
      placement: sharding constraints.
      execution: scan, remat and flash attention.
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
        """Encodes images.

        Args:
          images: float[B, image_size, image_size, 3] in [-1, 1].
          depths: blocks whose outputs to return as `features`, counted from 1.
          offsets: [L, B, P, D], added to the outputs of the blocks; zeros, to
            differentiate a loss with respect to the features.

        Raises:
          ValueError: another image shape, or a depth that the tower does not have.
        """
        config = self.config
        expected = (config.image_size, config.image_size, 3)
        if images.shape[1:] != expected:
            raise ValueError(f"images are {images.shape}; expected [B, *{expected}]")
        unknown = [depth for depth in depths if not 1 <= depth <= config.depth]
        if unknown:
            raise ValueError(
                f"encoder depths {unknown} requested; the encoder has blocks 1 to "
                f"{config.depth}"
            )
        # [B, P, D]
        x = PatchEmbedding(config.width, config.patch_size, name="embedding")(
            images.astype(self.dtype)
        )
        # Initialized like big_vision's posemb "learn".
        position = self.param(
            "pos_embedding",
            nn.initializers.normal(config.width**-0.5),
            (1, config.num_patches, config.width),
        )
        # Positions are added to all examples alike; `add_to_batch` has the fast gradient.
        tokens, features = Transformer(
            config.depth,
            config.mlp_dim,
            config.num_heads,
            self.execution,
            self.placement,
            name="Transformer",
        )(add_to_batch(x, position), depths, offsets)
        if config.map_head:
            head = MAPHead(config.mlp_dim, config.num_heads, name="MAPHead_0")
            pooled = head(tokens)
        else:
            pooled = tokens.mean(axis=1)  # big_vision's pool_type "gap"
        return EncoderOutput(tokens, pooled, jnp.stack(features) if depths else None)


class PatchEmbedding(nn.Module):
    """Projection of patches, images[B, height, width, 3] -> [B, P, D].

    A convolution with stride patch_size in big_vision, whose `kernel` [patch, patch, 3,
    D] has the same layout; patches do not overlap, so that it is one matrix product.
    """

    width: int
    patch_size: int

    @nn.compact
    def __call__(self, images: jax.Array) -> jax.Array:
        # lecun_normal is flax's default for convolutions; fan-in is size * size * 3.
        size = self.patch_size
        kernel = self.param(
            "kernel", nn.initializers.lecun_normal(), (size, size, 3, self.width)
        )
        bias = self.param("bias", nn.initializers.zeros, (self.width,))
        # Flat kernel and flat patches are both ordered by row, column, channel.
        x = matmul(patches(images, size), kernel.reshape(-1, self.width))
        return x + expand_to_rank(bias, x)


def patches(images: jax.Array, size: int) -> jax.Array:
    """Cuts images into flat patches, row by row.

    Args:
      images: [B, height, width, 3].
      size: side of a patch in pixels.

    Returns:
      [B, P, size * size * 3]; pixels that no whole patch covers are cropped.
    """
    batch, height, width, channels = images.shape
    rows, columns = height // size, width // size
    x = images[:, : rows * size, : columns * size]
    x = x.reshape(batch, rows, size, columns, size, channels)
    # [B, rows, size, columns, size, 3] -> [B, rows, columns, size, size, 3].
    x = x.transpose(0, 1, 3, 2, 4, 5)
    return x.reshape(batch, rows * columns, size * size * channels)


class TextTower(nn.Module):
    """The text tower: tokens int32[B, num_tokens] -> embeddings [B, out_dim].

    Attributes: those of SiglipEncoder.
    """

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
        # Tokens and positions [B, T, D] are added in float32, and then cast.
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
        )(add_to_batch(x, position).astype(self.dtype))
        # SigLIP pools the last token (big_vision's pool_type "last"), padding included.
        return Dense(config.out_dim, name="head")(x[:, -1])


class TwoTowers(nn.Module):
    """Image and text tower with SigLIP's temperature and bias.

    The names zimg, ztxt, t and b are big_vision's.
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
        """Embeds images and texts, for logits zimg ztxt^T exp(t) + b.

        Args:
          images: float[B, image_size, image_size, 3] in [-1, 1].
          tokens: int32[B, num_tokens].

        Returns:
          L2-normalized embeddings zimg and ztxt float32[B, D], exp(t) [1] and b [1].
        """
        # The names make the branches `img` and `txt` of the parameter tree.
        image = SiglipEncoder(
            self.image, self.dtype, self.placement, self.execution.encoder, name="img"
        )
        text = TextTower(
            self.text, self.dtype, self.placement, self.execution.text_tower, name="txt"
        )
        zimg, ztxt = image(images).pooled, text(tokens)
        # SigLIP (arXiv 2303.15343) initializes t' = log 10 and b = -10: almost all pairs of
        # a batch are negative.
        log_t = self.param("t", nn.initializers.constant(jnp.log(10.0)), (1,))
        bias = self.param("b", nn.initializers.constant(-10.0), (1,))
        return l2_normalize(zimg), l2_normalize(ztxt), jnp.exp(log_t), bias


def l2_normalize(z: jax.Array) -> jax.Array:
    """Normalizes z[B, D] to unit length in float32; epsilon 1e-8 as in big_vision."""
    z = z.astype(jnp.float32)
    return z / (jnp.linalg.norm(z, axis=-1, keepdims=True) + 1e-8)
