"""What the inputs of an analysis may be: how one is opened, and how directories and patterns become single files."""

from __future__ import annotations

import glob
import inspect
import io
import os
import stat
from collections.abc import AsyncIterable, AsyncIterator, Callable, Iterable, Iterator, Sequence
from contextlib import asynccontextmanager, contextmanager, suppress
from pathlib import Path
from typing import Any, BinaryIO, Final, TypeAlias, cast

import numpy as np
from numpy.typing import NDArray

from deepfake_client.sources.concurrency import ClosingIterator, is_async
from deepfake_client.sources.threads import in_thread
from deepfake_preprocess.errors import DeepfakeError, InputError, MediaNotFoundError, MediaOpenError, OptionError
from deepfake_preprocess.media.frame import Frame
from deepfake_preprocess.media.frames_source import GivenFrame, open_array, open_frames
from deepfake_preprocess.media.opening import Media, open_media
from deepfake_preprocess.media.remote import is_url, open_url, without_password
from deepfake_preprocess.media.suffixes import MEDIA_SUFFIXES
from deepfake_preprocess.support.text import reason_of

Source: TypeAlias = str | os.PathLike[str] | bytes | BinaryIO | Media | NDArray[np.uint8] | Iterable[GivenFrame]
"""One input: a path, an address (http, https, rtsp), an encoded file in memory, a seekable binary file object, what
`open_media` or `open_frames` returned, a uint8 ``[H, W, 3]`` RGB image, or an iterable of such frames of one video,
each alone (25 frames per second; `open_frames` takes another rate) or as a pair of its time in seconds and the array.
"""
AsyncSource: TypeAlias = Source | AsyncIterable[GivenFrame]
"""A `Source`, or an asynchronous iterable of the frames of one video (`AsyncDeepfakeClient`)."""

_SHOWN_CHARACTERS: Final = 80
_ONE_INPUT = (bytes, bytearray, memoryview, Media, np.ndarray)


def expand(paths: Sequence[str], passed_over: list[str] | None = None) -> Iterator[str]:
    """Yield the inputs that `paths` stand for: files as named, media files of directories, matches of globs.

    Other files of directories, but hidden ones, are added to `passed_over`.

    InputError for a directory without media or that cannot be read, or a pattern that matches nothing.
    """
    for text in paths:
        # Not those of `Path`, which raise for names that are too long, and take an empty one for the current folder.
        if os.path.isdir(text):  # noqa: PTH112
            with input_errors(text):
                files = sorted(item for item in Path(text).rglob("*") if item.is_file())
            found = [str(item) for item in files if item.suffix.lower() in MEDIA_SUFFIXES]
            if passed_over is not None:
                others = (item for item in files if item.suffix.lower() not in MEDIA_SUFFIXES)
                passed_over += [str(item) for item in others if not item.name.startswith(".")]
            if not found:
                raise MediaNotFoundError(f"{text}: the directory holds no video or image; name the files one by one")
            yield from found
        elif not is_url(text) and not os.path.exists(text) and glob.has_magic(text):  # noqa: PTH110
            matches = sorted(glob.glob(text, recursive=True))  # noqa: PTH207 - the pattern may be absolute
            if not matches:
                raise MediaNotFoundError(f"{text}: nothing matches; check the pattern")
            yield from matches
        else:
            yield text


def each_source(
    sources: str | os.PathLike[str] | Iterable[AsyncSource] | AsyncIterable[AsyncSource],
) -> Iterator[tuple[str, AsyncSource | InputError]]:
    """Yield the name and the input of everything that `sources` stand for, one by one as they are asked for.

    Paths are expanded (see `expand`); where that fails (an empty directory, a pattern without a match), its error is
    yielded. What has no name of its own is called ``source`` and its position. OptionError for a single input that is
    not a path.
    """
    if isinstance(sources, str | os.PathLike):
        sources = [sources]
    elif isinstance(sources, _ONE_INPUT) or hasattr(sources, "read") or not isinstance(sources, Iterable):
        raise OptionError(
            f"analyze_many takes a directory, a pattern or an iterable of inputs, got a {type(sources).__name__}; "
            "put it into a list, or use analyze"
        )
    return _named(sources)


def _named(sources: Iterable[AsyncSource]) -> Iterator[tuple[str, AsyncSource | InputError]]:
    position = 0
    for source in sources:
        name = name_of(source)
        found: Iterator[AsyncSource] = iter([source])
        try:
            if isinstance(source, str | os.PathLike):
                with input_errors(name or "the path"):
                    found = expand([os.fsdecode(source)])
            for item in found:
                yield name_of(item) or f"source {position}", item
                position += 1
        except InputError as exc:
            yield name or f"source {position}", exc
            position += 1


def name_of(source: AsyncSource) -> str | None:
    """Return what an input is called; None when it has no name of its own."""
    if isinstance(source, Media):
        return source.name
    # Whatever is wrong with an object is said when it is opened.
    with suppress(Exception):
        if isinstance(source, str | os.PathLike):
            # A path is reported as the caller wrote it, so results of several directories can be distinguished.
            return without_password(os.fsdecode(source))
        # A temporary file has the number of its descriptor for a name.
        names = (getattr(source, attribute, None) for attribute in ("name", "filename"))
        return next((Path(name).name for name in names if isinstance(name, str) and name), None)
    return None


