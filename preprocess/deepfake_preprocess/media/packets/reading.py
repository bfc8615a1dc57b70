"""Packets of one stream in decoding order: `PacketReader`.

Times, lengths and counts in a file's header are claims. Reading goes by what comes: times that start anew or repeat
are continued (`Clock`), empty packets and places that cannot be read are passed over.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from enum import Enum
from fractions import Fraction
from itertools import islice
from typing import TYPE_CHECKING, Final, TypeAlias

import av

from deepfake_preprocess.media.packets.clock import MAX_GAP_S, Clock

if TYPE_CHECKING:  # PyAV's packets are generic for type checkers only
    Packet: TypeAlias = av.Packet[av.VideoStream]

_ASSUMED_RATE: Final = Fraction(25)
MOV: Final = "mov,mp4,m4a,3gp,3g2,mj2"
# Most pictures that wait for one decoded later: ITU-T H.264, A.3.1, and H.265, A.4.2 (max_dec_frame_buffering).
_MAX_REORDERED: Final = 16
# Places in a row that the demuxer may refuse.
_MAX_REFUSALS: Final = 16
MIN_SEEK_S: Final = 1
"""Less than this is read faster than it is passed over."""
# AVI stores when packets are decoded, and FFmpeg tells from those of MPEG-4 only when they are shown.
REORDERED_IN_AVI: Final = frozenset({"h264", "hevc"})


class PacketTimes(Enum):
    """Which times the packets of a stream have."""

    SHOWN = "when each is shown, and when it is decoded"
    DECODING = "when each is decoded; pictures are shown at these times, in the order in which they come out"
    REPEATED = "the same, again and again"
    NONE = "none, or not all"


def packets_of(container: av.container.InputContainer, stream: av.VideoStream) -> Iterator[Packet]:
    """Yield the packets from here on; empty ones, and places that the demuxer refuses, are passed over.

    Raises:
        OSError, av.error.FFmpegError: reading fails for another reason.
    """
    refusals = 0
    while refusals < _MAX_REFUSALS:
        try:
            for packet in container.demux(stream):
                if packet.size:
                    refusals = 0
                    yield packet
                elif packet.pts is None and packet.dts is None:
                    return  # the end
        except av.error.InvalidDataError:
            refusals += 1
        else:
            return


class PacketReader:
    """Reads the packets of a stream, from its start or from a keyframe on.

    Attributes:
        stream: the stream.
        time_base: seconds of a tick.
        timing: which times packets have; `SHOWN` until that was learned.
        format_name: FFmpeg's name of the container.
        rate: frames per second, assumed where the container states none.
        step: ticks from frame to frame at that rate.
        start: time of the first frame, in ticks.
        end: end of the last frame read so far, in ticks.
        num_read: packets read since the start.
        jumped: whether packets were passed over since the start, by a seek.
    """

    def __init__(
        self,
        container: av.container.InputContainer,
        stream: av.VideoStream,
        *,
        at_start: bool = False,
        may_seek: bool = True,
    ) -> None:
        """Prepare to read.

        `at_start` says that nothing was read yet, so that no seek is needed; `may_seek`, that times start only once.
        """
        self.stream = stream
        self.time_base = stream.time_base or Fraction(1, av.time_base)
        self.rate = stream.average_rate or stream.guessed_rate or _ASSUMED_RATE
        self.step = max(1, round(1 / (self.rate * self.time_base)))
        self.start = stream.start_time or 0
        self.end = self.start
        self.num_read = 0
        self.jumped = False
        self.timing = PacketTimes.SHOWN
        self.format_name = container.format.name
        self._container = container
        self._at_start = at_start
        self._may_seek = may_seek
        self._packets: Iterator[Packet] = iter(())
        self._held: deque[Packet] = deque()  # read ahead
        self._clock = self._new_clock()

    def rewind(self) -> None:
        """Continue at the start."""
        self._held.clear()
        self._clock = self._new_clock()
        self.end, self.num_read, self.jumped = self.start, 0, False
        if self._at_start:
            self._packets, self._at_start = packets_of(self._container, self.stream), False
            return
        index = self.stream.index_entries
        # With an edit list the first packets come before the start of the stream.
        try:
            self._seek(min(index[0].timestamp if len(index) else 0, self.start))
        except (av.error.FFmpegError, OverflowError):
            # Bare streams (raw H.264) have no times, only byte positions.
            self._container.seek(0, stream=self.stream, unsupported_byte_offset=True)
            self._packets = packets_of(self._container, self.stream)

    def read(self) -> Packet | None:
        """Return the next packet, or None at the end or where the file is cut short."""
        packet = self._held.popleft() if self._held else self._next()
        if packet is None:
            return None
        if self.timing is PacketTimes.REPEATED:
            packet.pts = packet.dts = None
        self.num_read += 1
        time = self.start + (self.num_read - 1) * self.step if packet.pts is None else packet.pts
        self.end = max(self.end, time + self.step)
        return packet

    def peek(self) -> Packet | None:
        """Return the packet that is read next."""
        return next(iter(self._ahead(1)), None)

    def drain(self) -> None:
        """Learn where the stream ends, by reading what is left, or what is left from the index's last keyframe on."""
        index, ahead = self.stream.index_entries, self.peek()
        if self.may_seek and ahead is not None and ahead.dts is not None and len(index):
            last = index[len(index) - 1].timestamp
            if (last - ahead.dts) * self.time_base > MIN_SEEK_S:
                self.land(last)
        while self.read() is not None:
            pass

    @property
    def may_seek(self) -> bool:
        """Whether the times of the index are those of the packets, as far as is known."""
        return self._may_seek and not self._clock.jumps

    def land(self, target: int) -> Packet | None:
        """Seek to the last keyframe that is shown at `target` or before; its packet is the next one read."""
        index = self.stream.index_entries
        timestamp = target
        self.jumped = True
        while True:
            self._seek(timestamp)
            self._held.clear()
            self._clock = self._new_clock()
            packet = self.peek()
            if packet is None:
                return None
            position = index.search_timestamp(timestamp - 1)
            if packet.pts is None or packet.pts <= target or position < 0:
                return packet
            timestamp = index[position].timestamp

    def learn_timing(self) -> PacketTimes:
        """Return which times packets have, judging by the next ones."""
        packets = self._ahead(_MAX_REORDERED + 1)
        # Matroska stores presentation times only. FFmpeg derives the others once it has seen as many packets as the
        # encoder may have reordered.
        first = next((packet for packet in packets if packet.pts is None or packet.dts is not None), None)
        if packets and (first is None or first.pts is None):
            self.timing = PacketTimes.NONE
        elif self._clock.repeats > len(packets) // 2:
            self.timing = PacketTimes.REPEATED
        elif self.format_name == "avi" and self.stream.codec_context.name in REORDERED_IN_AVI:
            self.timing = PacketTimes.DECODING
        else:
            self.timing = PacketTimes.SHOWN
        return self.timing

    def survey(self) -> list[int]:
        """Read all that is left; return the time of every packet in ticks, in order."""
        times: set[int] = set()
        while (packet := self.read()) is not None:
            time = packet.dts if self.timing is PacketTimes.DECODING else packet.pts
            if time is None:
                time = self.start + (self.num_read - 1) * self.step
            if not packet.is_discard:
                times.add(time)
        return sorted(times)

    def media_end(self) -> int:
        """Read all that is left of all streams, sound too; return where the last ends, in ticks of this one."""
        last = Fraction(0)
        try:
            for packet in self._container.demux():
                if packet.pts is not None and packet.size:
                    last = max(last, (packet.pts + (packet.duration or 0)) * packet.time_base)
        except (OSError, av.error.FFmpegError):
            pass
        return round(last / self.time_base)

    def _seek(self, timestamp: int) -> None:
        self._container.seek(timestamp, stream=self.stream)
        self._packets = packets_of(self._container, self.stream)

    def _new_clock(self) -> Clock:
        return Clock(self.step, round(Fraction(MAX_GAP_S) / self.time_base), _MAX_REORDERED * self.step)

    def _ahead(self, count: int) -> list[Packet]:
        """Return the packets that are read next."""
        while len(self._held) < count and (packet := self._next()) is not None:
            self._held.append(packet)
        return list(islice(self._held, count))

    def _next(self) -> Packet | None:
        """Take a packet from the container, and continue its times."""
        try:
            packet = next(self._packets)
        except (StopIteration, OSError, av.error.FFmpegError):
            return None
        if shift := self._clock.shift(packet.dts, is_keyframe=packet.is_keyframe):
            packet.dts = None if packet.dts is None else packet.dts + shift
            packet.pts = None if packet.pts is None else packet.pts + shift
        return packet
