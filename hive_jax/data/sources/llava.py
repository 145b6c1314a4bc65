"""LLaVA's format: conversations, and images in a folder, a zip or with the records.

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

from hive_jax.config import nearest
from hive_jax.data.invalid import InvalidSample
from hive_jax.data.sources.base import MalformedRecord, SourceOptions, is_utf8
from hive_jax.data.sources.image_store import open_store, require_images
from hive_jax.data.sources.parquet import ParquetStore, parquet_files
from hive_jax.data.types import Sample, Segment
from hive_jax.errors import ConfigError, DataError, MissingInputError
from hive_jax.io import decode_text, parse_json

FORMS = ("plain", "chat")
IMAGE = "<image>"
_ASKING = ("human", "user", "system")
_ANSWERING = ("gpt", "assistant")


@dataclasses.dataclass(frozen=True, slots=True)
class _Conversation:
    """A record in one of the forms.

    Attributes:
      image: name of the image; None for text alone.
      turns: (text, supervised) of each turn.
      image_before: index of the turn that the image precedes.
    """

    image: str | None
    turns: tuple[tuple[str, bool], ...]
    image_before: int = 0


class LlavaSource:
    """Random access to the records of a dataset in LLaVA's format.

    A record without an image is a sample of text alone. A record that is malformed, or
    whose image cannot be read, is an invalid sample.

    Args:
      path: a .json, .jsonl or .parquet file, or a folder of .parquet files.
      options: of the run.
      images: a folder or a zip; empty for Parquet that contains the images.
      form: "plain" or "chat".

    Raises:
      ConfigError: `form` is neither.
      MissingInputError: a file is missing, or more than `max_bad_fraction` of the first
        images.
      DataError: the file does not hold such records.
    """

    classes = tag_names = notes = ()

    def __init__(
        self,
        path: str,
        options: SourceOptions,
        *,
        images: str = "",
        form: str = "plain",
    ):
        if form not in FORMS:
            raise ConfigError(
                f"config.data.source: form is {form!r}; expected one of {FORMS}"
                + nearest(form, FORMS)
            )
        self.path, self._with_image = path, options.with_image
        records, self._store = read_records(path)
        if images:
            self._store = open_store(images, "images")
        if not records:
            raise DataError(f"{path} has 0 records")
        digest = hashlib.sha256(f"llava {form}".encode())
        self._conversations = []
        for record in records:
            conversation = _parse_record(record, form)
            content = None if isinstance(conversation, str) else conversation
            digest.update(repr(content).encode("utf-8", "surrogatepass"))
            self._conversations.append(conversation)
        self.fingerprint = digest.hexdigest()[:16]
        if options.with_image:
            self._check_images(options.max_bad_fraction)

    def __len__(self) -> int:
        return len(self._conversations)

    def __getitem__(self, index: int) -> Sample:
        """Sample `index`; its image is the bytes of a file. Raises InvalidSample."""
        conversation = self._conversations[index]
        if isinstance(conversation, str):
            raise InvalidSample("record", self.describe(index), conversation)
        image = None
        if conversation.image is not None and self._with_image:
            image = self._store.read(conversation.image)
        segments = tuple(Segment(*turn) for turn in conversation.turns)
        return Sample(image, segments, conversation.image_before)

    def describe(self, index: int) -> str:
        conversation = self._conversations[index]
        record = f"{self.path}, record {index}"
        image = getattr(conversation, "image", None)
        return record if image is None else f"{record}, image {image}"

    def _check_images(self, max_bad_fraction: float) -> None:
        names = [c.image for c in self._conversations if not isinstance(c, str)]
        names = [name for name in names if name is not None]
        if names and self._store is None:
            raise MissingInputError(
                f"{self.path} names {len(names)} images; say where they are: "
                f"llava:{self.path},images=FOLDER_OR_ZIP"
            )
        if names:
            require_images(names, self._store, max_bad_fraction)


def read_records(path: str) -> tuple[list, ParquetStore | None]:
    """Reads all records of a dataset, and opens the images in its own files.

    With such a store, the `image` of a record is its row number, as text. Records that
    cannot be parsed are MalformedRecord.

    Raises:
      MissingInputError: there is no such file.
      DataError: it is of none of the formats.
    """
    source = Path(path)
    if source.is_dir() or source.suffix == ".parquet":
        return _parquet_records(parquet_files(path))
    if not source.is_file():
        raise MissingInputError(f"data.source: {path}: no such file")
    try:
        text = decode_text(source.read_bytes(), path)
    except OSError as error:
        raise DataError(f"{path} cannot be read: {error.strerror}") from None
    if text.lstrip()[:1] == "[":
        return parse_json(text, path), None
    lines = [(n, x) for n, x in enumerate(text.split("\n"), 1) if x.strip()]
    records = [_parse_line(line, number) for number, line in lines]
    if not any(isinstance(record, dict) for record in records):
        raise DataError(
            f"{path} is neither a JSON list nor JSON lines"
            + (f": {records[0]}" if records else ": it is empty")
        )
    return records, None


def _parse_line(line: str, number: int):
    try:
        return parse_json(line, f"line {number}")
    except DataError as error:
        return MalformedRecord(error)


def _parquet_records(files: list[Path]) -> tuple[list, ParquetStore]:
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


def _parse_record(record, form: str) -> _Conversation | str:
    """Parses a record of the given form; a MalformedRecord names what is wrong."""
    if isinstance(record, MalformedRecord):
        return str(record)
    if not isinstance(record, dict):
        return f"is {_type_name(record)}; expected an object"
    image = record.get("image")
    if isinstance(image, list):
        if len(image) > 1:
            return f"has {len(image)} images; expected one at most"
        image = image[0] if image else None
    if image is not None and not isinstance(image, str):
        return f"image is {_type_name(image)}; expected the name of a file"
    turns = record.get("conversations")
    if not isinstance(turns, list) or not turns:
        return f"conversations is {_type_name(turns)}; expected a list of turns"
    dialogue = []
    for number, turn in enumerate(turns):
        speaker = turn.get("from") if isinstance(turn, dict) else None
        if speaker not in (*_ASKING, *_ANSWERING):
            return f"turn {number} is from {speaker!r}; expected human or gpt"
        text = turn.get("value")
        if not isinstance(text, str):
            return f"turn {number}: value is {_type_name(text)}; expected text"
        if isinstance(text, MalformedRecord):
            return f"turn {number}: value is {text}"
        if not is_utf8(text):
            return f"turn {number}: value has half of a character"
        dialogue.append((text, speaker in _ANSWERING))
    return _plain(image, dialogue) if form == "plain" else _chat(image, dialogue)


def _plain(image, dialogue: list[tuple[str, bool]]) -> _Conversation | str:
    caption = next((text.strip() for text, answers in dialogue if answers), "")
    if not caption:
        return "has no text from gpt"
    return _Conversation(image, ((caption + "\n", True),))


def _chat(image, dialogue: list[tuple[str, bool]]) -> _Conversation | str:
    marked = [
        turn
        for turn, (text, _) in enumerate(dialogue)
        for _ in range(text.count(IMAGE))
    ]
    if len(marked) != (image is not None):
        images = "an image" if image is not None else "no image"
        return f"has {images}, and {IMAGE} {len(marked)} times"
    turns = tuple(
        (text.replace(IMAGE, "").strip() + "\n", answers) for text, answers in dialogue
    )
    if not any(answers and text.strip() for text, answers in turns):
        return "has no text from gpt"
    return _Conversation(image, turns, marked[0] if marked else 0)


def _type_name(value) -> str:
    return "missing" if value is None else f"a {type(value).__name__}"
