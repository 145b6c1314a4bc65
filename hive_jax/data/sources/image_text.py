"""Images with a text or a class each, and tables of them in CSV or Parquet."""

import csv
import hashlib
from collections.abc import Sequence

from hive_jax.data.class_captions import class_caption
from hive_jax.data.invalid import InvalidSample
from hive_jax.data.sources.base import MalformedRecord, SourceOptions, is_utf8
from hive_jax.data.sources.classes import (
    class_name,
    note_on_numbers,
    require_distinct,
    sorted_classes,
)
from hive_jax.data.sources.csv_table import closed_rows, is_text_table, open_rows
from hive_jax.data.sources.image_store import ImageStore, open_store, require_images
from hive_jax.data.sources.parquet import ParquetTable, parquet_files, require_unique
from hive_jax.data.sources.parquet_images import open_images
from hive_jax.data.types import Sample, Segment
from hive_jax.errors import ConfigError, DataError
from hive_jax.json_text import parse_json

NO_IMAGE = "none"  # the column of the images, of a table of texts alone


class ImageTextSource:
    """Random access to pairs of an image and a text.

    Args:
      path: the name of the dataset in messages.
      names: of the images in `store`.
      texts: one for each image; an empty or malformed one makes an invalid sample.
      store: of the images; None for texts alone.
      with_image: False for text alone; no image is read then.
      labels: the class of each image, where they have one.
      classes: names of all classes, in order.
      notes: as in DataSource.
    """

    tag_names = ()
    has_conversations = False

    def __init__(
        self,
        path: str,
        names: Sequence[str],
        texts: Sequence[str],
        store: ImageStore | None,
        with_image: bool = True,
        labels: Sequence[str] = (),
        classes: Sequence[str] = (),
        notes: Sequence[str] = (),
    ):
        if not names:
            raise DataError(f"{path} has no samples")
        self._path, self._names, self._texts = path, names, texts
        self._store, self._with_image = store, with_image
        self._labels, self.classes = labels, tuple(classes)
        self.notes = tuple(notes)
        digest = hashlib.sha256()
        for name, text in zip(names, texts, strict=True):
            # Messages may be worded anew; the samples are the same.
            content = None if isinstance(text, MalformedRecord) else text
            digest.update(repr((name, content)).encode("utf-8", "surrogatepass"))
        self.fingerprint = digest.hexdigest()[:16]

    def __len__(self) -> int:
        return len(self._names)

    def __getitem__(self, index: int) -> Sample:
        """Sample `index`; its image is the bytes of a file. Raises InvalidSample."""
        text = require_text(self._texts[index], self.describe(index))
        reads = self._with_image and self._store is not None
        image = self._store.read(self._names[index]) if reads else None
        label = self._labels[index] if self._labels else ""
        return Sample(image, (Segment(text + "\n"),), label=label)

    def image_name(self, index: int) -> str | None:
        """Name of the image of sample `index`; see DataSource."""
        return self._store and self._store.image_name(self._names[index])

    def describe(self, index: int) -> str:
        return f"{self._path}, record {index}, image {self._names[index]}"


def require_text(text: str, where: str) -> str:
    """Returns the text without surrounding whitespace.

    Args:
      text: the text, which may be a MalformedRecord.
      where: the file and record, for the error.

    Raises:
      InvalidSample: the text is malformed or empty.
    """
    if isinstance(text, MalformedRecord):
        raise InvalidSample("record", where, text)
    if not text.strip():
        raise InvalidSample("record", where, "has no text")
    if not is_utf8(text):
        raise InvalidSample("record", where, "its text has a lone surrogate")
    return text.strip()


def open_table(
    path: str,
    options: SourceOptions,
    *,
    images: str = "",
    image: str = "image",
    text: str = "",
    label: str = "",
) -> ImageTextSource:
    """Opens a table of images: CSV or TSV with a header, or Parquet.

    Args:
      path: the file, or a folder or pattern of .parquet files.
      options: of the run.
      images: the folder or zip of the images that the table names.
      image: the column of the images: names of files, or in Parquet their bytes; "none"
        for texts alone.
      text: the column of the texts.
      label: the column of the classes; in Parquet of Hugging Face a number. Without
        `text` and `label`, the column "text" or "label".

    Raises:
      MissingInputError: a file is missing.
      ConfigError: `text` and `label` are both given, `images` is missing, or there are
        no images to look for in it.
      DataError: it is not such a table, or has a class in two spellings.
    """
    if images and image == NO_IMAGE:
        raise ConfigError(f"table:{path}: images={images} has no use with image=none")
    columns = (image, text, label)
    if not is_text_table(path):
        return _open_parquet(path, options, images, columns)
    if not images and image != NO_IMAGE:
        raise ConfigError(f"data.source: {path}: say where its images are, images=...")
    store = open_store(images, "images") if images else None
    with open_rows(path, image) as rows:
        header = rows.fieldnames or []
        require_unique(path, header)
        column, is_class = choose_column(path, header, *columns)
        key = header[0] if image == NO_IMAGE else image
        closed = closed_rows(path, rows, key, store and store.has)
        table = [_csv_pair(rows, row, image, column) for row in closed]
    names, values = [name for name, _ in table], [value for _, value in table]
    if store and options.with_image:
        require_images(names, store, options.max_bad_fraction)
    if not is_class:
        return ImageTextSource(path, names, values, store, options.with_image)
    return _labelled(path, names, values, store, options)


