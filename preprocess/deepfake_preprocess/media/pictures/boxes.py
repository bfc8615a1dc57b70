"""Boxes of ISO media files (MP4, MOV, HEIC, AVIF), for what FFmpeg's Python binding does not hand on.

ISO/IEC 14496-12, 4.2: a box starts with its size (32 bits, or 1 and 64 bits after the type) and its type. Size 0
means up to the end of the file.
"""

from __future__ import annotations

import io
from collections.abc import Iterator
from dataclasses import dataclass
from typing import BinaryIO, Final

_MAX_BOXES: Final = 4096
_HEADER_BYTES: Final = 16
MAX_CONTENT_BYTES: Final = 2**24
"""Longest content that is read; boxes of metadata are far smaller."""


@dataclass(frozen=True, slots=True)
class Box:
    """Where a box is: its type, and its content's first byte and the byte after its last."""

    kind: str
    start: int
    stop: int


def boxes(file: BinaryIO, start: int = 0, stop: int | None = None) -> Iterator[Box]:
    """Yield the boxes between two places of a file, one after another; the last may be cut short (see `stop`)."""
    if stop is None:
        stop = file.seek(0, io.SEEK_END)
    for _ in range(_MAX_BOXES):
        if start + 8 > stop:
            return
        file.seek(start)
        header = file.read(_HEADER_BYTES)
        if len(header) < 8:
            return
        size, kind, head = int.from_bytes(header[:4]), header[4:8].decode("latin-1"), 8
        if size == 1:
            size, head = int.from_bytes(header[8:]), _HEADER_BYTES
        if size == 0:
            size = stop - start
        if size < head:
            return
        yield Box(kind, start + head, start + size)
        start += size


def find(file: BinaryIO, path: str, start: int = 0, stop: int | None = None) -> Iterator[Box]:
    """Yield the boxes at a path of types, such as ``moov/trak/tkhd``."""
    first, _, rest = path.partition("/")
    for box in boxes(file, start, stop):
        if box.kind == first:
            if rest:
                yield from find(file, rest, box.start, box.stop)
            else:
                yield box


def content(file: BinaryIO, box: Box) -> bytes:
    """Read what a box holds; less where the file is cut short."""
    file.seek(box.start)
    return file.read(min(box.stop - box.start, MAX_CONTENT_BYTES))
