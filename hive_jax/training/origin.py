"""Where a run's parameters come from, and what that decides of its config."""

import dataclasses

from hive_jax.config import DECODER_OF_WEIGHTS, ENCODER_OF_WEIGHTS, RunConfig, check
from hive_jax.errors import ConfigError
from hive_jax.models.stack import PROGRAM
from hive_jax.training.runs import (
    RunTower,
    checkpoints_of,
    has_checkpoint,
    is_run,
    open_run_tower,
    stored_config,
)
from hive_jax.weights.sources import WeightSource, open_decoder, open_encoder


def default_workdir(name: str) -> str:
    """workdir/NAME."""
    return f"workdir/{name}"


def workdir_before(config: RunConfig) -> str:
    """The run that this one starts from: config.init, or the stage before; "" for
    none."""
    return config.init or (config.previous and default_workdir(config.previous))


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
        if run and has_checkpoint(run):
            return _filled(config, stored_config(run))
    if config.init:
        checkpoints_of(config.init)  # says that it is not there
    return _filled(config, _from_parts(config))


def _from_parts(config: RunConfig) -> RunConfig:
    """What init_encoder and init_decoder say; blank where they are not needed."""
    model, data = config.model, config.data
    encoder, decoder = ENCODER_OF_WEIGHTS, DECODER_OF_WEIGHTS
    preprocessing = tokenizer = ""
    needs_encoder = model.fusion_class.uses_image or config.objective == "contrastive"
    if needs_encoder and not (model.encoder.width and data.preprocessing):
        part = config.init_encoder and open_encoder_for(config)
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


def open_encoder_for(config: RunConfig) -> WeightSource | RunTower:
    """The weights of config.init_encoder."""
    if is_run(config.init_encoder):
        return open_run_tower(config.init_encoder, "img")
    return open_encoder(config.init_encoder)


def open_decoder_for(config: RunConfig) -> WeightSource | RunTower:
    """The weights of config.init_decoder. What a .npz does not say is config's."""
    if is_run(config.init_decoder):
        return open_run_tower(config.init_decoder, "llm")
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
    if encoder.width == 0 and (contrastive or config.model.fusion_class.uses_image):
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
