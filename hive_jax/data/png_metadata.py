"""Removal of metadata from PNG files."""

import struct

_SIGNATURE_BYTES = 8
_CHUNK_OVERHEAD = 12  # length, type and checksum
# Chunks in lower case are ancillary. These change pixels, or tell of animations.
_USED = (b"tRNS", b"acTL", b"fcTL", b"fdAT")


def strip_png_metadata(content: bytes) -> bytes:
    """Returns a PNG file without the chunks that do not change its pixels.

    Pillow refuses intact images for a profile or text of more than a megabyte, and for
    a damaged one. Profiles and gamma are not applied: neither transformers nor
    big_vision does. Nothing is unpacked, so that no size of metadata is too much.

    Args:
      content: the bytes of the file. From the first chunk on that is cut short, they
        are returned as they are.
    """
    pieces, start, position = [], 0, _SIGNATURE_BYTES
    while position + _CHUNK_OVERHEAD <= len(content):
        length, kind = struct.unpack_from(">I4s", content, position)
        end = position + _CHUNK_OVERHEAD + length
        # Of a damaged file Pillow says what is wrong with it.
        if end > len(content) or kind == b"IEND":
            break
        if kind[:1].islower() and kind not in _USED:
            pieces.append(content[start:position])
            start = end
        position = end
    return b"".join([*pieces, content[start:]]) if pieces else content
