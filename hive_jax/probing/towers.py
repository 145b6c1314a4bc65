"""Both towers of a SigLIP as they are: classes by their names, images by their texts."""

import dataclasses
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from flax.traverse_util import flatten_dict

from hive_jax.config import ProbeConfig
from hive_jax.data.parallel import ordered_map
from hive_jax.data.sources.base import SourceOptions
from hive_jax.data.sources.registry import whole_source
from hive_jax.data.tokenizer import encode_sample, load_tokenizer
from hive_jax.data.transforms import load_pixels
from hive_jax.data.types import Sample, Segment
from hive_jax.errors import CheckpointError, ConfigError, DataError
from hive_jax.evaluation.kept import kept_in
from hive_jax.models.siglip import (
    SiglipConfig,
    SiglipEncoder,
    TextTower,
    TextTowerConfig,
    l2_normalize,
)
from hive_jax.probing.encoders import fingerprint
from hive_jax.probing.features import in_parts
from hive_jax.training.objectives import compute_dtype, normalize_images
from hive_jax.training.stored_run import is_run, open_run
from hive_jax.weights.sources import open_two_towers

RANKS = (1, 5, 10)


@dataclasses.dataclass(frozen=True)
class Towers:
    """Image and text tower.

    Attributes:
      params: nested dict with the branches img and txt.
      ending: of each text, as they were trained.
    """

    name: str
    image: SiglipConfig
    text: TextTowerConfig
    params: dict
    preprocessing: str
    tokenizer: str
    ending: str


def load(name: str, path: str) -> Towers:
    """The towers at a path: a run of the objective "contrastive", or weights.

    Raises MissingInputError, CheckpointError.
    """
    if not is_run(path):
        part = open_two_towers(path)
        # Of a Hugging Face folder, the tokenizer beside its weights.
        beside = path if Path(path).is_dir() else part.tokenizer
        ending = "\n" if path.startswith("builtin:") else ""
        return Towers(
            name, *part.config, part.params(), part.preprocessing, beside, ending
        )
    run = open_run(path)
    config = run.config
    if config.objective != "contrastive":
        raise CheckpointError(
            f"{path} has no text tower: its objective is {config.objective!r}; expected "
            "'contrastive', or weights of a SigLIP"
        )
    params, _ = run.read_params()
    data = config.data
    return Towers(
        *(name, config.model.encoder, config.text_tower, params),
        *(data.preprocessing, data.tokenizer, "\n"),
    )


class Embedder:
    """Images and texts as unit vectors, float32[n, D]."""

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
            out = image.apply({"params": params}, normalize_images(images))
            return l2_normalize(out.pooled)

        @jax.jit
        def of_texts(params, tokens):
            return l2_normalize(text.apply({"params": params}, tokens))

        self._of_images, self._of_texts = of_images, of_texts

    def images(self, source) -> np.ndarray:
        """Of all samples of a source. Raises DataError for one that cannot be read."""
        towers, size = self._towers, self._towers.image.image_size
        preprocessing = self._config.preprocessing or towers.preprocessing

        def load(rows: np.ndarray) -> np.ndarray:
            return np.stack(
                [
                    load_pixels(
                        source[i].image, size, preprocessing, source.describe(i)
                    )
                    for i in rows.tolist()
                ]
            )

        parts = ordered_map(load, in_parts(len(source)), self._config.threads)
        found = [self._of_images(towers.params["img"], part) for part in parts]
        return np.concatenate(found)

    def texts(self, texts: list[str]) -> np.ndarray:
        towers, length = self._towers, self._towers.text.num_tokens
        found = []
        for rows in in_parts(len(texts)):
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
    how = SourceOptions(towers.image.image_size, preprocessing, config.seed)
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
    with kept_in(out / config.probe, settings) as kept:
        if kept.result is not None:
            return kept.result
        embedder = Embedder(config, towers)
        evaluated = _zero_shot if zero_shot else _retrieval
        return kept.finish(*evaluated(config, embedder, source))


def _zero_shot(config: ProbeConfig, embedder: Embedder, source):
    classes = source.classes
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
    mean = np.asarray(l2_normalize(jnp.asarray(np.mean(by_template, axis=0))))
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
