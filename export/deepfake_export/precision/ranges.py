"""Ranges of activations: the lowest and the highest value, or percentiles of samples, in bounded memory."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import numpy.typing as npt

Float = npt.NDArray[np.float32]
Range = tuple[np.float32, np.float32]

SAMPLES_PER_CROP = 512
"""Values of each tensor and crop that the percentile is taken from."""
PERCENTILES = (99.99, 99.9)
MINMAX = "minmax"
METHODS = (MINMAX, *(f"percentile {percentile:g}" for percentile in PERCENTILES))
"""Ways to choose a range; see `RangeMeter.range_of`."""


class RangeMeter:
    """Takes in a tensor's values, crop by crop."""

    def __init__(self) -> None:
        # Zero must be representable: padding adds it.
        self._low = self._high = np.float32(0)
        self._samples: list[Float] = []

    def add(self, value: npt.NDArray[Any]) -> None:
        """Take in the tensor's values for one crop, float32 of any shape."""
        self._low, self._high = min(self._low, value.min()), max(self._high, value.max())
        flat = value.ravel()
        stride = max(1, len(flat) // SAMPLES_PER_CROP)
        # A stride that shares a factor with a dimension would see some of its places alone, a margin for example.
        while math.gcd(stride, len(flat)) > 1:
            stride += 1
        self._samples.append(flat[::stride].copy())

    def range_of(self, method: str) -> Range:
        """Return the lowest and the highest value by one of `METHODS`."""
        if method == MINMAX:
            return self._low, self._high
        percentile = float(method.split()[-1])
        low, high = np.percentile(np.concatenate(self._samples), [100 - percentile, percentile])
        return np.float32(min(low, 0)), np.float32(max(high, 0))
