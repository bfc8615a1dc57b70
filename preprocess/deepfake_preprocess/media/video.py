"""`Video`: an open container, its stream, and the passes over it that a sampling takes.

Usually that is one. Where it shows that the file is not as long as it states, or has its frames elsewhere, the
packets are surveyed and the stream is sampled again.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack
from typing import BinaryIO, Final

import av

from deepfake_preprocess.errors import MediaOpenError
from deepfake_preprocess.media.decoding import SKIPPING_CODECS, Decoding, timed
from deepfake_preprocess.media.foreign import guarded
from deepfake_preprocess.media.frame import Frame
from deepfake_preprocess.media.image import MAX_PIXELS, check_size
from deepfake_preprocess.media.packets.decoder import DecodeStats
from deepfake_preprocess.media.packets.extent import Extent, falls_short, report_missing
from deepfake_preprocess.media.packets.reading import MOV, PacketReader
from deepfake_preprocess.media.pictures.cropping import stated_crop
from deepfake_preprocess.media.pictures.shown import Crop, Shown
from deepfake_preprocess.media.sampling import Sampling
from deepfake_preprocess.support.machine import usable_cores

# More threads hardly help a single stream, and each holds a picture.
_MAX_DECODER_THREADS: Final = 4
# If the first packets hold no picture, `frames` reads the rest.
_PROBE_PACKETS: Final = 64
# Decoders that find mistakes, and unless asked to refuse the picture show it anyway.
_STRICT: Final = frozenset({"hevc"})
# Where a damaged keyframe follows a flush, these end the process, if frames are decoded side by side (FFmpeg 8).
_CRASHING: Final = frozenset({"vp9"})


class Video:
    """A video that can be sampled any number of times.

    Attributes:
        container: what it is read from.
        stream: the stream of pictures in it.
        shown: how the pictures are shown.
        extent: what there is of them.
        stats: what decoding has done so far.
        size_wh: width and height of the upright picture.
        is_refused: whether a strict decoder refuses all of the first pictures.
    """

    def __init__(
        self,
        opening: Callable[[], av.container.InputContainer],
        name: str,
        *,
        header: BinaryIO | None = None,
        strict: bool = False,
    ) -> None:
        """Open it and decode its first picture.

        Args:
            opening: opens the container, at its start.
            name: its name in messages.
            header: the file, which is read for what FFmpeg does not hand on.
            strict: whether to refuse pictures in which the decoder finds mistakes, where it says so.

        Raises:
            MediaOpenError: it has no picture, or one that is too large.
        """
        self.stats = DecodeStats()
        self._opening, self._name, self._strict = opening, name, strict
        self.container = opening()
        self._at_start = False
        with ExitStack() as on_failure:
            on_failure.callback(lambda: self.container.close())
            self._describe(header)
            on_failure.pop_all()

    @property
    def duration_s(self) -> float | None:
        """Length of what there is, in seconds; None where that is not known yet."""
        duration, time_base = self.extent.duration, self.stream.time_base
        return float(duration * time_base) if duration and time_base else None

    def frames(self, sampling: Sampling) -> Iterator[Frame]:
        """Yield the sampled frames; see `deepfake_preprocess.Media.frames`."""
        return timed(guarded(self._frames(sampling), self._name), self.stats)

    def _frames(self, sampling: Sampling) -> Iterator[Frame]:
        extent = self.extent
        if extent.is_irregular:
            self._reopen()
        taken: list[float] = []
        decoding = self._decoding()
        is_known = bool(extent.times) or not (extent.duration is None or extent.is_passed(decoding.reader))
        if sampling.num_frames is not None and not is_known:
            self._survey()
            decoding = self._decoding()
        for frame in decoding.frames(sampling, extent):
            taken.append(frame.pts_seconds)
            yield frame
        is_off = extent.is_off(decoding.reader, sampling, decoding.num_found)
        decoding.end(extent)
        if is_off:
            self._survey()
            if sampling.num_frames is not None:
                yield from self._decoding().frames(sampling, extent, taken)

    def _describe(self, header: BinaryIO | None) -> None:
        self._choose()
        stream, context = self.stream, self.stream.codec_context
        self.shown = Shown(self.stats, self._name)
        if header is not None:
            place = header.tell()
            self.shown.crop = crop_of(header, self.container, stream)
            header.seek(place)  # PyAV may read on from here
        is_decoded = self._probe()
        self.is_refused = self._strict and context.name in _STRICT and not is_decoded
        self.size_wh = self.shown.size_wh(context.width, context.height)
        if not all(self.size_wh):
            raise MediaOpenError(
                f"{self._name} does not state the size of its pictures; convert it to MP4 with H.264"
            )
        check_size(*self.size_wh, self._name)
        reader = PacketReader(self.container, stream)
        self.extent = Extent.claimed(self.container, reader, _duration_s(self.container, stream), self.stats)

    def _decoding(self) -> Decoding:
        reader = self._reader()
        reader.rewind()
        return Decoding(reader, self.shown, self.stats)

    def _reader(self) -> PacketReader:
        at_start, self._at_start = self._at_start, False
        may_seek = not self.extent.is_irregular
        return PacketReader(self.container, self.stream, at_start=at_start, may_seek=may_seek)

    def _survey(self) -> None:
        """Learn what there is, and report what is missing; starts and ends at the start."""
        self._reopen()
        reader, declared = self._reader(), self.extent.duration
        reader.rewind()
        reader.learn_timing()
        self.extent.survey(reader)
        self._reopen()
        if declared is not None and falls_short(reader, declared):
            # Sound may go on. Lengths count from zero in some containers, and from the first frame in others.
            end = max(reader.end, self._reader().media_end())
            stated = (
                reader.start + declared if reader.start <= 0 else min(reader.start + declared, max(declared, end))
            )
            report_missing(self.stats, reader, end - reader.start, stated - reader.start)
            self._reopen()

    def _choose(self) -> None:
        self.stream, context = open_stream(self.container, self._name, self.stats, strict=self._strict)
        context.thread_count = min(usable_cores() + 1, _MAX_DECODER_THREADS)

    def _probe(self) -> bool:
        """Learn how pictures are shown, which PyAV knows only of a decoded one; return whether one was decoded."""
        context = self.stream.codec_context
        pictures: list[av.VideoFrame] = []
        for number, packet in enumerate(self.container.demux(self.stream)):
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
        self.shown.set_aspect(self.stream.sample_aspect_ratio)
        if pictures:
            self.shown.look(pictures[0])
        return bool(pictures)

    def _reopen(self) -> None:
        """Go back to the start for sure: where a seek leads depends on what was read."""
        self.container.close()
        self.container = self._opening()
        self._choose()
        self._at_start = True


def open_stream(
    container: av.container.InputContainer, name: str, stats: DecodeStats, *, strict: bool = False
) -> tuple[av.VideoStream, av.VideoCodecContext]:
    """Return the video stream of a container and its decoder, which accepts no larger pictures than we do.

    A `strict` decoder refuses pictures in which it finds mistakes.

    It is FFmpeg's choice, leaving out cover pictures of sound files; where there are several, `stats` notes it.
    """
    streams = pictures_of(container)
    best = container.streams.best("video")
    stream = best if best in streams else next(iter(streams), None)
    if stream is None and container.streams.video and container.format.name == MOV:
        raise MediaOpenError(f"{name} is a picture made of tiles and no video; analyze the file itself")
    if stream is None:
        raise MediaOpenError(f"{name} has no video stream (sound only?); name a source with pictures")
    context = stream.codec_context
    if context is None:
        raise MediaOpenError(f"{name} holds video of an unknown codec; convert it to MP4 with H.264")
    check_size(context.width, context.height, name)
    # A stream may change its size later; the decoder then refuses what is too large.
    context.options = {"max_pixels": str(MAX_PIXELS)}
    if strict and context.name in _STRICT:
        context.options |= {"err_detect": "explode"}
    context.thread_type = "FRAME" if context.name in SKIPPING_CODECS else "AUTO"
    if context.name in _CRASHING:
        context.thread_type = "SLICE"
    if len(streams) > 1:
        stats.note(
            f"of {len(streams)} video streams, number {1 + streams.index(stream)} was taken "
            f"({context.width}x{context.height})"
        )
    return stream, context


def crop_of(header: BinaryIO, container: av.container.InputContainer, stream: av.VideoStream) -> Crop:
    """Return what the header of a container leaves out of the pictures of one of its streams."""
    number, context = pictures_of(container).index(stream), stream.codec_context
    return stated_crop(header, number, stream.id, (context.width, context.height))


def pictures_of(container: av.container.InputContainer) -> list[av.VideoStream]:
    """Return the video streams but cover pictures and tiles."""
    no_video = av.stream.Disposition.attached_pic | av.stream.Disposition.dependent
    return [stream for stream in container.streams.video if not stream.disposition & no_video]


def _duration_s(container: av.container.InputContainer, stream: av.VideoStream) -> float | None:
    if stream.duration and stream.time_base and stream.duration > 0:
        return float(stream.duration * stream.time_base)
    if container.duration and container.duration > 0:
        return container.duration / av.time_base
    return None
