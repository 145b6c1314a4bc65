"""Records of a set from JSON, JSON lines or Parquet."""

import bisect
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
        files = sorted(source.glob("**/*.parquet")) if source.is_dir() else [source]
        if not files:
            raise MissingInputError(f"data.source: {path} holds no .parquet")
        return _from_parquet(files)
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


def _from_parquet(files: list[Path]):
    try:
        import pyarrow
        import pyarrow.parquet
    except ImportError:
        raise MissingInputError(
            f"{files[0]} needs the package pyarrow: pip install pyarrow"
        ) from None
    records = []
    try:
        store = ParquetStore(files)
        for name, file in zip(files, store.files, strict=True):
            columns = file.schema_arrow.names
            if "conversations" not in columns or "image" not in columns:
                raise DataError(
                    f"{name} has the columns {', '.join(columns)}; expected "
                    f"conversations and image"
                )
            if pyarrow.types.is_string(file.schema_arrow.field("image").type):
                raise DataError(
                    f"{name}: the column image is text; expected the bytes of images"
                )
            records += file.read(columns=["conversations"]).to_pylist()
        images = store.present()
    except (pyarrow.ArrowException, OSError) as error:
        raise DataError(f"{files[0].parent}: not Parquet: {error}") from None
    for number, (record, present) in enumerate(zip(records, images, strict=True)):
        record["image"] = str(number) if present else None
    return records, store


class ParquetStore:
    """Images in the column `image` ({bytes, path}, or bytes) of Parquet files, by the
    number of the row.

    Parquet is read a row group at a time; a shuffled run reads a group for nearly
    every image. Fine for small sets.
    """

    def __init__(self, files: list[Path]):
        import pyarrow.parquet

        self.path = str(files[0] if len(files) == 1 else files[0].parent)
        self.files = [pyarrow.parquet.ParquetFile(file) for file in files]
        self._names = [str(file) for file in files]
        self._groups, self._starts = [], []
        start = 0
        for number, file in enumerate(self.files):
            for group in range(file.num_row_groups):
                self._groups.append((number, group))
                self._starts.append(start)
                start += file.metadata.row_group(group).num_rows
        self._group = functools.lru_cache(maxsize=4)(self._read_group)
        self._lock = threading.Lock()

    def present(self) -> list[bool]:
        """For each row, whether it has an image."""
        out = []
        for number, group in self._groups:
            kind = self.files[number].schema_arrow.field("image").type
            # Of {bytes, path} the paths say it without the bytes being read.
            paths = (
                [f.name for f in kind if f.name != "bytes"] if kind.num_fields else []
            )
            column = f"image.{paths[0]}" if paths else "image"
            table = self.files[number].read_row_group(group, columns=[column])
            out += table.column("image").is_valid().to_pylist()
        return out

    def has(self, name: str) -> bool:
        return True

    def read(self, name: str) -> bytes:
        """The bytes of the image in row number `name`. Raises BadSample."""
        import pyarrow

        row = int(name)
        group = bisect.bisect_right(self._starts, row) - 1
        where = f"{self._names[self._groups[group][0]]}, row {row}"
        try:
            with self._lock:
                column = self._group(group)
        except (pyarrow.ArrowException, OSError) as error:
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
        table = self.files[number].read_row_group(inside, columns=["image"])
        return table.column("image").combine_chunks()
