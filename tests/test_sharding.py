"""Eight devices compute what one computes, and parameters are really split."""

import dataclasses
import math

import jax
import numpy as np
import optax
import pytest
from flax.traverse_util import flatten_dict
from jax.sharding import PartitionSpec

from hive_jax.config import MeshConfig, RunConfig
from hive_jax.errors import ConfigError
from hive_jax.models.gemma import gemma_config
from hive_jax.models.hive import HiveConfig
from hive_jax.models.siglip import siglip_config
from hive_jax.training import sharding
from hive_jax.training.sharding import batch_sharding, make_mesh, param_sharding

MESHES = {"data": (8, 1, 1), "fsdp": (1, 8, 1), "mixed": (2, 2, 2)}


@pytest.fixture(scope="module")
def meshes():
    return {name: make_mesh(MeshConfig(*sizes)) for name, sizes in MESHES.items()}


@pytest.fixture
def two_steps(training, tiny_run, stage_rules):
    def run(fusion, mesh=None):
        return training(tiny_run(fusion, rules=stage_rules(3, fusion)), mesh).steps(2)

    return run


@pytest.mark.parametrize("name", MESHES)
@pytest.mark.parametrize("fusion", ["hive", "cascaded", "self_attention"])
def test_any_mesh_computes_what_one_device_does(two_steps, meshes, fusion, name):
    state, alone = two_steps(fusion)
    state_split, split = two_steps(fusion, meshes[name])
    for metrics, wanted in zip(split, alone, strict=True):
        assert set(metrics) == set(wanted)
        for key in wanted:
            np.testing.assert_allclose(metrics[key], wanted[key], rtol=1e-5)
    # The first moments are the gradients of both steps; parameters would be compared
    # through Adam, which makes whole steps of rounding where gradients are nothing.
    got = optax.tree.get(state_split.opt_state, "mu")
    moments = optax.tree.get(state.opt_state, "mu")
    largest = max(np.abs(leaf).max() for leaf in moments.values())
    for key, leaf in moments.items():
        atol = 1e-5 * max(np.abs(leaf).max(), 0.1 * largest)
        np.testing.assert_allclose(got[key], leaf, atol=atol, err_msg=key)


@pytest.mark.parametrize(
    ("name", "key", "shard"),
    [
        ("data", "llm/layers/mlp/linear", (2, 32, 16)),
        ("fsdp", "llm/layers/mlp/linear", (2, 32, 2)),
        ("mixed", "llm/layers/mlp/linear", (2, 16, 8)),
        ("fsdp", "llm/layers/mlp/gating_einsum", (2, 2, 2, 32)),
        ("mixed", "llm/layers/mlp/gating_einsum", (2, 2, 8, 16)),
        ("mixed", "llm/layers/attn/q_einsum/w", (2, 1, 8, 8)),
        ("mixed", "llm/layers/attn/kv_einsum/w", (2, 2, 1, 8, 8)),  # one kv head
        ("mixed", "llm/embedder/input_embedding", (16, 8)),
        ("mixed", "llm/layers/pre_ffw_norm/scale", (2, 16)),
        ("fsdp", "fusion/projector/linear_1/kernel", (2, 2, 16)),
        ("mixed", "fusion/projector/linear_1/kernel", (2, 8, 8)),
        ("mixed", "fusion/cross_attention/attn_vec_einsum/w", (2, 1, 8, 8)),
        ("mixed", "fusion/cross_attention/gate", (2, 1)),
        (
            "mixed",
            "img/Transformer/encoderblock/MultiHeadDotProductAttention_0/key/kernel",
            (2, 8, 1, 8),
        ),
        ("fsdp", "img/Transformer/encoderblock/MlpBlock_0/Dense_1/kernel", (2, 32, 2)),
        ("fsdp", "img/embedding/kernel", (8, 8, 3, 2)),
    ],
)
def test_parameters_and_their_moments_are_split(two_steps, meshes, name, key, shard):
    state, _ = two_steps("hive", meshes[name])
    leaf = flatten_dict(state.params, sep="/")[key]
    assert {piece.data.shape for piece in leaf.addressable_shards} == {shard}
    moments = next(part for part in state.opt_state if hasattr(part, "mu"))
    for tree in (moments.mu, moments.nu):
        if key in tree:
            assert tree[key].sharding == leaf.sharding
    assert state.step.sharding.is_fully_replicated


@pytest.mark.parametrize(
    ("sizes", "wanted"),
    [
        ((-1, 1, 1), (8, 1, 1)),
        ((1, -1, 2), (1, 4, 2)),
        ((2, 2, -1), (2, 2, 2)),
        ((8, 1, -1), (8, 1, 1)),
    ],
)
def test_one_axis_takes_the_rest(sizes, wanted):
    mesh = make_mesh(MeshConfig(*sizes))
    assert dict(mesh.shape) == dict(
        zip(("data", "fsdp", "tensor"), wanted, strict=True)
    )


