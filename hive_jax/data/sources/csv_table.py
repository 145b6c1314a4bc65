"""Tables as text in UTF-8: fields separated by commas, tabs, semicolons or bars."""

import contextlib
import csv
import os
import re
from collections.abc import Iterator

from hive_jax.data.sources.parquet import is_parquet
from hive_jax.errors import DataError
from hive_jax.file_content import explain_file

_LINE_END = re.compile(r"\r\n?|\n")
_SUFFIX = re.compile(r"\.\w{1,5}$")
_QUOTES = 'a quote that is text is written twice, in quotes: "say ""hi"""'
_DELIMITERS = (",", "\t", ";", "|")
_MAX_FIELD = 1_000_000  # characters
_OTHERS = {
    b"PK\3\4": "a zip or an Excel workbook: save the table as CSV",
    b"\xd0\xcf\x11\xe0": "an Excel workbook: save the table as CSV",
    b"ARRO": "an Arrow file: write it as Parquet",
    b"\xff\xff\xff\xff": "an Arrow stream: use hf: for a folder of save_to_disk",
    b"[": "JSON: use llava: for conversations",
    b"{": "JSON: use llava: for conversations",
}


def is_text_table(path: str) -> bool:
    """Returns whether a path is a file of text, whatever its suffix, and not Parquet.

    Raises:
      DataError: the file is neither, or cannot be read.
    """
    if not os.path.isfile(path) or path.lower().endswith(".parquet"):
        return False
    try:
        with open(path, "rb") as file:
            start = file.read(4)
    except OSError as error:
        raise DataError(f"{path} cannot be read: {error.strerror}") from None
    for signature, name in _OTHERS.items():
        if start.startswith(signature):
            raise DataError(f"{path}: expected CSV, TSV or Parquet; it is {name}")
    if not start:
        raise DataError(f"{path} is empty; expected a header and rows")
    if explanation := explain_file(path):
        raise DataError(f"{path} {explanation}")
    return not is_parquet(path)


class CsvRows(csv.DictReader):
    """Rows of a table as column -> field.

    Attributes:
      begin: the line after the previous row; the latest row, or a blank line before it,
        begins there.
    """

    begin = 1

    def __next__(self) -> dict:
        self.begin = self.line_num + 1
        return super().__next__()


@contextlib.contextmanager
def open_rows(path: str, column: str) -> Iterator[CsvRows]:
    """Opens the rows of a table, with the delimiter of the header.

    Args:
      path: the file.
      column: that the header should have.

    Raises:
      DataError: it is not such a table.
    """
    before, rows = csv.field_size_limit(_MAX_FIELD), None
    try:
        with open(path, encoding="utf-8-sig", newline="") as file:
            delimiter = _delimiter(file.readline(), column)
            file.seek(0)
            rows = CsvRows(
                file, delimiter=delimiter, strict=True, skipinitialspace=True
            )
            yield rows
    except UnicodeDecodeError as error:
        raise DataError(f"{path} is not CSV in UTF-8: {error}") from None
    except csv.Error as error:
        # The line in which a quote was found to be wrong may be far from that quote.
        begin, end = (rows.begin, rows.reader.line_num) if rows else (1, 1)
        lines = f"line {begin}" if begin >= end else f"lines {begin} to {end}"
        raise DataError(
            f"{path}, {lines}: not CSV: {error}. A field that begins with a quote ends "
            f"with one; {_QUOTES}"
        ) from None
    except OSError as error:
        raise DataError(f"{path} cannot be read: {error.strerror}") from None
    finally:
        csv.field_size_limit(before)


def _delimiter(header: str, column: str) -> str:
    """The delimiter with which the header has the column, else the most columns."""
    columns = {
        delimiter: next(csv.reader([header], delimiter=delimiter), [])
        for delimiter in _DELIMITERS
    }
    return max(columns, key=lambda d: (column in columns[d], len(columns[d])))


def closed_rows(path: str, rows: CsvRows, key: str) -> Iterator[dict]:
    """Yields rows, and checks that no quote that was left open joins several to one.

    A field of several lines may be a caption in quotes. It has swallowed rows if one of
    its lines has the delimiter and, in the key column, a value like the key of its own
    row; in a table of tabs, if it has a tab.

    Args:
      path: of the table, for the error.
      rows: from `open_rows`.
      key: the column of the images, or of the numbers of the rows.

    Raises:
      DataError: a field swallows rows.
    """
    column = rows.fieldnames.index(key)
    for row in rows:
        if rows.line_num > rows.begin:
            _require_closed(path, rows, row, column)
        yield row


def _require_closed(path: str, rows: CsvRows, row: dict, column: int) -> None:
    """Raises DataError if a field of a row of several lines has swallowed rows."""
    values = [*map(row.get, rows.fieldnames), *row.get(None, ())]
    fields = [_LINE_END.split(value) for value in values if value is not None]
    kind = _key_kind(fields[column][-1]) if column < len(fields) else None
    line = rows.line_num - sum(len(lines) - 1 for lines in fields)
    for number, lines in enumerate(fields):
        delimiter = rows.reader.dialect.delimiter
        swallowed = _first_row(lines, number, delimiter, column, kind)
        if swallowed:
            raise DataError(
                f"{path}, line {line}: the field in quotes that begins here ends in line "
                f"{line + len(lines) - 1} and has rows of the table in it: "
                f"{swallowed[:80]!r}. Close the quote before; {_QUOTES}"
            )
        line += len(lines) - 1


def _first_row(
    lines: list[str],
    number: int,
    delimiter: str,
    column: int,
    kind: tuple[str, bool] | None,
) -> str:
    """The first line of a field that is a row or the rest of one; "" if none is.

    Args:
      lines: of the field.
      number: of its column.
      delimiter: between columns.
      column: number of the key column.
      kind: of the key of the same row, from `_key_kind`.
    """
    if len(lines) == 1:
        return ""
    # The first line begins at this column, the others at the first.
    starts = [number] + [0] * (len(lines) - 1)
    for line, start in zip(lines, starts, strict=True):
        columns = [*csv.reader([line], delimiter=delimiter, skipinitialspace=True)]
        columns = columns[0] if columns else []
        has_key = start <= column < start + len(columns)
        if len(columns) > 1 and (
            delimiter == "\t"
            or (kind and has_key and _key_kind(columns[column - start]) == kind)
        ):
            return line
    return ""


def _key_kind(key: str) -> tuple[str, bool] | None:
    """What the keys of a table have in common: their suffix ("" for numbers), and
    whether they have spaces. None for other keys."""
    key = key.strip()
    suffix = _SUFFIX.search(key)
    if suffix:
        # Without spaces in its names a table has no row "See a.jpg, or b.jpg".
        return suffix[0].lower(), " " in key
    return ("", False) if key.isdecimal() else None
