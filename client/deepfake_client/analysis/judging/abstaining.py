"""When a verdict is better left open: real and fake clips mix at its score, or the face looks unlike known ones.

Both are judged by what `deepfake calibrate` found on whole clips and wrote into the model's spec; without that
nothing is left open. A face's looks are few and cheap, taken from the crop that the network gets: how much detail,
noise, contrast and color it has, relative to its brightness, not what it shows. Brightness and hue themselves are
left out on purpose, because they would tell people by the color of their skin. How far a clip lies from those of
the calibration is the Mahalanobis distance of its mean looks (P. C. Mahalanobis, Proceedings of the National
Institute of Sciences of India, 1936).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

import cv2
import numpy as np
from numpy.typing import NDArray

from deepfake_client.result.verdict import Interval, Reason
from deepfake_preprocess.contract.spec import Calibration, Looks, ModelSpec
from deepfake_preprocess.faces.detector import Face

LOOKS: Final = ("size", "sharpness", "detail", "noise", "contrast", "color", "smoothness")
"""What the looks of a face are called, in their order."""

Look = NDArray[np.float64]
"""``[len(LOOKS)]``."""

COLORED: Final = 0.1
"""Strength of color, relative to brightness, beyond which more says nothing: skin of any tone has it, gray none."""
_DARKEST: Final = 4.0


def look_of(face: Face, inner_rgb: NDArray[np.uint8], blurred: float, spec: ModelSpec) -> Look:
    """Return the looks of a face without margin, uint8 ``[H, W, 3]`` RGB; logarithms where a ratio is what counts."""
    gray = cv2.cvtColor(inner_rgb, cv2.COLOR_RGB2GRAY)
    chroma = cv2.cvtColor(inner_rgb[::4, ::4], cv2.COLOR_RGB2YCrCb)[..., 1:].reshape(-1, 2).astype(np.float32) - 128
    mean, deviation = (float(values[0, 0]) for values in cv2.meanStdDev(gray))
    light = mean + _DARKEST
    edges = cv2.absdiff(gray[:, 1:], gray[:, :-1])
    side_px = max(face.width_px, face.height_px)
    return np.array(
        [
            np.log2(min(1.0, max(1.0, side_px) / min(spec.input_size_wh))),
            blurred,
            np.log(0.01 + cv2.norm(cv2.Laplacian(gray, cv2.CV_16S), cv2.NORM_L1) / gray.size / light),
            np.log(0.002 + cv2.norm(gray, cv2.medianBlur(gray, 3), cv2.NORM_L1) / gray.size / light),
            np.log(0.01 + deviation / light),
            min(COLORED, float(np.sqrt((chroma**2).sum(axis=1)).mean()) / light),
            float((edges <= 0.02 * light).mean()),
        ],
        dtype=np.float64,
    )


def deviations(look: Look, known: Looks) -> Look:
    """Return how many standard deviations each look lies from the mean of the calibration's clips."""
    return np.asarray((look - np.array(known.mean)) / np.array(known.deviation), dtype=np.float64)


def unlikeness(look: Look, known: Looks) -> float:
    """Return how far looks lie from those of the calibration, relative to the limit: above 1 they are unlike."""
    own = deviations(look, known)
    return float(np.sqrt(max(0.0, own @ np.array(known.precision) @ own))) / known.limit


def abstention(
    probability: float,
    interval: Interval | None,
    look: Sequence[float],
    calibration: Calibration,
    threshold: float,
    *,
    knows_scores: bool = True,
) -> tuple[Reason, str] | None:
    """Return why a verdict is left open, as a reason and a sentence; None where it is not.

    `interval` is that of the score; None where a single picture gives none. The calibration `knows_scores` that were
    made as its own were: with the threshold and the aggregation that it was found with.
    """
    if calibration.looks is not None and look:
        far = unlikeness(np.array(look), calibration.looks)
        if far > 1:
            most = LOOKS[int(np.argmax(np.abs(deviations(np.array(look), calibration.looks))))]
            return Reason.OUT_OF_DISTRIBUTION, (
                f"the face looks unlike those of the {calibration.num_real + calibration.num_fake} clips that the "
                f"model was calibrated on ({far:.1f} times the limit, mostly by its {most}), so its score of "
                f"{probability:.2f} says nothing"
            )
    if not knows_scores:
        return None
    start = calibration.undecided_from
    if start <= probability < threshold:
        return Reason.NEAR_THRESHOLD, (
            f"the score of {probability:.2f} lies between {start:.2f} and {threshold:.2f}, where the calibration "
            "left it open whether a clip is real"
        )
    if interval is not None and interval.low < start and interval.high >= threshold:
        return Reason.NEAR_THRESHOLD, (
            f"the score of {probability:.2f} differs too much between frames: others of the same clip could have "
            f"given anything from {interval.low:.2f} to {interval.high:.2f}, on both sides of {threshold:.2f}"
        )
    return None
