"""Floating-point operations of a train step, counted from the config.

Matrix products alone, a multiplication and an addition each, with the attention's full
square and no recomputation: what the mathematics needs, whatever is compiled. A product
costs three times its forward pass where both its gradients are wanted, twice where one
is, once where nothing before it and nothing in it trains.
"""

import dataclasses
from collections.abc import Mapping

from hive_jax.config import Rule, RunConfig
from hive_jax.models.decoder import DecoderConfig, head_name


@dataclasses.dataclass
class Flops:
    """Of one example, by part of the model."""

    encoder: float = 0.0
    projector: float = 0.0
    image_keys: float = 0.0
    text: float = 0.0
    cross_attention: float = 0.0
    logits: float = 0.0

    @property
    def total(self) -> float:
        return sum(dataclasses.astuple(self))

    @property
    def without_encoder(self) -> float:
        return self.total - self.encoder


def example_flops(
    config: RunConfig, assigned: Mapping[str, Rule], num_tokens: int | None = None
) -> Flops:
    """FLOPs of one example of a captioning run in a train step.

    Args:
      config: with both towers known; all num_tokens - 1 targets count as supervised.
      assigned: the rule of each parameter (`Program.assigned`).
      num_tokens: length that texts are padded to; default: config.data.num_tokens.
    """
    return _Count(config, assigned, num_tokens or config.data.num_tokens).flops


def step_flops(
    config: RunConfig, assigned: Mapping[str, Rule], num_tokens: int | None = None
) -> float | None:
    """FLOPs of a whole optimizer step, over all devices; see `example_flops`.

    None for the contrastive objective, whose towers are not counted.
    """
    if config.objective != "caption":
        return None
    return config.batch_size * example_flops(config, assigned, num_tokens).total


class _Count:
    """Walks through the model in the order of its forward pass; `upstream` says
    whether anything before the present point trains, so that gradients pass there."""

    def __init__(
        self, config: RunConfig, assigned: Mapping[str, Rule], num_tokens: int
    ):
        self._config = config.model
        self._trained = {n for n, r in assigned.items() if r.multiplier is not None}
        self.flops = Flops()
        model, tokens = config.model, num_tokens
        connections = model.resolved_connections()
        features = self._encoder(connections) if connections else False
        fusion, upstream = model.fusion_class, self.trains("llm/embedder")
        sequence = tokens
        if fusion.uses_image:
            sequence += fusion.image_tokens_in_text(model.encoder.num_patches)
        connected = {layer for _, layer in connections}
        for layer in range(1, model.decoder.depth + 1):
            if layer in connected:
                towers = model.encoder, model.decoder
                upstream = fusion.count_flops(self, *towers, tokens, features, upstream)
            self._layer(sequence, upstream)
            upstream = upstream or self.trains("llm/layers")
        self._logits(tokens - 1, upstream)

    def trains(self, prefix: str) -> bool:
        """Whether a parameter trains whose name starts with `prefix`."""
        return any(name.startswith(prefix) for name in self._trained)

    def product(
        self, part: str, rows: int, inner: int, columns: int, trains: bool, upstream
    ) -> None:
        """Adds [rows, inner] x [inner, columns] to a field of Flops, with a product for
        the gradient of the weights if they train, and of the input if it is wanted."""
        forward = 2.0 * rows * inner * columns
        self._add(part, forward * (1 + trains + upstream))

    def attention(
        self, part: str, queries: int, keys: int, width: int, trains: bool
    ) -> None:
        """Adds both products of an attention; `width` = heads x head dimension."""
        self._add(part, 2 * 2.0 * queries * keys * width * (3 if trains else 1))

    def project(self, features: bool) -> bool:
        """Adds a projector; whether the projected features have gradients."""
        patches, width = self._config.encoder.num_patches, self._config.decoder.width
        first = self.trains("fusion/projector/linear_1")
        second = self.trains("fusion/projector/linear_2")
        source = self._config.encoder.width
        self.product("projector", patches, source, width, first, features)
        before = features or first or self.trains("fusion/projector/norm")
        self.product("projector", patches, width, width, second, before)
        return features or self.trains("fusion/projector")

    def _add(self, part: str, flops: float) -> None:
        setattr(self.flops, part, getattr(self.flops, part) + flops)

    def _encoder(self, connections) -> bool:
        """Up to the deepest connected depth; whether its features train."""
        c = self._config.encoder
        patches, width = c.num_patches, c.width
        embeds = self.trains("img/embedding") or self.trains("img/pos_embedding")
        block = self.trains("img/Transformer/encoderblock")
        pixels, kernel = 3 * c.patch_size**2, self.trains("img/embedding/kernel")
        self.product("encoder", patches, pixels, width, kernel, False)
        for number in range(max(depth for depth, _ in connections)):
            upstream = embeds or (block and number > 0)
            weights = 4 * width * width + 2 * width * c.mlp_dim
            self.product("encoder", patches, 1, weights, block, upstream)
            # The attention's operands have gradients where the block itself trains.
            operands = block or upstream
            self.attention("encoder", patches, patches, width, operands)
        return embeds or block

    def _layer(self, tokens: int, upstream: bool) -> None:
        c = self._config.decoder
        trains = self.trains("llm/layers")
        self.product("text", tokens, 1, _layer_weights(c), trains, upstream)
        heads = c.num_heads * c.head_dim
        self.attention("text", tokens, tokens, heads, trains or upstream)

    def _logits(self, positions: int, upstream: bool) -> None:
        c = self._config.decoder
        table = self.trains(f"llm/{head_name(c)}")
        before = upstream or self.trains("llm/final_norm")
        self.product("logits", positions, c.width, c.vocab_size, table, before)


def _layer_weights(c: DecoderConfig) -> int:
    """Elements of a decoder layer's matrices."""
    attention = c.width * c.head_dim * (2 * c.num_heads + 2 * c.num_kv_heads)
    return attention + 3 * c.width * c.mlp_dim
