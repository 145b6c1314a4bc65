"""Eight devices compute what one computes, and parameters are really split."""

import dataclasses
import functools
import itertools
import math
import re

import jax
import numpy as np
import optax
import pytest
from flax.traverse_util import flatten_dict
from jax.sharding import PartitionSpec

from hive_jax.config import MeshConfig, RunConfig
from hive_jax.errors import ConfigError
from hive_jax.models.config import HiveConfig
from hive_jax.models.execution import SCANNED
from hive_jax.models.presets import decoder_config, siglip_config
from hive_jax.training.checkpointing.integrity import fingerprint
from hive_jax.training.checkpointing.manager import Checkpoints
from hive_jax.training.objectives import build_model
from hive_jax.training.sharding import batch_sharding, make_mesh, param_sharding
from hive_jax.training.train_step import Program

MESHES = {"data": (8, 1, 1), "fsdp": (1, 8, 1), "mixed": (2, 2, 2)}
EPS = float(np.finfo(np.float32).eps)


@pytest.fixture(scope="module")
def meshes():
    return {name: make_mesh(MeshConfig(*sizes)) for name, sizes in MESHES.items()}


@pytest.fixture(scope="module")
def one_step(training, tiny_run, stage_rules, meshes):
    """(fusion, stage, name of a mesh or None for one device) -> `Step`."""

    @functools.cache
    def run(fusion, stage, mesh=None):
        config = tiny_run(fusion, rules=stage_rules(stage, fusion))
        trained = training(config, meshes[mesh] if mesh else None)
        return Step(trained, *trained.steps(1))

    return run


class Step:
    """What the first train step computes.

    After it, the first moments are (1 - beta1) x the clipped gradients. A second step
    would compare rounding that Adam has magnified: where a gradient is nothing but
    rounding, Adam makes a whole step of it.
    """

    def __init__(self, trained, state, metrics):
        self.trained, self.state, (self.metrics,) = trained, state, metrics
        self.params = host(flatten_dict(state.params, sep="/"))
        self.before = host(flatten_dict(trained.start().params, sep="/"))
        options = trained.run.optimizer
        clipped = min(1.0, options.clip_norm / self.metrics["grad_norm"])
        moments = host(optax.tree.get(state.opt_state, "mu"))
        scale = (1.0 - options.beta1) * clipped
        self.gradients = {name: leaf / scale for name, leaf in moments.items()}


def host(tree):
    return {name: np.asarray(leaf) for name, leaf in tree.items()}


def assert_same_step(got, expected):
    """`got` may train fewer parameters than `expected`, from the same values.

    Tolerances are float32's rounding, EPS. The largest differences found (three
    fusions, stages and meshes): metrics 7 EPS, gradients 31 EPS of their leaf's
    largest, and 7 EPS of the largest of all. Leaves whose gradients are all below a
    hundredth of that are measured by it: a bias added to all keys, say, has a
    gradient of zero that is nothing but rounding.
    """
    same = set(got.metrics) - {"grad_norm"}
    if got.gradients.keys() == expected.gradients.keys():
        same.add("grad_norm")
    for key in same:
        tolerance = 16 * EPS * abs(expected.metrics[key])
        assert abs(got.metrics[key] - expected.metrics[key]) <= tolerance, key
    largest = max(np.abs(leaf).max() for leaf in expected.gradients.values())
    for name, before in expected.before.items():
        np.testing.assert_array_equal(got.before[name], before, err_msg=name)
        if name not in got.gradients:
            np.testing.assert_array_equal(got.params[name], before, err_msg=name)
            continue
        gradient = expected.gradients[name]
        atol = 64 * EPS * max(np.abs(gradient).max(), largest / 100)
        np.testing.assert_allclose(
            got.gradients[name], gradient, rtol=0, atol=atol, err_msg=name
        )
        # Adam's first step is as long as the learning rate, towards the sign of the
        # gradient, wherever that is more than rounding.
        clear = np.abs(gradient) > 10 * atol
        np.testing.assert_allclose(
            got.params[name][clear],
            expected.params[name][clear],
            rtol=4 * EPS,
            atol=EPS,
        )


# Every mesh with one fusion, every fusion on the mesh that splits all three axes.
@pytest.mark.parametrize(
    ("fusion", "mesh"),
    [
        *(("hive", mesh) for mesh in MESHES),
        ("cascaded", "mixed"),
        ("joint", "mixed"),
        ("self_attention", "mixed"),
    ],
)
def test_any_mesh_computes_what_one_device_does(one_step, fusion, mesh):
    assert_same_step(one_step(fusion, 3, mesh), one_step(fusion, 3))


@pytest.mark.parametrize(
    ("fusion", "stage"),
    [("hive", 1), ("hive", 2), ("cascaded", 1), ("joint", 2), ("self_attention", 2)],
)
def test_every_stage_on_a_mesh_equals_one_device(one_step, fusion, stage):
    """Stage 3 on one device has the gradients of all stages; what it trains and
    stages 1 and 2 freeze has to stay as it was."""
    got = one_step(fusion, stage, "mixed")
    assert_same_step(got, one_step(fusion, 3))
    assert {name.split("/")[0] for name in got.gradients} == {
        1: {"fusion"},
        2: {"fusion", "llm"},
    }[stage]


