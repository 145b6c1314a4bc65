"""Images with a text or a class each: tables in CSV or Parquet, and folders of classes."""

import contextlib
import csv
import hashlib
import os
from collections.abc import Iterator, Sequence

from hive_jax.data.class_captions import class_caption
from hive_jax.data.invalid import InvalidSample
from hive_jax.data.sources.base import MalformedRecord, SourceOptions, is_utf8
from hive_jax.data.sources.image_store import FolderStore, ImageStore, open_store
from hive_jax.data.sources.parquet import ParquetStore, parquet_files
from hive_jax.data.types import Sample, Segment
from hive_jax.errors import ConfigError, DataError, MissingInputError
from hive_jax.io import parse_json, require_regular

_SUFFIXES = (".jpg", ".jpeg", ".png", ".webp", ".gif", ".bmp")
_MAX_FIELD = 1_000_000  # characters of a CSV field


class ImageTextSource:
    """Random access to pairs of an image and a text.

    Args:
      path: the name of the dataset in messages.
      names: of the images in `store`.
      texts: one for each image; an empty or malformed one makes an invalid sample.
      store: of the images.
      with_image: False for text alone; no image is read then.
      labels: the class of each image, where they have one.
      classes: names of all classes, in order.
    """

    tag_names = ()

    def __init__(
        self,
        path: str,
        names: Sequence[str],
        texts: Sequence[str],
        store: ImageStore,
        with_image: bool = True,
        labels: Sequence[str] = (),
        classes: Sequence[str] = (),
    ):
        if not names:
            raise DataError(f"{path} has no samples")
        self._path, self._names, self._texts = path, names, texts
        self._store, self._with_image = store, with_image
        self._labels, self.classes = labels, tuple(classes)
        digest = hashlib.sha256()
        for name, text in zip(names, texts, strict=True):
            content = None if isinstance(text, MalformedRecord) else text
            digest.update(repr((name, content)).encode("utf-8", "surrogatepass"))
        self.fingerprint = digest.hexdigest()[:16]

    def __len__(self) -> int:
        return len(self._names)

    def __getitem__(self, index: int) -> Sample:
        """Sample `index`; its image is the bytes of a file. Raises InvalidSample."""
        text = require_text(self._texts[index], self.describe(index))
        image = self._store.read(self._names[index]) if self._with_image else None
        label = self._labels[index] if self._labels else ""
        return Sample(image, (Segment(text + "\n"),), label=label)

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
        raise InvalidSample("record", where, "its text has half of a character")
    return text.strip()


def class_name(label: int, names: Sequence[str]) -> str:
    """Returns the name of class number `label`, or a MalformedRecord.

    Args:
      label: counts from 0.
      names: of all classes.
    """
    if 0 <= label < len(names):
        return names[label]
    return MalformedRecord(f"is of class {label}; expected 0 to {len(names) - 1}")


def open_class_folder(path: str, options: SourceOptions) -> ImageTextSource:
    """Opens path/CLASS/.../IMAGE, sorted by name; other files are ignored.

    Args:
      path: the folder.
      options: of the run.

    Raises:
      MissingInputError: there is no such folder.
      DataError: it has no such files, or cannot be read.
    """
    if not os.path.isdir(path):
        raise MissingInputError(f"data.source: {path}: no such folder")
    try:
        classes = sorted(entry.name for entry in os.scandir(path) if entry.is_dir())
        names = sorted(name for folder in classes for name in _images(path, folder))
    except OSError as error:
        raise DataError(f"{path} cannot be read: {error}") from None
    if not names:
        raise DataError(f"{path}: expected folders of images, one for each class")
    labels = [name.split("/")[0] for name in names]
    return ImageTextSource(
        path,
        names,
        [class_caption(label) for label in labels],
        FolderStore(path),
        options.with_image,
        labels,
        sorted(set(labels)),
    )


def _images(root: str, name: str) -> list[str]:
    """Paths relative to `root` of the image files in a folder and those below it."""

    def fail(error: OSError):
        raise error

    return [
        os.path.relpath(os.path.join(folder, file), root)
        for folder, _, files in os.walk(os.path.join(root, name), onerror=fail)
        for file in files
        if file.lower().endswith(_SUFFIXES)
    ]


