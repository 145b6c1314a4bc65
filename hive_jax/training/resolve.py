"""Resolves a config: opens the initial weights, and takes from them the values that
the config leaves empty."""

import dataclasses
import functools
import os
from typing import NamedTuple

from hive_jax.config import RunConfig
from hive_jax.data.sources.registry import checked_sources
from hive_jax.errors import ConfigError, MissingInputError
from hive_jax.io import require_path
from hive_jax.models.config import DecoderConfig, SiglipConfig
from hive_jax.training.stored_run import (
    RunComponent,
    StoredRun,
    find_run,
    is_run,
    open_run,
)
from hive_jax.weights.hf_folder import assume_preprocessing
from hive_jax.weights.sources import WeightSource, open_decoder, open_encoder


def default_workdir(name: str) -> str:
    """Returns the default workdir of a run, workdir/NAME."""
    return f"workdir/{name}"


def workdir_of_run(workdir: str | os.PathLike | None, name: str) -> str:
    """Returns the workdir that a run uses.

    Args:
      workdir: path; None for the default workdir.
      name: name of the run.

    Raises:
      ConfigError: the path is empty, or a URL that cannot be opened.
    """
    if workdir is None:
        return default_workdir(name)
    if not os.fspath(workdir):
        raise ConfigError(
            "workdir is ''; expected the path of a folder, or no workdir for "
            f"{default_workdir(name)}"
        )
    require_path(workdir, "workdir")
    return os.fspath(workdir)


def open_weights(
    path: str, component: str, decoder: DecoderConfig | None = None
) -> WeightSource | RunComponent:
    """Opens the weights of one component without reading a tensor.

    Args:
      path: workdir of a run, a Hugging Face folder or hub id, a big_vision .npz, or
        "builtin:NAME".
      component: "encoder" or "decoder".
      decoder: architecture, for a Gemma 2 or 3 in .npz, which its arrays do not tell.

    Raises:
      MissingInputError: `path` or one of its files does not exist.
      CheckpointError: the files are damaged, or hold no such component.
    """
    if is_run(path):
        return open_run(path).component(component)
    # Files of other projects from here on, told apart by their content.
    if component == "encoder":
        return open_encoder(path)
    return open_decoder(path, decoder)


class WeightSources:
    """The initial weights that a config names, each opened once, on first access.

    Lazy because a resumed run needs none of them, and they may be gone by then.

    Attributes:
      previous_workdir: of config.init, or of the previous stage; empty for none.

    Raises:
      MissingInputError, CheckpointError: on access; see `open_weights`.
    """

    def __init__(self, config: RunConfig):
        self._config = config
        self.previous_workdir = config.init or (
            config.previous and default_workdir(config.previous)
        )

    @functools.cached_property
    def previous(self) -> StoredRun | None:
        """The run of config.init or of the previous stage; None if neither is set, or
        the run has no checkpoint."""
        return find_run(self.previous_workdir)

    def require_previous(self) -> StoredRun:
        """Returns `previous`. Raises MissingInputError if it has no checkpoint."""
        if self.previous is None:
            raise MissingInputError(
                f"no checkpoint in {self.previous_workdir}: no such run. "
                f"{self._config.name} starts from it: run the stage before this one "
                "first, or name another run as config.init"
            )
        return self.previous

    @functools.cached_property
    def encoder(self) -> WeightSource | RunComponent | None:
        """The weights of config.init_encoder; None if it is empty."""
        path = self._config.init_encoder
        return open_weights(path, "encoder") if path else None

    @functools.cached_property
    def decoder(self) -> WeightSource | RunComponent | None:
        """The weights of config.init_decoder; None if it is empty."""
        path = self._config.init_decoder
        decoder = self._config.model.decoder
        return open_weights(path, "decoder", decoder) if path else None


@dataclasses.dataclass(frozen=True)
class ResolvedRun:
    """A complete config, and the initial weights of its run.

    Attributes:
      config: without an empty value that the weights decide.
      weight_sources: the initial weights, opened on access.
    """

    config: RunConfig
    weight_sources: WeightSources


