"""Keys are checked, and all of them are read."""

import ast
import dataclasses
import json
import typing
from pathlib import Path

import pytest
from helpers.config_trees import GROUPS, LEAVES, by_leaf, changed, refused

from hive_jax.config import (
    RESUMABLE_KEYS,
    Rule,
    RunConfig,
    differences,
    from_dict,
    to_dict,
)
from tools.fault_suite.config_fuzz import FULL, get

PACKAGE = Path(__file__).resolve().parents[2] / "hive_jax"


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


def test_a_key_that_is_not_text_is_refused():
    assert refused({7: 1}) == "config.7 is not a key"
    assert refused({"model": {None: 1}}).startswith("config.model.None is not a key")
    source = {"kind": "llava", "path": "a", "options": {"images": "b", 7: "c"}}
    message = refused({"data": {"source": [source]}})
    assert message.startswith("config.data.source[0].options[0][0] is 7; expected str")


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


def test_rules_as_tuples_lists_and_dicts():
    got = from_dict(
        {"rules": [("a", None), ["b", 2], {"pattern": "c", "multiplier": 1}]}
    )
    assert got.rules == (Rule("a", None), Rule("b", 2.0), Rule("c", 1.0))


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
