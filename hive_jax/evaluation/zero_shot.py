"""Zero-shot classification and retrieval with the two towers of a SigLIP."""

import dataclasses
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from flax.traverse_util import flatten_dict

from hive_jax.config import ProbeConfig
from hive_jax.data.ahead import in_order
from hive_jax.data.batch import Sample, Segment
from hive_jax.data.pixels import pixels
from hive_jax.data.sets.parts import classes_of
from hive_jax.data.sets.sources import Opening, whole_source
from hive_jax.data.tokenizer import BUILTIN, encode_sample, load_tokenizer
from hive_jax.errors import CheckpointError, ConfigError, DataError
from hive_jax.evaluation.frozen_features import split_batches
from hive_jax.evaluation.results import open_store
from hive_jax.inference.generate import END
from hive_jax.inference.model import fingerprint
from hive_jax.models.siglip import (
    SiglipConfig,
    SiglipEncoder,
    TextTower,
    TextTowerConfig,
    normalise,
)
from hive_jax.training.handover import restore_run
from hive_jax.training.objectives import compute_dtype, normalise_images
from hive_jax.training.runs import is_run, stored_config
from hive_jax.weights.parts import open_two_towers

RANKS = (1, 5, 10)


@dataclasses.dataclass(frozen=True)
class Towers:
    """Image and text tower.

    Attributes:
      params: nested dict with the branches img and txt.
      ending: appended to each text, as in training.
    """

    name: str
    image: SiglipConfig
    text: TextTowerConfig
    params: dict
    preprocessing: str
    tokenizer: str
    ending: str


def load_towers(name: str, path: str) -> Towers:
    """Loads two towers.

    Args:
      name: for tables and messages.
      path: workdir of a contrastive run, or weights as `open_two_towers` takes them.

    Raises:
      MissingInputError: there is nothing at `path`.
      CheckpointError: it has no text tower.
    """
    if not is_run(path):
        part = open_two_towers(path)
        # Of a Hugging Face folder, the tokenizer beside its weights.
        beside = path if Path(path).is_dir() else part.tokenizer
        # The built-in tokenizer has no other end of text than this project's data.
        ending = END if part.tokenizer == BUILTIN else ""
        return Towers(
            name, *part.config, part.params(), part.preprocessing, beside, ending
        )
    config = stored_config(path)
    if config.objective != "contrastive":
        raise CheckpointError(
            f"{path} has no text tower: its objective is {config.objective!r}; expected "
            "'contrastive', or weights of a SigLIP"
        )
    _, params, _ = restore_run(path)
    data = config.data
    return Towers(
        *(name, config.model.encoder, config.text_tower, params),
        *(data.preprocessing, data.tokenizer, END),
    )


class Embedder:
    """Embeds images and texts as unit vectors, float32[n, D]."""

    def __init__(self, config: ProbeConfig, towers: Towers):
        self._config, self._towers = config, towers
        source = config.tokenizer or towers.tokenizer
        if not source:
            raise ConfigError(
                "config.tokenizer is '', and none came with the weights; expected a "
                "tokenizer.json, a SentencePiece .model, or a folder with either"
            )
        self._tokenizer = load_tokenizer(source)
        dtype = compute_dtype(config.dtype)
        image, text = (
            SiglipEncoder(towers.image, dtype),
            TextTower(towers.text, dtype),
        )

        @jax.jit
        def of_images(params, images):
            out = image.apply({"params": params}, normalise_images(images))
            return normalise(out.pooled)

        @jax.jit
        def of_texts(params, tokens):
            return normalise(text.apply({"params": params}, tokens))

        self._of_images, self._of_texts = of_images, of_texts

    def images(self, source) -> np.ndarray:
        """Embeds all images of a source. Raises DataError for an unreadable one."""
        towers, size = self._towers, self._towers.image.image_size
        preprocessing = self._config.preprocessing or towers.preprocessing

        def load(rows: np.ndarray) -> np.ndarray:
            return np.stack(
                [
                    pixels(source[i].image, size, preprocessing, source.where(i))
                    for i in rows.tolist()
                ]
            )

        parts = in_order(load, split_batches(len(source)), self._config.threads)
        found = [self._of_images(towers.params["img"], part) for part in parts]
        return np.concatenate(found)

    def texts(self, texts: list[str]) -> np.ndarray:
        """Embeds texts."""
        towers, length = self._towers, self._towers.text.num_tokens
        found = []
        for rows in split_batches(len(texts)):
            samples = [
                Sample(None, (Segment(texts[i].strip() + towers.ending),)) for i in rows
            ]
            tokens = [
                encode_sample(s, self._tokenizer, length)["tokens"] for s in samples
            ]
            found.append(self._of_texts(towers.params["txt"], jnp.asarray(tokens)))
        return np.concatenate(found)


