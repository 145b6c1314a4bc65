"""Conversations about an image: a record of a dataset, parsed into text to learn.

LLaVA's keys, and those of the chat datasets on Hugging Face:

    {"image": "1.jpg",
     "conversations": [{"from": "human", "value": "Describe it.\\n<image>"},
                       {"from": "gpt", "value": "a dog on a beach"}]}
    {"images": ["1.jpg"],
     "messages": [{"role": "user", "content": [{"type": "image"},
                                               {"type": "text", "text": "Describe it."}]},
                  {"role": "assistant", "content": "a dog on a beach"}]}

A key of another name that means an image, or a second place for the text, is an error:
the sample would be another one without it.
"""

import dataclasses
import re

from hive_jax.data.sources.base import MalformedRecord, is_utf8
from hive_jax.data.types import Segment

FORMS = ("plain", "chat")
IMAGE = "<image>"
IMAGE_KEYS = ("image", "images")
TURN_KEYS = ("conversations", "messages", "conversation")
_SPEAKER_KEYS = ("from", "role")
_TEXT_KEYS = ("value", "content")
_ANSWERS = "assistant"
_ROLES = {
    "human": "user",
    "user": "user",
    "system": "system",
    "gpt": _ANSWERS,
    "assistant": _ANSWERS,
}
# Of a content part in OpenAI's and Hugging Face's chat formats.
_IMAGE_PARTS = ("image", "image_url")
_PART_IMAGES = ("image", "path", "url", "image_url")
# Names of keys that mean an image, or a medium that is not read: image_path, img,
# file_name, input_images, videos.
_MAX_NAME = 1024  # characters; the content of an image in base64 has more
_MEDIUM = re.compile(
    r"(.*[_-])?(image|img|picture|photo|jpe?g|png|webp|video|audio)s?"
    r"([_-].*|paths?|urls?|files?|names?|bytes)?"
    r"|file_?names?|pixel_values",
    re.IGNORECASE,
)


@dataclasses.dataclass(frozen=True, slots=True)
class Conversation:
    """A record in one of the forms.

    Attributes:
      image: name of the image; None for text alone.
      turns: (text, supervised, role) of each turn; see Segment.
      image_before: index of the turn that the image precedes.
    """

    image: str | None
    turns: tuple[tuple[str, bool, str], ...]
    image_before: int = 0

    def segments(self) -> tuple[Segment, ...]:
        """Returns the turns as segments of a sample."""
        return tuple(
            Segment(text, target, role=role) for text, target, role in self.turns
        )


class _Malformed(Exception):
    """What is wrong with a record."""


def parse_record(record, form: str) -> Conversation | MalformedRecord:
    """Parses a record; one that cannot be used becomes a MalformedRecord.

    Args:
      record: a JSON value, or the columns of a row.
      form: "plain" or "chat".
    """
    try:
        if isinstance(record, MalformedRecord):
            return record
        if not isinstance(record, dict):
            raise _Malformed(f"is {_type_name(record)}; expected an object")
        turns = _turns(record)
        image = _image(record, turns)
        if image is None:
            _refuse_other_images(record)
        dialogue = [_parse_turn(turn, number) for number, turn in enumerate(turns)]
        return _plain(image, dialogue) if form == "plain" else _chat(image, dialogue)
    except _Malformed as malformed:
        return MalformedRecord(malformed)


def means_image(key: str) -> bool:
    """Returns whether a key or column of this name has an image, or another medium."""
    return bool(_MEDIUM.fullmatch(key))


def _turns(record: dict) -> list:
    turns = _only(record, TURN_KEYS)
    if turns is None:
        keys = ", ".join(map(str, record)) or "nothing"
        raise _Malformed(
            f"conversations is missing; the record has {keys}. Expected conversations "
            f"or messages; for an image and a text each use table:"
        )
    if not isinstance(turns, list):
        raise _Malformed(f"conversations is {_type_name(turns)}; expected a list")
    return turns


def _only(values: dict, keys: tuple[str, ...], where: str = ""):
    """The value of the one key that has one; None for none."""
    # In Parquet a record has all keys of all records, null or empty where unused.
    present = [key for key in keys if values.get(key) not in (None, [], "")]
    if len(present) > 1:
        raise _Malformed(f"{where}has {' and '.join(present)}; expected one of them")
    return values[present[0]] if present else None


def _image(record: dict, turns: list) -> str | None:
    """The name of the record's image, which may be in its keys and its content parts."""
    named = {key: _names(record.get(key), key) for key in IMAGE_KEYS}
    named["content"] = [name for turn in turns for name in _content_images(turn)]
    named = {key: names for key, names in named.items() if names}
    # Chat formats may name the image twice, in the record and in the content of a turn.
    names, *others = named.values() or [[]]
    if any(other != names for other in others):
        raise _Malformed(f"has different images in {' and '.join(named)}")
    if len(names) > 1:
        raise _Malformed(f"has {len(names)} images; expected one at most")
    return names[0] if names else None


