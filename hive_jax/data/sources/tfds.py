"""Sets that TensorFlow Datasets has prepared as ArrayRecord; without TensorFlow."""

import hashlib
import os
import re
from pathlib import Path

from hive_jax.data.invalid import InvalidSample
from hive_jax.data.sources.base import MalformedRecord
from hive_jax.data.sources.image_text import class_name, of_class, require_text
from hive_jax.data.types import Sample, Segment
from hive_jax.errors import DataError, MissingInputError

PREPARE = "tfds.builder(NAME, file_format='array_record').download_and_prepare()"
_FILE = "features.json"  # that each version has


def open_builder(tfds, name: str, folder: str):
    """The set as TFDS's builder.

    Args:
      tfds: the module.
      name: NAME[/CONFIG][:VERSION], or the folder of a version.
      folder: that has the sets; empty for TFDS's own.

    Raises:
      MissingInputError: it is not there.
    """
    place = Path(name)
    if not (place / _FILE).is_file():
        place = _newest(name, Path(folder or _default_folder()))
    try:
        builder = tfds.builder_from_directory(str(place))
        if builder.info.splits:
            return builder
        why = f"nothing is prepared in {place}"
    except Exception as error:  # noqa: BLE001 (of every kind, by what is damaged)
        why = f"{place}: {str(error).splitlines()[0] if str(error) else repr(error)}"
    raise _missing(name, why)


def _default_folder() -> str:
    return os.path.expanduser(os.environ.get("TFDS_DATA_DIR", "~/tensorflow_datasets"))


def _newest(name: str, root: Path) -> Path:
    """The folder of the version, or of the newest."""
    path, _, version = name.partition(":")
    found = [file.parent for file in root.glob(f"{_escaped(path)}/*/{_FILE}")]
    if not found:
        configs = root.glob(f"{_escaped(path)}/*/*/{_FILE}")
        names = sorted({f"{path}/{file.parts[-3]}" for file in configs})
        if names:
            raise _missing(name, f"it has configs, {', '.join(names)}")
        raise _missing(name, f"{root / path} has no prepared version")
    known = {place.name: place for place in found}
    if version and version not in known:
        raise _missing(name, f"its versions are {', '.join(sorted(known))}")
    return known[version or max(known, key=_as_numbers)]


def _escaped(path: str) -> str:
    return re.sub(r"([*?[])", r"[\1]", path.strip("/"))


def _as_numbers(version: str) -> list[int]:
    return [int(number) for number in re.findall(r"\d+", version)]


def _missing(name: str, why: str) -> MissingInputError:
    return MissingInputError(
        f"tfds:{name} is not there: {why}. Prepare it with {PREPARE}, or name the "
        f"folder of a version of it"
    )


class TfdsSource:
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
        """Sample `index`; its image is the content of a file. Raises InvalidSample."""
        where = self.where(index)
        try:
            record = self._records[index]
        except Exception as error:  # noqa: BLE001 (of every kind, by what is damaged)
            raise InvalidSample("damaged", where, str(error)) from None
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
            return MalformedRecord(f"{'/'.join(self._text)} is not UTF-8: {error}")


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