def evaluate_towers(config: ProbeConfig, towers: Towers, out: Path) -> dict:
    """Zero-shot classification or retrieval, by config.probe.

    Writes out/TASK/result.json and samples.jsonl; returns the result.

    Raises:
      DataError: config.test has no classes, or an image that cannot be read.
    """
    preprocessing = config.preprocessing or towers.preprocessing
    how = Opening(towers.image.image_size, preprocessing, config.seed)
    source = whole_source(config.test, how)
    settings = {
        "task": config.probe,
        "n": len(source),
        "data": source.fingerprint,
        "preprocessing": preprocessing,
        "image_size": towers.image.image_size,
        "checkpoint": {
            "fingerprint": fingerprint(flatten_dict(towers.params, sep="/"))
        },
    }
    zero_shot = config.probe == "zero_shot"
    if zero_shot:
        settings["templates"] = list(config.templates)
    with open_store(out / config.probe, settings) as store:
        if store.result is not None:
            return store.result
        embedder = Embedder(config, towers)
        evaluated = _zero_shot if zero_shot else _retrieval
        return store.finish(*evaluated(config, embedder, source))


def _zero_shot(config: ProbeConfig, embedder: Embedder, source):
    classes = classes_of(source)
    if not classes:
        raise DataError(
            f"config.test is {config.test!r}, which has no classes; expected folder:, "
            "tfds: or table: with labels, or tabletop:classes"
        )
    names = [name.replace("_", " ") for name in classes]
    by_template = [
        embedder.texts([template.format(name) for name in names])
        for template in config.templates
    ]
    mean = np.asarray(normalise(jnp.asarray(np.mean(by_template, axis=0))))
    likeness = embedder.images(source) @ mean.T
    labels = [source[index].label for index in range(len(source))]
    right = np.array([classes.index(label) for label in labels])
    ranks = _ranks(likeness, right)
    found = likeness.argmax(axis=1)
    samples = (
        {
            "id": str(index),
            "group": "",
            "kinds": [classes[right[index]]],
            "answers": [classes[right[index]]],
            "output": classes[found[index]],
            "score": float(ranks[index] == 0),
        }
        for index in range(len(right))
    )
    parts = {
        name: {
            "accuracy": float(100 * (ranks[right == number] == 0).mean()),
            "n": int((right == number).sum()),
        }
        for number, name in enumerate(classes)
        if (right == number).any()
    }
    scores = {
        "accuracy": float(100 * (ranks == 0).mean()),
        "accuracy_top5": float(100 * (ranks < 5).mean()),
    }
    return samples, scores, parts


def _retrieval(config: ProbeConfig, embedder: Embedder, source):
    """recall@K in percent, both ways. An equal text is as good as an image's own."""
    texts = [source[index].segments[0].text.strip() for index in range(len(source))]
    numbers = {text: number for number, text in enumerate(dict.fromkeys(texts))}
    own = np.array([numbers[text] for text in texts])
    likeness = embedder.images(source) @ embedder.texts([*numbers]).T
    to_text = _ranks(likeness, own)
    # For a text, the best of its images.
    to_image = np.array(
        [
            (likeness[:, text] > likeness[own == text, text].max()).sum()
            for text in range(len(numbers))
        ]
    )
    samples = (
        {
            "id": str(index),
            "group": "",
            "kinds": [],
            "answers": [texts[index]],
            "output": [*numbers][likeness[index].argmax()],
            "score": float(to_text[index] == 0),
        }
        for index in range(len(texts))
    )
    scores = {
        f"{way}_recall@{k}": float(100 * (ranks < k).mean())
        for way, ranks in (("image_to_text", to_text), ("text_to_image", to_image))
        for k in RANKS
    }
    return samples, scores, {}


def _ranks(likeness: np.ndarray, right: np.ndarray) -> np.ndarray:
    """How many columns of likeness[n, m] are above the right one, int[n]."""
    own = np.take_along_axis(likeness, right[:, None], axis=1)
    return (likeness > own).sum(axis=1)
