"""Keys are checked, all of them are read, and the files of configs/ say what they do."""

import ast
import dataclasses
import importlib
import json
import subprocess
import sys
import typing
from pathlib import Path

import pytest

from hive_jax.config import (
    RESUMABLE_KEYS,
    Rule,
    RunConfig,
    as_run_config,
    differences,
    from_dict,
    recipes,
    to_dict,
)
from hive_jax.data.types import Batch
from hive_jax.errors import ConfigError
from hive_jax.models.decoder import DecoderConfig
from hive_jax.models.fusion import FUSIONS
from hive_jax.models.hive import HiveConfig
from hive_jax.models.presets import decoder_config, siglip_config
from hive_jax.models.siglip import SiglipConfig
from hive_jax.training.objectives import names_under_all_fusions
from hive_jax.training.optimizer import assign_rules, trains
from hive_jax.training.resolve import resolve_config

PACKAGE = Path(__file__).resolve().parents[2] / "hive_jax"
BASELINES = ("hive", "cascaded", "self_attention")


def paths(tree, prefix=()):
    """(key, ..., key) of every value that is not a group."""
    for key, value in tree.items():
        if isinstance(value, dict):
            yield from paths(value, (*prefix, key))
        else:
            yield (*prefix, key)


def groups(tree, prefix=()):
    for key, value in tree.items():
        if isinstance(value, dict):
            yield (*prefix, key)
            yield from groups(value, (*prefix, key))


# All towers are given, so that their keys are there.
FULL = RunConfig(model=HiveConfig(SiglipConfig(), DecoderConfig()))
LEAVES = sorted(paths(to_dict(FULL)))
GROUPS = sorted(groups(to_dict(FULL)))
by_leaf = pytest.mark.parametrize("path", LEAVES, ids=".".join)


def get(tree, path):
    for key in path:
        tree = tree[key]
    return tree


def changed(path, value, tree=None):
    """The default tree with another value at `path`."""
    tree = to_dict(FULL) if tree is None else tree
    get(tree, path[:-1])[path[-1]] = value
    return tree


def refused(tree):
    with pytest.raises(ConfigError) as caught:
        from_dict(tree)
    return str(caught.value)


def test_round_trip():
    run = RunConfig(rules=(Rule("llm/layers/.*", None), Rule(".*", 2.0, (1, 3))))
    tree = to_dict(run)
    assert tree["rules"] == (("llm/layers/.*", None, ()), (".*", 2.0, (1, 3)))
    assert from_dict(tree) == run
    assert from_dict(json.loads(json.dumps(tree))) == run
    assert from_dict({}) == RunConfig()
    assert hash(run) == hash(from_dict(tree))


def test_defaults_have_all_keys():
    assert len(LEAVES) > 70
    expected = {("model", "encoder"), ("model", "decoder"), ("execution", "encoder")}
    assert expected < set(GROUPS)


