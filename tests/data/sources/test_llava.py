"""LLaVA's sets, made here in the real formats."""

import importlib.util
import json

import pytest
from helpers.llava_sets import (
    COUNT,
    encoded,
    photograph,
    record,
    text_record,
    write_set,
)
from helpers.sources import opened_split

from hive_jax.config import DataConfig
from hive_jax.data.invalid import InvalidSample
from hive_jax.data.sources.base import SourceOptions
from hive_jax.data.sources.llava import open_llava
from hive_jax.data.sources.registry import make_source
from hive_jax.data.types import Segment
from hive_jax.errors import ConfigError, DataError, MissingInputError

FORMS = ["folder", "lines", "zip", "parquet"]


HAS_PYARROW = importlib.util.find_spec("pyarrow") is not None


@pytest.mark.parametrize("form", FORMS)
def test_every_form_has_each_sample_once_and_the_same(sources, files, form):
    if form == "parquet" and not HAS_PYARROW:
        pytest.skip("needs pyarrow")
    train, train_validation_split = (
        opened_split(sources[form]),
        opened_split(sources[form], "validation"),
    )
    assert (len(train), len(train_validation_split)) == (8, 2)
    samples = [s[i] for s in (train_validation_split, train) for i in range(len(s))]
    apart = [0, 5]  # at equal distances
    order = [*apart, *(number for number in range(COUNT) if number not in apart)]
    for number, sample in zip(order, samples, strict=True):
        assert sample.segments == (Segment(f"caption number {number}\n"),)
        wanted = None if number == 7 else files[record(number)["image"]]
        assert sample.image == wanted
    assert train.fingerprint != train_validation_split.fingerprint
    assert "record 3" in train.describe(2) and ("image" in train.describe(2))


def test_the_fingerprint_is_of_what_is_read(sources):
    one = opened_split(sources["folder"]).fingerprint
    assert opened_split(sources["zip"]).fingerprint == one
    assert opened_split(sources["lines"]).fingerprint == one
    assert opened_split(sources["zip"] + ",form=chat").fingerprint != one
    assert opened_split(sources["zip"], validation_size=3).fingerprint != one


def chat(tmp_path, turns, image="0/0.jpg", form="chat"):
    """The one train sample that says these turns."""
    said = [{"from": who, "value": text} for who, text in turns]
    last = record(0, image=image, conversations=said)
    records = [record(1), text_record(2), last]
    files = {name: encoded(photograph(0)) for name in ("0/0.jpg", "1/1.jpg")}
    sources = write_set(tmp_path, files, records)
    return opened_split(f"{sources['zip']},form={form}")[0]


def test_conversations_are_learnt_where_the_assistant_speaks(tmp_path):
    turns = [
        ("human", "<image>\nwhat is it?"),
        ("gpt", "a star"),
        ("human", "its colour?"),
        ("gpt", "red"),
    ]
    sample = chat(tmp_path, turns)
    assert sample.image_before == 0
    assert sample.segments == (
        Segment("what is it?", False, role="user"),
        Segment("a star", True, role="assistant"),
        Segment("its colour?", False, role="user"),
        Segment("red", True, role="assistant"),
    )
    # Without a chat template each is a line.
    lines = ("what is it?\n", "a star\n", "its colour?\n", "red\n")
    assert sample.without_roles().segments == tuple(
        Segment(line, number % 2 == 1) for number, line in enumerate(lines)
    )


def test_an_image_stands_before_its_turn(tmp_path):
    turns = [
        ("system", "be brief"),
        ("user", "hello"),
        ("assistant", "hi"),
        ("user", "and this? <image>"),
        ("assistant", "a cube"),
    ]
    sample = chat(tmp_path, turns)
    assert sample.image_before == 3
    assert sample.segments[3] == Segment("and this?", False, role="user")


def test_text_without_an_image_is_kept(tmp_path):
    sample = chat(tmp_path, [("human", "2 and 2?"), ("gpt", "4")], image=None)
    assert sample.image is None and len(sample.segments) == 2


