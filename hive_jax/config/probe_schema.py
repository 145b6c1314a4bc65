"""Dataclass of a probe's config, with every key and its default; see schema.py."""

import dataclasses

from hive_jax.config.bounds import require_in_bounds
from hive_jax.config.schema import PREPROCESSING
from hive_jax.config.validation import DTYPES, require, require_name, require_one_of
from hive_jax.io import require_path

PROBES = ("linear", "attentive", "zero_shot", "retrieval")


@dataclasses.dataclass(frozen=True)
class ProbeConfig:
    """Evaluation of a frozen encoder: a classifier on its features, or zero-shot
    classification and retrieval with both towers of a SigLIP.

    Attributes:
      name: of the result.
      probe: "linear" on the mean of the tokens, "attentive" (an attention-pooling
        probe), and for two towers "zero_shot" classification by class names and
        "retrieval" of images by text and of texts by image.
      depth: encoder block of the features; 0 or -1 for the last one, -2 for the one
        before it.
      fresh_norm: train a LayerNorm on the features with the classifier, as the authors'
        code does. Otherwise the last block has the encoder's own norm, and the others
        one without scale and bias.
      train: training dataset, as data.source of a run.
      test: test dataset, as data.source of a run.
      preprocessing: as in data of a run; empty for that of the weights.
      tokenizer: as in data of a run; empty for that of the weights.
      augment: random crops, flips and colours; the encoder then runs in every epoch,
        otherwise once.
      num_seeds: number of classifiers to train, with seeds from `seed` on.
      seed: of the first classifier.
      epochs: passes over the training dataset.
      warmup_epochs: linear warm-up, before a cosine to 0.
      batch_size: images a step, over all devices.
      peak_lr: learning rate at the end of the warm-up.
      weight_decay: of AdamW, multiplied by the learning rate.
      clip_norm: largest global norm of the gradients.
      templates: prompts for zero_shot with {} for the class name, "a {}" for the name
        with its article; their text embeddings are averaged.
      max_bad_fraction: largest fraction of unreadable training images.
      dtype: of the computation, as for a run.
      threads: number of threads that read and decode.
    """

    name: str = "probe"
    probe: str = "linear"
    depth: int = 0
    fresh_norm: bool = False
    train: str = "tabletop:classes,take=first:4000"
    test: str = "tabletop:classes,split=test,take=first:2000"
    preprocessing: str = ""
    tokenizer: str = ""
    augment: bool = False
    num_seeds: int = 3
    seed: int = 0
    epochs: int = 5
    warmup_epochs: float = 1.5
    batch_size: int = 512
    peak_lr: float = 2e-4
    weight_decay: float = 0.01
    clip_norm: float = 3.0
    templates: tuple[str, ...] = ("a photo of a {}",)
    max_bad_fraction: float = 0.01
    dtype: str = "auto"
    threads: int = 2

    def validate(self) -> None:
        require_one_of(PROBES, "probe", self.probe)
        require_one_of(DTYPES, "dtype", self.dtype)
        require_one_of(("", *PREPROCESSING), "preprocessing", self.preprocessing)
        require_in_bounds(self)
        require_name("name", self.name)
        require_path(self.tokenizer, "config.tokenizer")
        require(
            bool(self.templates) and all("{}" in text for text in self.templates),
            "templates",
            self.templates,
            "texts with {} for the name of a class",
        )
