"""Every number of a config has bounds, and names and paths can be served."""

import dataclasses
import typing

import pytest

from hive_jax.config import ProbeConfig, RunConfig, Source, from_dict, to_dict
from hive_jax.config.bounds import BOUNDS
from hive_jax.errors import ConfigError
from tools.fault_suite.config_fuzz import FULL

# The largest finite float32 and the smallest normal one.
FLOAT32 = (1.2e-38, 3.4e38)


def kinds(hint) -> set:
    """The types in a type hint, those in tuples included."""
    return {hint} | {kind for one in typing.get_args(hint) for kind in kinds(one)}


def numbers(config, prefix: str = ""):
    """(class, name, key, type) of every number, or tuple of numbers, of a config."""
    for name, hint in typing.get_type_hints(config).items():
        for kind in kinds(hint):
            if dataclasses.is_dataclass(kind):
                yield from numbers(kind, f"{prefix}{name}.")
            elif kind in (int, float):
                yield config.__name__, name, f"{prefix}{name}", kind


NUMBERS = sorted(set(numbers(RunConfig)) | set(numbers(ProbeConfig)), key=str)
# In tuples, of which the default tree has none.
IN_TUPLES = ("connections", "buckets", "rules", "source")
PLAIN = [
    one for one in NUMBERS if not one[2].replace(".", " ").split()[-1] in IN_TUPLES
]
PLAIN = [one for one in PLAIN if not {*one[2].split(".")} & {*IN_TUPLES}]


def refused(config_class: str, key: str, value) -> str:
    """The message for one changed value; the whole tree is valid without it."""
    schema = ProbeConfig if config_class == "ProbeConfig" else RunConfig
    tree = to_dict(ProbeConfig() if schema is ProbeConfig else FULL)
    group, (*above, name) = tree, key.split(".")
    for part in above:
        group = group[part]
    group[name] = value
    with pytest.raises(ConfigError) as caught:
        from_dict(tree, schema)
    return str(caught.value)


def test_every_number_has_bounds_within_int32_and_float32():
    assert len(NUMBERS) > 60
    listed = {(name, field) for name, fields in BOUNDS.items() for field in fields}
    assert {(name, field) for name, field, _, _ in NUMBERS} == listed
    for name, field, _, kind in NUMBERS:
        for bound in BOUNDS[name][field]:
            assert type(bound) is kind
            if kind is int:
                assert -(2**31) <= bound < 2**32
            else:
                assert bound == 0 or FLOAT32[0] < bound < FLOAT32[1]


@pytest.mark.parametrize(("name", "field", "key", "kind"), PLAIN)
def test_numbers_out_of_bounds_are_refused_by_key_value_and_range(
    name, field, key, kind
):
    low, high = BOUNDS[name][field]
    if kind is int:
        values = (low - 1, high + 1, 10**20, 2**64, -(10**30))
    else:
        values = (-1.0, 2 * high, 1e-50, 1e308, float("inf"), float("nan"), 10**400)
    for value in values:
        message = refused(name, key, value)
        shown = float("inf") if value == 10**400 else value
        assert message.startswith(f"config.{key} is {shown!r}; expected "), message
        assert " to " in message or "expected 0, or at least 1.2e-38" in message


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("optimizer.peak_lr", 1e38, "peak_lr is 1e+38; expected 1e-20 to 1000"),
        ("optimizer.beta1", 0.99999999, "expected 0 to 0.999999"),  # 1.0 as float32
        (
            "optimizer.weight_decay",
            1e-40,
            "expected 0, or at least 1.2e-38",
        ),
        ("model.connections", ((10**12, 1),), "connections[0][0] is 1000000000000"),
        ("data.buckets", (16, 10**12), "data.buckets[1] is 1000000000000"),
        ("rules", ((".*", 1e40),), "rules[0].multiplier is 1e+40"),
        ("rules", ((".*", 1.0, (0,)),), "rules[0].layers[0] is 0; expected 1 to"),
        (
            "data.source",
            ({"kind": "llava", "path": "a", "weight": 1e-50},),
            "weight is 1",
        ),
        # Of a tower that captions do not use.
        ("text_tower.depth", -1, "text_tower.depth is -1; expected 1 to 1,000"),
        ("text_tower.vocab_size", 10**11, "expected 1 to 10,000,000"),
    ],
)
def test_values_of_the_fault_list(key, value, message):
    assert message in refused("RunConfig", key, value)


@pytest.mark.parametrize(
    "name",
    [
        "",
        "../../x",
        "a/b",
        "/a",
        "a\\b",
        ".",
        "..",
        ".hidden",
        "a\nb",
        "\x1b[2J",
        "x" * 101,
    ]
    + ["\ud800", "\u202eabc"],
)
def test_names_are_names_of_folders(name):
    assert "a name of 1 to 100 bytes" in refused("RunConfig", "name", name)
    assert "a name of 1 to 100 bytes" in refused("ProbeConfig", "name", name)
    if name:
        assert refused("RunConfig", "previous", name).startswith("config.previous is ")


@pytest.mark.parametrize(
    "name", ["run", "stage1_cascaded", "a b", "lr=1e-3", "étape 1"]
)
def test_other_names_are_taken(name):
    assert from_dict({"name": name, "previous": name}).name == name


@pytest.mark.parametrize("url", ["hdfs://h/x", "https://h/x", "gs:/b/run"])
@pytest.mark.parametrize(
    "key", ["init", "init_encoder", "init_decoder", "data.tokenizer"]
)
def test_urls_are_refused_by_name(key, url):
    message = refused("RunConfig", key, url)
    assert message.startswith(f"config.{key} is {url!r}; expected a local path")
    assert "mount the bucket" in message


def test_a_run_config_made_in_python_is_bounded_too():
    config = dataclasses.replace(FULL, batch_size=10**20)
    with pytest.raises(ConfigError, match="batch_size is 1"):
        config.validate()
    source = (Source("llava", "a", weight=float("inf")),)
    data = dataclasses.replace(FULL.data, source=source)
    with pytest.raises(ConfigError, match="weight is inf"):
        dataclasses.replace(FULL, data=data).validate()
