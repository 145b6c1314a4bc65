"""Probes: train classifiers on frozen features and score them."""

from collections.abc import Iterator
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

from hive_jax.config import MeshConfig, ProbeConfig
from hive_jax.console import log
from hive_jax.data.sources.base import SourceOptions
from hive_jax.data.sources.registry import whole_source
from hive_jax.errors import ConfigError, DataError
from hive_jax.evaluation.classifier import (
    AttentiveProbe,
    ClassifierTrainer,
    LinearProbe,
    batch_indices,
    make_predict,
)
from hive_jax.evaluation.frozen_features import (
    FeatureExtractor,
    LabelledImages,
    extract,
    fits_in_memory,
    split_batches,
)
from hive_jax.evaluation.results import ResultStore, accuracy_by_class, open_store
from hive_jax.inference.encoder import Encoder
from hive_jax.models.connections import block_number
from hive_jax.plotting import draw_confusion
from hive_jax.training import sharding
from hive_jax.training.objectives import compute_dtype


class Probe:
    """Trains and applies classifiers on the frozen features of one encoder.

    Attributes:
      classes: class names, in the order of the classifiers' outputs.

    Args:
      config: data and recipe.
      encoder: encoder with frozen weights.
      depths: encoder blocks to probe, counted from 1.

    Raises:
      DataError: the training data has fewer than two classes.
    """

    def __init__(self, config: ProbeConfig, encoder: Encoder, depths: tuple[int, ...]):
        self.config, self.encoder, self.depths = config, encoder, depths
        preprocessing = config.preprocessing or encoder.preprocessing
        size = encoder.config.image_size
        options = SourceOptions(size, preprocessing, config.seed)
        train, test = (
            whole_source(text, options) for text in (config.train, config.test)
        )
        for note in (*train.notes, *test.notes):
            log(note)
        self.classes = train.classes
        if len(self.classes) < 2:
            raise DataError(
                f"config.train is {config.train!r}, which has no classes; expected "
                "folder:, a source with label=, one of the named sets, or tabletop:classes"
            )
        arguments = (self.classes, preprocessing, size, config.threads)
        # Training does without an unreadable image, which is counted; a score has to be
        # of all test images.
        self._train = LabelledImages(train, *arguments, strict=False)
        self._test = LabelledImages(test, *arguments, strict=True)
        # Data-parallel over the devices of this process.
        devices = jax.local_devices()
        mesh = sharding.make_mesh(MeshConfig(), devices) if len(devices) > 1 else None
        pooled = config.probe == "linear"
        norm = config.fresh_norm
        self._extractor = FeatureExtractor(
            encoder, depths, pooled, compute_dtype(config.dtype), mesh, norm
        )
        # The attentive probe has as many heads as the encoder's own attention.
        self._module = (
            LinearProbe(len(self.classes), norm)
            if pooled
            else AttentiveProbe(len(self.classes), encoder.config.num_heads, norm)
        )
        self._predict = make_predict(self._module)

    def settings(self, depth: int) -> dict:
        """Returns all settings that the result at a depth depends on, as JSON values."""
        config = self.config
        # The last depth has no suffix: its results are those of an ordinary probe.
        last = self.encoder.config.depth
        names = (
            *("augment", "num_seeds", "seed", "epochs", "warmup_epochs", "batch_size"),
            *("peak_lr", "weight_decay", "clip_norm", "fresh_norm"),
        )
        return {
            "task": f"probe_{config.probe}"
            + (f"_depth{depth}" if depth != last else ""),
            "n": len(self._test),
            "data": self._test.source.fingerprint,
            "train_data": self._train.source.fingerprint,
            "classes": len(self.classes),
            "recipe": {name: getattr(config, name) for name in names},
            "preprocessing": config.preprocessing or self.encoder.preprocessing,
            "image_size": self.encoder.config.image_size,
            "checkpoint": {"fingerprint": self.encoder.fingerprint, "depth": depth},
        }

    def fitted(self) -> list[list[dict]]:
        """Trains the classifiers.

        Features are extracted once and cached if they fit in memory and images are not
        augmented; otherwise they are computed anew for each batch.

        Returns:
          The classifiers' parameters by depth and seed.

        Raises:
          ConfigError: several depths are probed, but features cannot be cached.
          DataError: too many images are unreadable.
        """
        if self.config.augment or not fits_in_memory(self._extractor, len(self._train)):
            return self._fitted_without_cache()
        features, classes = extract(self._extractor, self._train, self.encoder.name)
        self._count_bad()
        # Class -1 marks unreadable images.
        features, classes = features[:, classes >= 0], classes[classes >= 0]
        # One compiled trainer for all depths and seeds.
        train = self._fit(len(classes))

        def batches(at_depth: np.ndarray, seed: int) -> Iterator:
            for rows in batch_indices(self.config, len(classes), seed):
                yield at_depth[rows], classes[rows]

        return [
            [train(batches(at_depth, seed), seed) for seed in self._seeds()]
            for at_depth in features
        ]

    def _fit(self, count: int) -> ClassifierTrainer:
        example = jnp.zeros((1, *self._extractor.shape))
        return ClassifierTrainer(self._module, self.config, example, count)

    def _fitted_without_cache(self) -> list[list[dict]]:
        if len(self.depths) > 1:
            raise ConfigError(
                "probing several depths caches the features of all of them, which "
                "excludes config.augment and needs memory: use fewer images, "
                "take=first:N, or probe=linear"
            )

        def batches(seed: int) -> Iterator:
            rows = batch_indices(self.config, len(self._train), seed)
            augment_seed = seed if self.config.augment else None
            for images, classes in self._train.batches(rows, augment_seed):
                # At every batch, so that a broken dataset ends the run early.
                self._train.require(self.config.max_bad_fraction)
                yield self._extractor(images)[0], classes

        train = self._fit(len(self._train))
        by_seed = [train(batches(seed), seed) for seed in self._seeds()]
        self._count_bad()
        return [by_seed]

    def predicted(self, fitted: list[list[dict]]) -> tuple[np.ndarray, np.ndarray]:
        """Returns predicted classes int32[depths, seeds, n] and labels int32[n].

        Raises:
          DataError: a test image is unreadable.
        """
        # Parameters [seeds, ...] of each depth, to predict with all seeds at once.
        stacked = [
            jax.tree.map(lambda *leaves: jnp.stack(leaves), *params)
            for params in fitted
        ]
        predicted, labels = [], []
        for images, classes in self._test.batches(split_batches(len(self._test))):
            # Each test image is encoded once, for all depths and seeds.
            features = self._extractor(images)
            pairs = zip(stacked, features, strict=True)
            predicted.append(np.stack([self._predict(*pair) for pair in pairs]))
            labels.append(classes)
        return np.concatenate(predicted, axis=-1), np.concatenate(labels)

    def _seeds(self) -> range:
        return range(self.config.seed, self.config.seed + self.config.num_seeds)

    def _count_bad(self) -> None:
        self._train.require(self.config.max_bad_fraction)
        if bad := self._train.bad:
            log(
                f"{len(bad)} of {len(self._train)} training images cannot be read and "
                f"are left out; the first: {next(iter(bad.values()))}"
            )


