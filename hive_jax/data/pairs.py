"""Sets of images with a text or a class each: folders of classes, CSV, Parquet."""

import csv
import hashlib
import json
from collections.abc import Sequence
from pathlib import Path

from hive_jax.data.bad import BadSample
from hive_jax.data.batch import Sample, Segment
from hive_jax.data.records import ParquetStore, parquet_files
from hive_jax.data.stores import FolderStore, open_store
from hive_jax.errors import ConfigError, DataError, MissingInputError

_SUFFIXES = (".jpg", ".jpeg", ".png", ".webp", ".gif", ".bmp")


class Pairs:
    """Random access to pairs of an image and a text.

    Args:
      path: what messages call the set.
      names: of the images in `store`.
      texts: beside them; an empty one is a bad sample.
    """

    def __init__(self, path: str, names: Sequence[str], texts: Sequence[str], store):
        if not names:
            raise DataError(f"{path} has no samples")
        self._path, self._names, self._texts = path, names, texts
        self._store = store
        digest = hashlib.sha256()
        for name, text in zip(names, texts, strict=True):
            digest.update(repr((name, text)).encode("utf-8", "surrogatepass"))
        self.fingerprint = digest.hexdigest()[:16]

    def __len__(self) -> int:
        return len(self._names)

    def __getitem__(self, index: int) -> Sample:
        """Sample `index`; its image is the content of a file. Raises BadSample."""
        text = self._texts[index].strip()
        if not text:
            raise BadSample("record", self.where(index), "has no text")
        image = self._store.read(self._names[index])
        return Sample(image, (Segment(text + "\n"),))

    def where(self, index: int) -> str:
        return f"{self._path}, record {index}, image {self._names[index]}"


def of_class(name: str) -> str:
    """The caption of an image of which only the class is known."""
    return f"a photo of a {name.replace('_', ' ')}"


def open_class_folder(path: str) -> Pairs:
    """path/CLASS/.../IMAGE, in the order of the names; other files are left alone."""
    root = Path(path)
    if not root.is_dir():
        raise MissingInputError(f"data.source: {path}: no such folder")
    found = sorted(
        file.relative_to(root).as_posix()
        for file in root.glob("*/**/*")
        if file.suffix.lower() in _SUFFIXES
    )
    if not found:
        raise DataError(f"{path}: expected folders of images, one for each class")
    texts = [of_class(name.split("/")[0]) for name in found]
    return Pairs(path, found, texts, FolderStore(path))


def open_table(path: str, *, images: str, image: str, text: str, label: str) -> Pairs:
    """A .csv with a header, .parquet, or a folder of .parquet.

    Args:
      images: the folder or zip that has the images of a CSV.
      image, text, label: columns. The text, or else the class that `label` names; of
        Parquet by Hugging Face, a class may be a number.

    Raises:
      MissingInputError: something is not there.
      DataError, ConfigError: it is no such table.
    """
    if not path.endswith(".csv"):
        return _open_parquet(path, image, text, label)
    if not Path(path).is_file():
        raise MissingInputError(f"data.source: {path}: no such file")
    if not images:
        raise ConfigError(f"data.source: {path}: say where its images are, images=...")
    try:
        with open(path, encoding="utf-8-sig", newline="") as file:
            rows = csv.DictReader(file)
            column = _column(path, rows.fieldnames or [], image, text, label)
            table = [(row[image] or "", row[column] or "") for row in rows]
    except (csv.Error, UnicodeDecodeError) as error:
        raise DataError(f"{path} is not CSV in UTF-8: {error}") from None
    texts = [t if column == text else of_class(t) if t else "" for _, t in table]
    return Pairs(path, [name for name, _ in table], texts, open_store(images, "images"))


def _column(
    path: str, columns: Sequence[str], image: str, text: str, label: str
) -> str:
    """The column of the texts, or of the classes."""
    chosen = next((name for name in (text, label) if name in columns), None)
    if image not in columns or chosen is None:
        raise DataError(
            f"{path} has the columns {', '.join(columns)}; expected {image}, and "
            f"{text} or {label}: name them with image=, text= and label="
        )
    return chosen


def _open_parquet(path: str, image: str, text: str, label: str) -> Pairs:
    files = parquet_files(path)
    store = ParquetStore(files, image)
    column = _column(path, store.columns, image, text, label)
    values = store.values(column)
    if column == label:
        names = _class_names(store.metadata, label)
        values = [names[v] if isinstance(v, int) and names else v for v in values]
        values = ["" if v is None else of_class(str(v)) for v in values]
    texts = [v if isinstance(v, str) else "" for v in values]
    return Pairs(path, [str(row) for row in range(len(texts))], texts, store)


def _class_names(metadata: dict[bytes, bytes], label: str) -> list[str]:
    """The names of the classes, as Hugging Face's datasets keeps them in a schema."""
    try:
        features = json.loads(metadata[b"huggingface"])["info"]["features"]
        return list(features[label]["names"])
    except (KeyError, TypeError, ValueError):
        return []
