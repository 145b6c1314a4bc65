"""Sets of images with a text each; and folders of classes as such."""

import contextlib
import csv
import hashlib
import json
import os
from collections.abc import Sequence
from pathlib import Path

from hive_jax.data.invalid import InvalidSample
from hive_jax.data.sources.base import MalformedRecord, is_utf8
from hive_jax.data.sources.image_store import FolderStore, open_store
from hive_jax.data.sources.parquet import ParquetStore, parquet_files
from hive_jax.data.types import Sample, Segment
from hive_jax.errors import ConfigError, DataError, MissingInputError

_SUFFIXES = (".jpg", ".jpeg", ".png", ".webp", ".gif", ".bmp")


class ImageTextSource:
    """Random access to pairs of an image and a text.

    Args:
      path: what messages call the set.
      names: of the images in `store`.
      texts: beside them; an empty or MalformedRecord one is a bad sample.
      with_image: False for text alone; no image is read then.
      labels: the name of the class of each, where they have one.
      classes: all names there can be, in order.
    """

    def __init__(
        self,
        path: str,
        names: Sequence[str],
        texts: Sequence[str],
        store,
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
            said = None if isinstance(text, MalformedRecord) else text
            digest.update(repr((name, said)).encode("utf-8", "surrogatepass"))
        self.fingerprint = digest.hexdigest()[:16]

    def __len__(self) -> int:
        return len(self._names)

    def __getitem__(self, index: int) -> Sample:
        """Sample `index`; its image is the content of a file. Raises InvalidSample."""
        text = require_text(self._texts[index], self.where(index))
        image = self._store.read(self._names[index]) if self._with_image else None
        label = self._labels[index] if self._labels else ""
        return Sample(image, (Segment(text + "\n"),), label=label)

    def where(self, index: int) -> str:
        return f"{self._path}, record {index}, image {self._names[index]}"


def require_text(text: str, where: str) -> str:
    """The text without space around it. Raises InvalidSample if it says nothing."""
    if isinstance(text, MalformedRecord):
        raise InvalidSample("record", where, text)
    if not text.strip():
        raise InvalidSample("record", where, "has no text")
    if not is_utf8(text):
        raise InvalidSample("record", where, "its text has half of a character")
    return text.strip()


def of_class(name: str) -> str:
    """The caption of an image of which only the class is known."""
    return f"a photo of a {name.replace('_', ' ')}"


def class_name(label: int, names: Sequence[str]) -> str:
    """The name of class number `label`; MalformedRecord if there is none."""
    if 0 <= label < len(names):
        return names[label]
    return MalformedRecord(f"is of class {label}; expected 0 to {len(names) - 1}")


def open_class_folder(path: str, with_image: bool = True) -> ImageTextSource:
    """path/CLASS/.../IMAGE, sorted; other files are left alone.

    Raises:
      MissingInputError: there is no such folder.
      DataError: it has no such files, or cannot be read.
    """
    if not os.path.isdir(path):
        raise MissingInputError(f"data.source: {path}: no such folder")
    try:
        classes = sorted(one.name for one in os.scandir(path) if one.is_dir())
        found = [name for one in classes for name in _images(path, one)]
    except OSError as error:
        raise DataError(f"{path} cannot be read: {error}") from None
    if not found:
        raise DataError(f"{path}: expected folders of images, one for each class")
    names = sorted(found)
    labels = [name.split("/")[0] for name in names]
    texts = list(map(of_class, labels))
    store = FolderStore(path)
    return ImageTextSource(
        path, names, texts, store, with_image, labels, sorted(set(labels))
    )


def _images(root: str, name: str) -> list[str]:
    """The paths, from the root, of the image files in a folder and those below it."""

    def fail(error: OSError):
        raise error

    return [
        os.path.relpath(os.path.join(folder, file), root)
        for folder, _, files in os.walk(os.path.join(root, name), onerror=fail)
        for file in files
        if file.lower().endswith(_SUFFIXES)
    ]


_LONGEST = 1_000_000  # characters of a field of CSV


def open_table(
    path: str,
    *,
    images: str,
    image: str,
    text: str,
    label: str,
    with_image: bool = True,
) -> ImageTextSource:
    """A .csv with a header, .parquet, or a folder of .parquet.

    Args:
      images: the folder or zip that has the images of a CSV.
      image, text, label: columns. The text, or else the class that `label` names; of
        Parquet by Hugging Face, a class may be a number.

    Raises:
      MissingInputError: something is not there.
      DataError, ConfigError: it is no such table.
    """
    if not path.endswith(".csv"):
        return _open_parquet(path, image, text, label, with_image)
    if not Path(path).is_file():
        raise MissingInputError(f"data.source: {path}: no such file")
    if not images:
        raise ConfigError(f"data.source: {path}: say where its images are, images=...")
    with _as_csv(path) as rows:
        column = _column(path, rows.fieldnames or [], image, text, label)
        table = [_pair(rows.line_num, row, image, column) for row in rows]
    names, values = [name for name, _ in table], [value for _, value in table]
    return _pairs(
        path, names, values, open_store(images, "images"), with_image, column != text
    )


@contextlib.contextmanager
def _as_csv(path: str):
    """The rows of a file. Raises DataError where it is no CSV."""
    before, rows = csv.field_size_limit(_LONGEST), None
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


def _pair(line: int, row: dict, image: str, column: str) -> tuple[str, str]:
    """The image and the text of a row, which is MalformedRecord if it is not like the header."""
    if None in row:
        return row[image], MalformedRecord(
            f"line {line} has more fields than the header"
        )
    if None in row.values():
        return row[image] or "", MalformedRecord(
            f"line {line} has fewer fields than the header"
        )
    return row[image], row[column]


def _captioned(value: str) -> str:
    """The caption for the name of a class."""
    return value if isinstance(value, MalformedRecord) or not value else of_class(value)


def _pairs(
    path: str, names, values, store, with_image: bool, is_class: bool, classes=()
) -> ImageTextSource:
    """Pairs of images with texts, or with the names of their classes."""
    if not is_class:
        return ImageTextSource(path, names, values, store, with_image)
    there = {v for v in values if v and not isinstance(v, MalformedRecord)}
    classes = classes or sorted(there, key=lambda v: (v.isdigit() and int(v), v))
    texts = list(map(_captioned, values))
    return ImageTextSource(path, names, texts, store, with_image, values, classes)


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


def _open_parquet(
    path: str, image: str, text: str, label: str, with_image: bool
) -> ImageTextSource:
    store = ParquetStore(parquet_files(path), image)
    column = _column(path, store.columns, image, text, label)
    is_class, classes = column != text, _class_names(store.metadata, column)

    def said(value) -> str:
        if is_class and isinstance(value, int):
            return class_name(value, classes) if classes else str(value)
        if value is not None and not isinstance(value, str):
            return MalformedRecord(
                f"{column} is a {type(value).__name__}; expected text"
            )
        return value or ""

    values = [said(value) for value in store.values(column)]
    rows = [str(row) for row in range(len(values))]
    return _pairs(path, rows, values, store, with_image, is_class, classes)


def _class_names(metadata: dict[bytes, bytes], label: str) -> list[str]:
    """The names of the classes, as Hugging Face's datasets keeps them in a schema."""
    try:
        features = json.loads(metadata[b"huggingface"])["info"]["features"]
        names = features[label]["names"]
    except (KeyError, TypeError, ValueError, RecursionError):
        return []
    is_list = isinstance(names, list) and all(isinstance(name, str) for name in names)
    return names if is_list else []
