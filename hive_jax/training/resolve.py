"""Resolve a config: open the weights that a run starts from, and fill in what its
config leaves to them."""

import dataclasses
import functools
from typing import NamedTuple

from hive_jax.config import RunConfig
from hive_jax.errors import ConfigError, MissingInputError
from hive_jax.models.decoder import DecoderConfig
from hive_jax.models.siglip import SiglipConfig
from hive_jax.training.stored_run import (
    RunComponent,
    StoredRun,
    find_run,
    is_run,
    open_run,
)
from hive_jax.weights.sources import WeightSource, open_decoder, open_encoder


def default_workdir(name: str) -> str:
    """workdir/NAME."""
    return f"workdir/{name}"


def open_weights(
    path: str, component: str, decoder: DecoderConfig | None = None
) -> WeightSource | RunComponent:
    """Opens the weights of one component; no tensor is read yet.

    Args:
      path: a run's workdir, a Hugging Face folder or hub id, a big_vision .npz, or
        "builtin:NAME".
      component: "encoder" or "decoder".
      decoder: architecture, for a .npz of a Gemma 2 or 3, whose arrays do not show it.

    Raises:
      MissingInputError: nothing is at `path`, or a file of it is missing.
      CheckpointError: damaged, or another component.
    """
    if is_run(path):
        return open_run(path).component(component)
    if component == "encoder":
        return open_encoder(path)
    return open_decoder(path, decoder)


class WeightSources:
    """The initial weights that a config names. Each source is opened when it is first
    asked for, and once; a run that is continued may never ask.

    Raises:
      MissingInputError, CheckpointError: from each attribute, as `open_weights`.
    """

    def __init__(self, config: RunConfig):
        self._config = config
        self.previous_workdir = config.init or (
            config.previous and default_workdir(config.previous)
        )

    @functools.cached_property
    def previous(self) -> StoredRun | None:
        """The run of config.init, or of the stage before; None where neither is named,
        or the run has no checkpoint."""
        return find_run(self.previous_workdir)

    def require_previous(self) -> StoredRun:
        """`previous`; MissingInputError if it has no checkpoint."""
        if self.previous is None:
            raise MissingInputError(
                f"no checkpoint in {self.previous_workdir}: no such run. "
                f"{self._config.name} starts from it: run the stage before this one "
                "first, or name another run as config.init"
            )
        return self.previous

    @functools.cached_property
    def encoder(self) -> WeightSource | RunComponent | None:
        """Of config.init_encoder; None where it is empty."""
        path = self._config.init_encoder
        return open_weights(path, "encoder") if path else None

    @functools.cached_property
    def decoder(self) -> WeightSource | RunComponent | None:
        """Of config.init_decoder; None where it is empty."""
        path = self._config.init_decoder
        decoder = self._config.model.decoder
        return open_weights(path, "decoder", decoder) if path else None


@dataclasses.dataclass(frozen=True)
class ResolvedRun:
    """A complete config, and the weights that the run starts from."""

    config: RunConfig
    weight_sources: WeightSources


def resolve_config(config: RunConfig, workdir: str = "") -> ResolvedRun:
    """Fills in what a config leaves to the weights: model.encoder and model.decoder of
    None, image_size, an empty data.tokenizer and data.preprocessing.

    They are those of the run in `workdir`, which is continued; else of config.init or
    the stage before; else of init_encoder and init_decoder.

    Args:
      config: as from `hive_jax.config.as_run_config`.
      workdir: of the run; empty for none.

    Raises:
      MissingInputError: the named weights do not exist.
      ConfigError: nothing decides a value.
      CheckpointError: the weights cannot be used.
    """
    sources = WeightSources(config)
    run = find_run(workdir)
    if run is None:
        # A stage before that has not run yet is missed only when this one starts.
        run = sources.require_previous() if config.init else sources.previous
    if run:
        model, data = run.config.model, run.config.data
        stored = _Stored(
            model.encoder, model.decoder, data.preprocessing, data.tokenizer
        )
    else:
        stored = _stored_in_components(config, sources)
    resolved = _fill_in(config, stored)
    _require_complete(resolved, sources.previous_workdir)
    resolved.validate()
    return ResolvedRun(resolved, sources)


class _Stored(NamedTuple):
    """What weights decide of a config."""

    encoder: SiglipConfig | None = None
    decoder: DecoderConfig | None = None
    preprocessing: str = ""
    tokenizer: str = ""


def _stored_in_components(config: RunConfig, sources: WeightSources) -> _Stored:
    """From init_encoder and init_decoder, which are opened only for what the config leaves out."""
    model, data, stored = config.model, config.data, _Stored()
    needs_encoder = model.fusion_class.uses_image or config.objective == "contrastive"
    encoder_undecided = needs_encoder and not (model.encoder and data.preprocessing)
    if encoder_undecided and (encoder := sources.encoder):
        stored = stored._replace(
            encoder=encoder.config, preprocessing=encoder.preprocessing
        )
    decoder_undecided = not (model.decoder and data.tokenizer)
    if decoder_undecided and (decoder := sources.decoder):
        stored = stored._replace(decoder=decoder.config, tokenizer=decoder.tokenizer)
    return stored


def _fill_in(config: RunConfig, stored: _Stored) -> RunConfig:
    data = config.data
    # Padding changes what is in the image, not how its pixels are resampled.
    names = (data.preprocessing, stored.preprocessing)
    filters = {name.removesuffix("_pad") for name in names}
    if len(filters - {""}) > 1:
        raise ConfigError(
            f"config.data.preprocessing is {data.preprocessing!r}; the encoder's weights "
            f"were trained with {stored.preprocessing!r}: leave it empty, or add or "
            "remove _pad alone"
        )
    model = dataclasses.replace(
        config.model,
        encoder=config.model.encoder or stored.encoder,
        decoder=config.model.decoder or stored.decoder,
    )
    data = dataclasses.replace(
        data,
        tokenizer=data.tokenizer or stored.tokenizer,
        preprocessing=data.preprocessing or stored.preprocessing or "hf_bicubic",
    )
    return apply_image_size(dataclasses.replace(config, model=model, data=data))


def apply_image_size(config: RunConfig) -> RunConfig:
    """Moves config.image_size into the encoder."""
    encoder = config.model.encoder
    if encoder is None or not config.image_size:
        return config
    encoder = dataclasses.replace(encoder, image_size=config.image_size)
    model = dataclasses.replace(config.model, encoder=encoder)
    return dataclasses.replace(config, model=model, image_size=0)


def _require_complete(config: RunConfig, previous_workdir: str) -> None:
    """Raises ConfigError for what neither config nor weights decide."""
    contrastive = config.objective == "contrastive"
    needed = []
    if contrastive or config.model.fusion_class.uses_image:
        needed.append("encoder")
    if not contrastive:
        needed.append("decoder")
    for name in needed:
        if getattr(config.model, name) is None:
            raise ConfigError(_undecided(name, previous_workdir))
    if not config.data.tokenizer:
        raise ConfigError(
            "config.data.tokenizer is '', and no tokenizer came with the weights; "
            "expected a tokenizer.json, a SentencePiece .model, or a folder with either"
        )


def _undecided(name: str, previous_workdir: str) -> str:
    if previous_workdir:
        return (
            f"config.model.{name} is None, and {previous_workdir} holds no {name}: "
            "import encoder and decoder together"
        )
    return (
        f"config.model.{name} is None, and no weights decide what the {name} is: set "
        f"config.init_{name}, or all sizes of config.model.{name}"
    )
