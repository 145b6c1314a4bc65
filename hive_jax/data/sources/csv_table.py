"""Tables as text in UTF-8: fields separated by commas, tabs, semicolons or bars."""

import contextlib
import csv
import os
from collections.abc import Iterator

from hive_jax.data.sources.parquet import is_parquet
from hive_jax.errors import DataError
from hive_jax.file_content import explain_file

_DELIMITERS = (",", "\t", ";", "|")
_MAX_FIELD = 1_000_000  # characters
_OTHERS = {
    b"PK\3\4": "a zip or an Excel workbook: save the table as CSV",
    b"\xd0\xcf\x11\xe0": "an Excel workbook: save the table as CSV",
    b"ARRO": "an Arrow file: write it as Parquet",
    b"\xff\xff\xff\xff": "an Arrow stream: hf: reads folders of save_to_disk",
    b"[": "JSON; llava: reads conversations",
    b"{": "JSON; llava: reads conversations",
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


@contextlib.contextmanager
def open_rows(path: str, column: str) -> Iterator[csv.DictReader]:
    """Opens the rows of a table; the header tells the delimiter.

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
            rows = csv.DictReader(
                file, delimiter=delimiter, strict=True, skipinitialspace=True
            )
            yield rows
    except UnicodeDecodeError as error:
        raise DataError(f"{path} is not CSV in UTF-8: {error}") from None
    except csv.Error as error:
        line = rows.reader.line_num if rows else 1
        raise DataError(
            f"{path}, line {line}: not CSV: {error}. A field that begins with a quote "
            'ends with one, and has its own quotes twice: "say ""hi"""'
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
