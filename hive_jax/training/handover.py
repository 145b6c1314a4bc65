"""Parameters handed over: from the run before, or from weights in files.

All or nothing: what differs is listed in full, and nothing is loaded.
"""

import dataclasses

import jax
import numpy as np
from flax.traverse_util import flatten_dict, unflatten_dict

from hive_jax.config import RunConfig, differences, from_dict
from hive_jax.errors import CheckpointError, MissingInputError
from hive_jax.models.hive import HiveConfig
from hive_jax.models.stack import PROGRAM
from hive_jax.training import sharding
from hive_jax.training.origin import open_decoder_for, open_encoder_for
from hive_jax.training.runs import RunTower, checkpoints_of, stored_config
from hive_jax.weights.mapping import fields, resize_positions
from hive_jax.weights.sources import WeightSource


def restore_run(workdir: str) -> tuple[RunConfig, dict, dict]:
    """The config of a run, its last parameters, whatever machine it ran on, and what
    else its checkpoint says."""
    config = stored_config(workdir)
    with checkpoints_of(workdir) as checkpoints:
        params, meta = checkpoints.restore_params(checkpoints.stored_params())
    return config, params, meta


def params_of_run(
    config: RunConfig, workdir: str, abstract: dict, tokenizer: str
) -> dict:
    """The branches that the run has; imported weights have no fusion yet.

    Args:
      abstract: of all branches of this run's model.
      tokenizer: fingerprint of this run's.
    """
    try:
        checkpoints = checkpoints_of(workdir)
    except MissingInputError as error:
        raise MissingInputError(
            f"{error}. {config.name} starts from it: run the stage before this one "
            f"first, or name another run with --config.init=WORKDIR"
        ) from None
    with checkpoints:
        meta = checkpoints.read_meta()
        _require_finished(config, workdir, meta)
        stored = meta["inputs"]["tokenizer"]
        if stored not in ("", tokenizer):
            raise CheckpointError(
                f"{workdir} was trained with another tokenizer ({stored}) than "
                f"{config.data.tokenizer} ({tokenizer}): use the same data.tokenizer"
            )
        found = checkpoints.stored_params()
        lacking = [branch for branch in ("img", "llm") if branch in abstract]
        lacking = [branch for branch in lacking if branch not in found]
        if lacking:
            raise CheckpointError(
                f"{workdir} has no {' and no '.join(lacking)}, only {sorted(found)}: "
                "import both, with --encoder and --decoder"
            )
        wanted = {branch: abstract[branch] for branch in abstract if branch in found}
        theirs = from_dict(meta["config"]).model
        _require_same_model(config, theirs, wanted, workdir)
        # Orbax reads all or nothing; what this run has no use for goes at once.
        mesh = jax.tree.leaves(wanted)[0].sharding.mesh
        others = {b: found[b] for b in found if b not in wanted}
        asked = sharding.sharded_params(mesh, others) | _of_stored_size(wanted, found)
        params, meta = checkpoints.restore_params(asked)
        _require_finished(config, workdir, meta)  # the newest step may be damaged
    return _resized({branch: params[branch] for branch in wanted}, wanted)


def _require_finished(config: RunConfig, workdir: str, meta: dict) -> None:
    step, total = meta["step"], meta["config"]["total_steps"]
    if step < total and not config.init:
        raise CheckpointError(
            f"the run in {workdir} is at step {step} of {total}: let it finish, or "
            f"start from it as it is with --config.init={workdir}"
        )


def _require_same_model(
    config: RunConfig, theirs: HiveConfig, branches: dict, workdir: str
) -> None:
    """Raises CheckpointError with all that differs in these branches."""
    ours, theirs = _said_of(config.model, branches), _said_of(theirs, branches)
    changed = [line for line in differences(theirs, ours) if not _is_program(line)]
    if config.resize_positions:
        changed = [x for x in changed if not x.startswith("encoder.image_size:")]
    if changed:
        listed = "\n  ".join(f"model.{line}" for line in changed)
        raise CheckpointError(
            f"{workdir} holds another model than this run's:\n  {listed}\n"
            "Set these keys to the same values, or choose another config.init. (For "
            "another image size alone there is --config.resize_positions.)"
        )


def _said_of(model: HiveConfig, branches: dict) -> dict:
    """What a model's config says of some of its branches."""
    towers = {"img": "encoder", "llm": "decoder"}
    said = {
        name: dataclasses.asdict(getattr(model, name))
        for branch, name in towers.items()
        if branch in branches
    }
    if "fusion" in branches:
        said["fusion"] = model.fusion
        said["connections"] = model.resolved_connections()
    return said


def _is_program(line: str) -> bool:
    """Whether a difference changes how the model runs, and not what it is."""
    return line.split(":")[0].endswith(tuple(f".{name}" for name in PROGRAM))


def _of_stored_size(abstract: dict, found: dict) -> dict:
    """The position embedding as it is stored; it is resized after it has been read."""
    img = abstract.get("img", {})
    stored = found.get("img", {}).get("pos_embedding")
    if "pos_embedding" not in img or stored is None:
        return abstract
    leaf = img["pos_embedding"]
    leaf = jax.ShapeDtypeStruct(stored.shape, leaf.dtype, sharding=leaf.sharding)
    return abstract | {"img": img | {"pos_embedding": leaf}}


def _resized(params: dict, abstract: dict) -> dict:
    wanted = abstract.get("img", {}).get("pos_embedding")
    if wanted is None or params["img"]["pos_embedding"].shape == wanted.shape:
        return params
    position = np.asarray(params["img"]["pos_embedding"])
    position = resize_positions(position, wanted.shape[1])
    position = jax.device_put(position, wanted.sharding)
    return params | {"img": params["img"] | {"pos_embedding": position}}


def params_of_weights(config: RunConfig, abstract: dict) -> dict:
    """The branches that init_encoder and init_decoder name."""
    params = {}
    if config.init_encoder and "img" in abstract:
        part = open_encoder_for(config)
        _require_tower(part, config.model.encoder, "encoder", config.resize_positions)
        params["img"] = placed(part, abstract["img"])
    if config.init_decoder and "llm" in abstract:
        part = open_decoder_for(config)
        _require_tower(part, config.model.decoder, "decoder")
        params["llm"] = placed(part, abstract["llm"])
    return params


def _require_tower(
    part: WeightSource | RunTower, tower, name: str, resize: bool = False
) -> None:
    """Raises CheckpointError unless the weights are those of the config's tower."""
    theirs, ours = fields(part.config), fields(tower)
    if resize:
        theirs["image_size"] = ours.get("image_size")
    lines = [
        f"model.{name}.{key} is {ours[key]}; the weights have {value}"
        for key, value in theirs.items()
        if value != ours[key]
    ]
    if lines:
        listed = "\n  ".join(lines)
        raise CheckpointError(
            f"{part.source} holds another {name} than this run's:\n  {listed}\nUse other "
            f"weights, these values, or ':own_towers' after the config's name for the "
            "towers that the weights have. (For another image size alone there is "
            "--config.resize_positions.)"
        )


def placed(part: WeightSource | RunTower, abstract: dict) -> dict:
    """The parameters where `abstract` has them, the position embedding at its size. A
    leaf's copy on the host goes before the next one is read."""
    flat, params = flatten_dict(abstract, sep="/"), {}
    for name, array in part.leaves():
        leaf = flat[name]
        if name == "pos_embedding":
            array = resize_positions(array, leaf.shape[1])
        params[name] = jax.device_put(array, leaf.sharding)
    return unflatten_dict(params, sep="/")
