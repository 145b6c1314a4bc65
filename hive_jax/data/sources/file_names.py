"""Names of files: safe, leftovers of systems, splits, equal spellings, and the nearest."""

import collections
import itertools
import re
import unicodedata
from collections.abc import Iterable

from hive_jax.data.invalid import InvalidSample
from hive_jax.data.sources.base import is_utf8

_DRIVE_OR_SCHEME = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*:")

# Besides names with a dot in front: .DS_Store, ._photo.jpg, .ipynb_checkpoints.
_LEFTOVERS = {
    "__macosx",  # zips made by macOS
    "@eadir",  # Synology
    "#recycle",
    "@recycle",  # QNAP
    "$recycle.bin",
    "desktop.ini",
    "ehthumbs.db",
    "lost+found",
    "system volume information",
    "thumbs.db",
}
# Of names with one stem, such as "image" in a folder for each sample.
_MAX_CANDIDATES = 1000

# Names of folders and files that are splits: "train", "val2017", "test_images". STL-10
# and COCO have "unlabeled", SVHN has "extra".
TRAIN_NAME, OTHER_SPLIT_NAME = (
    re.compile(rf"({names})([ _-]?(set|data|images|split|\d{{4}}))?", re.IGNORECASE)
    for names in (
        "train|training",
        "test|testing|val|valid|validation|dev|eval|unlabell?ed|extra",
    )
)


def is_safe(name: str) -> bool:
    """Returns whether the name stays below the root on every system."""
    return not (
        not name
        or len(name) > 1024
        or "\0" in name
        or "\\" in name  # separates folders on Windows
        or name.startswith(("/", "~"))  # "~" may be expanded to the home folder
        or ".." in name.split("/")
        or _DRIVE_OR_SCHEME.match(name)
        or not is_utf8(name)
    )


def require_safe(name: str, where: str) -> None:
    """Raises InvalidSample unless `name` stays below the root.

    Args:
      name: path relative to the root.
      where: the file and record, for the error.
    """
    if not is_safe(name):
        raise InvalidSample("unsafe path", where, explain_unsafe(name))


def explain_unsafe(name: str) -> str:
    """Returns what is expected of a name that `is_safe` refuses."""
    hint = ", with / and not \\ between folders" * ("\\" in name)
    return f"expected a path below the folder of images{hint}"


def is_split(name: str) -> bool:
    """Returns whether a folder or file of this name is usually a split of a dataset."""
    return bool(TRAIN_NAME.fullmatch(name) or OTHER_SPLIT_NAME.fullmatch(name))


def is_leftover(name: str) -> bool:
    """Returns whether systems and tools leave files or folders of this name behind."""
    return name.startswith(".") or name.lower() in _LEFTOVERS


def canonical(name: str) -> str:
    """Returns one spelling of a path: composed characters, "/", no "./" and no "//".

    macOS decomposes characters: "é" becomes "e" and an accent.
    """
    components = name.replace("\\", "/").split("/")
    return unicodedata.normalize("NFC", "/".join(c for c in components if c not in "."))


class NameIndex:
    """Finds the existing name that is most like a missing one.

    Args:
      names: all existing names; leftovers are skipped.
    """

    def __init__(self, names: Iterable[str]):
        self._by_stem = collections.defaultdict(list)
        self._example = ""
        for name in names:
            if not any(map(is_leftover, canonical(name).split("/"))):
                self._example = self._example or name
                self._by_stem[_stem(name)].append(name)

    def explain_missing(self, name: str, root: str) -> str:
        """Returns a message for a missing name, with the most similar one.

        Args:
          name: the missing name.
          root: the folder or zip, as the option images= has it.
        """
        nearest = self.nearest(name)
        hint = f"the nearest: {nearest}" if nearest else "it has no files at all"
        if nearest.endswith(f"/{name}"):
            hint += f" (images={root}/{nearest.removesuffix(f'/{name}')})"
        return f"no such file; {hint}"

    def nearest(self, name: str) -> str:
        """Returns the most similar name of the same stem, else any; "" if there is none.

        The same stem means another folder, another suffix, or another case.
        """
        candidates = self._by_stem.get(_stem(name), [])[:_MAX_CANDIDATES]
        return max(candidates, key=lambda c: _likeness(c, name), default=self._example)


def _stem(name: str) -> str:
    return _components(name)[0]


def _components(name: str) -> list[str]:
    """The stem, the folder that it is in, the one above, ..."""
    *folders, file = canonical(name).casefold().split("/")
    stem = file.rpartition(".")[0]
    return [stem or file, *folders[::-1]]


def _likeness(one: str, other: str) -> int:
    """The number of equal components, counted from the stem."""
    pairs = zip(_components(one), _components(other))
    return sum(1 for _ in itertools.takewhile(lambda pair: pair[0] == pair[1], pairs))
