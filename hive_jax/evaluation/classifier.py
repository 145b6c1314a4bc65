"""Probe classifiers and their training: AdamW, warm-up, cosine (paper, table 4)."""

from collections.abc import Iterable, Iterator

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax.traverse_util import flatten_dict, unflatten_dict

from hive_jax.config import OptimizerConfig, ProbeConfig, Rule
from hive_jax.console import progress_bar
from hive_jax.data.sampler import ShuffledSampler
from hive_jax.models.layers import Dense, expand_to_rank
from hive_jax.models.transformer import Attention
from hive_jax.training.optimizer import make_optimizer


class Affine(nn.Module):
    """Scale and bias of a LayerNorm, for features [..., D] that are normalised already.

    They commute with the mean over tokens, so that pooled features serve as well.
    """

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        scale = self.param("scale", nn.initializers.ones, (x.shape[-1],))
        bias = self.param("bias", nn.initializers.zeros, (x.shape[-1],))
        return x * expand_to_rank(scale, x) + expand_to_rank(bias, x)


class LinearProbe(nn.Module):
    """Mean-pooled tokens [B, D] -> logits [B, classes].

    Attributes:
      num_classes: number of classes.
      fresh_norm: learn scale and bias of the features' norm.
    """

    num_classes: int
    fresh_norm: bool = False

    @nn.compact
    def __call__(self, pooled: jax.Array) -> jax.Array:
        if self.fresh_norm:
            pooled = Affine(name="norm")(pooled)
        return Dense(self.num_classes, name="classifier")(pooled)


class AttentiveProbe(nn.Module):
    """Attention-pooling probe: tokens [B, P, D] -> logits [B, classes].

    Attributes:
      num_classes: number of classes.
      num_heads: of the attention.
      fresh_norm: as of LinearProbe.
    """

    num_classes: int
    num_heads: int
    fresh_norm: bool = False

    @nn.compact
    def __call__(self, tokens: jax.Array) -> jax.Array:
        if self.fresh_norm:
            tokens = Affine(name="norm")(tokens)
        batch, _, width = tokens.shape
        query = self.param("query", nn.initializers.xavier_uniform(), (1, 1, width))
        query = jnp.broadcast_to(query, (batch, 1, width)).astype(tokens.dtype)
        pooled = Attention(self.num_heads, name="attention")(query, tokens)[:, 0]
        return Dense(self.num_classes, name="classifier")(pooled)


def batch_and_steps(config: ProbeConfig, count: int) -> tuple[int, int]:
    """Computes the batch size and the number of training steps.

    Args:
      config: recipe.
      count: number of training images; a smaller set is one batch.

    Returns:
      (batch size, number of steps).
    """
    batch_size = min(config.batch_size, count)
    return batch_size, max(1, round(config.epochs * count / batch_size))


def batch_indices(config: ProbeConfig, count: int, seed: int) -> Iterator[np.ndarray]:
    """Yields the image indices of each training step, in shuffled epochs.

    A batch may straddle two epochs, so all batches have one shape.

    Args:
      config: recipe.
      count: number of training images.
      seed: of the shuffling.

    Yields:
      int64[batch_size], indices below `count`.
    """
    batch_size, total = batch_and_steps(config, count)
    order = ShuffledSampler(count, seed)
    for step in range(total):
        first = step * batch_size
        yield np.array([order.index(first + row) for row in range(batch_size)])


class ClassifierTrainer:
    """Trains classifiers one after another with a training step compiled once.

    Args:
      module: the classifier.
      config: recipe.
      example: features [1, ...], from which the parameters are initialized.
      count: number of images in an epoch.
    """

    def __init__(self, module: nn.Module, config: ProbeConfig, example, count: int):
        batch_size, self._total = batch_and_steps(config, count)
        shapes = jax.eval_shape(module.init, jax.random.key(0), example)["params"]
        names = flatten_dict(shapes, sep="/")
        optimizer = make_optimizer(
            OptimizerConfig(
                peak_lr=config.peak_lr,
                warmup_steps=round(config.warmup_epochs * count / batch_size),
                # The recipe's decay is multiplied by the learning rate, as in AdamW;
                # that of `make_optimizer` is not.
                weight_decay=config.peak_lr * config.weight_decay,
                clip_norm=config.clip_norm,
            ),
            self._total,
            dict.fromkeys(names, Rule(".*", 1.0)),
        )

        def loss(flat, features, classes):
            params = {"params": unflatten_dict(flat, sep="/")}
            logits, valid = module.apply(params, features), classes >= 0
            nll = optax.softmax_cross_entropy_with_integer_labels(
                logits, classes * valid
            )
            return (nll * valid).sum() / jnp.maximum(valid.sum(), 1)

        @jax.jit
        def start(seed):
            params = module.init(jax.random.key(seed), example)["params"]
            flat = flatten_dict(params, sep="/")
            return flat, optimizer.init(flat)

        @jax.jit
        def step(flat, opt_state, features, classes):
            grads = jax.grad(loss)(flat, features, classes)
            updates, opt_state = optimizer.update(grads, opt_state, flat)
            return optax.apply_updates(flat, updates), opt_state

        self._start, self._step = start, step

    def __call__(self, batches: Iterable[tuple], seed: int) -> dict:
        """Trains a classifier.

        Args:
          batches: (features, classes int32[B]) of each step; rows of class -1 are
            masked out of the loss.
          seed: of the initialization.

        Returns:
          Nested dict of the trained parameters, as NumPy arrays.
        """
        flat, opt_state = self._start(seed)
        with progress_bar(f"probe, seed {seed}", self._total, 0) as bar:
            for features, classes in batches:
                flat, opt_state = self._step(flat, opt_state, features, classes)
                bar.update()
        return unflatten_dict(jax.device_get(flat), sep="/")


def make_predict(module: nn.Module):
    """Returns a compiled function that predicts with several classifiers at once.

    It maps (parameters stacked along axis 0, features) to classes int32[classifiers, B].
    """

    @jax.jit
    def predict(stacked, features):
        logits = jax.vmap(lambda p: module.apply({"params": p}, features))(stacked)
        return logits.argmax(-1).astype(jnp.int32)

    return predict
