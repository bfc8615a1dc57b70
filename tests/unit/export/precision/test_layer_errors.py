"""What the search for sensitive layers is content with; how long it takes is bounded, and how far it is is said."""

from __future__ import annotations

import numpy as np
import pytest

from deepfake_export.precision import int8
from deepfake_export.proof.tolerances import TOLERANCES

LAYERS = {f"layer{number}": [f"conv{number}"] for number in range(88)}


@pytest.mark.parametrize(("seconds", "groups"), [(0.1, 88), (2.0, 88), (5.0, 30), (60.0, 8)])
def test_slow_layers_are_measured_together(monkeypatch, seconds, groups):
    now = [0.0]
    measured: list[list[str]] = []

    def error_of(nodes: list[str]) -> float:
        now[0] += seconds
        measured.append(nodes)
        return float(len(nodes))

    monkeypatch.setattr(int8.time, "monotonic", lambda: now[0])
    steps: list[str] = []
    layers, errors = int8._measure_layers(LAYERS, error_of, steps.append)
    assert len(layers) == len(errors) == groups
    assert [node for nodes in layers.values() for node in nodes] == [f"conv{number}" for number in range(88)]
    assert len(measured) <= groups + 1
    # No layer is measured twice but the first, and a word comes at least every ten seconds and a measurement.
    assert len(steps) >= 1 + (groups * seconds) // (10 + seconds) * (seconds < 10)
    assert any("left" in step for step in steps) == (groups * seconds > 10)
    assert any("groups of up to" in step for step in steps) == (groups < 88)


@pytest.mark.parametrize(("threshold", "spread"), [(0.5, 1.0), (0.2, 1.0), (0.5763, 0.84), (0.5, 4.0)])
def test_verdicts_that_an_error_changes_are_reckoned_from_the_scores_beside_the_threshold(threshold, spread):
    random = np.random.default_rng(5)
    logits = random.normal(0, spread, 400_000).astype(np.float32)
    errors = random.normal(0.01, 0.04, logits.shape).astype(np.float32)
    limit = np.log(threshold / (1 - threshold))
    changed = ((logits + errors >= limit) != (logits >= limit)).mean()
    assert int8._density(logits, threshold) * np.abs(errors).mean() == pytest.approx(changed, rel=0.1)


def test_the_search_goes_on_where_verdicts_of_more_faces_would_change():
    share = TOLERANCES["int8"].flip_share
    scores = np.linspace(-2, 2, 48, dtype=np.float32)[:, None]
    density = int8._density(scores, 0.5)
    assert density == pytest.approx(0.25)
    error = np.float32(share / density)  # none of these crops is so near to the threshold
    assert not int8._is_good(scores + 0.9 * error, scores, density)
    assert int8._is_good(scores + 0.49 * error, scores, density)
    # No score of a network lies there: its error changes no verdict.
    assert int8._is_good(scores + 0.9 * error, scores, int8._density(scores + 5, 0.5))
    assert not int8._is_good(np.full_like(scores, np.nan), scores, density)
    # Of single probabilities, and of their mean, half of the limit is allowed too.
    assert not int8._is_good(scores + 0.06, scores, 0.0)
    assert not int8._is_good(np.where(np.arange(48)[:, None] == 24, scores + 0.4, scores), scores, 0.0)
