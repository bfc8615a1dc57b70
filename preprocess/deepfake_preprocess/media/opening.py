"""Opening a video or an image, and decoding only what the sampled frames need.

Never holds a whole video, never detects or crops.
"""

from __future__ import annotations

import io
import os
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import BinaryIO, Literal, Self

import av
import numpy as np
from numpy.typing import NDArray

from deepfake_preprocess.errors import MediaNotFoundError, MediaOpenError, OptionError
from deepfake_preprocess.media.decoding import SKIPPING_CODECS, DecodeStats, Decoding
from deepfake_preprocess.media.frame import ArrayFrame, Frame
from deepfake_preprocess.media.image import MAX_PIXELS, SNIFF_BYTES, check_size, image_codec, read_image
from deepfake_preprocess.media.planar import Orientation
from deepfake_preprocess.media.sampling import Sampling

# Demuxers that read one self-contained file. Playlists (hls, concat, dash) are left out: they name other files
# and addresses, which an uploaded file must not make us read.
CONTAINERS = (
    "mov,mp4,m4a,3gp,3g2,mj2,matroska,webm,avi,mpegts,mpeg,mpegvideo,flv,asf,ogg,gif,h264,hevc,av1,obu,ivf,"
    "m4v,mjpeg,mxf,nut,rm,wtv,dv,amr,mp3,wav,flac,aac"
)
# More threads hardly help a single stream, and each holds a picture.
_MAX_DECODER_THREADS = 4
# If the first packets hold no picture, `frames` reads the rest.
_PROBE_PACKETS = 64


@dataclass(slots=True)
class Media:
    """An open video or image, made by `open_media`; a context manager. One thread at a time may iterate it.

    Attributes:
        name: its name in messages and reports.
        kind: ``video`` or ``image``.
        width_px: width of the upright picture.
        height_px: height of the upright picture.
        duration_s: length in seconds; None for an image and where the container does not state it.
        frame_rate: frames per second on average; None for an image and where unknown.
        codec: FFmpeg's name of the decoder, ``jpeg``, ``png`` or ``webp``.
        stats: what decoding has done so far.
    """

    name: str
    kind: Literal["video", "image"]
    width_px: int
    height_px: int
    duration_s: float | None
    frame_rate: float | None
    codec: str
    stats: DecodeStats = field(default_factory=DecodeStats)
    _image: NDArray[np.uint8] | None = field(default=None, repr=False)
    _container: av.container.InputContainer | None = field(default=None, repr=False)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.close()

    def close(self) -> None:
        """Free the decoder and the file; frames that were yielded stay valid."""
        self._image = None
        if self._container is not None:
            self._container.close()
            self._container = None

    def frames(self, sampling: Sampling | None = None) -> Iterator[Frame]:
        """Decode lazily and yield the sampled frames in order of time; an image yields its one frame.

        Damaged packets are skipped and counted; a file that is cut short yields what can be decoded. `Frame.index`
        is the frame's position in presentation order: counted, or after a seek taken from the container's index
        (MP4, MOV), or else estimated from time and frame rate.

        Args:
            sampling: which frames; 32 evenly spaced ones by default.

        Yields:
            Frames, which may be used in any thread, also after `close`.

        Raises:
            OptionError: the media was closed.
        """
        if self._image is not None:
            self.stats.frames_decoded += 1
            self.stats.frames_sampled += 1
            yield ArrayFrame.from_rgb(self._image)
            return
        if self._container is None:
            raise OptionError(f"{self.name} was closed; open it again with open_media")
        stream = _video_stream(self._container)
        assert stream is not None  # open_media refuses files without one
        yield from Decoding(self._container, stream, self.stats).frames(sampling or Sampling(), self.duration_s)


def open_media(source: str | os.PathLike[str] | bytes | BinaryIO, *, name: str | None = None) -> Media:
    """Open a video or an image and check that it can be used.

    Args:
        source: path, content, or a seekable binary file (it is read from its start).
        name: its name in messages and reports; by default the last part of the path.

    Returns:
        The open media; use it as a context manager.

    Raises:
        MediaNotFoundError: the file does not exist.
        MediaOpenError: it is not a video or an image, is damaged, has no picture, or is too large.
    """
    file, name = _open_source(source, name)
    if isinstance(file, str):
        with foreign_errors(name), Path(file).open("rb") as stream:
            head = stream.read(SNIFF_BYTES)
    else:
        head = file.read(SNIFF_BYTES)
        file.seek(0)
    if not head:
        raise MediaOpenError(f"{name} is empty; copy or download it again")
    codec = image_codec(head)
    if codec is None:
        return describe(open_file(file, name), name)
    with foreign_errors(name):
        image = read_image(Path(file).read_bytes() if isinstance(file, str) else file.read(), name=name)
    return image_media(image, codec, name)


