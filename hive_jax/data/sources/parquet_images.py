"""The images of Parquet rows, by row number.

A row has its image as bytes, as {bytes, path}, as the name of a file elsewhere (a path
without bytes, or a text), or as a list of one of these.
"""

import bisect
import collections
import functools
import threading
from typing import NamedTuple

from hive_jax.data.image_io import require_size
from hive_jax.data.invalid import InvalidSample
from hive_jax.data.sources.image_store import ImageStore, open_store
from hive_jax.data.sources.parquet import MAX_ROW_GROUP_BYTES, ParquetTable
from hive_jax.errors import ConfigError, DataError, MissingInputError


def open_images(
    table: ParquetTable, column: str, images: str, with_image: bool
) -> "ParquetImages":
    """Opens the images of a table, which are in it, or named by it.

    Args:
      table: the rows.
      column: of the images.
      images: folder or zip of the files that the rows name; empty for none.
      with_image: False if no image will be read.

    Raises:
      MissingInputError: there is no such folder, or rows name files and `images` is
        empty.
      ConfigError: `images` is given, and no row names a file.
      DataError: the column holds no images, or a row group is too large.
    """
    files = open_store(images, "images") if images else None
    store = ParquetImages(table, column, files)
    count = store.num_named() if images or with_image else 0
    if images and not count:
        raise ConfigError(
            f"images={images}: the column {column} of {table.path} names no file, it "
            f"holds the images; leave images= out"
        )
    if count and not images:
        raise MissingInputError(
            f"{table.path} names {count} images and has no bytes of them; say where "
            f"they are: images=FOLDER_OR_ZIP"
        )
    return store


class _RowImage(NamedTuple):
    """An image of a row: whether its bytes are there, and its path or ""."""

    has_bytes: bool
    path: str


class ImageKind(NamedTuple):
    """What a column of images has in a file."""

    bytes: bool
    names: bool


class ParquetImages:
    """Images of Parquet rows by row number.

    Parquet is read a row group at a time: a shuffled run over a large dataset reads a
    whole group for nearly every image. Use hive_jax.prepare_data to convert these.

    Args:
      table: the rows.
      column: of the images.
      named: the files of images that rows name, and have no bytes of.

    Attributes:
      path: of the table.
      has_images: False if the column is null in all files.

    Raises:
      DataError: the column holds no images, or a row group is too large.
    """

    def __init__(
        self, table: ParquetTable, column: str, named: ImageStore | None = None
    ):
        self.path = table.path
        self._table, self._column, self._named = table, column, named
        self._kinds = [
            _require_images(str(file), schema, column)
            for file, schema in zip(table.files, table.schemas, strict=True)
        ]
        self.has_images = any(any(kind) for kind in self._kinds)
        for number, group in table.groups:
            table.require_small(number, group, column)
        self._cache = collections.OrderedDict()
        self._lock = threading.Lock()

    def counts(self) -> list[int]:
        """Returns the number of images of each row."""
        return [len(images) for images in self._rows]

    def num_named(self) -> int:
        """Returns the number of images that rows name, and have no bytes of."""
        if not any(kind.names for kind in self._kinds):
            return 0  # without a look at each row
        return sum(not image.has_bytes for images in self._rows for image in images)

    def image_name(self, name: str) -> str:
        """Returns the path of a row's image, or a name that no other row has."""
        path = self._paths[int(name)] if self._paths else ""
        return f"{self.path}/{path}" if path else f"{self.path}, row {name}"

    def has(self, name: str) -> bool:
        """Returns whether row number `name` has an image, or names an existing file."""
        for image in self._rows[int(name)][:1]:
            return image.has_bytes or bool(self._named and self._named.has(image.path))
        return False

    def explain_missing(self, name: str) -> str:
        """Returns what the row lacks, with the name nearest to that of its image."""
        for image in self._rows[int(name)][:1]:
            if self._named:
                return self._named.explain_missing(image.path)
        return "the row has no bytes of an image"

    def read(self, name: str) -> bytes:
        """Returns the image bytes in row number `name`. Raises InvalidSample."""
        row = int(name)
        position = bisect.bisect_right(self._table.starts, row) - 1
        where = f"{self._table.files[self._table.groups[position][0]]}, row {row}"
        try:
            # One thread reads a row group, the others wait for it: each for itself would
            # unpack half a gigabyte of its own.
            with self._lock:
                images = self._images(position)
            value = images[row - self._table.starts[position]].as_py()
        except self._table.errors as error:
            raise InvalidSample("damaged", where, str(error)) from None
        values = [image for image in _as_list(value) if image is not None]
        if len(values) > 1:
            detail = f"has {len(values)} images; expected one at most"
            raise InvalidSample("record", where, detail)
        content, path = split_image(values[0]) if values else (None, "")
        if content is None and path and self._named:
            return self._named.read(path)
        if content is None:
            raise InvalidSample("missing", where, "the row has no bytes of an image")
        require_size(len(content), where)
        return content

    def _images(self, position: int):
        """The images of a row group, from the cache of those read last."""
        if position not in self._cache:
            number, group = self._table.groups[position]
            size = self._table.num_bytes(number, group, self._column)
            while (
                self._cache
                and size + sum(images.nbytes for images in self._cache.values())
                > MAX_ROW_GROUP_BYTES
            ):
                self._cache.popitem(last=False)
            self._cache[position] = self._table.read_group(number, group, self._column)
        self._cache.move_to_end(position)
        return self._cache[position]

    @functools.cached_property
    def _paths(self) -> list[str]:
        """The path of each row's image; empty where these do not tell images apart, for
        some writers give all the same one."""
        if not any(kind.names for kind in self._kinds):
            return []
        paths = [images[0].path if images else "" for images in self._rows]
        return paths if len(set(paths) - {""}) > 1 else []

    @functools.cached_property
    def _rows(self) -> list[list[_RowImage]]:
        """The images of each row."""
        rows = []
        for number, group in self._table.groups:
            with self._table.parquet_errors(self._table.files[number]):
                rows += self._group_rows(number, group)
        return rows

    def _group_rows(self, number: int, group: int) -> list[list[_RowImage]]:
        """The images of the rows of a group, without reading their bytes if the footer's
        statistics and the paths tell where there are any."""
        kind, count = self._kinds[number], self._table.group(number, group).num_rows
        if not any(kind):
            return [[]] * count
        leaves = self._table.leaves(number, self._column)
        content = next((x for x in leaves if x.endswith(".bytes")), leaves[0])
        path = next((x for x in leaves if x.endswith(".path")), leaves[0])
        values, nulls = self._count_values(number, group, content)
        # As many values as rows, none of them null: each row has the bytes of one image.
        if not kind.names and nulls == 0 and values == count:
            return [[_RowImage(True, "")]] * count
        has_bytes = None if kind.bytes else False  # None: not known yet
        if kind.names:
            rows = self._read_rows(number, group, path)
            absent = sum(max(1, len(row)) - len(_present(row)) for row in rows)
            # Nulls only where there is no image: all images have bytes. Nulls everywhere:
            # none has. Else each row is looked at.
            if has_bytes is None and nulls in (absent, values):
                has_bytes = nulls == absent
        if has_bytes is None:
            rows = self._read_rows(number, group, self._column)
        return [[*_row_images(row, has_bytes)] for row in rows]

    def _read_rows(self, number: int, group: int, column: str) -> list[list]:
        read = self._table.read_group(number, group, column).to_pylist()
        return [_as_list(value) for value in read]

    def _count_values(self, number: int, group: int, leaf: str) -> tuple[int, int]:
        """The (values, nulls) of a leaf; nulls of -1 where the footer does not say."""
        about = self._table.group(number, group)
        chunks = map(about.column, range(about.num_columns))
        chunk = next(chunk for chunk in chunks if chunk.path_in_schema == leaf)
        statistics = chunk.statistics
        known = statistics is not None and statistics.has_null_count
        return chunk.num_values, statistics.null_count if known else -1


