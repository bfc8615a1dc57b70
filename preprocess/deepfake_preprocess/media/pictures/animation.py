"""Animated pictures, which begin like still ones: APNG, animated WebP, raw Motion JPEG.

A file with several pictures is a video. FFmpeg cannot go back in an APNG and does not read animated WebP, so these
are rewritten, losslessly and in memory.
"""

from __future__ import annotations

import io
import struct
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from fractions import Fraction
from itertools import takewhile
from typing import BinaryIO, Final

import av
import cv2
import numpy as np

from deepfake_preprocess.errors import MediaOpenError
from deepfake_preprocess.media.image import MAX_PIXELS, stored_size_wh

# What of a JPEG is read to find its end; those of phones have up to 50 MB.
_JPEG_BYTES: Final = 2**26
_MAX_FRAME_MS: Final = 2**24
# Of all pictures of an animation together: 4 GB.
_MAX_ANIMATION_PIXELS: Final = 8 * MAX_PIXELS
_MAX_CHUNKS: Final = 2**16
_SOI: Final = b"\xff\xd8\xff"


@dataclass(frozen=True, slots=True)
class Animation:
    """An animated picture.

    Attributes:
        container_format: FFmpeg's name of its format.
        rewritten: its content in this format; None where the file is in it.
    """

    container_format: str
    rewritten: io.BytesIO | None = None


def find_animation(file: BinaryIO, codec: str, name: str) -> Animation | None:
    """Return the animation that a file holds; None where it holds one picture only.

    Args:
        file: the file.
        codec: `image_codec` of its first bytes.
        name: its name in messages.

    Raises:
        MediaOpenError: it is damaged, or holds more than can be held in memory.
    """
    file.seek(0)
    if codec == "jpeg":
        return Animation("mjpeg") if _is_motion_jpeg(file.read(_JPEG_BYTES)) else None
    if codec == "webp":
        head = file.read(21)
        if head[12:16] != b"VP8X" or not head[20:] or not head[20] & 2:
            return None
        return Animation("matroska", _as_video(_webp_pictures(head + file.read(), name), name))
    if codec == "png":
        before = set(takewhile("IDAT".__ne__, (kind for _, kind, _ in _png_chunks(file))))
        if "acTL" not in before:
            return None
        if "fcTL" not in before:
            file = _with_default_image(file)
        file.seek(0)
        with av.open(file, "r", format="apng") as container:
            return Animation("matroska", _as_video(container.decode(container.streams.video[0]), name))
    return None


def _as_video(pictures: Iterator[av.VideoFrame], name: str) -> io.BytesIO:
    """Write pictures with their times as a video (FFV1 in Matroska).

    Raises:
        MediaOpenError: they are more than can be held in memory.
    """
    video = io.BytesIO()
    with av.open(video, "w", format="matroska") as container:
        stream: av.VideoStream | None = None
        room = _MAX_ANIMATION_PIXELS
        for picture in pictures:
            room -= picture.width * picture.height
            if room < 0:
                raise MediaOpenError(f"{name} is too large for an animated picture; convert it to MP4")
            if stream is None:
                # The first picture's length stands for all: a player of the video has to know when its last one ends.
                rate = 1 / (picture.duration * picture.time_base) if picture.duration and picture.time_base else 1000
                stream = container.add_stream("ffv1", rate=min(Fraction(1000), Fraction(rate)))
                stream.width, stream.height, stream.pix_fmt = picture.width, picture.height, "bgr0"
                stream.codec_context.time_base = Fraction(1, 1000)
            rewritten = picture.reformat(width=stream.width, height=stream.height, format="bgr0")
            rewritten.pts, rewritten.time_base = picture.pts, picture.time_base
            container.mux(stream.encode(rewritten))
        if stream is None:
            raise MediaOpenError(f"{name}: the animation is damaged; save it again, or as MP4")
        container.mux(stream.encode(None))
    video.seek(0)
    return video