def probe(
    config: ProbeConfig, encoder: Encoder, out: Path, every_depth: bool = False
) -> tuple[dict[int, dict], list[list[dict]] | None, Probe]:
    """Probes an encoder; returns the stored results of the same settings if complete.

    Writes out/TASK/result.json, samples.jsonl and confusion.png for each depth.

    Args:
      config: data and recipe.
      encoder: encoder with frozen weights.
      out: folder to write.
      every_depth: probe every depth instead of config.depth only.

    Returns:
      (results by depth, classifiers' parameters by depth and seed, the probe). The
      parameters are None if all results were stored already.

    Raises:
      ConfigError: the encoder does not have the depth, or the settings do not go together.
      DataError: the data has no classes, or too many images are unreadable.
      OutputError: `out` has results of other settings, or cannot be written.
    """
    last = encoder.config.depth
    try:
        depth = block_number(config.depth, last, "config.depth")
    except ValueError as error:
        raise ConfigError(f"{encoder.name}: {error}") from None
    depths = tuple(range(1, last + 1)) if every_depth else (depth,)
    work = Probe(config, encoder, depths)
    settings = {depth: work.settings(depth) for depth in depths}
    folders = {depth: out / settings[depth]["task"] for depth in depths}
    results = {}
    for depth in depths:
        # Before any training: settings that differ from stored ones are an error now.
        with open_store(folders[depth], settings[depth]) as store:
            results[depth] = store.result
    if all(results.values()):
        log(f"{encoder.name}: finished already; results in {out}")
        return results, None, work
    fitted = work.fitted()
    predicted, labels = work.predicted(fitted)
    for depth, classes in zip(depths, predicted, strict=True):
        with open_store(folders[depth], settings[depth]) as store:
            draw_confusion(
                folders[depth] / "confusion.png",
                _confusion(classes, labels, len(work.classes)),
                work.classes,
                f"{encoder.name}, depth {depth}",
            )
            # Some depths may be stored already: all of them are trained, for one
            # extraction serves them all, and stored results stay as they are.
            if store.result is None:
                results[depth] = _finish(store, work.classes, classes, labels)
    return results, fitted, work


def _finish(
    store: ResultStore, classes, predicted: np.ndarray, labels: np.ndarray
) -> dict:
    """Scores predicted int32[seeds, n] against labels int32[n] and stores the result."""
    hits = predicted == labels[None]
    by_seed = 100 * hits.mean(axis=1)
    # Sample standard deviation (ddof=1): the seeds are a sample of all possible ones.
    std = float(by_seed.std(ddof=1)) if len(by_seed) > 1 else 0.0
    scores = {"accuracy": float(by_seed.mean()), "accuracy_std": std}
    samples = (
        {
            "id": str(index),
            "group": "",
            "kinds": [classes[labels[index]]],
            "answers": [classes[labels[index]]],
            "output": [classes[number] for number in predicted[:, index]],
            "score": float(hits[:, index].mean()),
        }
        for index in range(len(labels))
    )
    return store.finish(samples, scores, accuracy_by_class(hits, labels, classes))


def _confusion(predicted: np.ndarray, labels: np.ndarray, count: int) -> np.ndarray:
    """Counts int[label, predicted class] over all seeds."""
    matrix = np.zeros((count, count), int)
    # Unbuffered: `matrix[...] += 1` would count repeated pairs once.
    np.add.at(matrix, (np.broadcast_to(labels, predicted.shape), predicted), 1)
    return matrix