def _names(value, key: str) -> list[str]:
    """The names in the value of an image key; an empty one is no image."""
    values = value if isinstance(value, list) else [value]
    names = []
    for one in values:
        # A path beside bytes is only where they came from.
        if isinstance(one, dict) and one.get("bytes") is None:
            one = one.get("path") or one.get("url")
        if one is not None and not isinstance(one, str):
            raise _Malformed(f"{key} is {_type_name(one)}; expected the name of a file")
        if one is not None and len(one) > _MAX_NAME:
            raise _Malformed(
                f"{key} has {len(one):,} characters; expected the name of a file, and not "
                f"its content"
            )
        names += [one] if one and one.strip() else []
    return names


def _content_images(turn) -> list[str]:
    """The names of the images in a turn's content parts; most leave them to the record."""
    parts = turn.get("content") if isinstance(turn, dict) else None
    named = []
    for part in parts if isinstance(parts, list) else []:
        if _part_kind(part) in _IMAGE_PARTS:
            every = (_names(part.get(key), key) for key in _PART_IMAGES)
            named += next(filter(None, every), [])
    return named


def _refuse_other_images(values: dict) -> None:
    """Raises _Malformed if a key that is not read holds an image."""
    for key, value in values.items():
        is_content = isinstance(value, str | list | dict | bytes) and len(value) > 0
        if key not in IMAGE_KEYS and is_content and means_image(key):
            raise _Malformed(f"has no image, but {key}; expected image, a file name")


def _parse_turn(turn, number: int) -> tuple[str, str]:
    """(text, role)"""
    where = f"turn {number}"
    if not isinstance(turn, dict):
        raise _Malformed(f"{where} is {_type_name(turn)}; expected an object")
    speaker = _only(turn, _SPEAKER_KEYS, f"{where} ")
    content = _only(turn, _TEXT_KEYS, f"{where} ")
    if speaker not in _ROLES:
        raise _Malformed(f"{where} is from {speaker!r}; expected human or gpt")
    for key, value in turn.items():
        if key not in _TEXT_KEYS and value and means_image(key):
            raise _Malformed(f"{where} has {key}; expected image in the record")
    # An empty text is one, where `_only` takes it for a missing one.
    if content is None:
        content = next((turn[key] for key in _TEXT_KEYS if key in turn), None)
    if isinstance(content, list):
        content = "".join(_part_text(part, where) for part in content)
    if not isinstance(content, str):
        raise _Malformed(f"{where}: value is {_type_name(content)}; expected text")
    if isinstance(content, MalformedRecord):
        raise _Malformed(f"{where}: value is {content}")
    if not is_utf8(content):
        raise _Malformed(f"{where}: value has a lone surrogate")
    return content, _ROLES[speaker]


def _part_kind(part) -> str | None:
    return part.get("type") if isinstance(part, dict) else None


def _part_text(part, where: str) -> str:
    """The text of a content part; of an image its mark."""
    kind = _part_kind(part)
    if kind in _IMAGE_PARTS:
        return IMAGE
    text = part.get("text") if kind == "text" else None
    if not isinstance(text, str):
        raise _Malformed(f"{where}: content has a {kind} part; expected text or image")
    return text


def _plain(image: str | None, dialogue: list[tuple[str, str]]) -> Conversation:
    """The first answer after the image, without the instructions."""
    marked = _marked(dialogue)
    if len(marked) > (image is not None):
        raise _Malformed(_mark_counts(image, marked))
    # An answer before the question, or before the image, does not describe it.
    asked = next((n for n, (_, role) in enumerate(dialogue) if role != _ANSWERS), 0)
    start = marked[0] if marked else asked
    answers = (text for text, role in dialogue[start:] if role == _ANSWERS)
    caption = _without_mark(next(answers, ""))
    if not caption:
        raise _Malformed("has no text from gpt")
    return Conversation(image, ((caption + "\n", True, ""),))


def _chat(image: str | None, dialogue: list[tuple[str, str]]) -> Conversation:
    # An image without its mark has no position in the conversation.
    marked = _marked(dialogue)
    if len(marked) != (image is not None):
        raise _Malformed(_mark_counts(image, marked))
    # Without the mark and the newline beside it; other messages are as they were written.
    turns = tuple(
        (_without_mark(text) if IMAGE in text else text, role == _ANSWERS, role)
        for text, role in dialogue
    )
    if not any(answers and text.strip() for text, answers, _ in turns):
        raise _Malformed("has no text from gpt")
    return Conversation(image, turns, marked[0] if marked else 0)


def _marked(dialogue: list[tuple[str, str]]) -> list[int]:
    """The turn of each image mark."""
    return [
        number
        for number, (text, _) in enumerate(dialogue)
        for _ in range(text.count(IMAGE))
    ]


def _mark_counts(image: str | None, marked: list[int]) -> str:
    images = "an image" if image is not None else "no image"
    return f"has {images}, and {IMAGE} {len(marked)} times"


def _without_mark(text: str) -> str:
    return text.replace(IMAGE, "").strip()


def _type_name(value) -> str:
    return "missing" if value is None else f"of type {type(value).__name__}"
