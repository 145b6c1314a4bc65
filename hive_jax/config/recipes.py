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

The paper's recipe needs files that this package may not distribute: data.source, and
init_encoder and init_decoder of stage 1.
"""

import dataclasses
import re

from hive_jax.config import RunConfig, nearest, to_dict
from hive_jax.errors import ConfigError
from hive_jax.models.fusion import FUSIONS
from hive_jax.models.presets import decoder_config, siglip_config
from hive_jax.models.siglip import SiglipConfig

LLAVA_CC3M_595K = (
    "llava:data/LLaVA-CC3M-Pretrain-595K/chat.json,"
    "images=data/LLaVA-CC3M-Pretrain-595K/images.zip"
)

# Rules (pattern, learning-rate multiplier or None for frozen), for stages to combine.
#
# A gate starts at 0, and Adam moves it by about the learning rate a step, which is too
# slow for a run of a hundred steps.
FAST_GATES = ("fusion/cross_attention/gate", 10.0)
FUSION = ("fusion/.*", 1.0)
# Token embeddings and output head, whether tied or not: frozen as in the authors' code.
FROZEN_EMBEDDINGS = ("llm/(embedder|lm_head)/.*", None)
LLM = ("llm/.*", 1.0)
# HIVE uses the blocks' outputs, before the final norm and the pooling head, so no
# gradient reaches these.
FROZEN_POOLING = ("img/(MAPHead_0|Transformer/encoder_norm)/.*", None)
ENCODER = ("img/.*", 1.0)
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


def recipe(
    arguments: str | None,
    table: dict[str, tuple],
    *,
    name: str,
    previous: str = "",
    fusion: str = "hive",
):
    """Returns the ConfigDict of a stage.

    Args:
      arguments: text after the name of the config file; see above.
      table: config key -> (value of the tabletop recipe, value of the paper's).
      name: of the run; another fusion than the default is appended to it.
      previous: name of the previous stage; empty for none.
      fusion: default fusion of the stage.

    Raises:
      ConfigError: unknown arguments.
    """
    chosen = parse(arguments, ("paper",), fusion=fusion, encoder="", decoder="")
    config = column({**_SHARED, **table}, 1 if chosen["paper"] else 0)
    # A baseline has workdirs of its own, and starts from its own previous stage.
    baseline = "" if chosen["fusion"] == fusion else f"_{chosen['fusion']}"
    config.name = name + baseline
    config.previous = previous and previous + baseline
    config.model.fusion = chosen["fusion"]
    for tower in ("encoder", "decoder"):
        if chosen[tower]:
            config.model[tower] = architecture(tower, chosen[tower])
    return config


def column(table: dict[str, tuple], index: int):
    """Returns the ConfigDict of one column of a table; other keys have their defaults.

    Args:
      table: config key -> value of each column; for model.encoder and model.decoder
        the name of a size, or "weights".
      index: of the column.
    """
    import ml_collections

    values = {key: row[index] for key, row in table.items()}
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
