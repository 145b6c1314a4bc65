"""Imports weights of other projects as a checkpoint for config.init."""

import contextlib
import dataclasses
import hashlib
import math

import jax
import numpy as np
from flax.traverse_util import unflatten_dict

from hive_jax.buckets import as_path, is_url
from hive_jax.config import DataConfig, RunConfig, to_dict
from hive_jax.console import text_table
from hive_jax.data.tokenizer import copy_tokenizer, load_tokenizer, require_fitting
from hive_jax.errors import ConfigError
from hive_jax.io import atomic_dir, require_absent
from hive_jax.models.config import DecoderConfig, HiveConfig
from hive_jax.training.checkpointing.manager import Checkpoints
from hive_jax.training.initialization import read_params
from hive_jax.training.stored_run import TOKENIZER_FOLDER
from hive_jax.training.train_step import TrainState
from hive_jax.weights.mapping import param_shapes
from hive_jax.weights.sources import WeightSource, open_decoder, open_encoder


def import_weights(
    encoder: str,
    decoder: str,
    out: str,
    *,
    image_size: int = 0,
    tokenizer: str = "",
    decoder_config: DecoderConfig | None = None,
) -> str:
    """Writes a workdir whose step 0 has the imported weights, atomically.

    Args:
      encoder: path as for `hive_jax.weights.load_encoder`; empty for none.
      decoder: path as for `hive_jax.weights.load_decoder`; empty for none.
      out: folder to write, which must not exist.
      image_size: height and width of images, in pixels, if the encoder is to be used
        at another size than it was trained for; 0 for the same.
      tokenizer: path of the tokenizer, if the decoder's weights come without one.
      decoder_config: architecture, for a .npz that does not tell it.

    Returns:
      A text table of the imported components.

    Raises:
      ConfigError: neither path is given, or the tokenizer does not fit the decoder.
      MissingInputError: a path does not exist.
      CheckpointError: weights are damaged, or of another component.
      OutputError: `out` exists or cannot be written.
    """
    require_absent(out)
    if not encoder and not decoder:
        raise ConfigError("nothing to import: expected encoder, decoder, or both")
    # All checks come before the first tensor is read: that may take minutes.
    sources = {}
    if encoder:
        sources["img"] = open_encoder(encoder)
    if decoder:
        sources["llm"] = open_decoder(decoder, decoder_config)
    config = _config(sources, encoder, decoder, image_size, tokenizer)
    path = config.data.tokenizer
    loaded_tokenizer = load_tokenizer(path) if path else None
    if loaded_tokenizer and decoder:
        require_fitting(loaded_tokenizer, path, config.model.decoder.vocab_size)
    # Of the config and not of the sources: the image size may be another one.
    towers = {"img": config.model.encoder, "llm": config.model.decoder}
    params = {
        branch: read_params(source, _abstract(towers[branch]))
        for branch, source in sources.items()
    }
    # Metadata as of a run at step 0, so that config.init makes no difference of them.
    inputs = {"tokenizer": loaded_tokenizer.fingerprint if loaded_tokenizer else ""}
    meta = {"config": to_dict(config), "inputs": inputs, "samples_read": 0}
    step = np.zeros((), np.int32)
    state = TrainState(step=step, params=params, opt_state=())
    # The folder appears under its name only when it is complete; in a bucket its
    # checkpoint does, which is stored in another format there.
    in_bucket = is_url(out)
    with (
        contextlib.nullcontext(as_path(out)) if in_bucket else atomic_dir(out) as folder
    ):
        if loaded_tokenizer:
            copy_tokenizer(config.data.tokenizer, folder / TOKENIZER_FOLDER)
        with Checkpoints(str(folder)) as checkpoints:
            checkpoints.save(0, state, meta)
            # Read back, so that the table shows what is on disk.
            checkpoints.wait()
            return _table(sources, checkpoints.read_meta()["fingerprints"])


def _abstract(tower) -> dict:
    """Returns the abstract parameters of a tower, on one device."""
    # One device suffices, because the parameters are written to disk right away.
    device = jax.sharding.SingleDeviceSharding(jax.devices()[0])
    leaves = {
        name: jax.ShapeDtypeStruct(shape, np.float32, sharding=device)
        for name, shape in param_shapes(tower).items()
    }
    return unflatten_dict(leaves, sep="/")


def _config(
    sources: dict[str, WeightSource],
    encoder: str,
    decoder: str,
    image_size: int,
    tokenizer: str,
) -> RunConfig:
    """Returns the config that the checkpoint's metadata holds."""
    towers = {branch: source.config for branch, source in sources.items()}
    if image_size and "img" in towers:
        towers["img"] = dataclasses.replace(towers["img"], image_size=image_size)
    elif image_size:
        raise ConfigError(
            f"image_size is {image_size}, and encoder is empty; expected image_size 0, "
            "or an encoder"
        )
    llm, img = sources.get("llm"), sources.get("img")
    config = RunConfig(
        name="imported",
        init_encoder=encoder,
        init_decoder=decoder,
        model=HiveConfig(
            encoder=towers.get("img"),
            decoder=towers.get("llm"),
            fusion="none",  # the run that starts from it chooses and initializes one
        ),
        data=DataConfig(
            tokenizer=tokenizer or (llm.tokenizer if llm else ""),
            # Unknown stays unknown: the run that starts from it may set it.
            preprocessing=img.preprocessing if img else "",
        ),
    )
    config.validate()
    return config


def _table(sources: dict[str, WeightSource], fingerprints: dict[str, str]) -> str:
    """Returns a text table of the components, from the fingerprints of their leaves."""
    rows = []
    for branch, source in sources.items():
        # As the files have them; parameters are float32 in any case.
        dtypes = {source.tensors[x.tensor_name].dtype for x in source.tensor_slices}
        prefix = f"params/{branch}/"
        # One fingerprint for the component, of those of its leaves, in their order.
        leaves = "".join(v for k, v in fingerprints.items() if k.startswith(prefix))
        rows.append(
            (
                branch,
                f"{sum(math.prod(shape) for shape in source.shapes.values()):,}",
                ", ".join(sorted(dtypes)),
                str(len(source.left_out)),
                hashlib.sha256(leaves.encode()).hexdigest()[:16],
            )
        )
    return text_table(
        ("component", "parameters", "stored as", "tensors left out", "fingerprint"),
        rows,
    )
