"""Where a run's parameters come from, and what that decides of its config."""

import dataclasses
from pathlib import Path

from hive_jax.config import (
    DECODER_OF_WEIGHTS,
    ENCODER_OF_WEIGHTS,
    RunConfig,
    check,
    from_dict,
)
from hive_jax.errors import ConfigError, MissingInputError
from hive_jax.models.stack import PROGRAM
from hive_jax.training.checkpoints import Checkpoints
from hive_jax.weights.parts import Part, open_decoder, open_encoder

TOKENIZER_FOLDER = "tokenizer"


def default_workdir(name: str, fusion: str) -> str:
    """workdir/NAME, and workdir/NAME_FUSION for the baselines."""
    baseline = fusion in ("cascaded", "self_attention")
    return f"workdir/{name}_{fusion}" if baseline else f"workdir/{name}"


def workdir_before(config: RunConfig) -> str:
    """The run that this one starts from: config.init, or the stage before; "" for
    none."""
    before = config.previous and default_workdir(config.previous, config.model.fusion)
    return config.init or before


def checkpoints_of(workdir: str) -> Checkpoints:
    """To read from. Raises MissingInputError if there is no such run."""
    if not (Path(workdir) / "checkpoints").is_dir():
        raise MissingInputError(f"no checkpoint in {workdir}: no such run")
    return Checkpoints(workdir, read_only=True)


def _has_checkpoint(workdir: str) -> bool:
    if not (Path(workdir) / "checkpoints").is_dir():
        return False
    with checkpoints_of(workdir) as checkpoints:
        return checkpoints.latest_step() is not None


def stored_config(workdir: str) -> RunConfig:
    """The config of a run, as its last checkpoint has it; its tokenizer is the copy
    beside the checkpoints."""
    with checkpoints_of(workdir) as checkpoints:
        config = from_dict(checkpoints.read_meta()["config"])
    kept = Path(workdir) / TOKENIZER_FOLDER
    if kept.is_dir():
        data = dataclasses.replace(config.data, tokenizer=str(kept))
        config = dataclasses.replace(config, data=data)
    return config


def complete(config: RunConfig, workdir: str) -> RunConfig:
    """The config with all that it leaves to the weights: towers of width 0, an empty
    data.tokenizer and data.preprocessing.

    They are those of the run in `workdir`, which is continued; else of config.init or
    the stage before; else of init_encoder and init_decoder.

    Raises:
      MissingInputError: the named weights are not there.
      ConfigError: nothing tells.
      CheckpointError: they cannot be used.
    """
    for run in (workdir, workdir_before(config)):
        if run and _has_checkpoint(run):
            return _filled(config, stored_config(run))
    if config.init:
        checkpoints_of(config.init)  # says that it is not there
    return _filled(config, _from_parts(config))


def _from_parts(config: RunConfig) -> RunConfig:
    """What init_encoder and init_decoder say; blank where they are not needed."""
    model, data = config.model, config.data
    encoder, decoder = ENCODER_OF_WEIGHTS, DECODER_OF_WEIGHTS
    preprocessing = tokenizer = ""
    needs_encoder = model.fusion != "none" or config.objective == "contrastive"
    if needs_encoder and not (model.encoder.width and data.preprocessing):
        part = config.init_encoder and open_encoder(config.init_encoder)
        if part:
            encoder, preprocessing = part.config, part.preprocessing
    if not (model.decoder.width and data.tokenizer):
        part = config.init_decoder and open_decoder_for(config)
        if part:
            decoder, tokenizer = part.config, part.tokenizer
    return dataclasses.replace(
        config,
        model=dataclasses.replace(model, encoder=encoder, decoder=decoder),
        data=dataclasses.replace(
            data, preprocessing=preprocessing, tokenizer=tokenizer
        ),
    )


def open_decoder_for(config: RunConfig) -> Part:
    """The weights of config.init_decoder. What a .npz does not say is config's."""
    decoder = config.model.decoder
    return open_decoder(config.init_decoder, decoder if decoder.width else None)


def _filled(config: RunConfig, source: RunConfig) -> RunConfig:
    model, data = config.model, config.data
    encoder, decoder = model.encoder, model.decoder
    if encoder.width == 0 and source.model.encoder.width:
        encoder = _as_run(source.model.encoder, encoder)
        if model.encoder.image_size:
            encoder = dataclasses.replace(encoder, image_size=model.encoder.image_size)
    if decoder.width == 0 and source.model.decoder.width:
        decoder = _as_run(source.model.decoder, decoder)
    theirs = source.data.preprocessing
    # Padding changes what is in the image, not how its pixels look.
    filters = {name.removesuffix("_pad") for name in (data.preprocessing, theirs)}
    if len(filters - {""}) > 1:
        raise ConfigError(
            f"config.data.preprocessing is {data.preprocessing!r}; the encoder's weights "
            f"were trained with {theirs!r}: leave it empty, or add or leave out _pad "
            "alone"
        )
    filled = dataclasses.replace(
        config,
        model=dataclasses.replace(model, encoder=encoder, decoder=decoder),
        data=dataclasses.replace(
            data,
            tokenizer=data.tokenizer or source.data.tokenizer,
            preprocessing=data.preprocessing or theirs or "hf_bicubic",
        ),
    )
    _require_known(filled)
    check(filled)
    return filled


def _as_run(tower, program):
    """A tower that is run as another one is."""
    return dataclasses.replace(tower, **{n: getattr(program, n) for n in PROGRAM})


def _require_known(config: RunConfig) -> None:
    """Raises ConfigError for what no weights told."""
    contrastive = config.objective == "contrastive"
    encoder, decoder = config.model.encoder, config.model.decoder
    if encoder.width == 0 and (contrastive or config.model.fusion != "none"):
        raise _unknown(config, "encoder")
    if decoder.width == 0 and not contrastive:
        raise _unknown(config, "decoder")
    if not config.data.tokenizer:
        raise ConfigError(
            "config.data.tokenizer is '', and no tokenizer came with the weights; "
            "expected a tokenizer.json, a SentencePiece .model, or a folder with either"
        )


def _unknown(config: RunConfig, tower: str) -> ConfigError:
    before = workdir_before(config)
    if before:
        return ConfigError(
            f"config.model.{tower}.width is 0, and {before} holds no {tower}: import "
            "both towers, with --encoder and --decoder"
        )
    return ConfigError(
        f"config.model.{tower}.width is 0, and no weights tell what the {tower} is: "
        f"set config.init_{tower}, or all sizes of config.model.{tower}"
    )
