"""LLaVA's format: conversations, and images in a folder, a zip or with the records.

Records as of conversations.py in a JSON list, JSON lines, or Parquet with the same
columns. Samples take one of two forms:

plain   LLaVA's and HIVE's pre-training: the instructions are dropped, the text is the
        first answer after the image and a newline, all of it supervised
chat    every turn, with its role; the answers are supervised
"""

import collections
import contextlib
import hashlib
from collections.abc import Sequence
from pathlib import Path

from hive_jax.config import nearest
from hive_jax.data.invalid import InvalidSample
from hive_jax.data.sources.base import MalformedRecord, SourceOptions
from hive_jax.data.sources.conversations import (
    FORMS,
    IMAGE_KEYS,
    TURN_KEYS,
    means_image,
    parse_record,
)
from hive_jax.data.sources.image_store import ImageStore, open_store, require_images
from hive_jax.data.sources.parquet import ParquetTable, is_parquet, parquet_files
from hive_jax.data.sources.parquet_images import ParquetImages, open_images
from hive_jax.data.types import Sample
from hive_jax.errors import ConfigError, DataError, MissingInputError
from hive_jax.json_text import decode_text, parse_json

# Of at least so many samples with an image, half with one caption are worth a note.
_MIN_EQUAL_CAPTIONS = 20


class LlavaSource:
    """Random access to the records of a dataset in LLaVA's format.

    A record without an image is a sample of text alone. A record that is malformed, or
    whose image cannot be read, is an invalid sample.

    Args:
      path: the name of the dataset in messages.
      records: as of conversations.py.
      store: of the images that the records name; None for none.
      options: of the run.
      form: "plain" or "chat".

    Raises:
      ConfigError: `form` is neither.
      MissingInputError: more than `max_bad_fraction` of the first images are missing.
      DataError: more than `max_bad_fraction` of the records cannot be used.
    """

    classes = tag_names = notes = ()

    def __init__(
        self,
        path: str,
        records: Sequence,
        store: ImageStore | None,
        options: SourceOptions,
        form: str,
    ):
        if form not in FORMS:
            raise ConfigError(
                f"config.data.source: form is {form!r}; expected one of {FORMS}"
                + nearest(form, FORMS)
            )
        self.path, self._store, self._with_image = path, store, options.with_image
        if not records:
            raise DataError(f"{path} has 0 records")
        digest = hashlib.sha256(f"llava {form}".encode())
        self._conversations = []
        for record in records:
            conversation = parse_record(record, form)
            # Of the parsed records: a dataset is the same in JSON, in lines and in Parquet.
            content = None if isinstance(conversation, str) else conversation
            digest.update(repr(content).encode("utf-8", "surrogatepass"))
            self._conversations.append(conversation)
        self.fingerprint = digest.hexdigest()[:16]
        self.has_conversations = form == "chat"
        self.notes = self._equal_captions() if form == "plain" else ()
        # Before any work: a run that reads samples at random might meet them late.
        self._check_records(options.max_bad_fraction)
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
        return Sample(image, conversation.segments(), conversation.image_before)

    def image_name(self, index: int) -> str | None:
        """Name of the image of sample `index`; see DataSource."""
        image = getattr(self._conversations[index], "image", None)
        if image is None or self._store is None:
            return image
        return self._store.image_name(image)

    def describe(self, index: int) -> str:
        conversation = self._conversations[index]
        record = f"{self.path}, record {index}"
        image = getattr(conversation, "image", None)
        return record if image is None else f"{record}, image {image}"

    def _check_records(self, max_bad_fraction: float) -> None:
        bad = [i for i, one in enumerate(self._conversations) if isinstance(one, str)]
        if len(bad) > max_bad_fraction * len(self):
            raise DataError(
                f"{len(bad)} of {len(self)} records of {self.path} cannot be used; the "
                f"first: record {bad[0]} {self._conversations[bad[0]]}. "
                f"data.max_bad_fraction allows {max_bad_fraction:.2%}"
            )

    def _equal_captions(self) -> tuple[str, ...]:
        """A note if half of the images have one caption, which may be a greeting."""
        captions = collections.Counter(
            conversation.turns[0][0].strip()
            for conversation in self._conversations
            if not isinstance(conversation, str) and conversation.image is not None
        )
        total = captions.total()
        for caption, count in captions.most_common(1):
            if total >= _MIN_EQUAL_CAPTIONS and count >= total / 2:
                same = f"{count} of {total} images have the same caption"
                return (f"{self.path}: {same}: {caption[:60]!r}",)
        return ()

    def has_images(self) -> bool:
        """Returns whether any usable record has an image, or none can be used."""
        usable = [one for one in self._conversations if not isinstance(one, str)]
        return not usable or any(one.image is not None for one in usable)

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


