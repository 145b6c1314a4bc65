"""Names what a file is in place of what was expected, by its first bytes."""

import contextlib
import os

_EXPLANATIONS = {
    b"\xff\xfe": "is UTF-16; expected UTF-8",
    b"\xfe\xff": "is UTF-16; expected UTF-8",
    b"\x1f\x8b": "is compressed with gzip: unpack it with gunzip",
    b"PK\3\4": "is a zip: unpack it",
    b"version https://git-lfs.github.com/spec/": "is a pointer of Git LFS in place of "
    "the file: get the file with git lfs pull",
}
_LONGEST = max(map(len, _EXPLANATIONS))


def explain_content(content: bytes) -> str:
    """Returns what a file is and what to do, "is a zip: unpack it"; "" if not known.

    Args:
      content: the first bytes of the file, or all.
    """
    starts = (start for start in _EXPLANATIONS if content.startswith(start))
    return next((_EXPLANATIONS[start] for start in starts), "")


def explain_file(path: str | os.PathLike) -> str:
    """Returns `explain_content` of a file; "" if it cannot be read."""
    with contextlib.suppress(OSError), open(path, "rb") as file:
        return explain_content(file.read(_LONGEST))
    return ""
