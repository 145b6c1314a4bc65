"""Zero-shot classification and retrieval with the two towers of a SigLIP."""

import dataclasses
import hashlib
from collections.abc import Iterable, Sequence
from pathlib import Path

import jax.numpy as jnp
import numpy as np
from flax.traverse_util import flatten_dict

from hive_jax.config import ProbeConfig
from hive_jax.console import log
from hive_jax.data.class_captions import fill_template
from hive_jax.data.parallel import ordered_map
from hive_jax.data.sources.base import DataSource, SourceOptions
from hive_jax.data.sources.registry import whole_source
from hive_jax.data.transforms import load_pixels
from hive_jax.errors import CheckpointError, DataError
from hive_jax.evaluation.frozen_features import split_batches
from hive_jax.evaluation.results import accuracy_by_class, open_store
from hive_jax.inference.encoder import fingerprint
from hive_jax.inference.model import TrainedModel
from hive_jax.models.siglip import l2_normalize

RANKS = (1, 5, 10)


def evaluate_towers(config: ProbeConfig, model: TrainedModel, out: Path) -> dict:
    """Evaluates zero-shot classification or retrieval, depending on config.probe.

    Writes out/TASK/result.json and samples.jsonl.

    Args:
      config: settings of the evaluation; its preprocessing and tokenizer, if set,
        override those of the model.
      model: model with an image tower and a text tower.
      out: folder to write.

    Returns:
      The result, as in result.json.

    Raises:
      CheckpointError: the model has no text tower.
      DataError: config.test has no classes, or a missing or unreadable image.
      OutputError: `out` has a result of other settings, or cannot be written.
    """
    if "txt" not in model.params:
        raise CheckpointError(
            f"{model.source} has no text tower; expected a run of the objective "
            "'contrastive', or weights of a SigLIP with both towers"
        )
    model = _with_settings(model, config)
    preprocessing, size = model.encoder.preprocessing, model.encoder.config.image_size
    source = whole_source(config.test, SourceOptions(size, preprocessing, config.seed))
    for note in source.notes:
        log(note)
    settings = {
        "task": config.probe,
        "n": len(source),
        "data": source.fingerprint,
        "preprocessing": preprocessing,
        "image_size": size,
        "texts": model.text_preprocessing.as_json(),
        "checkpoint": {"fingerprint": fingerprint(flatten_dict(model.params, sep="/"))},
    }
    zero_shot = config.probe == "zero_shot"
    if zero_shot:
        settings["templates"] = list(config.templates)
    with open_store(out / config.probe, settings) as store:
        if store.result is not None:
            return store.result
        evaluate = _zero_shot if zero_shot else _retrieval
        return store.finish(*evaluate(config, model, source))


def _with_settings(model: TrainedModel, config: ProbeConfig) -> TrainedModel:
    """Returns the model with the tokenizer, preprocessing and dtype of the evaluation."""
    data = dataclasses.replace(
        model.config.data,
        tokenizer=config.tokenizer or model.config.data.tokenizer,
        preprocessing=config.preprocessing or model.config.data.preprocessing,
    )
    run = dataclasses.replace(model.config, data=data, dtype=config.dtype)
    return dataclasses.replace(model, config=run)


def _embed_images(
    config: ProbeConfig, model: TrainedModel, source: DataSource, rows: Sequence[int]
) -> np.ndarray:
    """Embeds the images of rows of a source. Raises DataError for an unreadable one."""
    size, preprocessing = model.encoder.config.image_size, model.encoder.preprocessing

    def load(indices: np.ndarray) -> np.ndarray:
        return np.stack(
            [
                load_pixels(source[i].image, size, preprocessing, source.describe(i))
                for i in np.take(rows, indices).tolist()
            ]
        )

    batches = ordered_map(load, split_batches(len(rows)), config.threads)
    return np.concatenate([model.embed_images(batch) for batch in batches])