def open_llava(
    path: str, options: SourceOptions, *, images: str = "", form: str = "plain"
) -> LlavaSource:
    """Opens a dataset in LLaVA's format.

    Args:
      path: a .json, .jsonl or .parquet file, or a folder of .parquet files.
      options: of the run.
      images: a folder or a zip; empty for Parquet that contains the images.
      form: "plain" or "chat".

    Raises:
      ConfigError, MissingInputError: as LlavaSource, or a file is missing.
      DataError: as LlavaSource, or the file does not hold such records, or `images` is
        given and no record has an image.
    """
    records, store = _open_records(path, images, options.with_image)
    source = LlavaSource(path, records, store, options, form)
    if images and not source.has_images():
        first = next(record for record in records if isinstance(record, dict))
        raise DataError(
            f"images={images} is given, but no record of {path} has an image; the first "
            f"has {', '.join(map(str, first))}; expected image"
        )
    return source


def _open_records(
    path: str, images: str, with_image: bool
) -> tuple[list, ImageStore | None]:
    """All records of a dataset, and the store of their images.

    Of Parquet, the `image` of a record is its row number, as text. Records that cannot
    be parsed are MalformedRecord.

    Raises:
      MissingInputError: there is no such file.
      DataError: it is of none of the formats.
    """
    source = Path(path)
    if source.is_dir() or source.suffix == ".parquet" or _is_parquet(source):
        return _parquet_records(ParquetTable(parquet_files(path)), images, with_image)
    return _json_records(path), open_store(images, "images") if images else None


def _is_parquet(path: Path) -> bool:
    with contextlib.suppress(OSError):
        return path.is_file() and is_parquet(str(path))
    return False


def _json_records(path: str) -> list:
    source = Path(path)
    if not source.is_file():
        raise MissingInputError(f"data.source: {path}: no such file")
    try:
        text = decode_text(source.read_bytes(), path)
    except OSError as error:
        raise DataError(f"{path} cannot be read: {error.strerror}") from None
    if text.lstrip()[:1] == "[":
        return parse_json(text, path)
    # Not splitlines, which also splits at U+2028 and others that JSON texts may have.
    lines = [(n, x) for n, x in enumerate(text.split("\n"), 1) if x.strip()]
    records = [_parse_line(line, number) for number, line in lines]
    if not any(isinstance(record, dict) for record in records):
        with contextlib.suppress(DataError):  # one object on several lines
            records = [parse_json(text, path, dict)]
    if not any(isinstance(record, dict) for record in records):
        raise DataError(
            f"{path} is neither a JSON list nor JSON lines"
            + (f": {records[0]}" if records else ": it is empty")
        )
    if len(records) == 1 and not any(key in records[0] for key in TURN_KEYS):
        raise DataError(
            f"{path} is one object with the keys {', '.join(records[0])[:200]}; expected a "
            f"list of records, or one record a line"
        )
    return records


def _parse_line(line: str, number: int):
    try:
        return parse_json(line, f"line {number}")
    except DataError as error:
        return MalformedRecord(error)


def _parquet_records(
    table: ParquetTable, images: str, with_image: bool
) -> tuple[list, ParquetImages | None]:
    """The records of Parquet files; see `_open_records`."""
    turns, image = _column(table, TURN_KEYS), _column(table, IMAGE_KEYS)
    if not turns or (not image and any(map(means_image, table.columns))):
        raise DataError(
            f"{table.path} has the columns {', '.join(table.columns)}; expected "
            f"conversations or messages, and image or images if there are images"
        )
    if image:
        store = open_images(table, image, images, with_image)
        counts = store.counts()
    else:
        store = open_store(images, "images") if images else None
        counts = [0] * table.starts[-1]
    # A row has its number for each of its images, so that rows of two are refused.
    rows = zip(table.values(turns), counts, strict=True)
    records = [
        value
        if isinstance(value, MalformedRecord)
        else {turns: value, "image": [str(number)] * count}
        for number, (value, count) in enumerate(rows)
    ]
    return records, store


def _column(table: ParquetTable, names: tuple[str, ...]) -> str:
    """The column of one of these names; empty for none. Raises DataError for several,
    and where some files lack it."""
    used = {name for schema in table.schemas for name in schema.names}
    present = [name for name in names if name in used]
    if len(present) > 1:
        raise DataError(
            f"{table.path} has the columns {' and '.join(present)}; expected one of them"
        )
    if present and present[0] not in table.columns:
        raise DataError(f"{table.path}: only some files have the column {present[0]}")
    return present[0] if present else ""
