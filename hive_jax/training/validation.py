"""Does the model look at the image? The loss on held-out samples, three ways."""

import jax
import numpy as np

from hive_jax.data.batch import KINDS
from hive_jax.data.loader import Loader


def validate(eval_step, params: dict, loader: Loader, num_batches: int) -> dict:
    """Mean losses over the first `num_batches` batches of the loader.

    Returns:
      For captions, in nats per token: "loss" (with the sample's image),
      "loss_wrong_image" (with another scene's), "loss_no_image", "image_gain" (wrong
      minus right: what looking is worth), and "loss/KIND", "image_gain/KIND" for
      words of each kind. For towers: "loss" and "accuracy".
    """
    total = None
    for batch in loader.batches(0, num_batches):
        sums = eval_step(params, batch)
        total = sums if total is None else jax.tree.map(jax.numpy.add, total, sums)
    total = jax.device_get(total)
    if "accuracy" in total:
        return {name: float(value / count) for name, (value, count) in total.items()}
    return _summary(total)


def _summary(total: dict) -> dict:
    losses = {image: np.sum(nll) / np.sum(n) for image, (nll, n) in total.items()}
    out = {"loss": losses.get("right", losses["none"])}
    if "right" in total:
        out["loss_wrong_image"] = losses["wrong"]
        out["loss_no_image"] = losses["none"]
        out["image_gain"] = losses["wrong"] - losses["right"]
    for index, kind in enumerate(KINDS):
        by_image = {image: nll[index] for image, (nll, _) in total.items()}
        count = total["none"][1][index]
        if count:
            out[f"loss/{kind}"] = by_image.get("right", by_image["none"]) / count
            if "right" in total:
                gain = by_image["wrong"] - by_image["right"]
                out[f"image_gain/{kind}"] = gain / count
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
