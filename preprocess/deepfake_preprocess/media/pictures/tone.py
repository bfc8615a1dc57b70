"""HDR pictures (HLG, PQ) to the range and colors of ordinary ones, as players show them on an ordinary screen.

FFmpeg's filter needs a library that PyAV's FFmpeg lacks (zscale), and its scaler takes half a minute for its tables.
"""

from __future__ import annotations

from functools import cache
from typing import Final

import cv2
import numpy as np
from numpy.typing import NDArray

PQ: Final = 16
HLG: Final = 18
TRANSFER_NAMES: Final = {PQ: "PQ", HLG: "HLG"}
"""Transfer characteristics of HDR by their number in ITU-T H.273, table 3."""

_BT2020: Final = 9
# Luminance of white in ordinary pictures, and of the brightest HLG signal, in cd/m2: ITU-R BT.2408-7, 2.1 and 4.1.
_WHITE: Final = 203.0
_HLG_PEAK: Final = 1000.0
_HLG_GAMMA: Final = 1.2
# From linear BT.2020 to BT.709 colors: ITU-R BT.2087-0, annex 2 (inverted).
_TO_BT709: Final = np.array(
    [[1.6605, -0.5876, -0.0728], [-0.1246, 1.1329, -0.0083], [-0.0182, -0.1006, 1.1187]], dtype=np.float32
)
_LUMA_BT2020: Final = np.array([[0.2627, 0.6780, 0.0593]], dtype=np.float32)
# Light above this share of white is compressed, up to infinity; what is below stays as it is.
_KNEE: Final = 0.8
_OUT_STEPS: Final = 2**16


@cache
def _linear(transfer: int) -> NDArray[np.float32]:
    """Return what each of 65,536 signals is in light: HLG of the scene in [0, 1], PQ of the screen, white being 1."""
    signal = np.linspace(0.0, 1.0, 2**16)
    if transfer == HLG:  # ITU-R BT.2100-3, table 5
        a, b, c = 0.17883277, 0.28466892, 0.55991073
        light = np.where(signal <= 0.5, signal**2 / 3, (np.exp((signal - c) / a) + b) / 12)
    else:  # ITU-R BT.2100-3, table 4
        m1, m2, c1, c2, c3 = 0.1593017578125, 78.84375, 0.8359375, 18.8515625, 18.6875
        root = signal ** (1 / m2)
        light = (np.maximum(root - c1, 0) / (c2 - c3 * root)) ** (1 / m1) * 10_000 / _WHITE
    return light.astype(np.float32)


@cache
def _signal() -> NDArray[np.uint8]:
    """Return the 8-bit signal that makes an ordinary screen give light in [0, 1]: ITU-R BT.1886-0, annex 1."""
    return np.rint(255 * np.linspace(0.0, 1.0, _OUT_STEPS) ** (1 / 2.4)).astype(np.uint8)


def to_sdr(image: NDArray[np.uint16], transfer: int, primaries: int) -> NDArray[np.uint8]:
    """Map an HDR picture to uint8 ``[H, W, 3]`` RGB of BT.709.

    Args:
        image: uint16 ``[H, W, 3]`` RGB over the full range.
        transfer: `HLG` or `PQ`.
        primaries: its colors, by their number in ITU-T H.273, table 2; only BT.2020's are converted.
    """
    light = _linear(transfer)[image]
    if transfer == HLG:  # the system's gamma, ITU-R BT.2100-3, table 5
        luma = cv2.transform(light, _LUMA_BT2020)
        light *= (_HLG_PEAK / _WHITE * np.maximum(luma, 1e-6) ** (_HLG_GAMMA - 1))[..., None]
    if primaries == _BT2020:
        light = np.asarray(cv2.transform(light, _TO_BT709), dtype=np.float32)
    brightest = light.max(axis=2, keepdims=True)
    over = np.maximum(brightest - _KNEE, 0)
    light *= (np.minimum(brightest, _KNEE) + (1 - _KNEE) * (1 - np.exp(-over / (1 - _KNEE)))) / np.maximum(
        brightest, 1e-6
    )
    steps = np.clip(light * (_OUT_STEPS - 1) + 0.5, 0, _OUT_STEPS - 1).astype(np.uint16)
    return np.asarray(_signal()[steps], dtype=np.uint8)
