"""One pass over a video stream that decodes only what the sampled frames need.

Packets are read ahead of the decoder; their timestamps alone say which frames are wanted (`FramePicker`). A frame
that is neither wanted nor referenced by another is not decoded (FFmpeg's ``skip_frame``, set per packet), and the
others have exactly the pixels of a plain decode. When a keyframe comes before the next wanted frame, reading goes on
there: by a seek where the container's index names it, otherwise by dropping the packets in between. The fast mode
reads each stretch between keyframes from its start.
"""

from __future__ import annotations

import time
from bisect import bisect_left
from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from fractions import Fraction
from itertools import chain, groupby, takewhile
from typing import TYPE_CHECKING, TypeAlias, TypeVar

import av

from deepfake_preprocess.media.frame import Frame
from deepfake_preprocess.media.packets.decoder import Decoder, DecodeStats
from deepfake_preprocess.media.packets.extent import Extent
from deepfake_preprocess.media.packets.packet_references import reference_test
from deepfake_preprocess.media.packets.reading import MIN_SEEK_S, MOV, PacketReader, PacketTimes
from deepfake_preprocess.media.pictures.shown import Shown
from deepfake_preprocess.media.sampling import MAX_STRETCH_S, FramePicker, Sampling, early_offsets

if TYPE_CHECKING:  # PyAV's packets are generic for type checkers only
    Packet: TypeAlias = av.Packet[av.VideoStream]

FrameT = TypeVar("FrameT", bound=Frame)

SKIPPING_CODECS = frozenset({"h264", "hevc"})
"""Decoders whose per-packet ``skip_frame="NONREF"`` leaves the pixels of the other frames as they are (tested)."""

# Packets held back in case a keyframe makes them unnecessary; x264 writes one every 250 frames.
_MAX_HELD_PACKETS = 300
_MAX_HELD_BYTES = 32 * 2**20
# Restarting the decoder stalls its threads for about a few frames; jumping over fewer packets does not pay off.
_MIN_JUMP_PACKETS = 8
# Containers whose index names every keyframe. MPEG-TS has none, and FLV's gave times that were off.
_INDEXED = frozenset({MOV, "matroska,webm"})
# The fast mode is used only if it decodes at most this share of the time span that uniform sampling decodes.
_FAST_MAX_SHARE = 0.9


@dataclass(frozen=True, slots=True)
class _Stretch:
    """The time between two keyframes, by the index, and the samples in it; all in ticks."""

    start: int  # of the first keyframe; it may be shown later, after pictures of the previous stretch
    stop: int
    offsets: list[int]  # of the samples, from the first keyframe


def timed(frames: Iterator[FrameT], stats: DecodeStats) -> Iterator[FrameT]:
    """Yield sampled frames, and add their number and the time that they take to `stats`."""
    while True:
        started = time.perf_counter()
        frame = next(frames, None)
        stats.decode_s += time.perf_counter() - started
        if frame is None:
            return
        stats.frames_sampled += 1
        yield frame