def _webp_pictures(data: bytes, name: str) -> Iterator[av.VideoFrame]:
    width, height = stored_size_wh(data, "webp") or (0, 0)
    if width * height * data.count(b"ANMF") > _MAX_ANIMATION_PIXELS:
        raise MediaOpenError(f"{name} is too large for an animated picture; convert it to MP4")
    is_read, animation = cv2.imdecodeanimation(np.frombuffer(data, dtype=np.uint8))
    now = 0
    for image, length in zip(animation.frames, np.ravel(animation.durations), strict=True) if is_read else ():
        picture = av.VideoFrame.from_ndarray(np.ascontiguousarray(image[:, :, :3], dtype=np.uint8), format="bgr24")
        picture.pts, picture.duration = now, min(max(1, int(length)), _MAX_FRAME_MS)
        picture.time_base = Fraction(1, 1000)
        yield picture
        now += picture.duration


def _png_chunks(file: BinaryIO) -> Iterator[tuple[int, str, int]]:
    """Yield where each chunk of a PNG starts, its type and the length of its content: PNG specification, 5.3."""
    position = 8
    for _ in range(_MAX_CHUNKS):
        file.seek(position)
        head = file.read(8)
        if len(head) < 8:
            return
        length = int.from_bytes(head[:4])
        yield position, head[4:].decode("latin-1"), length
        position += 12 + length


def _with_default_image(file: BinaryIO) -> io.BytesIO:
    """Put the picture that viewers without animation show before the frames of an APNG: PNG specification, 11.3.6."""
    rewritten = io.BytesIO()
    file.seek(0)
    rewritten.write(file.read(8))
    number, size = 0, b""
    for position, kind, length in list(_png_chunks(file)):
        file.seek(position + 8)
        data = file.read(length)
        if kind == "IHDR":
            size = data[:8]
        elif kind == "acTL":
            data = (int.from_bytes(data[:4]) + 1).to_bytes(4) + data[4:]
        elif kind == "IDAT" and not number:
            _write_chunk(
                rewritten, b"fcTL", struct.pack(">I", number) + size + struct.pack(">IIHHBB", 0, 0, 1, 10, 0, 0)
            )
            number += 1
        elif kind in {"fcTL", "fdAT"}:
            data = struct.pack(">I", number) + data[4:]
            number += 1
        _write_chunk(rewritten, kind.encode("latin-1"), data)
    rewritten.seek(0)
    return rewritten


def _write_chunk(file: io.BytesIO, kind: bytes, data: bytes) -> None:
    file.write(struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data)))


def _is_motion_jpeg(data: bytes) -> bool:
    """Return whether a JPEG is followed by another of the same size.

    Phones append others, which the first one announces (CIPA DC-007, multi-picture format).
    """
    end = _jpeg_end(data)
    if end is None or b"MPF\0" in data[:end]:
        return False
    following = data[end : end + 64].find(_SOI)
    return following >= 0 and stored_size_wh(data[end + following :], "jpeg") == stored_size_wh(data, "jpeg")


def _jpeg_end(data: bytes) -> int | None:
    """Return where the first picture ends: ITU-T T.81, annex B."""
    position = 2
    while position + 4 <= len(data):
        prefix, marker, length = struct.unpack_from(">BBH", data, position)
        if prefix != 0xFF:
            return None
        if marker == 0xD9:
            return position + 2
        if marker == 0xFF:
            position += 1
        elif marker == 0xDA:
            position = _scan_end(data, position + 2 + length)
        else:
            position += 2 + length
    return position + 2 if data[position : position + 2] == b"\xff\xd9" else None


def _scan_end(data: bytes, position: int) -> int:
    """Return where the next marker is that does not belong to a scan."""
    while (position := data.find(b"\xff", position)) >= 0 and position + 1 < len(data):
        if data[position + 1] not in (0, 0xFF, *range(0xD0, 0xD8)):
            return position
        position += 1 if data[position + 1] == 0xFF else 2
    return len(data)