@pytest.mark.parametrize(
    "sizes",
    [
        (4, 1, 1),
        (16, 1, 1),
        (-1, 3, 1),
        (-1, -1, 1),
        (-1, -1, -1),
        (0, 8, 1),
        (-1, 0, 1),
        (-2, -4, 1),
        (8, -2, 1),
        (-1, -8, 1),
        (-1, 16, 1),
    ],
)
def test_meshes_that_do_not_fit(sizes):
    with pytest.raises(ConfigError, match=r"config.mesh is .* devices, 8 \(one of"):
        make_mesh(MeshConfig(*sizes))


def test_batches_are_split_over_data_and_fsdp(meshes):
    rows = batch_sharding(meshes["mixed"], 12)
    assert rows.shard_shape((12, 5)) == (3, 5)
    with pytest.raises(ConfigError, match="batches of 6 samples .* = 4 devices"):
        batch_sharding(meshes["mixed"], 6)
    with pytest.raises(ConfigError, match="= 8 devices; make it a multiple"):
        batch_sharding(meshes["fsdp"], 12)


@pytest.mark.parametrize(
    ("shape", "spec"),
    [
        ((26, 2, 4, 10, 8), (None, None, "tensor", "fsdp", None)),
        ((2, 4, 10, 8), (None, "tensor", "fsdp", None)),  # a layer on its own
        ((26, 2, 1, 10, 8), (None, None, None, "fsdp", None)),
        ((26, 2, 4, 9, 8), (None, None, "tensor", None, None)),
        ((26, 2, 3, 9, 8), (None, None, None, None, None)),
    ],
)
def test_a_dimension_that_cannot_be_split_is_repeated(meshes, shape, spec):
    got = param_sharding(meshes["mixed"], "llm/layers/attn/kv_einsum/w", shape)
    assert got.spec == PartitionSpec(*spec)


@pytest.mark.parametrize("fusion", ["hive", "cascaded", "self_attention"])
@pytest.mark.parametrize("tensor", [1, 2])
def test_every_large_parameter_of_the_full_model_is_split(
    parameter_shapes, fusion, tensor
):
    mesh = make_mesh(MeshConfig(data=-1, fsdp=4, tensor=tensor))
    encoder = dataclasses.replace(siglip_config("L", 16, 384), scan=True)
    decoder = dataclasses.replace(gemma_config("gemma3_1b"), scan=True)
    shapes = parameter_shapes(RunConfig(model=HiveConfig(encoder, decoder, fusion)))
    large = {name: p.shape for name, p in shapes.items() if p.size > 1_000_000}
    assert len(large) > 15
    for name, shape in large.items():
        shard = param_sharding(mesh, name, shape).shard_shape(shape)
        parts = math.prod(shape) // math.prod(shard)
        # Gemma 3 1B has one kv head, which tensor cannot split.
        wanted = 4 if "kv_einsum" in name else 4 * tensor
        assert parts == wanted, (name, shape, shard)


@pytest.mark.parametrize(
    ("environment", "wanted"),
    [
        ({}, False),
        ({"TPU_WORKER_HOSTNAMES": "localhost"}, False),
        ({"TPU_WORKER_HOSTNAMES": ""}, False),
        ({"TPU_WORKER_HOSTNAMES": "10.0.0.1,10.0.0.2"}, True),
        ({"SLURM_JOB_ID": "7"}, False),  # a shell in an allocation
        ({"SLURM_JOB_ID": "7", "SLURM_NTASKS": "4"}, False),
        ({"SLURM_PROCID": "0"}, False),
        ({"SLURM_PROCID": "0", "SLURM_NTASKS": "1"}, False),
        ({"SLURM_PROCID": "3", "SLURM_NTASKS": "4"}, True),
    ],
)
def test_which_environments_are_jobs(environment, wanted):
    assert sharding._in_a_job(environment) is wanted


@pytest.mark.parametrize("mode", ["auto", "on", "off"])
@pytest.mark.parametrize(
    "given",
    [("host:1", None, None), ("host:1", 2, None), (None, None, 0), (None, 2, 0)],
)
def test_coordinator_flags_go_together(mode, given):
    with pytest.raises(ConfigError, match="go together; got"):
        sharding.initialize_distributed(mode, *given)


NOTHING = (None, None, None)
GIVEN = ("host:1", 2, 0)
TASK = {"SLURM_JOB_ID": "7", "SLURM_PROCID": "0", "SLURM_NTASKS": "2"}
GPUS = {**TASK, "CUDA_VISIBLE_DEVICES": "4,5,6"}
ADDRESS = {"coordinator_address": "host:1", "num_processes": 2, "process_id": 0}


@pytest.mark.parametrize(
    ("mode", "given", "environment", "wanted"),
    [
        ("auto", NOTHING, {}, None),
        ("on", NOTHING, {}, {}),
        ("off", GIVEN, TASK, None),
        ("auto", GIVEN, {}, ADDRESS),
        ("auto", GIVEN, GPUS, ADDRESS),
        ("auto", NOTHING, TASK, {}),
        ("auto", NOTHING, GPUS, {"local_device_ids": [0, 1, 2]}),
    ],
)
def test_joining_a_job(monkeypatch, mode, given, environment, wanted):
    calls = []
    monkeypatch.setattr(jax.distributed, "initialize", lambda **kw: calls.append(kw))
    monkeypatch.setattr(sharding.os, "environ", environment)
    sharding.initialize_distributed(mode, *given)
    assert calls == ([] if wanted is None else [wanted])
