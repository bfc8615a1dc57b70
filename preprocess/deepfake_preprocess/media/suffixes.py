"""Which files of a folder are taken for videos and images. A file that is named itself is tried whatever its name."""

from __future__ import annotations

from typing import Final

VIDEO_SUFFIXES: Final = (
    ".3gp", ".avi", ".flv", ".m4v", ".mkv", ".mov", ".mp4", ".mpeg", ".mpg", ".mts", ".ogv", ".ts", ".webm", ".wmv",
)  # fmt: skip
IMAGE_SUFFIXES: Final = (".bmp", ".jpeg", ".jpg", ".png", ".webp")
MEDIA_SUFFIXES: Final = frozenset(VIDEO_SUFFIXES + IMAGE_SUFFIXES)
