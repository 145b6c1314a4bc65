"""Gradients, attention and features: the numbers behind the pictures."""

import dataclasses
import importlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax.traverse_util import unflatten_dict
from helpers.generation_runs import TOKENIZER, params, run

from hive_jax.analysis import plots
from hive_jax.analysis.attention import attention_maps, word_positions
from hive_jax.analysis.examples import CaptionedImage, captioned_scenes, make_batch
from hive_jax.analysis.features import (
    compare_features,
    extract_features,
    linear_cka,
    principal_colours,
)
from hive_jax.analysis.gradients import (
    feature_gradients,
    gradient_flow,
    make_feature_gradients,
    share_towers,
)
from hive_jax.analysis.localization import measure_localization, toy_mask
from hive_jax.analysis.plots import read_curves
from hive_jax.config import from_dict
from hive_jax.data.batch import Batch
from hive_jax.data.tabletop.render import render
from hive_jax.data.tabletop.scene import scene
from hive_jax.errors import ConfigError, MissingInputError
from hive_jax.models.execution import Execution, ModelExecution
from hive_jax.training.losses import next_token_nll
from hive_jax.training.objectives import build_model, normalize_images

CAPTIONS = ("there is a red star on the table.", "a small cube, and a large blue disc")


def shown():
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (2, 24, 24, 3), np.uint8)
    return [CaptionedImage(c[:5], i, c) for c, i in zip(CAPTIONS, images, strict=True)]


def loss_of(config, weights, batch, offsets):
    """The sum over captions of the mean loss of their tokens, all in float32."""
    model = build_model(config)
    images = normalize_images(batch.image)
    inputs = images, batch.tokens, batch.image_mask, offsets
    hidden = model.apply({"params": weights}, *inputs)
    table = weights["llm"]["embedder"]["input_embedding"]
    nll = next_token_nll(
        hidden, table, config.model.decoder.final_softcap, batch.tokens
    )
    target = batch.target[:, 1:]
    return ((nll * target).sum(axis=1) / target.sum(axis=1)).sum()


@pytest.mark.parametrize("fusion", ["hive", "cascaded", "joint", "self_attention"])
def test_gradients_are_slopes_of_the_loss(fusion):
    """By finite differences at the outputs of each block."""
    config, weights = run(fusion), params(fusion)
    batch = make_batch(shown(), TOKENIZER)
    found = jax.jit(make_feature_gradients(build_model(config)))(weights, batch)
    assert found.shape == (4, 2, 9, 16) and found.dtype == jnp.float32
    loss = jax.jit(lambda offsets: loss_of(config, weights, batch, offsets))
    rng = np.random.default_rng(0)
    for layer in range(4):
        ways = found[layer], rng.normal(size=found.shape[1:])
        way = np.zeros(found.shape, np.float32)
        way[layer] = sum(one / np.linalg.norm(one) for one in ways)
        slope = (loss(0.3 * way) - loss(-0.3 * way)) / 0.6
        assert slope == pytest.approx(float((found * way).sum()), rel=0.02)
    sizes = feature_gradients(config, weights, batch)
    np.testing.assert_allclose(sizes, np.linalg.norm(found, axis=-1), rtol=1e-5)


def test_no_image_changes_the_gradient_of_another():
    config, weights = run("hive"), params("hive")
    both = feature_gradients(config, weights, make_batch(shown(), TOKENIZER))
    alone = feature_gradients(config, weights, make_batch(shown()[:1], TOKENIZER))
    np.testing.assert_allclose(both[:, :1], alone, rtol=1e-4)


def test_offsets_of_zero_change_nothing():
    config, weights = run("hive"), params("hive")
    batch = make_batch(shown(), TOKENIZER)
    model, images = build_model(config), normalize_images(batch.image)

    @jax.jit
    def hidden(offsets):
        inputs = images, batch.tokens, batch.image_mask, offsets
        return model.apply({"params": weights}, *inputs)

    with_zeros = hidden(jnp.zeros((4, 2, 9, 16)))
    np.testing.assert_allclose(with_zeros, hidden(None), atol=1e-5)


