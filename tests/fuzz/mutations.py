"""Tiny clips and pictures of many formats, and what damage, carelessness or malice makes of their bytes.

All of it is decided by a seed and a number, so that a case can be made again.
"""

from __future__ import annotations

import io
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from random import Random
from tempfile import TemporaryDirectory
from typing import Final

import cv2
from heif import write_grid
from media import numbered_pictures, picture, write_video
from PIL import Image

CLIPS: Final[dict[str, dict[str, object]]] = {
    "h264.mp4": {"audio_s": 1.0},
    "fragmented.mp4": {"muxing": {"movflags": "frag_keyframe+empty_moov"}},
    "early-index.mp4": {"muxing": {"movflags": "faststart"}, "rotation": 90},
    "hevc.mov": {"codec": "libx265", "options": {"x265-params": "log-level=none"}},
    "h264.mkv": {"audio_s": 1.0},
    "vp8.webm": {"codec": "libvpx", "b_frames": 0},
    "vp9.webm": {"codec": "libvpx-vp9", "options": {"deadline": "realtime", "cpu-used": "8"}},
    "h264.ts": {"audio_s": 1.0},
    "mpeg2.mpg": {"codec": "mpeg2video"},
    "mpeg4.avi": {"codec": "mpeg4"},
    "mjpeg.avi": {"codec": "mjpeg", "pix_fmt": "yuvj420p"},
    "h264.flv": {"b_frames": 0},
    "wmv2.wmv": {"codec": "wmv2", "b_frames": 0},
    "h264.nut": {},
    "animation.gif": {"codec": "gif", "pix_fmt": "rgb8"},
    "animation.png": {"container_format": "apng", "codec": "apng", "pix_fmt": "rgb24"},
    "raw.h264": {},
}  # fmt: skip
"""Clips by name, and how `media.write_video` makes them."""
PICTURES: Final = (".jpg", ".png", ".webp", ".bmp", ".tiff")
_NUMBERS: Final = (0, 1, 0x7F, 0x80, 0xFF, 0x7FFF, 0x8000, 0xFFFF, 0x7FFFFFFF, 0x80000000, 0xFFFFFFFF)


def seeds() -> dict[str, bytes]:
    """Return the intact files, by name."""
    made: dict[str, bytes] = {}
    with TemporaryDirectory() as folder:
        for name, options in CLIPS.items():
            path = Path(folder, name)
            options = {**options, "muxing": {"fflags": "+bitexact", **options.get("muxing", {})}}  # type: ignore[dict-item]
            write_video(path, numbered_pictures(96, 64, 24, moving=True), gop=8, **options)  # type: ignore[arg-type]
            made[name] = path.read_bytes()
    for suffix in PICTURES:
        made[f"picture{suffix}"] = cv2.imencode(suffix, picture(96, 64))[1].tobytes()
    made["tiles.heic"] = write_grid(picture(128, 64), 64)
    frames = [Image.fromarray(image) for image in numbered_pictures(96, 64, 6, moving=True)]
    for name in ("animation.webp", "animation.avif"):
        file = io.BytesIO()
        frames[0].save(file, name[-4:], save_all=True, append_images=frames[1:], duration=40)
        made[name] = file.getvalue()
    return made


def mutated(files: dict[str, bytes], seed: int, number: int) -> tuple[str, bytes]:
    """Return the name (file and mutations) and the content of one case."""
    random = Random(f"{seed}:{number}")
    name = random.choice(sorted(files))
    content = bytearray(files[name])
    for _ in range(random.choice((1, 1, 1, 2, 3, 6))):
        mutate = random.choice(MUTATIONS)
        content = mutate(random, content, files)
        name += f" {mutate.__name__}"
    return name, bytes(content)


def flip_bits(random: Random, content: bytearray, files: dict[str, bytes]) -> bytearray:
    """Turn over some bits anywhere."""
    for _ in range(random.choice((1, 4, 16, 64))):
        if content:
            content[random.randrange(len(content))] ^= 1 << random.randrange(8)
    return content


def edit_header(random: Random, content: bytearray, files: dict[str, bytes]) -> bytearray:
    """Overwrite numbers near the beginning or the end, where containers keep their headers and indexes."""
    for _ in range(random.choice((1, 2, 8))):
        near = random.randrange(1, 513)
        at = near if random.random() < 0.6 else len(content) - near
        _write_number(random, content, at)
    return content


