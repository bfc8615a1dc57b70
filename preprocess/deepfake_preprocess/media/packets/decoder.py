"""From packets to sound pictures: what is damaged is left out and counted, with all that refers to it."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from fractions import Fraction
from typing import TYPE_CHECKING, TypeAlias

import av

if TYPE_CHECKING:  # PyAV's packets are generic for type checkers only
    Packet: TypeAlias = av.Packet[av.VideoStream]


@dataclass(slots=True)
class DecodeStats:
    """What decoding has done so far; grows while frames are iterated.

    Attributes:
        packets_corrupt: packets that the decoder refused, and pictures that are damaged or refer to damaged ones.
        frames_decoded: pictures that came out of the decoder.
        frames_sampled: frames that were yielded.
        decode_s: wall-clock seconds spent reading and decoding (not converting).
        unread: stretches of the input that could not be read, in seconds from its start: cut off, or damaged up to
            the next keyframe.
        notes: what is worth knowing about how the input was read, as sentences without a full stop.
    """

    packets_corrupt: int = 0
    frames_decoded: int = 0
    frames_sampled: int = 0
    decode_s: float = 0.0
    unread: list[tuple[float, float]] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    @property
    def unread_s(self) -> float:
        """Length of all that is `unread`, in seconds; what several passes met is counted once."""
        total, reached = 0.0, 0.0
        for start, stop in sorted(self.unread):
            total += max(0.0, stop - max(start, reached))
            reached = max(reached, stop)
        return total

    def note(self, text: str) -> None:
        """Add a note, once."""
        if text not in self.notes:
            self.notes.append(text)


class Decoder:
    """A stream's decoder, which yields sound pictures only.

    Its `start` and `step` are the time of the stream's first frame and the usual distance of frames, in ticks;
    `left_out` counts the pictures that were not yielded, for those who count.

    A picture that refers to a damaged one shows traces of the damage, which a detector may take for a forgery. So
    after damage nothing is sound before the next keyframe. What a stream begins with is different: a decoder that
    starts between keyframes marks pictures until it has recovered.
    """

    def __init__(
        self, context: av.VideoCodecContext, stats: DecodeStats, *, start: int, step: int, time_base: Fraction
    ) -> None:
        self.context = context
        self._stats = stats
        self._start, self._step, self._time_base = start, step, time_base
        self._sound: int | None = None  # time of the last sound picture
        self._started = False
        self._damaged = False
        self.left_out = 0

    def decode(self, packet: Packet | None) -> Iterator[av.VideoFrame]:
        """Decode one packet, or with None what the decoder still holds."""
        try:
            pictures = self.context.decode(packet)
        except av.error.EOFError:
            return
        except av.error.FFmpegError:
            self._damage()
            return
        self._stats.frames_decoded += len(pictures)
        for picture in pictures:
            if picture.is_corrupt:
                self._damage()
            elif self._damaged and not picture.key_frame:
                self._stats.packets_corrupt += 1
                self.left_out += 1
            else:
                if self._damaged:
                    self.end(picture.pts)
                self._started, self._damaged = True, False
                if picture.pts is not None:
                    self._sound = picture.pts
                yield picture

    def end(self, time: int | None) -> None:
        """Record what damage hid before `time`, the next sound picture's or the end, in ticks."""
        if not self._damaged or time is None or self._sound is None:
            return
        hidden = [(ticks - self._start) * self._time_base for ticks in (self._sound + self._step, time)]
        if hidden[0] < hidden[1]:
            self._stats.unread.append((float(hidden[0]), float(hidden[1])))

    def restart(self) -> None:
        """Continue at a keyframe elsewhere."""
        self.context.flush_buffers()
        self._started = False

    def _damage(self) -> None:
        self._stats.packets_corrupt += 1
        self.left_out += 1
        self._damaged = self._started