def _open_source(source: str | os.PathLike[str] | bytes | BinaryIO, name: str | None) -> tuple[str | BinaryIO, str]:
    if isinstance(source, bytes | bytearray | memoryview):
        return io.BytesIO(source), name or "the given data"
    if isinstance(source, str | os.PathLike):
        path = Path(source)
        name = name or path.name or str(path)
        if path.is_dir():
            raise MediaOpenError(f"{source} is a folder; name a video or image file in it")
        if not path.exists():
            raise MediaNotFoundError(f"there is no file {str(source)!r}; check the path")
        return str(path), name
    name = name or Path(str(getattr(source, "name", ""))).name or "the given stream"
    if not (hasattr(source, "read") and hasattr(source, "seek") and source.seekable()):
        raise MediaOpenError(f"{name} cannot be rewound; save it to a file, or pass its content as bytes")
    source.seek(0)
    return source, name


@contextmanager
def foreign_errors(name: str) -> Iterator[None]:
    """Translate what PyAV and the operating system raise while a file is opened; the only place that does."""
    try:
        yield
    except FileNotFoundError as exc:
        raise MediaNotFoundError(f"there is no file {name!r}; check the path") from exc
    except PermissionError as exc:
        raise MediaOpenError(f"{name} may not be read; change its permissions") from exc
    except (av.error.FFmpegError, OSError, ValueError) as exc:
        reason = getattr(exc, "strerror", None) or str(exc)
        raise MediaOpenError(
            f"{name} cannot be opened as a video or an image ({reason}): it is another kind of file, damaged, or cut "
            "short; check that it plays, or convert it to MP4 with H.264"
        ) from exc


def image_media(image_rgb: NDArray[np.uint8], codec: str, name: str) -> Media:
    """Make the `Media` of a uint8 ``[H, W, 3]`` RGB image."""
    height, width = image_rgb.shape[:2]
    return Media(name, "image", width, height, None, None, codec, _image=image_rgb)


def open_file(file: object, name: str) -> av.container.InputContainer:
    """Open a path or an object with `read` as a container that names no other files."""
    with foreign_errors(name):
        # "file:" keeps a name such as "concat:a.mp4" from being taken for a protocol.
        return av.open(
            f"file:{file}" if isinstance(file, str) else file,
            mode="r",
            container_options={"format_whitelist": CONTAINERS},
            metadata_errors="replace",
        )


def describe(container: av.container.InputContainer, name: str) -> Media:
    """Make the `Media` of an open container, which is closed where that fails."""
    with ExitStack() as on_failure:
        on_failure.callback(container.close)
        stream, context = open_stream(container, name)
        context.thread_type = "FRAME" if context.name in SKIPPING_CODECS else "AUTO"
        context.thread_count = min(len(os.sched_getaffinity(0)) + 1, _MAX_DECODER_THREADS)
        with foreign_errors(name):
            width, height = _probe_size(container, stream)
        if not (width and height):
            raise MediaOpenError(f"{name} does not state the size of its pictures; convert it to MP4 with H.264")
        on_failure.pop_all()
    rate = stream.average_rate or stream.guessed_rate
    frame_rate = float(rate) if rate else None
    duration_s = _duration_s(container, stream)
    return Media(name, "video", width, height, duration_s, frame_rate, context.name, _container=container)


def open_stream(container: av.container.InputContainer, name: str) -> tuple[av.VideoStream, av.VideoCodecContext]:
    """Return the video stream of a container and its decoder, which accepts no larger pictures than we do."""
    stream = _video_stream(container)
    if stream is None:
        raise MediaOpenError(f"{name} has no video stream (sound only?); name a source with pictures")
    context = stream.codec_context
    if context is None:
        raise MediaOpenError(f"{name} holds video of an unknown codec; convert it to MP4 with H.264")
    check_size(context.width, context.height, name)
    # A stream may change its size later; the decoder then refuses what is too large.
    context.options = {"max_pixels": str(MAX_PIXELS)}
    return stream, context


def _video_stream(container: av.container.InputContainer) -> av.VideoStream | None:
    """Return FFmpeg's choice among the video streams, leaving out cover pictures of sound files."""
    streams = [
        stream for stream in container.streams.video if not stream.disposition & av.stream.Disposition.attached_pic
    ]
    best = container.streams.best("video")
    return best if best in streams else next(iter(streams), None)


def _duration_s(container: av.container.InputContainer, stream: av.VideoStream) -> float | None:
    if stream.duration and stream.time_base and stream.duration > 0:
        return float(stream.duration * stream.time_base)
    if container.duration and container.duration > 0:
        return container.duration / av.time_base
    return None


def _probe_size(container: av.container.InputContainer, stream: av.VideoStream) -> tuple[int, int]:
    """Return the upright size; PyAV knows the rotation only of a decoded picture, so the first is decoded."""
    context = stream.codec_context
    pictures: list[av.VideoFrame] = []
    for number, packet in enumerate(container.demux(stream)):
        try:
            pictures = context.decode(packet)
            if not pictures and number == 0:
                # Draining is faster than feeding the decoder until its threads and reordering yield a picture.
                pictures = context.decode(None)
                context.flush_buffers()
        except av.error.FFmpegError:
            pass  # damaged packets are counted when the frames are decoded
        if pictures or number >= _PROBE_PACKETS:
            break
    width, height = context.width, context.height
    return Orientation.of(pictures[0]).size_wh(width, height) if pictures else (width, height)
