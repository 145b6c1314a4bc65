"""Eight CPU devices, no silent rank promotion, and tiny runs for all tests."""

import dataclasses
import functools
import gc
import importlib
import os
from pathlib import Path

import jax
import numpy as np
import pytest
from flax.traverse_util import flatten_dict, unflatten_dict

from hive_jax.config import (
    DataConfig,
    MeshConfig,
    OptimizerConfig,
    RunConfig,
    from_dict,
)
from hive_jax.data.batch import Batch
from hive_jax.data.tabletop.templates import TAG_NAMES
from hive_jax.models.config import (
    DecoderConfig,
    HiveConfig,
    SiglipConfig,
    TextTowerConfig,
)
from hive_jax.training import objectives, sharding, train_step
from hive_jax.training.train_step import Program
from tools.fault_suite.micro_run import FAST_COMPILATION

# Read when jax is first imported, by the lines below.
os.environ["JAX_PLATFORMS"] = "cpu"
os.environ["XLA_FLAGS"] = f"{FAST_COMPILATION} --xla_force_host_platform_device_count=8"


ROOT = Path(__file__).resolve().parents[1]
jax.config.update("jax_numpy_rank_promotion", "raise")
# Tracing makes millions of objects, few of them garbage: with Python's thresholds, the
# collector took 7 % of the time of tests/inference/test_generate.py.
gc.freeze()
gc.set_threshold(100_000, 50, 1000)


def pytest_configure(config):
    """pytest-xdist would start files with few tests last, however long these take."""
    config.option.loadscopereorder = False


def pytest_collection_modifyitems(items):
    """Files that take long run first, so that all processes end at the same time."""
    items.sort(
        key=lambda item: (
            item.path.stem != "test_documented_commands",
            item.path.parent.name != "training",
        )
    )


@pytest.fixture(scope="module", autouse=True)
def release_compiled_programs():
    """A process keeps every program it compiled, each in memory maps of its own; Linux
    allows 65,530 of these, and XLA crashes on the next one."""
    yield
    jax.clear_caches()


@pytest.fixture(scope="session")
def tiny_run():
    """A RunConfig of width 16 and depth 2; keywords replace its fields."""

    def make(fusion: str = "hive", **changes) -> RunConfig:
        encoder = SiglipConfig(
            width=16, depth=2, mlp_dim=32, num_heads=2, patch_size=8, image_size=16
        )
        decoder = DecoderConfig(
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
            image_mask=np.arange(run.data.num_tokens)[None] >= before,
            tag=rng.integers(0, len(TAG_NAMES), spec.tokens.shape, np.int32),
        )

    return make


@functools.cache
def shapes_of(model, image_size: int, num_tokens: int) -> dict:
    """Name -> shape of every parameter; nothing is computed."""
    spec = Batch.spec(1, num_tokens, image_size)
    shapes = jax.eval_shape(lambda: objectives.init_params(model, spec, 0))
    return flatten_dict(shapes, sep="/")


@pytest.fixture(scope="session")
def parameter_shapes():
    """run -> name -> shape of every parameter of its model."""

    def make(run: RunConfig) -> dict:
        model = objectives.build_model(run)
        return shapes_of(model, run.model.encoder.image_size, run.data.num_tokens)

    return make


class Training:
    """A model and its compiled step, as the trainer puts them together."""

    def __init__(self, run: RunConfig, batch: Batch, mesh=None):
        self.run = run
        self.batch = batch
        mesh = mesh or sharding.make_mesh(MeshConfig(1, 1, 1), jax.devices()[:1])
        self.program = Program(run, mesh, len(TAG_NAMES))
        self.model, self.optimizer = self.program.model, self.program.optimizer
        self.assigned = self.program.assigned
        self.shapes = flatten_dict(self.program.abstract_params, sep="/")

    def start(self) -> train_step.TrainState:
        """Step 0, with no parameter at zero: the gates are open, all norms count."""
        rng = np.random.default_rng(1)
        values = {
            name: (rng.normal(size=p.shape) / p.shape[-1] ** 0.5).astype(np.float32)
            for name, p in self.shapes.items()
        }
        params = unflatten_dict(values, sep="/")
        shardings = jax.tree.map(lambda p: p.sharding, self.program.abstract_params)
        return self.program.start(jax.device_put(params, shardings))

    def step(self, now: train_step.TrainState, micro_batches: tuple[Batch, ...]):
        """One train step of a state, which is donated."""
        return self.program.train_step(now, micro_batches)

    def steps(self, count: int, batch: Batch | None = None):
        """The state after `count` steps on one batch, and the metrics of each."""
        now, metrics = self.start(), []
        rows = self.program.batch.image.sharding
        batch = jax.device_put(batch or self.batch, rows)
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
