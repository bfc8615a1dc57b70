"""How long the search for sensitive layers takes is bounded, and how far it is is said."""

from __future__ import annotations

import pytest

from deepfake_export.precision import int8

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
