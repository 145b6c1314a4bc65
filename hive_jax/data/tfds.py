"""Sets that TensorFlow Datasets has prepared as ArrayRecord; without TensorFlow."""

import hashlib
import os

from hive_jax.data.bad import BadSample
from hive_jax.data.batch import Sample, Segment
from hive_jax.data.pairs import of_class
from hive_jax.errors import DataError, MissingInputError

_PREPARE = "tfds.builder(NAME, file_format='array_record').download_and_prepare()"


class Tfds:
    """Random access to a split.

    Args:
      name: of the set, "coco_captions", or the folder of one version of it.
      folder: that has the sets; empty for TFDS's own.
      split: TFDS's words for a part, "train" or "train[:10%]".
      image: the feature with the image.
      text: the feature with the text ("captions/text" is inside of a sequence, of
        which the first is taken), or with the class; empty: the one there is.

    Raises:
      MissingInputError: the set is not there, or tensorflow_datasets.
      DataError: it is not ArrayRecord, or has no such split or feature.
    """

    def __init__(self, name: str, *, folder: str, split: str, image: str, text: str):
        try:
            import tensorflow_datasets as tfds
        except ImportError:
            raise MissingInputError(
                "tfds needs a package: pip install tensorflow-datasets array_record"
            ) from None
        self._name, self._split = name, split
        builder = _builder(tfds, name, folder)
        features = builder.info.features
        self._image = _chosen(name, features, image, (tfds.features.Image,))
        kinds = (tfds.features.Text, tfds.features.ClassLabel)
        self._text = _chosen(name, features, text, kinds)
        kind = _feature(features, self._text)
        is_class = isinstance(kind, tfds.features.ClassLabel)
        self._class_name = kind.int2str if is_class else None
        try:
            self._records = builder.as_data_source(
                split=split, decoders={self._image: tfds.decode.SkipDecoding()}
            )
        except NotImplementedError:
            raise DataError(
                f"{name} is {builder.info.file_format.value}; expected array_record: "
                f"prepare it with {_PREPARE}"
            ) from None
        except (ValueError, KeyError) as error:
            raise DataError(f"{name}, split {split}: {error}") from None
        about = (
            *(builder.info.full_name, split, len(self._records)),
            *(self._image, self._text),
            [(n, s.shard_lengths, s.num_bytes) for n, s in builder.info.splits.items()],
        )
        self.fingerprint = hashlib.sha256(repr(about).encode()).hexdigest()[:16]

    def __len__(self) -> int:
        return len(self._records)

    def __getitem__(self, index: int) -> Sample:
        """Sample `index`; its image is the content of a file. Raises BadSample."""
        try:
            record = self._records[index]
        except (RuntimeError, ValueError, IndexError) as error:
            raise BadSample("damaged", self.where(index), str(error)) from None
        text = self._words(record)
        if not text:
            raise BadSample("record", self.where(index), f"{self._text} has no text")
        return Sample(record[self._image], (Segment(text + "\n"),))

    def where(self, index: int) -> str:
        return f"{self._name}, {self._split}, record {index}"

    def _words(self, record: dict) -> str:
        value = record
        for part in self._text.split("/"):
            value = value[part]
        if self._class_name:
            return of_class(self._class_name(value))
        if not isinstance(value, bytes):
            value = value[0] if len(value) else b""
        return value.decode("utf-8", "replace").strip()


def _builder(tfds, name: str, folder: str):
    why = "nothing is prepared"
    try:
        if os.path.isdir(name):
            builder = tfds.builder_from_directory(name)
        else:
            builder = tfds.builder(name, data_dir=folder or None)
        if builder.info.splits:
            return builder
    except Exception as error:  # noqa: BLE001 (of every kind, by the library's modules)
        why = str(error).splitlines()[0]
    raise MissingInputError(
        f"tfds:{name} is not there: {why}. Prepare it with {_PREPARE}, or name the "
        f"folder of a version of it"
    )


def _feature(features, path: str):
    for part in path.split("/"):
        features = getattr(features, "feature", features)[part]
    return getattr(features, "feature", features)


def _chosen(name: str, features, path: str, kinds: tuple) -> str:
    """The path of the feature, or of the only one of the kinds."""
    known = list(_paths(features, kinds))
    if path in known:
        return path
    if path or len(known) != 1:
        option = "image" if len(kinds) == 1 else "text"
        raise DataError(
            f"tfds:{name}: {option}={path or '?'}; expected one of {', '.join(known)}"
        )
    return known[0]


def _paths(features, kinds: tuple, prefix: str = ""):
    for name, feature in features.items():
        inner = getattr(feature, "feature", feature)
        if isinstance(inner, kinds):
            yield prefix + name
        elif hasattr(inner, "items"):
            yield from _paths(inner, kinds, f"{prefix}{name}/")
