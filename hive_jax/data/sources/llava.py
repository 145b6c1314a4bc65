"""LLaVA's sets: records of conversations, and images in a folder, a zip or with them.

    {"id": "1", "image": "GCC_train_1.jpg",
     "conversations": [{"from": "human", "value": "Describe it.\n<image>"},
                       {"from": "gpt", "value": "a dog on a beach"}]}

A JSON list of these, JSON lines, or Parquet with a column `image` of {bytes, path}.
Samples take one of two forms:

plain   LLaVA's and HIVE's pre-training: the instructions are dropped, the text is the
        first answer and a newline, all of it supervised
chat    every turn and a newline after it; the answers are supervised
"""

import dataclasses
import hashlib
from pathlib import Path

from hive_jax.data.invalid import InvalidSample
from hive_jax.data.sources.base import MalformedRecord, is_utf8
from hive_jax.data.sources.image_store import open_store
from hive_jax.data.sources.parquet import ParquetStore, parquet_files
from hive_jax.data.types import Sample, Segment
from hive_jax.errors import DataError, MissingInputError
from hive_jax.io import decode_text, parse_json

FORMS = ("plain", "chat")
IMAGE = "<image>"
_ASKS = ("human", "user", "system")
_ANSWERS = ("gpt", "assistant")
_LOOKED_FOR = 1000  # images, before anything else is done


@dataclasses.dataclass(frozen=True, slots=True)
class _Conversation:
    """What a record says: an image or None, (text, supervised) for each turn, and the
    turn that the image stands before."""

    image: str | None
    turns: tuple[tuple[str, bool], ...]
    image_before: int = 0


