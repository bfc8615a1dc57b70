"""A number is predicted from features."""

from __future__ import annotations

import numpy as np
import pytest

from deepfake_training.loop.ridge import regress


def test_a_number_is_predicted_from_features_that_tell_it() -> None:
    rng = np.random.default_rng(0)
    features = rng.normal(size=(200, 6)) * [3, 1, 1, 1, 1, 1] + 5
    truth = np.array([0.5, -1, 0, 0, 0, 0.0])
    found = regress(features, features @ truth + 7 + 0.1 * rng.normal(size=200))
    np.testing.assert_allclose(found.weights, truth, atol=0.05)
    assert found.bias == pytest.approx(7, abs=0.3)
    assert found.correlation > 0.98
    noise = regress(features, rng.normal(size=200))
    assert abs(noise.correlation) < 0.3
    assert float(np.abs(noise.weights).max()) < 0.2, "nothing is made of noise"
