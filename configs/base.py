"""What the stages share: the arguments, the two models, the rules.

Arguments follow the file's name and combine with commas:

    configs/stage1.py                              tiny model, built-in world
    configs/stage1.py:fusion=cascaded              a baseline (or self_attention)
    configs/stage1.py:paper                        the paper's recipe
    configs/stage1.py:paper,fusion=self_attention
    configs/stage1.py:paper,own_towers             with the towers of your weights
"""

import dataclasses

from hive_jax.config import (
    DECODER_OF_WEIGHTS,
    ENCODER_OF_WEIGHTS,
    DataConfig,
    RunConfig,
    nearest,
    to_dict,
)
from hive_jax.errors import ConfigError
from hive_jax.models.fusion import FUSIONS
from hive_jax.models.hive import HiveConfig
from hive_jax.models.presets import decoder_config, siglip_config

# Rules (pattern, learning-rate multiplier or None for frozen), for stages to combine.
#
# A gate starts at 0 and Adam moves it by about the learning rate a step: in a run of
# a hundred steps it needs more.
GATES = ("fusion/cross_attention/gate", 10.0)
FUSION = ("fusion/.*", 1.0)
# The table is also the output head, and stays as it came (the authors' code).
EMBEDDINGS = ("llm/embedder/.*", None)
LLM = ("llm/.*", 1.0)
# Nothing that HIVE reads depends on these, so no gradient reaches them.
BESIDE = ("img/(MAPHead_0|Transformer/encoder_norm)/.*", None)
ENCODER = ("img/.*", 1.0)
REST = (".*", None)


def parse(arguments: str | None, switches: tuple[str, ...], **options: str) -> dict:
    """ "paper,fusion=cascaded" -> {"paper": True, "fusion": "cascaded"}.

    Switches are off unless named; options have the given values unless set.
    """
    values = {**dict.fromkeys(switches, False), **options}
    for argument in filter(None, (arguments or "").split(",")):
        name, equals, value = argument.partition("=")
        if name not in values or bool(equals) != (name in options):
            fusions = [f"fusion={f}" for f in FUSIONS if "fusion" in options]
            known = [*switches, *fusions]
            raise ConfigError(
                f"config argument {argument!r}; expected some of {', '.join(known)}, "
                f"with commas between them{nearest(argument, known)}"
            )
        values[name] = value if equals else True
    return values


def tiny(fusion: str) -> RunConfig:
    """A 0.5 M encoder and a 0.3 M decoder on the built-in world; towers of any size
    where init_encoder and init_decoder are overridden."""
    return RunConfig(
        batch_size=64,
        init_encoder="builtin:tabletop_siglip",
        init_decoder="builtin:tabletop_llm",
        model=HiveConfig(
            encoder=ENCODER_OF_WEIGHTS,
            decoder=DECODER_OF_WEIGHTS,
            fusion=fusion,
            num_connections=4,
        ),
        data=DataConfig(num_tokens=40),
    )


def paper(fusion: str) -> RunConfig:
    """SigLIP L/16-384 and Gemma 3 1B on LLaVA CC3M 595K (paper, section 4).

    Before it runs: data.source, init_encoder and init_decoder of stage 1 name files
    that nobody may ship with this package.
    """
    encoder = siglip_config("L", patch_size=16, image_size=384)
    decoder = decoder_config("gemma3_1b")
    return RunConfig(
        init_encoder="google/siglip-large-patch16-384",
        init_decoder="google/gemma-3-1b-pt",
        log_every=10,
        eval_every=500,
        checkpoint_every=250,
        model=HiveConfig(
            encoder=dataclasses.replace(encoder, scan=True, remat="dots"),
            decoder=dataclasses.replace(decoder, scan=True, remat="dots"),
            fusion=fusion,
        ),
        data=DataConfig(
            source=(
                "llava:data/LLaVA-CC3M-Pretrain-595K/chat.json,"
                "images=data/LLaVA-CC3M-Pretrain-595K/images.zip"
            ),
            num_tokens=77,
            threads=16,
        ),
    )


def config(arguments: str | None, name: str, previous: str = "", fusion: str = "hive"):
    """The ConfigDict to change, and whether it is the paper's recipe.

    Args:
      name: of the run; that of the stage before is `previous`, if there is one. With
        another fusion than `fusion`, the stage's own, both names end in it.
    """
    import ml_collections  # not needed to read the rules

    chosen = parse(arguments, ("paper", "own_towers"), fusion=fusion)
    run = (paper if chosen["paper"] else tiny)(chosen["fusion"])
    baseline = "" if chosen["fusion"] == fusion else f"_{chosen['fusion']}"
    run = dataclasses.replace(
        run, name=name + baseline, previous=previous and previous + baseline
    )
    if chosen["own_towers"]:
        towers = {"encoder": ENCODER_OF_WEIGHTS, "decoder": DECODER_OF_WEIGHTS}
        program = {"scan": True, "remat": "dots"}
        towers = {k: dataclasses.replace(v, **program) for k, v in towers.items()}
        run = dataclasses.replace(run, model=dataclasses.replace(run.model, **towers))
    return ml_collections.ConfigDict(to_dict(run)), chosen["paper"]
