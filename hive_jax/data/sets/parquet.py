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

from hive_jax.data.bad import BadSample
from hive_jax.data.images import MAX_BYTES
from hive_jax.data.sets.arrow import as_python, length
from hive_jax.data.sets.footers import (
    HELD,
    allowed,
    leaves,
    require_images,
    require_small,
    unpacked,
)
from hive_jax.errors import DataError, MissingInputError


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
        """All of a column, as Python values; what cannot be one is Broken."""
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
        """The bytes of the image in row number `name`. Raises BadSample."""
        row = int(name)
        place = bisect.bisect_right(self._starts, row) - 1
        where = f"{self._files[self._groups[place][0]]}, row {row}"
        try:
            with self._lock:
                images = self._images(place)
            value = images[row - self._starts[place]].as_py()
        except self._errors as error:
            raise BadSample("damaged", where, str(error)) from None
        content = value.get("bytes") if isinstance(value, dict) else value
        if not isinstance(content, bytes):
            raise BadSample("missing", where, "the row has no bytes of an image")
        if len(content) > MAX_BYTES:
            detail = f"{len(content):,} bytes; expected at most {MAX_BYTES:,}"
            raise BadSample("too large", where, detail)
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