def test_scanned_blocks_have_the_same_gradients():
    config = run("hive")
    execution = ModelExecution(encoder=Execution(scan=True, remat="full"))
    changed = dataclasses.replace(config, execution=execution)
    batch = make_batch(shown(), TOKENIZER)
    np.testing.assert_allclose(
        feature_gradients(changed, params("hive"), batch),
        feature_gradients(config, params("hive"), batch),
        rtol=1e-3,
    )


@pytest.mark.parametrize("fusion", ["hive", "cascaded", "joint", "self_attention"])
def test_at_full_size_and_in_bfloat16(fusion, parameter_shapes):
    arguments = f"paper,fusion={fusion}"
    tree = importlib.import_module("configs.stage3").get_config(arguments)
    config = dataclasses.replace(from_dict(tree.to_dict()), dtype="bfloat16")
    weights = unflatten_dict(parameter_shapes(config), sep="/")
    batch = Batch.spec(2, 77, config.model.encoder.image_size)
    model = build_model(config)
    found = jax.eval_shape(make_feature_gradients(model), weights, batch)
    assert found.shape == (24, 2, 576, 1024) and found.dtype == jnp.float32
    if fusion == "self_attention":
        return

    def maps(weights, batch):
        images = normalize_images(batch.image)
        inputs = images, batch.tokens, batch.image_mask
        return model.apply({"params": weights}, *inputs, method="attention_weights")

    heads = config.model.decoder.num_heads
    found = jax.eval_shape(maps, weights, batch)
    connections = len(config.model.resolved_connections())
    assert found.shape == (connections, 2, heads, 77, 576)
    assert found.dtype == jnp.float32


def test_bfloat16_is_float32_up_to_rounding():
    half = dataclasses.replace(run("hive"), dtype="bfloat16")
    batch = make_batch(shown(), TOKENIZER)
    wanted = feature_gradients(run("hive"), params("hive"), batch).ravel()
    found = feature_gradients(half, params("hive"), batch).ravel()
    assert np.corrcoef(wanted, found)[0, 1] > 0.99
    assert np.abs(found - wanted).mean() < 0.1 * wanted.mean()


def test_the_flow_is_the_mean_over_patches_and_captions():
    config, batch = run("hive"), make_batch(shown(), TOKENIZER)
    other = share_towers(params("hive"), params("cascaded"))
    flow = gradient_flow(
        {"hive": (config, params("hive")), "cascaded": (run("cascaded"), other)}, batch
    )
    sizes = feature_gradients(config, params("hive"), batch)
    np.testing.assert_allclose(flow["hive"], sizes.mean(axis=(1, 2)), rtol=1e-5)
    assert flow["cascaded"].shape == (4,) and (flow["cascaded"] > 0).all()
    assert not np.allclose(flow["cascaded"], flow["hive"])


def test_equal_towers():
    """What is between them is the first's too, where it has the same shapes."""
    hive, cascade, inside = map(params, ("hive", "cascaded", "self_attention"))
    assert share_towers(hive, cascade)["fusion"] is hive["fusion"]
    found = share_towers(hive, inside)
    assert found["fusion"] is inside["fusion"]
    assert found["img"] is hive["img"] and found["llm"] is hive["llm"]
    wider = {**hive, "img": {"x": np.zeros(3)}}
    with pytest.raises(ConfigError, match="'img' of the runs is of different shapes"):
        share_towers(hive, wider)


