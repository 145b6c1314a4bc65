"""The config of a run: frozen dataclasses with every key and every default.

`configs/*.py` change values of `to_dict(RunConfig())`, and `from_dict` turns the result
back. `validate()` raises ConfigError for the first impossible value, naming its key.
"""

import dataclasses
import itertools

from hive_jax.config.validation import (
    DTYPES,
    require,
    require_at_least,
    require_multiple,
    require_one_of,
    validate_connections,
    validate_decoder,
    validate_encoder,
    validate_execution,
    validate_text_tower,
)
from hive_jax.models.fusion import FUSIONS
from hive_jax.models.hive import HiveConfig
from hive_jax.models.layer_stack import ModelExecution
from hive_jax.models.siglip import TextTowerConfig

OBJECTIVES = ("caption", "contrastive")
PROBES = ("linear", "attentive", "zero_shot", "retrieval")
# Of image files; see hive_jax/data/transforms.py.
PREPROCESSING = (
    "hf_bicubic",
    "hf_bilinear",
    "hf_bicubic_pad",
    "hf_bilinear_pad",
    "bv_bilinear",
)


@dataclasses.dataclass(frozen=True)
class Rule:
    """Which parameters train, and how fast. The first rule that matches a name wins.

    Attributes:
      pattern: regular expression that must match the whole name, e.g. "llm/.*".
      multiplier: factor on the learning rate; None freezes.
      layers: the rule is for stacked parameters alone, and only these layers of
        them train (counted from 1); empty for no such limit.
    """

    pattern: str
    multiplier: float | None
    layers: tuple[int, ...] = ()

    def validate(self, key: str) -> None:
        require(
            self.multiplier is None or self.multiplier > 0,
            f"{key}.multiplier",
            self.multiplier,
            "more than 0, or None to freeze",
        )


@dataclasses.dataclass(frozen=True)
class OptimizerConfig:
    """Fully decoupled AdamW with linear warm-up (at most the whole run) and a cosine
    to `min_lr` at the last step."""

    peak_lr: float = 1e-3
    min_lr: float = 0.0
    warmup_steps: int = 0
    beta1: float = 0.9
    beta2: float = 0.999
    weight_decay: float = 0.0
    clip_norm: float = 1.0

    def validate(self) -> None:
        key = "optimizer"
        require(self.peak_lr > 0, f"{key}.peak_lr", self.peak_lr, "more than 0")
        require(
            0 <= self.min_lr <= self.peak_lr,
            f"{key}.min_lr",
            self.min_lr,
            f"0 to peak_lr = {self.peak_lr}",
        )
        require_at_least(0, f"{key}.warmup_steps", self.warmup_steps)
        require(0 <= self.beta1 < 1, f"{key}.beta1", self.beta1, "0 to below 1")
        require(0 <= self.beta2 < 1, f"{key}.beta2", self.beta2, "0 to below 1")
        require_at_least(0, f"{key}.weight_decay", self.weight_decay)
        require(self.clip_norm > 0, f"{key}.clip_norm", self.clip_norm, "more than 0")


@dataclasses.dataclass(frozen=True)
class Source:
    """One dataset; hive_jax/data/sources/registry.py has the kinds and their options.

    In a config file, where source is a text by default:

        with config.ignore_type():
            config.data.source = (
                dict(kind="llava", path="a.json", options=dict(images="a.zip")),
            )

    Attributes:
      kind: the format, e.g. "llava", or the name of a dataset, e.g. "food101".
      path: of the dataset; of "tabletop", what its text says.
      options: (name, value) pairs, e.g. ("images", "images.zip"); in config files, a
        dict.
      weight: share of a mixture, relative to those of the others; None to read every
        sample of each once.
    """

    kind: str
    path: str = ""
    options: tuple[tuple[str, str], ...] = ()
    weight: float | None = None


