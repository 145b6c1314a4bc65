"""The parameters of step 0: those of the stage before, of weights in files, or random.

All or nothing: what differs is listed in full, and nothing is loaded.
"""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
from flax.traverse_util import flatten_dict, unflatten_dict

from hive_jax.config import RunConfig, differences
from hive_jax.data.types import Batch
from hive_jax.errors import CheckpointError
from hive_jax.models.hive import HiveConfig
from hive_jax.models.siglip import patches
from hive_jax.training import sharding
from hive_jax.training.objectives import init_params, normalize_images
from hive_jax.training.resolve import ResolvedRun, WeightSources
from hive_jax.training.stored_run import RunComponent, StoredRun
from hive_jax.weights.mapping import resize_positions
from hive_jax.weights.sources import WeightSource


def initial_params(
    resolved: ResolvedRun, model, abstract: dict, batch: Batch, tokenizer: str
) -> dict:
    """The parameters of config.init or the stage before; else of init_encoder and
    init_decoder; random where none of these has any. The same each time.

    Args:
      resolved: config and weights.
      model: as from `objectives.build_model`.
      abstract: as from `objectives.abstract_params`.
      batch: shapes of a batch.
      tokenizer: fingerprint of this run's tokenizer.

    Raises:
      MissingInputError: the named weights do not exist.
      CheckpointError: they do not fit; all differences are listed.
    """
    config, sources = resolved.config, resolved.weight_sources
    if sources.previous_workdir:
        previous = sources.require_previous()
        params = _params_of_run(config, previous, abstract, tokenizer)
    else:
        params = _params_of_components(config, sources, abstract)
    if missing := set(abstract) - set(params):
        params |= _random(config, model, batch, abstract, missing)
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


def _params_of_run(
    config: RunConfig, run: StoredRun, abstract: dict, tokenizer: str
) -> dict:
    """The branches that the run has; imported weights have no fusion yet."""
    _require_finished(config, run.workdir, run.meta)
    stored_tokenizer = run.meta["inputs"]["tokenizer"]
    if stored_tokenizer not in ("", tokenizer):
        raise CheckpointError(
            f"{run.workdir} was trained with another tokenizer ({stored_tokenizer}) "
            f"than {config.data.tokenizer} ({tokenizer}): use the same data.tokenizer"
        )
    stored = run.abstract_params
    lacking = [b for b in ("img", "llm") if b in abstract and b not in stored]
    if lacking:
        raise CheckpointError(
            f"{run.workdir} has no {' and no '.join(lacking)}, only {sorted(stored)}: "
            "import encoder and decoder together"
        )
    wanted = {branch: abstract[branch] for branch in abstract if branch in stored}
    _require_same_model(config, run.config.model, wanted, run.workdir)
    # Orbax reads all or nothing; what this run has no use for goes at once.
    mesh = jax.tree.leaves(wanted)[0].sharding.mesh
    others = {b: stored[b] for b in stored if b not in wanted}
    params, meta = run.read_params(
        sharding.sharded_params(mesh, others) | _with_stored_positions(wanted, stored)
    )
    _require_finished(config, run.workdir, meta)  # the newest step may be damaged
    params = {branch: params[branch] for branch in wanted}
    return _with_resized_positions(params, wanted)


def _require_finished(config: RunConfig, workdir: str, meta: dict) -> None:
    step, total = meta["step"], meta["config"]["total_steps"]
    if step < total and not config.init:
        raise CheckpointError(
            f"the run in {workdir} is at step {step} of {total}: let it finish, or "
            f"start from it as it is with config.init={workdir}"
        )


def _require_same_model(
    config: RunConfig, stored: HiveConfig, branches: dict, workdir: str
) -> None:
    """Raises CheckpointError with all that differs in these branches."""
    changed = differences(
        _architecture(stored, branches), _architecture(config.model, branches)
    )
    if config.resize_positions:
        changed = [x for x in changed if not x.startswith("encoder.image_size:")]
    if changed:
        listed = "\n  ".join(f"model.{line}" for line in changed)
        raise CheckpointError(
            f"{workdir} holds another model than this run's:\n  {listed}\n"
            "Set these keys to the same values, or choose another config.init. (For "
            "another image size alone there is config.resize_positions.)"
        )


