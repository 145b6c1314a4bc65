"""Architectures of the towers and of the whole model, as dataclasses.

Without JAX or Flax, because a config is read and validated before a run needs them.
"""

import dataclasses

import numpy as np

from hive_jax.models.connections import resolve_connections
from hive_jax.models.fusion_kinds import Connections, FusionKind, fusion_kind

# Of a decoder's gated MLP; hive_jax/models/layers.py has the functions.
ACTIVATIONS = ("gelu", "silu")


@dataclasses.dataclass(frozen=True)
class SiglipConfig:
    """Architecture of an image tower; the defaults are the preset "tiny".

    Attributes:
      width, depth, mlp_dim, num_heads: D, L, F, N.
      patch_size: side of a patch in pixels.
      image_size: side of the square images in pixels. What patches do not cover is
        cropped at the right and the bottom, as by big_vision's strided convolution.
      map_head: attention pooling head; without it, tokens are averaged.
    """

    width: int = 64
    depth: int = 8
    mlp_dim: int = 256
    num_heads: int = 2
    patch_size: int = 8
    image_size: int = 64
    map_head: bool = True

    @property
    def num_patches(self) -> int:
        """P."""
        return (self.image_size // self.patch_size) ** 2


@dataclasses.dataclass(frozen=True)
class TextTowerConfig:
    """Architecture of a text tower.

    Attributes:
      vocab_size, width, depth, mlp_dim, num_heads: V, D, L, F, N.
      num_tokens: the fixed length of its texts.
      out_dim: width of the embedding, the image tower's width.
    """

    vocab_size: int = 512
    num_tokens: int = 32
    width: int = 64
    depth: int = 2
    mlp_dim: int = 256
    num_heads: int = 2
    out_dim: int = 64


@dataclasses.dataclass(frozen=True)
class DecoderConfig:
    """Architecture of a decoder; the default sizes are a toy's.

    Attributes:
      vocab_size, width, depth, mlp_dim: V, E, L, F.
      num_heads, num_kv_heads, head_dim: N, K, H; grouped-query attention if K < N.
      query_scale: factor on the attention logits; 0 for head_dim ** -0.5.
      attention_softcap, final_softcap: soft-caps of attention and output logits
        (Gemma 2); 0 for none.
      post_norms: RMSNorms after attention and MLP too (Gemma 2 and 3).
      qk_norm: RMSNorms on the heads of queries and keys (Gemma 3, Qwen 3).
      qkv_bias: biases of queries, keys and values (Qwen 2).
      local_layers: sliding-window layers before each global layer; 0 makes all layers
        global.
      window: tokens that a sliding-window layer attends to.
      rope_base, local_rope_base: rotary bases of global and sliding-window layers.
      rope_factor: divides the rotary frequencies of global layers: all of them (Gemma 3
        from 4B on), or with rope_original_length the low ones.
      rope_original_length: tokens of the context before its extension (Llama 3.1); 0 for
        none. See `rotary.extended_frequency`.
      activation: of the gated MLP, one of ACTIVATIONS.
      norm_offset: RMSNorms multiply by norm_offset + scale (Gemma: 1).
      norm_eps: epsilon of the RMSNorms.
      embed_scale: multiply embeddings by sqrt(width).
      tied_head: the token embeddings are the output head too.
    """

    vocab_size: int = 512
    width: int = 64
    depth: int = 4
    mlp_dim: int = 256
    num_heads: int = 4
    num_kv_heads: int = 1
    head_dim: int = 16
    query_scale: float = 0.0
    attention_softcap: float = 0.0
    final_softcap: float = 0.0
    post_norms: bool = False
    qk_norm: bool = False
    qkv_bias: bool = False
    local_layers: int = 0
    window: int = 4096
    rope_base: float = 10_000.0
    local_rope_base: float = 10_000.0
    rope_factor: float = 1.0
    rope_original_length: int = 0
    activation: str = "gelu"
    norm_offset: float = 1.0
    norm_eps: float = 1e-6
    embed_scale: bool = True
    tied_head: bool = True

    def is_sliding(self) -> np.ndarray:
        """Returns bool[depth]: which layers have a sliding window."""
        # Counted from 1: every (local_layers + 1)-th layer is global.
        number = np.arange(1, self.depth + 1)
        return (number % (self.local_layers + 1) != 0) & (self.local_layers > 0)


@dataclasses.dataclass(frozen=True)
class HiveConfig:
    """Architecture of the whole model.

    Attributes:
      encoder: architecture of the image tower; None for that of the initial weights,
        which a run resolves before it builds a `Hive`.
      decoder: architecture of the LLM; None likewise.
      fusion: a key of FUSIONS. "hive": each connected decoder layer attends to its own
        encoder depth; "cascaded": all of them to the last one; "joint": image and text
        in one softmax of the connected layers (the authors' code); "self_attention":
        image tokens in the text (LLaVA); "none": the decoder alone.
      connections: pairs (encoder depth, decoder layer), counted from 1, for example
        ((2, 1), (4, 2)); empty for evenly spaced pairs.
      num_connections: number of evenly spaced pairs; 0 for 25 % of the encoder's layers.
        Ignored if `connections` are given.
      feature_depth: the deepest encoder block that the decoder reads: the last of the
        default connections, and the one of "cascaded" and "self_attention". 0 or -1 for
        the last block, -2 for the one before it as LLaVA reads, or a number from 1.
      projector: "ln_mlp" (LayerNorm, Dense, GELU, Dense), "mlp" or "linear"; empty for
        the fusion's own: "mlp" with "self_attention", else "ln_mlp".
      image_kv: of "joint": the image's keys and values are made by the connected
        layer's projections ("shared"), or by the fusion's, which start from them ("own").
      image_rope: of "joint": patches have rotary positions by row and column; else one
        after the other, as text.
    """

    encoder: SiglipConfig | None = None
    decoder: DecoderConfig | None = None
    fusion: str = "hive"
    connections: Connections = ()
    num_connections: int = 0
    feature_depth: int = 0
    projector: str = ""
    image_kv: str = "shared"
    image_rope: bool = True

    @property
    def fusion_kind(self) -> FusionKind:
        """Returns the properties of `fusion`.

        Raises:
          ValueError: unknown fusion.
        """
        return fusion_kind(self.fusion)

    @property
    def projector_kind(self) -> str:
        """Returns `projector`, or the fusion's own.

        Raises:
          ValueError: unknown fusion.
        """
        return self.projector or self.fusion_kind.projectors[0]

    @property
    def image_size(self) -> int:
        """Returns the side of the images in pixels; 0 without an encoder."""
        return self.encoder.image_size if self.encoder else 0

    def with_defaults(self) -> "HiveConfig":
        """Returns the config with connections and projector in place of their defaults.

        Raises:
          ValueError: see `resolved_connections`.
        """
        connections = self.resolved_connections()
        return dataclasses.replace(
            self,
            connections=connections,
            num_connections=0,
            feature_depth=max((depth for depth, _ in connections), default=0),
            projector=self.projector_kind,
        )

    def resolved_connections(self) -> Connections:
        """Returns the pairs in use; see `connections.resolve_connections`."""
        if not self.fusion_kind.uses_image:
            return ()  # there may be no encoder
        return resolve_connections(
            self.fusion,
            self.connections,
            self.encoder.depth,
            self.decoder.depth,
            self.num_connections,
            self.feature_depth,
        )
