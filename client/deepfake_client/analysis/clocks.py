"""When each stage of an analysis was busy, and the verdict that says so."""

from __future__ import annotations

import threading
import time
from dataclasses import dataclass, field

from deepfake_client.analysis.judging.scoring import Judgment
from deepfake_client.result.verdict import Interval, Timing, Verdict
from deepfake_client.transport.protocol import ServedModel
from deepfake_preprocess.media.live import LiveSource
from deepfake_preprocess.media.opening import Media


class BusyClock:
    """Wall-clock time during which at least one piece of work was under way. Safe to use from several threads."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._active = 0
        self._since = 0.0
        self._total = 0.0

    def __enter__(self) -> None:
        with self._lock:
            if self._active == 0:
                self._since = time.perf_counter()
            self._active += 1

    def __exit__(self, *exc: object) -> None:
        with self._lock:
            self._active -= 1
            if self._active == 0:
                self._total += time.perf_counter() - self._since

    @property
    def seconds(self) -> float:
        """Time counted so far, up to the end of the last piece of work."""
        return self._total


@dataclass(frozen=True, slots=True)
class Clocks:
    """One clock for each stage but decoding, which the source itself times."""

    detect: BusyClock = field(default_factory=BusyClock)
    crop: BusyClock = field(default_factory=BusyClock)
    infer: BusyClock = field(default_factory=BusyClock)
    aggregate: BusyClock = field(default_factory=BusyClock)
    started: float = field(default_factory=time.perf_counter)


def verdict_of(
    source: Media | LiveSource,
    judgment: Judgment,
    threshold: float,
    model: ServedModel,
    clocks: Clocks,
    *,
    frames_saved: int = 0,
    frames_dropped: int = 0,
) -> Verdict:
    """Return the verdict on a source: a judgment with everything that it is based on."""
    return Verdict(
        source=source.name,
        label=judgment.label,
        fake_probability=judgment.fake_probability,
        interval=_allowing(judgment.interval, _unread_share(source, judgment)),
        deciding_track=judgment.deciding_track,
        threshold=threshold,
        reason=judgment.reason,
        detail=judgment.detail,
        tracks=judgment.tracks,
        frames=judgment.frames,
        model=model.identity,
        timing_s=Timing(
            decode=source.stats.decode_s,
            detect=clocks.detect.seconds,
            crop=clocks.crop.seconds,
            infer=clocks.infer.seconds,
            aggregate=clocks.aggregate.seconds,
            total=time.perf_counter() - clocks.started,
        ),
        corrupt_packets=source.stats.packets_corrupt,
        frames_saved=frames_saved,
        frames_dropped=frames_dropped,
        unread_s=source.stats.unread_s,
        input_notes=tuple(source.stats.notes),
    )


def _unread_share(source: Media | LiveSource, judgment: Judgment) -> float:
    """Return which share of a source could not be read, in [0, 1)."""
    length_s = source.duration_s if isinstance(source, Media) else None
    seen_s = judgment.frames[-1].pts_seconds if judgment.frames else 0.0
    unread_s, end_s = source.stats.unread_s, max((stop for _, stop in source.stats.unread), default=0.0)
    return unread_s / max(length_s or 0.0, seen_s, end_s) if unread_s else 0.0


def _allowing(interval: Interval | None, unread_share: float) -> Interval | None:
    """Widen the interval of a mean: what was not read could have any score in [0, 1]."""
    if interval is None or not unread_share:
        return interval
    share = 1 - unread_share
    return Interval(interval.low * share, interval.high * share + unread_share)
