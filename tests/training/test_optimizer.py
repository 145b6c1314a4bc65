"""Rules, and AdamW against numpy."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from hive_jax.config import OptimizerConfig, Rule
from hive_jax.errors import ConfigError
from hive_jax.training import optimizer
from hive_jax.training.optimizer import (
    assign_rules,
    make_optimizer,
    make_schedule,
    relative_distances,
)

NAMES = ["img/a", "img/b", "llm/layers/w", "llm/final_norm/scale", "fusion/gate"]


def test_the_first_rule_that_matches_the_whole_name_wins():
    one, two, three = Rule("img/a", 3.0), Rule("img/.*", None), Rule(".*", 1.0)
    assigned = assign_rules(NAMES, (one, two, three))
    expected = [one, two, three, three, three]
    assert assigned == dict(zip(NAMES, expected, strict=True))
    with pytest.raises(ConfigError, match="matches no parameter"):
        assign_rules(NAMES, (Rule("img", 1.0), three))  # only a part of names


@pytest.mark.parametrize(
    ("rules", "message"),
    [
        ([("img/.*", 1.0)], r"no rule of config.rules matches .*'llm/layers/w'; add"),
        (
            [("text/.*", 1.0), (".*", 1.0)],
            r"'text/\.\*' matches no parameter; the model has fusion/gate, img/a",
        ),
        ([(".*", 1.0), ("img/.*", None)], r"'img/\.\*' has no effect: earlier"),
        ([(".*", None)], "freeze every parameter"),
        ([], "no rule of config.rules matches parameter 'img/a'"),
    ],
)
def test_rules_with_no_effect_are_refused(rules, message):
    with pytest.raises(ConfigError, match=message):
        assign_rules(NAMES, tuple(Rule(*rule) for rule in rules))


def test_a_rule_may_match_only_another_fusion_but_not_be_shadowed():
    rules = (Rule("fusion/projector", 1.0), Rule(".*", 1.0))
    elsewhere = ["fusion/projector", "img/a"]
    assert set(assign_rules(NAMES, rules, lambda: elsewhere)) == set(NAMES)
    with pytest.raises(ConfigError, match="has no effect"):
        assign_rules(
            NAMES, (Rule(".*", 1.0), Rule("img/a", 1.0)), lambda: ["img/a", "img/b"]
        )


def test_a_rule_with_layers_is_for_stacked_parameters_alone():
    rules = (Rule("llm/.*", 1.0, (2,)), Rule("fusion/.*", 1.0, (1,)), Rule(".*", None))
    assigned = assign_rules([*NAMES, "img/Transformer/encoderblock/w"], rules)
    assert assigned["llm/layers/w"] == rules[0]
    assert assigned["fusion/gate"] == rules[1]
    assert assigned["llm/final_norm/scale"] == rules[2]
    block = Rule("img/.*", 1.0, (1,))
    names = ["img/Transformer/encoderblock/w", "txt/Encoder_0/encoderblock/w", "img/b"]
    assigned = assign_rules(names, (block, Rule("txt/.*", 1.0, (1,)), Rule(".*", None)))
    assert [assigned[name].layers for name in names] == [(1,), (1,), ()]


def test_split():
    rules = (Rule("img/.*", None), Rule(".*", 1.0))
    params = {name: number for number, name in enumerate(NAMES)}
    trainable, frozen = optimizer.split(params, assign_rules(NAMES, rules))
    assert frozen == {"img/a": 0, "img/b": 1}
    assert trainable == {name: params[name] for name in NAMES[2:]}


def rates(total, **changes):
    config = OptimizerConfig(**{"peak_lr": 1.0, "min_lr": 0.1} | changes)
    schedule = make_schedule(config, total)
    return [float(schedule(done)) for done in range(total)]


def test_learning_rate_warms_up_then_falls_to_the_minimum_at_the_last_step():
    got = rates(12, warmup_steps=4)
    np.testing.assert_allclose(got[:4], [0.25, 0.5, 0.75, 1.0], rtol=1e-6)
    expected = [0.1 + 0.9 * (1 + np.cos(np.pi * n / 8)) / 2 for n in range(1, 9)]
    np.testing.assert_allclose(got[4:], expected, rtol=1e-5)
    assert got[-1] == pytest.approx(0.1)
    np.testing.assert_allclose(got[7], 0.55, rtol=1e-5)  # half-way


@pytest.mark.parametrize("warmup", [0, 1])
def test_without_warm_up_the_first_step_has_the_peak(warmup):
    got = rates(5, warmup_steps=warmup)
    assert got[0] == pytest.approx(1.0)
    assert got[-1] == pytest.approx(0.1)
    assert got == sorted(got, reverse=True)


@pytest.mark.parametrize("warmup", [5, 6, 100])
def test_warm_up_lasts_at_most_the_whole_run(warmup):
    np.testing.assert_allclose(rates(5, warmup_steps=warmup), np.arange(1, 6) / 5)


def test_a_run_of_one_step_has_the_peak():
    assert rates(1) == rates(1, warmup_steps=9) == [1.0]


def test_learning_rate_stays_at_the_minimum_after_the_end():
    schedule = make_schedule(OptimizerConfig(peak_lr=1.0, min_lr=0.1), 10)
    assert float(schedule(50)) == pytest.approx(0.1)


def run_optimizer(config, total, rules, params, gradients):
    """The parameters after each step of the given gradients."""
    assigned = assign_rules(params, tuple(Rule(*rule) for rule in rules))
    transform = make_optimizer(config, total, assigned)
    params = {name: jnp.asarray(p) for name, p in params.items()}
    opt_state, out = transform.init(params), []
    update = jax.jit(transform.update)
    for grads in gradients:
        grads = {name: jnp.asarray(g) for name, g in grads.items()}
        updates, opt_state = update(grads, opt_state, params)
        params = {name: params[name] + updates[name] for name in params}
        out.append(jax.device_get(params))
    return out


def random_tree(rng, shapes, scale=1.0):
    return {
        name: (scale * rng.normal(size=shape)).astype(np.float32)
        for name, shape in shapes.items()
    }


def test_three_steps_of_adamw_by_hand():
    """Clipping on the global norm, multipliers, decay apart from both."""
    config = OptimizerConfig(
        peak_lr=0.1,
        min_lr=0.01,
        warmup_steps=2,
        beta1=0.9,
        beta2=0.95,
        weight_decay=0.02,
        clip_norm=1.0,
    )
    rng = np.random.default_rng(0)
    shapes = {"a": (3, 2), "b": (4,)}
    params = random_tree(rng, shapes)
    gradients = [random_tree(rng, shapes, scale) for scale in (0.1, 2.0, 0.5)]
    norms = [np.sqrt(sum((g**2).sum() for g in tree.values())) for tree in gradients]
    assert norms[0] < 1 < norms[1]  # one is clipped, one is not

    got = run_optimizer(config, 3, [("a", 5.0), ("b", 1.0)], params, gradients)
    factors, shape = {"a": 5.0, "b": 1.0}, [0.5, 1.0, 0.1]
    mu = {name: 0.0 for name in shapes}
    nu = {name: 0.0 for name in shapes}
    for step, tree in enumerate(gradients):
        for name, g in tree.items():
            g = np.float64(g) / max(1.0, norms[step])
            mu[name] = 0.9 * mu[name] + 0.1 * g
            nu[name] = 0.95 * nu[name] + 0.05 * g**2
            first = mu[name] / (1 - 0.9 ** (step + 1))
            second = nu[name] / (1 - 0.95 ** (step + 1))
            adam = first / (np.sqrt(second) + 1e-8)
            change = 0.1 * factors[name] * adam + 0.02 * params[name]
            params[name] = params[name] - shape[step] * change
            np.testing.assert_allclose(got[step][name], params[name], atol=1e-5)


@pytest.mark.parametrize("peak_lr", [1e-6, 1.0])
@pytest.mark.parametrize("multiplier", [1.0, 10.0])
def test_weight_decay_follows_the_shape_and_not_the_rate(peak_lr, multiplier):
    config = OptimizerConfig(peak_lr=peak_lr, warmup_steps=2, weight_decay=0.1)
    params = {"a": np.float32([1.0, -2.0])}
    zero = {"a": np.zeros(2, np.float32)}
    got = run_optimizer(config, 4, [("a", multiplier)], params, [zero] * 4)
    expected = params["a"]
    for step, shape in enumerate([0.5, 1.0, 0.5, 0.0]):
        expected = expected * (1 - 0.1 * shape)
        np.testing.assert_allclose(got[step]["a"], expected, rtol=1e-6)


def test_only_the_named_layers_move_and_count_for_the_clipping():
    config = OptimizerConfig(peak_lr=0.1, weight_decay=0.1, clip_norm=1.0)
    rng = np.random.default_rng(0)
    shapes = {"llm/layers/w": (4, 3, 2), "llm/layers/b": (4, 2), "fusion/gate": (2, 1)}
    params = random_tree(rng, shapes)
    gradients = [random_tree(rng, shapes, 0.1) for _ in range(3)]
    rules = [("llm/.*", 1.0, (1, 3)), ("fusion/.*", 1.0)]
    plain = run_optimizer(config, 3, rules, params, gradients)
    for tree in gradients:  # left out: they must not shrink what is clipped
        for name in ("llm/layers/w", "llm/layers/b"):
            tree[name][[1, 3]] = 1e6
    got = run_optimizer(config, 3, rules, params, gradients)
    for name in shapes:
        np.testing.assert_array_equal(got[-1][name], plain[-1][name])
        moved = got[-1][name] != params[name]
        if name.startswith("llm"):
            assert moved[[0, 2]].all()
            assert not moved[[1, 3]].any()
        else:
            assert moved.all()


@pytest.mark.parametrize("layers", [(0, 1), (5,)])
def test_rules_for_layers_that_do_not_exist_are_refused(layers):
    config = OptimizerConfig()
    params = {"llm/layers/w": np.ones((4, 2), np.float32)}
    with pytest.raises(ConfigError, match=r"llm/layers/w has layers 1 to 4"):
        run_optimizer(config, 3, [(".*", 1.0, layers)], params, [params])


def test_a_thousand_tiny_updates_move_a_parameter():
    """0.001 % of the weight a step: lost in bfloat16, not in float32."""
    config = OptimizerConfig(peak_lr=1e-5, min_lr=1e-5)
    params = {"a": jnp.ones(1)}
    transform = make_optimizer(config, 1000, assign_rules(params, (Rule("a", 1.0),)))

    def step(carry, _):
        params, opt_state = carry
        grads = {"a": jnp.full(1, 1e-4)}
        updates, opt_state = transform.update(grads, opt_state, params)
        return ({"a": params["a"] + updates["a"]}, opt_state), None

    run = jax.jit(lambda carry: jax.lax.scan(step, carry, length=1000)[0])
    (params, _) = run((params, transform.init(params)))
    np.testing.assert_allclose(params["a"], 1 - 1000 * 1e-5, atol=1e-4)


def test_relative_distances_by_parameter_group():
    before = {"llm": {"layers": {"w": np.full(4, 2.0)}}, "img": {"a": np.zeros(2)}}
    after = {"llm": {"layers": {"w": np.full(4, 3.0)}}, "img": {"a": np.full(2, 2.0)}}
    moved = relative_distances(before, after)
    assert moved["llm/layers"] == pytest.approx(0.5)
    assert moved["img/a"] == pytest.approx(8**0.5)
    assert relative_distances(before, before) == {"llm/layers": 0.0, "img/a": 0.0}
