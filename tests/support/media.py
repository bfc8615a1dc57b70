"""Makes the clips and images that tests use, from `skimage.data.astronaut()` (a face, public domain) with PyAV.

Everything is made at the time of the test; no clip is committed. Import it as ``import media`` (see conftest.py).
"""

from __future__ import annotations

import io
from collections.abc import Iterable, Sequence
from fractions import Fraction
from functools import cache
from pathlib import Path

import av
import cv2
import numpy as np
import skimage.data
from numpy.typing import NDArray


@cache
def astronaut() -> NDArray[np.uint8]:
    """512 x 512 RGB, one face at about x 170 to 280, y 60 to 210."""
    return np.asarray(skimage.data.astronaut())


@cache
def _astronaut_of(side: int) -> NDArray[np.uint8]:
    return np.asarray(cv2.resize(astronaut(), (side, side), interpolation=cv2.INTER_AREA))


def picture(width: int, height: int, *, faces: int = 1, shift_px: int = 0) -> NDArray[np.uint8]:
    """`faces` astronauts side by side on gray, moved right by `shift_px`; as large as they fit."""
    canvas = np.full((height, width, 3), 96, dtype=np.uint8)
    side = min(height, width // faces)
    face = _astronaut_of(side)
    for number in range(faces):
        left = number * (width // faces) + shift_px
        part = face[:, : max(0, width - left)]
        canvas[:side, left : left + part.shape[1]] = part
    return canvas


def numbered_pictures(
    width: int, height: int, count: int, *, faces: int = 1, moving: bool = False
) -> Iterable[NDArray[np.uint8]]:
    """`count` pictures, each with its number as a 16-bit bar code of black and white squares at the bottom."""
    still = picture(width, height, faces=faces)
    cell = max(1, width // 16)
    for number in range(count):
        image = picture(width, height, faces=faces, shift_px=number * 2) if moving else still.copy()
        for bit in range(16):
            image[-cell:, bit * cell : (bit + 1) * cell] = 255 if number >> bit & 1 else 0
        yield image


def read_number(image: NDArray[np.uint8]) -> int:
    """Read back the number that `numbered_pictures` drew."""
    cell = max(1, image.shape[1] // 16)
    row = image[-cell // 2 - 1]
    return sum(1 << bit for bit in range(16) if row[bit * cell + cell // 2].mean() > 127)


def write_video(
    path: Path | io.BytesIO,
    images: Iterable[NDArray[np.uint8]],
    *,
    fps: int = 25,
    codec: str = "libx264",
    pix_fmt: str = "yuv420p",
    gop: int = 12,
    b_frames: int = 2,
    rotation: int = 0,
    display_matrix: Sequence[int] | None = None,
    ticks: Sequence[int] | None = None,
    audio_s: float = 0.0,
    options: dict[str, str] | None = None,
    container_format: str | None = None,
    muxing: dict[str, str] | None = None,
    color: tuple[int, int] | None = None,
) -> None:
    """Encode RGB pictures.

    Args:
        path: where to; the ending names the container.
        images: uint8 ``[H, W, 3]`` pictures.
        fps: frames per second.
        codec: FFmpeg's encoder.
        pix_fmt: FFmpeg's pixel format.
        gop: frames from keyframe to keyframe.
        b_frames: most B-frames in a row.
        rotation: anticlockwise quarter turns that a player shall apply, in degrees.
        display_matrix: the nine numbers of the matrix instead of `rotation`.
        ticks: time of each frame in milliseconds, for variable frame rates.
        audio_s: length of a silent sound track.
        options: encoder options.
        container_format: FFmpeg's muxer, where the path does not tell it.
        muxing: options of the muxer.
        color: AVColorSpace and AVColorRange to convert with and to write into the stream.
    """
    target = str(path) if isinstance(path, Path) else path
    with av.open(target, "w", format=container_format, options=muxing or {}) as container:
        # All streams must be there before the first packet is written.
        sound = container.add_stream("aac", rate=16000, layout="mono") if audio_s else None
        stream = None
        for number, image in enumerate(images):
            frame = av.VideoFrame.from_ndarray(image, format="rgb24")
            if stream is None:
                stream = container.add_stream(codec, rate=fps)
                stream.width, stream.height = image.shape[1], image.shape[0]
                stream.pix_fmt = pix_fmt
                stream.gop_size = gop
                context = stream.codec_context
                context.thread_count = 1
                context.options = options or {}
                if codec in {"libx264", "libx265", "mpeg4", "mpeg2video"}:
                    context.max_b_frames = b_frames
                if codec == "libx264":
                    context.options = {"preset": "veryfast", "crf": "18", **(options or {})}
                if ticks is not None:
                    context.time_base = Fraction(1, 1000)
                if color is not None:
                    context.colorspace, context.color_range = color
                if rotation:
                    stream.set_display_rotation(rotation)
                if display_matrix is not None:
                    stream.set_display_matrix(list(display_matrix))
            if color is not None:
                frame = frame.reformat(format=pix_fmt, dst_colorspace=color[0], dst_color_range=color[1])
            frame.pts = number if ticks is None else ticks[number]
            frame.time_base = Fraction(1, fps) if ticks is None else Fraction(1, 1000)
            container.mux(stream.encode(frame))
        if sound is not None:
            _write_silence(container, sound, audio_s)
        if stream is not None:
            container.mux(stream.encode(None))


def _write_silence(container: av.container.OutputContainer, stream: av.AudioStream, length_s: float) -> None:
    for start in range(0, int(length_s * 16000), 1024):
        frame = av.AudioFrame.from_ndarray(np.zeros((1, 1024), np.float32), format="fltp", layout="mono")
        frame.sample_rate, frame.pts, frame.time_base = 16000, start, Fraction(1, 16000)
        container.mux(stream.encode(frame))
    container.mux(stream.encode(None))


def make_clip(
    path: Path,
    *,
    size_wh: tuple[int, int] = (320, 240),
    duration_s: float = 2.0,
    fps: int = 25,
    faces: int = 1,
    moving: bool = False,
    **encoding: object,
) -> Path:
    """Write a clip of astronauts with numbered frames; `encoding` goes to `write_video`. Returns `path`."""
    images = numbered_pictures(*size_wh, round(duration_s * fps), faces=faces, moving=moving)
    write_video(path, images, fps=fps, **encoding)  # type: ignore[arg-type]
    return path


def make_kinds(folder: Path, *, duration_s: float) -> list[Path]:
    """Write four small clips that differ: one face or two, moving or still. Returns their paths."""
    return [
        make_clip(
            folder / f"{faces}{still}.mp4", size_wh=(320, 180), duration_s=duration_s, faces=faces, moving=not still
        )
        for faces in (1, 2)
        for still in (0, 1)
    ]


def make_audio_only(path: Path, *, duration_s: float = 0.5) -> Path:
    """Write an MP4 with a sound track and no picture."""
    write_video(path, [], audio_s=duration_s)
    return path


def make_truncated(path: Path, *, keep: float = 0.5, playable: bool = False, **clip: object) -> Path:
    """Write a clip and cut the file; `playable` puts the index first, so that what is left can be decoded."""
    whole = path.with_name(f"whole-{path.name}")
    make_clip(whole, **clip)  # type: ignore[arg-type]
    if playable:
        front = path.with_name(f"front-{path.name}")
        with av.open(str(whole)) as source, av.open(str(front), "w", options={"movflags": "faststart"}) as target:
            stream = target.add_stream_from_template(source.streams.video[0])
            for packet in source.demux(video=0):
                if packet.dts is not None:
                    packet.stream = stream
                    target.mux(packet)
        whole = front
    data = whole.read_bytes()
    path.write_bytes(data[: int(len(data) * keep)])
    return path