def _zero_shot(config: ProbeConfig, model: TrainedModel, source: DataSource):
    classes = source.classes
    if not classes:
        raise DataError(
            f"config.test is {config.test!r}, which has no classes; expected folder:, "
            "a source with label=, or tabletop:classes"
        )
    by_template = [
        model.embed_texts([fill_template(template, name) for name in classes])
        for template in config.templates
    ]
    # Prompt ensembling as in CLIP: the normalised mean of the templates' embeddings.
    mean = np.asarray(l2_normalize(jnp.asarray(np.mean(by_template, axis=0))))
    likeness = _embed_images(config, model, source, range(len(source))) @ mean.T
    labels = [source[index].label for index in range(len(source))]
    right = np.array([classes.index(label) for label in labels])
    ranks = _ranks(likeness, right)
    predicted = likeness.argmax(axis=1)
    samples = (
        {
            "id": str(index),
            "group": "",
            "kinds": [classes[right[index]]],
            "answers": [classes[right[index]]],
            "output": classes[predicted[index]],
            "score": float(ranks[index] == 0),
        }
        for index in range(len(right))
    )
    scores = {
        "accuracy": float(100 * (ranks == 0).mean()),
        "accuracy_top5": float(100 * (ranks < 5).mean()),
    }
    return samples, scores, accuracy_by_class(ranks == 0, right, classes)


def _retrieval(config: ProbeConfig, model: TrainedModel, source: DataSource):
    """Computes recall@K in percent in both directions.

    Equal texts are one candidate, and so are equal images: of an image's captions and of
    a text's images the best counts, as in the evaluations of COCO and Flickr30k.
    """

    def read(row: int) -> tuple[str, bytes]:
        sample = source[row]
        if sample.image is None:
            raise DataError(
                f"{source.describe(row)}: has no image; retrieval needs one for each text"
            )
        # By content: tars and TFDS repeat an image for each caption, without a name.
        return sample.segments[0].text.strip(), hashlib.sha256(sample.image).digest()

    read_rows = ordered_map(read, range(len(source)), config.threads)
    texts, digests = zip(*read_rows, strict=True)
    texts, text_of = _unique(texts)
    images, image_of = _unique(digests)
    first = np.unique(image_of, return_index=True)[1].tolist()  # row of each image
    embedded = _embed_images(config, model, source, first)
    likeness = embedded @ model.embed_texts(texts).T  # [images, texts]
    is_pair = np.zeros(likeness.shape, bool)
    is_pair[image_of, text_of] = True
    own = np.where(is_pair, likeness, -np.inf)
    to_text = (likeness > own.max(axis=1, keepdims=True)).sum(axis=1)
    to_image = (likeness > own.max(axis=0)).sum(axis=0)
    samples = (
        {
            "id": str(first[image]),
            "group": "",
            "kinds": [],
            "answers": [texts[text] for text in np.flatnonzero(is_pair[image])],
            "output": texts[likeness[image].argmax()],
            "score": float(to_text[image] == 0),
        }
        for image in range(len(images))
    )
    ways = {"image_to_text": to_text, "text_to_image": to_image}
    scores = {
        f"{way}_recall@{k}": float(100 * (ranks < k).mean())
        for way, ranks in ways.items()
        for k in RANKS
    }
    counts = {f"{way}_recall@{k}": len(ways[way]) for way in ways for k in RANKS}
    return samples, scores, {}, counts


def _unique(values: Iterable) -> tuple[list, list[int]]:
    """Returns the different values, and the number of each value among them."""
    numbers = {}
    positions = [numbers.setdefault(value, len(numbers)) for value in values]
    return [*numbers], positions


def _ranks(likeness: np.ndarray, right: np.ndarray) -> np.ndarray:
    """Counts the columns of likeness[n, m] above the correct one: ranks int[n] from 0."""
    own = np.take_along_axis(likeness, right[:, None], axis=1)
    return (likeness > own).sum(axis=1)
