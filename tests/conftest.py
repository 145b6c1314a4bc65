"""Eight CPU devices, no silent rank promotion, and tiny runs for all tests."""

import os
import sys
from pathlib import Path

# Read when jax is first imported: by the lines below, and by processes that tests
# start.
os.environ["JAX_PLATFORMS"] = "cpu"
os.environ["XLA_FLAGS"] = " ".join(
    [os.environ.get("XLA_FLAGS", ""), "--xla_force_host_platform_device_count=8"]
).strip()
ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

import dataclasses
import functools
import importlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax.traverse_util import flatten_dict, unflatten_dict

from hive_jax.config import DataConfig, OptimizerConfig, RunConfig, from_dict
from hive_jax.data.batch import KINDS, Batch
from hive_jax.models.gemma import GemmaConfig
from hive_jax.models.hive import HiveConfig
from hive_jax.models.siglip import SiglipConfig, TextTowerConfig
from hive_jax.training import optimizer as optimizers
from hive_jax.training import sharding, state
from hive_jax.training.trainer import names_of_other_fusions

jax.config.update("jax_numpy_rank_promotion", "raise")


@pytest.fixture(scope="session")
def tiny_run():
    """A RunConfig of width 16 and depth 2; keywords replace its fields."""

    def make(fusion: str = "hive", **changes) -> RunConfig:
        encoder = SiglipConfig(
            width=16, depth=2, mlp_dim=32, num_heads=2, patch_size=8, image_size=16
        )
        decoder = GemmaConfig(
            vocab_size=32,
            width=16,
            depth=2,
            mlp_dim=32,
            num_heads=2,
            head_dim=8,
            post_norms=True,
            qk_norm=True,
        )
        text_tower = TextTowerConfig(
            vocab_size=32, num_tokens=6, width=16, mlp_dim=32, out_dim=16
        )
        run = RunConfig(
            batch_size=8,
            dtype="float32",
            model=HiveConfig(encoder, decoder, fusion, ((1, 1), (2, 2))),
            text_tower=text_tower,
            data=DataConfig(num_tokens=6, validation_size=8),
            optimizer=OptimizerConfig(peak_lr=1e-2, beta2=0.95, clip_norm=10.0),
        )
        return dataclasses.replace(run, **changes)

    return make


@pytest.fixture(scope="session")
def stage_rules():
    """(stage, fusion) -> the rules of configs/stageN.py."""

    @functools.cache
    def rules(stage: int, fusion: str):
        module = importlib.import_module(f"configs.stage{stage}")
        return from_dict(module.get_config(f"fusion={fusion}").to_dict()).rules

    return rules


@pytest.fixture(scope="session")
def random_batch():
    """(run, seed) -> a Batch on the host, some of its tokens supervised."""

    def make(run: RunConfig, seed: int = 0) -> Batch:
        rng = np.random.default_rng(seed)
        spec = Batch.spec(
            run.batch_size, run.data.num_tokens, run.model.encoder.image_size
        )
        target = rng.random(spec.target.shape) < 0.6
        target[:, 0] = False
        target[:, 1] = True
        before = rng.integers(0, 3, (run.batch_size, 1))
        return Batch(
            image=rng.integers(0, 256, spec.image.shape, np.uint8),
            tokens=rng.integers(0, 32, spec.tokens.shape, np.int32),
            target=target,
            sees_image=np.arange(run.data.num_tokens)[None] >= before,
            kind=rng.integers(0, len(KINDS), spec.kind.shape, np.int32),
        )

    return make


class Training:
    """A model and its compiled steps, as the trainer puts them together."""

    def __init__(self, run: RunConfig, batch: Batch, mesh=None):
        self.run = run
        self.batch = batch
        self.model = state.build_model(run)
        shapes = flatten_dict(self._shapes(), sep="/")
        self.assigned = optimizers.assign_rules(
            shapes, run.rules, lambda: names_of_other_fusions(run, batch)
        )
        self.optimizer = optimizers.make_optimizer(
            run.optimizer, run.total_steps, self.assigned
        )
        self.place = lambda tree: tree
        step = state.make_train_step(self.model, self.optimizer, self.assigned)
        if mesh is None:
            self.step = jax.jit(step)
            return
        abstract = jax.eval_shape(self._state, self._shapes())
        shardings = state.state_shardings(mesh, abstract, self.optimizer)
        rows = sharding.batch_sharding(mesh, run.batch_size)
        self.place = lambda tree: jax.device_put(
            tree, rows if isinstance(tree, Batch) else shardings
        )
        out = (shardings, sharding.replicated(mesh))
        self.step = jax.jit(step, out_shardings=out)

    def _shapes(self):
        return jax.eval_shape(lambda: state.init_params(self.model, self.batch, 0))

    def _state(self, params) -> state.TrainState:
        return state.init_state(params, self.optimizer, self.assigned)

    def start(self) -> state.TrainState:
        """Step 0 with no parameter at zero or one: gates are open, all norms count."""
        rng = np.random.default_rng(1)
        flat = flatten_dict(self._shapes(), sep="/")
        values = {}
        for name, leaf in flat.items():
            noise = rng.normal(size=leaf.shape) / leaf.shape[-1] ** 0.5
            values[name] = jnp.asarray(noise, jnp.float32)
        return self.place(self._state(unflatten_dict(values, sep="/")))

    def steps(self, count: int, first: state.TrainState | None = None):
        """The state after `count` steps on the one batch, and each step's metrics."""
        now, metrics = first or self.start(), []
        batch = self.place(self.batch)
        for _ in range(count):
            now, values = self.step(now, (batch,))
            metrics.append(jax.device_get(values))
        return now, metrics


@pytest.fixture(scope="session")
def training(random_batch):
    """(run, mesh) -> Training, made and compiled once for equal arguments."""

    @functools.cache
    def make(run: RunConfig, mesh=None) -> Training:
        return Training(run, random_batch(run), mesh)

    return make
