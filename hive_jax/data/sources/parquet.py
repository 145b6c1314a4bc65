"""Parquet: images by the number of their row, and all values of other columns.

A small file can say much: a dictionary has a value once, for any number of rows. All
columns are read as dictionaries, so a row costs no more than it does in the file, and a
file that unpacks to far more than it is, is refused.
"""

import bisect
import collections
import contextlib
import glob
import itertools
import threading
from pathlib import Path

from hive_jax.data.image_io import MAX_BYTES
from hive_jax.data.invalid import InvalidSample
from hive_jax.data.sources.base import MalformedRecord
from hive_jax.errors import DataError, MissingInputError

HELD = 512_000_000  # bytes, of row groups with images in memory
# What a file may unpack to: 64 MB, and ten times its size.
_AT_LEAST, _TIMES = 64_000_000, 10


def require_images(file: Path, schema, column: str) -> None:
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


def require_small(file: Path, about, column: str) -> None:
    """Raises DataError for what would not fit in memory."""
    size, rows = file.stat().st_size, 0
    for group in range(about.num_row_groups):
        images = unpacked(about, group, column)
        if images > HELD:
            raise DataError(
                f"{file}: a row group has {images:,} bytes of images; expected at "
                f"most {HELD:,}: write it with smaller ones, row_group_size=100"
            )
        rows += about.row_group(group).num_rows
        columns = map(about.row_group(group).column, range(about.num_columns))
        for one in columns:
            if one.num_values > size or one.total_uncompressed_size > allowed(file):
                raise DataError(
                    f"{file} has {size:,} bytes; they say that they unpack to "
                    f"{one.total_uncompressed_size:,}, {one.num_values:,} values"
                )
    if rows > size:
        raise DataError(
            f"{file} has {size:,} bytes; they say that they are {rows:,} rows"
        )


def allowed(file: Path) -> int:
    return _AT_LEAST + _TIMES * file.stat().st_size


def leaves(about, column: str, kind: str = "") -> list[str]:
    """The paths of what a column is made of; of those of one physical type."""
    found = (about.schema.column(i) for i in range(about.num_columns))
    return [
        leaf.path
        for leaf in found
        if f"{leaf.path}.".startswith(f"{column}.") and kind in ("", leaf.physical_type)
    ]


def unpacked(about, group: int, column: str) -> int:
    """Bytes of a column in a row group."""
    columns = map(about.row_group(group).column, range(about.num_columns))
    return sum(
        one.total_uncompressed_size
        for one in columns
        if f"{one.path_in_schema}.".startswith(f"{column}.")
    )


def as_python(array) -> list:
    """The values of an Arrow array; equal texts of a dictionary are one object."""
    import pyarrow

    if isinstance(array, pyarrow.ChunkedArray):
        return [value for chunk in array.chunks for value in as_python(chunk)]
    if isinstance(array, pyarrow.DictionaryArray):
        known = as_python(array.dictionary)
        return [None if i is None else known[i] for i in array.indices.to_pylist()]
    if isinstance(array, pyarrow.StructArray):
        names = [field.name for field in array.type]
        parts = [as_python(part) for part in array.flatten()]
        rows = zip(array.is_valid().to_pylist(), *parts, strict=True)
        return [dict(zip(names, row, strict=True)) if v else None for v, *row in rows]
    if isinstance(array, (pyarrow.ListArray, pyarrow.LargeListArray)):
        inside, ends = as_python(array.values), array.offsets.to_pylist()
        spans = zip(array.is_valid().to_pylist(), ends, ends[1:], strict=False)
        return [inside[start:end] if v else None for v, start, end in spans]
    return [_scalar(value) for value in array]


def _scalar(value):
    try:
        return value.as_py()
    except (ValueError, OverflowError) as error:
        return MalformedRecord(f"a {value.type} that cannot be read: {error}")


def length(value) -> int:
    """Characters of the texts in a value."""
    if isinstance(value, dict):
        value = list(value.values())
    if isinstance(value, list):
        return sum(map(length, value))
    return len(value) if isinstance(value, (str, bytes)) else 0


def parquet_files(path: str) -> list[Path]:
    """A .parquet file, those in a folder, or those of a pattern, "DIR/**/train-*.parquet".

    Raises MissingInputError for none.
    """
    if Path(path).is_file():  # whatever its name is
        return [Path(path)]
    pattern = f"{glob.escape(path)}/**/*.parquet" if Path(path).is_dir() else path
    files = sorted(map(Path, glob.glob(pattern, recursive=True)))
    if not files:
        raise MissingInputError(f"data.source: {path} holds no .parquet")
    return files


