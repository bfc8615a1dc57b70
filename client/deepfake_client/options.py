"""What can be asked of an analysis: frozen values, checked when they are made and passed on as they are."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final, Literal, TypeAlias, get_args

from deepfake_client.transport.connection import check_timeout
from deepfake_preprocess.errors import OptionError
from deepfake_preprocess.media.live import LiveOptions
from deepfake_preprocess.media.sampling import Sampling

Aggregation: TypeAlias = Literal["mean", "median", "trimmed", "top_k", "vote", "confident", "log_odds"]
"""A rule that makes one score of a face's frames; `deepfake_client.analysis.judging.aggregation` has them."""
AGGREGATIONS: Final[tuple[Aggregation, ...]] = get_args(Aggregation)

OnSlow: TypeAlias = Literal["drop", "wait"]
"""What happens when the server is slower than the source."""

DEFAULT_CONFIDENCE: Final = 0.99
CALIBRATED_AGGREGATION: Final[Aggregation] = "mean"
"""The rule that a model's calibration is found with."""


@dataclass(frozen=True, slots=True, kw_only=True)
class AnalyzeOptions:
    """How an input is analyzed.

    Attributes:
        sampling: which frames are looked at.
        aggregation: how a face's frames become its score, one of `AGGREGATIONS`.
        threshold: FAKE at or above it, in (0, 1); the model's own when None.
        until_sure: stop when the frames looked at suffice, at this confidence or at 0.99 when True; see
            `deepfake_client.analysis.stopping`. `Verdict.frames_saved` says how many frames that saved. With fast
            sampling all frames are looked at.
        timeout_s: deadline of each request, in seconds; the connection's own when None.
        min_face_px: faces with a smaller box (longer side, in pixels of the frame) are left out.
        min_face_share: the same relative to the frame's shorter side, in [0, 1).
        abstain: leave verdicts open as the model's calibration says; without it every score decides. Near the
            threshold only with the model's own `threshold` and the `aggregation` "mean", which it was found with.

    Raises:
        OptionError: a value is out of its range.
    """

    sampling: Sampling = Sampling()
    aggregation: str = "mean"
    threshold: float | None = None
    until_sure: bool | float = False
    timeout_s: float | None = None
    min_face_px: float = 0.0
    min_face_share: float = 0.0
    abstain: bool = True

    def __post_init__(self) -> None:
        _check_aggregation(self.aggregation)
        _check_threshold(self.threshold)
        _check_face_sizes(self.min_face_px, self.min_face_share)
        if not isinstance(self.until_sure, bool) and not 0.5 <= self.until_sure < 1.0:
            raise OptionError(
                f"`until_sure` is {self.until_sure!r}; allowed: True, False, or a confidence from 0.5 to below 1"
            )
        check_timeout(self.timeout_s)

    @property
    def confidence(self) -> float | None:
        """The confidence that `until_sure` asks for, None for no early stop."""
        if isinstance(self.until_sure, bool):
            return DEFAULT_CONFIDENCE if self.until_sure else None
        return float(self.until_sure)


@dataclass(frozen=True, slots=True, kw_only=True)
class WatchOptions(LiveOptions):
    """How a source that is still going on is watched; also how long it is waited for (`LiveOptions`).

    Attributes:
        window_s: length of the window, in seconds of the source's time.
        step_s: time from one verdict to the next.
        fps: frames looked at per second.
        min_change: how far the score must move for a new verdict; with 0 every verdict is yielded.
        on_slow: when the server is slower than the source: ``wait`` keeps the source waiting, ``drop`` leaves out
            the oldest frames. None: cameras and live addresses drop, all that loses nothing waits.
        max_latency_s: with ``drop``, about how old a frame may be when it is scored.
        aggregation: how a face's frames become its score, one of `AGGREGATIONS`.
        threshold: FAKE at or above it, in (0, 1); the model's own when None.
        min_face_px: faces with a smaller box (longer side, in pixels of the frame) are left out.
        min_face_share: the same relative to the frame's shorter side, in [0, 1).
        abstain: as in `AnalyzeOptions`.

    Raises:
        OptionError: a value is out of its range.
    """

    window_s: float = 10.0
    step_s: float = 1.0
    fps: float = 5.0
    min_change: float = 0.05
    on_slow: OnSlow | None = None
    max_latency_s: float = 3.0
    aggregation: str = "mean"
    threshold: float | None = None
    min_face_px: float = 0.0
    min_face_share: float = 0.0
    abstain: bool = True

    def __post_init__(self) -> None:
        LiveOptions.__post_init__(self)
        for name in ("window_s", "step_s", "fps", "max_latency_s"):
            value = getattr(self, name)
            if not 0 < value < float("inf"):
                raise OptionError(f"`{name}` is {value!r}; allowed: a number above 0")
        if not 0 <= self.min_change <= 1:
            raise OptionError(f"`min_change` is {self.min_change!r}; allowed: a number from 0 to 1")
        if self.on_slow not in (None, *get_args(OnSlow)):
            raise OptionError(f"`on_slow` is {self.on_slow!r}; allowed: 'drop', 'wait', or None for the source's own")
        _check_aggregation(self.aggregation)
        _check_threshold(self.threshold)
        _check_face_sizes(self.min_face_px, self.min_face_share)


def _check_aggregation(name: str) -> None:
    if name not in AGGREGATIONS:
        raise OptionError(f"`aggregation` is {name!r}; allowed: {', '.join(AGGREGATIONS)}")


def _check_threshold(threshold: float | None) -> None:
    # At the ends it would call every face FAKE, or none.
    if threshold is not None and not 0.0 < threshold < 1.0:
        raise OptionError(f"`threshold` is {threshold}; allowed: a number strictly between 0 and 1")


def _check_face_sizes(min_face_px: float, min_face_share: float) -> None:
    if not 0 <= min_face_px < float("inf"):
        raise OptionError(f"`min_face_px` is {min_face_px!r}; allowed: a number of pixels from 0")
    if not 0 <= min_face_share < 1:
        raise OptionError(f"`min_face_share` is {min_face_share!r}; allowed: a share from 0 to below 1")
