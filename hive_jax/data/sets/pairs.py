"""Sets of images with a text each; and folders of classes as such."""

import hashlib
import os
from collections.abc import Sequence

from hive_jax.data.bad import BadSample
from hive_jax.data.batch import Sample, Segment
from hive_jax.data.sets.stores import FolderStore
from hive_jax.data.sets.text import Broken, is_utf8
from hive_jax.errors import DataError, MissingInputError

_SUFFIXES = (".jpg", ".jpeg", ".png", ".webp", ".gif", ".bmp")


class Pairs:
    """Random access to pairs of an image and a text.

    Args:
      path: what messages call the set.
      names: of the images in `store`.
      texts: beside them; an empty or Broken one is a bad sample.
      with_image: False for text alone; no image is read then.
      labels: the name of the class of each, where they have one.
      classes: all names there can be, in order.
    """

    def __init__(
        self,
        path: str,
        names: Sequence[str],
        texts: Sequence[str],
        store,
        with_image: bool = True,
        labels: Sequence[str] = (),
        classes: Sequence[str] = (),
    ):
        if not names:
            raise DataError(f"{path} has no samples")
        self._path, self._names, self._texts = path, names, texts
        self._store, self._with_image = store, with_image
        self._labels, self.classes = labels, tuple(classes)
        digest = hashlib.sha256()
        for name, text in zip(names, texts, strict=True):
            said = None if isinstance(text, Broken) else text
            digest.update(repr((name, said)).encode("utf-8", "surrogatepass"))
        self.fingerprint = digest.hexdigest()[:16]

    def __len__(self) -> int:
        return len(self._names)

    def __getitem__(self, index: int) -> Sample:
        """Sample `index`; its image is the content of a file. Raises BadSample."""
        text = require_text(self._texts[index], self.where(index))
        image = self._store.read(self._names[index]) if self._with_image else None
        label = self._labels[index] if self._labels else ""
        return Sample(image, (Segment(text + "\n"),), label=label)

    def where(self, index: int) -> str:
        return f"{self._path}, record {index}, image {self._names[index]}"


def require_text(text: str, where: str) -> str:
    """The text without space around it. Raises BadSample if it says nothing."""
    if isinstance(text, Broken):
        raise BadSample("record", where, text)
    if not text.strip():
        raise BadSample("record", where, "has no text")
    if not is_utf8(text):
        raise BadSample("record", where, "its text has half of a character")
    return text.strip()


def of_class(name: str) -> str:
    """The caption of an image of which only the class is known."""
    return f"a photo of a {name.replace('_', ' ')}"


def class_name(label: int, names: Sequence[str]) -> str:
    """The name of class number `label`; Broken if there is none."""
    if 0 <= label < len(names):
        return names[label]
    return Broken(f"is of class {label}; expected 0 to {len(names) - 1}")


def open_class_folder(path: str, with_image: bool = True) -> Pairs:
    """path/CLASS/.../IMAGE, sorted; other files are left alone.

    Raises:
      MissingInputError: there is no such folder.
      DataError: it has no such files, or cannot be read.
    """
    if not os.path.isdir(path):
        raise MissingInputError(f"data.source: {path}: no such folder")
    try:
        classes = sorted(one.name for one in os.scandir(path) if one.is_dir())
        found = [name for one in classes for name in _images(path, one)]
    except OSError as error:
        raise DataError(f"{path} cannot be read: {error}") from None
    if not found:
        raise DataError(f"{path}: expected folders of images, one for each class")
    names = sorted(found)
    labels = [name.split("/")[0] for name in names]
    texts = list(map(of_class, labels))
    store = FolderStore(path)
    return Pairs(path, names, texts, store, with_image, labels, sorted(set(labels)))


def _images(root: str, name: str) -> list[str]:
    """The paths, from the root, of the image files in a folder and those below it."""

    def fail(error: OSError):
        raise error

    return [
        os.path.relpath(os.path.join(folder, file), root)
        for folder, _, files in os.walk(os.path.join(root, name), onerror=fail)
        for file in files
        if file.lower().endswith(_SUFFIXES)
    ]