def _csv_pair(
    rows: csv.DictReader, row: dict, image: str, column: str
) -> tuple[str, str]:
    """The image and the text of a row; malformed if it does not match the header."""
    name, line = row.get(image) or "", rows.line_num
    if None in row:
        return name, MalformedRecord(f"line {line} has more fields than the header")
    if None in row.values():
        return name, MalformedRecord(f"line {line} has fewer fields than the header")
    if image != NO_IMAGE and not name.strip():
        return name, MalformedRecord(f"line {line} has no image")
    return name, row[column]


def require_text_or_label(path: str, text: str, label: str) -> None:
    """Raises ConfigError if both options are given; see `open_table`."""
    if text and label:
        raise ConfigError(
            f"{path}: text={text} and label={label}; expected one of them: text= has "
            f"captions to learn, label= the classes of a probe"
        )


def choose_column(
    path: str, columns: Sequence[str], image: str, text: str, label: str
) -> tuple[str, bool]:
    """Returns the column of the texts or of the classes, and whether it is of classes.

    Args:
      path: of the table, for errors.
      columns: that it has.
      image, text, label: as in `open_table`.

    Raises:
      ConfigError: `text` and `label` are both given.
      DataError: a column is missing, or both text and label are there.
    """
    require_text_or_label(path, text, label)
    candidates = [text or label] if text or label else ["text", "label"]
    present = [name for name in candidates if name in columns]
    if len(present) > 1:
        raise DataError(
            f"{path} has the columns text and label; choose the captions with text=text, "
            f"or the classes with label=label"
        )
    if not present or image not in (*columns, NO_IMAGE):
        raise DataError(
            f"{path} has the columns {', '.join(columns)}; expected {image}, and "
            f"{' or '.join(candidates)}: name them with image=, and text= or label=; "
            f"image=none reads texts alone"
        )
    return present[0], bool(label) or present == ["label"] and not text


def _labelled(
    path: str,
    names: Sequence[str],
    labels: Sequence[str],
    store: ImageStore,
    options: SourceOptions,
    classes: Sequence[str] = (),
) -> ImageTextSource:
    """Images with classes; without `classes`, those that occur, numbers by value."""

    def caption(label: str) -> str:
        if isinstance(label, MalformedRecord):
            return label
        return class_caption(label) if label else MalformedRecord("has no class")

    labels = [v if isinstance(v, MalformedRecord) else v.strip() for v in labels]
    notes = ()
    if not classes:
        classes = sorted_classes(labels)
        require_distinct(path, classes)
        notes = note_on_numbers(path, classes, "choose a column of names with label=")
    texts = [caption(label) for label in labels]
    return ImageTextSource(
        path, names, texts, store, options.with_image, labels, classes, notes
    )


def _open_parquet(
    path: str, options: SourceOptions, images: str, columns: tuple[str, str, str]
) -> ImageTextSource:
    table = ParquetTable(parquet_files(path))
    column, is_class = choose_column(path, table.columns, *columns)
    image = columns[0]
    store = None
    if image != NO_IMAGE:
        store = open_images(table, image, images, options.with_image)
        if not store.has_images:
            raise DataError(
                f"{path}: the column {image} is null; image=none reads texts alone"
            )
    classes = _class_names(table.schemas[0].metadata or {}, column)
    values = table.values(column)
    return source_of_rows(
        path, column, values, store, options, classes if is_class else None
    )


def source_of_rows(
    path: str,
    column: str,
    values: Sequence,
    store: ImageStore | None,
    options: SourceOptions,
    classes: Sequence[str] | None,
) -> ImageTextSource:
    """Returns the samples of rows whose images are named by the number of the row.

    Args:
      path: the name of the dataset in messages.
      column: name of the column of texts or classes.
      values: of that column.
      store: of the images, by row number.
      options: of the run.
      classes: names of the classes that integers in `values` are indices of, empty if
        they have no names; None if `values` are texts to learn.
    """

    def as_text(value) -> str:
        if classes is not None and isinstance(value, int):
            return class_name(value, classes) if classes else str(value)
        if value is not None and not isinstance(value, str):
            expected = "text" if classes is None else "a name or an integer"
            return MalformedRecord(
                f"{column} is of type {type(value).__name__}; expected {expected}"
            )
        return value or ""

    texts = [as_text(value) for value in values]
    # The stores of Parquet and of the hub find images by row.
    rows = [str(row) for row in range(len(texts))]
    if classes is not None:
        return _labelled(path, rows, texts, store, options, classes)
    return ImageTextSource(path, rows, texts, store, options.with_image)


def _class_names(metadata: dict[bytes, bytes], label: str) -> list[str]:
    """The names of the classes, as Hugging Face's datasets stores them in a schema."""
    try:
        about = parse_json(metadata[b"huggingface"].decode(), "huggingface", dict)
        names = about["info"]["features"][label]["names"]
    except (KeyError, TypeError, ValueError):  # of another writer, without names
        return []
    is_list = isinstance(names, list) and all(isinstance(name, str) for name in names)
    return names if is_list else []