def open_source(source: AsyncSource, *, name: str | None = None) -> Media:
    """Open one input that is not asynchronous; `Media` is returned as it is.

    Messages and reports call it by `name`, or by its own. InputError says why it cannot be used, whatever is raised.
    """
    name = name or name_of(source)
    if isinstance(source, Media):
        return source
    if isinstance(source, np.ndarray):
        return open_array(source, name=name or "the given image")
    if isinstance(source, str | os.PathLike):
        with input_errors(name or "the path"):
            return _open_path(os.fsdecode(source), name)
    if isinstance(source, bytes | bytearray | memoryview) or hasattr(source, "read"):
        name = name or ("the given file" if hasattr(source, "read") else "the given data")
        with input_errors(name):
            return open_media(source if isinstance(source, bytes) else _binary_file(source, name), name=name)
    if isinstance(source, Iterable):
        name = name or "the given frames"
        with input_errors(name):
            return open_frames(source, name=name)
    raise MediaOpenError(
        f"an input is a path, an address, bytes, a binary file, an opened media, or RGB arrays; got a "
        f"{type(source).__name__}"
    )


def _open_path(path: str, name: str | None) -> Media:
    state = check_path(path)
    if state is None:
        return open_url(path)
    if stat.S_ISDIR(state.st_mode):
        raise MediaOpenError(f"{path} is a folder; name a file in it, or use analyze_many for all of them")
    if not stat.S_ISREG(state.st_mode):
        raise MediaOpenError(f"{path} is a device, which has no end; if it is a camera, watch it")
    return open_media(path, name=name)


def check_path(source: str | os.PathLike[str]) -> os.stat_result | None:
    """Return what the file system says about a path, None for an address; InputError where it cannot be opened."""
    path = os.fsdecode(source)
    if is_url(path):
        return None
    if not path:
        raise MediaNotFoundError("the path is empty; name a video or an image")
    try:
        state = Path(path).stat()
    except (FileNotFoundError, NotADirectoryError) as exc:
        raise MediaNotFoundError(f"there is no file {path!r}; check the path") from exc
    except (OSError, ValueError) as exc:
        raise MediaOpenError(f"{_shortened(path)!r} cannot be opened ({reason_of(exc)}); check the path") from exc
    if stat.S_ISFIFO(state.st_mode) or stat.S_ISSOCK(state.st_mode):
        raise MediaOpenError(f"{path} is a pipe, which may never end; save it to a file")
    return state


def _shortened(path: str) -> str:
    return path if len(path) <= _SHOWN_CHARACTERS else f"{path[:_SHOWN_CHARACTERS]}..."


def _binary_file(source: Any, name: str) -> BinaryIO:
    """Return an object with `read` if it is a binary file that can be read from its start."""
    fix = "open it with mode 'rb', or pass its content as bytes"
    if isinstance(source, bytearray | memoryview):
        return io.BytesIO(source)
    if isinstance(source, io.TextIOBase):
        raise MediaOpenError(f"{name} is open as text; {fix}")
    if inspect.iscoroutinefunction(source.read):
        raise MediaOpenError(f"{name} can only be read with await; pass its content (await read()) or its `file`")
    if getattr(source, "closed", False):
        raise MediaOpenError(f"{name} is a closed file; {fix}")
    if not getattr(source, "readable", lambda: True)():
        raise MediaOpenError(f"{name} is open for writing only; {fix}")
    if not (hasattr(source, "seek") and getattr(source, "seekable", lambda: True)()):
        raise MediaOpenError(f"{name} cannot be rewound; save it to a file, or pass its content as bytes")
    source.seek(0)
    if not isinstance(source.read(0), bytes):
        raise MediaOpenError(f"{name} gives {type(source.read(0)).__name__} and not bytes; {fix}")
    return cast("BinaryIO", source)


@contextmanager
def input_errors(name: str) -> Iterator[None]:
    """Translate whatever the caller's own object, or a file system, raises while an input is opened or read."""
    try:
        yield
    except DeepfakeError:
        raise
    except Exception as exc:
        raise MediaOpenError(
            f"{name} cannot be read, because reading it raised {type(exc).__name__}: {reason_of(exc)}; "
            "mend what it reads from"
        ) from exc


def next_frame(frames: Iterator[Frame], name: str) -> Frame | None:
    """Return the next frame of an input, None at its end; InputError whatever is raised."""
    with input_errors(name):
        return next(frames, None)


@asynccontextmanager
async def opened(
    source: AsyncSource, *, name: str | None = None
) -> AsyncIterator[tuple[Media, Callable[[], None] | None]]:
    """Open one input of any kind, and close it in the end unless it is a `Media` of the caller's.

    Yields the input, and what is called where its next frame is not waited for any more; None where it must be waited
    for, since it is read from what is closed afterwards.
    """
    if is_async(source):
        frames: ClosingIterator[GivenFrame] = ClosingIterator(source)
        async with frames:
            name = name or name_of(source) or "the given frames"
            yield await in_thread(open_source, frames, name=name), frames.cancel
        return
    media = await in_thread(open_source, source, name=name)
    try:
        yield media, (None if isinstance(source, Media) or _is_read(source) else _let_go)
    finally:
        if media is not source:
            await in_thread(media.close)


def _is_read(source: AsyncSource) -> bool:
    """Return whether the frames of an input are decoded, from a file or what is like one."""
    return isinstance(source, str | os.PathLike | bytes | bytearray | memoryview) or hasattr(source, "read")


def _let_go() -> None:
    """A caller's iterator holds nothing of ours; it may go on waiting."""
