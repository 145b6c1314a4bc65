"""Records of a set from JSON, JSON lines or Parquet."""

from pathlib import Path

from hive_jax.data.sets.parquet import ParquetStore, parquet_files
from hive_jax.data.sets.text import Broken, as_json, as_utf8
from hive_jax.errors import DataError, MissingInputError


def read_records(path: str) -> tuple[list, ParquetStore | None]:
    """All records of a set, and the store of the images that are in its files.

    With such a store, the `image` of a record is its number, as text. What cannot be
    read is `Broken`.

    Raises:
      MissingInputError: there is no such file.
      DataError: it is not of one of the formats.
    """
    source = Path(path)
    if source.is_dir() or source.suffix == ".parquet":
        return _from_parquet(parquet_files(path))
    if not source.is_file():
        raise MissingInputError(f"data.source: {path}: no such file")
    try:
        text = as_utf8(source.read_bytes(), path)
    except OSError as error:
        raise DataError(f"{path} cannot be read: {error.strerror}") from None
    if text.lstrip()[:1] == "[":
        return as_json(text, path), None
    lines = [(n, x) for n, x in enumerate(text.split("\n"), 1) if x.strip()]
    records = [_line(line, number) for number, line in lines]
    if not any(isinstance(record, dict) for record in records):
        raise DataError(
            f"{path} is neither a JSON list nor JSON lines"
            + (f": {records[0]}" if records else ": it is empty")
        )
    return records, None


def _line(line: str, number: int):
    try:
        return as_json(line, f"line {number}")
    except DataError as error:
        return Broken(error)


def _from_parquet(files: list[Path]):
    store = ParquetStore(files, "image")
    if "conversations" not in store.columns:
        raise DataError(
            f"{store.path} has the columns {', '.join(store.columns)}; expected "
            f"conversations and image"
        )
    rows = zip(store.values("conversations"), store.present(), strict=True)
    records = [
        turns
        if isinstance(turns, Broken)
        else {"conversations": turns, "image": str(number) if present else None}
        for number, (turns, present) in enumerate(rows)
    ]
    return records, store
