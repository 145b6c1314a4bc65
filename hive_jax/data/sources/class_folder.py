"""Folders of classes: path/CLASS/.../IMAGE."""

import collections
import os
import unicodedata
from collections.abc import Iterator, Sequence

from hive_jax.data.class_captions import class_caption
from hive_jax.data.image_io import HEADER_BYTES, image_format, unread_format
from hive_jax.data.invalid import InvalidSample, format_counts
from hive_jax.data.sources.base import SourceOptions
from hive_jax.data.sources.classes import note_on_numbers, require_distinct
from hive_jax.data.sources.file_names import TRAIN_NAME, is_leftover, is_split
from hive_jax.data.sources.image_store import FolderStore, explain_link
from hive_jax.data.sources.image_text import ImageTextSource
from hive_jax.errors import DataError, MissingInputError

# Files of other suffixes are opened to see whether they are images, which would take
# long for all files of a large dataset.
_SUFFIXES = (".jpg", ".jpeg", ".png", ".webp", ".gif", ".bmp")
_IMAGE = "image"


def open_class_folder(path: str, options: SourceOptions) -> ImageTextSource:
    """Opens path/CLASS/.../IMAGE, sorted by name.

    Files are images by their content, whatever their suffix. Other files are left out
    and counted in `notes`; leftovers of systems are ignored.

    Args:
      path: the folder.
      options: of the run.

    Raises:
      MissingInputError: there is no such folder.
      DataError: it has no such files, has links that are not followed, has splits in
        place of classes, has a class in two spellings, or cannot be read.
    """
    if not os.path.isdir(path):
        is_file = os.path.isfile(path)
        problem = "is a file; expected a folder" if is_file else "no such folder"
        raise MissingInputError(f"data.source: {path}: {problem}")
    try:
        folders, loose = _scan_root(path)
        # By name: the order of a disk differs between machines.
        files = sorted(name for folder in folders for name in _walk(path, folder))
    except OSError as error:
        raise DataError(f"{path} cannot be read: {error}") from None
    store = FolderStore(path)
    kinds = [_kind(store, name) for name in files]
    names = [name for name, kind in zip(files, kinds, strict=True) if kind == _IMAGE]
    left_out = collections.Counter(kind for kind in kinds if kind != _IMAGE)
    left_out.update(
        f"{_kind(store, name)} outside of the class folders" for name in loose
    )
    # macOS decomposes characters: a class has one name on all systems.
    labels = [unicodedata.normalize("NFC", name.split("/")[0]) for name in names]
    classes = sorted(set(labels))
    _require_classes(path, classes, left_out)
    _require_no_splits(path, classes, names)
    _require_level(path, classes, names)
    require_distinct(path, classes)
    return ImageTextSource(
        path,
        names,
        [class_caption(label) for label in labels],
        store,
        options.with_image,
        labels,
        classes,
        (
            *_notes(path, folders, names, left_out),
            *note_on_numbers(path, classes, "name the folders after the classes"),
        ),
    )


def _scan_root(path: str) -> tuple[list[str], list[str]]:
    """The names of the folders, and of the files beside them; without leftovers."""
    with os.scandir(path) as scanned:
        entries = [entry for entry in scanned if not is_leftover(entry.name)]
    for entry in entries:
        if entry.is_symlink():
            _require_inside(path, entry.name)
    folders = sorted(entry.name for entry in entries if entry.is_dir())
    return folders, [entry.name for entry in entries if not entry.is_dir()]


def _walk(root: str, folder: str) -> Iterator[str]:
    """Yields paths relative to `root` of the files in a folder and those below it."""
    with os.scandir(os.path.join(root, folder)) as entries:
        for entry in entries:
            name = f"{folder}/{entry.name}"
            if is_leftover(entry.name):
                continue
            if entry.is_symlink():
                _require_inside(root, name)
            if not entry.is_dir():
                yield name
            elif entry.is_symlink():  # which may lead to a folder above, in a circle
                raise DataError(f"{root}/{name}: {explain_link(root)}")
            else:
                yield from _walk(root, name)


def _require_inside(root: str, name: str) -> None:
    """Raises DataError if a link leads out of `root`."""
    real, real_root = (os.path.realpath(p) for p in (os.path.join(root, name), root))
    if os.path.commonpath((real, real_root)) != real_root:
        raise DataError(f"{root}/{name}: {explain_link(root)}")


def _kind(store: FolderStore, name: str) -> str:
    """_IMAGE for a file to read; else the format or suffix, to count by."""
    suffix = os.path.splitext(name)[1].lower()
    if suffix in _SUFFIXES:
        return _IMAGE
    try:
        header = store.read_header(name, HEADER_BYTES)
    except InvalidSample as invalid:
        return invalid.reason
    if image_format(header):
        return _IMAGE
    return unread_format(header) or suffix or "without suffix"


def _require_classes(
    path: str, classes: Sequence[str], left_out: collections.Counter
) -> None:
    """Raises DataError if no folder has an image."""
    if not classes:
        found = f"; it has {format_counts(left_out)}" if left_out else ""
        raise DataError(
            f"{path}: expected folders of images, one for each class{found}"
        )


def _require_no_splits(path: str, classes: Sequence[str], names: Sequence[str]) -> None:
    """Raises DataError if folders are splits and not classes.

    A single folder named as a split may be a class, such as trains beside buses, unless
    it consists of folders, which are the classes then.
    """
    flat = {name.split("/")[0] for name in names if name.count("/") == 1}
    splits = sorted(
        filter(is_split, classes), key=lambda x: not TRAIN_NAME.fullmatch(x)
    )
    train = list(filter(TRAIN_NAME.fullmatch, splits))
    if (
        (train and len(train) < len(splits))
        or len(splits) == len(classes)
        or any(name not in flat for name in splits)
    ):
        raise DataError(
            f"{path} has the splits {', '.join(splits)} in place of classes; name one of "
            f"them: folder:{os.path.join(path, splits[0])}"
        )


def _require_level(path: str, classes: Sequence[str], names: Sequence[str]) -> None:
    """Raises DataError if the only class is a folder of class folders."""
    below = sorted({name.split("/")[1] for name in names})
    if len(classes) == 1 and len(below) > 1 and all(n.count("/") > 1 for n in names):
        folder = os.path.join(path, names[0].split("/")[0])
        raise DataError(
            f"{path}: all images are in the folders {', '.join(below[:3])}, ... of one "
            f"class, {classes[0]}; if these are the classes, name folder:{folder}"
        )


def _notes(
    path: str,
    folders: Sequence[str],
    names: Sequence[str],
    left_out: collections.Counter,
) -> tuple[str, ...]:
    """Lines on the files and folders that are left out."""
    notes = []
    if left_out:
        counts = format_counts(dict(left_out.most_common()))
        notes.append(f"{path}: {left_out.total()} files left out: {counts}")
    if empty := sorted({*folders} - {name.split("/")[0] for name in names}):
        notes.append(
            f"{path}: folders without an image, which are not classes: {', '.join(empty)}"
        )
    return tuple(notes)
