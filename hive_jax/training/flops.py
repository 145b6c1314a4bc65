"""Floating-point operations of a train step, counted from the config.

Matrix products alone, a multiplication and an addition each, with the attention's full
square and no recomputation: what the mathematics needs, whatever is compiled. A product
costs three times its forward pass where both its gradients are wanted, twice where one
is, once where nothing before it and nothing in it trains.
"""

import dataclasses
from collections.abc import Mapping

from hive_jax.config import Rule, RunConfig
from hive_jax.models.gemma import GemmaConfig


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
        self._tokens = num_tokens
        self.flops = Flops()
        connections = config.model.resolved_connections()
        features = self._encoder(connections) if connections else False
        if config.model.fusion == "self_attention":
            self._self_attention(features)
        else:
            self._cross_attention(connections, features)

    def _trains(self, prefix: str) -> bool:
        return any(name.startswith(prefix) for name in self._trained)

    def _encoder(self, connections) -> bool:
        """Up to the deepest depth that is read; whether its features train."""
        c = self._config.encoder
        patches, width = c.num_patches, c.width
        embeds = self._trains("img/embedding") or self._trains("img/pos_embedding")
        block = self._trains("img/Transformer/encoderblock")
        pixels = 3 * c.patch_size**2
        self.flops.encoder += _product(
            patches, pixels, width, self._trains("img/embedding/kernel"), False
        )
        for number in range(max(depth for depth, _ in connections)):
            upstream = embeds or (block and number > 0)
            weights = 4 * width * width + 2 * width * c.mlp_dim
            self.flops.encoder += _product(patches, 1, weights, block, upstream)
            # The attention's operands have gradients where the block itself trains.
            self.flops.encoder += _attention(patches, patches, width, block or upstream)
        return embeds or block

    def _project(self, features: bool) -> None:
        """One depth to the decoder's width."""
        patches, width = self._config.encoder.num_patches, self._config.decoder.width
        first = self._trains("fusion/projector/linear_1")
        second = self._trains("fusion/projector/linear_2")
        source = self._config.encoder.width
        self.flops.projector += _product(patches, source, width, first, features)
        before = features or first or self._trains("fusion/projector/norm")
        self.flops.projector += _product(patches, width, width, second, before)

    def _cross_attention(self, connections, features: bool) -> None:
        c, tokens = self._config.decoder, self._tokens
        patches = self._config.encoder.num_patches
        fused = self._trains("fusion/cross_attention")
        projected = features or self._trains("fusion/projector")
        heads = c.num_heads * c.head_dim
        upstream = self._trains("llm/embedder")
        read_before = {layer for _, layer in connections}
        for layer in range(1, c.depth + 1):
            if layer in read_before:
                self._project(features)
                keys = 2 * c.num_kv_heads * c.head_dim
                self.flops.image_keys += _product(
                    patches, c.width, keys, fused, projected
                )
                self.flops.cross_attention += (
                    _product(tokens, c.width, heads, fused, upstream)
                    + _attention(tokens, patches, heads, fused or projected or upstream)
                    + _product(tokens, heads, c.width, fused, True)
                )
                upstream = upstream or fused or projected
            self._layer(tokens, upstream)
            upstream = upstream or self._trains("llm/layers")
        self._logits(upstream)

    def _self_attention(self, features: bool) -> None:
        self._project(features)
        upstream = features or self._trains("fusion") or self._trains("llm/embedder")
        tokens = self._tokens + self._config.encoder.num_patches
        for _ in range(self._config.decoder.depth):
            self._layer(tokens, upstream)
            upstream = upstream or self._trains("llm/layers")
        self._logits(upstream)

    def _layer(self, tokens: int, upstream: bool) -> None:
        c = self._config.decoder
        trains = self._trains("llm/layers")
        self.flops.text += _product(tokens, 1, _layer_weights(c), trains, upstream)
        heads = c.num_heads * c.head_dim
        self.flops.text += _attention(tokens, tokens, heads, trains or upstream)

    def _logits(self, upstream: bool) -> None:
        c = self._config.decoder
        table = self._trains("llm/embedder")
        before = upstream or self._trains("llm/final_norm")
        positions = self._tokens - 1
        self.flops.logits += _product(positions, c.width, c.vocab_size, table, before)


def _product(rows: int, width: int, columns: int, trains: bool, upstream: bool):
    """[rows, width] x [width, columns], with the gradients that are wanted."""
    return 2.0 * rows * width * columns * (1 + trains + upstream)


def _attention(queries: int, keys: int, width: int, trains: bool) -> float:
    """Both products of an attention with `width` = heads x head dimension."""
    return 2 * 2.0 * queries * keys * width * (3 if trains else 1)


def _layer_weights(c: GemmaConfig) -> int:
    """Elements of a decoder layer's matrices."""
    attention = c.width * c.head_dim * (2 * c.num_heads + 2 * c.num_kv_heads)
    return attention + 3 * c.width * c.mlp_dim
