"""The train state, how it starts, and the one train step."""

import dataclasses
from collections.abc import Callable, Mapping

import flax.linen as nn
import flax.struct
import jax
import jax.numpy as jnp
import optax
from flax.traverse_util import flatten_dict, unflatten_dict

from hive_jax.config import Rule, RunConfig
from hive_jax.data.batch import KINDS, Batch
from hive_jax.models.fusion import FUSIONS
from hive_jax.models.hive import Hive
from hive_jax.models.siglip import TwoTowers
from hive_jax.training import optimizer as optimizers
from hive_jax.training import sharding
from hive_jax.training.losses import next_token_nll, sigmoid_contrastive_loss


@flax.struct.dataclass
class TrainState:
    """step: int32[], updates done; params: nested dict, trainable and frozen;
    opt_state: of the trainable leaves alone."""

    step: jax.Array
    params: dict
    opt_state: optax.OptState


def build_model(config: RunConfig) -> nn.Module:
    """The model that config.objective trains, computing in config.dtype."""
    dtype = jnp.dtype(config.dtype if config.dtype != "auto" else _platform_dtype())
    if config.objective == "contrastive":
        return TwoTowers(config.model.encoder, config.text_tower, dtype)
    return Hive(config.model, dtype)


def _platform_dtype() -> str:
    return "float32" if jax.default_backend() == "cpu" else "bfloat16"


def names_under_all_fusions(config: RunConfig, batch: Batch) -> set[str]:
    """Parameter names of the model under every value of config.model.fusion."""
    names = set()
    for fusion in FUSIONS:
        model = dataclasses.replace(config.model, fusion=fusion)
        other = build_model(dataclasses.replace(config, model=model))
        shapes = jax.eval_shape(lambda module=other: init_params(module, batch, 0))
        names |= set(flatten_dict(shapes, sep="/"))
    return names


def normalise_images(images: jax.Array) -> jax.Array:
    """uint8 [0, 255] -> float32 [-1, 1], as SigLIP was trained."""
    return images.astype(jnp.float32) / 127.5 - 1.0


def init_params(model: nn.Module, batch: Batch, seed: int) -> dict:
    """Random parameters, a function of the seed. `batch` gives shapes only."""
    images = jnp.zeros((1, *batch.image.shape[1:]), jnp.float32)
    tokens = jnp.zeros((1, batch.tokens.shape[1]), jnp.int32)
    inputs = (images, tokens)
    if isinstance(model, Hive):
        inputs += (jnp.ones(tokens.shape, bool),)
    return model.init(jax.random.key(seed), *inputs)["params"]


def make_loss(model: nn.Module) -> Callable:
    """(params, batch) -> (sum of losses, weight they are to be divided by)."""

    def caption(params, batch: Batch):
        nll = token_losses(model, params, batch)
        weight = batch.target[:, 1:].astype(jnp.float32)
        return (nll * weight).sum(), weight.sum()

    def contrastive(params, batch: Batch):
        images = normalise_images(batch.image)
        towers = model.apply({"params": params}, images, batch.tokens)
        return sigmoid_contrastive_loss(*towers), jnp.float32(1.0)

    return caption if isinstance(model, Hive) else contrastive


def token_losses(model: Hive, params: dict, batch: Batch) -> jax.Array:
    """Negative log-likelihood float32[B, T - 1] of each token after the first."""
    images = normalise_images(batch.image)
    hidden = model.apply({"params": params}, images, batch.tokens, batch.sees_image)
    table = params["llm"]["embedder"]["input_embedding"]
    softcap = model.config.decoder.final_softcap
    return next_token_nll(hidden, table, softcap, batch.tokens)


def init_state(params: dict, optimizer, assigned: Mapping[str, Rule]) -> TrainState:
    """Step 0; the optimizer sees the trainable leaves as a flat dict."""
    trainable, _ = optimizers.split(flatten_dict(params, sep="/"), assigned)
    return TrainState(jnp.zeros((), jnp.int32), params, optimizer.init(trainable))


def state_shardings(mesh, state: TrainState, optimizer) -> TrainState:
    """A NamedSharding for each leaf of an abstract state."""
    flat = flatten_dict(state.params, sep="/")
    params = {n: sharding.param_sharding(mesh, n, p.shape) for n, p in flat.items()}
    everywhere = sharding.replicated(mesh)
    opt_state = optax.tree.map_params(
        optimizer,
        lambda leaf, where: where,
        state.opt_state,
        {name: params[name] for name in _moments(state.opt_state)},
        transform_non_params=lambda leaf: everywhere,
    )
    return TrainState(everywhere, unflatten_dict(params, sep="/"), opt_state)


