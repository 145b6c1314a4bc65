"""Parquet files: images by row number, and the values of other columns."""

import bisect
import collections
import contextlib
import glob
import itertools
import threading
from collections.abc import Iterator
from pathlib import Path

from hive_jax.data.image_io import MAX_BYTES
from hive_jax.data.invalid import InvalidSample
from hive_jax.data.sources.base import MalformedRecord
from hive_jax.errors import DataError, MissingInputError
from hive_jax.io import require_regular

# Of a column in a row group, unpacked; and of the row groups that are cached. A file of
# some kilobytes may unpack to terabytes, which its footer tells before it is read.
MAX_ROW_GROUP_BYTES = 512_000_000


def parquet_files(path: str) -> list[Path]:
    """A .parquet file, those in a folder, or those of a pattern, "DIR/**/train-*.parquet".

    Raises:
      MissingInputError: there is none.
    """
    if Path(path).is_file():  # whatever its suffix
        return [Path(path)]
    pattern = f"{glob.escape(path)}/**/*.parquet" if Path(path).is_dir() else path
    files = sorted(map(Path, glob.glob(pattern, recursive=True)))
    if not files:
        raise MissingInputError(f"data.source: {path}: no such file, or no .parquet")
    return files


class ParquetStore:
    """The images in a column of Parquet files, by row number, and other columns' values.

    Parquet is read a row group at a time: a shuffled run over a large dataset reads a
    whole group for nearly every image. Use hive_jax.prepare_data to convert these.

    Args:
      files: read as one table, in order.
      column: of the images, as {bytes, path} or bytes; empty for none.

    Attributes:
      path: the file, or the folder of several, for messages.
      columns: that all files have.
      metadata: of the schema of the first file.

    Raises:
      MissingInputError: the package pyarrow is not installed.
      DataError: a file is a pipe or a device, or not Parquet, its image column holds no bytes, or a row group
        is too large.
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
        self._parquet = pyarrow.parquet
        self._errors = (pyarrow.ArrowException, OSError)
        self._column, self._files, self._footers, schemas = column, files, [], []
        for file in files:
            require_regular(file)
            with self._parquet_errors(file):
                footer = pyarrow.parquet.read_metadata(file)
                schemas.append(footer.schema.to_arrow_schema())
            if column:
                _require_image_bytes(file, schemas[-1], column)
            self._footers.append(footer)
        self.metadata = schemas[0].metadata or {}
        self.columns = [
            name for name in schemas[0].names if all(name in s.names for s in schemas)
        ]
        self._groups = [
            (number, group)
            for number, footer in enumerate(self._footers)
            for group in range(footer.num_row_groups)
        ]
        if column:
            for number, group in self._groups:
                self._require_small(number, group, column)
        rows = (self._footers[n].row_group(g).num_rows for n, g in self._groups)
        self._starts = list(itertools.accumulate(rows, initial=0))
        self._cache = collections.OrderedDict()
        self._lock = threading.Lock()

    def values(self, column: str) -> list:
        """Returns a whole column; values without a Python type are MalformedRecord."""
        values = []
        for number, group in self._groups:
            with self._parquet_errors(self._files[number]):
                values += _as_python(self._read_group(number, group, column))
        return values

    def present(self) -> list[bool]:
        """Returns for each row whether it has an image."""
        present = []
        for number, group in self._groups:
            leaves = _leaves(self._footers[number], self._column)
            # Of {bytes, path} the paths tell it without the bytes being read.
            others = [leaf for leaf in leaves if not leaf.endswith(".bytes")]
            with self._parquet_errors(self._files[number]):
                read = self._read_group(number, group, (others or leaves)[0])
            present += read.is_valid().to_pylist()
        return present

    def has(self, name: str) -> bool:
        return True

    def read(self, name: str) -> bytes:
        """Returns the image bytes in row number `name`. Raises InvalidSample."""
        row = int(name)
        position = bisect.bisect_right(self._starts, row) - 1
        where = f"{self._files[self._groups[position][0]]}, row {row}"
        try:
            with self._lock:
                images = self._images(position)
            value = images[row - self._starts[position]].as_py()
        except self._errors as error:
            raise InvalidSample("damaged", where, str(error)) from None
        content = value.get("bytes") if isinstance(value, dict) else value
        if not isinstance(content, bytes):
            raise InvalidSample("missing", where, "the row has no bytes of an image")
        if len(content) > MAX_BYTES:
            detail = f"{len(content):,} bytes; expected at most {MAX_BYTES:,}"
            raise InvalidSample("too large", where, detail)
        return content

    def _images(self, position: int):
        """The images of a row group, from the cache of those read last."""
        if position not in self._cache:
            number, group = self._groups[position]
            size = self._num_bytes(number, group, self._column)
            while (
                self._cache
                and size + sum(images.nbytes for images in self._cache.values())
                > MAX_ROW_GROUP_BYTES
            ):
                self._cache.popitem(last=False)
            self._cache[position] = self._read_group(number, group, self._column)
        self._cache.move_to_end(position)
        return self._cache[position]

    def _read_group(self, number: int, group: int, column: str):
        """A column of a row group, or a field of one, as "image.path"."""
        self._require_small(number, group, column)
        footer = self._footers[number]
        with self._parquet.ParquetFile(self._files[number], metadata=footer) as file:
            read = file.read_row_group(group, columns=[column]).column(0)
        if len(read) != footer.row_group(group).num_rows:
            raise OSError(f"row group {group} is not as long as the footer says")
        return read

    def _require_small(self, number: int, group: int, column: str) -> None:
        size = self._num_bytes(number, group, column)
        if size > MAX_ROW_GROUP_BYTES:
            raise DataError(
                f"{self._files[number]}: a row group has {size:,} bytes of {column}; "
                f"expected at most {MAX_ROW_GROUP_BYTES:,}: write it with smaller ones, "
                f"row_group_size=100"
            )

    def _num_bytes(self, number: int, group: int, column: str) -> int:
        """Unpacked bytes of a column in a row group, as the footer says."""
        about = self._footers[number].row_group(group)
        chunks = map(about.column, range(about.num_columns))
        return sum(
            chunk.total_uncompressed_size
            for chunk in chunks
            if f"{chunk.path_in_schema}.".startswith(f"{column}.")
        )

    @contextlib.contextmanager
    def _parquet_errors(self, file: Path) -> Iterator[None]:
        try:
            yield
        except self._errors as error:
            raise DataError(f"{file}: not Parquet: {error}") from None


def _require_image_bytes(file: Path, schema, column: str) -> None:
    import pyarrow

    if schema.names.count(column) != 1:
        raise DataError(
            f"{file} has the columns {', '.join(schema.names)}; expected one with the "
            f"bytes of images, {column}"
        )
    kind = schema.field(column).type
    if pyarrow.types.is_struct(kind) and kind.get_field_index("bytes") >= 0:
        kind = kind.field("bytes").type
    if pyarrow.types.is_dictionary(kind):
        kind = kind.value_type
    if not (pyarrow.types.is_binary(kind) or pyarrow.types.is_large_binary(kind)):
        raise DataError(
            f"{file}: the column {column} is {kind}; expected the bytes of images"
        )


def _leaves(footer, column: str) -> list[str]:
    """The paths of the leaves of a column, "image.bytes" and "image.path"."""
    paths = (footer.schema.column(i).path for i in range(footer.num_columns))
    return [path for path in paths if f"{path}.".startswith(f"{column}.")]


def _as_python(array) -> list:
    try:
        return array.to_pylist()
    except (ValueError, OverflowError):  # of one value, e.g. text that is not UTF-8
        return [_scalar(value) for value in array]


def _scalar(value):
    try:
        return value.as_py()
    except (ValueError, OverflowError) as error:
        return MalformedRecord(f"a {value.type} that cannot be read: {error}")
