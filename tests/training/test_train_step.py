"""What a train step does to the parameters, for the rules of every stage."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax.traverse_util import flatten_dict

from hive_jax.config import Rule
from hive_jax.training import objectives, train_step
from hive_jax.training.optimizer import trains

STAGES = (1, 2, 3)
FUSIONS = ("hive", "cascaded", "joint", "self_attention")
HEAD = "llm/lm_head/output_embedding"


def flat(tree):
    return flatten_dict(jax.device_get(tree), sep="/")


def first_moments(train_state):
    """Adam's averages of the gradients, by parameter name."""
    return jax.device_get(train_step._first_moments(train_state.opt_state))


@pytest.mark.parametrize("fusion", FUSIONS)
@pytest.mark.parametrize("stage", STAGES)
def test_trainable_parameters_get_gradients_and_frozen_ones_do_not_change(
    training, tiny_run, stage_rules, stage, fusion
):
    one = training(tiny_run(fusion, rules=stage_rules(stage, fusion)))
    after, metrics = one.steps(2)
    old, new = flat(one.start().params), flat(after.params)
    moments = first_moments(after)
    trainable = {name for name, rule in one.assigned.items() if trains(rule)}
    assert set(moments) == trainable

    branches = {name.split("/")[0] for name in trainable}
    assert branches == {1: {"fusion"}, 2: {"fusion", "llm"}}.get(
        stage, {"fusion", "llm", "img"}
    )
    assert set(metrics[0]) == {"loss", "loss_weight", "grad_norm"} | {
        f"grad_norm/{branch}" for branch in branches
    }
    for name, before in old.items():
        if name not in trainable:
            assert new[name].tobytes() == before.tobytes(), name
        elif not name.endswith("key/bias"):  # softmax does not see it
            by_layer = np.abs(moments[name]).reshape(before.shape[0], -1)
            stacked = "layers/" in name or "encoderblock" in name or "fusion" in name
            size = by_layer.max(axis=1) if stacked else by_layer.max()
            assert np.all(size > 1e-6), name
            assert np.any(new[name] != before), name


@pytest.mark.parametrize("fusion", FUSIONS)
def test_blocks_after_feature_depth_get_no_gradient_and_stay_as_they_are(
    training, tiny_run, stage_rules, fusion
):
    run = tiny_run(fusion, rules=stage_rules(3, fusion))
    model = dataclasses.replace(
        run.model, connections=(), num_connections=1, feature_depth=-2
    )
    one = training(dataclasses.replace(run, model=model))
    after, _ = one.steps(2)
    old, new = flat(one.start().params), flat(after.params)
    for name, moment in first_moments(after).items():
        if "encoderblock" in name and not name.endswith("key/bias"):
            assert np.any(moment[0]) and not np.any(moment[1]), name
            assert new[name][1].tobytes() == old[name][1].tobytes(), name


def test_closed_gates_stop_gradients_to_the_rest_of_the_fusion(
    training, tiny_run, stage_rules
):
    one = training(tiny_run("hive", rules=stage_rules(1, "hive")))
    start = one.start()
    start.params["fusion"]["cross_attention"]["gate"] *= 0
    after, _ = one.step(start, (one.batch,))
    for name, moment in first_moments(after).items():
        assert np.any(moment != 0) == name.endswith("/gate"), name


@pytest.mark.parametrize("fusion", FUSIONS)
def test_stages_freeze_what_the_paper_freezes(stage_rules, training, tiny_run, fusion):
    def trainable(stage):
        one = training(tiny_run(fusion, rules=stage_rules(stage, fusion)))
        return {name for name, rule in one.assigned.items() if trains(rule)}

    names = set(training(tiny_run(fusion, rules=stage_rules(1, fusion))).assigned)
    fusion_names = {name for name in names if name.startswith("fusion/")}
    llm = {name for name in names if name.startswith("llm/")}
    embeddings = {"llm/embedder/input_embedding"}
    beside = {name for name in names if "MAPHead_0" in name or "encoder_norm" in name}
    assert len(beside) > 2
    assert trainable(1) == fusion_names
    assert trainable(2) == fusion_names | llm - embeddings
    assert trainable(3) == names - embeddings - beside


def untied(config):
    """The same run with an output head of its own."""
    decoder = dataclasses.replace(config.model.decoder, tied_head=False)
    model = dataclasses.replace(config.model, decoder=decoder)
    return dataclasses.replace(config, model=model)


@pytest.mark.parametrize("stage", [1, 2, 3])
def test_an_untied_head_is_frozen_with_the_embeddings(
    stage_rules, training, tiny_run, stage
):
    one = training(untied(tiny_run("hive", rules=stage_rules(stage, "hive"))))
    frozen = {name for name, rule in one.assigned.items() if not trains(rule)}
    assert {"llm/embedder/input_embedding", HEAD} <= frozen


