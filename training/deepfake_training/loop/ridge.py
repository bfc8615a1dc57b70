"""Ridge regression of one number on the features that reach a last layer."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray
from sklearn.linear_model import Ridge, RidgeCV
from sklearn.model_selection import GroupKFold, cross_val_predict

FOLDS: Final = 5
FEWEST: Final = 4 * FOLDS
"""Crops that a regression takes at least."""
PENALTIES: Final = tuple(float(10 ** (power / 2)) for power in range(-6, 7))
"""From a thousandth to a thousand times the mean variance of a feature."""


@dataclass(frozen=True, slots=True)
class Regression:
    """What predicts a number from features.

    Attributes:
        weights: float64 ``[F]``.
        bias: added to features times weights.
        correlation: of the predictions with the numbers, on crops that they were not fitted to.
    """

    weights: NDArray[np.float64]
    bias: float
    correlation: float


def regress(features: NDArray[np.float64], wanted: NDArray[np.float64]) -> Regression:
    """Return what predicts numbers ``[N]`` from features ``[N, F]``, with the penalty that predicts the unseen best.

    Neighbors, a real crop and the fake that was made of it, are left out together.
    """
    folds = list(GroupKFold(FOLDS).split(features, groups=np.arange(len(features)) // 2))
    scale = len(features) * features.var(axis=0).mean()
    found = RidgeCV([penalty * scale for penalty in PENALTIES], cv=folds, scoring="neg_mean_squared_error")
    found.fit(features, wanted)
    guesses = cross_val_predict(Ridge(found.alpha_), features, wanted, cv=folds)
    return Regression(found.coef_, float(found.intercept_), float(np.corrcoef(guesses, wanted)[0, 1]))
