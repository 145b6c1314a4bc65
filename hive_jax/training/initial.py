"""The parameters a run starts from, the same every time they are asked for."""

from collections.abc import Callable
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from flax.traverse_util import flatten_dict, unflatten_dict

from hive_jax.config import MeshConfig, RunConfig, differences, from_dict, to_dict
from hive_jax.data.batch import Batch
from hive_jax.errors import CheckpointError, MissingInputError
from hive_jax.models.siglip import patches
from hive_jax.training import sharding, trees
from hive_jax.training.checkpoints import Checkpoints
from hive_jax.training.objectives import build_model, init_params, normalise_images
from hive_jax.weights.big_vision import load_npz

_ASSETS = Path(__file__).parent.parent / "assets"


def default_workdir(name: str, fusion: str) -> str:
    """workdir/NAME, and workdir/NAME_FUSION for the baselines."""
    baseline = fusion in ("cascaded", "self_attention")
    return f"workdir/{name}_{fusion}" if baseline else f"workdir/{name}"


def abstract_params(model, batch: Batch, mesh) -> dict:
    """The parameters' shapes, dtypes and shardings; nothing is computed."""
    shapes = jax.eval_shape(lambda: init_params(model, batch, 0))
    flat = {
        name: jax.ShapeDtypeStruct(
            p.shape, p.dtype, sharding=sharding.param_sharding(mesh, name, p.shape)
        )
        for name, p in flatten_dict(shapes, sep="/").items()
    }
    return unflatten_dict(flat, sep="/")


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
      abstract: as from `abstract_params`.
      batch: shapes of a batch.
      tokenizer: fingerprint of this run's tokenizer.
      sample_images: gives uint8[n, height, width, 3], for `whiten_patches`.

    Raises:
      MissingInputError: the named weights are not there.
      CheckpointError: they do not fit; all differences are listed.
    """
    source = config.init or (
        config.previous and default_workdir(config.previous, config.model.fusion)
    )
    if source:
        return _from_run(config, source, abstract, tokenizer)
    files = {"img": config.init_encoder, "llm": config.init_decoder}
    params = {
        branch: _from_npz(path, branch, abstract[branch])
        for branch, path in files.items()
        if path and branch in abstract
    }
    params |= _random(config, model, batch, abstract, set(abstract) - set(params))
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


def restore_run(workdir: str) -> tuple[RunConfig, dict]:
    """The config of a run and its last parameters, whatever machine it ran on."""
    with _checkpoints_of(workdir) as checkpoints:
        config = from_dict(checkpoints.read_meta()["config"])
        image_size = config.model.encoder.image_size
        batch = Batch.spec(1, config.data.num_tokens, image_size)
        mesh = sharding.make_mesh(MeshConfig())
        abstract = abstract_params(build_model(config), batch, mesh)
        return config, checkpoints.restore_params(abstract)


def _checkpoints_of(workdir: str) -> Checkpoints:
    if not (Path(workdir) / "checkpoints").is_dir():
        raise MissingInputError(f"no checkpoint in {workdir}: no such run")
    return Checkpoints(workdir, read_only=True)


def _from_run(config: RunConfig, workdir: str, abstract: dict, tokenizer: str) -> dict:
    try:
        checkpoints = _checkpoints_of(workdir)
    except MissingInputError as error:
        raise MissingInputError(
            f"{error}. {config.name} starts from it: run the stage before this one "
            f"first, or name another run with --config.init=WORKDIR"
        ) from None
    with checkpoints:
        meta = checkpoints.read_meta()
        step, total = meta["step"], meta["config"]["total_steps"]
        if step < total and not config.init:
            raise CheckpointError(
                f"the run in {workdir} is at step {step} of {total}: let it finish, or "
                f"start from it as it is with --config.init={workdir}"
            )
        stored = meta["inputs"]["tokenizer"]
        if stored != tokenizer:
            raise CheckpointError(
                f"{workdir} was trained with another tokenizer ({stored}) than "
                f"{config.data.tokenizer} ({tokenizer}): use the same data.tokenizer"
            )
        changed = differences(meta["config"]["model"], to_dict(config.model))
        changed = [line for line in changed if not _is_program(line)]
        if changed:
            listed = "\n  ".join(f"model.{line}" for line in changed)
            raise CheckpointError(
                f"{workdir} holds another model than this run's:\n  {listed}\n"
                f"Set these keys to the same values, or choose another config.init."
            )
        return checkpoints.restore_params(abstract)


def _is_program(line: str) -> bool:
    """Whether a difference changes how the model runs, and not what it is."""
    return line.split(":")[0].endswith((".scan", ".remat"))


def _from_npz(path: str, branch: str, abstract: dict) -> dict:
    """One branch of a big_vision .npz, e.g. `img` of a two-tower file."""
    file = _ASSETS / f"{path.removeprefix('builtin:')}.npz"
    tree = load_npz(file if path.startswith("builtin:") else path)
    if branch not in tree:
        raise CheckpointError(f"{path} has no {branch!r}; it holds {sorted(tree)}")
    found = jax.tree.map(_as_float32, tree[branch])
    trees.require_equal({branch: abstract}, {branch: found}, path)
    return jax.tree.map(
        lambda leaf, value: jax.device_put(value, leaf.sharding), abstract, found
    )


def _as_float32(array: np.ndarray) -> np.ndarray:
    """Parameters are float32, however short their file has them."""
    short = array.dtype in (np.float16, jnp.bfloat16)
    return array.astype(np.float32) if short else array


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
