"""What a run is: frozen dataclasses with every key and every default.

They are here and nowhere else: `configs/*.py` change values of
`to_dict(RunConfig())`, and `from_dict` turns the result back.
"""

import dataclasses

from hive_jax.models.gemma import GemmaConfig
from hive_jax.models.hive import HiveConfig
from hive_jax.models.siglip import SiglipConfig, TextTowerConfig

# A tower of width 0 is the one in the weights that a run starts from.
ENCODER_OF_WEIGHTS = SiglipConfig(0, 0, 0, 0, 0, 0)
DECODER_OF_WEIGHTS = GemmaConfig(0, 0, 0, 0, 0, 0, 0)


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


@dataclasses.dataclass(frozen=True)
class DataConfig:
    """What is read. Text is cut at `num_tokens`, its first token included.

    Attributes:
      source: "tabletop", the built-in world, or tabletop:TEXT with what is said of a
        scene ("captions", "vague", "questions", "text"); or a set in LLaVA's format,
        llava:CHAT.json,images=FOLDER_OR_ZIP,form=chat,take=first:1000 (see
        hive_jax/data/sets/llava.py). Several are mixed, "2*llava:... + 1*llava:...".
      seed: of the built-in world, and of take=random:1000.
      preprocessing: of image files, "hf_bicubic", "hf_bilinear" or "bv_bilinear", and
        the first two with bars to a square, "hf_bicubic_pad" (see
        hive_jax/data/preprocessing.py); empty: the one that the encoder's weights were
        trained with.
      tokenizer: "builtin:tabletop", or a tokenizer.json, a SentencePiece .model, or
        a folder with either; empty: the one that came with the decoder's weights.
      augment: random crops, flips and colours of the images to train on (the paper's
        table 4); see hive_jax/data/augment.py.
      buckets: increasing numbers of tokens below `num_tokens`: samples of about the same
        length come together, and are padded to the smallest of these that holds them.
        All texts are read once before the first step. Empty: in any order, padded to
        `num_tokens`.
      validation_size: samples held out, and read at each evaluation.
      max_bad_fraction: of the samples that cannot be read, of all that were, or of a
        thousand; more end the run. The others have no weight in the loss.
      threads: that read and decode.
    """

    source: str = "tabletop"
    seed: int = 0
    preprocessing: str = ""
    tokenizer: str = ""
    num_tokens: int = 77
    augment: bool = False
    buckets: tuple[int, ...] = ()
    validation_size: int = 512
    max_bad_fraction: float = 0.01
    threads: int = 2


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
      resize_positions: resize the encoder's position embedding where the weights are
        for images of another size than model.encoder.image_size.
      whiten_patches: start the patch embedding from the whitening transform of
        the data's patches.
      batch_size: samples an optimizer step, over all devices.
      accumulate: parts a batch is sent through in, one after the other.
      dtype: of the computation: "float32", "bfloat16", or "auto" (bfloat16 on
        accelerators, float32 on CPU). Parameters are float32.
      keep: checkpoints kept.
    """

    name: str = "run"
    objective: str = "caption"
    seed: int = 0
    init: str = ""
    previous: str = ""
    init_encoder: str = ""
    init_decoder: str = ""
    resize_positions: bool = False
    whiten_patches: bool = False
    total_steps: int = 100
    batch_size: int = 64
    accumulate: int = 1
    dtype: str = "auto"
    log_every: int = 10
    eval_every: int = 100
    checkpoint_every: int = 50
    keep: int = 3
    model: HiveConfig = dataclasses.field(default_factory=HiveConfig)
    text_tower: TextTowerConfig = dataclasses.field(default_factory=TextTowerConfig)
    data: DataConfig = DataConfig()
    optimizer: OptimizerConfig = OptimizerConfig()
    mesh: MeshConfig = MeshConfig()
    rules: tuple[Rule, ...] = (Rule(".*", 1.0),)


@dataclasses.dataclass(frozen=True)
class ProbeConfig:
    """What a frozen encoder is worth: a classifier on its features, or both towers of a
    SigLIP as they are.

    Attributes:
      probe: "linear", on the mean of the tokens; "attentive", a query that looks at all
        of them; and of two towers "zero_shot", classes by their names, and "retrieval",
        images by their texts and texts by their images.
      depth: of the block whose features are read; 0 for the last one.
      train, test: as data.source of a run; see hive_jax/data/sets/sources.py.
      preprocessing, tokenizer: empty for those of the weights.
      augment: crops, flips and colours; see hive_jax/data/augment.py. The encoder then
        runs in every epoch, and once otherwise.
      num_seeds: classifiers trained, with seeds from `seed` on.
      warmup_epochs, peak_lr, weight_decay, clip_norm: of AdamW, with a cosine to 0; the
        decay is times the learning rate.
      templates: texts for zero_shot, {} being the name of a class; their mean counts.
      max_bad_fraction: of images to train on that cannot be read.
    """

    name: str = "probe"
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