def edit_field(random: Random, content: bytearray, files: dict[str, bytes]) -> bytearray:
    """Overwrite a number in a box, a chunk or a table: something whose name is four letters (``stts``, ``idx1``)."""
    places = [found.end() for found in re.finditer(rb"[A-Za-z][A-Za-z0-9 ]{3}", content)]
    for _ in range(random.choice((1, 1, 3))):
        if places:
            _write_number(random, content, random.choice(places) + random.choice((-8, 0, 4, 8, 12, 16, 24, 36)))
    return content


def cut_end(random: Random, content: bytearray, files: dict[str, bytes]) -> bytearray:
    """Keep the beginning only, as a download that broke off."""
    return content[: random.randrange(len(content) + 1)]


def cut_out(random: Random, content: bytearray, files: dict[str, bytes]) -> bytearray:
    """Leave out a part, also at the beginning."""
    start, end = _part(random, content)
    return content[:start] + content[end:]


def insert(random: Random, content: bytearray, files: dict[str, bytes]) -> bytearray:
    """Put in zeros, noise, or a part of a file."""
    length = random.choice((1, 4, 188, 4096))
    other = files[random.choice(sorted(files))]
    start = random.randrange(len(other))
    new = random.choice((bytes(length), random.randbytes(length), other[start : start + length]))
    at = random.randrange(len(content) + 1)
    return content[:at] + new + content[at:]


def erase(random: Random, content: bytearray, files: dict[str, bytes]) -> bytearray:
    """Fill a part with zeros, as a hole of a file that was not completely written."""
    start, end = _part(random, content)
    content[start:end] = bytes(end - start)
    return content


def swap(random: Random, content: bytearray, files: dict[str, bytes]) -> bytearray:
    """Exchange two parts that follow each other."""
    start, end = _part(random, content)
    middle = random.randint(start, end)
    return content[:start] + content[middle:end] + content[start:middle] + content[end:]


def repeat(random: Random, content: bytearray, files: dict[str, bytes]) -> bytearray:
    """Write a part several times."""
    start, end = _part(random, content)
    return content[:end] + content[start:end] * random.choice((1, 2, 20)) + content[end:]


def join(random: Random, content: bytearray, files: dict[str, bytes]) -> bytearray:
    """Put a file of the same or of another kind behind or before it."""
    other = bytearray(files[random.choice(sorted(files))])
    return random.choice((content + content, content + other, other + content))


def move_boxes(random: Random, content: bytearray, files: dict[str, bytes]) -> bytearray:
    """Drop, double or mix the outermost boxes of an MP4; the blocks of anything else."""
    parts = list(_boxes(content))
    change = random.randrange(3)
    if change == 0:
        parts.pop(random.randrange(len(parts)))
    elif change == 1:
        parts.insert(random.randrange(len(parts) + 1), random.choice(parts))
    else:
        random.shuffle(parts)
    return bytearray().join(parts)


Mutation = Callable[[Random, bytearray, "dict[str, bytes]"], bytearray]
MUTATIONS: Final[tuple[Mutation, ...]] = (
    flip_bits, edit_header, edit_header, edit_field, edit_field, edit_field, cut_end, cut_out, insert, erase, swap,
    repeat, join, move_boxes,
)  # fmt: skip
"""Those that make sense of more files than others come more often."""


def _write_number(random: Random, content: bytearray, at: int) -> None:
    size = random.choice((1, 2, 4, 8))
    if 0 <= at <= len(content) - size:
        number = random.choice((*_NUMBERS, random.getrandbits(8 * size))) & (1 << 8 * size) - 1
        content[at : at + size] = number.to_bytes(size, random.choice(("big", "little")))


def _part(random: Random, content: bytearray) -> tuple[int, int]:
    start = random.randrange(len(content) + 1)
    return start, min(len(content), start + random.choice((1, 16, 188, 1000, len(content))))


def _boxes(content: bytearray) -> Iterator[bytearray]:
    at, is_mp4 = 0, content[4:8] == b"ftyp"
    while at < len(content) or at == 0:
        size = int.from_bytes(content[at : at + 4]) if is_mp4 else max(1, len(content) // 8)
        end = at + size if 8 <= size <= len(content) - at or not is_mp4 else len(content)
        yield content[at:end]
        at = max(end, 1)
