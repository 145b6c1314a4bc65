"""The parameters a run starts from, the same every time they are asked for."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np

from hive_jax.config import RunConfig
from hive_jax.data.types import Batch
from hive_jax.models.siglip import patches
from hive_jax.training import handover
from hive_jax.training.objectives import init_params, normalise_images
from hive_jax.training.origin import workdir_before


def initial_params(
    config: RunConfig,
    model,
    abstract: dict,
    batch: Batch,
    tokenizer: str,
    sample_images: Callable[[], np.ndarray],
) -> dict:
    """The parameters of config.init or previous; else of init_encoder and
    init_decoder, and random where these say nothing.

    Args:
      abstract: as from `objectives.abstract_params`.
      batch: shapes of a batch.
      tokenizer: fingerprint of this run's tokenizer.
      sample_images: gives uint8[n, height, width, 3], for `whiten_patches`.

    Raises:
      MissingInputError: the named weights are not there.
      CheckpointError: they do not fit; all differences are listed.
    """
    if before := workdir_before(config):
        params = handover.params_of_run(config, before, abstract, tokenizer)
    else:
        params = handover.params_of_weights(config, abstract)
    if missing := set(abstract) - set(params):
        params |= _random(config, model, batch, abstract, missing)
    if config.whiten_patches:
        embedding = params["img"]["embedding"]
        kernel, bias = whitening(sample_images(), *embedding["kernel"].shape[1::2])
        for name, value in (("kernel", kernel), ("bias", bias)):
            embedding[name] = jax.device_put(value, embedding[name].sharding)
    return params


def _random(config, model, batch: Batch, abstract: dict, branches: set) -> dict:
    """The given branches; the others are not even compiled."""
    wanted = {branch: abstract[branch] for branch in sorted(branches)}
    shardings = jax.tree.map(lambda leaf: leaf.sharding, wanted)

    def init():
        params = init_params(model, batch, config.seed)
        return {branch: params[branch] for branch in wanted}

    # XLA's CPU backend takes half a minute to optimise the many small generators of
    # random numbers, which run once.
    on_cpu = jax.default_backend() == "cpu"
    options = {"xla_backend_optimization_level": 0} if on_cpu else None
    return jax.jit(init, out_shardings=shardings, compiler_options=options)()


def whitening(
    images: np.ndarray, patch_size: int, width: int
) -> tuple[np.ndarray, np.ndarray]:
    """Patch embedding (kernel [p, p, 3, D], bias [D]) that gives each channel unit
    variance and no correlation over the patches of `images`.

    Raw patches are nearly all mean colour, and a small tower takes very long to see
    texture through that. The D largest principal components are used; if there are
    fewer than D, the rest of the channels stays zero.
    """
    x = patches(normalise_images(jnp.asarray(images)), patch_size)
    x = np.asarray(x, np.float64).reshape(-1, x.shape[-1])
    mean = x.mean(axis=0)
    variance, components = np.linalg.eigh(np.cov(x - mean, rowvar=False))
    largest = np.argsort(variance)[::-1][:width]
    kernel = np.zeros((x.shape[1], width))
    kernel[:, : len(largest)] = components[:, largest] / np.sqrt(
        variance[largest] + 1e-3
    )
    shape = (patch_size, patch_size, 3, width)
    bias = -(mean @ kernel)
    return kernel.reshape(shape).astype(np.float32), bias.astype(np.float32)
