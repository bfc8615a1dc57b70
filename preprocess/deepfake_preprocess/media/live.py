"""Live sources: files that grow, addresses, cameras. `open_live` yields their frames as they come.

Unlike `media.opening`, this never seeks, reads ahead or reads twice. Frames are taken at a fixed rate, and times
continue where a source restarts its clock. Everything happens in the thread that asks for the next frame.
"""

from __future__ import annotations

import os
import stat
import threading
import time
from collections.abc import Callable, Generator, Iterator
from contextlib import AbstractContextManager, ExitStack, closing, contextmanager
from dataclasses import dataclass, field
from math import floor, inf
from pathlib import Path
from typing import Final, TypeAlias

import av

from deepfake_preprocess.errors import MediaNotFoundError, MediaOpenError, OptionError
from deepfake_preprocess.media.foreign import foreign_errors
from deepfake_preprocess.media.frame import Frame
from deepfake_preprocess.media.opening import Media, open_file
from deepfake_preprocess.media.packets.clock import MAX_GAP_S
from deepfake_preprocess.media.packets.decoder import Decoder, DecodeStats
from deepfake_preprocess.media.packets.reading import PacketReader, packets_of
from deepfake_preprocess.media.pictures.shown import Shown
from deepfake_preprocess.media.remote import (
    TIMEOUT_S,
    check_certificates,
    is_url,
    open_live_url,
    url_errors,
    without_password,
)
from deepfake_preprocess.media.sampling import Sampling
from deepfake_preprocess.media.video import crop_of, open_stream
from deepfake_preprocess.support.text import reason_of

_POLL_S: Final = 0.05
_MAX_GAP_S: Final = 60.0
"""The clock of a camera or an address that jumps back, or further ahead than this, was reset."""
_FIRST_PAUSE_S: Final = 0.5
_BOX_HEADER_BYTES: Final = 16
_MAX_BOXES: Final = 64

_Opened: TypeAlias = AbstractContextManager[av.container.InputContainer]


@dataclass(slots=True)
class LiveSource:
    """Frames as they come, made by `open_live`. Nothing is opened before the first frame is asked for.

    Attributes:
        name: its name in messages and reports.
        can_wait: whether nothing is lost when its frames are not taken for a while; for an address, known only once
            the first frame has come.
        stats: what decoding has done so far.
        frames: the frames, in order of time; closing it releases everything.
    """

    name: str
    can_wait: bool
    stats: DecodeStats = field(default_factory=DecodeStats)
    frames: Generator[Frame, None, None] = field(init=False)


@dataclass(frozen=True, slots=True, kw_only=True)
class LiveOptions:
    """How long a live source is waited for, and whom it must be.

    Attributes:
        idle_s: a file ends when it has not grown for this long.
        reconnects: how many times in a row an address is reopened after it broke off or stalled.
        source_timeout_s: limit for opening an address or a camera, and for each read, in seconds.
        source_ca: PEM file of the certificates to trust at an address that begins with ``https`` or ``rtsps``; those
            that this machine trusts when None.
        source_proxy: address of an HTTP proxy (``http://HOST:PORT``) that http and https sources are read through,
            also those on this machine; that of the environment when None.

    Raises:
        OptionError: a value is out of its range, or `source_ca` is not such a file.
    """

    idle_s: float = 5.0
    reconnects: int = 5
    source_timeout_s: float = TIMEOUT_S
    source_ca: str | os.PathLike[str] | None = None
    source_proxy: str | None = None

    def __post_init__(self) -> None:
        if not 0 <= self.idle_s < inf:
            raise OptionError(f"`idle_s` is {self.idle_s!r}; allowed: a number from 0")
        if self.reconnects < 0:
            raise OptionError(f"`reconnects` is {self.reconnects!r}; allowed: a whole number from 0")
        if not 0 < self.source_timeout_s < inf:
            raise OptionError(f"`source_timeout_s` is {self.source_timeout_s!r}; allowed: a number above 0")
        if self.source_ca is not None:
            check_certificates(self.source_ca)
        if self.source_proxy is not None and not self.source_proxy.startswith("http://"):
            raise OptionError(f"`source_proxy` is {self.source_proxy!r}; allowed: an address like http://proxy:3128")