def _architecture(model: HiveConfig, branches: dict) -> dict:
    """What a model's config says of some of its branches."""
    towers = {"img": "encoder", "llm": "decoder"}
    values = {
        name: dataclasses.asdict(getattr(model, name))
        for branch, name in towers.items()
        if branch in branches
    }
    if "fusion" in branches:
        values["fusion"] = model.fusion
        values["connections"] = model.resolved_connections()
    return values


def _with_stored_positions(abstract: dict, stored: dict) -> dict:
    """Shapes to read: the position embedding at its stored size, to be resized then."""
    img = abstract.get("img", {})
    position = stored.get("img", {}).get("pos_embedding")
    if "pos_embedding" not in img or position is None:
        return abstract
    leaf = img["pos_embedding"]
    leaf = jax.ShapeDtypeStruct(position.shape, leaf.dtype, sharding=leaf.sharding)
    return abstract | {"img": img | {"pos_embedding": leaf}}


def _with_resized_positions(params: dict, abstract: dict) -> dict:
    leaf = abstract.get("img", {}).get("pos_embedding")
    if leaf is None or params["img"]["pos_embedding"].shape == leaf.shape:
        return params
    position = np.asarray(params["img"]["pos_embedding"])
    position = jax.device_put(resize_positions(position, leaf.shape[1]), leaf.sharding)
    return params | {"img": params["img"] | {"pos_embedding": position}}


def _params_of_components(
    config: RunConfig, sources: WeightSources, abstract: dict
) -> dict:
    """The branches that init_encoder and init_decoder name."""
    params, model = {}, config.model
    if "img" in abstract and (encoder := sources.encoder):
        resize = config.resize_positions
        _require_architecture(encoder, model.encoder, "encoder", resize)
        params["img"] = read_params(encoder, abstract["img"])
    if "llm" in abstract and (decoder := sources.decoder):
        _require_architecture(decoder, model.decoder, "decoder")
        params["llm"] = read_params(decoder, abstract["llm"])
    return params


def _require_architecture(
    source: WeightSource | RunComponent, tower, name: str, resize: bool = False
) -> None:
    """Raises CheckpointError unless the weights are those of the config's tower."""
    stored, expected = dataclasses.asdict(source.config), dataclasses.asdict(tower)
    if resize:
        stored["image_size"] = expected.get("image_size")
    lines = [
        f"model.{name}.{key} is {expected[key]}; the weights have {value}"
        for key, value in stored.items()
        if value != expected[key]
    ]
    if lines:
        listed = "\n  ".join(lines)
        raise CheckpointError(
            f"{source.source} holds another {name} than this run's:\n  {listed}\nUse "
            f"other weights, these values, or config.model.{name}=None for the {name} "
            "that the weights have. (For another image size alone there is "
            "config.resize_positions.)"
        )


def read_params(source: WeightSource | RunComponent, abstract: dict) -> dict:
    """Reads a component's parameters onto devices, leaf by leaf: a leaf's copy on the
    host goes before the next one is read.

    Args:
      source: opened weights.
      abstract: nested dict of `jax.ShapeDtypeStruct` with shardings; the position
        embedding is resized to its shape there.
    """
    flat, params = flatten_dict(abstract, sep="/"), {}
    for name, array in source.leaves():
        leaf = flat[name]
        if name == "pos_embedding":
            array = resize_positions(array, leaf.shape[1])
        params[name] = jax.device_put(array, leaf.sharding)
    return unflatten_dict(params, sep="/")


def whiten_patch_embedding(params: dict, images: np.ndarray) -> dict:
    """Parameters whose patch embedding whitens the patches of `images`.

    Args:
      params: nested dict with the branch `img`.
      images: uint8[n, height, width, 3].
    """
    embedding = params["img"]["embedding"]
    kernel, bias = whitening(images, *embedding["kernel"].shape[1::2])
    embedding = {
        name: jax.device_put(value, embedding[name].sharding)
        for name, value in (("kernel", kernel), ("bias", bias))
    }
    return params | {"img": params["img"] | {"embedding": embedding}}


def whitening(
    images: np.ndarray, patch_size: int, width: int
) -> tuple[np.ndarray, np.ndarray]:
    """Patch embedding (kernel [p, p, 3, D], bias [D]) that gives each channel unit
    variance and no correlation over the patches of `images`.

    Raw patches are nearly all mean colour, and a small tower takes very long to see
    texture through that. The D largest principal components are used; if there are
    fewer than D, the rest of the channels stays zero.
    """
    x = patches(normalize_images(jnp.asarray(images)), patch_size)
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
