"""Records as people have them: what is read, and what is an error rather than another
sample."""

import pytest

from hive_jax.data.sources.base import MalformedRecord
from hive_jax.data.sources.conversations import (
    Conversation,
    means_image,
    parse_record,
)

ASK, ANSWER = "<image>\nWhat is it?", "a star"
TURNS = [{"from": "human", "value": ASK}, {"from": "gpt", "value": ANSWER}]
MESSAGES = [
    {"role": "user", "content": ASK},
    {"role": "assistant", "content": ANSWER},
]
PARTS = [
    {
        "role": "user",
        "content": [{"type": "image"}, {"type": "text", "text": "What is it?"}],
    },
    {"role": "assistant", "content": [{"type": "text", "text": ANSWER}]},
]
# As Parquet has them: every key of any part, null where it is not used.
NULLS = [
    {
        "role": "user",
        "content": [
            {"type": "image", "text": None, "index": 0},
            {"type": "text", "text": "What is it?", "index": None},
        ],
    },
    {"role": "assistant", "content": [{"type": "text", "text": ANSWER, "index": None}]},
]
INLINE = [
    {
        "role": "user",
        "content": [
            {"type": "text", "text": "What is it?"},
            {"type": "image_url", "image_url": {"url": "1.jpg"}},
        ],
    },
    {"role": "assistant", "content": ANSWER},
]
PLAIN = Conversation("1.jpg", (("a star\n", True, ""),))
CHAT = Conversation(
    "1.jpg", (("What is it?", False, "user"), ("a star", True, "assistant"))
)


@pytest.mark.parametrize(
    "record",
    [
        {"image": "1.jpg", "conversations": TURNS},
        {"images": ["1.jpg"], "conversations": TURNS},
        {"images": "1.jpg", "conversations": TURNS},
        {"image": ["1.jpg"], "images": ["1.jpg"], "conversations": TURNS},
        {"image": "", "images": ["1.jpg"], "conversation": TURNS},
        {"image": {"path": "1.jpg", "bytes": None}, "messages": MESSAGES},
        {"images": [{"path": "1.jpg"}], "messages": PARTS},
        {"images": ["1.jpg"], "messages": NULLS, "conversations": None},
        {"messages": INLINE},
        {"image": "1.jpg", "conversations": MESSAGES, "caption": "x", "text": "y"},
    ],
)
def test_every_spelling_is_the_same_sample(record):
    assert parse_record(record, "plain") == PLAIN
    assert parse_record(record, "chat") == CHAT


@pytest.mark.parametrize("image", [None, "", " ", [], [""], [None]])
@pytest.mark.parametrize("key", ["image", "images"])
def test_no_image_is_text_alone(key, image):
    turns = [{"from": "human", "value": "2 and 2?"}, {"from": "gpt", "value": "4"}]
    record = {key: image, "conversations": turns, "image_size": 3, "url": "x.org"}
    assert parse_record(record, "plain") == Conversation(None, (("4\n", True, ""),))
    turns = (("2 and 2?", False, "user"), ("4", True, "assistant"))
    expected = Conversation(None, turns)
    assert parse_record(record, "chat") == expected


TEXT = [{"from": "human", "value": "What is it?"}, TURNS[1]]


@pytest.mark.parametrize(
    ("record", "said"),
    [
        ({"image": "1.jpg", "caption": "a"}, "missing; the record has image, caption"),
        ({"image": "1.jpg", "text": "a"}, "for an image and a text each use table:"),
        ({"prompt": "a", "completion": "b"}, "the record has prompt, completion"),
        ({"image_path": "1.jpg", "conversations": TEXT}, "no image, but image_path"),
        ({"img": "1.jpg", "conversations": TURNS}, "has no image, but img"),
        ({"file_name": "1.jpg", "messages": TEXT}, "has no image, but file_name"),
        ({"imageUrl": "x", "messages": TEXT}, "has no image, but imageUrl"),
        ({"video": "1.mp4", "conversations": TEXT}, "has no image, but video"),
        ({"images": ["a", "b"], "messages": TEXT}, "has 2 images; expected one"),
        ({"images": ["a"], "image": "b", "messages": TEXT}, "in image and images"),
        (
            {"image": "b.jpg", "messages": INLINE},
            "different images in image and content",
        ),
        ({"messages": MESSAGES, "conversations": TURNS}, "conversations and messages"),
        ({"conversations": [TURNS[0] | {"role": "user"}]}, "turn 0 has from and role"),
        (
            {"messages": [{"role": "user", "content": "a", "images": ["1.jpg"]}]},
            "turn 0 has images; expected image in the record",
        ),
        (
            {"messages": [{"role": "user", "content": [{"type": "audio"}]}]},
            "content has a audio part; expected text or image",
        ),
        (
            {"messages": [{"role": "assistant", "content": None, "tool_calls": [1]}]},
            "turn 0: value is missing",
        ),
        ({"messages": [{"role": "tool", "content": "a"}]}, "turn 0 is from 'tool'"),
        ({"image": {"bytes": "aGk="}, "messages": TEXT}, "image is of type dict"),
        ({"image": 1.5, "messages": TEXT}, "image is of type float"),
        ({"image": "/9j/" * 300, "messages": TEXT}, "image has 1,200 characters"),
        ([], "is of type list; expected an object"),
    ],
)
@pytest.mark.parametrize("form", ["plain", "chat"])
def test_what_would_be_another_sample_is_an_error(record, said, form):
    parsed = parse_record(record, form)
    assert isinstance(parsed, MalformedRecord) and said in parsed


def dialogue(*turns: str) -> dict:
    """Turns that begin with Q: are of the human."""
    says = [
        {"from": "human" if turn.startswith("Q:") else "gpt", "value": turn[2:]}
        for turn in turns
    ]
    return {"image": "1.jpg", "conversations": says}


@pytest.mark.parametrize(
    ("turns", "caption"),
    [
        (["Q:Describe it.", "A:<image>\na star"], "a star"),
        (["Q:Describe it.", "A:a star"], "a star"),
        (["A:a star"], "a star"),
        (["A:Hello!", "Q:<image>", "A:a star"], "a star"),
        (["A:Hello!", "Q:Describe it.", "A:a star"], "a star"),
        (["Q:Hi", "A:Hello!", "Q:<image>Describe it.", "A:a star"], "a star"),
    ],
)
def test_the_caption_is_the_first_answer_after_the_image(turns, caption):
    parsed = parse_record(dialogue(*turns), "plain")
    assert parsed.turns == ((caption + "\n", True, ""),)


@pytest.mark.parametrize("form", ["plain", "chat"])
def test_no_form_learns_the_mark(form):
    parsed = parse_record(dialogue("Q:Describe it.", "A:<image>\na <star>"), form)
    assert "<image>" not in "".join(text for text, *_ in parsed.turns)
    for turns, said in (
        (["Q:<image>", "A:<image> a star"], "has an image, and <image> 2 times"),
        (["Q:<image><image>", "A:a star"], "has an image, and <image> 2 times"),
        (["Q:<image>", "A:"], "has no text from gpt"),
    ):
        assert said in parse_record(dialogue(*turns), form)
    parsed = parse_record(dialogue("Q:<image>", "A:a star") | {"image": None}, form)
    assert "has no image, and <image> 1 times" in parsed


def test_keys_that_mean_an_image():
    yes = "image images image_path img_url Img imgs file_name filename photo jpg webp "
    yes += "input_image image_1 image-file videos audio_path pixel_values picture"
    no = "id text imagine url source page pathology vision imaging conversations"
    assert all(map(means_image, yes.split()))
    assert not any(map(means_image, no.split()))
