"""Datasets that TensorFlow Datasets has prepared as ArrayRecord; without TensorFlow.

TFDS stores them as FOLDER/NAME[/CONFIG]/VERSION. They are opened from these folders;
the code that made them, which most often needs TensorFlow, is not imported.
"""

import hashlib
import os
import re
from pathlib import Path

from hive_jax.data.class_captions import class_caption
from hive_jax.data.invalid import InvalidSample
from hive_jax.data.sources.base import MalformedRecord, SourceOptions
from hive_jax.data.sources.classes import class_name
from hive_jax.data.sources.image_text import require_text
from hive_jax.data.types import Sample, Segment
from hive_jax.errors import ConfigError, DataError, MissingInputError
from hive_jax.io import require_regular

PREPARE = "tfds.builder(NAME, file_format='array_record').download_and_prepare()"
_VERSION_FILE = "features.json"  # in the folder of each version
# Work in progress has folders such as 1.0.0.incompleteABC123_coco_captions.
_VERSION = re.compile(r"\d+\.\d+\.\d+")


class TfdsSource:
    """Random access to a split.

    Args:
      name: of the dataset, "coco_captions" or "NAME/CONFIG:1.0.0", or the folder of one
        version.
      options: of the run.
      dir: the folder of all datasets; empty for TFDS's own.
      split: in TFDS's syntax, "train" or "train[:10%]".
      image: the feature with the image; empty for the only one.
      text: the feature with the text or the class; empty for the only one. Of a
        sequence, as "captions/text", the first text is taken.

    Raises:
      MissingInputError: the dataset or the package tensorflow_datasets is missing.
      DataError: it is not ArrayRecord, or has no such split or feature.
    """

    tag_names = notes = ()
    has_conversations = False

    def __init__(
        self,
        name: str,
        options: SourceOptions,
        *,
        dir: str = "",
        split: str = "train",
        image: str = "",
        text: str = "",
    ):
        try:
            import tensorflow_datasets as tfds
        except ImportError:
            raise MissingInputError(
                "tfds needs a package: pip install tensorflow-datasets array_record"
            ) from None
        self._name, self._split = name, split
        self._with_image = options.with_image
        builder = _open_builder(tfds, name, dir)
        images, texts = _usable_features(builder.info.features, tfds.features)
        self._image, _ = _choose_feature(name, "image", images, image)
        self._text, kind = _choose_feature(name, "text", texts, text)
        class_names = getattr(kind, "names", None)
        self._has_classes = class_names is not None
        self.classes = tuple(class_names or ())
        # Images stay files, which the run decodes as its preprocessing says.
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
        except Exception as error:
            # TFDS's parser of splits raises ValueError, KeyError and AssertionError, the
            # readers of shards errors of their own.
            known = ", ".join(builder.info.splits)
            raise DataError(
                f"{name}, split {split}: {error}; its splits are {known}"
            ) from error
        if not count:
            raise DataError(f"{name}, split {split}: it has no samples")
        about = (
            *(builder.info.full_name, split, count),
            *(self._image, self._text, class_names),
            # Of the splits that are named, as in "train[:10%]+test"; others may change.
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
        """Sample `index`; its image is the bytes of a file. Raises InvalidSample."""
        where = self.describe(index)
        try:
            record = self._records[index]
        except Exception as error:
            # The record reader, protobuf and each feature's decoder have their own types.
            raise InvalidSample("damaged", where, str(error) or repr(error)) from error
        text = require_text(self._text_of(record), where)
        image = _lookup(record, self._image) if self._with_image else None
        if not self._has_classes:
            return Sample(image, (Segment(text + "\n"),))
        return Sample(image, (Segment(class_caption(text) + "\n"),), label=text)

    def image_name(self, index: int) -> None:
        """None: records do not name their images; see DataSource."""

    def describe(self, index: int) -> str:
        return f"{self._name}, {self._split}, record {index}"

    def _text_of(self, record: dict) -> str:
        value = _lookup(record, self._text)
        if self._has_classes:
            return class_name(int(value), self.classes)
        if not isinstance(value, bytes):
            value = value[0] if len(value) else b""
        try:
            return value.decode("utf-8")
        except UnicodeDecodeError as error:
            return MalformedRecord(f"{'/'.join(self._text)} is not UTF-8: {error}")


def _lookup(record: dict, keys: tuple[str, ...]):
    for key in keys:
        record = record[key]
    return record


def _choose_feature(
    name: str, option: str, known: dict, path: str
) -> tuple[tuple, object]:
    """(keys, feature) at the path, or of the only one."""
    matches = [item for item in known.items() if "/".join(item[0]) == path or not path]
    if len(matches) == 1:
        return matches[0]
    listed = (
        ", ".join(sorted("/".join(keys) for keys in known)) or f"none has {option}s"
    )
    raise DataError(
        f"tfds:{name}: {option}={path or '?'}; expected one of its features: {listed}"
    )


def _usable_features(features, kinds) -> tuple[dict, dict]:
    """The images, and the texts and classes, each as (key, ...) -> feature."""
    images, texts = {}, {}

    # Of a sequence, the first text is one of several captions; a first image or class
    # would be an arbitrary one.
    def visit(feature, keys: tuple, in_sequence: bool) -> None:
        if isinstance(feature, kinds.FeaturesDict):
            for key, inner in feature.items():
                visit(inner, (*keys, key), in_sequence)
        elif isinstance(feature, kinds.Sequence) and not in_sequence:
            visit(feature.feature, keys, True)
        elif isinstance(feature, kinds.Image) and not in_sequence:
            images[keys] = feature
        elif _is_text(feature, kinds) or (
            isinstance(feature, kinds.ClassLabel) and not in_sequence
        ):
            texts[keys] = feature

    visit(features, (), False)
    return images, texts


def _is_text(feature, kinds) -> bool:
    """Whether it is a `Text`, or the scalar that newer datasets have in its place."""
    is_scalar = isinstance(feature, kinds.Tensor) and feature.shape == ()
    return is_scalar and feature.np_dtype == object


def _open_builder(tfds, name: str, folder: str):
    """The dataset as TFDS's builder, from its folder. Raises MissingInputError,
    and DataError for a pipe or device among its files."""
    path = Path(name)
    if (path / _VERSION_FILE).is_file():
        if folder:
            raise ConfigError(
                f"tfds:{name},dir={folder}: {name} is the folder of a version; leave dir= "
                f"out"
            )
    else:
        path = _newest_version(name, Path(folder or default_folder()))
    # Opening a pipe would wait for its writer.
    for file in path.iterdir():
        if not file.is_dir():
            require_regular(file)
    try:
        builder = tfds.builder_from_directory(str(path))
    except Exception as error:
        # Of any type: the files in the folder name classes of features to import.
        why = str(error).splitlines()[0] if str(error) else repr(error)
        raise _missing(name, f"{path}: {why}") from error
    if not builder.info.splits:
        raise _missing(name, f"nothing is prepared in {path}")
    return builder


def default_folder() -> str:
    """Returns the folder in which TFDS looks for datasets."""
    return os.path.expanduser(os.environ.get("TFDS_DATA_DIR", "~/tensorflow_datasets"))


def _newest_version(name: str, root: Path) -> Path:
    """The folder of the version that the name has, or of the newest."""
    dataset, _, version = name.partition(":")
    folders = [
        f.parent for f in root.glob(f"{_escape_glob(dataset)}/*/{_VERSION_FILE}")
    ]
    versions = {f.name: f for f in folders if _VERSION.fullmatch(f.name)}
    if not versions:
        configs = root.glob(f"{_escape_glob(dataset)}/*/*/{_VERSION_FILE}")
        names = sorted({f"{dataset}/{file.parts[-3]}" for file in configs})
        if folders:
            unfinished = ", ".join(sorted(folder.name for folder in folders))
            raise _missing(name, f"{root / dataset} has no version but {unfinished}")
        if names:
            raise _missing(name, f"it has configs, {', '.join(names)}")
        raise _missing(name, f"{root / dataset} has no prepared version")
    if version and version not in versions:
        raise _missing(name, f"its versions are {', '.join(sorted(versions))}")
    return versions[version or max(versions, key=_as_numbers)]


def _escape_glob(path: str) -> str:
    return re.sub(r"([*?[])", r"[\1]", path.strip("/"))


def _as_numbers(version: str) -> list[int]:
    return [int(number) for number in version.split(".")]


def _missing(name: str, why: str) -> MissingInputError:
    command = PREPARE.replace("NAME", repr(name))
    return MissingInputError(
        f"tfds:{name} was not found: {why}. Prepare it with {command}, or name the "
        f"folder of a version of it"
    )
