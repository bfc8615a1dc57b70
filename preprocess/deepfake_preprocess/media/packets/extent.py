"""What there really is of a stream: `Extent`.

Lengths and counts in a file's header are claims. An index is better, and what the packets say is best.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from fractions import Fraction
from itertools import groupby
from typing import Final

import av

from deepfake_preprocess.media.packets.decoder import DecodeStats
from deepfake_preprocess.media.packets.reading import MOV, PacketReader
from deepfake_preprocess.media.sampling import PartOf, Sampling

# Containers' lengths are off by some frames.
_ROUNDED_FRAMES: Final = 10
# Share of its length by which a stream may fall short of what its header states: two samples of 32.
_OFF_SHARE: Final = Fraction(1, 16)


@dataclass(slots=True)
class Extent:
    """What there is of a stream; by the header and the index at first, by its packets once they were surveyed.

    Attributes:
        duration: its length in ticks; None where the container does not state it.
        is_indexed: whether an index names every frame.
        is_irregular: whether times start anew somewhere, so that seeking leads astray.
        times: the time of every packet in ticks, in order; empty before a survey.
    """

    duration: int | None
    is_indexed: bool = False
    is_irregular: bool = False
    times: Sequence[int] = field(default=())

    @classmethod
    def claimed(
        cls,
        container: av.container.InputContainer,
        reader: PacketReader,
        duration_s: float | None,
        stats: DecodeStats,
    ) -> Extent:
        """Return what header and index say.

        An MP4's index names every frame and its place in the file, so what a cut-off file lacks is known beforehand.
        """
        index = reader.stream.index_entries
        if duration_s is None:
            return cls(None)
        declared = round(Fraction(duration_s) / reader.time_base)
        counted = reader.stream.frames * reader.step
        if container.format.name == "avi" and counted > declared + tolerance(reader):
            # FFmpeg shortens the length of a file without an index, but not the number of frames.
            declared = counted
        extent = cls(declared)
        if not len(index):
            return extent
        start, last = min(index[0].timestamp, reader.start), index[len(index) - 1]
        if container.format.name != MOV or len(index) != reader.stream.frames:
            return extent
        extent.is_indexed = True
        if 0 < container.size < last.pos + last.size:
            size = container.size
            readable = bisect_left(range(len(index)), True, key=lambda at: index[at].pos + index[at].size > size)
            extent.duration = min(declared, index[max(0, readable - 1)].timestamp - start + reader.step)
            report_missing(stats, reader, extent.duration, declared)
        elif extent.is_passed(reader):
            extent.duration = last.timestamp - start + reader.step
        return extent

    def is_passed(self, reader: PacketReader) -> bool:
        """Return whether the index names frames after the stated end; Matroska's is known after the first seek."""
        index = reader.stream.index_entries
        if self.duration is None or not len(index) or (last := index[len(index) - 1]).is_discard:
            return False
        return last.timestamp > reader.start + self.duration + tolerance(reader)

    def survey(self, reader: PacketReader) -> None:
        """Learn from the packets, all of which are read."""
        self.times = reader.survey()
        if self.times:
            self.duration = self.times[-1] + reader.step - reader.start
        self.is_irregular = True

    def is_off(self, reader: PacketReader, sampling: Sampling, num_found: int) -> bool:
        """Return whether a pass showed that the stream is not as stated.

        For that it reads up to the end, but where the index names every frame.

        Args:
            reader: what the pass has read with.
            sampling: what it sampled.
            num_found: how many frames it found, damaged ones included.
        """
        if not self.is_indexed:
            reader.drain()
        self.is_irregular = not reader.may_seek
        if self.duration is None or self.times or sampling.at_seconds is not None:
            return False
        asked = len(sampling.positions) if isinstance(sampling, PartOf) else sampling.num_frames or 0
        is_sparse = num_found < min(asked, reader.stream.frames or asked) // 2
        is_sparse = is_sparse and (reader.jumped or num_found < reader.num_read)
        if self.is_indexed:
            return is_sparse
        is_longer = sampling.num_frames is not None and reader.end - reader.start > self.duration + tolerance(
            reader, self.duration // sampling.num_frames
        )
        return falls_short(reader, self.duration) or is_longer or is_sparse

    def spread(self, sampling: Sampling, taken: Sequence[int]) -> Iterator[int]:
        """Return the times of frames spread evenly over those that were surveyed, but next to those `taken`."""
        num_frames, num_times = sampling.num_frames or 1, len(self.times)
        parts = {bisect_left(self.times, tick) * num_frames // num_times for tick in taken}
        positions = sampling.targets(start=0, duration=num_times, time_base=Fraction(1))
        return (
            self.times[position]
            for position, _ in groupby(positions)
            if position * num_frames // num_times not in parts
        )

    def stop(self, reader: PacketReader) -> int | None:
        """Return where the stream ends, in ticks, which was read up to its end; None where nothing states it."""
        if self.duration is None:
            return None
        declared = reader.start + self.duration
        return reader.end if reader.end > declared + reader.step else declared


def falls_short(reader: PacketReader, declared: int) -> bool:
    """Return whether what was read is clearly less than a stated length in ticks."""
    return reader.end - reader.start < declared * (1 - _OFF_SHARE)


def tolerance(reader: PacketReader, sample: int = 0) -> int:
    """Return by how many ticks a length may be off: what one sample stands for, but some frames at least."""
    return max(sample, _ROUNDED_FRAMES * reader.step)


def report_missing(stats: DecodeStats, reader: PacketReader, start: int, stop: int) -> None:
    """Record that a file lacks what it says to hold between two times, in ticks from the stream's start."""
    start_s, stop_s = (float(ticks * reader.time_base) for ticks in (start, stop))
    if stop - start > tolerance(reader):
        stats.unread.append((start_s, stop_s))
        stats.note(f"only the first {start_s:.1f} s of {stop_s:.1f} s could be read; the file may be cut short")
