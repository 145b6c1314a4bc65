"""A sample as the bytes of a record, in MessagePack.

A good one is [image file or nil, [[text, target, kinds], ...], image_before], a bad one
[reason, where, detail]. What is read again may be of anybody: nothing in it is trusted.
"""

import msgpack

from hive_jax.data.bad import BadSample
from hive_jax.data.batch import KINDS, Sample, Segment


def pack(sample: Sample) -> bytes:
    """A sample whose image is the content of a file, or None."""
    segments = [[s.text, s.target, s.kinds] for s in sample.segments]
    return msgpack.packb([sample.image, segments, sample.image_before])


def pack_bad(bad: BadSample) -> bytes:
    return msgpack.packb([bad.reason, bad.where, bad.detail])


def unpack(content: bytes, where: str) -> Sample:
    """The sample of a record. Raises BadSample: the one that was packed, or "damaged"
    at `where`."""
    try:
        match msgpack.unpackb(content):
            case [None | bytes() as image, [*segments], int() as before]:
                return Sample(image, tuple(map(_segment, segments)), before)
            case [str() as reason, str() as source, str() as detail]:
                bad = BadSample(reason, source, detail)
            case _:
                bad = BadSample("damaged", where, "is no record of a sample")
    except (ValueError, msgpack.UnpackException) as error:
        bad = BadSample("damaged", where, str(error))
    raise bad


def _segment(packed) -> Segment:
    match packed:
        case [str() as text, bool() as target, [*kinds]]:
            return Segment(text, target, tuple(map(_kind, kinds)))
    raise ValueError("has a segment that is none")


def _kind(packed) -> tuple[int, int, str]:
    match packed:
        case [int() as start, int() as end, str() as name] if name in KINDS:
            return start, end, name
    raise ValueError("has a kind of words that is none")