def _moments(opt_state) -> dict:
    """The first moments, a flat dict by the names of the trainable leaves."""
    return next(s.mu for s in opt_state if isinstance(s, optax.ScaleByAdamState))


def make_train_step(model, optimizer, assigned: Mapping[str, Rule]) -> Callable:
    """The pure step (state, parts) -> (state, metrics).

    `parts` is a tuple of batches, sent through one after the other; their losses are
    summed and divided once, so that a batch in parts is the batch in one. Only the
    trainable leaves are differentiated, clipped, measured and updated.
    """
    loss_fn = make_loss(model)

    def step(state: TrainState, parts: tuple[Batch, ...]):
        flat = flatten_dict(state.params, sep="/")
        trainable, frozen = optimizers.split(flat, assigned)

        def loss_of(trainable, batch):
            params = unflatten_dict({**frozen, **trainable}, sep="/")
            return loss_fn(params, batch)

        total, weight, grads = _accumulated(loss_of, trainable, parts)
        weight = jnp.maximum(weight, 1.0)
        grads = jax.tree.map(lambda g: g / weight, grads)
        updates, opt_state = optimizer.update(grads, state.opt_state, trainable)
        trainable = optax.apply_updates(trainable, updates)
        params = unflatten_dict({**frozen, **trainable}, sep="/")
        metrics = {"loss": total / weight, **_norms(grads, "grad_norm")}
        return TrainState(state.step + 1, params, opt_state), metrics

    return step


def _accumulated(loss_of: Callable, trainable: dict, parts: tuple[Batch, ...]):
    """Sums of loss, weight and gradients over the parts of a batch."""
    value_and_grad = jax.value_and_grad(loss_of, has_aux=True)

    def add(carry, part):
        (loss, weight), grads = value_and_grad(trainable, part)
        return jax.tree.map(jnp.add, carry, (loss, weight, grads)), None

    if len(parts) == 1:
        (loss, weight), grads = value_and_grad(trainable, parts[0])
        return loss, weight, grads
    zero = (jnp.float32(0), jnp.float32(0), jax.tree.map(jnp.zeros_like, trainable))
    stacked = jax.tree.map(lambda *leaves: jnp.stack(leaves), *parts)
    return jax.lax.scan(add, zero, stacked)[0]


def _norms(tree: Mapping, name: str) -> dict:
    """The global norm, and that of each branch (img, llm, fusion, ...)."""
    branches = sorted({key.split("/")[0] for key in tree})
    norms = {
        f"{name}/{branch}": optax.tree.norm(
            [leaf for key, leaf in tree.items() if key.split("/")[0] == branch]
        )
        for branch in branches
    }
    return {name: optax.tree.norm(tree), **norms}


def make_eval_step(model: nn.Module):
    """(params, batch) -> sums to add up over batches.

    For captions: for "right" (the sample's image), "wrong" (its neighbour's in the
    batch, another scene) and "none" (no image) the summed loss and the number of
    tokens, float32[len(KINDS)] each. For towers: the loss, and how many images find
    their text.
    """

    def captions(params, batch: Batch):
        weight = batch.target[:, 1:].astype(jnp.float32)
        kinds = jax.nn.one_hot(batch.kind[:, 1:], len(KINDS)) * weight[:, :, None]

        def by_kind(image, sees_image):
            altered = batch.replace(image=image, sees_image=sees_image)
            nll = token_losses(model, params, altered)
            return (nll[:, :, None] * kinds).sum((0, 1)), kinds.sum((0, 1))

        sees, blind = batch.sees_image, jnp.zeros_like(batch.sees_image)
        out = {"none": by_kind(batch.image, blind)}
        if model.config.fusion != "none":
            out["right"] = by_kind(batch.image, sees)
            out["wrong"] = by_kind(jnp.roll(batch.image, 1, axis=0), sees)
        return out

    def towers(params, batch: Batch):
        images = normalise_images(batch.image)
        zimg, ztxt, t, b = model.apply({"params": params}, images, batch.tokens)
        found = (zimg @ ztxt.T).argmax(-1) == jnp.arange(zimg.shape[0])
        loss = sigmoid_contrastive_loss(zimg, ztxt, t, b)
        return {"loss": (loss, 1.0), "accuracy": (found.sum(), found.shape[0])}

    return captions if isinstance(model, Hive) else towers