@pytest.mark.parametrize("fusion", ["hive", "cascaded", "joint"])
def test_attention_of_words(fusion):
    """Against the model's maps, position by position; and alone as in company."""
    config, weights = run(fusion), params(fusion)
    found = attention_maps(config, weights, TOKENIZER, shown())
    batch = make_batch(shown(), TOKENIZER)
    model = build_model(config)
    inputs = normalize_images(batch.image), batch.tokens, batch.image_mask
    maps = model.apply({"params": weights}, *inputs, method="attention_weights")
    pairs = config.model.resolved_connections()
    for row, one in enumerate(found):
        caption = CAPTIONS[row]
        assert one.words == tuple(caption.replace(".", "").replace(",", "").split())
        assert (one.depths, one.layers) == tuple(zip(*pairs, strict=True))
        assert one.weights.shape == (2, 4, len(one.words), 9)
        total = one.weights.sum(axis=-1)
        if fusion == "joint":  # the rest of the softmax is on text
            assert 0 < total.min() and total.max() < 1
        else:
            np.testing.assert_allclose(total, 1, rtol=1e-5)
        places = word_positions(caption, TOKENIZER, 99)
        for number, at in enumerate(places.values()):
            np.testing.assert_allclose(
                one.weights[:, :, number],
                maps[:, row][:, :, np.array(at)].mean(axis=2),
                rtol=1e-4,
                atol=1e-6,
            )
        (alone,) = attention_maps(config, weights, TOKENIZER, shown()[row : row + 1])
        np.testing.assert_allclose(alone.weights, one.weights, rtol=1e-4, atol=1e-6)
    assert not np.allclose(found[0].weights[0], found[0].weights[1], rtol=0.1)


def test_words_are_written_before_their_tokens():
    caption = "a red star, and the red disc."
    ids, spans = TOKENIZER.encode(f"{caption}\n")
    places = word_positions(caption, TOKENIZER, 99)
    first = 0 if TOKENIZER.bos_id is None else 1
    for (word, start), at in places.items():
        assert caption[start:].startswith(word)
        written = [ids[place + 1 - first] for place in at]
        assert word in TOKENIZER.decode(written)
        for place in at:
            begin, end = spans[place + 1 - first]
            assert begin < start + len(word) and end > start
    assert [word for word, _ in places].count("red") == 2
    assert len(word_positions(caption, TOKENIZER, 4)) < len(places)


@pytest.mark.parametrize(
    ("fusion", "captions", "said"),
    [
        ("self_attention", CAPTIONS, "no cross-attention to draw"),
        ("none", CAPTIONS, "no text that reads the image"),
        ("hive", ("", CAPTIONS[0]), "a caption is empty"),
    ],
)
def test_attention_that_is_not_there(fusion, captions, said):
    images = np.zeros((2, 24, 24, 3), np.uint8)
    given = [CaptionedImage("x", i, c) for i, c in zip(images, captions, strict=True)]
    with pytest.raises(ConfigError, match=said):
        attention_maps(run(fusion), params(fusion), TOKENIZER, given)


def test_features_of_every_depth():
    config, weights = run("hive").model.encoder, params("hive")["img"]
    images = np.stack([one.image for one in shown()])
    found = extract_features(config, weights, images)
    assert found.shape == (4, 2, 9, 16)
    many = extract_features(config, weights, np.concatenate([images] * 20))
    np.testing.assert_allclose(many[:, -2:], found, rtol=1e-4, atol=1e-5)


def test_kernel_alignment():
    rng = np.random.default_rng(0)
    a, other = rng.normal(size=(2, 500, 8))
    turn, _ = np.linalg.qr(rng.normal(size=(8, 8)))
    assert linear_cka(a, 3 * a @ turn + 1) == pytest.approx(1)
    assert linear_cka(a, other) < 0.1
    # By its definition: the normalised product of centred kernels.
    centre = np.eye(500) - 1 / 500
    k, m = (centre @ (x @ x.T) @ centre for x in (a, a + other))
    wanted = (k * m).sum() / (np.linalg.norm(k) * np.linalg.norm(m))
    assert linear_cka(a, a + other) == pytest.approx(wanted)
    found = compare_features(np.stack([a, 2 * a])[:, None], np.stack([a, a])[:, None])
    assert found["cka"] == pytest.approx([1, 1])
    assert found["distance"] == pytest.approx([0, 1])