@pytest.mark.parametrize(
    ("changes", "form", "said"),
    [
        ({"image": 3}, "plain", "image is of type int"),
        ({"image": True}, "plain", "image is of type bool"),
        ({"image": ["a.jpg", "b.jpg"]}, "plain", "has 2 images"),
        ({"conversations": []}, "plain", "conversations is missing"),
        (
            {"conversations": "hi"},
            "plain",
            "conversations is of type str; expected a list",
        ),
        ({"conversations": None}, "plain", "conversations is missing"),
        ({"conversations": [{"from": "gpt", "value": " "}]}, "plain", "no text from"),
        (
            {"conversations": [{"from": "gpt", "value": 3}]},
            "plain",
            "value is of type int",
        ),
        ({"conversations": [{"from": "bard", "value": ""}]}, "plain", "'bard'"),
        ({"conversations": ["hello"]}, "plain", "turn 0 is of type str"),
        (
            {"conversations": [{"from": "gpt", "value": "a \ud800"}]},
            "plain",
            "turn 0: value has a lone surrogate",
        ),
        ({"image": None}, "chat", "no image, and <image> 1 times"),
        (
            {"conversations": [{"from": "gpt", "value": "a"}]},
            "chat",
            "an image, and <image> 0 times",
        ),
        ({"conversations": [{"from": "human", "value": "<image>"}]}, "chat", "no text"),
    ],
)
def test_records_that_say_nothing_are_bad_samples(tmp_path, files, changes, form, said):
    records = [record(i) for i in range(3)] + [record(3, **changes)]
    source = write_set(tmp_path, files, records)["folder"]
    train = opened_split(f"{source},form={form}", max_bad_fraction=1.0)
    with pytest.raises(InvalidSample, match=rf"chat\.json, record 3.*{said}") as caught:
        train[1]
    assert caught.value.reason == "record"
    assert train[0].image


def test_a_list_with_one_image_is_that_image(tmp_path, files):
    records = [record(i, image=[record(i)["image"]]) for i in range(3)]
    assert opened_split(write_set(tmp_path, files, records)["zip"])[0].image


def test_lines_that_are_no_json_are_bad_samples(tmp_path, files):
    source = write_set(tmp_path, files, [record(i) for i in range(5)])["lines"]
    path = tmp_path / "chat.jsonl"
    lines = path.read_text().splitlines()
    lines[3], lines[4] = lines[3][:-9], "[" * 100_000
    # What other systems take for ends of lines belongs to the text.
    odd = "x\u2028y\u2029z\x85\u000b"
    turns = [{"from": "gpt", "value": f"a {odd}b"}]
    lines[1] = json.dumps(record(1, conversations=turns), ensure_ascii=False)
    content = "\ufeff" + "\n\n".join(lines[:4]) + "\r\n\r\n" + lines[4]
    path.write_bytes(content.encode("utf-8"))
    train = opened_split(source, max_bad_fraction=1.0)
    for index, said in ((1, "line 7 is not JSON"), (2, "line 9 is nested too deeply")):
        with pytest.raises(InvalidSample, match=said):
            train[index]
    assert train[0].segments[0].text == f"a {odd}b\n"


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"", "is empty"),
        (b"hello", "neither a JSON list nor JSON lines"),
        (b"[" * 100_000, "nested too deeply"),
        (b"[{]", "not JSON"),
        (b"[" + b"9" * 5000 + b"]", "not JSON"),
        (b"\xff\xfe[]", "is UTF-16; expected UTF-8"),
        (b"[\xff]", "not UTF-8"),
        (b"[]", "has 0 records"),
        (b'{"data": []}', "is one object with the keys data; expected a list of rec"),
        (b'{\n"data": []\n}', "is one object with the keys data"),
        (json.dumps([text_record(0)]).encode(), "is given, but no record of .* has an"),
    ],
)
def test_files_that_are_no_set(tmp_path, content, said):
    (tmp_path / "chat.json").write_bytes(content)
    with pytest.raises(DataError, match=said):
        opened_split(f"llava:{tmp_path}/chat.json,images={tmp_path}")


def test_a_set_that_is_smaller_than_its_validation_split(tmp_path):
    (tmp_path / "chat.json").write_text(json.dumps([text_record(0)]))
    with pytest.raises(DataError, match="1 samples; expected more than the 2 that"):
        opened_split(f"llava:{tmp_path}/chat.json")


