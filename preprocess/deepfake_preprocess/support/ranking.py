"""How well scores rank fakes above reals; the one implementation, for exports and for evaluations."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt


def roc_auc(scores: npt.NDArray[np.floating], labels: npt.NDArray[np.int64]) -> float:
    """Return the area under the ROC curve: the share of (fake, real) pairs in the right order, ties counting half.

    Scores ``[N]`` are higher for fake; labels ``[N]`` are 1 for fake and 0 for real, and both must occur.
    """
    _, ranks, counts = np.unique(scores, return_inverse=True, return_counts=True)
    mean_rank = np.cumsum(counts) - (counts - 1) / 2
    positives = int(labels.sum())
    negatives = len(labels) - positives
    rank_sum = float(mean_rank[ranks][labels == 1].sum())
    return (rank_sum - positives * (positives + 1) / 2) / (positives * negatives)
