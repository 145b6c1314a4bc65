"""Recipes: values that stages share, and configs from tables of values.

Arguments follow the name of the config file, separated by commas:

    configs/stage1.py                              tiny model, built-in world
    configs/stage1.py:fusion=cascaded              a baseline (or self_attention)
    configs/stage1.py:fusion=joint                 the fusion of the authors' code
    configs/stage1.py:paper                        the paper's recipe
    configs/stage1.py:paper,fusion=self_attention
    configs/stage1.py:paper,decoder=gemma3_270m    another LLM, by its size
    configs/stage1.py:paper,encoder=B/16-224       another encoder: size/patch-image size
    configs/stage1.py:paper,encoder=weights,decoder=weights
                                                   architectures of the initial weights
    configs/stage1.py:small                        the paper's recipe on one GPU of 24 GB
    configs/stage1.py:authors                      the authors' scripts, fusion joint
    configs/stage1.py:authors,fusion=self_attention

All but the first three need files that this package may not distribute: data.source, and
init_encoder and init_decoder of stage 1.
"""

import dataclasses
import re

from hive_jax.config import RunConfig, nearest, to_dict
from hive_jax.errors import ConfigError
from hive_jax.models.config import SiglipConfig
from hive_jax.models.fusion_kinds import FUSIONS
from hive_jax.models.presets import decoder_config, siglip_config

# Recipes beside the default, of the built-in world.
RECIPES = ("paper", "small", "authors")

LLAVA_CC3M_595K = (
    "llava:data/LLaVA-CC3M-Pretrain-595K/chat.json,"
    "images=data/LLaVA-CC3M-Pretrain-595K/images.zip"
)

# Rules (pattern, learning-rate multiplier or None for frozen), for stages to combine.
#
# A gate starts at 0, and Adam moves it by about the learning rate a step, which is too
# slow for a run of a hundred steps. The paper's stage 1 is long enough without it
# (docs/what_differs.md, "Gates under table 3").
FAST_GATES = ("fusion/cross_attention/gate", 10.0)
FUSION = ("fusion/.*", 1.0)
# Token embeddings and output head, whether tied or not: frozen as in the authors' code.
FROZEN_EMBEDDINGS = ("llm/(embedder|lm_head)/.*", None)
LLM = ("llm/.*", 1.0)
# HIVE uses the blocks' outputs, before the final norm and the pooling head, so no
# gradient reaches these.
FROZEN_POOLING = ("img/(MAPHead_0|Transformer/encoder_norm)/.*", None)
ENCODER = ("img/.*", 1.0)
# All but the last block, which has no gradient where the one before is the deepest that is
# read; its parameters do not decay either.
ENCODER_BLOCKS_TO_23 = ("img/Transformer/encoderblock/.*", 1.0, tuple(range(1, 24)))
FROZEN_REST = (".*", None)

# fmt: off
# Values that all stages of a recipe share. Scanned layers compile fast and rematerialize
# well, which large models need; unrolled ones run faster on a CPU.
_SHARED = {
    # key                        tabletop                   paper
    "init_encoder":             ("builtin:tabletop_siglip", "google/siglip-large-patch16-384"),
    "init_decoder":             ("builtin:tabletop_llm",    "google/gemma-3-1b-pt"),
    "model.num_connections":    (4,                         0),  # 0: 25 % of the depths
    "data.threads":             (2,                         16),
    "eval_every":               (100,                       500),
    "checkpoint_every":         (50,                        250),
    "execution.encoder.scan":   (False,                     True),
    "execution.encoder.remat":  ("none",                    "dots"),
    "execution.decoder.scan":   (False,                     True),
    "execution.decoder.remat":  ("none",                    "dots"),
}
# fmt: on

# SigLIP 2 B/16-256 and Gemma 3 270M; all else is the paper's.
SMALL = {
    "init_encoder": "google/siglip2-base-patch16-256",
    "init_decoder": "google/gemma-3-270m",
    "model.encoder": "B/16-256",
    "model.decoder": "gemma3_270m",
}
# The authors' scripts: encoder depths 3, 7, ..., 23 (from 1) are hidden_states[3], ... of
# transformers, and LLM layers 7, 14, ..., 40 (from 1) are 6, 13, ..., 39 in the scripts.
AUTHORS_CONNECTIONS = ((3, 7), (7, 14), (11, 21), (15, 28), (19, 34), (23, 40))
# Of the LLM, HIVE_florence.sh trains the attention of the connected layers, and
# SA_florence.sh that of the first.
CONNECTED_ATTENTION = (
    "llm/layers/attn/.*",
    1.0,
    tuple(layer for _, layer in AUTHORS_CONNECTIONS),
)
FIRST_ATTENTION = ("llm/layers/attn/.*", 1.0, (1,))
# What differs from the paper's recipe in all three stages, in HIVE_florence.sh.
AUTHORS = {
    "init_decoder": "facebook/MobileLLM-600M",
    "model.decoder": "mobilellm_600m",
    "model.fusion": "joint",
    "model.connections": AUTHORS_CONNECTIONS,
    "model.feature_depth": -2,
    "data.source": (
        "llava:data/CC3M/CC3M_florence_filtered.json,images=data/CC3M/images.zip"
    ),
    "data.num_tokens": 2048,
    "data.buckets": (64, 128, 256),
}
# The VLM on top is the same for every encoder. Qwen 2 has the architecture of Qwen 2.5.
AUTHORS_VLM = {
    "init_decoder": "Qwen/Qwen2-0.5B-Instruct",
    "model.decoder": "qwen2_5_0_5b",
    "model.feature_depth": -2,
    "seed": 42,
    "gradient_accumulation_steps": 2,
}


