"""Which frames of a video are sampled: `Sampling` asks for times, `FramePicker` turns them into frames.

A time asks for the frame that is *on screen* then, the last one whose timestamp is not after it, or where there is
none for the first frame. A frame is taken once. Evenly spaced samples take the last frame before it that others refer
to, if that is less than half the distance between samples away.
"""

from __future__ import annotations

from bisect import bisect_right, insort
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, fields
from fractions import Fraction
from itertools import islice, pairwise
from math import ceil, floor, isfinite
from numbers import Integral, Real
from typing import Final, Literal, TypeAlias, get_args

from deepfake_preprocess.errors import OptionError

SamplingMode: TypeAlias = Literal["uniform", "fast"]
SAMPLING_MODES: Final[tuple[SamplingMode, ...]] = get_args(SamplingMode)
MAX_STRETCH_S: Final = 15.0
"""Longest stretch between keyframes, in seconds, of which the fast mode leaves out a part."""
# The fast mode samples the first 1 / _EARLY_PART of a stretch. With a half, analyzing a 10 s clip of 1080p with two
# keyframes took 1.02 times the CPU time of decoding it, with a third 0.89.
_EARLY_PART = 4
_LATE_PART = 4
"""A frame at a rate may come so much later than it is due: this part of the distance between frames."""
_MICROSECOND = Fraction(1, 1_000_000)


@dataclass(frozen=True, slots=True)
class Sampling:
    """Which frames of a video are sampled; exactly one of the first three is set.

    Attributes:
        num_frames: that many frames, on screen at the midpoints of equal parts of the video, or shortly before where
            that is cheaper to decode; all frames when there are fewer. To use another way, set this to None.
        fps: that many frames per second from the start, likewise; all frames when the video has fewer.
        at_seconds: the frames on screen at these times from the start, in increasing order; `Frame.pts_seconds` of
            an earlier pass finds the same frames again.
        mode: ``uniform`` takes the frames at these times. ``fast`` takes as many, moved to where decoding is cheap:
            of each stretch between two keyframes, the keyframe and frames spread over the first quarter of the
            stretch. So a sample stays in its stretch and moves by less than `MAX_STRETCH_S`, and what happens only
            later in a stretch is not seen. It is ``uniform`` where the container does not name the keyframes, where
            they are farther apart than `MAX_STRETCH_S`, and where nothing would be gained.

    Raises:
        OptionError: none or several are set, a value is out of range, the mode is unknown, or ``fast`` is combined
            with `at_seconds`.
    """

    num_frames: int | None = 32
    fps: float | None = None
    at_seconds: tuple[float, ...] | None = None
    mode: SamplingMode = "uniform"

    def __post_init__(self) -> None:
        if sum(choice is not None for choice in (self.num_frames, self.fps, self.at_seconds)) != 1:
            raise OptionError(
                f"exactly one of num_frames, fps and at_seconds must be set, got num_frames={self.num_frames}, "
                f"fps={self.fps}, at_seconds={self.at_seconds}; for a rate use Sampling(num_frames=None, fps=...)"
            )
        if self.num_frames is not None and not (_is_whole(self.num_frames) and self.num_frames >= 1):
            raise OptionError(f"num_frames is {self.num_frames!r}; allowed: a whole number from 1")
        if self.fps is not None and not (isinstance(self.fps, Real) and isfinite(self.fps) and self.fps > 0):
            raise OptionError(f"fps is {self.fps!r}; allowed: a number above 0")
        if self.at_seconds is not None and (
            not all(isfinite(time) and time >= 0 for time in self.at_seconds)
            or any(later <= time for time, later in pairwise(self.at_seconds))
        ):
            raise OptionError(f"at_seconds is {self.at_seconds!r}; allowed: increasing times from 0")
        if self.mode not in SAMPLING_MODES:
            raise OptionError(f"the sampling mode is {self.mode!r}; allowed: {', '.join(SAMPLING_MODES)}")
        if self.mode == "fast" and self.at_seconds is not None:
            raise OptionError("the sampling mode 'fast' cannot be combined with at_seconds; leave it out")

    def targets(self, *, start: int, duration: int | None, time_base: Fraction, frame: int = 0) -> Iterator[int]:
        """Return the times asked for, in increasing order, in ticks of `time_base` seconds.

        `start` is the time of the first frame, `duration` the length and `frame` the usual distance between frames,
        all in ticks; `num_frames` needs a length. Those at a rate never end.
        """
        if self.at_seconds is not None:
            # A microsecond reaches no further frame, and finds one whose time was printed with six digits.
            return (start + floor((Fraction(time) + _MICROSECOND) / time_base) for time in self.at_seconds)
        if self.fps is not None:
            return Rate(self.fps, start, time_base, frame=frame)
        if self.num_frames is None or duration is None:
            raise ValueError("num_frames needs a duration")
        return midpoints(self.num_frames, start, duration)

    def reach(self, *, duration: int | None, time_base: Fraction) -> int:
        """Return how much earlier than its time a frame may be, in ticks: half the distance between samples."""
        if self.fps is not None:
            return floor(1 / (2 * Fraction(self.fps) * time_base))
        if self.num_frames is None or duration is None:
            return 0
        return duration // (2 * self.num_frames)


