"""What the inputs of an analysis may be: how one is opened, and how directories and patterns become single files."""

from __future__ import annotations

import asyncio
import glob
import os
from collections.abc import AsyncIterable, AsyncIterator, Callable, Iterable, Iterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import BinaryIO, TypeAlias, cast

import numpy as np
from numpy.typing import NDArray

from deepfake_client.sources.concurrency import ClosingIterator, is_async
from deepfake_preprocess.errors import MediaNotFoundError, MediaOpenError, OptionError
from deepfake_preprocess.media.frames_source import GivenFrame, open_array, open_frames
from deepfake_preprocess.media.opening import Media, open_media
from deepfake_preprocess.media.remote import is_url, open_url, without_password
from deepfake_preprocess.media.suffixes import MEDIA_SUFFIXES

Source: TypeAlias = str | os.PathLike[str] | bytes | BinaryIO | Media | NDArray[np.uint8] | Iterable[GivenFrame]
"""One input: a path, an address (http, https, rtsp), an encoded file in memory, a seekable binary file object, what
`open_media` or `open_frames` returned, a uint8 ``[H, W, 3]`` RGB image, or an iterable of such frames of one video,
each alone (25 frames per second; `open_frames` takes another rate) or as a pair of its time in seconds and the array.
"""
AsyncSource: TypeAlias = Source | AsyncIterable[GivenFrame]
"""A `Source`, or an asynchronous iterable of the frames of one video (`AsyncDeepfakeClient`)."""

_ONE_INPUT = (bytes, bytearray, memoryview, Media, np.ndarray)


def expand(paths: Sequence[str]) -> Iterator[str]:
    """Yield the inputs that `paths` stand for: files as named, media files of directories, matches of globs.

    MediaNotFoundError for a directory without media, or a pattern that matches nothing.
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
        elif not is_url(text) and not path.exists() and glob.has_magic(text):
            matches = sorted(glob.glob(text, recursive=True))  # noqa: PTH207 - the pattern may be absolute
            if not matches:
                raise MediaNotFoundError(f"{text}: nothing matches; check the pattern")
            yield from matches
        else:
            yield text


def each_source(
    sources: str | os.PathLike[str] | Iterable[AsyncSource] | AsyncIterable[AsyncSource],
) -> Iterator[tuple[str, AsyncSource | MediaNotFoundError]]:
    """Yield the name and the input of everything that `sources` stand for, one by one as they are asked for.

    Paths are expanded (see `expand`); an empty directory or a pattern without a match is yielded as its error. What
    has no name of its own is called ``source`` and its position. OptionError for a single input that is not a path.
    """
    if isinstance(sources, str | os.PathLike):
        sources = [sources]
    elif isinstance(sources, _ONE_INPUT) or hasattr(sources, "read") or not isinstance(sources, Iterable):
        raise OptionError(
            f"analyze_many takes a directory, a pattern or an iterable of inputs, got a {type(sources).__name__}; "
            "put it into a list, or use analyze"
        )
    return _named(sources)


def _named(sources: Iterable[AsyncSource]) -> Iterator[tuple[str, AsyncSource | MediaNotFoundError]]:
    position = 0
    for source in sources:
        try:
            found = expand([os.fspath(source)]) if isinstance(source, str | os.PathLike) else iter([source])
            for item in found:
                yield name_of(item) or f"source {position}", item
                position += 1
        except MediaNotFoundError as exc:
            yield name_of(source) or f"source {position}", exc
            position += 1


def name_of(source: AsyncSource) -> str | None:
    """Return what an input is called; None when it has no name of its own."""
    if isinstance(source, Media):
        return source.name
    if isinstance(source, str | os.PathLike):
        # A path is reported as the caller wrote it, so results of several directories can be distinguished.
        return without_password(os.fspath(source))
    name = getattr(source, "name", None)
    return Path(name).name if isinstance(name, str) else None


def open_source(source: AsyncSource, *, name: str | None = None) -> Media:
    """Open one input that is not asynchronous; `Media` is returned as it is.

    Messages and reports call it by `name`, or by its own. InputError says why it cannot be used.
    """
    name = name or name_of(source)
    if isinstance(source, Media):
        return source
    if isinstance(source, str | os.PathLike):
        path = os.fspath(source)
        if is_url(path):
            return open_url(path)
        if Path(path).is_dir():
            raise MediaOpenError(f"{path} is a folder; name a file in it, or use analyze_many for all of them")
        return open_media(path, name=name)
    if isinstance(source, bytes | bytearray | memoryview) or hasattr(source, "read"):
        return open_media(cast("BinaryIO", source), name=name)
    if isinstance(source, np.ndarray):
        return open_array(source, name=name or "the given image")
    if isinstance(source, Iterable):
        return open_frames(source, name=name or "the given frames")
    raise MediaOpenError(
        f"an input is a path, an address, bytes, a binary file, an opened media, or RGB arrays; got a "
        f"{type(source).__name__}"
    )


@asynccontextmanager
async def opened(
    source: AsyncSource, *, name: str | None = None
) -> AsyncIterator[tuple[Media, Callable[[], None] | None]]:
    """Open one input of any kind, and close it in the end unless it is a `Media` of the caller's.

    Yields the input, and what makes a wait for its next frame end; None where nothing does.
    """
    if is_async(source):
        frames: ClosingIterator[GivenFrame] = ClosingIterator(source)
        async with frames:
            name = name or name_of(source) or "the given frames"
            yield await asyncio.to_thread(open_frames, frames, name=name), frames.cancel
        return
    media = await asyncio.to_thread(open_source, source, name=name)
    try:
        yield media, None
    finally:
        if media is not source:
            await asyncio.to_thread(media.close)