def test_missing_inputs_are_named(tmp_path, files, sources):
    with pytest.raises(MissingInputError, match=r"no\.json: no such file"):
        opened_split("llava:no.json,images=.")
    with pytest.raises(MissingInputError, match="images=nowhere: no such"):
        opened_split(
            sources["folder"].replace("images=", "images=nowhere#").split("#")[0]
        )
    with pytest.raises(MissingInputError, match=r"say where they are.*FOLDER_OR_ZIP"):
        opened_split(sources["folder"].split(",")[0])
    empty = tmp_path / "images"
    empty.mkdir()
    with pytest.raises(MissingInputError, match=r"9 of 9 images are not in .*0/0\.jpg"):
        opened_split(f"{sources['folder'].split(',')[0]},images={empty}")
    with pytest.raises(MissingInputError, match="no such file, or no .parquet"):
        opened_split(f"llava:{empty}")
    not_a_zip = tmp_path / "images.tar"
    not_a_zip.write_bytes(b"no")
    with pytest.raises(DataError, match="expected a folder of images, or a zip"):
        opened_split(f"{sources['folder'].split(',')[0]},images={not_a_zip}")


def test_records_that_all_lack_the_image(tmp_path, files):
    records = [record(i) for i in range(4)]
    for one in records:
        one["img_path"] = one.pop("image")
    source = write_set(tmp_path, files, records)["folder"]
    said = "4 of 4 records of .* the first: record 0 has no image, but img_path"
    with pytest.raises(DataError, match=said):
        opened_split(source)
    source = write_set(tmp_path, files, [text_record(i) for i in range(4)])["folder"]
    with pytest.raises(
        DataError, match="no record of .* has an image; the first has id"
    ):
        opened_split(source)


def test_a_key_twice_in_a_record(tmp_path, files):
    lines = [json.dumps(record(i)) for i in range(4)]
    lines[2] = '{"image": "other.jpg", ' + lines[2][1:]
    source = write_set(tmp_path, files, [])["lines"]
    (tmp_path / "chat.jsonl").write_text("\n".join(lines))
    held_out = opened_split(source, "validation", max_bad_fraction=1.0)
    with pytest.raises(InvalidSample, match="line 3: 'image' is twice in the object"):
        held_out[1]
    (tmp_path / "chat.jsonl").write_text(f"[{','.join(lines)}]")
    with pytest.raises(DataError, match="chat.jsonl: 'image' is twice in the object"):
        opened_split(source)


def test_a_caption_that_most_images_have_is_a_note(tmp_path, files):
    hello = [
        {"from": "human", "value": "<image>\nHi"},
        {"from": "gpt", "value": "Hello, how can I help?"},
    ]
    records = [record(i % COUNT) for i in range(24)]
    path = write_set(tmp_path, files, records)["folder"].removeprefix("llava:")
    path, _, images = path.partition(",images=")
    options = SourceOptions(16, "hf_bicubic")
    assert open_llava(path, options, images=images).notes == ()
    for one in records[4:]:
        one["conversations"] = hello
    write_set(tmp_path, files, records)
    (note,) = open_llava(path, options, images=images).notes
    assert "20 of 24 images have the same caption: 'Hello, how can I help?'" in note
    assert open_llava(path, options, images=images, form="chat").notes == ()


@pytest.mark.parametrize(
    ("source", "said"),
    [
        ("lava:chat.json", "did you mean 'llava'"),
        ("llava:chat.json,image=a.zip", "did you mean 'images'"),
        (
            "llava:chat.json,images",
            "'images' needs a value; expected images=... or form=",
        ),
        ("tabletop:caption", "did you mean 'captions'"),
        ("tabletop,form=chat", "expected split=... or take=... for tabletop"),
        ("", "expected one of"),
    ],
)
def test_sources_that_are_none(source, said):
    with pytest.raises(ConfigError, match=said):
        opened_split(source)


def test_an_unknown_form(sources):
    with pytest.raises(ConfigError, match=r"form is 'chats'.*did you mean 'chat'"):
        opened_split(f"{sources['zip']},form=chats")


def test_images_that_are_not_needed_are_not_looked_for(sources):
    chat = sources["folder"].split(",")[0]
    data = DataConfig(source=chat, validation_size=2)
    source = make_source(data, "train", image_size=16, with_image=False)
    assert source[0].image is None and len(source) == 8
    assert source[0].segments == (Segment("caption number 1\n"),)
