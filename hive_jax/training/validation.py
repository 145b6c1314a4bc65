"""Validation losses: with the correct image, a mismatched image, and no image.

The difference of the first two, `image_gain`, says how much the image helps.
"""

from collections.abc import Callable

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from hive_jax.data.batch import Batch
from hive_jax.data.loader import Loader
from hive_jax.models.hive import Hive
from hive_jax.training import watchdog
from hive_jax.training.losses import sigmoid_contrastive_loss
from hive_jax.training.objectives import (
    image_features,
    normalize_images,
    token_losses,
    valid_pairs,
)


def make_eval_step(model: nn.Module, num_tags: int = 0) -> Callable:
    """Returns the function (params, batch) -> sums, which are added over batches.

    Args:
      model: a Hive or TwoTowers.
      num_tags: number of token tags of the dataset; 0 if batches have none.

    Returns:
      For a Hive a function that returns (summed loss, number of tokens), float32[n]
      each with n = max(1, num_tags), for "right" (the sample's image), "wrong" (the
      image of the previous sample in the batch) and "none" (no image). For two towers
      (sum, count) of "loss" and of "accuracy", retrieval of the text by its image.
    """

    def caption_sums(params, batch: Batch):
        weight = batch.target[:, 1:].astype(jnp.float32)
        tag = jnp.zeros_like(batch.tokens) if batch.tag is None else batch.tag
        # One product sums by tag; tokens without a target count nowhere.
        tags = jax.nn.one_hot(tag[:, 1:], max(1, num_tags)) * weight[:, :, None]
        # Encoded once: another sample's image is another row of the same features.
        features = image_features(model, params, batch)
        uses_image = model.config.fusion_kind.uses_image
        names = ("right", "wrong", "none") if uses_image else ("none",)
        is_wrong = jnp.array([name == "wrong" for name in names])
        sees_image = jnp.array([name != "none" for name in names])

        def sums(case):
            is_wrong, sees_image = case
            used = features
            if uses_image:
                # Images move and masks stay: only what is seen differs from "right".
                used = jnp.where(is_wrong, jnp.roll(features, 1, axis=1), features)
            # A mask of zeros: no token attends to the image, as in a sample without one.
            altered = batch.replace(image_mask=batch.image_mask & sees_image)
            nll = token_losses(model, params, altered, used)
            # [B, T - 1, 1] x [B, T - 1, n] -> [n]
            return (nll[:, :, None] * tags).sum((0, 1)), tags.sum((0, 1))

        # A loop on the device: the decoder is traced and compiled once.
        nll, count = jax.lax.map(sums, (is_wrong, sees_image))
        return {name: (nll[row], count[row]) for row, name in enumerate(names)}

    def contrastive_sums(params, batch: Batch):
        images = normalize_images(batch.image)
        zimg, ztxt, t, b = model.apply({"params": params}, images, batch.tokens)
        valid = valid_pairs(batch)
        # [B images, B texts]; the text of an invalid sample is never the nearest.
        similarity = jnp.where(valid[None, :], zimg @ ztxt.T, -jnp.inf)
        correct = valid & (similarity.argmax(-1) == jnp.arange(zimg.shape[0]))
        loss = sigmoid_contrastive_loss(zimg, ztxt, t, b, valid)
        return {"loss": (loss, 1.0), "accuracy": (correct.sum(), valid.sum())}

    return caption_sums if isinstance(model, Hive) else contrastive_sums


def validate(
    eval_step,
    params: dict,
    loader: Loader,
    num_batches: int,
    should_stop: Callable[[], bool] = lambda: False,
) -> dict | None:
    """Returns the mean losses over the first batches of a loader.

    Args:
      eval_step: from `make_eval_step`, jitted.
      params: nested dict of parameters.
      loader: of the validation split.
      num_batches: batches to read, the same ones each time.
      should_stop: called before each batch; True ends the validation.

    Returns:
      None if it was stopped; else the losses.
      For captions, in nats per token: "loss" (with the sample's image),
      "loss_wrong_image" (with another sample's), "loss_no_image", "image_gain" (wrong
      minus right), and "loss/TAG" and "image_gain/TAG" for each tag of the dataset.
      For two towers: "loss" and "accuracy".
    """
    total = None
    watchdog.enter("the start of the validation")
    eval_step = watchdog.compile_together(eval_step)
    for batch in loader.batches(0, num_batches):
        if should_stop():
            return None
        watchdog.enter("a validation batch")
        # Summed on the device. It is a batch ahead of the sums that are waited for,
        # and not more, so that a stop is not far behind.
        sums = eval_step(params, batch)
        jax.block_until_ready(total)
        total = sums if total is None else jax.tree.map(jnp.add, total, sums)
    watchdog.enter("reading the validation losses")
    # The only transfer, after all batches are under way.
    total = jax.device_get(total)
    if "accuracy" in total:
        return {name: float(value / count) for name, (value, count) in total.items()}
    return _summary(total, loader.tag_names)


def _summary(total: dict, tag_names: tuple[str, ...]) -> dict:
    """Returns the losses of captions, overall and by tag, from their sums."""
    # Per token over all batches: batches with more tokens weigh more.
    losses = {image: np.sum(nll) / np.sum(n) for image, (nll, n) in total.items()}
    out = {"loss": losses.get("right", losses["none"])}
    if "right" in total:
        out["loss_wrong_image"] = losses["wrong"]
        out["loss_no_image"] = losses["none"]
        out["image_gain"] = losses["wrong"] - losses["right"]
    for index, tag in enumerate(tag_names):
        by_image = {image: nll[index] for image, (nll, _) in total.items()}
        count = total["none"][1][index]
        if count:  # a tag may be absent from the validation samples
            out[f"loss/{tag}"] = by_image.get("right", by_image["none"]) / count
            if "right" in total:
                gain = by_image["wrong"] - by_image["right"]
                out[f"image_gain/{tag}"] = gain / count
    return {name: float(value) for name, value in out.items()}


def summary_line(values: dict) -> str:
    """Returns a line of text with the main values of `validate`."""
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
