"""The area under the ROC curve, by hand and against scikit-learn's."""

from __future__ import annotations

import numpy as np
import pytest
from sklearn.metrics import roc_auc_score

from deepfake_preprocess.support.ranking import roc_auc


@pytest.mark.parametrize(
    ("scores", "expected"), [([0.1, 0.2, 0.3, 0.4], 1.0), ([0.1, 0.3, 0.2, 0.4], 0.75), ([0.5, 0.5, 0.5, 0.5], 0.5)]
)
def test_it_is_the_share_of_pairs_in_order(scores: list[float], expected: float) -> None:
    assert roc_auc(np.array(scores, np.float32), np.array([0, 0, 1, 1])) == expected


def test_it_is_scikit_learns_also_with_ties() -> None:
    rng = np.random.default_rng(1)
    labels, scores = rng.integers(0, 2, 200), rng.random(200).round(1)
    assert roc_auc(scores, labels) == pytest.approx(roc_auc_score(labels, scores))
