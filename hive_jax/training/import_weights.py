"""Import weights of other projects as a checkpoint that a run starts from."""

import dataclasses
import hashlib
import math

import jax
import numpy as np
from flax.traverse_util import unflatten_dict

from hive_jax.config import DataConfig, RunConfig, to_dict
from hive_jax.console import text_table
from hive_jax.data.tokenizer import copy_tokenizer, load_tokenizer, require_fitting
from hive_jax.errors import ConfigError
from hive_jax.io import atomic_dir, require_absent
from hive_jax.models.decoder import DecoderConfig
from hive_jax.models.hive import HiveConfig
from hive_jax.training.checkpointing.manager import Checkpoints
from hive_jax.training.initialization import read_params
from hive_jax.training.stored_run import TOKENIZER_FOLDER
from hive_jax.training.train_step import TrainState
from hive_jax.weights.mapping import param_shapes
from hive_jax.weights.sources import open_decoder, open_encoder


def import_weights(
    encoder: str,
    decoder: str,
    out: str,
    *,
    image_size: int = 0,
    tokenizer: str = "",
    decoder_config: DecoderConfig | None = None,
) -> str:
    """Writes a folder for config.init: step 0 of a run with the weights of others.

    Args:
      encoder, decoder: paths as `hive_jax.weights.load_encoder` takes them; one of
        them may be "".
      out: folder to write; nothing may be there yet.
      image_size: side of other images than the encoder was trained for; 0 for the
        same.
      tokenizer: where none is beside the decoder's weights.
      decoder_config: what the decoder is, for a .npz that does not say it.

    Returns:
      A table of what was imported.

    Raises:
      ConfigError, MissingInputError, CheckpointError, OutputError: nothing is written.
    """
    require_absent(out)
    if not encoder and not decoder:
        raise ConfigError("nothing to import: expected encoder, decoder, or both")
    # All checks come before the first tensor is read.
    parts = {}
    if encoder:
        parts["img"] = open_encoder(encoder)
    if decoder:
        parts["llm"] = open_decoder(decoder, decoder_config)
    config = _config(parts, encoder, decoder, image_size, tokenizer)
    known = load_tokenizer(config.data.tokenizer) if config.data.tokenizer else None
    if known and decoder:
        num_rows = config.model.decoder.vocab_size
        require_fitting(known, config.data.tokenizer, num_rows)
    towers = {"img": config.model.encoder, "llm": config.model.decoder}
    params = {b: read_params(part, _abstract(towers[b])) for b, part in parts.items()}
    inputs = {"tokenizer": known.fingerprint if known else ""}
    meta = {"config": to_dict(config), "inputs": inputs, "samples_read": 0}
    step = np.zeros((), np.int32)
    state = TrainState(step=step, params=params, opt_state=())
    with atomic_dir(out) as folder:
        if known:
            copy_tokenizer(config.data.tokenizer, folder / TOKENIZER_FOLDER)
        with Checkpoints(str(folder)) as checkpoints:
            checkpoints.save(0, state, meta)
            checkpoints.wait()
            return _table(parts, checkpoints.read_meta()["fingerprints"])


def _abstract(tower) -> dict:
    """Shapes of a tower's parameters, on one device."""
    device = jax.sharding.SingleDeviceSharding(jax.devices()[0])
    leaves = {
        name: jax.ShapeDtypeStruct(shape, np.float32, sharding=device)
        for name, shape in param_shapes(tower).items()
    }
    return unflatten_dict(leaves, sep="/")


def _config(parts, encoder, decoder, image_size, tokenizer) -> RunConfig:
    towers = {branch: part.config for branch, part in parts.items()}
    if image_size and "img" in towers:
        towers["img"] = dataclasses.replace(towers["img"], image_size=image_size)
    elif image_size:
        raise ConfigError("image_size is the encoder's, and there is no encoder")
    llm, img = parts.get("llm"), parts.get("img")
    config = RunConfig(
        name="imported",
        init_encoder=encoder,
        init_decoder=decoder,
        model=HiveConfig(
            encoder=towers.get("img"),
            decoder=towers.get("llm"),
            fusion="none",
        ),
        data=DataConfig(
            tokenizer=tokenizer or (llm.tokenizer if llm else ""),
            preprocessing=(img.preprocessing if img else "") or "hf_bicubic",
        ),
    )
    config.validate()
    return config


def _table(parts: dict, fingerprints: dict[str, str]) -> str:
    rows = []
    for branch, part in parts.items():
        dtypes = {part.tensors[one.tensor_name].dtype for one in part.tensor_slices}
        ours = [v for k, v in fingerprints.items() if k.startswith(f"params/{branch}/")]
        rows.append(
            (
                branch,
                f"{sum(math.prod(shape) for shape in part.shapes.values()):,}",
                ", ".join(sorted(dtypes)),
                str(len(part.left_out)),
                hashlib.sha256("".join(ours).encode()).hexdigest()[:16],
            )
        )
    return text_table(
        ("part", "parameters", "stored as", "tensors left out", "fingerprint"), rows
    )
