"""Temperature and threshold from validation data instead of taste."""

from __future__ import annotations

import numpy as np
from scipy.optimize import minimize_scalar
from sklearn.metrics import roc_curve

from deepfake_preprocess.errors import OptionError
from deepfake_training.evaluate.metrics import Float, Int

EPSILON = 1e-6
"""Probabilities are kept this far from 0 and 1, where their logit would be infinite."""
TEMPERATURES = (0.05, 20.0)
"""Where the temperature is looked for."""
RULES = ("max-f1", "max-accuracy", "fpr=SHARE")
THRESHOLDS = (0.01, 0.99)
"""Where a threshold is kept: a detector that never, or always, says fake is none."""


def find_temperature(labels: Int, probabilities: Float) -> float:
    """Return the temperature with the smallest log loss (Guo et al., 2017); 1 where a class is missing.

    Args:
        labels: ``[N]``, 1 for fake.
        probabilities: ``[N]`` with temperature 1.
    """
    if not 0 < labels.sum() < len(labels):
        return 1.0
    logits = logits_of(probabilities)
    sign = np.where(labels == 1, 1.0, -1.0)
    weight = np.where(labels == 1, 0.5 / (labels == 1).sum(), 0.5 / (labels == 0).sum())

    def loss(log_temperature: float) -> float:
        return float((weight * np.logaddexp(0, -sign * logits / np.exp(log_temperature))).sum())

    low, high = np.log(TEMPERATURES)
    return float(np.exp(minimize_scalar(loss, bounds=(low, high), method="bounded").x))


def apply_temperature(probabilities: Float | float, temperature: float) -> Float:
    """Return the probabilities that the same logits give when they are divided by `temperature`."""
    return np.asarray(1 / (1 + np.exp(-logits_of(probabilities) / temperature)), dtype=np.float64)


def logits_of(probabilities: Float | float) -> Float:
    """Return the logit of probabilities, finite also for 0 and 1."""
    clipped = np.clip(probabilities, EPSILON, 1 - EPSILON)
    return np.asarray(np.log(clipped / (1 - clipped)), dtype=np.float64)


def find_threshold(labels: Int, scores: Float, rule: str) -> float | None:
    """Return the threshold that is best under a rule, midway between the scores on either side of it.

    Args:
        labels: ``[N]``, 1 for fake.
        scores: ``[N]`` in [0, 1].
        rule: ``max-f1``, ``max-accuracy`` (both classes count alike), or ``fpr=0.05`` for the highest recall at
            which at most this share of the reals is called fake.

    Returns:
        In `THRESHOLDS`; None where a class is missing.

    Raises:
        OptionError: the rule is unknown.
    """
    share = false_positive_share(rule)
    if not 0 < labels.sum() < len(labels):
        return None
    false_positive, true_positive, cuts = roc_curve(labels, scores, drop_intermediate=False)
    fakes, reals = int((labels == 1).sum()), int((labels == 0).sum())
    if rule == "max-f1":
        hits = true_positive * fakes
        worth = 2 * hits / np.maximum(hits + false_positive * reals + fakes, 1)
    elif rule == "max-accuracy":
        worth = true_positive - false_positive
    else:
        worth = np.where(false_positive <= share, true_positive, -1.0)
    best = int(np.argmax(worth))
    # The curve's cuts are scores themselves; the first is above all of them.
    above = min(1.0, float(cuts[best]))
    below = float(cuts[best + 1]) if best + 1 < len(cuts) else 0.0
    return float(np.clip((above + below) / 2, *THRESHOLDS))


def false_positive_share(rule: str) -> float:
    """Return the largest share that a rule allows, 0 where it names none; `OptionError` for an unknown rule."""
    if rule in ("max-f1", "max-accuracy"):
        return 0.0
    name, _, text = rule.partition("=")
    try:
        share = float(text)
    except ValueError:
        share = -1.0
    if name != "fpr" or not 0 < share < 1:
        raise OptionError(f"threshold rule {rule!r} is unknown; choose one of {', '.join(RULES)}, as in fpr=0.05")
    return share