def test_a_checkpoint_moves_from_mesh_to_mesh(one_step, tmp_path):
    """Every bit of the state, and the loss of the next step."""
    saved = one_step("hive", 3, "data").state
    state, expected, moved = saved, fingerprint(saved), {}
    for mesh in ("fsdp", "mixed", None, "data"):
        abstract = one_step("hive", 3, mesh).trained.program.abstract_state
        with Checkpoints(str(tmp_path / str(mesh))) as checkpoints:
            checkpoints.save(1, state, {})
            state, _ = checkpoints.restore(abstract)
        assert fingerprint(state) == expected
        for leaf, before, like in zip(
            *map(jax.tree.leaves, (state, saved, abstract)), strict=True
        ):
            assert leaf.sharding == like.sharding
            assert np.asarray(leaf).tobytes() == np.asarray(before).tobytes()
        moved[mesh] = state
    losses = [
        next_loss(one_step("hive", 3, mesh).trained, moved[mesh]) for mesh in moved
    ]
    assert max(losses) - min(losses) <= 16 * EPS * max(losses)


def next_loss(trained, state):
    """Of the next train step, to which the state is given away."""
    batch = jax.device_put(trained.batch, trained.program.batch.image.sharding)
    return float(trained.step(state, (batch,))[1]["loss"])


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
def test_parameters_and_their_moments_are_sharded(one_step, name, key, shard):
    state = one_step("hive", 3, name).state
    leaf = flatten_dict(state.params, sep="/")[key]
    assert {piece.data.shape for piece in leaf.addressable_shards} == {shard}
    moments = next(entry for entry in state.opt_state if hasattr(entry, "mu"))
    for tree in (moments.mu, moments.nu):
        if key in tree:
            assert tree[key].sharding == leaf.sharding
    assert state.step.sharding.is_fully_replicated


@pytest.mark.parametrize(
    ("sizes", "expected"),
    [
        ((-1, 1, 1), (8, 1, 1)),
        ((1, -1, 2), (1, 4, 2)),
        ((2, 2, -1), (2, 2, 2)),
        ((8, 1, -1), (8, 1, 1)),
    ],
)
def test_an_axis_of_minus_one_takes_the_remaining_devices(sizes, expected):
    mesh = make_mesh(MeshConfig(*sizes))
    assert dict(mesh.shape) == dict(
        zip(("data", "fsdp", "tensor"), expected, strict=True)
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
def test_meshes_of_other_sizes_are_refused(sizes):
    with pytest.raises(ConfigError, match=r"config.mesh is .* devices, 8 \(one of"):
        make_mesh(MeshConfig(*sizes))


def test_batches_are_sharded_over_data_and_fsdp(meshes):
    rows = batch_sharding(meshes["mixed"], 12)
    assert rows.shard_shape((12, 5)) == (3, 5)
    with pytest.raises(ConfigError, match="batches of 6 samples .* = 4 devices"):
        batch_sharding(meshes["mixed"], 6)
    with pytest.raises(ConfigError, match="= 8 devices; expected a multiple of 8"):
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
def test_an_indivisible_dimension_is_replicated(meshes, shape, spec):
    got = param_sharding(meshes["mixed"], "llm/layers/attn/kv_einsum/w", shape)
    assert got.spec == PartitionSpec(*spec)


UNTIED = dataclasses.replace(
    decoder_config("qwen2_5_0_5b"), tied_head=False, num_kv_heads=1
)


@pytest.mark.parametrize(
    ("fusion", "tensor", "decoder"),
    [
        *itertools.product(
            ["hive", "cascaded", "joint", "self_attention"],
            [1, 2],
            [decoder_config("gemma3_1b")],
        ),
        ("hive", 2, UNTIED),
    ],
)
def test_every_large_parameter_of_the_full_model_is_sharded(
    parameter_shapes, fusion, tensor, decoder
):
    mesh = make_mesh(MeshConfig(data=-1, fsdp=4, tensor=tensor))
    model = HiveConfig(siglip_config("L", 16, 384), decoder, fusion)
    shapes = parameter_shapes(RunConfig(model=model, execution=SCANNED))
    large = {name: p.shape for name, p in shapes.items() if p.size > 1_000_000}
    assert len(large) > 15
    for name, shape in large.items():
        shard = param_sharding(mesh, name, shape).shard_shape(shape)
        shards = math.prod(shape) // math.prod(shard)
        # With one kv head, which tensor cannot split.
        expected = 4 if "kv_einsum" in name else 4 * tensor
        assert shards == expected, (name, shape, shard)


@pytest.mark.parametrize("fusion", ["hive", "joint", "self_attention"])
def test_no_device_computes_on_the_whole_batch(tiny_run, stage_rules, fusion):
    """Weights that fsdp splits are gathered; activations keep their rows apart."""
    run = tiny_run(fusion, rules=stage_rules(3, fusion), batch_size=24)
    program = Program(run, make_mesh(MeshConfig(1, 8, 1)))
    text = program.lower_train_step().compile().as_text()
    activations = re.findall(r"f32\[(\d+),4,(?:16|32)\]", text)  # [B, P, D or F]
    assert "3" in activations
    assert "24" not in activations
    assert not re.findall(r"f32\[24,\d+,\d", text)


@pytest.mark.parametrize(("kv_heads", "tensor", "flash"), [(1, 2, 0), (2, 2, 1)])
def test_flash_attention_only_where_the_mesh_splits_the_kv_heads(
    tiny_run, kv_heads, tensor, flash
):
    run = tiny_run("self_attention")
    decoder = dataclasses.replace(run.model.decoder, num_kv_heads=kv_heads)
    run = dataclasses.replace(
        run, model=dataclasses.replace(run.model, decoder=decoder)
    )
    devices = jax.devices()[:tensor]
    model = build_model(run, make_mesh(MeshConfig(1, 1, tensor), devices))
    assert model.execution.decoder.flash == flash
    assert model.execution.encoder.flash
    assert build_model(run).execution.decoder.flash
