"""Frames that an application passes in as arrays, as a `Media` like any other: `open_frames`.

Checks every array before it is used, and samples by the same rules as a file. Decodes nothing.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from itertools import chain
from math import ceil, isfinite
from numbers import Real
from typing import Final, TypeAlias

import numpy as np
from numpy.typing import NDArray

from deepfake_preprocess.errors import MediaOpenError, OptionError
from deepfake_preprocess.media.decoding import timed
from deepfake_preprocess.media.frame import ArrayFrame, Frame
from deepfake_preprocess.media.opening import Media, image_media
from deepfake_preprocess.media.sampling import Sampling, midpoints

GivenFrame: TypeAlias = NDArray[np.uint8] | tuple[float, NDArray[np.uint8]]
"""A uint8 ``[H, W, 3]`` RGB array, or a pair of its time in seconds and the array."""

DEFAULT_FPS: Final = 25.0
"""Assumed rate of arrays without times."""
_SAME_S: Final = 1e-6
"""Times that differ by less than this are the same; the difference is rounding."""


def open_frames(frames: Iterable[GivenFrame], *, fps: float = DEFAULT_FPS, name: str = "the given frames") -> Media:
    """Make a `Media` of arrays, to be analyzed like a video; it can be iterated once.

    N frames (`Sampling(num_frames=N)`) are spread evenly over the frames given. If their number is not known in
    advance (a generator), up to 2 N frames are kept until the last has come; by rate
    (`Sampling(num_frames=None, fps=...)`) each is used as it comes. What an iterator yields is copied before it goes
    on: it may use one buffer for all of them.

    Args:
        frames: RGB arrays of one size, or pairs of time and array with increasing times. The first is taken at once.
        fps: frames per second, for arrays without times.
        name: their name in messages and reports.

    Raises:
        OptionError: `fps` is not a positive number.
        MediaOpenError: there are no frames, or the first is not a uint8 ``[H, W, 3]`` RGB array. A problem with a
            later one is raised when it comes.
    """
    if not (isfinite(fps) and fps > 0):
        raise OptionError(f"fps is {fps!r}; allowed: a number above 0")
    length = operator.length_hint(frames, -1)
    checked = _checked(iter(frames), fps, name)
    first = next(checked, None)
    if first is None:
        raise MediaOpenError(f"{name}: there are no frames")
    return _GivenMedia(
        name,
        "video",
        first.width_px,
        first.height_px,
        # Without a length no caller iterates a second time.
        duration_s=None,
        frame_rate=fps,
        codec="rgb24",
        _given=chain([first], checked),
        _length=length if length > 0 else None,
        _is_reused=not isinstance(frames, Sequence | np.ndarray),
    )


def open_array(image_rgb: NDArray[np.uint8], *, name: str = "the given image") -> Media:
    """Make a `Media` of one uint8 ``[H, W, 3]`` RGB image, or of ``[N, H, W, 3]`` frames (see `open_frames`)."""
    if image_rgb.ndim == 4 and len(image_rgb):
        return open_frames(image_rgb, name=name)
    if problem := _problem(image_rgb):
        raise MediaOpenError(f"{name} {problem}")
    return image_media(image_rgb, "rgb24", name)


@dataclass(slots=True)
class _GivenMedia(Media):
    _given: Iterator[ArrayFrame] | None = field(default=None, repr=False)
    _length: int | None = None
    _is_reused: bool = False

    def close(self) -> None:
        """Release the frames."""
        self._given = None

    def frames(self, sampling: Sampling | None = None) -> Iterator[Frame]:
        """See `Media.frames`."""
        given, self._given = self._given, None
        if given is None:
            raise OptionError(f"{self.name} were used already; pass them in again")
        keep = _copied if self._is_reused else _as_it_is
        return timed(_sampled(self._counted(given), sampling or Sampling(), self._length, keep), self.stats)

    def _counted(self, given: Iterator[ArrayFrame]) -> Iterator[ArrayFrame]:
        for frame in given:
            self.stats.frames_decoded += 1
            yield frame


def _checked(frames: Iterator[GivenFrame], fps: float, name: str) -> Iterator[ArrayFrame]:
    first: ArrayFrame | None = None
    last_pts = float("-inf")
    for index, item in enumerate(frames):
        pts_seconds, image = item if isinstance(item, tuple) and len(item) == 2 else (index / fps, item)
        where = f"{name}: frame {index}"
        if problem := _problem(image):
            raise MediaOpenError(f"{where} {problem}")
        if not (isinstance(pts_seconds, Real) and isfinite(pts_seconds) and pts_seconds > last_pts):
            raise MediaOpenError(
                f"{where} has the time {pts_seconds!r}; times are seconds, each later than the previous one"
            )
        frame = ArrayFrame.from_rgb(image, index=index, pts_seconds=float(pts_seconds))
        first = first or frame
        if (frame.width_px, frame.height_px) != (first.width_px, first.height_px):
            raise MediaOpenError(
                f"{where} has {frame.width_px}x{frame.height_px} pixels and the first {first.width_px}x"
                f"{first.height_px}; give frames of one size"
            )
        last_pts = frame.pts_seconds
        yield frame


def _problem(image: object) -> str:
    """Return why `image` is not a uint8 [H, W, 3] RGB array, and what to do; empty when it is one."""
    wanted = "is not a uint8 [H, W, 3] RGB array"
    if not isinstance(image, np.ndarray):
        fix = "; for files use analyze_many" if isinstance(image, str | bytes) else "; np.asarray(...) may make one"
        return f"{wanted} but a {type(image).__name__}{fix}"
    shape = list(image.shape)
    if image.ndim == 3 and image.shape[2] == 3 and image.dtype == np.uint8 and image.size:
        return ""
    if image.ndim == 3 and image.shape[2] == 4:
        fix = "leave out alpha with frame[..., :3]"
    elif image.ndim == 3 and image.shape[0] == 3 and image.shape[2] != 3:
        fix = "put channels last with frame.transpose(1, 2, 0)"
    elif image.ndim == 2:
        fix = "repeat the gray channel with np.repeat(frame[..., None], 3, axis=2)"
    elif np.issubdtype(image.dtype, np.floating):
        fix = "values in [0, 1] become it with (frame * 255).round().astype(np.uint8)"
    else:
        fix = "from OpenCV, cv2.cvtColor(frame, cv2.COLOR_BGR2RGB) makes one"
    return f"{wanted} but {image.dtype} {shape}; {fix}"


def _copied(frame: ArrayFrame) -> ArrayFrame:
    return replace(frame, image_rgb=frame.image_rgb.copy())


def _as_it_is(frame: ArrayFrame) -> ArrayFrame:
    return frame


def _sampled(
    frames: Iterator[ArrayFrame], sampling: Sampling, length: int | None, keep: Callable[[ArrayFrame], ArrayFrame]
) -> Iterator[ArrayFrame]:
    """Yield the sampled frames; `keep` makes one that lasts when the next one is taken."""
    if sampling.fps is not None:
        return _on_screen(map(keep, frames), sampling.fps)
    num_frames = sampling.num_frames
    assert num_frames is not None  # one of the two is set
    if length is None:
        return _spread(frames, num_frames, keep)
    positions = set(midpoints(num_frames, 0, length))
    return (keep(frame) for frame in frames if frame.index in positions)


def _spread(
    frames: Iterator[ArrayFrame], num_frames: int, keep: Callable[[ArrayFrame], ArrayFrame]
) -> Iterator[ArrayFrame]:
    """Yield `num_frames` evenly spaced frames of an unknown number: of too many, every other is dropped."""
    kept: list[ArrayFrame] = []
    stride = 1
    for frame in frames:
        if frame.index % stride == 0:
            if len(kept) == 2 * num_frames:
                del kept[1::2]
                stride *= 2
                if frame.index % stride:
                    continue
            kept.append(keep(frame))
    positions = set(midpoints(num_frames, 0, len(kept)))
    yield from (frame for position, frame in enumerate(kept) if position in positions)


def _on_screen(frames: Iterator[ArrayFrame], fps: float) -> Iterator[ArrayFrame]:
    """Yield the frames that are on screen at the times 0, 1 / `fps`, 2 / `fps`, ... after the first."""
    start_s = target_s = gap_s = 0.0
    held: ArrayFrame | None = None
    for frame in frames:
        if held is None:
            start_s = target_s = frame.pts_seconds
        else:
            gap_s = frame.pts_seconds - held.pts_seconds
            if target_s < frame.pts_seconds - _SAME_S:
                yield held
                target_s = start_s + ceil((frame.pts_seconds - _SAME_S - start_s) * fps) / fps
        held = frame
    # The last frame stays on screen as long as the previous one did.
    if held is not None and target_s < held.pts_seconds + max(gap_s - _SAME_S, _SAME_S):
        yield held
