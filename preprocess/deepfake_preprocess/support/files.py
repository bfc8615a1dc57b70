"""Files that are there completely or not at all, whatever breaks off while they are written."""

from __future__ import annotations

import errno
import os
import secrets
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TypeAlias

from deepfake_preprocess.errors import OptionError
from deepfake_preprocess.support.text import reason_of

Content: TypeAlias = str | bytes | memoryview | Callable[[Path], object]
"""Text (written as UTF-8), bytes, or a function that writes a file at the path it is given."""


def write_whole(path: Path, content: Content) -> None:
    """Write a file of which every reader finds the old or the new content, even after a crash or on a full disk.

    Its folder must exist. After an `OSError`, or anything that `content` raises, `path` is as it was.
    """
    with prepared(path, content) as put_in_place:
        put_in_place()


@contextmanager
def writing(place: str | Path, advice: str) -> Iterator[None]:
    """Raise `OptionError` with the place and the advice where what is done inside fails to write."""
    try:
        yield
    except OSError as exc:
        raise OptionError(f"{place} cannot be written ({reason_of(exc)}); {advice}") from exc


@contextmanager
def prepared(path: Path, content: Content) -> Iterator[Callable[[], None]]:
    """Write a file under another name in its folder, where a full disk does no harm; for changes of several files.

    Yields a function that puts the file in its place in one step. Where it is not called, `path` stays as it was.
    """
    # Unique, because several processes may write the same file.
    partial = path.with_name(f".{path.name}.{secrets.token_hex(4)}.partial")

    def put_in_place() -> None:
        partial.replace(path)
        sync(path.parent)

    try:
        _write(partial, content)
        sync(partial)
        yield put_in_place
    finally:
        partial.unlink(missing_ok=True)


def sync(path: Path) -> None:
    """Write a file or a directory's entries to the disk; otherwise a power cut can leave a name without content."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    except OSError as exc:
        if exc.errno != errno.EINVAL:  # not every file system can do it for directories
            raise
    finally:
        os.close(descriptor)


def _write(path: Path, content: Content) -> None:
    if isinstance(content, str):
        path.write_text(content, encoding="utf-8")
    elif isinstance(content, bytes | memoryview):
        path.write_bytes(content)
    else:
        path.touch()
        usual_mode = path.stat().st_mode
        content(path)
        # Some writers make files that nobody else may read.
        path.chmod(usual_mode)
