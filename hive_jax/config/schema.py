"""Dataclasses of a run's config, with every key and its default.

`configs/*.py` change values of `to_dict(RunConfig())`, and `from_dict` converts the
result back. `validate()` raises ConfigError for the first invalid value and names
its key.
"""

import dataclasses
import itertools
import re

from hive_jax.config.bounds import require_in_bounds
from hive_jax.config.validation import (
    DTYPES,
    require,
    require_multiple,
    require_name,
    require_one_of,
    validate_connections,
    validate_decoder,
    validate_encoder,
    validate_execution,
    validate_fusion,
    validate_text_tower,
)
from hive_jax.errors import ConfigError
from hive_jax.io import require_path
from hive_jax.models.config import HiveConfig, TextTowerConfig
from hive_jax.models.execution import ModelExecution

OBJECTIVES = ("caption", "contrastive")
# How image files are resized: hf as transformers' processors, bv as big_vision, and
# _pad with bars to a square; see hive_jax/data/transforms.py.
PREPROCESSING = (
    "hf_bicubic",
    "hf_bilinear",
    "hf_bicubic_pad",
    "hf_bilinear_pad",
    "bv_bilinear",
)


@dataclasses.dataclass(frozen=True)
class Rule:
    """Selects parameters by name, and sets their learning rate. The first match wins.

    Attributes:
      pattern: regular expression that must match the whole name, e.g. "llm/.*".
      multiplier: factor on the learning rate; None freezes.
      layers: numbers from 1 of the layers that train; the rule then matches stacked
        parameters only. Empty for all layers.
    """

    pattern: str
    multiplier: float | None
    layers: tuple[int, ...] = ()

    def validate(self, key: str) -> None:
        """Raises ConfigError for an invalid pattern; `key` is the rule's own."""
        try:
            re.compile(self.pattern)
        except (re.error, OverflowError, RecursionError) as error:
            raise ConfigError(
                f"config.{key}.pattern is {self.pattern!r}; expected a regular "
                f"expression: {error}"
            ) from None


@dataclasses.dataclass(frozen=True)
class OptimizerConfig:
    """AdamW with fully decoupled weight decay, and its learning-rate schedule.

    Attributes:
      peak_lr: learning rate at the end of the warm-up.
      min_lr: learning rate of the last step, the end of a cosine.
      warmup_steps: linear warm-up, at most the whole run.
      beta1: decay of the first moment.
      beta2: decay of the second moment.
      weight_decay: decay a step at the peak; not multiplied by the learning rate.
      clip_norm: largest global norm of the gradients of trainable parameters.
    """

    peak_lr: float = 1e-3
    min_lr: float = 0.0
    warmup_steps: int = 0
    beta1: float = 0.9
    beta2: float = 0.999
    weight_decay: float = 0.0
    clip_norm: float = 1.0

    def validate(self) -> None:
        require(
            self.min_lr <= self.peak_lr,
            "optimizer.min_lr",
            self.min_lr,
            f"at most peak_lr = {self.peak_lr}",
        )


@dataclasses.dataclass(frozen=True)
class Source:
    """One dataset; hive_jax/data/sources/registry.py lists kinds and options.

    In a config file, where the default of data.source is a string:

        with config.ignore_type():
            config.data.source = (
                dict(kind="llava", path="a.json", options=dict(images="a.zip")),
            )

    Attributes:
      kind: format, e.g. "llava", or name of a dataset, e.g. "food101".
      path: of the dataset; for "tabletop", the kind of its text.
      options: (name, value) pairs, e.g. ("images", "images.zip"); a dict in config
        files.
      weight: relative weight in a mixture; None to concatenate the datasets.
    """

    kind: str
    path: str = ""
    options: tuple[tuple[str, str], ...] = ()
    weight: float | None = None


@dataclasses.dataclass(frozen=True)
class DataConfig:
    """Data of a run: datasets, preprocessing, tokenizer, batching.

    Attributes:
      source: a tuple of one Source, or of several to mix; or a string of them:
        "tabletop", the built-in world, or "tabletop:TEXT" with the kind of its text
        ("captions", "vague", "questions", "text"); a dataset in LLaVA's format,
        "llava:CHAT.json,images=FOLDER_OR_ZIP,form=chat,take=first:1000" (see
        hive_jax/data/sources/llava.py); a mixture, "2*llava:... + 1*llava:...".
      seed: of the built-in world, and of take=random:1000.
      preprocessing: resizing of image files, one of PREPROCESSING; empty for that of
        the encoder's weights.
      tokenizer: "builtin:tabletop", a tokenizer.json, a SentencePiece .model, or a
        folder with either; empty for that of the decoder's weights.
      num_tokens: length that texts are truncated and padded to, with their first
        token.
      augment: random crops, flips and colours of training images (paper, table 4); see
        hive_jax/data/transforms.py.
      buckets: length bucketing: increasing numbers of tokens below `num_tokens`. Each
        batch has texts of similar length, padded to the smallest bucket that fits. All
        texts are tokenized once before the first step. Empty for no buckets.
      validation_size: number of held-out samples, all read at each validation.
      max_bad_fraction: largest fraction of unreadable samples, of those read so far or
        of a thousand; more end the run. Unreadable samples have no weight in the loss.
      threads: number of threads that read and decode.
    """

    source: str | tuple[Source, ...] = "tabletop"
    seed: int = 0
    preprocessing: str = ""
    tokenizer: str = ""
    num_tokens: int = 77
    augment: bool = False
    buckets: tuple[int, ...] = ()
    validation_size: int = 512
    max_bad_fraction: float = 0.01
    threads: int = 2

    def validate(self) -> None:
        known = ("", *PREPROCESSING)
        require_one_of(known, "data.preprocessing", self.preprocessing)
        require_path(self.tokenizer, "config.data.tokenizer")
        lengths = (1, *self.buckets, self.num_tokens)
        require(
            all(a < b for a, b in itertools.pairwise(lengths)),
            "data.buckets",
            self.buckets,
            f"increasing numbers from 2 to below data.num_tokens = {self.num_tokens}",
        )


