"""Does the model look at the image? The loss on held-out samples, three ways."""

from collections.abc import Callable

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from hive_jax.data.loader import Loader
from hive_jax.data.types import Batch
from hive_jax.models.hive import Hive
from hive_jax.training.losses import sigmoid_contrastive_loss
from hive_jax.training.objectives import is_pair, normalize_images, token_losses


def make_eval_step(model: nn.Module, num_tags: int = 0) -> Callable:
    """(params, batch) -> sums to add up over batches.

    Args:
      model: of the run.
      num_tags: of the dataset; 0 if batches have no tags.

    For captions: for "right" (the sample's image), "wrong" (its neighbour's in the
    batch, another scene) and "none" (no image) the summed loss and the number of
    tokens, float32[num_tags] each, or [1] without tags. For towers: the loss, and how many images find
    their text.
    """

    def captions(params, batch: Batch):
        weight = batch.target[:, 1:].astype(jnp.float32)
        tag = jnp.zeros_like(batch.tokens) if batch.tag is None else batch.tag
        tags = jax.nn.one_hot(tag[:, 1:], max(1, num_tags)) * weight[:, :, None]

        def by_tag(image, image_mask):
            altered = batch.replace(image=image, image_mask=image_mask)
            nll = token_losses(model, params, altered)
            return (nll[:, :, None] * tags).sum((0, 1)), tags.sum((0, 1))

        sees, blind = batch.image_mask, jnp.zeros_like(batch.image_mask)
        out = {"none": by_tag(batch.image, blind)}
        if model.config.fusion_class.uses_image:
            out["right"] = by_tag(batch.image, sees)
            out["wrong"] = by_tag(jnp.roll(batch.image, 1, axis=0), sees)
        return out

    def towers(params, batch: Batch):
        images = normalize_images(batch.image)
        zimg, ztxt, t, b = model.apply({"params": params}, images, batch.tokens)
        there = is_pair(batch)
        likeness = jnp.where(there[None, :], zimg @ ztxt.T, -jnp.inf)
        found = there & (likeness.argmax(-1) == jnp.arange(zimg.shape[0]))
        loss = sigmoid_contrastive_loss(zimg, ztxt, t, b, there)
        return {"loss": (loss, 1.0), "accuracy": (found.sum(), there.sum())}

    return captions if isinstance(model, Hive) else towers


def validate(eval_step, params: dict, loader: Loader, num_batches: int) -> dict:
    """Mean losses over the first `num_batches` batches of the loader.

    Returns:
      For captions, in nats per token: "loss" (with the sample's image),
      "loss_wrong_image" (with another scene's), "loss_no_image", "image_gain" (wrong
      minus right: what looking is worth), and "loss/TAG", "image_gain/TAG" for each
      of the dataset's tags. For towers: "loss" and "accuracy".
    """
    total = None
    for batch in loader.batches(0, num_batches):
        sums = eval_step(params, batch)
        total = sums if total is None else jax.tree.map(jnp.add, total, sums)
    total = jax.device_get(total)
    if "accuracy" in total:
        return {name: float(value / count) for name, (value, count) in total.items()}
    return _summary(total, loader.tag_names)


def _summary(total: dict, tag_names: tuple[str, ...]) -> dict:
    losses = {image: np.sum(nll) / np.sum(n) for image, (nll, n) in total.items()}
    out = {"loss": losses.get("right", losses["none"])}
    if "right" in total:
        out["loss_wrong_image"] = losses["wrong"]
        out["loss_no_image"] = losses["none"]
        out["image_gain"] = losses["wrong"] - losses["right"]
    for index, tag in enumerate(tag_names):
        by_image = {image: nll[index] for image, (nll, _) in total.items()}
        count = total["none"][1][index]
        if count:
            out[f"loss/{tag}"] = by_image.get("right", by_image["none"]) / count
            if "right" in total:
                gain = by_image["wrong"] - by_image["right"]
                out[f"image_gain/{tag}"] = gain / count
    return {name: float(value) for name, value in out.items()}


def summary_line(values: dict) -> str:
    """The figures that matter, on one line."""
    line = f"validation loss {values['loss']:.4f}"
    if "accuracy" in values:
        return f"{line}, text found for {values['accuracy']:.1%} of the images"
    if "image_gain" in values:
        line += (
            f" with its image, {values['loss_wrong_image']:.4f} with another's "
            f"(difference {values['image_gain']:+.4f} nats per token), "
            f"{values['loss_no_image']:.4f} without"
        )
    return line
