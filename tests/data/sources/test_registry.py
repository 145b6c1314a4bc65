"""Sources by name: the string form, the structured form, and what neither may be."""

import json

import pytest

from hive_jax.config import DataConfig, RunConfig, Source, from_dict, to_dict
from hive_jax.data.sources.base import SourceOptions
from hive_jax.data.sources.registry import (
    checked_sources,
    make_source,
    whole_source,
)
from hive_jax.data.sources.source_text import parse, to_text
from hive_jax.errors import ConfigError

MIXTURE = "2*llava:a.json,images=a.zip + 1*folder:pets"
SOURCES = (
    Source("llava", "a.json", (("images", "a.zip"),), 2.0),
    Source("folder", "pets", weight=1.0),
)


def test_the_string_form_is_the_structured_form():
    assert parse(MIXTURE) == checked_sources(MIXTURE) == SOURCES
    assert to_text(SOURCES) == to_text(MIXTURE) == MIXTURE
    assert parse("tabletop") == (Source("tabletop"),)
    assert parse("folder:a*b") == (Source("folder", "a*b"),)


def test_config_files_have_dicts_of_options():
    run = RunConfig(data=DataConfig(source=SOURCES))
    tree = json.loads(json.dumps(to_dict(run)))
    assert tree["data"]["source"][0]["options"] == {"images": "a.zip"}
    assert from_dict(tree) == run
    hash(run)


def test_the_command_line_overrides_a_structured_source():
    """Which absl wraps in a tuple, for the config file has one."""
    tree = to_dict(RunConfig())
    tree["data"]["source"] = (MIXTURE,)
    assert from_dict(tree).data.source == MIXTURE


def test_a_structured_source_is_read_as_its_string():
    options = SourceOptions(16, "hf_bicubic")
    source = Source("tabletop", "questions", (("take", "first:9"),))
    one = whole_source((source,), options)
    other = whole_source("tabletop:questions,take=first:9", options)
    assert one.fingerprint == other.fingerprint and len(one) == 9
    assert one.tag_names[:2] == ("other", "colour")
    data = DataConfig(source=(Source("tabletop"),))
    assert len(make_source(data, "train", image_size=16, with_image=False)) > 1000


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("lava:a.json", r"expected one of .*did you mean 'llava'"),
        ("llava", "expected a path, llava:PATH"),
        (
            "llava:a.json,image=x",
            r"'image' is not an option; expected images=.*did you mean 'images'",
        ),
        (
            "llava:a.json,images",
            r"'images' needs a value; expected images=\.\.\. or form=",
        ),
        (
            "./images",
            r"is './images'; .*Write the format of a path before it, such as folder:\./images",
        ),
        ("csv:a.csv", "did you mean 'table'"),
        ("mnist:", "For the dataset mnist write tfds:mnist .*hf:ORG/NAME"),
        ("coco:DIR", "For the dataset coco write tfds:coco"),
        ("llava:a.json,images=x,images=y", "images= is given twice"),
        ("folder:a,take=first:1,take=first:2", "take= is given twice"),
        ("0*llava:a.json", "data.source.weight is 0.0; expected 1e-09 to"),
        ("2*llava:a.json + llava:b.json", "expected a weight for each source"),
        ("tabletop + llava:b.json", "tabletop cannot be mixed"),
        ((Source("llava", "a.json", (("imges", "x"),)),), "did you mean 'images'"),
        ((Source("llava", "a.json", weight=-1.0),), "data.source.weight is -1.0"),
        ((), "expected one source or more"),
    ],
)
def test_what_is_no_source_is_named(source, message):
    with pytest.raises(ConfigError, match=message):
        checked_sources(source)


def test_paths_that_exist_may_have_the_characters_of_the_syntax(tmp_path):
    """A comma, an equals sign, a colon, a star and " + "."""
    for name in ("a,b", "a + b,c", "lr=0.1", "x,images=y", "2*z"):
        folder = tmp_path / name
        folder.mkdir()
        (folder / "base, v2.json").touch()
        path = f"{folder}/base, v2.json"
        text = f"llava:{path},images={folder},form=chat"
        options = (("images", str(folder)), ("form", "chat"))
        assert parse(text) == (Source("llava", path, options),)
        assert parse(f"2*{text} + 1*folder:{folder}") == (
            Source("llava", path, options, 2.0),
            Source("folder", str(folder), weight=1.0),
        )
    said = (
        f"{tmp_path}/c,d/base.json does not exist, and 'd/base.json' is not an option"
    )
    with pytest.raises(ConfigError, match=said):
        checked_sources(f"llava:{tmp_path}/c,d/base.json")
    with pytest.raises(
        ConfigError, match="/c,d/i.zip does not exist, and 'd/i.zip' is"
    ):
        checked_sources(f"llava:a.json,images={tmp_path}/c,d/i.zip,form=chat")


def test_the_home_folder_may_be_a_tilde(tmp_path, monkeypatch):
    """As in folder:~/data, which no shell replaces."""
    (tmp_path / "a,b/cat").mkdir(parents=True)
    (tmp_path / "a,b/cat/0.jpg").touch()
    monkeypatch.setenv("HOME", str(tmp_path))
    source = whole_source("folder:~/a,b", SourceOptions(16, "hf_bicubic"))
    assert source.describe(0).startswith(f"{tmp_path}/a,b")


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("gs://bucket/chat.json", "config.data.source is 'gs://bucket/chat.json'"),
        ("llava:s3://bucket/*.json", "data.source: llava is 's3://bucket/.*.json'"),
        ("llava:a.json,images=http://h/i.zip", "images is 'http://h/i.zip'"),
        ("tfds:x,dir=gs://bucket", "dir is 'gs://bucket'"),
        ((Source("prepared", "hdfs://host/a"),), "prepared is 'hdfs://host/a'"),
        ("food101:/", "food101 is '/', a whole disk"),
        ("folder:/tmp/..", "a whole disk; expected the folder of a dataset"),
        ("1e-50*llava:a.json", "weight is 1e-50; expected 1e-09 to"),
        ("nan*llava:a.json", "weight is nan"),
    ],
)
def test_urls_and_whole_disks_are_refused(source, message):
    with pytest.raises(ConfigError, match=message):
        checked_sources(source)
