"""Event files, which TensorBoard reads: scalars only.

Written here because the usual writers queue events for a thread of their own: after its
first failed write (a full disk) the queue fills, and the training waits for ever. Nothing
here waits. Several also import TensorFlow or PyTorch.

The format is TensorFlow's: records of protocol buffers of type `Event`
(tensorflow/core/util/event.proto), framed as TFRecord (tensorflow/core/lib/io).
"""

import os
import socket
import struct
import time
from collections.abc import Mapping

import numpy as np

from hive_jax.log_file import LogFile

# Wire types of protocol buffers.
_VARINT, _FIXED64, _BYTES, _FIXED32 = 0, 1, 2, 5


class EventFile:
    """A new event file of a run, next to those of earlier starts.

    Args:
      folder: path of the event files; created.
      step: the run continues after this step: TensorBoard drops later events of
        earlier files.

    Raises:
      OutputError: as `write`.
    """

    def __init__(self, folder, step: int):
        # TensorBoard finds files by "tfevents", and reads them in order of their names.
        name = f"events.out.tfevents.{time.time():.6f}.{socket.gethostname()}.{os.getpid()}"
        self._file = LogFile(folder / name)
        self._append(_field(3, b"brain.Event:2"))  # file_version
        # session_log with status START.
        self._append(_field(2, step + 1) + _field(7, _field(1, 1)))

    def write(self, step: int, values: Mapping[str, float]) -> None:
        """Appends the scalars of a step.

        Args:
          step: number of updates done.
          values: name -> value.

        Raises:
          OutputError: they cannot be written; the file is as before.
        """
        summary = b"".join(
            _field(1, _field(1, name.encode()) + _field(2, float(value)))
            for name, value in values.items()
        )
        self._append(_field(2, step) + _field(5, summary))

    def _append(self, event: bytes) -> None:
        wall_time = struct.pack("<Bd", 1 << 3 | _FIXED64, time.time())
        self._file.append(_record(wall_time + event))


def _field(number: int, value: float | bytes) -> bytes:
    """Returns a field of a protocol buffer: int64, float or embedded message."""
    if isinstance(value, bytes):
        return _varint(number << 3 | _BYTES) + _varint(len(value)) + value
    if isinstance(value, float):
        # What float32 cannot hold becomes infinity; struct would raise.
        with np.errstate(over="ignore"):
            return _varint(number << 3 | _FIXED32) + np.float32(value).tobytes()
    return _varint(number << 3 | _VARINT) + _varint(value)


def _varint(value: int) -> bytes:
    """Returns a non-negative integer in groups of 7 bits, the lowest first."""
    groups = bytearray()
    while value > 0x7F:
        groups.append(value & 0x7F | 0x80)
        value >>= 7
    return bytes([*groups, value])


def _record(content: bytes) -> bytes:
    """Returns a TFRecord: length, its checksum, content, its checksum."""
    length = struct.pack("<Q", len(content))
    checksums = (struct.pack("<I", _masked_crc32c(data)) for data in (length, content))
    return length + next(checksums) + content + next(checksums)


def _crc32c_table() -> list[int]:
    """Returns the remainder of each byte."""
    table = []
    for remainder in range(256):
        for _ in range(8):
            # The Castagnoli polynomial, bits reversed.
            remainder = remainder >> 1 ^ (0x82F63B78 if remainder & 1 else 0)
        table.append(remainder)
    return table


_TABLE = _crc32c_table()


def crc32c(data: bytes) -> int:
    """Returns the CRC-32C (Castagnoli, RFC 3720) of `data`."""
    crc = 0xFFFFFFFF
    for byte in data:
        crc = crc >> 8 ^ _TABLE[(crc ^ byte) & 0xFF]
    return crc ^ 0xFFFFFFFF


def _masked_crc32c(data: bytes) -> int:
    # Masked, for the checksum of data that contains checksums is weak.
    crc = crc32c(data)
    return ((crc >> 15 | crc << 17) + 0xA282EAD8) & 0xFFFFFFFF