def open_table(
    path: str,
    options: SourceOptions,
    *,
    images: str = "",
    image: str = "image",
    text: str = "text",
    label: str = "label",
) -> ImageTextSource:
    """Opens a table of images: a .csv with a header, .parquet, or a folder of these.

    Args:
      path: the file, the folder, or a pattern of .parquet files.
      options: of the run.
      images: the folder or zip that holds the images of a CSV.
      image: the column of the images: names in a CSV, bytes in Parquet.
      text: the column of the texts, if there is one.
      label: else, the column of the classes; in Parquet of Hugging Face a number.

    Raises:
      MissingInputError: a file is missing.
      ConfigError: the images of a CSV are not given.
      DataError: it is not such a table.
    """
    if not path.endswith(".csv"):
        return _open_parquet(path, options, image, text, label)
    require_regular(path)
    if not images:
        raise ConfigError(f"data.source: {path}: say where its images are, images=...")
    with _csv_rows(path) as rows:
        column = _column(path, rows.fieldnames or [], image, text, label)
        table = [_csv_pair(rows.line_num, row, image, column) for row in rows]
    names, values = [name for name, _ in table], [value for _, value in table]
    store = open_store(images, "images")
    if column == text:
        return ImageTextSource(path, names, values, store, options.with_image)
    return _labelled(path, names, values, store, options)


@contextlib.contextmanager
def _csv_rows(path: str) -> Iterator[csv.DictReader]:
    """The rows of a CSV file. Raises DataError where it is none."""
    before, rows = csv.field_size_limit(_MAX_FIELD), None
    try:
        with open(path, encoding="utf-8-sig", newline="") as file:
            rows = csv.DictReader(file, strict=True)
            yield rows
    except UnicodeDecodeError as error:
        raise DataError(f"{path} is not CSV in UTF-8: {error}") from None
    except csv.Error as error:
        raise DataError(
            f"{path}, line {rows.reader.line_num}: not CSV: {error}"
        ) from None
    except OSError as error:
        raise DataError(f"{path} cannot be read: {error.strerror}") from None
    finally:
        csv.field_size_limit(before)


def _csv_pair(line: int, row: dict, image: str, column: str) -> tuple[str, str]:
    """The image and the text of a row; malformed if it does not match the header."""
    if None in row:
        return row[image], MalformedRecord(
            f"line {line} has more fields than the header"
        )
    if None in row.values():
        return row[image] or "", MalformedRecord(
            f"line {line} has fewer fields than the header"
        )
    return row[image], row[column]


def _column(
    path: str, columns: Sequence[str], image: str, text: str, label: str
) -> str:
    """The column of the texts, or of the classes."""
    chosen = next((name for name in (text, label) if name in columns), None)
    if image not in columns or chosen is None:
        raise DataError(
            f"{path} has the columns {', '.join(columns)}; expected {image}, and "
            f"{text} or {label}: name them with image=, text= and label="
        )
    return chosen


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
        is_name = label and not isinstance(label, MalformedRecord)
        return class_caption(label) if is_name else label

    used = {v for v in labels if v and not isinstance(v, MalformedRecord)}
    # isdecimal and not isdigit: "²" is a digit that int() refuses.
    classes = classes or sorted(used, key=lambda v: (v.isdecimal() and int(v), v))
    texts = [caption(label) for label in labels]
    return ImageTextSource(
        path, names, texts, store, options.with_image, labels, classes
    )


def _open_parquet(
    path: str, options: SourceOptions, image: str, text: str, label: str
) -> ImageTextSource:
    store = ParquetStore(parquet_files(path), image)
    column = _column(path, store.columns, image, text, label)
    is_class, classes = column != text, _class_names(store.metadata, column)

    def as_text(value) -> str:
        if is_class and isinstance(value, int):
            return class_name(value, classes) if classes else str(value)
        if value is not None and not isinstance(value, str):
            return MalformedRecord(
                f"{column} is a {type(value).__name__}; expected text"
            )
        return value or ""

    values = [as_text(value) for value in store.values(column)]
    rows = [str(row) for row in range(len(values))]
    if is_class:
        return _labelled(path, rows, values, store, options, classes)
    return ImageTextSource(path, rows, values, store, options.with_image)


def _class_names(metadata: dict[bytes, bytes], label: str) -> list[str]:
    """The names of the classes, as Hugging Face's datasets stores them in a schema."""
    try:
        about = parse_json(metadata[b"huggingface"].decode(), "huggingface", dict)
        names = about["info"]["features"][label]["names"]
    except (KeyError, TypeError, ValueError):
        return []
    is_list = isinstance(names, list) and all(isinstance(name, str) for name in names)
    return names if is_list else []
