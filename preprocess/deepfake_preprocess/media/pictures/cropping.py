"""What a video's header leaves out of its pictures, which FFmpeg does not: MP4's clean aperture, Matroska's crop."""

from __future__ import annotations

from collections.abc import Iterator
from typing import BinaryIO, Final

from deepfake_preprocess.media.pictures.boxes import Box, boxes, content, find
from deepfake_preprocess.media.pictures.heif import clean_aperture
from deepfake_preprocess.media.pictures.shown import NO_CROP, Crop

_EBML_MAGIC: Final = b"\x1a\x45\xdf\xa3"
_VISUAL_ENTRY_BYTES: Final = 78
# IDs of Matroska elements: RFC 9559, 5.1.
_SEGMENT, _TRACKS, _ENTRY, _TYPE, _VIDEO, _CLUSTER = "18538067", "1654ae6b", "ae", "83", "e0", "1f43b675"
_CROPS: Final = ("54cc", "54bb", "54dd", "54aa")  # left, top, right, bottom
_IS_VIDEO: Final = 1
_MAX_ELEMENTS: Final = 4096


def stated_crop(file: BinaryIO, number: int, track: int, size_wh: tuple[int, int]) -> Crop:
    """Return what the header of an MP4, MOV or Matroska file leaves out of a stream's pictures.

    Args:
        file: the file.
        number: which of its video streams, from 0.
        track: the stream's id in the container.
        size_wh: size of its stored pictures.
    """
    file.seek(0)
    if file.read(4) == _EBML_MAGIC:
        crops = list(_matroska(file))
        crop = crops[number] if number < len(crops) else NO_CROP
        return crop if crop[0] + crop[2] < size_wh[0] and crop[1] + crop[3] < size_wh[1] else NO_CROP
    moov = next((box for box in boxes(file) if box.kind == "moov"), Box("", 0, 0))
    for trak in find(file, "trak", moov.start, moov.stop):
        head = next((content(file, box) for box in find(file, "tkhd", trak.start, trak.stop)), b"")
        if head[:1] and int.from_bytes(head[20:24] if head[0] else head[12:16]) == track:
            for stsd in find(file, "mdia/minf/stbl/stsd", trak.start, trak.stop):
                return _aperture(file, stsd, size_wh)
    return NO_CROP


def _aperture(file: BinaryIO, stsd: Box, size_wh: tuple[int, int]) -> Crop:
    for entry in boxes(file, stsd.start + 8, stsd.stop):
        for box in boxes(file, entry.start + _VISUAL_ENTRY_BYTES, entry.stop):
            if box.kind == "clap":
                return clean_aperture(content(file, box), *size_wh)
        break
    return NO_CROP


def _matroska(file: BinaryIO) -> Iterator[Crop]:
    """Yield the crop of each video track."""
    file.seek(0, 2)
    size = file.tell()
    segment = next((part for part in _elements(file, 0, size) if part.kind == _SEGMENT), Box("", 0, 0))
    for tracks in _elements(file, segment.start, segment.stop):
        if tracks.kind == _CLUSTER:
            return
        for entry in _elements(file, tracks.start, tracks.stop) if tracks.kind == _TRACKS else ():
            parts = {part.kind: part for part in _elements(file, entry.start, entry.stop)}
            if entry.kind == _ENTRY and _number(file, parts.get(_TYPE)) == _IS_VIDEO:
                video = parts.get(_VIDEO, Box("", 0, 0))
                stated = {part.kind: _number(file, part) for part in _elements(file, video.start, video.stop)}
                left, top, right, bottom = (stated.get(crop, 0) for crop in _CROPS)
                yield left, top, right, bottom


def _number(file: BinaryIO, element: Box | None) -> int:
    return 0 if element is None else int.from_bytes(content(file, element)[:8])


def _elements(file: BinaryIO, start: int, stop: int) -> Iterator[Box]:
    """Yield EBML elements one after another (RFC 8794, 4 to 6), by the hexadecimal form of their ID."""
    for _ in range(_MAX_ELEMENTS):
        if start + 2 > stop:
            return
        file.seek(start)
        head = file.read(12)
        id_bytes = 9 - head[0].bit_length() if head and head[0] else 0
        if not 0 < id_bytes <= 4 or len(head) <= id_bytes:
            return
        first = head[id_bytes]
        size_bytes = 9 - first.bit_length() if first else 0
        if not size_bytes:
            return
        size = int.from_bytes(head[id_bytes : id_bytes + size_bytes]) & ((1 << 7 * size_bytes) - 1)
        begin = start + id_bytes + size_bytes
        # A size of only ones is unknown: up to the end.
        end = stop if size == (1 << 7 * size_bytes) - 1 else min(begin + size, stop)
        yield Box(head[:id_bytes].hex(), begin, end)
        start = end
