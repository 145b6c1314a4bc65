"""Floating-point operations of a train step, counted from the config.

Counts matrix products alone, two operations a multiply-add, with the full attention
square and no recomputation: model FLOPs, whatever is compiled. A product costs three
times its forward pass if both its gradients are computed, twice if one is, and once if
neither its weights nor anything upstream trains.
"""

import dataclasses
from collections.abc import Mapping

from hive_jax.config import Rule, RunConfig
from hive_jax.models.config import DecoderConfig
from hive_jax.models.fusion import fusion_class


@dataclasses.dataclass
class Flops:
    """FLOPs of one example, by component of the model.

    Attributes:
      encoder: the encoder up to the deepest connected layer.
      projector: features to the decoder's width.
      image_keys: keys and values of the image.
      text: the decoder's layers.
      cross_attention: queries, attention and outputs of cross-attention blocks, or the
        attention to the patches in a joint softmax.
      logits: the product with the output head.
      attention: attention's own two products in the decoder, where alone the number of
        tokens counts twice; included in `text` and `cross_attention`.
    """

    encoder: float = 0.0
    projector: float = 0.0
    image_keys: float = 0.0
    text: float = 0.0
    cross_attention: float = 0.0
    logits: float = 0.0
    attention: float = 0.0

    @property
    def total(self) -> float:
        # Without `attention`, which two other components include.
        return sum(dataclasses.astuple(self)) - self.attention

    @property
    def without_encoder(self) -> float:
        return self.total - self.encoder


def example_flops(
    config: RunConfig, assigned: Mapping[str, Rule], num_tokens: int | None = None
) -> Flops:
    """Returns the FLOPs of one example in a train step of the caption objective.

    All num_tokens - 1 targets count as supervised.

    Args:
      config: complete config: both architectures are known.
      assigned: rule of each parameter, `Program.assigned`.
      num_tokens: padded length of the texts; by default config.data.num_tokens.
    """
    return _Count(config, assigned, num_tokens or config.data.num_tokens).flops


def step_flops(
    config: RunConfig, assigned: Mapping[str, Rule], num_tokens: int | None = None
) -> float | None:
    """Returns the FLOPs of an optimizer step over all devices; see `example_flops`.

    None for the contrastive objective, whose two towers are not counted.

    Args:
      config: complete config: both architectures are known.
      assigned: rule of each parameter, `Program.assigned`.
      num_tokens: padded length of the texts; by default config.data.num_tokens.
    """
    if config.objective != "caption":
        return None
    return config.batch_size * example_flops(config, assigned, num_tokens).total


