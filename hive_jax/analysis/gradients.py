"""Gradients of the loss with respect to the features of every encoder layer.

As in the paper's figures 4 to 11. Gradients are taken with respect to zero offsets that
are added to the features.
"""

import functools
from collections.abc import Mapping

import jax
import jax.numpy as jnp
import numpy as np

from hive_jax.config import RunConfig
from hive_jax.data.batch import Batch
from hive_jax.errors import ConfigError
from hive_jax.models.decoder import head
from hive_jax.models.hive import Hive
from hive_jax.training.losses import next_token_nll
from hive_jax.training.objectives import build_model, normalize_images


def make_feature_gradients(model: Hive):
    """Returns a function (params, batch) -> d loss / d F_l, float32[L, B, P, D], l = 1..L.

    The loss is averaged over the supervised tokens of each caption and summed over
    captions, so that an image's gradient does not depend on the rest of the batch.
    """
    config = model.config

    def loss(offsets, params, batch: Batch):
        images = normalize_images(batch.image)
        hidden = model.apply(
            {"params": params}, images, batch.tokens, batch.image_mask, offsets
        )
        table, softcap = head(config.decoder, params["llm"])
        # The loss of each token, which `supervised_nll` of training does not return.
        nll = next_token_nll(hidden, table, softcap, batch.tokens)
        target = batch.target[:, 1:]
        # A caption without a supervised token has loss 0, not 0 / 0.
        count = jnp.maximum(target.sum(axis=1, keepdims=True), 1)
        return (nll * target / count).sum()

    def gradients(params, batch: Batch):
        encoder = config.encoder
        shape = (encoder.depth, len(batch.tokens), encoder.num_patches, encoder.width)
        # At offsets of zero, the gradient with respect to an offset is that with
        # respect to the features that it is added to.
        return jax.grad(loss)(jnp.zeros(shape), params, batch)

    return gradients


def feature_gradients(config: RunConfig, params: dict, batch: Batch) -> np.ndarray:
    """Computes the gradient norm at each patch, |d loss / d F_l| float32[L, B, P].

    Args:
      config: config of the run.
      params: nested dict of its parameters.
      batch: images with captions.

    Raises:
      ConfigError: the model's text does not attend to images.
    """
    return np.asarray(_sizes(require_image_reader(config), params, batch))


@functools.partial(jax.jit, static_argnums=0)
def _sizes(model: Hive, params: dict, batch: Batch) -> jax.Array:
    # Norms over D, on the device: the gradients themselves are L x B x P x D numbers.
    return jnp.linalg.norm(make_feature_gradients(model)(params, batch), axis=-1)


def gradient_flow(
    runs: Mapping[str, tuple[RunConfig, dict]], batch: Batch
) -> dict[str, np.ndarray]:
    """Computes the mean gradient norm at each encoder layer for several runs.

    Args:
      runs: name -> (config, parameters).
      batch: images with captions, the same for all runs.

    Returns:
      Name -> float32[L], averaged over images and patches.

    Raises:
      ConfigError: the text of a model does not attend to images.
    """
    return {
        name: feature_gradients(config, params, batch).mean(axis=(1, 2))
        for name, (config, params) in runs.items()
    }


def share_towers(first: dict, other: dict) -> dict:
    """Combines the towers of one run with the fusion of another.

    This isolates the effect of the fusion on the gradients. If the fusion parameters have
    equal shapes, as in hive and cascaded, those of the first run are used as well, and
    only the wiring differs.

    Args:
      first: nested dict of parameters that provides the towers.
      other: nested dict of parameters that provides the fusion.

    Raises:
      ConfigError: the towers of the two runs differ in shape.
    """

    def equal(branch: str) -> bool:
        one, two = (jax.tree.map(np.shape, params[branch]) for params in (first, other))
        return one == two

    for branch in ("img", "llm"):
        if not equal(branch):
            raise ConfigError(
                f"gradients at equal towers: {branch!r} of the runs is of different "
                "shapes; expected runs from the same encoder and LLM"
            )
    # Parameters of another shape can only be those of the run that trained them.
    return {**first, "fusion": (first if equal("fusion") else other)["fusion"]}


def require_image_reader(config: RunConfig) -> Hive:
    """Builds the model of a run.

    Raises:
      ConfigError: the model has no text that attends to images.
    """
    model = build_model(config)
    if not isinstance(model, Hive) or not config.model.fusion_kind.uses_image:
        raise ConfigError(
            f"{config.name} has no text that reads the image: its objective is "
            f"{config.objective!r}, its fusion {config.model.fusion!r}"
        )
    return model