@pytest.mark.parametrize(
    ("rules", "trains_head"),
    [
        ((("llm/embedder/.*", None), (".*", 1.0)), True),
        ((("llm/lm_head/.*", None), (".*", 1.0)), False),
    ],
)
def test_an_untied_head_follows_rules_of_its_own(
    training, tiny_run, rules, trains_head
):
    rules = tuple(Rule(*rule) for rule in rules)
    one = training(untied(tiny_run("hive", rules=rules)))
    start = one.start()
    before = {k: np.asarray(v) for k, v in flatten_dict(start.params, sep="/").items()}
    after, _ = one.step(start, (one.batch,))
    moved = {
        name
        for name, leaf in flatten_dict(after.params, sep="/").items()
        if np.any(leaf != before[name])
    }
    assert (HEAD in moved) == trains_head
    assert ("llm/embedder/input_embedding" in moved) != trains_head


def test_accumulation_equals_the_whole_batch(hive2):
    """Also with different numbers of supervised tokens, one of them 0."""
    target = np.arange(6)[None] <= np.array([5, 5, 1, 0, 0, 0, 3, 4])[:, None]
    target[:, 0] = False
    batch = hive2.batch.replace(target=target)
    micro_batches = tuple(
        jax.tree.map(lambda leaf, i=i: leaf[2 * i : 2 * i + 2], batch) for i in range(4)
    )
    assert [int(batch.target.sum()) for batch in micro_batches] == [10, 1, 0, 7]
    whole, metrics = hive2.step(hive2.start(), (batch,))
    split, metrics_split = hive2.step(hive2.start(), micro_batches)
    for name in metrics:
        np.testing.assert_allclose(metrics_split[name], metrics[name], rtol=1e-6)
    # The moments are the gradients' own; Adam's quotient of them magnifies the
    # rounding of gradients near 0, so parameters say less.
    for name, moment in first_moments(whole).items():
        np.testing.assert_allclose(first_moments(split)[name], moment, atol=1e-6)
    assert int(split.step) == int(whole.step) == 1


def test_the_loss_is_the_mean_over_supervised_tokens(hive2, hive2_losses):
    nll = np.asarray(hive2_losses(hive2.batch))
    weight = hive2.batch.target[:, 1:]
    _, metrics = hive2.steps(1)
    np.testing.assert_allclose(
        metrics[0]["loss"], nll[weight].sum() / weight.sum(), rtol=1e-6
    )


def test_the_grad_norm_combines_those_of_the_branches(hive2):
    _, (metrics,) = hive2.steps(1)
    norms = [metrics[name] for name in metrics if name.startswith("grad_norm/")]
    np.testing.assert_allclose(metrics["grad_norm"], np.linalg.norm(norms), rtol=1e-6)


def test_two_equal_runs_have_equal_bits(hive2):
    one, two = (jax.tree.leaves(jax.device_get(hive2.steps(3))) for _ in range(2))
    assert [leaf.tobytes() for leaf in one] == [leaf.tobytes() for leaf in two]


def test_the_loss_goes_down_on_a_fixed_batch(hive2):
    _, metrics = hive2.steps(30)
    losses = [values["loss"] for values in metrics]
    assert losses[-1] < 0.3 * losses[0]


@pytest.mark.parametrize("objective", ["caption", "contrastive"])
def test_state_and_loss_are_float32_with_bfloat16_compute(
    tiny_run, training, objective
):
    one = training(tiny_run(dtype="bfloat16", objective=objective))
    params, opt_state = jax.eval_shape(
        lambda: (one.start().params, one.start().opt_state)
    )
    leaves = jax.tree.leaves((params, opt_state))
    assert {str(leaf.dtype) for leaf in leaves} == {"float32", "int32"}
    loss = objectives.make_loss(one.model, one.program.mesh)
    assert {x.dtype for x in jax.eval_shape(loss, params, one.batch)} == {
        jnp.dtype("float32")
    }


def test_a_run_starts_with_the_state_of_the_optimizer(hive2):
    one = hive2.start()
    expected = train_step.init_state(one.params, hive2.optimizer, hive2.assigned)
    jax.tree.map(np.testing.assert_array_equal, one, expected)


def traced(one, micro_batches) -> str:
    """The train step before it is compiled."""
    return str(one.program.train_step.trace(one.start(), micro_batches).jaxpr)


def test_frozen_towers_are_not_differentiated(tiny_run, training, stage_rules):
    """The frozen decoder's weights have no product with a cotangent: the backward
    pass of stage 1 is smaller than that of stage 3."""

    def products(stage):
        one = training(tiny_run("hive", rules=stage_rules(stage, "hive")))
        jaxpr = traced(one, (one.batch,))
        return jaxpr.count("dot_general")

    assert products(1) < products(2) < products(3)


def test_micro_batches_share_one_compiled_program(hive2):
    """Four micro-batches are a scan over the code of one, not four copies of it."""
    micro_batches = (jax.tree.map(lambda leaf: leaf[:2], hive2.batch),)
    text = {n: traced(hive2, micro_batches * n) for n in (2, 4)}
    assert text[4].count("dot_general") == text[2].count("dot_general")
