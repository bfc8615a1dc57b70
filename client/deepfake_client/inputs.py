"""What the inputs of an analysis may be, and how directories and patterns become single files."""

from __future__ import annotations

import glob
from collections.abc import Iterator, Sequence
from pathlib import Path

from deepfake_preprocess.errors import MediaNotFoundError

VIDEO_SUFFIXES = (
    ".3gp", ".avi", ".flv", ".m4v", ".mkv", ".mov", ".mp4", ".mpeg", ".mpg", ".mts", ".ogv", ".ts", ".webm", ".wmv",
)  # fmt: skip
IMAGE_SUFFIXES = (".bmp", ".jpeg", ".jpg", ".png", ".webp")
MEDIA_SUFFIXES = frozenset(VIDEO_SUFFIXES + IMAGE_SUFFIXES)
"""What is taken from a directory; files that are named one by one are tried whatever they are called."""


def expand(paths: Sequence[str]) -> Iterator[str]:
    """Yield the inputs that `paths` stand for: files as named, media files of directories, matches of globs.

    Args:
        paths: files (tried whatever they are called), directories (searched for `MEDIA_SUFFIXES`) and glob patterns.

    Raises:
        MediaNotFoundError: a directory without media, or a pattern that matches nothing.
    """
    for text in paths:
        path = Path(text)
        if path.is_dir():
            found = sorted(
                str(item) for item in path.rglob("*") if item.suffix.lower() in MEDIA_SUFFIXES and item.is_file()
            )
            if not found:
                raise MediaNotFoundError(f"{text}: the directory holds no video or image; name the files one by one")
            yield from found
        elif not path.exists() and glob.has_magic(text):
            matches = sorted(glob.glob(text, recursive=True))  # noqa: PTH207 - the pattern may be absolute
            if not matches:
                raise MediaNotFoundError(f"{text}: nothing matches; check the pattern")
            yield from matches
        else:
            yield text
