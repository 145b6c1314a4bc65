"""Small weights of others, as folders of the hub, and configs that start from them."""

import dataclasses
import shutil
from pathlib import Path

import jax
import numpy as np
from flax.traverse_util import flatten_dict

from hive_jax.config import DataConfig, MeshConfig, RunConfig
from hive_jax.data.batch import Batch
from hive_jax.data.tokenizer import load_tokenizer
from hive_jax.io import atomic_dir, write_json
from hive_jax.models.config import DecoderConfig, HiveConfig, SiglipConfig
from hive_jax.training.initialization import initial_params
from hive_jax.training.objectives import abstract_params, build_model
from hive_jax.training.resolve import ResolvedRun
from hive_jax.training.sharding import make_mesh
from hive_jax.weights import hf_image_processor, hf_models
from hive_jax.weights.mapping import param_shapes
from hive_jax.weights.safetensors import DTYPES

TOKENIZER = str(Path(__file__).parents[2] / "hive_jax/assets/tokenizer.json")
ENCODER = SiglipConfig(32, 4, 48, 2, patch_size=8, image_size=32)
DECODER = DecoderConfig(512, 24, 4, 40, 4, 2, 8, post_norms=True, qk_norm=True)


def random_params(config) -> dict:
    rng = np.random.default_rng(0)
    return {
        name: (rng.normal(size=shape) / shape[-1] ** 0.5).astype(np.float32)
        for name, shape in param_shapes(config).items()
    }


def write_hub_folder(path, layout, arrays) -> str:
    """Writes a model as on the hub, without torch; returns the path."""
    with atomic_dir(path) as folder:
        hf_models.write(folder, layout, arrays, DTYPES["float32"])
        if isinstance(layout.model, SiglipConfig):
            processor = hf_image_processor.image_processor(32, "hf_bilinear")
            write_json(folder / "preprocessor_config.json", processor)
        else:
            shutil.copy(TOKENIZER, folder / "tokenizer.json")
            write_json(folder / "tokenizer_config.json", {"bos_token": "<bos>"})
    return str(path)


def weights_config(**changes) -> RunConfig:
    """Returns a config that leaves its architectures to the weights."""
    model = HiveConfig(num_connections=2)
    return RunConfig(
        **{"model": model, "data": DataConfig(num_tokens=8), "batch_size": 8, **changes}
    )


def initialize(resolved: ResolvedRun, **changes) -> dict:
    """Returns the parameters of step 0, by name."""
    config = dataclasses.replace(resolved.config, **changes)
    resolved = dataclasses.replace(resolved, config=config)
    batch = Batch.spec(1, config.data.num_tokens, config.model.image_size)
    model = build_model(config)
    abstract = abstract_params(model, batch, make_mesh(MeshConfig()))
    tokenizer = load_tokenizer(config.data.tokenizer).fingerprint
    params = initial_params(resolved, model, abstract, batch, tokenizer)
    return flatten_dict(jax.device_get(params), sep="/")


def assert_towers(params: dict, img: dict, llm: dict) -> None:
    for branch, tower in {"img": img, "llm": llm}.items():
        for name, array in tower.items():
            np.testing.assert_array_equal(params[f"{branch}/{name}"], array)
    assert any(name.startswith("fusion/") for name in params)
