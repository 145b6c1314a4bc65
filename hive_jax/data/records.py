"""Records of a set from JSON, JSON lines or Parquet."""

import bisect
import contextlib
import functools
import json
import threading
from pathlib import Path

from hive_jax.data.bad import BadSample
from hive_jax.data.images import MAX_BYTES
from hive_jax.errors import DataError, MissingInputError


class Broken(str):
    """What is wrong with a line that should have been a record."""


def read_records(path: str) -> tuple[list, "ParquetStore | None"]:
    """All records of a set, and the store of the images that are in its files.

    With such a store, the `image` of a record is its number, as text. A line of JSON
    that cannot be read is `Broken`.

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
        text = source.read_bytes().decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise DataError(f"{path} is not UTF-8: {error}") from None
    if text.lstrip()[:1] == "[":
        return _parsed(text, path), None
    lines = [(n, x) for n, x in enumerate(text.splitlines(), 1) if x.strip()]
    records = [_line(line, number) for number, line in lines]
    if not any(isinstance(record, dict) for record in records):
        raise DataError(
            f"{path} is neither a JSON list nor JSON lines"
            + (f": {records[0]}" if records else ": it is empty")
        )
    return records, None


def _parsed(text: str, path: str) -> list:
    try:
        return json.loads(text)
    except RecursionError:
        raise DataError(f"{path} is nested too deeply") from None
    except ValueError as error:
        raise DataError(f"{path} is not JSON: {error}") from None


def _line(line: str, number: int):
    try:
        return json.loads(line)
    except (ValueError, RecursionError) as error:
        return Broken(f"line {number} is not JSON: {error}")


def parquet_files(path: str) -> list[Path]:
    """A .parquet file, or those in a folder. Raises MissingInputError for none."""
    source = Path(path)
    files = sorted(source.glob("**/*.parquet")) if source.is_dir() else [source]
    if not files or not files[0].is_file():
        raise MissingInputError(f"data.source: {path} holds no .parquet")
    return files


def _from_parquet(files: list[Path]):
    store = ParquetStore(files, "image")
    if "conversations" not in store.columns or "image" not in store.columns:
        raise DataError(
            f"{store.path} has the columns {', '.join(store.columns)}; expected "
            f"conversations and image"
        )
    rows = zip(store.values("conversations"), store.present(), strict=True)
    records = [
        {"conversations": turns, "image": str(number) if present else None}
        for number, (turns, present) in enumerate(rows)
    ]
    return records, store


class ParquetStore:
    """Images in a column ({bytes, path}, or bytes) of Parquet files, by the number of
    the row.

    Parquet is read a row group at a time; a shuffled run reads a group for nearly
    every image. Fine for small sets; tools/prepare_data.py converts large ones.

    Attributes:
      columns, metadata: of the schema of the first file.

    Raises:
      MissingInputError: the package pyarrow is not there.
      DataError: a file is no Parquet, or the column has no bytes.
    """

    def __init__(self, files: list[Path], column: str):
        try:
            import pyarrow
            import pyarrow.parquet
        except ImportError:
            raise MissingInputError(
                f"{files[0]} needs the package pyarrow: pip install pyarrow"
            ) from None
        self.path = str(files[0] if len(files) == 1 else files[0].parent)
        self._errors = (pyarrow.ArrowException, OSError)
        self._column, self._names = column, [str(file) for file in files]
        with self._readable():
            self._files = [pyarrow.parquet.ParquetFile(file) for file in files]
        schema = self._files[0].schema_arrow
        self.columns, self.metadata = schema.names, schema.metadata or {}
        if column in self.columns and pyarrow.types.is_string(
            schema.field(column).type
        ):
            raise DataError(
                f"{self.path}: the column {column} is text; expected the bytes of images"
            )
        self._groups, self._starts = [], []
        start = 0
        for number, file in enumerate(self._files):
            for group in range(file.num_row_groups):
                self._groups.append((number, group))
                self._starts.append(start)
                start += file.metadata.row_group(group).num_rows
        self._group = functools.lru_cache(maxsize=4)(self._read_group)
        self._lock = threading.Lock()

    def values(self, column: str) -> list:
        """All of a column, as Python values."""
        with self._readable():
            return [
                x for f in self._files for x in f.read([column])[column].to_pylist()
            ]

    def present(self) -> list[bool]:
        """For each row, whether it has an image."""
        out = []
        for number, group in self._groups:
            kind = self._files[number].schema_arrow.field(self._column).type
            # Of {bytes, path} the paths say it without the bytes being read.
            inner = [kind.field(i).name for i in range(kind.num_fields)]
            inner = [name for name in inner if name != "bytes"]
            column = f"{self._column}.{inner[0]}" if inner else self._column
            with self._readable():
                table = self._files[number].read_row_group(group, columns=[column])
            out += table.column(self._column).is_valid().to_pylist()
        return out

    def has(self, name: str) -> bool:
        return True

    def read(self, name: str) -> bytes:
        """The bytes of the image in row number `name`. Raises BadSample."""
        row = int(name)
        group = bisect.bisect_right(self._starts, row) - 1
        where = f"{self._names[self._groups[group][0]]}, row {row}"
        try:
            with self._lock:
                column = self._group(group)
        except self._errors as error:
            raise BadSample("damaged", where, str(error)) from None
        value = column[row - self._starts[group]].as_py()
        content = value.get("bytes") if isinstance(value, dict) else value
        if not isinstance(content, bytes):
            raise BadSample("missing", where, "the row has no bytes of an image")
        if len(content) > MAX_BYTES:
            detail = f"{len(content):,} bytes; expected at most {MAX_BYTES:,}"
            raise BadSample("too large", where, detail)
        return content

    def _read_group(self, group: int):
        number, inside = self._groups[group]
        table = self._files[number].read_row_group(inside, columns=[self._column])
        return table.column(self._column).combine_chunks()

    @contextlib.contextmanager
    def _readable(self):
        try:
            yield
        except self._errors as error:
            raise DataError(f"{self.path}: not Parquet: {error}") from None
