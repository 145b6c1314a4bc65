"""What the end of a Parquet file says of it, and what it may say.

A file of some kilobytes may unpack to terabytes. One that unpacks to far more than it
is, is refused before anything of it is read.
"""

from pathlib import Path

from hive_jax.errors import DataError

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
