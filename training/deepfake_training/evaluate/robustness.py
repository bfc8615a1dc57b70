"""How the detector's figures change when its input gets worse: one curve for each kind of degradation."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType

import numpy as np

from deepfake_preprocess.errors import OptionError
from deepfake_preprocess.media.frame import ArrayFrame, Frame
from deepfake_preprocess.media.opening import Media
from deepfake_preprocess.media.sampling import Sampling
from deepfake_training.data.degradations import Picture, add_noise, blur, compress_h264, compress_jpeg, rescale


@dataclass(frozen=True, slots=True)
class Degradation:
    """One kind of degradation.

    Attributes:
        title: what the levels are, for people.
        levels: from mild to strong.
        apply: changes a uint8 ``[H, W, 3]`` RGB picture, given the level.
    """

    title: str
    levels: tuple[float, ...]
    apply: Callable[[Picture, float], Picture]


def _noisy(picture: Picture, sigma: float) -> Picture:
    # The same grain every time: an evaluation can be repeated.
    return add_noise(picture, sigma, np.random.default_rng(0))


DEGRADATIONS: Mapping[str, Degradation] = MappingProxyType(
    {
        "jpeg": Degradation("JPEG quality", (90, 70, 50, 30), lambda p, level: compress_jpeg(p, int(level))),
        "h264": Degradation("H.264 CRF", (23, 28, 33, 40), lambda p, level: compress_h264(p, int(level))),
        "scale": Degradation("scale", (0.75, 0.5, 0.25), rescale),
        "blur": Degradation("blur, sigma in px", (1, 2, 4), blur),
        "noise": Degradation("noise, sigma of 255", (4, 8, 16), _noisy),
    }
)
"""What is swept. The faces are looked for in the degraded picture, as they would be in service."""


class DegradedMedia(Media):
    """A video or image whose full-resolution RGB frames are degraded; closing it leaves `media` open."""

    def __init__(self, media: Media, degrade: Callable[[Picture], Picture]) -> None:
        super().__init__(
            media.name, media.kind, media.width_px, media.height_px, media.duration_s, media.frame_rate, media.codec
        )
        self._media, self._degrade = media, degrade

    def frames(self, sampling: Sampling | None = None) -> Iterator[Frame]:
        """See `Media.frames`."""
        for frame in self._media.frames(sampling):
            picture = self._degrade(frame.to_rgb())
            yield ArrayFrame.from_rgb(picture, index=frame.index, pts_seconds=frame.pts_seconds)


def view_of(degradation: Degradation, level: float) -> Callable[[Media], Media]:
    """Return what `score_files` takes as `view` for one level."""
    return lambda media: DegradedMedia(media, lambda picture: degradation.apply(picture, level))


def kinds_of(names: Sequence[str]) -> list[str]:
    """Return the kinds of degradation that are named; ``all`` stands for all."""
    if unknown := sorted({*names} - {*DEGRADATIONS, "all"}):
        raise OptionError(f"degradation {unknown[0]!r} is unknown; choose from {', '.join(DEGRADATIONS)}, or all")
    return list(DEGRADATIONS if "all" in names else names)
