"""Tables of images with a text or a class each: CSV, Parquet."""

import contextlib
import csv
import json
from collections.abc import Sequence
from pathlib import Path

from hive_jax.data.sets.pairs import Pairs, class_name, of_class
from hive_jax.data.sets.parquet import ParquetStore, parquet_files
from hive_jax.data.sets.stores import open_store
from hive_jax.data.sets.text import Broken
from hive_jax.errors import ConfigError, DataError, MissingInputError

_LONGEST = 1_000_000  # characters of a field of CSV


def open_table(
    path: str,
    *,
    images: str,
    image: str,
    text: str,
    label: str,
    with_image: bool = True,
) -> Pairs:
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
    """The image and the text of a row, which is Broken if it is not like the header."""
    if None in row:
        return row[image], Broken(f"line {line} has more fields than the header")
    if None in row.values():
        return row[image] or "", Broken(f"line {line} has fewer fields than the header")
    return row[image], row[column]


def _captioned(value: str) -> str:
    """The caption for the name of a class."""
    return value if isinstance(value, Broken) or not value else of_class(value)


def _pairs(
    path: str, names, values, store, with_image: bool, is_class: bool, classes=()
) -> Pairs:
    """Pairs of images with texts, or with the names of their classes."""
    if not is_class:
        return Pairs(path, names, values, store, with_image)
    there = {v for v in values if v and not isinstance(v, Broken)}
    classes = classes or sorted(there, key=lambda v: (v.isdigit() and int(v), v))
    texts = list(map(_captioned, values))
    return Pairs(path, names, texts, store, with_image, values, classes)


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
) -> Pairs:
    store = ParquetStore(parquet_files(path), image)
    column = _column(path, store.columns, image, text, label)
    is_class, classes = column != text, _class_names(store.metadata, column)

    def said(value) -> str:
        if is_class and isinstance(value, int):
            return class_name(value, classes) if classes else str(value)
        if value is not None and not isinstance(value, str):
            return Broken(f"{column} is a {type(value).__name__}; expected text")
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