@pytest.mark.parametrize("path", [*LEAVES, *GROUPS], ids=".".join)
def test_a_misspelt_key_is_refused_and_the_right_one_suggested(path):
    *above, key = path
    for typo in (
        key + "x",
        "_" + key,
        key[: len(key) // 2] + "q" + key[len(key) // 2 :],
    ):
        tree = to_dict(FULL)
        group = get(tree, above)
        group[typo] = group.pop(key)
        dotted = ".".join([*above, typo])
        message = refused(tree)
        assert message == f"config.{dotted} is not a key; did you mean {key!r}?"


def test_an_unknown_key_is_refused_without_a_far_fetched_suggestion():
    assert refused({"zzzzzzzz": 1}) == "config.zzzzzzzz is not a key"


@by_leaf
def test_wrong_types_are_refused(path):
    """None, NaN, infinity, text for numbers and back, bool for int and back."""
    value = get(to_dict(FULL), path)
    wrong = [None, float("nan"), float("inf"), {"a": 1}, [[[]]]]
    wrong += [3] if isinstance(value, str | bool | tuple) else ["3", True, False]
    wrong += [3.5] if isinstance(value, str | bool | int | tuple) else []
    for value in wrong:
        message = refused(changed(path, value))
        assert message.startswith(f"config.{'.'.join(path)}")
        assert "; expected " in message or message.endswith("is missing")


@by_leaf
def test_whole_numbers_are_floats_and_not_the_other_way(path):
    value = get(to_dict(FULL), path)
    if type(value) is float:
        whole = 0 if path[-1].startswith(("beta", "min_lr")) else 1
        got = from_dict(changed(path, whole))
        for key in path:
            got = getattr(got, key)
        assert type(got) is float
        assert got == whole
    elif type(value) is int:
        assert "expected int" in refused(changed(path, float(value)))


@pytest.mark.parametrize("path", GROUPS, ids=".".join)
@pytest.mark.parametrize("value", [None, 3, "x", ()])
def test_a_group_must_be_a_dict(path, value):
    if value is None and path in (("model", "encoder"), ("model", "decoder")):
        assert get(to_dict(from_dict(changed(path, None))), path) is None
        return
    message = refused(changed(path, value))
    assert message.startswith(f"config.{'.'.join(path)} is {value!r}; expected keys [")


@pytest.mark.parametrize(
    ("rules", "message"),
    [
        (
            [("llm/.*", "x")],
            "config.rules[0].multiplier is 'x'; expected float or None",
        ),
        ([("a", 1.0), (3, 1.0)], "config.rules[1].pattern is 3; expected str"),
        ([(".*", True)], "config.rules[0].multiplier is True; expected float or None"),
        (
            [(".*", float("nan"))],
            "config.rules[0].multiplier is nan; expected 1e-09 to",
        ),
        ([(".*", 0.0)], "config.rules[0].multiplier is 0.0; expected 1e-09 to"),
        ([(".*", -1)], "config.rules[0].multiplier is -1.0; expected 1e-09 to"),
        ([(".*", 1.0, 3)], "config.rules[0].layers is 3; expected a tuple"),
        ([(".*", 1.0, (1.5,))], "config.rules[0].layers[0] is 1.5; expected int"),
        ([(".*",)], "config.rules[0].multiplier is missing"),
        ([], "config.rules is (); expected one rule or more"),
        (
            [(".*", 1.0), ("img/(", None)],
            "config.rules[1].pattern is 'img/('; expected a regular expression: missing )",
        ),
        ([("a{99999999999}", 1.0)], "pattern is 'a{99999999999}'; expected a regular"),
        ([(".*", 1.0, (), 5)], "expected ['pattern', 'multiplier', 'layers']"),
        ([".*"], "config.rules[0] is '.*'; expected keys ['pattern', "),
        ([{"patern": ".*"}], "config.rules[0].patern is not a key; did you mean 'pat"),
        (".*", "config.rules is '.*'; expected a tuple"),
    ],
)
def test_invalid_rules_are_refused(rules, message):
    assert message in refused({"rules": rules})


def test_rules_as_tuples_lists_and_dicts():
    got = from_dict(
        {"rules": [("a", None), ["b", 2], {"pattern": "c", "multiplier": 1}]}
    )
    assert got.rules == (Rule("a", None), Rule("b", 2.0), Rule("c", 1.0))


@pytest.mark.parametrize(
    ("key", "value", "expected"),
    [
        ("total_steps", 0, "1 to "),
        ("batch_size", -8, "1 to "),
        ("gradient_accumulation_steps", 0, "1 to "),
        (
            "gradient_accumulation_steps",
            3,
            "a multiple of gradient_accumulation_steps = 3",
        ),
        ("log_every", 0, "1 to "),
        ("eval_every", 0, "1 to "),
        ("checkpoint_every", -1, "1 to "),
        ("max_to_keep", 0, "1 to "),
        ("image_size", -1, "0 to "),
        ("seed", -1, "0 to "),
        ("dtype", "float16", "('auto', 'float32', 'bfloat16')"),
        ("objective", "classify", "('caption', 'contrastive')"),
        ("optimizer.peak_lr", 0.0, "1e-20 to 1000"),
        ("optimizer.peak_lr", -1e-3, "1e-20 to 1000"),
        ("optimizer.min_lr", 1.0, "at most peak_lr = 0.001"),
        ("optimizer.min_lr", -1.0, "0 to 1000"),
        ("optimizer.warmup_steps", -1, "0 to "),
        ("optimizer.beta1", 1.0, "0 to 0.999999"),
        ("optimizer.beta2", -0.1, "0 to 0.999999"),
        ("optimizer.weight_decay", -0.1, "0 to "),
        ("optimizer.clip_norm", 0.0, "1e-20 to 1e+20"),
        ("data.num_tokens", 1, "2 to "),
        ("data.validation_size", 1, "2 to "),
        ("data.buckets", (16, 12), "increasing numbers from 2"),
        ("data.buckets", (16, 16), "increasing numbers from 2"),
        ("data.buckets", (16, 77), "to below data.num_tokens = 77"),
        ("data.threads", 0, "1 to "),
        ("data.seed", -1, "0 to "),
        ("model.encoder.depth", 0, "1 to "),
        ("model.encoder.num_heads", 0, "1 to "),
        ("model.encoder.num_heads", 3, "a multiple of model.encoder.num_heads = 3"),
        ("model.encoder.image_size", 7, "patch_size = 8 or more"),
        ("execution.encoder.remat", "some", "('none', 'dots', 'full')"),
        ("execution.decoder.remat", "", "('none', 'dots', 'full')"),
        ("model.decoder.num_kv_heads", 0, "1 to "),
        ("model.decoder.num_kv_heads", 3, "multiple of model.decoder.num_kv_heads"),
        ("model.decoder.head_dim", 7, "even"),
        ("model.decoder.local_layers", -1, "0 to "),
        ("model.decoder.window", 0, "1 to "),
        ("model.decoder.final_softcap", -1.0, "0 to "),
        ("model.fusion", "hivee", "expected one of ('hive',"),
        ("model.connections", ((9, 1),), "expected an encoder depth of 1 to 8"),
        ("model.connections", ((1, 1), (2, 1)), "must increase"),
        ("model.connections", ((1, 2, 3),), "expected 2 values"),
    ],
)
def test_impossible_values_are_refused(key, value, expected):
    message = refused(changed(key.split("."), value))
    # A number that is not divided is what the message is about.
    named = {
        "gradient_accumulation_steps": ("gradient_accumulation_steps", "batch_size"),
        "model.encoder.num_heads": ("model.encoder.num_heads", "model.encoder.width"),
        "model.decoder.num_kv_heads": ("model.decoder.num_",),
        "model.connections": ("model",),
    }.get(key, (key,))
    assert message.startswith(tuple(f"config.{name}" for name in named))
    assert expected in message


@pytest.mark.parametrize(
    ("key", "value", "expected"),
    [
        (
            "gradient_accumulation_steps",
            2,
            "config.gradient_accumulation_steps is 2; expected 1: the contrastive loss",
        ),
        ("text_tower.num_heads", 3, "expected a multiple of text_tower.num_heads = 3"),
        ("text_tower.depth", 0, "config.text_tower.depth is 0; expected 1 to 1,000"),
        ("text_tower.out_dim", 32, "expected model.encoder.width = 64"),
    ],
)
def test_impossible_values_of_two_towers_are_refused(key, value, expected):
    tree = to_dict(dataclasses.replace(FULL, objective="contrastive"))
    assert expected in refused(changed(key.split("."), value, tree))
    if key.endswith(("num_heads", "out_dim")):  # which captions do not use
        from_dict(changed(key.split("."), value))


def test_differences_name_the_keys():
    old = to_dict(FULL)
    new = changed(("optimizer", "peak_lr"), 0.5)
    new["name"] = "other"
    del old["max_to_keep"], old["init"]
    new["rules"] = (("llm/.*", 1.0, ()),)
    assert differences(old, new) == [
        "init: (absent) -> ",
        "name: run -> other",
        "optimizer.peak_lr: 0.001 -> 0.5",
        "rules: (('.*', 1.0, ()),) -> (('llm/.*', 1.0, ()),)",
    ]


def test_no_differences_after_json():
    tree = to_dict(RunConfig(rules=(Rule("a", None, (1, 2)), Rule(".*", 1.0))))
    tree["model"]["connections"] = ((1, 1), (2, 3))
    assert differences(json.loads(json.dumps(tree)), tree) == []


@by_leaf
def test_every_change_but_a_resumable_one_is_a_difference(path):
    old = to_dict(FULL)
    new = changed(path, "changed")
    dotted = ".".join(path)
    resumable = dotted in RESUMABLE_KEYS or path[0] in RESUMABLE_KEYS
    lines = differences(old, new)
    assert [line.split(":")[0] for line in lines] == ([] if resumable else [dotted])


def test_resumable_keys_exist():
    known = {".".join(path) for path in [*LEAVES, *GROUPS]}
    assert known >= RESUMABLE_KEYS


def dataclasses_of(cls):
    yield cls
    for kind in typing.get_type_hints(cls).values():
        for group in typing.get_args(kind) or (kind,):
            if dataclasses.is_dataclass(group):
                yield from dataclasses_of(group)


def test_every_field_is_read():
    """A key that nothing reads would be accepted and do nothing."""
    read = set()
    for path in PACKAGE.rglob("*.py"):
        if path.parent.name != "config":
            tree = ast.parse(path.read_text(encoding="utf-8"))
            for node in ast.walk(tree):
                if isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Load):
                    read.add(node.attr)
    known = {*dataclasses_of(RunConfig)}
    assert len(known) == 11
    unread = [
        f"{cls.__name__}.{field.name}"
        for cls in known
        for field in dataclasses.fields(cls)
        if field.name not in read
    ]
    assert unread == []


