"""Files and folders that appear complete or not at all."""

import contextlib
import json
import os
import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path

from hive_jax.errors import OutputError


@contextlib.contextmanager
def new_folder(path: str | os.PathLike) -> Iterator[Path]:
    """A folder to fill, which gets its name when the block ends without an error.

    Raises:
      OutputError: there is something at `path`, or it cannot be written.
    """
    path = Path(path)
    require_absent(path)
    temporary = _temporary(path)
    try:
        temporary.mkdir(parents=True)
        yield temporary
        for file in temporary.rglob("*"):
            _flush(file)
        _flush(temporary)
        os.rename(temporary, path)
        _flush(path.parent)
    except OSError as error:
        raise OutputError(
            f"cannot write {path}: {error}; nothing is left of it"
        ) from error
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


@contextlib.contextmanager
def new_file(path: str | os.PathLike) -> Iterator[Path]:
    """The same for one file."""
    path = Path(path)
    require_absent(path)
    temporary = _temporary(path)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        yield temporary
        _flush(temporary)
        os.rename(temporary, path)
        _flush(path.parent)
    except OSError as error:
        raise OutputError(f"cannot write {path}: {error}") from error
    finally:
        temporary.unlink(missing_ok=True)


def _temporary(path: Path) -> Path:
    """Where to write what will be `path`. What killed processes left there is removed."""
    for left in path.parent.glob(f".{path.name}.*.tmp"):
        process = left.name.split(".")[-2]
        if process.isdigit() and not _is_running(int(process)):
            if left.is_dir():
                shutil.rmtree(left, ignore_errors=True)
            else:
                left.unlink(missing_ok=True)
    return path.with_name(f".{path.name}.{os.getpid()}.tmp")


def _is_running(process: int) -> bool:
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except OSError:  # somebody else's
        return True
    return True


def require_absent(path: str | os.PathLike) -> None:
    """Raises OutputError if there is something at `path`."""
    if os.path.lexists(path):
        raise OutputError(f"{path} exists and is not overwritten: choose another name")


def write_json(path: Path, value: Mapping) -> None:
    """Writes a JSON object as people read it."""
    path.write_text(json.dumps(value, indent=2) + "\n", encoding="utf-8")


def _flush(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