class _Count:
    """Counts FLOPs layer by layer, in the order of the forward pass.

    `upstream` is whether a parameter before the current layer trains, so that
    gradients flow back through it. The fusions call `product` and `attention`, and read
    `model`.
    """

    def __init__(
        self, config: RunConfig, assigned: Mapping[str, Rule], num_tokens: int
    ):
        self.model = config.model
        # Layers that `rule.layers` leaves out count as trained: their gradients are
        # computed and then zeroed.
        self._trained = {n for n, r in assigned.items() if r.multiplier is not None}
        self.flops = Flops()
        model, tokens = self.model, num_tokens
        connections = model.resolved_connections()
        features = self._encoder(connections) if connections else False
        # Embeddings are upstream of every layer.
        fusion, upstream = fusion_class(model.fusion), self.trains("llm/embedder")
        sequence = tokens
        if model.fusion_kind.uses_image:
            sequence += fusion.image_tokens_in_text(model.encoder.num_patches)
        connected = {layer for _, layer in connections}
        for layer in range(1, model.decoder.depth + 1):
            # The fusion acts before its layer.
            if layer in connected:
                towers = model.encoder, model.decoder
                upstream = fusion.count_flops(self, *towers, tokens, features, upstream)
            self._layer(sequence, upstream)
            upstream = upstream or self.trains("llm/layers")
        # The last token has no next token to predict.
        self._logits(tokens - 1, upstream)

    def trains(self, prefix: str) -> bool:
        """Returns whether any parameter whose name starts with `prefix` trains."""
        return any(name.startswith(prefix) for name in self._trained)

    def product(
        self,
        component: str,
        rows: int,
        inner: int,
        columns: int,
        trains: bool,
        upstream: bool,
    ) -> None:
        """Adds [rows, inner] x [inner, columns] and its gradients.

        Args:
          component: field of Flops.
          rows, inner, columns: sizes of the product.
          trains: the weights need a gradient.
          upstream: the input needs a gradient.
        """
        # Two gradients of the same size: of the weights, and of the input.
        forward = 2.0 * rows * inner * columns
        self._add(component, forward * (1 + trains + upstream))

    def attention(
        self, component: str, queries: int, keys: int, width: int, trains: bool
    ) -> None:
        """Adds both products of an attention and their gradients.

        Args:
          component: field of Flops.
          queries, keys: numbers of positions.
          width: heads x head dimension.
          trains: the operands need gradients.
        """
        # Q K^T and weights V; each has two operands with a gradient.
        flops = 2 * 2.0 * queries * keys * width * (3 if trains else 1)
        self._add(component, flops)
        if component != "encoder":
            self._add("attention", flops)

    def project(self, features: bool) -> bool:
        """Adds a projector; returns whether its output needs a gradient.

        Args:
          features: whether the encoder's features need a gradient.
        """
        patches, width = self.model.encoder.num_patches, self.model.decoder.width
        first = self.trains("fusion/projector/linear_1")
        second = self.trains("fusion/projector/linear_2")
        source = self.model.encoder.width
        self.product("projector", patches, source, width, first, features)
        before = features or first or self.trains("fusion/projector/norm")
        if self.model.projector != "linear":
            self.product("projector", patches, width, width, second, before)
        return features or self.trains("fusion/projector")

    def _add(self, component: str, flops: float) -> None:
        setattr(self.flops, component, getattr(self.flops, component) + flops)

    def _encoder(self, connections) -> bool:
        """Adds the encoder up to the deepest connection; returns whether its features
        need a gradient."""
        c = self.model.encoder
        patches, width = c.num_patches, c.width
        embeds = self.trains("img/embedding") or self.trains("img/pos_embedding")
        block = self.trains("img/Transformer/encoderblock")
        # The patch embedding. Its input, the pixels, never needs a gradient.
        pixels, kernel = 3 * c.patch_size**2, self.trains("img/embedding/kernel")
        self.product("encoder", patches, pixels, width, kernel, False)
        # Blocks after the deepest connection have no consumer, and XLA removes them.
        for number in range(max(depth for depth, _ in connections)):
            upstream = embeds or (block and number > 0)
            # All matrices of a block as one product: query, key, value, out; two of
            # the MLP.
            weights = 4 * width * width + 2 * width * c.mlp_dim
            self.product("encoder", patches, 1, weights, block, upstream)
            # If the block trains, so do the projections that make the operands.
            operands = block or upstream
            self.attention("encoder", patches, patches, width, operands)
        return embeds or block

    def _layer(self, tokens: int, upstream: bool) -> None:
        """Adds one decoder layer."""
        c = self.model.decoder
        attention, mlp = self.trains("llm/layers/attn"), self.trains("llm/layers/mlp")
        weights = _attention_weights(c)
        self.product("text", tokens, 1, weights, attention, upstream)
        heads, upstream = c.num_heads * c.head_dim, attention or upstream
        self.attention("text", tokens, tokens, heads, upstream)
        # The MLP is gated, so it has three matrices.
        self.product("text", tokens, 1, 3 * c.width * c.mlp_dim, mlp, upstream)

    def _logits(self, positions: int, upstream: bool) -> None:
        c = self.model.decoder
        table = self.trains("llm/embedder" if c.tied_head else "llm/lm_head")
        before = upstream or self.trains("llm/final_norm")
        self.product("logits", positions, c.width, c.vocab_size, table, before)


def _attention_weights(c: DecoderConfig) -> int:
    """Returns the number of elements of the attention matrices of a decoder layer."""
    # Query and output have all heads, key and value those of the KV heads.
    return c.width * c.head_dim * (2 * c.num_heads + 2 * c.num_kv_heads)
