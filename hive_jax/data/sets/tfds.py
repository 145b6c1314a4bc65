"""Sets that TensorFlow Datasets has prepared as ArrayRecord; without TensorFlow."""

import hashlib
import re

from hive_jax.data.bad import BadSample
from hive_jax.data.batch import Sample, Segment
from hive_jax.data.sets.pairs import class_name, of_class, require_text
from hive_jax.data.sets.text import Broken
from hive_jax.data.sets.tfds_folders import PREPARE, open_builder
from hive_jax.errors import DataError, MissingInputError


class Tfds:
    """Random access to a split.

    Args:
      name: of the set, "coco_captions" or "NAME/CONFIG:1.0.0", or the folder of one
        version of it.
      folder: that has the sets; empty for TFDS's own.
      split: TFDS's words for a part, "train" or "train[:10%]".
      image: the feature with the image.
      text: the feature with the text ("captions/text" is inside of a sequence, of
        which the first is taken), or with the class; empty: the one there is.
      with_image: False for text alone.

    Raises:
      MissingInputError: the set is not there, or tensorflow_datasets.
      DataError: it is not ArrayRecord, or has no such split or feature.
    """

    def __init__(
        self,
        name: str,
        *,
        folder: str,
        split: str,
        image: str,
        text: str,
        with_image: bool = True,
    ):
        try:
            import tensorflow_datasets as tfds
        except ImportError:
            raise MissingInputError(
                "tfds needs a package: pip install tensorflow-datasets array_record"
            ) from None
        self._name, self._split, self._with_image = name, split, with_image
        builder = open_builder(tfds, name, folder)
        images, texts = _usable(builder.info.features, tfds.features)
        self._image, _ = _chosen(name, "image", images, image)
        self._text, kind = _chosen(name, "text", texts, text)
        self._classes = getattr(kind, "names", None)
        self.classes = tuple(self._classes or ())
        decoders = tfds.decode.SkipDecoding()
        for key in reversed(self._image):
            decoders = {key: decoders}
        try:
            self._records = builder.as_data_source(split=split, decoders=decoders)
            count = len(self._records)
        except NotImplementedError:
            raise DataError(
                f"{name} is {builder.info.file_format.value}; expected array_record: "
                f"prepare it with {PREPARE}"
            ) from None
        except Exception as error:  # noqa: BLE001 (of every kind, by the split's words)
            known = ", ".join(builder.info.splits)
            raise DataError(
                f"{name}, split {split}: {error}; its splits are {known}"
            ) from None
        if not count:
            raise DataError(f"{name}, split {split}: it has no samples")
        about = (
            *(builder.info.full_name, split, count),
            *(self._image, self._text, self._classes),
            [
                (part, info.shard_lengths, info.num_bytes)
                for part, info in builder.info.splits.items()
                if part in re.split(r"[\[+]|\]\+?", split)
            ],
        )
        self.fingerprint = hashlib.sha256(repr(about).encode()).hexdigest()[:16]

    def __len__(self) -> int:
        return len(self._records)

    def __getitem__(self, index: int) -> Sample:
        """Sample `index`; its image is the content of a file. Raises BadSample."""
        where = self.where(index)
        try:
            record = self._records[index]
        except Exception as error:  # noqa: BLE001 (of every kind, by what is damaged)
            raise BadSample("damaged", where, str(error)) from None
        words = require_text(self._words(record), where)
        image = _at(record, self._image) if self._with_image else None
        if self._classes is None:
            return Sample(image, (Segment(words + "\n"),))
        return Sample(image, (Segment(of_class(words) + "\n"),), label=words)

    def where(self, index: int) -> str:
        return f"{self._name}, {self._split}, record {index}"

    def _words(self, record: dict) -> str:
        value = _at(record, self._text)
        if self._classes is not None:
            return class_name(int(value), self._classes)
        if not isinstance(value, bytes):
            value = value[0] if len(value) else b""
        try:
            return value.decode("utf-8")
        except UnicodeDecodeError as error:
            return Broken(f"{'/'.join(self._text)} is not UTF-8: {error}")


def _at(record: dict, keys: tuple[str, ...]):
    for key in keys:
        record = record[key]
    return record


def _chosen(name: str, option: str, known: dict, path: str) -> tuple[tuple, object]:
    """(keys, feature) of the path, or of the only one there is."""
    found = [item for item in known.items() if "/".join(item[0]) == path or not path]
    if len(found) == 1:
        return found[0]
    listed = (
        ", ".join(sorted("/".join(keys) for keys in known)) or f"none has {option}s"
    )
    raise DataError(
        f"tfds:{name}: {option}={path or '?'}; expected one of its features: {listed}"
    )


def _usable(features, kinds) -> tuple[dict, dict]:
    """The images, and the texts and classes: (key, ...) -> feature."""
    images, texts = {}, {}

    def look(feature, keys: tuple, in_sequence: bool) -> None:
        if isinstance(feature, kinds.FeaturesDict):
            for key, inner in feature.items():
                look(inner, (*keys, key), in_sequence)
        elif isinstance(feature, kinds.Sequence) and not in_sequence:
            look(feature.feature, keys, True)
        elif isinstance(feature, kinds.Image) and not in_sequence:
            images[keys] = feature
        elif _is_text(feature, kinds) or (
            isinstance(feature, kinds.ClassLabel) and not in_sequence
        ):
            texts[keys] = feature

    look(features, (), False)
    return images, texts


def _is_text(feature, kinds) -> bool:
    """`Text`, or what newer sets have in its place."""
    is_scalar = isinstance(feature, kinds.Tensor) and feature.shape == ()
    return is_scalar and feature.np_dtype == object
