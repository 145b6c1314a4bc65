"""Validation losses: with the correct image, a mismatched image, and no image."""

import jax
import numpy as np
import pytest

from hive_jax.data.batch import Batch
from hive_jax.data.tabletop.templates import TAG_NAMES
from hive_jax.training import objectives, validation
from hive_jax.training.validation import summary_line, validate


def test_validation_weighs_tokens_not_batches():
    """Batch one has 1 token of loss 4, batch two 3 tokens of loss 1 each."""

    class Batches:
        tag_names = TAG_NAMES

        def batches(self, start, stop):
            assert (start, stop) == (0, 2)
            return iter([(4.0, 1.0), (3.0, 3.0)])

    def eval_step(params, batch):
        by_kind = tuple(np.array([x] + [0.0] * (len(TAG_NAMES) - 1)) for x in batch)
        wrong = (by_kind[0] * 2, by_kind[1])
        return {"right": by_kind, "wrong": wrong, "none": wrong}

    values = validate(eval_step, {}, Batches(), 2)
    assert values["loss"] == pytest.approx(7 / 4)
    assert values["image_gain"] == pytest.approx(7 / 4)
    assert values["loss/other"] == pytest.approx(7 / 4)
    assert "loss/colour" not in values  # no token of that kind
    assert "+1.7500 nats per token" in summary_line(values)


def test_validation_stops_between_batches():
    class Batches:
        def batches(self, start, stop):
            return iter(range(start, stop))

    seen = []

    def eval_step(params, batch):
        seen.append(batch)
        return {"none": np.zeros(1)}

    assert validate(eval_step, {}, Batches(), 9, lambda: len(seen) == 3) is None
    assert seen == [0, 1, 2]


def test_caption_sums_are_by_image_and_tag(hive2, hive2_losses):
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


def test_validation_without_fusion_has_no_image(tiny_run):
    run = tiny_run("none")
    model = objectives.build_model(run)
    batch = Batch.spec(8, 6, 16)
    params = jax.eval_shape(lambda: objectives.init_params(model, batch, 0))
    assert set(params) == {"llm"}
    assert set(jax.eval_shape(validation.make_eval_step(model), params, batch)) == {
        "none"
    }


def test_two_towers_train_and_are_validated(tiny_run, training):
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
        correct, count = evaluate(params, batch)["accuracy"]
        assert (int(correct), int(count)) == ((best == np.arange(8)).sum(), 8)
    first, _ = evaluate(one.start().params, one.batch)["loss"]
    np.testing.assert_allclose(metrics[0]["loss"], first, rtol=1e-5)
    assert loss < first