class LlavaSource:
    """Random access to the records of a set.

    A record without an image is a sample of text alone; one that cannot be understood
    is a bad sample, as is one whose image cannot be had.

    Args:
      path: a .json, .jsonl or .parquet file, or a folder of .parquet files.
      images: a folder or a zip; empty for Parquet with the images in it.
      form: "plain" or "chat".
      with_image: False for text alone; no image is read then.

    Raises:
      MissingInputError: a file is not there, or of the first 1,000 images more than
        `max_bad_fraction`.
      DataError: the file is not of such records.
    """

    def __init__(
        self,
        path: str,
        *,
        images: str,
        form: str,
        max_bad_fraction: float,
        with_image: bool = True,
    ):
        self.path, self._with_image = path, with_image
        records, self._store = read_records(path)
        if images:
            self._store = open_store(images, "images")
        if not records:
            raise DataError(f"{path} has 0 records")
        digest = hashlib.sha256(f"llava {form}".encode())
        self._conversations = []
        for record in records:
            understood = _understood(record, form)
            said = None if isinstance(understood, str) else understood
            digest.update(repr(said).encode("utf-8", "surrogatepass"))
            self._conversations.append(understood)
        self.fingerprint = digest.hexdigest()[:16]
        if with_image:
            self._look_for_images(max_bad_fraction)

    def __len__(self) -> int:
        return len(self._conversations)

    def __getitem__(self, index: int) -> Sample:
        """Sample `index`; its image is the content of a file. Raises InvalidSample."""
        conversation = self._conversations[index]
        if isinstance(conversation, str):
            raise InvalidSample("record", self.where(index), conversation)
        image = None
        if conversation.image is not None and self._with_image:
            image = self._store.read(conversation.image)
        segments = tuple(Segment(*turn) for turn in conversation.turns)
        return Sample(image, segments, conversation.image_before)

    def where(self, index: int) -> str:
        """The record of a sample, and its image, for messages."""
        conversation = self._conversations[index]
        where = f"{self.path}, record {index}"
        image = getattr(conversation, "image", None)
        return where if image is None else f"{where}, image {image}"

    def _look_for_images(self, max_bad_fraction: float) -> None:
        names = [c.image for c in self._conversations if not isinstance(c, str)]
        names = [name for name in names if name is not None]
        if names and self._store is None:
            raise MissingInputError(
                f"{self.path} names {len(names)} images; say where they are: "
                f"llava:{self.path},images=FOLDER_OR_ZIP"
            )
        chosen = names[:: max(1, len(names) // _LOOKED_FOR)]
        missing = [name for name in chosen if not self._store.has(name)]
        if len(missing) > max_bad_fraction * len(chosen):
            raise MissingInputError(
                f"{len(missing)} of {len(chosen)} images are not in "
                f"{self._store.path}; the first: {missing[0]}. Check images= of "
                f"data.source"
            )


def _understood(record, form: str) -> _Conversation | str:
    """The record in the given form, or what is wrong with it."""
    if isinstance(record, MalformedRecord):
        return str(record)
    if not isinstance(record, dict):
        return f"is {_kind(record)}; expected an object"
    image = record.get("image")
    if isinstance(image, list):
        if len(image) > 1:
            return f"has {len(image)} images; expected one at most"
        image = image[0] if image else None
    if image is not None and not isinstance(image, str):
        return f"image is {_kind(image)}; expected the name of a file"
    turns = record.get("conversations")
    if not isinstance(turns, list) or not turns:
        return f"conversations is {_kind(turns)}; expected a list of turns"
    said = []
    for number, turn in enumerate(turns):
        speaker = turn.get("from") if isinstance(turn, dict) else None
        if speaker not in (*_ASKS, *_ANSWERS):
            return f"turn {number} is from {speaker!r}; expected human or gpt"
        if not isinstance(turn.get("value"), str):
            return f"turn {number}: value is {_kind(turn.get('value'))}; expected text"
        if isinstance(turn["value"], MalformedRecord):
            return f"turn {number}: value is {turn['value']}"
        if not is_utf8(turn["value"]):
            return f"turn {number}: value has half of a character"
        said.append((turn["value"], speaker in _ANSWERS))
    return _as_plain(image, said) if form == "plain" else _as_chat(image, said)


def _as_plain(image, said: list[tuple[str, bool]]) -> _Conversation | str:
    caption = next((text.strip() for text, answers in said if answers), "")
    if not caption:
        return "has no text from gpt"
    return _Conversation(image, ((caption + "\n", True),))


def _as_chat(image, said: list[tuple[str, bool]]) -> _Conversation | str:
    marks = [turn for turn, (text, _) in enumerate(said) for _ in range(_marks(text))]
    if len(marks) != (image is not None):
        images = "an image" if image is not None else "no image"
        return f"has {images}, and {IMAGE} {len(marks)} times"
    turns = tuple(
        (text.replace(IMAGE, "").strip() + "\n", answers) for text, answers in said
    )
    if not any(answers and text.strip() for text, answers in turns):
        return "has no text from gpt"
    return _Conversation(image, turns, marks[0] if marks else 0)


def _marks(text: str) -> int:
    return text.count(IMAGE)


def _kind(value) -> str:
    return "missing" if value is None else f"a {type(value).__name__}"


def read_records(path: str) -> tuple[list, ParquetStore | None]:
    """All records of a set, and the store of the images that are in its files.

    With such a store, the `image` of a record is its number, as text. What cannot be
    read is `MalformedRecord`.

    Raises:
      MissingInputError: there is no such file.
      DataError: it is not of one of the formats.
    """
    source = Path(path)
    if source.is_dir() or source.suffix == ".parquet":
        return _from_parquet(parquet_files(path))
    if not source.is_file():
        raise MissingInputError(f"data.source: {path}: no such file")
    try:
        text = decode_text(source.read_bytes(), path)
    except OSError as error:
        raise DataError(f"{path} cannot be read: {error.strerror}") from None
    if text.lstrip()[:1] == "[":
        return parse_json(text, path), None
    lines = [(n, x) for n, x in enumerate(text.split("\n"), 1) if x.strip()]
    records = [_line(line, number) for number, line in lines]
    if not any(isinstance(record, dict) for record in records):
        raise DataError(
            f"{path} is neither a JSON list nor JSON lines"
            + (f": {records[0]}" if records else ": it is empty")
        )
    return records, None


def _line(line: str, number: int):
    try:
        return parse_json(line, f"line {number}")
    except DataError as error:
        return MalformedRecord(error)


def _from_parquet(files: list[Path]):
    store = ParquetStore(files, "image")
    if "conversations" not in store.columns:
        raise DataError(
            f"{store.path} has the columns {', '.join(store.columns)}; expected "
            f"conversations and image"
        )
    rows = zip(store.values("conversations"), store.present(), strict=True)
    records = [
        turns
        if isinstance(turns, MalformedRecord)
        else {"conversations": turns, "image": str(number) if present else None}
        for number, (turns, present) in enumerate(rows)
    ]
    return records, store