@dataclasses.dataclass(frozen=True)
class DataConfig:
    """What is read. Text is cut at `num_tokens`, its first token included.

    Attributes:
      source: one Source, or several that are mixed; or a string of them, as on the
        command line: "tabletop", the built-in world, or tabletop:TEXT with the kind of
        its text ("captions", "vague", "questions", "text"); a dataset in LLaVA's format,
        llava:CHAT.json,images=FOLDER_OR_ZIP,form=chat,take=first:1000 (see
        hive_jax/data/sources/llava.py); a mixture, "2*llava:... + 1*llava:...".
      seed: of the built-in world, and of take=random:1000.
      preprocessing: of image files, "hf_bicubic", "hf_bilinear" or "bv_bilinear", and
        the first two with bars to a square, "hf_bicubic_pad" (see
        hive_jax/data/transforms.py); empty: the one that the encoder's weights were
        trained with.
      tokenizer: "builtin:tabletop", or a tokenizer.json, a SentencePiece .model, or
        a folder with either; empty: the one that came with the decoder's weights.
      augment: random crops, flips and colours of the images to train on (the paper's
        table 4); see hive_jax/data/transforms.py.
      buckets: increasing numbers of tokens below `num_tokens`: samples of about the same
        length come together, and are padded to the smallest of these that holds them.
        All texts are read once before the first step. Empty: in any order, padded to
        `num_tokens`.
      validation_size: samples held out, and read at each evaluation.
      max_bad_fraction: of the samples that cannot be read, of all that were, or of a
        thousand; more end the run. The others have no weight in the loss.
      threads: that read and decode.
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
        require_at_least(0, "data.seed", self.seed)
        require_at_least(1, "data.threads", self.threads)
        require_at_least(2, "data.num_tokens", self.num_tokens)
        require_at_least(2, "data.validation_size", self.validation_size)
        lengths = (1, *self.buckets, self.num_tokens)
        require(
            all(a < b for a, b in itertools.pairwise(lengths)),
            "data.buckets",
            self.buckets,
            f"increasing numbers from 2 to below data.num_tokens = {self.num_tokens}",
        )
        require(
            0 <= self.max_bad_fraction <= 1,
            "data.max_bad_fraction",
            self.max_bad_fraction,
            "0 to 1",
        )


@dataclasses.dataclass(frozen=True)
class MeshConfig:
    """Devices along each axis of the mesh; one of them may be -1, for the rest."""

    data: int = -1
    fsdp: int = 1
    tensor: int = 1


@dataclasses.dataclass(frozen=True)
class RunConfig:
    """One stage of training.

    Attributes:
      name: names the default workdir.
      objective: "caption" (next token of the text, given the image), or
        "contrastive" (SigLIP's loss between `model.encoder` and `text_tower`).
      init: a workdir, or a folder of tools/import_weights.py, whose last parameters
        this run starts from. Empty: `previous`.
      previous: the name of the stage before this one, whose default workdir is
        used where `init` is empty; empty: none.
      init_encoder, init_decoder: weights for `img` and `llm`, where there is neither
        `init` nor `previous`: a run's workdir, a Hugging Face folder or hub id, a
        big_vision .npz, or "builtin:NAME" for one that comes along. Empty: random.
      image_size: side of the images, where it is another than model.encoder.image_size
        or that of the initial weights (see resize_positions); 0 for the encoder's own.
      resize_positions: resize the encoder's position embedding where the weights are
        for images of another size.
      whiten_patches: start the patch embedding from the whitening transform of
        the data's patches.
      batch_size: samples an optimizer step, over all devices.
      gradient_accumulation_steps: micro-batches that a batch is split into.
      dtype: of the computation: "float32", "bfloat16", or "auto" (bfloat16 on
        accelerators, float32 on CPU). Parameters are float32.
      max_to_keep: newest checkpoints to keep.
      model: see HiveConfig. Where its encoder or decoder is None, the architecture is
        that of the initial weights.
      execution: how each tower runs, with the same result up to rounding.
      rules: what trains. The first rule that matches a parameter's name counts.
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
    model: HiveConfig = dataclasses.field(default_factory=HiveConfig)
    text_tower: TextTowerConfig = dataclasses.field(default_factory=TextTowerConfig)
    execution: ModelExecution = dataclasses.field(default_factory=ModelExecution)
    data: DataConfig = DataConfig()
    optimizer: OptimizerConfig = OptimizerConfig()
    mesh: MeshConfig = MeshConfig()
    rules: tuple[Rule, ...] = (Rule(".*", 1.0),)

    def validate(self) -> None:
        require_one_of(OBJECTIVES, "objective", self.objective)
        require_one_of(DTYPES, "dtype", self.dtype)
        require_one_of(FUSIONS, "model.fusion", self.model.fusion)
        for key in ("seed", "image_size"):
            require_at_least(0, key, getattr(self, key))
        for key in (
            "total_steps",
            "batch_size",
            "gradient_accumulation_steps",
            "log_every",
            "eval_every",
            "checkpoint_every",
            "max_to_keep",
        ):
            require_at_least(1, key, getattr(self, key))
        require_multiple(
            "batch_size",
            self.batch_size,
            "gradient_accumulation_steps",
            self.gradient_accumulation_steps,
        )
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


@dataclasses.dataclass(frozen=True)
class ProbeConfig:
    """What a frozen encoder is worth: a classifier on its features, or both towers of a
    SigLIP as they are.

    Attributes:
      init: the encoders: a run's workdir, a Hugging Face folder or hub id, a big_vision
        .npz or "builtin:NAME"; or several, NAME=PATH,NAME=PATH.
      probe: "linear", on the mean of the tokens; "attentive", a query that looks at all
        of them; and of two towers "zero_shot", classes by their names, and "retrieval",
        images by their texts and texts by their images.
      depth: of the block whose features are read; 0 for the last one.
      train, test: as data.source of a run; see hive_jax/data/sources/registry.py.
      preprocessing, tokenizer: empty for those of the weights.
      augment: crops, flips and colours; see hive_jax/data/transforms.py. The encoder then
        runs in every epoch, and once otherwise.
      num_seeds: classifiers trained, with seeds from `seed` on.
      warmup_epochs, peak_lr, weight_decay, clip_norm: of AdamW, with a cosine to 0; the
        decay is times the learning rate.
      templates: texts for zero_shot, {} being the name of a class; their mean counts.
      max_bad_fraction: of images to train on that cannot be read.
    """

    name: str = "probe"
    init: str = "builtin:tabletop_siglip"
    probe: str = "linear"
    depth: int = 0
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
        for key in ("epochs", "batch_size", "num_seeds", "threads"):
            require_at_least(1, key, getattr(self, key))
        for key in ("depth", "seed", "warmup_epochs", "weight_decay"):
            require_at_least(0, key, getattr(self, key))
        require(self.peak_lr > 0, "peak_lr", self.peak_lr, "more than 0")
        require(self.clip_norm > 0, "clip_norm", self.clip_norm, "more than 0")
        require(
            0 <= self.max_bad_fraction <= 1,
            "max_bad_fraction",
            self.max_bad_fraction,
            "0 to 1",
        )
        require(
            bool(self.templates) and all("{}" in text for text in self.templates),
            "templates",
            self.templates,
            "texts with {} for the name of a class",
        )