def resolve_config(config: RunConfig, workdir: str = "") -> ResolvedRun:
    """Returns the config with every value that it leaves to the weights.

    These are a model.encoder or model.decoder of None, and an empty data.tokenizer or
    data.preprocessing. They are taken from the first that exists of: the run in
    `workdir`, which is resumed; config.init or the previous stage; init_encoder and
    init_decoder. image_size is moved into model.encoder.

    Args:
      config: validated, e.g. by `hive_jax.config.as_run_config`.
      workdir: folder of the run; empty for none.

    Raises:
      MissingInputError: the named weights do not exist.
      ConfigError: the config names no such dataset, neither the config nor the weights
        have a value, or they disagree.
      CheckpointError: the weights are damaged, or of another component.
    """
    # Before anything is downloaded: a misspelt dataset.
    checked_sources(config.data.source)
    sources = WeightSources(config)
    # A resumed run keeps its architecture, even if its initial weights are gone.
    run = find_run(workdir)
    if run is None:
        # A missing previous stage is not an error yet, because a plan does not need it:
        # `initial_params` raises when training starts.
        run = sources.require_previous() if config.init else sources.previous
    # A run has a complete config; weight files have their own component's values.
    if run:
        model, data = run.config.model, run.config.data
        known = data.preprocessing or not model.encoder
        stored = _Stored(
            model.encoder,
            model.decoder,
            data.preprocessing if known else _assumed(config, run.workdir),
            data.tokenizer,
        )
    else:
        stored = _stored_in_components(config, sources)
    resolved = _fill_in(config, stored)
    _require_complete(resolved, sources.previous_workdir)
    resolved.validate()  # again, now that both architectures are known
    return ResolvedRun(resolved, sources)


class _Stored(NamedTuple):
    """Values of a config that initial weights decide; empty where they do not."""

    encoder: SiglipConfig | None = None
    decoder: DecoderConfig | None = None
    preprocessing: str = ""
    tokenizer: str = ""


def _stored_in_components(config: RunConfig, sources: WeightSources) -> _Stored:
    """Returns the values of init_encoder and init_decoder, and opens each of them only
    if the config needs one of its values: a hub id is downloaded when opened."""
    model, data, stored = config.model, config.data, _Stored()
    # A decoder-only run (fusion "none") has no encoder to resolve.
    encoder_missing = config.uses_image and not (model.encoder and data.preprocessing)
    if encoder_missing and (encoder := sources.encoder):
        # Weights say how their encoder's images were resized, and bring their
        # tokenizer.
        stored = stored._replace(
            encoder=encoder.config,
            preprocessing=encoder.preprocessing or _assumed(config, encoder.source),
        )
    decoder_missing = not (model.decoder and data.tokenizer)
    if decoder_missing and (decoder := sources.decoder):
        stored = stored._replace(decoder=decoder.config, tokenizer=decoder.tokenizer)
    return stored


def _assumed(config: RunConfig, source: str) -> str:
    """Returns the preprocessing of weights that record none, unless the config has it."""
    return "" if config.data.preprocessing else assume_preprocessing(source)


def _fill_in(config: RunConfig, stored: _Stored) -> RunConfig:
    """Returns the config with the stored values where it has none."""
    data = config.data
    # An encoder depends on the resampling filter that it was trained with. Padding to
    # a square ("_pad") only changes the image, as LLaVA does when fine-tuning.
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
    # "hf_bicubic" is the filter of an encoder that is trained from the start.
    return apply_image_size(dataclasses.replace(config, model=model, data=data))


def apply_image_size(config: RunConfig) -> RunConfig:
    """Returns the config with image_size moved into model.encoder.image_size."""
    encoder = config.model.encoder
    if encoder is None or not config.image_size:
        return config
    encoder = dataclasses.replace(encoder, image_size=config.image_size)
    model = dataclasses.replace(config.model, encoder=encoder)
    # 0, so that it is in one place of the resolved config, and resolving is idempotent.
    return dataclasses.replace(config, model=model, image_size=0)


def _require_complete(config: RunConfig, previous_workdir: str) -> None:
    """Raises ConfigError if a needed architecture or the tokenizer is still missing."""
    contrastive = config.objective == "contrastive"
    needed = []
    if config.uses_image:
        needed.append("encoder")
    if not contrastive:
        needed.append("decoder")
    for name in needed:
        if getattr(config.model, name) is None:
            raise ConfigError(_missing_architecture(name, previous_workdir))
    if not config.data.tokenizer:
        raise ConfigError(
            "config.data.tokenizer is '', and no tokenizer came with the weights; "
            "expected a tokenizer.json, a SentencePiece .model, or a folder with either"
        )


def _missing_architecture(name: str, previous_workdir: str) -> str:
    """Returns the message for a model.encoder or model.decoder of None."""
    if previous_workdir:
        return (
            f"config.model.{name} is None, and {previous_workdir} holds no {name}: "
            "import encoder and decoder together"
        )
    return (
        f"config.model.{name} is None, and no weights decide what the {name} is: set "
        f"config.init_{name}, or all sizes of config.model.{name}"
    )
