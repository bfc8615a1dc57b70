"""Opening a video or an image, and decoding only what the sampled frames need.

Never holds a whole video, never detects or crops.
"""

from __future__ import annotations

import io
import os
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import BinaryIO, Literal, Self

import av
import numpy as np
from numpy.typing import NDArray

from deepfake_preprocess.errors import MediaNotFoundError, MediaOpenError, OptionError
from deepfake_preprocess.media.foreign import foreign_errors
from deepfake_preprocess.media.frame import ArrayFrame, Frame
from deepfake_preprocess.media.image import SNIFF_BYTES, image_codec, read_image
from deepfake_preprocess.media.packets.decoder import DecodeStats
from deepfake_preprocess.media.pictures.animation import find_animation
from deepfake_preprocess.media.pictures.heif import find_still, read_still
from deepfake_preprocess.media.sampling import Sampling
from deepfake_preprocess.media.video import Video

# Demuxers that read one self-contained file. Playlists (hls, concat, dash) are left out: they name other files
# and addresses, which an uploaded file must not make us read.
CONTAINERS = (
    "mov,mp4,m4a,3gp,3g2,mj2,matroska,webm,avi,mpegts,mpeg,mpegvideo,flv,asf,ogg,gif,h264,hevc,av1,obu,ivf,"
    "m4v,mjpeg,mxf,nut,rm,wtv,dv,amr,mp3,wav,flac,aac"
)


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
        codec: FFmpeg's name of the decoder; for an image ``jpeg``, ``png``, ``webp``, ...
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
    _video: Video | None = field(default=None, repr=False)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.close()

    def close(self) -> None:
        """Free the decoder and the file; frames that were yielded stay valid."""
        self._image = None
        if self._video is not None:
            self._video.container.close()
            self._video = None

    def frames(self, sampling: Sampling | None = None) -> Iterator[Frame]:
        """Decode lazily and yield the sampled frames in order of time; an image yields its one frame.

        What is damaged is left out and counted, up to the next keyframe; a file that is cut short is sampled as far
        as it goes (see `DecodeStats`). Where N frames are sampled and it shows at the end that the header states
        another length, those of a second pass follow, again in order of time. `Frame.index` is the frame's position
        in presentation order: counted, or after a seek taken from the container's index (MP4, MOV), or else estimated
        from time and frame rate.

        Args:
            sampling: which frames; 32 evenly spaced ones by default.

        Yields:
            Frames, which may be used in any thread, also after `close`.

        Raises:
            OptionError: the media was closed.
            MediaOpenError: it cannot be read, or its pictures cannot be converted.
        """
        if self._image is not None:
            self.stats.frames_decoded += 1
            self.stats.frames_sampled += 1
            yield ArrayFrame.from_rgb(self._image)
            return
        video = self._video
        if video is None:
            raise OptionError(f"{self.name} was closed; open it again with open_media")
        yield from video.frames(sampling or Sampling())
        self.duration_s = video.duration_s


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
    with foreign_errors(name), ExitStack() as stack:
        stream = stack.enter_context(Path(file).open("rb")) if isinstance(file, str) else file
        head = stream.read(SNIFF_BYTES)
        if not head:
            raise MediaOpenError(f"{name} is empty; copy or download it again")
        if (codec := image_codec(head)) is not None:
            return _open_image(file, stream, codec, name)
        if (still := find_still(stream)) is not None:
            stats = DecodeStats()
            with open_file(_rewound(file), name) as container:
                codec = container.streams.video[0].codec_context.name
                return image_media(read_still(container, still, name, stats), codec, name, stats)
        video = Video(lambda: open_file(_rewound(file), name), name, header=stream, strict=True)
        if video.is_refused:
            # A decoder that refuses pictures with mistakes refuses all that some encoders write.
            video.container.close()
            video = Video(lambda: open_file(_rewound(file), name), name, header=stream)
        return video_media(video, name)


def _open_image(file: str | BinaryIO, stream: BinaryIO, codec: str, name: str) -> Media:
    """Open what begins as a still image."""
    animation = find_animation(stream, codec, name)
    if animation is not None:
        source = file if animation.rewritten is None else animation.rewritten
        container_format = animation.container_format
        return video_media(Video(lambda: open_file(_rewound(source), name, container_format), name), name)
    stream.seek(0)
    return image_media(read_image(stream.read(), name=name), codec, name)


def _rewound(file: str | BinaryIO) -> str | BinaryIO:
    if not isinstance(file, str):
        file.seek(0)
    return file


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
        if not path.is_file():
            raise MediaOpenError(f"{source} is a pipe or a device, which may never end; save it to a file")
        return str(path), name
    name = name or Path(str(getattr(source, "name", ""))).name or "the given stream"
    if not (hasattr(source, "read") and hasattr(source, "seek") and source.seekable()):
        raise MediaOpenError(f"{name} cannot be rewound; save it to a file, or pass its content as bytes")
    source.seek(0)
    return source, name


def image_media(image_rgb: NDArray[np.uint8], codec: str, name: str, stats: DecodeStats | None = None) -> Media:
    """Make the `Media` of a uint8 ``[H, W, 3]`` RGB image; `stats` holds notes on how it was read."""
    height, width = image_rgb.shape[:2]
    return Media(name, "image", width, height, None, None, codec, stats or DecodeStats(), _image=image_rgb)


def open_file(file: object, name: str, container_format: str | None = None) -> av.container.InputContainer:
    """Open a path or an object with `read` as a container that names no other files, of any format or a given one."""
    with foreign_errors(name):
        # "file:" keeps a name such as "concat:a.mp4" from being taken for a protocol.
        return av.open(
            f"file:{file}" if isinstance(file, str) else file,
            mode="r",
            format=container_format,
            container_options={"format_whitelist": CONTAINERS},
            metadata_errors="replace",
        )


def video_media(video: Video, name: str) -> Media:
    """Make the `Media` of an open video."""
    rate = video.stream.average_rate or video.stream.guessed_rate
    frame_rate, codec = float(rate) if rate else None, video.stream.codec_context.name
    width, height = video.size_wh
    return Media(name, "video", width, height, video.duration_s, frame_rate, codec, video.stats, _video=video)
