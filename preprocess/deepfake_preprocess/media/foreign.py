"""What PyAV, FFmpeg and OpenCV raise about an input becomes one error of this project's; the only place that does."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TypeVar

import av

from deepfake_preprocess.errors import DeepfakeError, MediaNotFoundError, MediaOpenError
from deepfake_preprocess.support.text import reason_of

ItemT = TypeVar("ItemT")


@contextmanager
def foreign_errors(name: str) -> Iterator[None]:
    """Translate whatever is raised while `name` is opened, read or converted.

    Damaged files make FFmpeg report anything, "operation not permitted" too, and PyAV raise what Python has for it
    (ValueError, OverflowError, MemoryError, UnicodeDecodeError), so nothing is let through but our own errors.
    """
    try:
        yield
    except DeepfakeError:
        raise
    except Exception as exc:
        if isinstance(exc, FileNotFoundError) and not isinstance(exc, av.error.FFmpegError):
            raise MediaNotFoundError(f"there is no file {name!r}; check the path") from exc
        if isinstance(exc, PermissionError) and not isinstance(exc, av.error.FFmpegError):
            raise MediaOpenError(f"{name} may not be read; change its permissions") from exc
        # What FFmpeg says of a damaged file ("Input/output error") helps nobody; the rest may be the caller's.
        reason = "" if isinstance(exc, av.error.FFmpegError) else f" ({reason_of(exc)})"
        raise MediaOpenError(
            f"{name} cannot be read as a video or an image{reason}: it is another kind of file, damaged, or cut off; "
            "copy or download it again, and if it plays, convert it to MP4 with H.264"
        ) from exc


def guarded(items: Iterator[ItemT], name: str) -> Iterator[ItemT]:
    """Yield `items`, with what their iterator raises translated."""
    with foreign_errors(name):
        yield from items
