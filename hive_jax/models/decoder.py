"""The decoder (LLM): one module for all families, which differ in their configuration.

Parameters carry the names of big_vision's models/ppp/gemma.py, with the layers
stacked on a leading axis: `embedder/input_embedding` [V, E],
`layers/attn/{q_einsum,kv_einsum,attn_vec_einsum}/w`, `layers/mlp/...`, `final_norm`.
Biases are `layers/attn/{q_bias,kv_bias}`, an untied head `lm_head/output_embedding`
[V, E]; big_vision has neither.
"""

from collections.abc import Callable, Sequence

import flax.linen as nn
import jax
import jax.numpy as jnp

from hive_jax.models import layer_stack
from hive_jax.models.config import DecoderConfig
from hive_jax.models.decoder_block import DecoderBlock, decoder_norm
from hive_jax.models.execution import Execution
from hive_jax.models.layers import unembed
from hive_jax.models.placement import ONE_DEVICE, Placement, apply_block

_HEAD = "output_embedding"


class Embedder(nn.Module):
    """The token embedding table, which is the output head too unless that is untied."""

    config: DecoderConfig

    def setup(self):
        self.input_embedding = self.param(
            "input_embedding", init_table, self.config.vocab_size, self.config.width
        )


def init_table(rng: jax.Array, vocab_size: int, width: int) -> jax.Array:
    """Initializes a table [V, E] of embeddings, or of an output head."""
    return nn.initializers.normal(width**-0.5)(rng, (vocab_size, width))


class Decoder(nn.Module):
    """A decoder: tokens int32[B, T] -> logits float32[B, T, V].

    `Hive` calls `embed`, `segments`, `final_norm` and `logits` one by one, and inserts
    the image between segments.

    Attributes:
      config: architecture.
      dtype: of the computation; statistics of norms, attention weights and logits are
        float32 in any case.
      placement: sharding constraints.
      execution: scan, remat and flash attention.
    """

    config: DecoderConfig
    dtype: jnp.dtype = jnp.float32
    placement: Placement = ONE_DEVICE
    execution: Execution = Execution()

    def setup(self):
        c = self.config
        self.embedder = Embedder(c)
        if not c.tied_head:
            # No module: `Hive.__call__` leaves the head to the loss, and a module that
            # is not called initializes no parameters.
            self.lm_head = self.param("lm_head", self._init_head)
        # A block's parameters do not depend on batch or length: one token is enough.
        example = (jnp.zeros((1, 1, c.width)), jnp.zeros((), bool))
        block = DecoderBlock(c, parent=None)
        init = layer_stack.stacked_init(block, c.depth, *example)
        self.layers = layer_stack.stacked_params(self, "layers", init)
        self.final_norm = decoder_norm(c)

    def __call__(self, tokens: jax.Array) -> jax.Array:
        (run_layers,) = self.segments((self.config.depth,))
        x, _ = run_layers(self.embed(tokens))
        return self.logits(self.final_norm(x))

    def embed(self, tokens: jax.Array) -> jax.Array:
        """Embeds tokens int32[B, T] -> [B, T, E]."""
        # As a tree: how `gather_params` gathers a leaf depends on its name.
        table = {"input_embedding": self.embedder.input_embedding}
        table = self.placement.gather_params(table)["input_embedding"]
        x = jnp.take(table, tokens, axis=0).astype(self.dtype)
        if not self.config.embed_scale:
            return x
        # Rounded to the compute dtype, as in big_vision and transformers: in
        # bfloat16, sqrt(1152) = 33.94 is 34.
        return x * jnp.asarray(self.config.width**0.5, self.dtype)

    def layer_params(self, numbers: Sequence[int]) -> list[dict]:
        """Returns the parameters of the layers with these numbers, from 1."""
        layers = layer_stack.unstack(self.layers)
        return [layers[number - 1] for number in numbers]

    def segments(self, ends: Sequence[int]) -> list[Callable]:
        """Splits the layers into segments between which the caller may change x.

        Args:
          ends: last layer of each segment, counted from 1, increasing up to the depth.

        Returns:
          A function for each segment, (x[B, T, E], position=None, caches=(),
          extend=None) -> (x, caches): with a KV cache for each of its layers, or
          without. The arguments are those of `DecoderBlock`.
        """
        c, placement, execution = self.config, self.placement, self.execution
        block = DecoderBlock(c, execution.flash, parent=None)

        def apply(params, is_sliding, x, position, cache, extend):
            # `extend` is a function of a fusion, by which no trace can be looked up.
            apply = apply_block if extend is None else apply_block.__wrapped__
            inputs = (x, is_sliding, position, cache, extend)
            return apply(block, placement, params, *inputs)

        def segment(params, is_sliding):
            def run(x, position=None, caches=(), extend=None):
                if caches:
                    # Unrolled: each layer's cache is an array of its own.
                    layers, updated = layer_stack.unstack(params), []
                    for *layer, cache in zip(layers, is_sliding, caches, strict=True):
                        x, cache = apply(*layer, x, position, cache, extend)
                        updated.append(cache)
                    return x, tuple(updated)

                def apply_layer(layer, x):
                    x, _ = apply(*layer, x, position, None, extend)
                    return placement.shard_activations(x)

                x = placement.shard_activations(x)
                scan, remat = execution.scan, execution.remat
                x = layer_stack.run_layers(
                    apply_layer, (params, is_sliding), x, scan=scan, remat=remat
                )
                return x, ()

            return run

        is_sliding = layer_stack.split_layers(jnp.asarray(c.is_sliding()), ends)
        return [*map(segment, layer_stack.split_layers(self.layers, ends), is_sliding)]

    def logits(self, hidden: jax.Array) -> jax.Array:
        """Computes logits float32[B, T, V] from [B, T, E] after `final_norm`."""
        tied = self.config.tied_head
        table = self.embedder.input_embedding if tied else self.lm_head[_HEAD]
        return unembed(hidden, table, self.config.final_softcap)

    def _init_head(self, rng):
        return {_HEAD: init_table(rng, self.config.vocab_size, self.config.width)}


def head(config: DecoderConfig, params: dict) -> tuple[jax.Array, float]:
    """Returns the output head, as `unembed` takes it.

    For losses, which apply it to supervised tokens alone.

    Args:
      config: architecture.
      params: parameters of the decoder.

    Returns:
      The table [V, E] and the soft-cap of the logits, 0 for none.
    """
    tied = config.tied_head
    table = params["embedder"]["input_embedding"] if tied else params["lm_head"][_HEAD]
    return table, config.final_softcap


def unstack_layers(params: dict) -> dict:
    """Converts parameters for decoding: each layer in arrays of its own.

    With stacked layers, every decode step would copy all weights out of the stack, which
    makes decoding on a CPU about half as fast.
    """

    def unstack_gates(layer: dict) -> dict:
        mlp = layer["mlp"]
        gates = layer_stack.to_unstacked_layers(mlp["gating_einsum"])
        return layer | {"mlp": mlp | {"gating_einsum": gates}}

    layers = map(unstack_gates, layer_stack.unstack(params["layers"]))
    return params | {"layers": layer_stack.UnstackedLayers(tuple(layers))}
