"""Runs that nobody has trained, as their checkpoints would be."""

import jax
import numpy as np
from flax.traverse_util import unflatten_dict

from hive_jax.config import DataConfig, RunConfig, to_dict
from hive_jax.data.chat_template import fingerprint_of
from hive_jax.data.tokenizer import load_tokenizer
from hive_jax.models.config import HiveConfig
from hive_jax.training.checkpointing.manager import Checkpoints
from hive_jax.training.train_step import TrainState
from hive_jax.weights.mapping import param_shapes
from hive_jax.weights.sources import open_decoder, open_encoder


def save_random(
    config: RunConfig, workdir: str, step: int = 7, chat: bool = False
) -> None:
    """Random weights, nowhere near zero; with `chat` of a run on conversations."""
    whole = config.model
    if config.objective == "contrastive":
        whole = (config.model.encoder, config.text_tower)
    rng = np.random.default_rng(0)
    params = {
        name: (rng.normal(size=shape) / shape[-1] ** 0.5).astype(np.float32)
        for name, shape in param_shapes(whole).items()
    }
    save_params(config, unflatten_dict(params, sep="/"), workdir, step, chat)


def save_talking(workdir: str, fusion: str, source: str = "tabletop") -> RunConfig:
    """The towers that come along with random weights between them: it says words."""
    encoder = open_encoder("builtin:tabletop_siglip")
    decoder = open_decoder("builtin:tabletop_llm")
    config = RunConfig(
        name=f"talking_{fusion}",
        model=HiveConfig(encoder.config, decoder.config, fusion, num_connections=2),
        data=DataConfig(
            source=source, tokenizer="builtin:tabletop", preprocessing="hf_bicubic"
        ),
    )
    params = {"img": encoder.params(), "llm": decoder.params()}
    rng = np.random.default_rng(0)
    between = {
        name.removeprefix("fusion/"): rng.normal(size=shape).astype(np.float32) * 0.2
        for name, shape in param_shapes(config.model).items()
        if name.startswith("fusion/")
    }
    params["fusion"] = unflatten_dict(between, sep="/")
    save_params(config, params, workdir)
    return config


def save_params(
    config: RunConfig, params: dict, workdir: str, step: int = 7, chat: bool = False
) -> None:
    """The checkpoint of a step."""
    tokenizer = load_tokenizer(config.data.tokenizer)
    template = fingerprint_of(tokenizer.chat_template) if chat else ""
    inputs = {"tokenizer": tokenizer.fingerprint, "chat_template": template}
    meta = {"config": to_dict(config), "inputs": inputs, "samples_read": 0}
    with Checkpoints(workdir) as checkpoints:
        step = np.zeros((), np.int32) + step
        state = TrainState(step, jax.device_put(params), ())
        checkpoints.save(int(step), state, meta)
        checkpoints.wait()
