"""Initial parameters: of the previous stage, of weight files, or random.

Weights load completely or not at all: an error lists every difference.
"""

import dataclasses
from collections.abc import Collection

import jax
import numpy as np
from flax.traverse_util import flatten_dict, unflatten_dict

from hive_jax.config import RunConfig, differences
from hive_jax.data.batch import Batch
from hive_jax.errors import CheckpointError
from hive_jax.models.config import HiveConfig
from hive_jax.training.checkpointing import trees
from hive_jax.training.objectives import init_params
from hive_jax.training.resolve import ResolvedRun, WeightSources
from hive_jax.training.stored_run import RunComponent, StoredRun
from hive_jax.weights.mapping import resize_positions
from hive_jax.weights.sources import WeightSource

_IMAGE_KV = "fusion/joint_attention/kv/"
_LAYER_KV = "llm/layers/attn/kv_"


def initial_params(
    resolved: ResolvedRun,
    model,
    abstract: dict,
    batch: Batch,
    tokenizer: str,
    names: Collection[str] | None = None,
) -> dict:
    """Returns the parameters of step 0, deterministically.

    Taken from config.init or the previous stage, else from init_encoder and
    init_decoder; branches that these do not have are random.

    Args:
      resolved: config and opened weights.
      model: from `objectives.build_model`.
      abstract: nested dict of shapes and shardings, from `objectives.abstract_params`.
      batch: shapes of a batch.
      tokenizer: fingerprint of this run's tokenizer.
      names: slash-joined names of the parameters to return, by default of all. Others
        are not read.

    Raises:
      MissingInputError: the named weights do not exist.
      CheckpointError: they do not fit; all differences are listed.
    """
    config, sources = resolved.config, resolved.weight_sources
    flat = flatten_dict(abstract, sep="/")
    names = set(flat if names is None else names)
    image_kv = any(name.startswith(_IMAGE_KV) for name in names)
    # The image's projections may start from those of the layers.
    read = names | {n for n in flat if image_kv and n.startswith(_LAYER_KV)}
    if sources.previous_workdir:
        previous = sources.require_previous()
        params = _params_of_run(config, previous, abstract, tokenizer, read)
    else:
        params = _params_of_components(config, sources, abstract, read)
    missing = {name.split("/")[0] for name in read} - set(params)
    # The fusion of a first stage, as a rule: no source has one.
    if missing:
        leaves = {name: flat[name] for name in read if name.split("/")[0] in missing}
        params |= _random(config, model, batch, leaves)
    if image_kv and ("fusion" in missing or not _has_image_kv(params)):
        kv = abstract["fusion"]["joint_attention"]["kv"]
        params = _with_image_kv_of_layers(params, kv, config.model)
    return _select(params, names)


def _select(params: dict, names: Collection[str]) -> dict:
    """Returns the parameters of the given names, a nested dict."""
    flat = flatten_dict(params, sep="/")
    return unflatten_dict({n: x for n, x in flat.items() if n in names}, sep="/")


def _random(config, model, batch: Batch, leaves: dict) -> dict:
    """Returns random parameters of the given leaves, sharded from the start: XLA
    removes the others, and no device holds a whole model."""
    shardings = {name: leaf.sharding for name, leaf in leaves.items()}
    shardings = unflatten_dict(shardings, sep="/")

    def init():
        return _select(init_params(model, batch, config.seed), leaves)

    # XLA's CPU backend takes half a minute to optimize the many small random number
    # generators, which run once.
    on_cpu = jax.default_backend() == "cpu"
    options = {"xla_backend_optimization_level": 0} if on_cpu else None
    return jax.jit(init, out_shardings=shardings, compiler_options=options)()


def _has_image_kv(params: dict) -> bool:
    return "kv" in params.get("fusion", {}).get("joint_attention", {})


def _with_image_kv_of_layers(params: dict, abstract: dict, model: HiveConfig) -> dict:
    """Returns parameters with projections to the image's keys and values that are those
    of the connected layers, as `model.image_kv` "own" starts.

    Args:
      params: nested dict.
      abstract: shapes and shardings of the projections.
      model: architecture.
    """
    layers = np.array([layer - 1 for _, layer in model.resolved_connections()])
    attention = params["llm"]["layers"]["attn"]
    shardings = jax.tree.map(lambda leaf: leaf.sharding, abstract)

    def take(attention):
        return jax.tree.map(lambda leaf: leaf[layers], attention)

    used = {name: attention[name] for name in abstract}
    kv = jax.jit(take, out_shardings=shardings)(used)
    joint = params["fusion"]["joint_attention"] | {"kv": kv}
    return params | {"fusion": params["fusion"] | {"joint_attention": joint}}


def _params_of_run(
    config: RunConfig,
    run: StoredRun,
    abstract: dict,
    tokenizer: str,
    names: Collection[str],
) -> dict:
    """Returns the named parameters in the branches that a run has; imported weights
    have no `fusion` yet."""
    _require_finished(config, run.workdir, run.meta)
    stored_tokenizer = run.meta["inputs"]["tokenizer"]
    # "" stands for weights that were imported without a tokenizer.
    if stored_tokenizer not in ("", tokenizer):
        raise CheckpointError(
            f"{run.workdir} was trained with another tokenizer ({stored_tokenizer}) "
            f"than {config.data.tokenizer} ({tokenizer}): use the same data.tokenizer"
        )
    # Names and shapes are compared before a value is read.
    stored = run.abstract_params
    missing = [b for b in ("img", "llm") if b in abstract and b not in stored]
    if missing:
        raise CheckpointError(
            f"{run.workdir} has no {' and no '.join(missing)}, only {sorted(stored)}: "
            "import encoder and decoder together"
        )
    abstract = {branch: abstract[branch] for branch in abstract if branch in stored}
    if "fusion" in abstract and not _has_image_kv(stored):
        abstract["fusion"] = _without_image_kv(abstract["fusion"])
    _require_same_model(config, run.config.model, abstract, run.workdir)
    # All leaves are compared, also those that are not read.
    expected = _with_stored_positions(abstract, stored)
    branches = {branch: stored[branch] for branch in expected}
    trees.require_equal(expected, branches, f"the checkpoint of {run.workdir}")
    expected = _select(expected, names)
    if not expected:
        return {}
    params, meta = run.read_params(expected)
    # Again: if the newest step was damaged, these are of an older one.
    _require_finished(config, run.workdir, meta)
    return _with_resized_positions(params, abstract)


