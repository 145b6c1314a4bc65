"""LLaVA's caption sets: a JSON list, and the images in a folder.

    [{"id": "1", "image": "GCC_train_1.jpg",
      "conversations": [{"from": "human", "value": "Describe it.\n<image>"},
                        {"from": "gpt", "value": "a dog on a beach"}]}, ...]

Read in the "plain" form, as LLaVA's and HIVE's pre-training do: the instruction is
dropped, the text is the caption and a newline, all of it supervised.
"""

import hashlib
import json
from pathlib import Path

from hive_jax.data.batch import Sample, Segment
from hive_jax.data.images import read_image
from hive_jax.errors import DataError, MissingInputError


class LlavaCaptions:
    """Random access to one split. The first `validation_size` records are
    "validation", the others "train".

    Raises:
      MissingInputError: the JSON file, the folder or the first image is not there.
      DataError: the file is not such a list; names the record.
    """

    def __init__(
        self,
        path: str,
        image_folder: str,
        split: str,
        *,
        image_size: int,
        validation_size: int,
        preprocessing: str,
    ):
        self._folder = Path(image_folder).resolve()
        self._size, self._preprocessing = image_size, preprocessing
        content = _read(Path(path), "data.path")
        if not self._folder.is_dir():
            raise MissingInputError(f"data.image_folder={image_folder}: no such folder")
        try:
            records = json.loads(content)
        except ValueError as error:
            raise DataError(f"{path} is not JSON: {error}") from None
        if not isinstance(records, list) or len(records) <= validation_size:
            raise DataError(
                f"{path}: expected a list of more than data.validation_size = "
                f"{validation_size} records"
            )
        pairs = [_image_and_caption(path, i, r) for i, r in enumerate(records)]
        held_out = slice(validation_size) if split == "validation" else None
        self._pairs = pairs[held_out or slice(validation_size, None)]
        self._image_path(self._pairs[0][0])  # a wrong folder shows before training
        digest = hashlib.sha256(content)
        digest.update(f"{split} {validation_size} {preprocessing}".encode())
        self.fingerprint = digest.hexdigest()[:16]

    def __len__(self) -> int:
        return len(self._pairs)

    def __getitem__(self, index: int) -> Sample:
        name, caption = self._pairs[index]
        path = self._image_path(name)
        image = read_image(path, self._size, self._preprocessing)
        return Sample(image, (Segment(caption.strip() + "\n"),))

    def _image_path(self, name: str) -> Path:
        path = (self._folder / name).resolve()
        if not path.is_relative_to(self._folder):
            raise DataError(f"image {name!r} is outside of {self._folder}")
        if not path.is_file():
            raise MissingInputError(f"{path}: no such image; check data.image_folder")
        return path


def _read(path: Path, key: str) -> bytes:
    if not path.is_file():
        raise MissingInputError(f"{key}={path}: no such file")
    return path.read_bytes()


def _image_and_caption(path: str, number: int, record) -> tuple[str, str]:
    try:
        turns = record["conversations"]
        caption = next(turn["value"] for turn in turns if turn["from"] == "gpt")
        image = record["image"]
    except (KeyError, TypeError, StopIteration):
        raise DataError(
            f"{path}: record {number} has no image, or no turn from gpt"
        ) from None
    if not isinstance(image, str) or not isinstance(caption, str):
        raise DataError(f"{path}: record {number}: image and value must be strings")
    return image, caption