def test_colours_are_the_largest_components():
    rng = np.random.default_rng(0)
    kind = rng.integers(0, 3, (2, 16))
    features = np.eye(3, 10)[kind] * 5 + rng.normal(0, 0.01, (2, 16, 10)) + 7
    colours = principal_colours(features)
    assert colours.shape == (2, 16, 3) and 0 <= colours.min() < colours.max() <= 1
    middles = np.stack([colours[kind == k].mean(axis=0) for k in range(3)])
    gaps = np.linalg.norm(middles[:, None] - middles, axis=-1)[np.triu_indices(3, 1)]
    # The first two components tell three kinds apart; within one nothing is left.
    assert gaps.min() > 0.3
    assert colours[kind == 0][:, :2].std(axis=0).max() < 0.05
    np.testing.assert_array_equal(principal_colours(features), colours)
    assert principal_colours(features[..., :1]).shape == (2, 16, 3)


def test_patches_of_a_toy():
    """They look unlike the same table without it, and the far ones do not."""
    thing = scene("test", 0, 0, toys=1).things[0]
    assert toy_mask(thing, 1).tolist() == [True]
    for index in range(5):
        whole = scene("test", 0, index, toys=1)
        (thing,) = whole.things
        mask = toy_mask(thing, 8).reshape(8, 8)
        assert 0 < mask.sum() < 64
        image = render(whole, 64).astype(float)
        empty = render(dataclasses.replace(whole, things=()), 64).astype(float)
        changed = np.abs(image - empty).mean(axis=-1)
        patches = changed.reshape(8, 8, 8, 8).mean(axis=(1, 3))
        assert patches[mask].mean() > 5 * patches[~mask].mean()


def test_localization_finds_nothing_in_random_weights():
    config, weights = run("hive"), params("hive")
    found = measure_localization(config, weights, TOKENIZER, 60)
    assert [*found.attention] == [2, 4] == [*found.hit_rate]
    assert len(found.gradient) == 4
    assert all(0.3 < ratio < 3 for ratio in found.attention.values())
    assert all(0.2 < share < 0.8 for share in found.distinguished.values())
    with pytest.raises(ConfigError, match="no cross-attention"):
        measure_localization(
            run("self_attention"), params("self_attention"), TOKENIZER, 2
        )


def test_scenes_are_those_that_no_run_has_seen():
    config = run("hive")
    found = captioned_scenes(config, 3, first=5)
    assert [one.name for one in found] == ["scene 5", "scene 6", "scene 7"]
    for one in found:
        assert one.image.shape == (24, 24, 3) and one.caption
        for start, end, kind in one.tags:
            assert one.caption[start:end].strip(), kind


def test_curves_are_read_up_to_a_line_that_was_cut(tmp_path):
    path = tmp_path / "metrics.jsonl"
    path.write_text(
        '{"step": 1, "train/loss": 3.0, "train/grad_norm": 2.0}\n'
        '{"step": 2, "validation/loss": 2.5, "validation/image_gain": 0.1}\n'
        '{"step": 3, "train/loss": 2.0}\n{"step": 4, "tra'
    )
    found = read_curves(str(tmp_path))
    assert found["loss"] == ([1, 3], [3.0, 2.0])
    assert found["gradient norm"] == ([1], [2.0])
    assert found["image gain, nats per token"] == ([2], [0.1])
    assert "images per second" not in found
    with pytest.raises(MissingInputError, match=r"metrics.jsonl does not exist"):
        read_curves(str(tmp_path / "none"))


def test_lines_of_many_runs_can_be_told_apart(monkeypatch):
    drawn = []
    monkeypatch.setattr(plots, "save", lambda figure, path: drawn.append(figure))
    plots.draw_flow(None, {f"run {i}": np.ones(2) for i in range(9)}, "")
    lines = drawn[0].axes[0].get_lines()
    assert [line.get_label() for line in lines] == [f"run {i}" for i in range(9)]
    assert len({(line.get_color(), line.get_linestyle()) for line in lines}) == 9