def coupled_decay(weight_decay: float, peak_lr: float) -> float:
    """Returns optimizer.weight_decay that acts as PyTorch's AdamW does.

    PyTorch multiplies the decay by the learning rate; ours is decoupled from it.
    """
    return weight_decay * peak_lr


def recipe(
    arguments: str | None,
    table: dict[str, tuple],
    changes: dict[str, dict] | None = None,
    *,
    name: str,
    previous: str = "",
    fusion: str = "hive",
):
    """Returns the ConfigDict of a stage.

    Args:
      arguments: text after the name of the config file; see above.
      table: config key -> (value of the tabletop recipe, value of the paper's).
      changes: recipe -> config key -> value where it differs from the paper's recipe;
        "small,fusion=self_attention" applies to that baseline, after "small".
      name: of the run; another fusion than the default is appended to it.
      previous: name of the previous stage; empty for none.
      fusion: default fusion of the stage.

    Raises:
      ConfigError: unknown arguments, or two recipes.
    """
    changes = changes or {}
    recipes = [r for r in RECIPES if r == "paper" or r in changes]
    chosen = parse(arguments, tuple(recipes), fusion="", encoder="", decoder="")
    named = [r for r in recipes if chosen[r]]
    if len(named) > 1:
        raise ConfigError(f"config arguments {', '.join(named)}; expected one of them")
    values = column({**_SHARED, **table}, 1 if named else 0)
    for key in (*named, *(f"{r},fusion={chosen['fusion']}" for r in named)):
        values |= changes.get(key, {})
    used = chosen["fusion"] or values.get("model.fusion", fusion)
    # A baseline has workdirs of its own, and starts from its own previous stage.
    suffix = "" if used == fusion else f"_{used}"
    values |= {"name": name + suffix, "previous": previous and previous + suffix}
    values["model.fusion"] = used
    for tower in ("encoder", "decoder"):
        if chosen[tower]:
            values[f"model.{tower}"] = chosen[tower]
    return config_dict(values)


def column(table: dict[str, tuple], index: int) -> dict:
    """Returns config key -> value of one column of a table.

    Args:
      table: config key -> value of each column.
      index: of the column.
    """
    return {key: row[index] for key, row in table.items()}


def config_dict(values: dict):
    """Returns a ConfigDict with these values; other keys have their defaults.

    Args:
      values: config key -> value; for model.encoder and model.decoder the name of a
        size, or "weights".
    """
    import ml_collections

    values = dict(values)
    config = ml_collections.ConfigDict(to_dict(RunConfig()))
    for tower in ("encoder", "decoder"):
        name = values.pop(f"model.{tower}")
        config.model[tower] = architecture(tower, name)
    config.update_from_flattened_dict(values)
    return config


def architecture(tower: str, name: str) -> dict | None:
    """Returns the architecture of a named size as a dict.

    Args:
      tower: "encoder" or "decoder".
      name: e.g. "L/16-384" (size, patch size, image size) of an encoder, "gemma3_1b"
        of a decoder; "weights" for None, the architecture of the initial weights.

    Raises:
      ConfigError: unknown name.
    """
    if name == "weights":
        return None
    named = _named_encoder if tower == "encoder" else decoder_config
    try:
        return dataclasses.asdict(named(name))
    except ValueError as error:
        raise ConfigError(f"config argument {tower}={name}: {error}") from None


def _named_encoder(name: str) -> SiglipConfig:
    match = re.fullmatch(r"(.+)/(\d+)-(\d+)", name)
    if not match:
        raise ValueError(f"{name!r}; expected SIZE/PATCH-IMAGE, such as L/16-384")
    return siglip_config(match[1], int(match[2]), int(match[3]))


def parse(arguments: str | None, switches: tuple[str, ...], **options: str) -> dict:
    """Parses "paper,fusion=cascaded" to {"paper": True, "fusion": "cascaded"}.

    Args:
      arguments: text after the name of the config file; None for none.
      switches: names without a value, which are False unless present.
      **options: names with a value, and their defaults.

    Raises:
      ConfigError: an unknown name, or a value where there is none.
    """
    values = {**dict.fromkeys(switches, False), **options}
    for argument in filter(None, (arguments or "").split(",")):
        name, equals, value = argument.partition("=")
        if name not in values or bool(equals) != (name in options):
            known = [*switches]
            for option in options:
                choices = FUSIONS if option == "fusion" else ("SIZE", "weights")
                known += [f"{option}={choice}" for choice in choices]
            raise ConfigError(
                f"config argument {argument!r}; expected some of {', '.join(known)}, "
                f"with commas between them{nearest(argument, known)}"
            )
        values[name] = value if equals else True
    return values