# The files of configs/.


def load(stage, arguments=None):
    tree = importlib.import_module(f"configs.stage{stage}").get_config(arguments)
    run = from_dict(tree.to_dict())
    return resolve_config(run).config if run.model.encoder is None else run


ALL = [(0, "siglip"), (0, "llm")] + [
    (stage, f"{size}fusion={fusion}")
    for stage in (1, 2, 3)
    for size in ("", "paper,")
    for fusion in BASELINES
]


@pytest.fixture(scope="module")
def other_names():
    run = load(1)
    return names_under_all_fusions(run, Batch.spec(1, 40, 64))


@pytest.mark.parametrize(("stage", "arguments"), ALL)
def test_every_config_builds(parameter_shapes, other_names, stage, arguments):
    """Abstract shapes of the full-size models, and a rule for each parameter."""
    run = load(stage, arguments)
    shapes = parameter_shapes(run)
    assigned = assign_rules(shapes, run.rules, lambda: other_names)
    millions = sum(p.size for p in shapes.values()) / 1e6
    trainable = sum(p.size for n, p in shapes.items() if trains(assigned[n])) / 1e6
    assert 0 < trainable <= millions
    if stage:
        fusion = arguments.split("=")[1]
        suffix = "" if fusion == "hive" else f"_{fusion}"
        assert run.model.fusion == fusion
        assert run.previous == (f"stage{stage - 1}{suffix}" if stage > 1 else "")
        assert run.name == f"stage{stage}{suffix}"
    if "paper" in arguments:
        assert 1300 < millions < 1500  # 316 M, 1000 M, and the fusion
        assert run.gradient_accumulation_steps == (4 if stage == 3 else 1)
    elif stage:
        assert millions < 1.1