def open_live(
    source: str | os.PathLike[str], *, fps: float, stop: threading.Event, options: LiveOptions = LiveOptions()
) -> LiveSource:
    """Describe a live source.

    Args:
        source: a file, which is read as it grows; an address (http, https, rtsp; also HLS playlists); or a camera
            (``/dev/video0``).
        fps: frames taken per second of the source's own time.
        stop: set it to end the frames; waits end within fractions of a second, a stalled read within
            `LiveOptions.source_timeout_s`.
        options: how long it is waited for.

    Raises:
        MediaNotFoundError: the file or camera does not exist.
        MediaOpenError: it is a folder. All other problems are raised with the first frame.
    """
    text = os.fspath(source)
    name = without_password(text)
    live = LiveSource(name, can_wait=False)
    file = None if is_url(text) or not Path(text).is_file() else Path(text)
    decoder = _Decoder(live, fps, stop, file)
    if is_url(text):
        live.frames = decoder.reconnecting(
            lambda: open_live_url(
                text,
                timeout_s=options.source_timeout_s,
                source_ca=options.source_ca,
                source_proxy=options.source_proxy,
            ),
            text,
            options.reconnects,
            options.source_timeout_s,
        )
        return live
    path = Path(text)
    if not path.exists():
        raise MediaNotFoundError(f"there is no file or camera {text!r}; check the path")
    if path.is_dir():
        raise MediaOpenError(f"{text} is a folder; name a file in it")
    if stat.S_ISCHR(path.stat().st_mode):
        live.frames = decoder.once(lambda: _open_camera(text, options.source_timeout_s))
    else:
        live.can_wait = True
        live.frames = decoder.once(lambda: _growing(path, options.idle_s, stop))
    return live


def live_media(
    opened: Callable[[], AbstractContextManager[Media]], *, name: str, fps: float, stop: threading.Event
) -> LiveSource:
    """Describe any other source; `opened` opens it (this may wait for its first frame) and closes it in the end.

    The other arguments are those of `open_live`.
    """
    live = LiveSource(name, can_wait=True)

    def frames() -> Generator[Frame, None, None]:
        with opened() as media:
            live.stats = media.stats
            for frame in media.frames(Sampling(num_frames=None, fps=fps)):
                if stop.is_set():
                    return
                yield frame

    live.frames = frames()
    return live


class _Decoder:
    """Decodes one container after another as one stream."""

    def __init__(self, live: LiveSource, fps: float, stop: threading.Event, file: Path | None) -> None:
        self._live = live
        self._fps = fps
        self._stop = stop
        self._last_s: float | None = None
        self._offset_s = 0.0
        self._file = file
        self._max_gap_s = _MAX_GAP_S if file is None else MAX_GAP_S
        self._index = -1
        self._target = 0

    def once(self, opened: Callable[[], _Opened]) -> Generator[Frame, None, None]:
        """Yield the frames of a container up to its end."""
        with opened() as container, foreign_errors(self._live.name):
            yield from self._frames(container)

    def reconnecting(
        self, opened: Callable[[], _Opened], url: str, reconnects: int, timeout_s: float
    ) -> Generator[Frame, None, None]:
        """Yield the frames of an address, reopening it where it breaks off."""
        failures = 0
        while True:
            try:
                with opened() as container:
                    self._live.can_wait = container.duration is not None
                    with url_errors(self._live.name, timeout_s):
                        for frame in self._frames(container):
                            failures = 0
                            yield frame
            except MediaOpenError as exc:
                if self._index < 0 or failures >= reconnects or self._stop.is_set():
                    if not failures:
                        raise
                    raise MediaOpenError(
                        f"{self._live.name} broke off and could not be reopened (attempts: {failures}): {exc}"
                    ) from exc
            else:
                # A camera never ends by itself.
                if not url.lower().startswith("rtsp") or failures >= reconnects or self._stop.is_set():
                    return
            failures += 1
            self._stop.wait(_FIRST_PAUSE_S * 2 ** (failures - 1))

    def _frames(self, container: av.container.InputContainer) -> Iterator[Frame]:
        stats = self._live.stats
        stream, context = open_stream(container, self._live.name, stats)
        reader, shown = PacketReader(container, stream), Shown(stats, self._live.name)
        if self._file is not None:
            with self._file.open("rb") as header:
                shown.crop = crop_of(header, container, stream)
        decoder = Decoder(context, stats, start=reader.start, step=reader.step, time_base=reader.time_base)
        packets = packets_of(container, stream)
        while not self._stop.is_set():
            started = time.perf_counter()
            packet = next(packets, None)
            pictures = list(decoder.decode(packet))
            stats.decode_s += time.perf_counter() - started
            for picture in pictures:
                time_s = (
                    None if picture.pts is None or not picture.time_base else float(picture.pts * picture.time_base)
                )
                self._index += 1
                pts_seconds = self._seconds(time_s, float(reader.step * reader.time_base))
                shown.look(picture)
                number = floor(pts_seconds * self._fps + 1e-6)
                if number >= self._target:
                    self._target = number + 1
                    stats.frames_sampled += 1
                    shown.set_aspect(stream.sample_aspect_ratio)
                    yield shown.frame(picture, index=self._index, pts_seconds=pts_seconds)
            if packet is None:
                return

    def _seconds(self, time_s: float | None, step_s: float) -> float:
        """Return the next picture's time from the start; `step_s` after the last where its own cannot be used."""
        last_s = self._last_s
        following = now = 0.0 if last_s is None else last_s + step_s
        if time_s is not None:
            now = time_s + self._offset_s
            if last_s is None or not last_s < now <= last_s + self._max_gap_s:
                self._offset_s, now = following - time_s, following
        self._last_s = now
        return now