class ParquetStore:
    """Images in a column ({bytes, path}, or bytes) of Parquet files, by the number of
    the row; without a column, the values of others alone.

    Parquet is read a row group at a time; a shuffled run of a large set reads a group
    for nearly every image. Fine for small sets; tools/prepare_data.py converts others.

    Attributes:
      columns: that all files have.
      metadata: of the schema of the first file.

    Raises:
      MissingInputError: the package pyarrow is not there.
      DataError: a file is no Parquet, its column has no bytes, or it is too large once
        unpacked.
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
        self._column, self._files, self._about, schemas = column, files, [], []
        for file in files:
            with self._readable(file):
                about = pyarrow.parquet.read_metadata(file)
                schemas.append(about.schema.to_arrow_schema())
            if column:
                require_images(file, schemas[-1], column)
            require_small(file, about, column)
            self._about.append(about)
        self.metadata = schemas[0].metadata or {}
        self.columns = [
            name for name in schemas[0].names if all(name in s.names for s in schemas)
        ]
        self._groups = [
            (number, group)
            for number, about in enumerate(self._about)
            for group in range(about.num_row_groups)
        ]
        rows = (self._about[n].row_group(group).num_rows for n, group in self._groups)
        self._starts = list(itertools.accumulate(rows, initial=0))
        self._kept = collections.OrderedDict()
        self._lock = threading.Lock()

    def values(self, column: str) -> list:
        """All of a column, as Python values; what cannot be one is MalformedRecord."""
        values, characters = [], 0
        most = sum(map(allowed, self._files))
        for number, group in self._groups:
            with self._readable(self._files[number]):
                found = as_python(self._read_group(number, group, column))
            characters += sum(map(length, found))
            if characters > most:
                raise DataError(
                    f"{self.path}: the column {column} has more than {most:,} "
                    f"characters, which is far more than the files have bytes"
                )
            values += found
        return values

    def present(self) -> list[bool]:
        """For each row, whether it has an image."""
        out = []
        for number, group in self._groups:
            parts = leaves(self._about[number], self._column)
            # Of {bytes, path} the paths say it without the bytes being read.
            others = [part for part in parts if not part.endswith(".bytes")]
            with self._readable(self._files[number]):
                read = self._read_group(number, group, (others or parts)[0])
            out += read.is_valid().to_pylist()
        return out

    def has(self, name: str) -> bool:
        return True

    def read(self, name: str) -> bytes:
        """The bytes of the image in row number `name`. Raises InvalidSample."""
        row = int(name)
        place = bisect.bisect_right(self._starts, row) - 1
        where = f"{self._files[self._groups[place][0]]}, row {row}"
        try:
            with self._lock:
                images = self._images(place)
            value = images[row - self._starts[place]].as_py()
        except self._errors as error:
            raise InvalidSample("damaged", where, str(error)) from None
        content = value.get("bytes") if isinstance(value, dict) else value
        if not isinstance(content, bytes):
            raise InvalidSample("missing", where, "the row has no bytes of an image")
        if len(content) > MAX_BYTES:
            detail = f"{len(content):,} bytes; expected at most {MAX_BYTES:,}"
            raise InvalidSample("too large", where, detail)
        return content

    def _images(self, place: int):
        """The images of a row group; those that were read last are kept."""
        if place not in self._kept:
            number, group = self._groups[place]
            room = HELD - unpacked(self._about[number], group, self._column)
            while self._kept and sum(x.nbytes for x in self._kept.values()) > room:
                self._kept.popitem(last=False)
            self._kept[place] = self._read_group(number, group, self._column)
        self._kept.move_to_end(place)
        return self._kept[place]

    def _read_group(self, number: int, group: int, column: str):
        """A column of a row group, or a part of one, "image.path"."""
        about = self._about[number]
        with self._parquet.ParquetFile(
            self._files[number],
            metadata=about,
            read_dictionary=leaves(about, column, "BYTE_ARRAY"),
        ) as file:
            read = file.read_row_group(group, columns=[column]).column(0)
        if len(read) != about.row_group(group).num_rows:
            raise OSError(f"row group {group} is not as long as the file says")
        return read

    @contextlib.contextmanager
    def _readable(self, file: Path):
        try:
            yield
        except self._errors as error:
            raise DataError(f"{file}: not Parquet: {error}") from None