@pytest.mark.parametrize("fusion", BASELINES)
@pytest.mark.parametrize(
    ("stage", "table"),
    [
        (1, (0.9, 0.999, 1e-3, 1e-4, 0.0, 256, 1.0, 70, 2326)),
        (2, (0.9, 0.95, 2e-5, 2e-6, 0.0, 256, 10.0, 140, 4652)),
        (3, (0.9, 0.95, 2e-6, 0.0, 0.0, 1024, 10.0, 18, 581)),
    ],
)
def test_the_paper_recipes_are_those_of_table_3(stage, fusion, table):
    run = load(stage, f"paper,fusion={fusion}")
    optimizer = run.optimizer
    assert table == (
        optimizer.beta1,
        optimizer.beta2,
        optimizer.peak_lr,
        optimizer.min_lr,
        optimizer.weight_decay,
        run.batch_size,
        optimizer.clip_norm,
        optimizer.warmup_steps,
        run.total_steps,
    )
    assert all(rule.multiplier in (1.0, None) for rule in run.rules)
    assert all(rule.layers == () for rule in run.rules)
    epochs = {1: 1, 2: 2, 3: 1}[stage]
    samples = run.total_steps * run.batch_size
    assert samples == pytest.approx(epochs * 595_375, rel=0.001)


def test_the_paper_recipe_has_the_paper_sizes():
    run = load(1, "paper")
    encoder, decoder = run.model.encoder, run.model.decoder
    assert (encoder.width, encoder.depth, encoder.num_heads) == (1024, 24, 16)
    assert (encoder.patch_size, encoder.image_size) == (16, 384)
    assert (decoder.width, decoder.depth, decoder.vocab_size) == (1152, 26, 262_144)
    depths = [depth for depth, _ in run.model.resolved_connections()]
    assert depths == [4, 8, 12, 16, 20, 24]  # 25 % of 24, the last one included


