"""Rows of the package `datasets` as columns of values and a store of images."""

import functools
import itertools
import os

from hive_jax.data.image_io import require_size
from hive_jax.data.invalid import InvalidSample
from hive_jax.data.sources.image_store import FolderStore
from hive_jax.data.sources.parquet import as_python
from hive_jax.data.sources.parquet_images import image_kind, split_image
from hive_jax.errors import DataError


class HubTable:
    """The rows of one split, in Arrow, so that no image is decoded.

    Args:
      path: its name in messages.
      rows: a datasets.Dataset.
      root: the folder of the files that rows name.

    Attributes:
      path: as given.
      columns: names of all columns.
    """

    def __init__(self, path: str, rows, root: str):
        self.path, self.columns = path, rows.column_names
        self._rows, self._root = rows.with_format("arrow"), root
        self._features = rows.features

    def __len__(self) -> int:
        return len(self._rows)

    def values(self, column: str) -> list:
        """Returns a whole column; values without a Python type are MalformedRecord."""
        return as_python(self._column(column))

    def class_names(self, column: str) -> list[str]:
        """Returns the names of the classes of a column; empty if it has none."""
        return list(getattr(self._features[column], "names", None) or [])

    def image_columns(self) -> list[str]:
        """Returns the columns of images, or of lists of images."""
        schema = self._features.arrow_schema
        kinds = {name: image_kind(schema.field(name).type) for name in self.columns}
        return [name for name, kind in kinds.items() if kind and kind.bytes]

    def images(self, column: str) -> "HubImages":
        """Returns the images of a column. Raises DataError if there is none."""
        if column not in self.image_columns():
            raise DataError(
                f"{self.path} has the columns {', '.join(self.columns)}, of which "
                f"{', '.join(self.image_columns()) or 'none'} are of images; image is "
                f"{column!r}"
            )
        return HubImages(self.path, self._rows.select_columns([column]), self._root)

    def _column(self, column: str):
        # Selected first: of a dataset that was filtered, `[:]` copies all columns.
        return self._rows.select_columns([column])[:].column(0)


class HubImages:
    """Images by row number.

    Args:
      path: of the table, for messages.
      rows: a datasets.Dataset in Arrow, whose only column has the images.
      root: the folder of the files that rows name.
    """

    def __init__(self, path: str, rows, root: str):
        self.path, self._rows, self._root = path, rows, os.path.abspath(root)
        self._files = FolderStore(self._root)

    def counts(self) -> list[int]:
        """Returns the number of images of each row, without reading their bytes."""
        return self._counts_and_column[0]

    def has(self, name: str) -> bool:
        return int(name) < len(self._rows)

    def explain_missing(self, name: str) -> str:
        return f"there are {len(self._rows)} rows"

    def image_name(self, name: str) -> str:
        """Returns the path of a row's image, or a name that no other row has."""
        path = self._paths[int(name)] if self._paths else ""
        return f"{self.path}/{path}" if path else f"{self.path}, row {name}"

    @functools.cached_property
    def _counts_and_column(self) -> tuple:
        """(images of each row, pyarrow array of all images)"""
        import pyarrow.compute

        # Memory-mapped: the bytes of the images are not read.
        column = self._rows[:].column(0)
        if hasattr(column.type, "value_type"):
            lengths = pyarrow.compute.list_value_length(column).fill_null(0)
            return lengths.to_pylist(), pyarrow.compute.list_flatten(column)
        return list(map(int, column.is_valid().to_pylist())), column.drop_null()

    @functools.cached_property
    def _paths(self) -> list[str]:
        """The path of each row's first image; empty where these do not tell images
        apart, for some writers give all the same one."""
        import pyarrow.compute

        counts, images = self._counts_and_column
        if not pyarrow.types.is_struct(images.type):
            return []
        paths = pyarrow.compute.struct_field(images, "path").to_pylist()
        if len(set(paths) - {None, ""}) < 2:
            return []
        starts = itertools.accumulate(counts, initial=0)
        return [paths[start] if n else "" for n, start in zip(counts, starts)]

    def read(self, name: str) -> bytes:
        """Returns the image bytes in row number `name`. Raises InvalidSample."""
        where = f"{self.path}, row {name}"
        value = self._rows[int(name)].column(0)[0].as_py()
        images = value if isinstance(value, list) else [value]
        content, path = split_image(images[0]) if images else (None, "")
        if content is None and path:
            # A name in a dataset of somebody else may not lead out of its folder.
            return self._files.read(os.path.relpath(path, self._root))
        if content is None:
            raise InvalidSample("missing", where, "the row has no image")
        require_size(len(content), where)
        return content
