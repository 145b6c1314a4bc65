"""Temporary names beside a file or folder, and flushes to the disk."""

import glob
import os
import secrets
import shutil
from pathlib import Path


def temporary_path(path: Path) -> Path:
    """Returns an unpredictable path beside `path`, and removes leftovers of killed
    processes there."""
    for leftover in path.parent.glob(f".{glob.escape(path.name)}.*.tmp"):
        process = leftover.name.split(".")[-3]
        if process.isdigit() and not _is_running(int(process)):
            if leftover.is_dir() and not leftover.is_symlink():
                shutil.rmtree(leftover, ignore_errors=True)
            else:
                leftover.unlink(missing_ok=True)
    name = f".{path.name}.{os.getpid()}.{secrets.token_hex(8)}.tmp"
    return path.parent / name


def _is_running(process: int) -> bool:
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except OSError:  # it belongs to another user
        return True
    return True


def flush(path: Path) -> None:
    """Writes a file or folder through to the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
