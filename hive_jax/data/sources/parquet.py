"""Parquet files as one table, read a column of a row group at a time."""

import contextlib
import glob
import itertools
import re
from collections.abc import Iterator
from pathlib import Path

from hive_jax.data.sources.base import MalformedRecord
from hive_jax.data.sources.file_names import TRAIN_NAME, is_split
from hive_jax.errors import DataError, MissingInputError
from hive_jax.io import require_regular

# Of a column in a row group, unpacked; and of the row groups that are cached. A file of
# some kilobytes may unpack to terabytes, which its footer tells before it is read.
MAX_ROW_GROUP_BYTES = 512_000_000
_SIGNATURE = b"PAR1"
_SHARD = re.compile(r"[-_.]\d")  # begins the number of a file of several


def parquet_files(path: str) -> list[Path]:
    """A .parquet file, those in a folder, or those of a pattern, "DIR/**/train-*.parquet".

    Raises:
      MissingInputError: there is none.
      DataError: the files of a folder are of several splits.
    """
    if Path(path).is_file():  # whatever its suffix
        return [Path(path)]
    is_folder = Path(path).is_dir()
    pattern = f"{glob.escape(path)}/**/*.parquet" if is_folder else path
    files = sorted(map(Path, glob.glob(pattern, recursive=True)))
    if not files:
        raise MissingInputError(
            f"data.source: {path}: no such file, or no .parquet in it"
        )
    if is_folder:
        _require_one_split(path, files)
    return files


def is_parquet(path: str) -> bool:
    """Returns whether a file is Parquet by its content. Raises OSError."""
    with open(path, "rb") as file:
        return file.read(len(_SIGNATURE)) == _SIGNATURE


def _require_one_split(path: str, files: list[Path]) -> None:
    """Raises DataError for files of both a train and another split, as in the layouts of
    the hub: data/train-00000-of-00002.parquet, train/0000.parquet."""
    patterns = {}
    for file in files:
        folder, name = file.relative_to(path).parent, _SHARD.split(file.stem)[0]
        for split, shards in (
            (name, folder / f"{name}*.parquet"),
            (folder.name, folder / "*.parquet"),
        ):
            if is_split(split):
                patterns.setdefault(split, Path(path, shards))
    train = list(filter(TRAIN_NAME.fullmatch, patterns))
    if train and len(train) < len(patterns):
        raise DataError(
            f"{path} has the splits {', '.join(patterns)}; name the files of one: "
            f"{patterns[train[0]]}"
        )


class ParquetTable:
    """The rows of Parquet files, in order.

    Args:
      files: with the same columns.

    Attributes:
      path: the file, or the folder of several, for messages.
      files: as given.
      schemas: Arrow schema of each file.
      columns: that all files have.
      groups: (file number, row group) of each row group.
      starts: number of the first row of each group, and of all rows at the end.
      errors: what reading may raise.

    Raises:
      MissingInputError: the package pyarrow is not installed.
      DataError: a file is a pipe or a device, is not Parquet, or has two columns of
        one name.
    """

    def __init__(self, files: list[Path]):
        try:
            import pyarrow
            import pyarrow.parquet
        except ImportError:
            raise MissingInputError(
                f"{files[0]} needs the package pyarrow: pip install pyarrow"
            ) from None
        self.path = str(files[0] if len(files) == 1 else files[0].parent)
        self.files, self.schemas, self._footers = files, [], []
        self._parquet = pyarrow.parquet
        self.errors = (pyarrow.ArrowException, OSError)
        for file in files:
            require_regular(file)
            with self.parquet_errors(file):
                footer = pyarrow.parquet.read_metadata(file)
                schema = footer.schema.to_arrow_schema()
            require_unique(str(file), schema.names)
            self.schemas.append(schema)
            self._footers.append(footer)
        self.columns = [
            name
            for name in self.schemas[0].names
            if all(name in schema.names for schema in self.schemas)
        ]
        self.groups = [
            (number, group)
            for number, footer in enumerate(self._footers)
            for group in range(footer.num_row_groups)
        ]
        rows = (self.group(*one).num_rows for one in self.groups)
        self.starts = list(itertools.accumulate(rows, initial=0))

    def values(self, column: str) -> list:
        """Returns a whole column; values without a Python type are MalformedRecord."""
        values = []
        for number, group in self.groups:
            with self.parquet_errors(self.files[number]):
                values += as_python(self.read_group(number, group, column))
        return values

    def group(self, number: int, group: int):
        """Returns pyarrow's metadata of a row group of file `number`."""
        return self._footers[number].row_group(group)

    def leaves(self, number: int, column: str) -> list[str]:
        """Returns the paths of a column's leaves, e.g. "image.bytes" and "image.path".

        Args:
          number: of the file.
          column: name of the column.
        """
        footer = self._footers[number]
        paths = (footer.schema.column(i).path for i in range(footer.num_columns))
        return [path for path in paths if f"{path}.".startswith(f"{column}.")]

    def read_group(self, number: int, group: int, column: str):
        """Returns a column of a row group, or a leaf of it, as a pyarrow array.

        Args:
          number: of the file.
          group: of the file.
          column: name of the column, or path of a leaf.

        Raises:
          DataError: it is larger than MAX_ROW_GROUP_BYTES.
        """
        self.require_small(number, group, column)
        footer = self._footers[number]
        # Opened each time, with the parsed footer: of thousands of files none stays open.
        with self._parquet.ParquetFile(self.files[number], metadata=footer) as file:
            read = file.read_row_group(group, columns=[column]).column(0)
        # Some damaged files decode to fewer values without an error of pyarrow.
        if len(read) != footer.row_group(group).num_rows:
            raise OSError(f"row group {group} is not as long as the footer says")
        return read

    def require_small(self, number: int, group: int, column: str) -> None:
        """Raises DataError if a column of a row group is too large; see `read_group`."""
        size = self.num_bytes(number, group, column)
        if size > MAX_ROW_GROUP_BYTES:
            raise DataError(
                f"{self.files[number]}: a row group has {size:,} bytes of {column}; "
                f"expected at most {MAX_ROW_GROUP_BYTES:,}: write it with smaller ones, "
                f"row_group_size=100"
            )

    def num_bytes(self, number: int, group: int, column: str) -> int:
        """Returns the unpacked bytes of a column in a row group; see `read_group`."""
        about = self.group(number, group)
        chunks = map(about.column, range(about.num_columns))
        return sum(
            chunk.total_uncompressed_size
            for chunk in chunks
            if f"{chunk.path_in_schema}.".startswith(f"{column}.")
        )

    @contextlib.contextmanager
    def parquet_errors(self, file: Path) -> Iterator[None]:
        """Raises errors of reading a file as DataError."""
        try:
            yield
        except self.errors as error:
            raise DataError(f"{file}: not Parquet: {error}") from None


def require_unique(path: str, columns: list[str]) -> None:
    """Raises DataError if two columns have one name.

    Args:
      path: of the file, for the message.
      columns: names; an empty one is no name.
    """
    repeated = {name for name in columns if name and columns.count(name) > 1}
    if repeated:
        raise DataError(
            f"{path} has the column {min(repeated)} twice; rename or remove one"
        )


def as_python(array) -> list:
    """Returns the values of a pyarrow array; a MalformedRecord for one without a Python
    type."""
    try:
        return array.to_pylist()
    except (ValueError, OverflowError):  # of one value, e.g. text that is not UTF-8
        return [_scalar(value) for value in array]


def _scalar(value):
    try:
        return value.as_py()
    except (ValueError, OverflowError) as error:
        return MalformedRecord(f"a {value.type} that cannot be read: {error}")