@dataclasses.dataclass(frozen=True)
class MeshConfig:
    """Number of devices along each mesh axis; one may be -1, for the remaining ones.

    Attributes:
      data: shards batches.
      fsdp: shards batches and parameters.
      tensor: shards heads, MLP columns and the vocabulary.
    """

    data: int = -1
    fsdp: int = 1
    tensor: int = 1


@dataclasses.dataclass(frozen=True)
class RunConfig:
    """One stage of training.

    Attributes:
      name: of the run, and of its default workdir.
      objective: "caption" (next token of the text, given the image), or
        "contrastive" (SigLIP's loss between `model.encoder` and `text_tower`).
      seed: of random parameters, the order of samples and augmentation.
      init: workdir of a run, or of hive_jax.import_weights, whose newest parameters
        this run starts from; empty for those of `previous`.
      previous: name of the previous stage, whose default workdir is used if `init` is
        empty; empty for none.
      init_encoder: initial encoder, if neither `init` nor `previous` is set: workdir
        of a run, Hugging Face folder or hub id, big_vision .npz, or "builtin:NAME";
        empty for random parameters.
      init_decoder: initial decoder, as `init_encoder`.
      image_size: height and width of images in pixels, to use an encoder at another
        size than its own (see resize_positions); 0 for model.encoder.image_size.
      resize_positions: resize the position embedding of weights for another image
        size, rather than raise an error.
      whiten_patches: initialize the patch embedding to whiten the data's patches.
      total_steps: number of optimizer steps.
      batch_size: samples an optimizer step, over all devices.
      gradient_accumulation_steps: number of micro-batches of a batch.
      dtype: of the computation: "float32", "bfloat16", or "auto" (bfloat16 on
        accelerators, float32 on CPU). Parameters are always float32.
      log_every: steps between two lines of training metrics.
      eval_every: steps between two validations.
      checkpoint_every: steps between two checkpoints.
      max_to_keep: number of newest checkpoints to keep.
      hang_timeout: seconds that a step, save or validation batch of a job of several
        processes may take, or three times the longest so far if that is more, before
        the job ends with exit code 75; 60 times that for the first two of each, and
        while programs compile.
      model: architectures and fusion; an encoder or decoder of None has the
        architecture of the initial weights.
      text_tower: of the contrastive objective.
      execution: how each tower runs (scan, remat, flash attention); the result is the
        same up to rounding.
      data: datasets, preprocessing, tokenizer, batching.
      optimizer: AdamW and its schedule.
      mesh: how devices share the work.
      rules: which parameters train; the first rule that matches a name wins.
    """

    name: str = "run"
    objective: str = "caption"
    seed: int = 0
    init: str = ""
    previous: str = ""
    init_encoder: str = ""
    init_decoder: str = ""
    image_size: int = 0
    resize_positions: bool = False
    whiten_patches: bool = False
    total_steps: int = 100
    batch_size: int = 64
    gradient_accumulation_steps: int = 1
    dtype: str = "auto"
    log_every: int = 10
    eval_every: int = 100
    checkpoint_every: int = 50
    max_to_keep: int = 3
    hang_timeout: float = 20.0
    model: HiveConfig = dataclasses.field(default_factory=HiveConfig)
    text_tower: TextTowerConfig = dataclasses.field(default_factory=TextTowerConfig)
    execution: ModelExecution = dataclasses.field(default_factory=ModelExecution)
    data: DataConfig = DataConfig()
    optimizer: OptimizerConfig = OptimizerConfig()
    mesh: MeshConfig = MeshConfig()
    rules: tuple[Rule, ...] = (Rule(".*", 1.0),)

    @property
    def uses_image(self) -> bool:
        """Whether training reads images; a language model alone does not."""
        return self.objective == "contrastive" or self.model.fusion_kind.uses_image

    def validate(self) -> None:
        require_one_of(OBJECTIVES, "objective", self.objective)
        require_one_of(DTYPES, "dtype", self.dtype)
        validate_fusion(self.model)
        require_in_bounds(self)
        require_name("name", self.name)
        if self.previous:
            require_name("previous", self.previous)
        for key in ("init", "init_encoder", "init_decoder"):
            require_path(getattr(self, key), f"config.{key}")
        require_multiple(
            "batch_size",
            self.batch_size,
            "gradient_accumulation_steps",
            self.gradient_accumulation_steps,
        )
        require(bool(self.rules), "rules", self.rules, "one rule or more")
        for number, rule in enumerate(self.rules):
            rule.validate(f"rules[{number}]")
        self.data.validate()
        self.optimizer.validate()
        validate_execution(self.execution)
        if self.model.encoder:
            validate_encoder(self.model.encoder)
        if self.objective == "contrastive":
            self._validate_contrastive()
        else:
            if self.model.decoder:
                validate_decoder(self.model.decoder)
            validate_connections(self.model)

    def _validate_contrastive(self) -> None:
        validate_text_tower(self.text_tower, self.model.encoder)
        require(
            not self.data.buckets,
            "data.buckets",
            self.data.buckets,
            "none: a text tower reads texts of one length",
        )
        require(
            self.gradient_accumulation_steps == 1,
            "gradient_accumulation_steps",
            self.gradient_accumulation_steps,
            "1: the contrastive loss compares all pairs of a batch",
        )