class Decoding:
    """One pass over a stream from its start, which yields sampled frames.

    Attributes:
        reader: what it reads with.
        num_found: frames that were found for the times asked for, those that are damaged included.
    """

    def __init__(self, reader: PacketReader, shown: Shown, stats: DecodeStats) -> None:
        """Prepare a pass with a `reader` that is at the start; adds to `stats`."""
        self.reader = reader
        self._stream = reader.stream
        self._shown = shown
        self._start, self._step, self._time_base = reader.start, reader.step, reader.time_base
        self._min_seek = int(MIN_SEEK_S / self._time_base)  # ticks, reckoned once: it is asked for every packet
        context = self._stream.codec_context
        self._decoder = Decoder(context, stats, start=self._start, step=self._step, time_base=self._time_base)
        self._may_skip = context.name in SKIPPING_CODECS and not _has_temporal_layers(context)
        self._is_referenced = reference_test(context.name if self._may_skip else "", context.extradata)
        self._may_jump = True
        self._wanted: dict[int, int] = {}
        self._unreferenced: set[int | None] = set()  # times of packets that were read and not yet jumped over
        # Largest distance from a frame's decoding time to its presentation time, learned from what is read.
        self._reorder_ticks = 0
        self._discarded: list[int] | None = None
        self.num_found = 0

    def frames(self, sampling: Sampling, extent: Extent, taken: Sequence[float] = ()) -> Iterator[Frame]:
        """Yield the sampled frames in order of time.

        Args:
            sampling: which frames.
            extent: what is known of the stream.
            taken: times of frames that another pass yielded, in seconds; where they are, none are sampled.
        """
        reader, duration = self.reader, extent.duration
        num_frames, num_stated = sampling.num_frames, self._stream.frames
        if num_frames is not None and 0 < num_stated <= num_frames and num_stated == len(self._stream.index_entries):
            self.num_found = num_stated
            for index, (picture, pts) in enumerate(self._pictures()):
                yield self._frame(picture, index, pts)
            return
        reader.learn_timing()
        reach = sampling.reach(duration=duration, time_base=self._time_base)
        if num_frames is not None and extent.times:
            ticks = [self._start + round(Fraction(pts_seconds) / self._time_base) for pts_seconds in taken]
            targets, reach = extent.spread(sampling, ticks), 0
        else:
            targets = sampling.targets(
                start=self._start, duration=duration, time_base=self._time_base, frame=self._step
            )
        may_end_early = extent if sampling.fps is not None else None
        if reader.timing is not PacketTimes.SHOWN:
            yield from self._by_counting(FramePicker(targets), may_end_early)
            return
        if sampling.mode == "fast" and duration is not None and not extent.times:
            end = self._start + duration
            times = list(takewhile(lambda target: target < end, targets))
            if (stretches := self._stretches(times, end)) is not None:
                yield from self._by_stretch(stretches)
                return
            targets = iter(times)
        yield from self._by_packet(FramePicker(targets, reach=reach), extent=may_end_early)

    def end(self, extent: Extent) -> None:
        """Record what damage hides up to the end, which was read unless an index names it."""
        is_indexed = extent.is_indexed and extent.duration is not None
        self._decoder.end(self._start + (extent.duration or 0) if is_indexed else self.reader.end)

    def _frame(self, picture: av.VideoFrame, index: int, pts: int) -> Frame:
        pts_seconds = max(0.0, float((pts - self._start) * self._time_base))
        return self._shown.frame(picture, index=index, pts_seconds=pts_seconds)

    def _by_counting(self, picker: FramePicker, extent: Extent | None) -> Iterator[Frame]:
        """Decode everything, for streams whose packets do not say when they are shown (raw H.264, some AVI)."""
        held: tuple[av.VideoFrame, int] | None = None
        index = -1
        for picture, pts in self._pictures():
            picks = picker.read(pts, pts)
            self.num_found += len(picks)
            if held is not None and held[1] in picks:
                yield self._frame(held[0], index, held[1])
            held, index = (picture, pts), index + 1
            if picker.target is None:
                return
        if held is not None and held[1] in picker.end(None if extent is None else extent.stop(self.reader)):
            yield self._frame(held[0], index, held[1])

    def _pictures(self) -> Iterator[tuple[av.VideoFrame, int]]:
        """Yield every picture with its time; those without one follow the previous picture at the frame rate."""
        time_next = self._start
        times: deque[int] = deque()
        self._decoder.context.skip_frame = "DEFAULT"
        for packet in chain(iter(self.reader.read, None), (None,)):
            if packet is not None and packet.dts is not None and self.reader.timing is PacketTimes.DECODING:
                times.append(packet.dts)
                packet.pts = None
            for picture in self._decoder.decode(packet):
                while times and self._decoder.left_out:
                    times.popleft()
                    self._decoder.left_out -= 1
                pts = times.popleft() if times else time_next if picture.pts is None else picture.pts
                time_next = pts + self._step
                yield picture, pts

    def _stretches(self, targets: list[int], end: int) -> list[_Stretch] | None:
        """Return where the fast mode samples instead of at `targets`; None where that would gain nothing."""
        index = self._stream.index_entries
        first = self.reader.peek()
        if self.reader.format_name not in _INDEXED or not len(index) or first is None or first.pts is None:
            return None
        # An index holds decoding times (MP4) or presentation times (Matroska).
        delay = first.pts - index[0].timestamp
        longest = MAX_STRETCH_S / self._time_base
        stretches = []
        ticks_uniform = ticks_fast = 0
        for position, group in groupby(targets, lambda target: max(0, index.search_timestamp(target - delay))):
            timestamp = index[position].timestamp
            start = max(timestamp + delay, self._start)
            following = index.search_timestamp(timestamp + 1, backward=False)
            stop = index[following].timestamp + delay if following >= 0 else end
            offsets = uniform = [max(0, target - start) for target in group]
            if stop - start <= longest:
                offsets = early_offsets(len(uniform), max(0, stop - start), self._step)
            stretches.append(_Stretch(start, stop, offsets))
            ticks_uniform, ticks_fast = ticks_uniform + uniform[-1], ticks_fast + offsets[-1]
        return stretches if ticks_fast < _FAST_MAX_SHARE * ticks_uniform else None

    def _by_stretch(self, stretches: list[_Stretch]) -> Iterator[Frame]:
        """Decode the samples of each stretch, starting at its keyframe."""
        latest = -1.0
        for stretch in stretches:
            # The middle of the stretch, where it does not matter which of a keyframe's times the container uses.
            keyframe = self.reader.land((stretch.start + stretch.stop) // 2)
            if keyframe is None or keyframe.pts is None:
                return  # the file is cut short
            start = max(stretch.start, keyframe.pts)
            reach = (stretch.offsets[1] - stretch.offsets[0]) // 2 if len(stretch.offsets) > 1 else 0
            picker = FramePicker(iter([start + offset for offset in stretch.offsets]), reach=reach)
            self._jump(picker, keyframe)
            for frame in self._by_packet(picker, begin=keyframe.pts):
                if frame.pts_seconds > latest:
                    latest = frame.pts_seconds
                    yield frame

    def _by_packet(
        self, picker: FramePicker, *, begin: int | None = None, extent: Extent | None = None
    ) -> Iterator[Frame]:
        """Read ahead, and decode as little as possible up to each wanted frame.

        `begin` is the time of the keyframe that reading begins with, if that is not the stream's first. Times after
        the end of the `extent` are not wanted.
        """
        held: deque[Packet] = deque()  # read, not yet decoded, in decoding order
        held_bytes = 0
        due: set[int] = set()  # times of the wanted frames among them
        sought: int | None = None  # target of the last seek
        while picker.target is not None or due:
            packet = self.reader.read()
            if packet is None:
                picks = picker.end(None if extent is None else extent.stop(self.reader))
            elif packet.is_discard or packet.pts is None:
                picks = {}
            else:
                if not (referenced := self._is_referenced(memoryview(packet))):
                    self._unreferenced.add(packet.pts)
                picks = picker.read(packet.pts, packet.dts, referenced=referenced)
                self._reorder_ticks = max(self._reorder_ticks, packet.pts - (packet.dts or packet.pts))
            self._wanted.update(picks)
            self.num_found += len(picks)
            due.update(picks)
            # What is shown before the keyframe of a jump refers to earlier frames, and no later frame refers to it.
            if packet is not None and (begin is None or packet.pts is None or packet.pts >= begin):
                held.append(packet)
                held_bytes += packet.size

            too_many = len(held) > _MAX_HELD_PACKETS or held_bytes > _MAX_HELD_BYTES
            while held and (due or too_many) and (packet is None or self._is_decided(held[0], picker)):
                head = held.popleft()
                held_bytes -= head.size
                too_many = False
                if head.pts is not None:
                    due.discard(head.pts)
                yield from self._emit(head)
            if packet is None:
                break
            if picker.target is None or due or not self._may_jump:
                continue

            if packet.is_keyframe and packet.pts is not None and packet.pts <= picker.target:
                if len(held) > _MIN_JUMP_PACKETS:
                    yield from self._finish()
                    held, held_bytes, begin = deque([packet]), packet.size, packet.pts
            elif sought != picker.target and self._is_keyframe_ahead(picker.target, packet):
                sought = picker.target
                yield from self._finish()
                held.clear()
                held_bytes, begin = 0, None
                if (landed := self.reader.land(picker.target)) is not None:
                    begin = landed.pts
                    self._jump(picker, landed)
        yield from self._finish()

    def _is_keyframe_ahead(self, target: int, packet: Packet) -> bool:
        """Return whether the index names a keyframe well beyond `packet` from which `target` can be decoded."""
        index = self._stream.index_entries
        position = index.search_timestamp(target - self._reorder_ticks)
        if position < 0 or packet.dts is None or not self.reader.may_seek:
            return False
        return bool(index[position].timestamp - packet.dts > self._min_seek)

    def _jump(self, picker: FramePicker, keyframe: Packet) -> None:
        """Continue `picker` at `keyframe`, with the number of frames before it."""
        index = self._stream.index_entries
        if keyframe.dts is not None and len(index) == self._stream.frames:
            # A complete index (MP4) counts in decoding order.
            if self._discarded is None:
                self._discarded = [position for position, entry in enumerate(index) if entry.is_discard]
            position = index.search_timestamp(keyframe.dts, any_frame=True)
            picker.jump(position - bisect_left(self._discarded, position))
        else:
            # Frames that are decoded after the keyframe and shown before it are part of the count up to its time.
            pts = keyframe.pts or 0
            picker.jump(round((pts - self._start) * self._time_base * self.reader.rate), counted_to=pts)

    def _is_decided(self, packet: Packet, picker: FramePicker) -> bool:
        pts = packet.pts
        return pts is None or packet.is_discard or pts in self._wanted or picker.is_settled(pts)

    def _emit(self, packet: Packet | None) -> Iterator[Frame]:
        """Decode one packet, or what the decoder holds, and yield the wanted frames that come out."""
        # Only where there is something to skip: a decoder that may skip does not say that a packet is damaged.
        unneeded = packet is not None and packet.pts in self._unreferenced and packet.pts not in self._wanted
        self._decoder.context.skip_frame = "NONREF" if unneeded and self._may_skip else "DEFAULT"
        for picture in self._decoder.decode(packet):
            pts = picture.pts
            if pts is not None and (index := self._wanted.pop(pts, None)) is not None:
                yield self._frame(picture, index, pts)

    def _finish(self) -> Iterator[Frame]:
        """Drain the decoder, and make it ready to start at a keyframe."""
        yield from self._emit(None)
        if self._wanted:
            # A keyframe from which decoding does not start cleanly (intra refresh): decode the rest in order.
            self._may_jump = False
        self._wanted.clear()
        self._unreferenced.clear()
        self._decoder.restart()


def _has_temporal_layers(context: av.VideoCodecContext) -> bool:
    """Return whether an HEVC stream has temporal sub-layers, or does not say.

    In such a stream "not referenced" only means not by a frame of the same sub-layer (ITU-T H.265, 7.4.2.2), so
    these frames must be decoded. The number is in the decoder configuration record, ISO/IEC 14496-15, 8.3.3.1.
    """
    if context.name != "hevc":
        return False
    record = context.extradata or b""
    return not (len(record) > 21 and record[0] == 1 and (record[21] >> 3 & 7) == 1)
