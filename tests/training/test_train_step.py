"""What a train step does to the parameters, for the rules of every stage."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax.traverse_util import flatten_dict

from hive_jax.data.tabletop.templates import TAG_NAMES
from hive_jax.data.types import Batch
from hive_jax.training import objectives, train_step, validation
from hive_jax.training.optimizer import trains

STAGES = (1, 2, 3)
FUSIONS = ("hive", "cascaded", "self_attention")


def flat(tree):
    return flatten_dict(jax.device_get(tree), sep="/")


def first_moments(train_state):
    """Adam's averages of the gradients, by parameter name."""
    return jax.device_get(train_step._moments(train_state.opt_state))


@pytest.fixture(scope="module")
def hive2(training, tiny_run, stage_rules):
    """HIVE with the rules of stage 2."""
    return training(tiny_run("hive", rules=stage_rules(2, "hive")))


@pytest.mark.parametrize("fusion", FUSIONS)
@pytest.mark.parametrize("stage", STAGES)
def test_gradients_reach_what_trains_and_nothing_else_moves(
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


def test_closed_gates_hold_back_all_of_the_fusion_but_themselves(
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


def test_a_batch_in_parts_is_the_batch_in_one(hive2):
    """Also where parts have different numbers of supervised tokens, one of them 0."""
    target = np.arange(6)[None] <= np.array([5, 5, 1, 0, 0, 0, 3, 4])[:, None]
    target[:, 0] = False
    batch = hive2.batch.replace(target=target)
    parts = tuple(
        jax.tree.map(lambda leaf, i=i: leaf[2 * i : 2 * i + 2], batch) for i in range(4)
    )
    assert [int(part.target.sum()) for part in parts] == [10, 1, 0, 7]
    whole, metrics = hive2.step(hive2.start(), (batch,))
    split, metrics_split = hive2.step(hive2.start(), parts)
    for name in metrics:
        np.testing.assert_allclose(metrics_split[name], metrics[name], rtol=1e-6)
    # The moments are the gradients' own; Adam's quotient of them magnifies the
    # rounding of gradients near 0, so parameters say less.
    for name, moment in first_moments(whole).items():
        np.testing.assert_allclose(first_moments(split)[name], moment, atol=1e-6)
    assert int(split.step) == int(whole.step) == 1


@pytest.fixture(scope="module")
def hive2_losses(hive2):
    """batch -> the loss of each token, with the parameters of step 0."""
    params = hive2.start().params
    return jax.jit(lambda batch: objectives.token_losses(hive2.model, params, batch))


def test_the_loss_is_the_mean_over_supervised_tokens(hive2, hive2_losses):
    nll = np.asarray(hive2_losses(hive2.batch))
    weight = hive2.batch.target[:, 1:]
    _, metrics = hive2.steps(1)
    np.testing.assert_allclose(
        metrics[0]["loss"], nll[weight].sum() / weight.sum(), rtol=1e-6
    )


def test_the_grad_norm_is_made_of_its_branches(hive2):
    _, (metrics,) = hive2.steps(1)
    parts = [metrics[name] for name in metrics if name.startswith("grad_norm/")]
    np.testing.assert_allclose(metrics["grad_norm"], np.linalg.norm(parts), rtol=1e-6)


def test_two_equal_runs_have_equal_bits(hive2):
    one, two = (jax.tree.leaves(jax.device_get(hive2.steps(3))) for _ in range(2))
    assert [leaf.tobytes() for leaf in one] == [leaf.tobytes() for leaf in two]


def test_the_loss_goes_down_on_a_fixed_batch(hive2):
    _, metrics = hive2.steps(30)
    losses = [values["loss"] for values in metrics]
    assert losses[-1] < 0.3 * losses[0]


def test_initial_parameters_are_a_function_of_the_seed(tiny_run, random_batch):
    run = tiny_run(objective="contrastive")
    model, batch = objectives.build_model(run), random_batch(run)
    init = jax.jit(lambda seed: objectives.init_params(model, batch, seed))
    one, again, other = (flat(init(seed)) for seed in (0, 0, 1))
    for name, leaf in one.items():
        assert leaf.tobytes() == again[name].tobytes()
    assert any(np.any(one[name] != other[name]) for name in one)


@pytest.mark.parametrize("objective", ["caption", "contrastive"])
def test_state_is_float32_whatever_the_computation(tiny_run, training, objective):
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


def test_dtype_auto_is_float32_on_cpu(tiny_run):
    assert objectives.build_model(tiny_run(dtype="auto")).dtype == jnp.float32
    assert objectives.build_model(tiny_run(dtype="bfloat16")).dtype == jnp.bfloat16


def test_images_become_minus_one_to_one():
    got = objectives.normalize_images(jnp.array([0, 51, 255], jnp.uint8))
    np.testing.assert_allclose(got, [-1.0, -0.6, 1.0], atol=1e-6)


def test_evaluation_of_captions(hive2, hive2_losses):
    """Right, wrong and no image; sums by tag."""
    batch = hive2.batch
    evaluate = jax.jit(validation.make_eval_step(hive2.model, len(TAG_NAMES)))
    sums = jax.device_get(evaluate(hive2.start().params, batch))
    neighbours = np.concatenate([batch.image[-1:], batch.image[:-1]])
    cases = {
        "right": batch,
        "wrong": batch.replace(image=neighbours),
        "none": batch.replace(image_mask=np.zeros_like(batch.image_mask)),
    }
    assert set(sums) == set(cases)
    weight, tag = batch.target[:, 1:], batch.tag[:, 1:]
    for name, case in cases.items():
        nll = np.asarray(hive2_losses(case))
        got_nll, got_count = sums[name]
        for index in range(len(TAG_NAMES)):
            chosen = weight & (tag == index)
            assert got_count[index] == chosen.sum()
            np.testing.assert_allclose(got_nll[index], nll[chosen].sum(), rtol=1e-5)
    totals = {name: nll.sum() for name, (nll, _) in sums.items()}
    assert len(set(totals.values())) == 3  # the image does make a difference


def test_evaluation_without_fusion_knows_no_image(tiny_run):
    run = tiny_run("none")
    model = objectives.build_model(run)
    batch = Batch.spec(8, 6, 16)
    params = jax.eval_shape(lambda: objectives.init_params(model, batch, 0))
    assert set(params) == {"llm"}
    assert set(jax.eval_shape(validation.make_eval_step(model), params, batch)) == {
        "none"
    }


def test_training_and_evaluation_of_two_towers(tiny_run, training):
    one = training(tiny_run(objective="contrastive"))
    assert {name.split("/")[0] for name in one.assigned} == {"img", "txt", "t", "b"}
    after, metrics = one.steps(30)
    assert metrics[-1]["loss"] < 0.5 * metrics[0]["loss"]

    def towers(params, batch):
        images = objectives.normalize_images(batch.image)
        return one.model.apply({"params": params}, images, batch.tokens)

    evaluate, apply = jax.jit(validation.make_eval_step(one.model)), jax.jit(towers)
    batch = one.batch.replace(image=np.roll(one.batch.image, 3, axis=0))
    for params in (one.start().params, after.params):
        loss, weight = evaluate(params, one.batch)["loss"]
        assert weight == 1
        zimg, ztxt, _, _ = apply(params, batch)
        best = np.argmax(np.asarray(zimg) @ np.asarray(ztxt).T, axis=1)
        found, count = evaluate(params, batch)["accuracy"]
        assert (int(found), int(count)) == ((best == np.arange(8)).sum(), 8)
    first, _ = evaluate(one.start().params, one.batch)["loss"]
    np.testing.assert_allclose(metrics[0]["loss"], first, rtol=1e-5)
    assert loss < first


def traced(one, parts) -> str:
    """The train step before it is compiled."""
    return str(one.program.train_step.trace(one.start(), parts).jaxpr)


def test_frozen_towers_are_not_differentiated(tiny_run, training, stage_rules):
    """The frozen decoder's weights have no product with a cotangent: the backward
    pass of stage 1 is smaller than that of stage 3."""

    def products(stage):
        one = training(tiny_run("hive", rules=stage_rules(stage, "hive")))
        jaxpr = traced(one, (one.batch,))
        return jaxpr.count("dot_general")

    assert products(1) < products(2) < products(3)


def test_accumulated_parts_are_one_program(hive2):
    """Four parts are a scan over one part's code, not four copies of it."""
    parts = (jax.tree.map(lambda leaf: leaf[:2], hive2.batch),)
    text = {n: traced(hive2, parts * n) for n in (2, 4)}
    assert text[4].count("dot_general") == text[2].count("dot_general")