def test_arguments_select_sizes():
    run = load(1, "paper,encoder=B/16-224,decoder=gemma3_270m")
    assert run.model.encoder == siglip_config("B", 16, 224)
    assert run.model.decoder == decoder_config("gemma3_270m")
    tree = importlib.import_module("configs.stage1").get_config(
        "paper,encoder=weights,decoder=weights"
    )
    config = from_dict(tree.to_dict())
    assert (config.model.encoder, config.model.decoder) == (None, None)
    assert config.execution == load(1, "paper").execution
    assert config.optimizer == load(1, "paper").optimizer


def test_a_config_file_gives_a_run_config():
    tree = importlib.import_module("configs.stage1").get_config()
    config = from_dict(tree.to_dict())
    assert as_run_config(tree) == as_run_config(tree.to_dict()) == config
    assert as_run_config(config) is config
    with pytest.raises(ConfigError, match="config.batch_size is 0"):
        as_run_config(dataclasses.replace(config, batch_size=0))


@pytest.mark.parametrize("tower", ["encoder", "decoder"])
def test_one_value_of_an_architecture_of_none_is_refused(tower):
    """Says how to name one, instead of the parser's own message."""
    key = f"--config.model.{tower}.width=128"
    command = [sys.executable, "tools/plan.py", "--config=configs/stage1.py", key]
    done = subprocess.run(
        command, check=False, cwd=PACKAGE.parent, capture_output=True, text=True
    )
    assert done.returncode == 64 and "Traceback" not in done.stderr
    assert f"config.model.{tower} is None" in done.stderr
    assert f"--config FILE:{tower}=" in done.stderr


def test_stages_of_one_size_share_their_model_and_data():
    for size in ("", "paper"):
        first, *others = [load(stage, size) for stage in (1, 2, 3)]
        for run in others:
            assert (run.model, run.data) == (first.model, first.data)


def test_stage_0_trains_the_towers_of_stage_1():
    siglip, llm = load(0, "siglip"), load(0, "llm")
    assert siglip.objective == "contrastive"
    assert siglip.text_tower.num_tokens == siglip.data.num_tokens
    assert (llm.objective, llm.model.fusion) == ("caption", "none")
    stage1 = load(1)
    assert siglip.model.encoder == stage1.model.encoder
    assert llm.model.decoder == stage1.model.decoder
    for run in (siglip, llm):
        assert (run.init_encoder, run.init_decoder) == ("", "")
        assert run.rules == (Rule(".*", 1.0),)


@pytest.mark.parametrize(
    ("stage", "arguments", "message"),
    [
        (1, "papr", "config argument 'papr'; expected some of paper, fusion=hive, "),
        (1, "papr", "did you mean 'paper'?"),
        (
            2,
            "paper,fusion=cascade",
            "is 'cascade'; expected one of ('hive', 'cascaded'",
        ),
        (2, "cascaded", "did you mean 'fusion=cascaded'?"),
        (3, "fusion", "did you mean 'fusion="),
        (3, "paper=1", "config argument 'paper=1'"),
        (1, "encoder=L/16", "encoder=L/16: 'L/16'; expected SIZE/PATCH-IMAGE"),
        (1, "encoder=XXL/16-224", "SigLIP variant is 'XXL'; expected one of ["),
        (1, "decoder=gemma3", "decoder is 'gemma3'; expected one of ['tiny', "),
        (1, "encodr=L/16-224", "did you mean 'encoder="),
        (0, "siglp", "did you mean 'siglip'?"),
        (0, "siglip,fusion=cascaded", "expected some of siglip, llm"),
        (0, None, "choose configs/stage0.py:siglip or configs/stage0.py:llm"),
        (0, "", "choose configs/stage0.py:siglip or"),
        (0, "siglip,llm", "choose configs/stage0.py:siglip or"),
    ],
)
def test_wrong_arguments_are_refused(stage, arguments, message):
    with pytest.raises(ConfigError) as caught:
        load(stage, arguments)
    assert message in str(caught.value)


def test_arguments_are_parsed():
    def parse(text):
        return recipes.parse(text, ("paper",), fusion="hive")

    expected = {"paper": True, "fusion": "cascaded"}
    assert parse("paper,fusion=cascaded") == expected
    assert parse("fusion=cascaded,,paper") == expected
    assert parse(None) == parse("") == {"paper": False, "fusion": "hive"}
    for fusion in FUSIONS:
        assert parse(f"fusion={fusion}")["fusion"] == fusion
