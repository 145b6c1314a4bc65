"""The members of samples in WebDataset tars, read by the number of the sample."""

import collections
import hashlib
import os
from collections.abc import Sequence

import numpy as np

from hive_jax.data.image_io import require_size
from hive_jax.data.invalid import InvalidSample
from hive_jax.data.sources.tar_index import read_index
from hive_jax.errors import DataError


def count_extensions(shards: Sequence[str]) -> collections.Counter:
    """Returns extension -> number of samples that have it. Raises DataError."""
    return collections.Counter(
        extension
        for shard in shards
        for _, members in read_index(shard)
        for extension in members
    )


class TarMembers:
    """Two members of each sample, an image and a text, or fewer.

    Args:
      shards: paths of the tars.
      images: extensions of images; a sample has one of them at most.
      text: extension of the texts.

    Attributes:
      names: of the samples, without extension.

    Raises:
      DataError: a tar is damaged, or a sample has several images.
    """

    def __init__(self, shards: Sequence[str], images: Sequence[str], text: str):
        self._shards, self._kinds = shards, (" or ".join(images), text)
        self.names, numbers, positions = [], [], []
        for number, shard in enumerate(shards):
            for name, members in read_index(shard):
                found = [extension for extension in images if extension in members]
                if len(found) > 1:
                    raise DataError(
                        f"{shard}, sample {name} has {' and '.join(found)}; choose one: "
                        f"image={found[0]} or image={found[1]}"
                    )
                image = members[found[0]] if found else (-1, -1)
                positions.append((image, members.get(text, (-1, -1))))
                self.names.append(name)
                numbers.append(number)
        # Arrays, for lists of tuples would need ten times the memory.
        self._numbers = np.array(numbers, np.int32)
        self._positions = np.array(positions, np.int64)  # [samples, member, 2]

    def __len__(self) -> int:
        return len(self.names)

    def describe(self, index: int) -> str:
        """Returns the tar and the name of a sample."""
        return f"{self._shards[self._numbers[index]]}, sample {self.names[index]}"

    def has_image(self, index: int) -> bool:
        """Returns whether a sample has an image."""
        return self._positions[index, 0, 0] >= 0

    def read_image(self, index: int) -> bytes:
        """Returns the file of an image. Raises InvalidSample."""
        return self._read(index, 0)

    def read_text(self, index: int) -> bytes:
        """Returns the file of a text. Raises InvalidSample."""
        return self._read(index, 1)

    def digest(self) -> str:
        """Returns a hash of names, sizes and positions, not of the contents."""
        sizes = [(os.path.basename(s), os.path.getsize(s)) for s in self._shards]
        about = repr((sizes, self.names, self._kinds))
        digest = hashlib.sha256(about.encode("utf-8", "surrogatepass"))
        digest.update(self._positions.tobytes())
        return digest.hexdigest()

    def _read(self, index: int, member: int) -> bytes:
        where, kind = self.describe(index), self._kinds[member]
        offset, size = self._positions[index, member].tolist()
        if offset < 0:
            raise InvalidSample("missing", where, f"has no {kind}")
        require_size(size, where)
        try:
            # Opened each time: thousands of tars would exceed the limit of open files.
            # pread has no position, which threads would have to share.
            with open(self._shards[self._numbers[index]], "rb", buffering=0) as file:
                content = os.pread(file.fileno(), size, offset)
        except OSError as error:
            raise InvalidSample("unreadable", where, str(error.strerror)) from None
        if len(content) < size:
            raise InvalidSample("damaged", where, f"{kind} is cut off in the tar")
        return content
