"""Which files of a folder are taken for videos and images. A file that is named itself is tried whatever its name."""

from __future__ import annotations

from pathlib import Path
from typing import Final

from deepfake_preprocess.errors import OptionError

VIDEO_SUFFIXES: Final = (
    ".264", ".265", ".3g2", ".3gp", ".amv", ".apng", ".asf", ".av1", ".avc", ".avi", ".divx", ".dv", ".f4v", ".flv",
    ".gif", ".h264", ".h265", ".hevc", ".ivf", ".m1v", ".m2p", ".m2t", ".m2ts", ".m2v", ".m4v", ".mjpeg", ".mjpg",
    ".mk3d", ".mkv", ".mod", ".mov", ".mp4", ".mpe", ".mpeg", ".mpg", ".mpv", ".mts", ".mxf", ".nut", ".obu", ".ogg",
    ".ogm", ".ogv", ".ogx", ".qt", ".rm", ".rmvb", ".tod", ".trp", ".ts", ".vob", ".webm", ".wm", ".wmv", ".wtv",
    ".xvid",
)  # fmt: skip
IMAGE_SUFFIXES: Final = (
    ".bmp", ".dib", ".jfif", ".jp2", ".jpe", ".jpeg", ".jpg", ".jxl", ".pjp", ".pjpeg", ".png", ".tif", ".tiff",
    ".webp",
)  # fmt: skip
"""Images that OpenCV reads."""
_ISO_IMAGE_SUFFIXES: Final = (".avif", ".avifs", ".heic", ".heics", ".heif", ".hif")
MEDIA_SUFFIXES: Final = frozenset(VIDEO_SUFFIXES + IMAGE_SUFFIXES + _ISO_IMAGE_SUFFIXES)


def media_of(directory: str | Path) -> list[Path]:
    """Return the images and videos under a directory, at least one, sorted by path; hidden ones are left out."""
    directory = Path(directory)
    if not directory.is_dir():
        raise OptionError(f"{directory}: there is no such directory; name one that holds videos or images")
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
