"""Validated access to benchmark files: JSON fields, Parquet tables and images."""

import functools
from pathlib import Path

from hive_jax.data.sources.base import is_utf8
from hive_jax.data.sources.image_store import FolderStore
from hive_jax.data.sources.parquet import ParquetTable
from hive_jax.data.sources.parquet_images import ParquetImages
from hive_jax.data.sources.zip_store import ZipStore
from hive_jax.errors import DataError, MissingInputError

_NAMES = {str: "text", int: "a whole number", list: "a list", dict: "an object"}


def expect(value, kind: type, where: str):
    """Checks the type of a JSON value and returns it.

    Args:
      value: value to check.
      kind: expected type: str, int, list or dict.
      where: location of the value, for the error message.

    Raises:
      DataError: the value has another type, or is text that is not valid UTF-8.
    """
    # bool is a subclass of int, but true and false are not numbers in JSON.
    right = isinstance(value, kind) and not (kind is int and isinstance(value, bool))
    if not right or kind is str and not is_utf8(value):
        raise DataError(f"{where} is {_shown(value)}; expected {_NAMES[kind]}")
    return value


def field(record: dict, key: str, kind: type, where: str):
    """Returns the value of a required key.

    Args:
      record: JSON object.
      key: name of the field.
      kind: expected type; see `expect`.
      where: location of the record, for the error message.

    Raises:
      DataError: the key is missing, or its value has another type.
    """
    if key not in record:
        known = ", ".join(sorted(map(str, record))) or "nothing"
        raise DataError(f"{where} has no {key!r}; it has {known}")
    return expect(record[key], kind, f"{where}: {key}")


def text(record: dict, key: str, where: str) -> str:
    """Returns the text of a required key.

    Args:
      record, key, where: as for `field`.

    Raises:
      DataError: the key is missing, is not text, or is blank.
    """
    value = field(record, key, str, where)
    if not value.strip():
        raise DataError(f"{where}: {key} is empty; expected text")
    return value


def identity(record: dict, key: str, where: str) -> str:
    """Returns an id as text; the file may have it as an integer or as text.

    Args:
      record, key, where: as for `field`.

    Raises:
      DataError: the key is missing, or is neither an integer nor text.
    """
    kind = str if isinstance(record.get(key), str) else int
    return str(field(record, key, kind, where))


def texts(record: dict, key: str, where: str) -> tuple[str, ...]:
    """Returns the list of strings of a required key.

    Args:
      record, key, where: as for `field`.

    Raises:
      DataError: the key is missing, or is not a list of strings.
    """
    values = field(record, key, list, where)
    return tuple(expect(v, str, f"{where}: {key}[{i}]") for i, v in enumerate(values))


def image_store(root: Path, top: str):
    """Opens the images of a benchmark, which are named `top`/....

    Args:
      root: folder of the benchmark.
      top: name of the folder in `root`, or of the archive `top`.zip in it.

    Raises:
      MissingInputError: neither the folder nor the archive exists.
      DataError: the archive is damaged.
    """
    if (root / top).is_dir():
        return FolderStore(str(root))
    if (root / f"{top}.zip").is_file():
        return ZipStore(str(root / f"{top}.zip"))
    raise MissingInputError(f"{root} has neither the folder {top} nor {top}.zip")


def has_parquet(root: Path) -> bool:
    """Returns whether there is a Parquet file anywhere below `root`."""
    return next(root.glob("**/*.parquet"), None) is not None


class Table:
    """Rows of a Hugging Face dataset in Parquet files: part/.../SPLIT-*.parquet.

    Also serves as the image store of these rows; an image is named by its row number.

    Args:
      root: folder of the benchmark.
      part: subfolder of one configuration; if it does not exist, all files below `root`
        are searched.
      split: name of the split, with which the file names begin.
      images: name of the image column; empty for none.

    Raises:
      MissingInputError: there is no file of this split.
      DataError: a file is damaged.
    """

    def __init__(self, root: Path, part: str, split: str, images: str = "image"):
        folder = root / part if (root / part).is_dir() else root
        found = sorted(folder.glob("**/*.parquet"))
        files = [file for file in found if _is_of(file.name, split)]
        if not files:
            names = ", ".join(file.name for file in found[:5]) or "none"
            raise MissingInputError(
                f"{folder}: expected Parquet files of the split {split}, as "
                f"{split}-00000-of-00001.parquet; found {names}"
            )
        self.path, self._table = str(folder), ParquetTable(files)
        self._images = ParquetImages(self._table, images) if images else None

    def rows(self, *columns: str, also: str = "") -> list[tuple[str, str, dict]]:
        """Reads the given columns of all rows.

        Args:
          *columns: names of required columns.
          also: name of an optional column, returned only if the table has it.

        Returns:
          (location for error messages, image name, column -> value) of each row.

        Raises:
          DataError: a required column is missing.
        """
        self._require(columns)
        columns += (also,) if also in self._table.columns else ()
        values = zip(*(self._table.values(column) for column in columns), strict=True)
        return [
            (f"{self.path}, row {row}", str(row), dict(zip(columns, one)))
            for row, one in enumerate(values)
        ]

    def has(self, name: str) -> bool:
        """Returns whether the row with this number has an image."""
        return name in self._with_image

    def explain_missing(self, name: str) -> str:
        """Returns what the row with this number lacks."""
        return "the row has no image"

    @functools.cached_property
    def _with_image(self) -> set[str]:
        counts = self._images.counts() if self._images else []
        return {str(row) for row, count in enumerate(counts) if count}

    def read(self, name: str) -> bytes:
        """Returns the bytes of an image. Raises InvalidSample if it cannot be read."""
        return self._images.read(name)

    def _require(self, columns) -> None:
        missing = [name for name in columns if name not in self._table.columns]
        if missing:
            raise DataError(
                f"{self.path} has the columns {', '.join(self._table.columns)}; "
                f"expected {', '.join(missing)} as well"
            )


def _is_of(name: str, split: str) -> bool:
    return name == f"{split}.parquet" or name.startswith(f"{split}-")


def _shown(value) -> str:
    shown = repr(value)
    return shown if len(shown) <= 60 else f"{shown[:57]}..."
