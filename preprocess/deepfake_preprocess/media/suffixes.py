"""Which files of a folder are taken for videos and images. A file that is named itself is tried whatever its name."""

from __future__ import annotations

from pathlib import Path
from typing import Final

from deepfake_preprocess.errors import OptionError

VIDEO_SUFFIXES: Final = (
    ".3gp", ".avi", ".flv", ".m4v", ".mkv", ".mov", ".mp4", ".mpeg", ".mpg", ".mts", ".ogv", ".ts", ".webm", ".wmv",
)  # fmt: skip
IMAGE_SUFFIXES: Final = (".bmp", ".jpeg", ".jpg", ".png", ".webp")
MEDIA_SUFFIXES: Final = frozenset(VIDEO_SUFFIXES + IMAGE_SUFFIXES)


def media_of(directory: str | Path) -> list[Path]:
    """Return the images and videos under a directory, at least one, sorted by path; hidden ones are left out."""
    directory = Path(directory)
    if not directory.is_dir():
        raise OptionError(f"{directory}: there is no such directory of faces; name one that holds videos or images")
    found = sorted(
        path
        for path in directory.rglob("*")
        if path.suffix.lower() in MEDIA_SUFFIXES
        and path.is_file()
        and not any(part.startswith(".") for part in path.relative_to(directory).parts)
    )
    if not found:
        raise OptionError(f"{directory} holds no videos and no images; put clips or face images there")
    return found