def _row_images(row: list, has_bytes: bool | None) -> list[_RowImage]:
    """The images of a row; has_bytes is None where the row has the bytes itself."""
    images = []
    for value in _present(row):
        content, path = split_image(value)
        image = _RowImage(content is not None if has_bytes is None else has_bytes, path)
        images += [image] if image.has_bytes or path else []
    return images


def split_image(value: dict | bytes | str) -> tuple[bytes | None, str]:
    """Returns the bytes of an image, None if it has none, and its path or ""."""
    if isinstance(value, dict):
        return value.get("bytes"), value.get("path") or ""
    return (None, value) if isinstance(value, str) else (value, "")


def _as_list(value) -> list:
    return value if isinstance(value, list) else [value]


def _present(row: list) -> list:
    return [value for value in row if value is not None]


def _require_images(path: str, schema, column: str) -> ImageKind:
    """Returns what a column has. Raises DataError if it holds no images."""
    if column not in schema.names:
        raise DataError(
            f"{path} has the columns {', '.join(schema.names)}; expected one with "
            f"images, {column}"
        )
    kind = schema.field(column).type
    has = image_kind(kind)
    if has is None:
        raise DataError(
            f"{path}: the column {column} is {kind}; expected the bytes of images, or "
            f"names of files"
        )
    return has


def image_kind(kind) -> ImageKind | None:
    """Returns whether values of an Arrow type have bytes of images, and names of files;
    None for any other type."""
    from pyarrow import types

    is_list = (
        *(types.is_list, types.is_large_list, types.is_fixed_size_list),
        *(types.is_list_view, types.is_large_list_view),
    )
    if any(test(kind) for test in is_list):
        return image_kind(kind.value_type)
    if types.is_dictionary(kind):
        return image_kind(kind.value_type)
    if types.is_struct(kind):
        fields = {f.name: image_kind(f.type) for f in kind}
        content, path = fields.get("bytes"), fields.get("path")
        has = ImageKind(bool(content and content.bytes), bool(path and path.names))
        return has if content or path else None
    is_bytes = (
        *(types.is_binary, types.is_large_binary, types.is_binary_view),
        types.is_fixed_size_binary,
    )
    is_text = (types.is_string, types.is_large_string, types.is_string_view)
    has = ImageKind(any(test(kind) for test in is_bytes), any(t(kind) for t in is_text))
    return has if any(has) or types.is_null(kind) else None