@dataclass(frozen=True, slots=True)
class PartOf(Sampling):
    """Some of the frames of another sampling, for one of several passes."""

    positions: frozenset[int] = frozenset()  # which of its times, counted from 0

    @classmethod
    def of(cls, sampling: Sampling, positions: Iterable[int]) -> PartOf:
        """Return the part of `sampling` at `positions`."""
        options = {field.name: getattr(sampling, field.name) for field in fields(sampling)}
        return cls(**options, positions=frozenset(positions))

    def targets(self, *, start: int, duration: int | None, time_base: Fraction, frame: int = 0) -> Iterator[int]:
        """See `Sampling.targets`."""
        every = Sampling.targets(self, start=start, duration=duration, time_base=time_base, frame=frame)
        every = islice(every, max(self.positions, default=-1) + 1)
        return (target for position, target in enumerate(every) if position in self.positions)


def early_offsets(count: int, stretch: int, frame: int) -> list[int]:
    """Return where the fast mode samples a stretch of `stretch` ticks, whose frames are `frame` ticks apart.

    These are `count` times in ticks from its start, the keyframe's first. They spread over a quarter of the stretch,
    or as much as it takes to meet `count` different frames.
    """
    # Rounded timestamps may be a tick farther apart than the frames.
    step = max(stretch // (_EARLY_PART * count), min(frame + 1, stretch // count))
    return [number * step for number in range(count)]


def midpoints(num_frames: int, start: int, duration: int) -> Iterator[int]:
    """Return the midpoints of `num_frames` equal parts of `duration`, from `start` on, rounded down."""
    # Integers throughout: floats would lose ticks in a long stream with a fine time base.
    return (start + (2 * part + 1) * duration // (2 * num_frames) for part in range(num_frames))


class Rate(Iterator[int]):
    """Endless times in ticks at a rate, from a start on."""

    def __init__(self, fps: float, start: int, time_base: Fraction, *, frame: int = 0) -> None:
        # A rate finer than the time base asks for every tick, not for the same one repeatedly.
        self._step = max(Fraction(1), 1 / (Fraction(fps) * time_base))
        # Times in hundredths or thousandths of a second may come after the time at which a frame is due, which then
        # would be passed over at its own rate.
        self._first, self._start = start, start + floor(min(Fraction(frame), self._step) / _LATE_PART)
        self._number = 0

    def __next__(self) -> int:
        # Rounded up: containers round timestamps to ticks, and a frame due at 66.67 ms may be written as 67.
        tick = self._start + ceil(self._number * self._step) if self._number else self._first
        self._number += 1
        return tick

    def pass_over(self, tick: int) -> None:
        """Continue with the first time from `tick` on, if that is not past."""
        self._number = max(self._number, ceil((tick - self._start) / self._step))


class FramePicker:
    """Decides from timestamps alone, in decoding order, which frames are wanted.

    No later frame is shown before the decoding time (dts) of the packet just read. So once that is past a target,
    the frame on screen at the target is known, a few packets after it was read, without scanning the file first.
    """

    def __init__(self, targets: Iterator[int], *, reach: int = 0) -> None:
        """Prepare to pick frames for increasing times in ticks.

        `reach`, less than the distance between them, is how many ticks before its target a referenced frame may be
        to be taken instead of an unreferenced one.
        """
        self._targets = targets
        self._reach = reach
        self.target: int | None = next(targets, None)
        self._on_screen: int | None = None
        self._referenced: int | None = None  # the last such frame up to the one on screen
        self._unreferenced: list[int] = []  # frames after that one, up to the one on screen
        self._later: list[int] = []
        self._later_unreferenced: set[int] = set()
        self._last_pick: int | None = None
        self._num_read = 0
        self._counted_to: int | None = None

    def read(self, pts: int, dts: int | None, *, referenced: bool = True) -> dict[int, int]:
        """Record a packet; return the position in presentation order, by time, of each newly wanted frame.

        Presentation and decoding times are in ticks; `referenced` says whether other frames may refer to the frame.
        """
        if self._counted_to is None or pts >= self._counted_to:
            self._num_read += 1
        if self.target is None:
            return {}
        if pts > self.target:
            insort(self._later, pts)
            if not referenced:
                self._later_unreferenced.add(pts)
        else:
            self._show(pts, referenced=referenced)
        return {} if dts is None else self._settle(dts)

    def end(self, stop: int | None = None) -> dict[int, int]:
        """Return the frames wanted by the remaining targets, up to `stop`, when nothing more can be read."""
        return self._settle(None, stop)

    def is_settled(self, pts: int) -> bool:
        """Return whether a frame that was read and not returned as wanted never will be."""
        return self.target is None or ((pick := self._pick(self.target)) is not None and pts < pick)

    def jump(self, num_before: int, *, counted_to: int | None = None) -> None:
        """Forget what was read: reading continues at a keyframe, which `num_before` frames precede.

        They precede it in decoding order, or with `counted_to`, the keyframe's time in ticks, as they are shown.
        """
        self._later.clear()
        self._later_unreferenced.clear()
        self._num_read, self._counted_to = num_before, counted_to

    def _show(self, pts: int, *, referenced: bool) -> None:
        """Record a frame that is not after the target."""
        self._on_screen = pts if self._on_screen is None else max(self._on_screen, pts)
        if not referenced:
            if self._referenced is None or pts > self._referenced:
                insort(self._unreferenced, pts)
        elif self._referenced is None or pts > self._referenced:
            self._referenced = pts
            del self._unreferenced[: bisect_right(self._unreferenced, pts)]

    def _pick(self, target: int) -> int | None:
        """Return the frame that `target` would take among those shown."""
        if self._referenced is not None and target - self._referenced <= self._reach:
            return self._referenced
        return self._on_screen

    def _settle(self, horizon: int | None, stop: int | None = None) -> dict[int, int]:
        """Serve every target before `horizon`, the time before which all frames have been read, and before `stop`."""
        picks: dict[int, int] = {}
        while self.target is not None and (stop is None or self.target < stop):
            pick = self._pick(self.target)
            if pick is None:
                if not self._later:
                    break
                pick = self._later[0]
            if horizon is not None and max(self.target, pick) >= horizon:
                break
            if self._last_pick is None or pick > self._last_pick:
                picks[pick] = self._num_read - self._num_after(pick) - 1
                self._last_pick = pick
            self._advance(horizon)
        return picks

    def _num_after(self, pick: int) -> int:
        """Return how many of the frames read are shown after `pick`."""
        if self._on_screen is None:
            return len(self._later) - 1
        after = len(self._unreferenced) - bisect_right(self._unreferenced, pick)
        return len(self._later) + after

    def _advance(self, horizon: int | None) -> None:
        ended = horizon is None
        until = self._later[0] if self._later else horizon
        if until is not None and isinstance(self._targets, Rate) and self._last_pick == self._on_screen:
            # No other frame is on screen before the next one is, and times of a file may be ages apart.
            self._targets.pass_over(until)
        self.target = None if ended and not self._later else next(self._targets, None)
        if self.target is None:
            return
        shown = bisect_right(self._later, self.target)
        for pts in self._later[:shown]:
            self._show(pts, referenced=pts not in self._later_unreferenced)
            self._later_unreferenced.discard(pts)
        del self._later[:shown]


def _is_whole(number: object) -> bool:
    return isinstance(number, Integral) and not isinstance(number, bool)
