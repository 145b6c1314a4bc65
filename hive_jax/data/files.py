"""A folder that one process writes, with files that are whole or not there."""

import contextlib
import fcntl
import json
import os
from pathlib import Path

from hive_jax.errors import OutputError


@contextlib.contextmanager
def alone(folder: Path):
    """Makes the folder, and holds it against other writers until the end of this one,
    be it a kill. OutputError if another is writing, or it cannot be made."""
    with written(folder):
        folder.mkdir(parents=True, exist_ok=True)
        descriptor = os.open(folder, os.O_RDONLY)
    try:
        with contextlib.suppress(OSError):  # a file system without locks
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                raise OutputError(f"{folder}: another process is writing it") from None
        yield
    finally:
        os.close(descriptor)


@contextlib.contextmanager
def written(path: Path):
    """Turns errors of the disk, as Python and ArrayRecord have them, into OutputError."""
    try:
        yield
    except (OSError, RuntimeError) as error:
        raise OutputError(f"cannot write {path}: {error}") from error


def write_text(path: Path, text: str) -> None:
    """Writes a file whole or not at all. Raises OutputError."""
    temporary = path.with_name(f".{path.name}.tmp")
    with written(path):
        temporary.write_text(text, "utf-8")
        os.replace(temporary, path)


def write_json(path: Path, value) -> None:
    """The same for JSON, as people read it."""
    write_text(path, json.dumps(value, indent=2) + "\n")


def as_lines(records) -> str:
    """JSON, a record a line."""
    return "".join(json.dumps(record) + "\n" for record in records)


def read_json(path: Path) -> dict | None:
    """An object that `write_json` wrote; None if it is not there, or not whole."""
    with written(path):
        if not path.exists():
            return None
        content = path.read_bytes()
    try:
        value = json.loads(content)
    except ValueError:
        return None
    return value if isinstance(value, dict) else None