def _open_camera(path: str, timeout_s: float) -> av.container.InputContainer:
    try:
        return av.open(path, mode="r", format="v4l2", timeout=(timeout_s, timeout_s))
    except (av.error.FFmpegError, OSError, ValueError) as exc:
        raise MediaOpenError(
            f"the camera {path} cannot be opened ({reason_of(exc)}); check that it is a video camera, that it is "
            "free, and that you may read it"
        ) from exc


class _GrowingFile:
    """A file as PyAV needs it, without seeking: `read` waits for more at the end of the file."""

    def __init__(self, path: Path, idle_s: float, stop: threading.Event) -> None:
        self.name = str(path)
        self._file = path.open("rb")
        self._idle_s = idle_s
        self._stop = stop

    def read(self, size: int = -1) -> bytes:
        """Return up to `size` bytes; none when the file has not grown for too long."""
        deadline = time.monotonic() + self._idle_s
        while not (data := self._file.read(size)):
            if time.monotonic() >= deadline or self._stop.wait(_POLL_S):
                return b""
        return data

    def close(self) -> None:
        """Close the file."""
        self._file.close()


@contextmanager
def _growing(path: Path, idle_s: float, stop: threading.Event) -> Iterator[av.container.InputContainer]:
    with ExitStack() as stack:
        file: str | _GrowingFile = str(path)
        if not _has_late_index(path, idle_s, stop):
            file = stack.enter_context(closing(_GrowingFile(path, idle_s, stop)))
        yield stack.enter_context(open_file(file, str(path)))


def _has_late_index(path: Path, idle_s: float, stop: threading.Event) -> bool:
    """Return whether a file is an MP4 or MOV with its index at the end, once that index has been written.

    Such a file can only be read when it is finished, by seeking. `MediaOpenError` where no index comes.
    """
    deadline = time.monotonic() + idle_s
    size_seen = 0
    while True:
        size = path.stat().st_size
        boxes = _boxes(path, size)
        if size >= _BOX_HEADER_BYTES and boxes[:1] != ["ftyp"]:
            return False
        if "moov" in boxes:
            return "mdat" in boxes[: boxes.index("moov")]
        if size > size_seen:
            size_seen, deadline = size, time.monotonic() + idle_s
        if time.monotonic() >= deadline or stop.wait(_POLL_S):
            what = "an MP4 file without its index, which is written last" if boxes else "empty"
            raise MediaOpenError(
                f"{path} is {what}; to watch a file while it is written, write MPEG-TS, Matroska or fragmented MP4"
            )


def _boxes(path: Path, size: int) -> list[str]:
    """Return the types of a file's first top-level boxes; the index ("moov") only when it is complete.

    ISO/IEC 14496-12, 4.2: a box starts with its size (32 bits, or 1 and 64 bits after the type) and its type. Size 0
    means up to the end of the file.
    """
    types: list[str] = []
    position = 0
    with path.open("rb") as file:
        while position + _BOX_HEADER_BYTES <= size and len(types) < _MAX_BOXES:
            file.seek(position)
            header = file.read(_BOX_HEADER_BYTES)
            length, kind = int.from_bytes(header[:4]), header[4:8].decode("latin-1")
            if length == 1:
                length = int.from_bytes(header[8:])
            if kind != "moov" or position + length <= size:
                types.append(kind)
            if length < 8:
                break
            position += length
    return types
