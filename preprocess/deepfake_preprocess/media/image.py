"""Still images (JPEG, PNG, WebP, BMP, TIFF): recognized by their first bytes, decoded by OpenCV to upright RGB."""

from __future__ import annotations

import struct

import cv2
import numpy as np
from numpy.typing import NDArray

from deepfake_preprocess.errors import MediaLimitError, MediaOpenError

MAX_SIDE_PX = 16384
"""Longest side of a picture that is accepted; the limit of H.264 level 6.2 and of most hardware."""
MAX_PIXELS = 2**27
"""Most pixels per picture that are accepted (134 million, four times 8K): 0.4 GB as RGB."""
SNIFF_BYTES = 16
_TIFF_SHORT = 3
"""Number of leading bytes that `image_codec` needs."""

# Of JPEG XL, JPEG 2000 and TIFF; which of them OpenCV reads is up to how it was built.
_MAGIC = {
    b"\xff\x0a": "jpegxl",
    b"\0\0\0\x0cJXL \r\n\x87\n": "jpegxl",
    b"\0\0\0\x0cjP  \r\n\x87\n": "jpeg2000",
    b"\xff\x4f\xff\x51": "jpeg2000",
    b"II*\0": "tiff",
    b"MM\0*": "tiff",
}
# JPEG markers that start a frame header (all SOF but DHT, JPG and DAC), ITU-T T.81 table B.1.
_JPEG_FRAME_MARKERS = frozenset(range(0xC0, 0xD0)) - {0xC4, 0xC8, 0xCC}


def image_codec(head: bytes) -> str | None:
    """Return the kind of image that starts with `head` (``jpeg``, ``png``, ``webp``, ...), else None."""
    if head.startswith(b"\xff\xd8\xff"):
        return "jpeg"
    if head.startswith(b"\x89PNG\r\n\x1a\n"):
        return "png"
    if head[:4] == b"RIFF" and head[8:12] == b"WEBP":
        return "webp"
    if head.startswith(b"BM") and len(head) >= 14 and not any(head[6:10]):
        return "bmp"
    return next((codec for magic, codec in _MAGIC.items() if head.startswith(magic)), None)


def stored_size_wh(data: bytes, codec: str) -> tuple[int, int] | None:
    """Return (width, height) by the header, before any pixel is decoded; None if the header is damaged."""
    try:
        if codec == "png":
            width, height = struct.unpack_from(">II", data, 16)
            return width, height
        if codec == "webp":
            return _webp_size_wh(data)
        if codec == "bmp":
            width, height = struct.unpack_from("<ii", data, 18)
            return width, abs(height)
        if codec == "tiff":
            return _tiff_size_wh(data)
        if codec != "jpeg":
            return None
        position = 2
        while True:
            prefix, marker, length = struct.unpack_from(">BBH", data, position)
            if prefix != 0xFF:
                return None
            if marker == 0xFF:  # fill byte before a marker
                position += 1
                continue
            if marker in _JPEG_FRAME_MARKERS:
                height, width = struct.unpack_from(">HH", data, position + 5)
                return width, height
            position += 2 + length
    except struct.error:
        return None


def _webp_size_wh(data: bytes) -> tuple[int, int] | None:
    """Read the first chunk, one of three by the WebP container specification."""
    chunk = data[12:16]
    if chunk == b"VP8X":
        return 1 + int.from_bytes(data[24:27], "little"), 1 + int.from_bytes(data[27:30], "little")
    if chunk == b"VP8L":
        (bits,) = struct.unpack_from("<I", data, 21)
        return 1 + (bits & 0x3FFF), 1 + (bits >> 14 & 0x3FFF)
    if chunk == b"VP8 ":
        width, height = struct.unpack_from("<HH", data, 26)
        return width & 0x3FFF, height & 0x3FFF
    return None


def _tiff_size_wh(data: bytes) -> tuple[int, int] | None:
    """Read ImageWidth and ImageLength of the first directory: TIFF revision 6.0, section 2."""
    order = "<" if data.startswith(b"II") else ">"
    (directory,) = struct.unpack_from(order + "I", data, 4)
    (count,) = struct.unpack_from(order + "H", data, directory)
    sides = {}
    for number in range(count):
        tag, kind = struct.unpack_from(order + "HH", data, directory + 2 + 12 * number)
        (sides[tag],) = struct.unpack_from(
            order + ("H" if kind == _TIFF_SHORT else "I"), data, directory + 10 + 12 * number
        )
    return (sides[256], sides[257]) if {256, 257} <= sides.keys() else None


def check_size(width: int, height: int, name: str, *, max_pixels: int = MAX_PIXELS) -> None:
    """Refuse pictures that are too large."""
    if max(width, height) > MAX_SIDE_PX or width * height > max_pixels:
        raise MediaLimitError(
            f"{name} has {width}x{height} pixels; at most {MAX_SIDE_PX} per side and {max_pixels} in total are "
            "accepted: scale it down"
        )


def read_image(data: bytes, *, name: str, max_pixels: int = MAX_PIXELS) -> NDArray[np.uint8]:
    """Decode the content of a JPEG, PNG or WebP file to uint8 ``[H, W, 3]`` RGB, upright, whatever it stores.

    EXIF orientation is applied, alpha dropped, gray expanded, and 16 bits are reduced to 8. `MediaOpenError` where it
    is another kind of file, damaged, or has too many pixels.
    """
    codec = image_codec(data[:SNIFF_BYTES])
    if codec is None:
        what = f"it begins with {data[:8]!r}" if data else "it is empty"
        raise MediaOpenError(f"{name} is not a JPEG, PNG or WebP image ({what}); save it as one of these")
    if (size_wh := stored_size_wh(data, codec)) is not None:
        check_size(*size_wh, name, max_pixels=max_pixels)
    try:
        image = cv2.imdecode(np.frombuffer(data, dtype=np.uint8), cv2.IMREAD_COLOR_RGB)
    except cv2.error as exc:
        raise MediaOpenError(f"{name}: the image is damaged; save it again as JPEG or PNG") from exc
    if image is None:
        raise MediaOpenError(f"{name}: the image is damaged or cut short; save it again as JPEG or PNG")
    return np.asarray(image, dtype=np.uint8)
