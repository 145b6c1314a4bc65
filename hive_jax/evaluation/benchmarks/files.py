"""The files of benchmarks: JSON, Parquet and images below a folder, checked."""

import functools
from pathlib import Path

from hive_jax.data.sources.base import is_utf8
from hive_jax.data.sources.image_store import FolderStore, ZipStore
from hive_jax.data.sources.parquet import ParquetStore
from hive_jax.errors import DataError, MissingInputError

_NAMES = {str: "text", int: "a whole number", list: "a list", dict: "an object"}


def expect(value, kind: type, where: str):
    """The value, if it is of the kind. Raises DataError."""
    right = isinstance(value, kind) and not (kind is int and isinstance(value, bool))
    if not right or kind is str and not is_utf8(value):
        raise DataError(f"{where} is {_shown(value)}; expected {_NAMES[kind]}")
    return value


def field(record: dict, key: str, kind: type, where: str):
    """The value of a key that must be there. Raises DataError."""
    if key not in record:
        known = ", ".join(sorted(map(str, record))) or "nothing"
        raise DataError(f"{where} has no {key!r}; it has {known}")
    return expect(record[key], kind, f"{where}: {key}")


def text(record: dict, key: str, where: str) -> str:
    """A text of at least one letter. Raises DataError."""
    value = field(record, key, str, where)
    if not value.strip():
        raise DataError(f"{where}: {key} is empty; expected text")
    return value


def identity(record: dict, key: str, where: str) -> str:
    """An id, a number or a text, as text. Raises DataError."""
    kind = str if isinstance(record.get(key), str) else int
    return str(field(record, key, kind, where))


def texts(record: dict, key: str, where: str) -> tuple[str, ...]:
    """A list of texts. Raises DataError."""
    values = field(record, key, list, where)
    return tuple(expect(v, str, f"{where}: {key}[{i}]") for i, v in enumerate(values))


def image_store(root: Path, top: str):
    """Images named `top`/...: a folder below `root`, or the zip `top`.zip in it.

    Raises MissingInputError, DataError.
    """
    if (root / top).is_dir():
        return FolderStore(str(root))
    if (root / f"{top}.zip").is_file():
        return ZipStore(str(root / f"{top}.zip"))
    raise MissingInputError(f"{root} has neither the folder {top} nor {top}.zip")


def has_parquet(root: Path) -> bool:
    return next(root.glob("**/*.parquet"), None) is not None


class Table:
    """The rows of Parquet files as Hugging Face has them: part/.../SPLIT-*.parquet.

    And the store of their images, by the number of the row.

    Args:
      part: a folder of one configuration; where there is none, all below `root`.
      split: what names of files begin with.
      images: the column of the images; empty for none.

    Raises MissingInputError, DataError.
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
        self.path, self._store = str(folder), ParquetStore(files, images)

    def rows(self, *columns: str, also: str = "") -> list[tuple[str, str, dict]]:
        """(where, the name of the image, the values in the columns) of each row.

        With those of the column `also`, if there is one.
        """
        self._require(columns)
        columns += (also,) if also in self._store.columns else ()
        values = zip(*(self._store.values(column) for column in columns), strict=True)
        return [
            (f"{self.path}, row {row}", str(row), dict(zip(columns, one)))
            for row, one in enumerate(values)
        ]

    def has(self, name: str) -> bool:
        return name in self._with_image

    @functools.cached_property
    def _with_image(self) -> set[str]:
        return {str(row) for row, there in enumerate(self._store.present()) if there}

    def read(self, name: str) -> bytes:
        """The bytes of an image. Raises InvalidSample."""
        return self._store.read(name)

    def _require(self, columns) -> None:
        missing = [name for name in columns if name not in self._store.columns]
        if missing:
            raise DataError(
                f"{self.path} has the columns {', '.join(self._store.columns)}; "
                f"expected {', '.join(missing)} as well"
            )


def _is_of(name: str, split: str) -> bool:
    return name == f"{split}.parquet" or name.startswith(f"{split}-")


def _shown(value) -> str:
    shown = repr(value)
    return shown if len(shown) <= 60 else f"{shown[:57]}..."