def _without_image_kv(fusion: dict) -> dict:
    """Returns the shapes of a fusion without the image's projections, which a stage of
    `model.image_kv` "shared" does not hand over."""
    if "joint_attention" not in fusion:
        return fusion
    joint = {k: v for k, v in fusion["joint_attention"].items() if k != "kv"}
    return fusion | {"joint_attention": joint}


def _require_finished(config: RunConfig, workdir: str, meta: dict) -> None:
    """Raises CheckpointError if the previous stage has not reached its last step; a
    run that config.init names explicitly need not have."""
    step, total = meta["step"], meta["config"]["total_steps"]
    if step < total and not config.init:
        raise CheckpointError(
            f"the run in {workdir} is at step {step} of {total}: let it finish, or "
            f"start from it as it is with config.init={workdir}"
        )


def _require_same_model(
    config: RunConfig, stored: HiveConfig, branches: dict, workdir: str
) -> None:
    """Raises CheckpointError with every difference in the given branches."""
    if (stored.image_kv, config.model.image_kv) == ("shared", "own"):
        # Own projections start from the layers'.
        stored = dataclasses.replace(stored, image_kv="own")
    changed = differences(
        _architecture(stored, branches), _architecture(config.model, branches)
    )
    if config.resize_positions:  # the only difference that loading can bridge
        changed = [x for x in changed if not x.startswith("encoder.image_size:")]
    if changed:
        listed = "\n  ".join(f"model.{line}" for line in changed)
        raise CheckpointError(
            f"{workdir} holds another model than this run's:\n  {listed}\n"
            "Set these keys to the same values, or choose another config.init. (For "
            "another image size alone there is config.resize_positions.)"
        )


def _architecture(model: HiveConfig, branches: dict) -> dict:
    """Returns the values of a model's config that concern the given branches."""
    towers = {"img": "encoder", "llm": "decoder"}
    values = {
        name: dataclasses.asdict(getattr(model, name))
        for branch, name in towers.items()
        if branch in branches
    }
    if "fusion" in branches:
        values["fusion"] = model.fusion
        values["connections"] = model.resolved_connections()
        values["projector"] = model.projector_kind
        if model.fusion == "joint":
            values |= {"image_kv": model.image_kv, "image_rope": model.image_rope}
    return values


def _with_stored_positions(abstract: dict, stored: dict) -> dict:
    """Returns the shapes to read, with the position embedding at its stored size: it
    is resized after reading."""
    img = abstract.get("img", {})
    position = stored.get("img", {}).get("pos_embedding")
    if "pos_embedding" not in img or position is None:
        return abstract
    leaf = img["pos_embedding"]
    leaf = jax.ShapeDtypeStruct(position.shape, leaf.dtype, sharding=leaf.sharding)
    return abstract | {"img": img | {"pos_embedding": leaf}}


def _with_resized_positions(params: dict, abstract: dict) -> dict:
    """Returns parameters whose position embedding has the size in `abstract`."""
    position = params.get("img", {}).get("pos_embedding")
    if position is None or position.shape == abstract["img"]["pos_embedding"].shape:
        return params
    leaf = abstract["img"]["pos_embedding"]
    position = np.asarray(position)
    position = jax.device_put(resize_positions(position, leaf.shape[1]), leaf.sharding)
    return params | {"img": params["img"] | {"pos_embedding": position}}


def _params_of_components(
    config: RunConfig, sources: WeightSources, abstract: dict, names: Collection[str]
) -> dict:
    """Returns the named parameters in the branches of init_encoder and init_decoder."""
    params, model = {}, config.model
    abstract = _select(abstract, names)
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
    """Raises CheckpointError unless the weights have the config's architecture."""
    stored, expected = dataclasses.asdict(source.config), dataclasses.asdict(tower)
    # The image size has an effect on the position embedding alone, which is resized.
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
            f"other weights, set these values, or config.model.{name}=None to take the "
            "architecture of the weights. (For another image size alone there is "
            "config.resize_positions.)"
        )


def read_params(source: WeightSource | RunComponent, abstract: dict) -> dict:
    """Reads the parameters of a component onto the devices.

    Leaf by leaf: the host holds one leaf at a time, not a second copy of the model.

    Args:
      source: opened weights of the component.
      abstract: nested dict of `jax.ShapeDtypeStruct` with shardings, of the parameters
        to read; the position embedding is resized to its shape there.
    """
    flat, params = flatten_dict(abstract, sep="/"), {}
    for name, array in source.leaves():
        if name not in flat:
            continue
        leaf = flat[name]
        if name == "pos_embedding":
            array = resize_positions(array, leaf.shape[1])
        params[name] = jax.device_put(array, leaf.sharding)
    return unflatten_dict(params, sep="/")
