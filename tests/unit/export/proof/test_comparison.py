"""Figures that need files, labels or a second artifact."""

from __future__ import annotations

import numpy as np
import pytest

from deepfake_export.proof.comparison import video_flips
from deepfake_export.proof.crops import CropSet, generate_crops
from deepfake_export.proof.speed import measure_speed
from deepfake_preprocess.errors import ExportError

CROPS = generate_crops(4, (16, 16))


def crop_set(sources: tuple[str, ...], videos: set[str]) -> CropSet:
    return CropSet(np.zeros((len(sources), 16, 16, 3), np.uint8), "test", sources, frozenset(videos))


def test_a_video_flips_by_its_mean_not_by_a_frame():
    faces = crop_set(("a.mp4", "a.mp4", "b.mp4", "b.mp4", "c.png"), {"a.mp4", "b.mp4"})
    reference = np.array([0.9, 0.6, 0.6, 0.5, 0.9], np.float32)
    artifact = np.array([0.9, 0.4, 0.5, 0.4, 0.1], np.float32)
    assert video_flips(reference, artifact, faces, 0.5) == 1


def test_speed_runs_every_artifact_at_every_batch_in_turn():
    calls: list[tuple[str, int]] = []

    def timer(name, seconds):
        def take(faces, repeats):
            calls.append((name, len(faces)))
            if name == "bf16" and len(faces) > 1:
                raise ExportError("the engine is gone")
            return seconds

        return take

    timers = {"fp32": timer("fp32", 0.2), "int8": timer("int8", 0.1), "bf16": timer("bf16", 0.1)}
    speeds, failures = measure_speed(timers, CROPS, (1, 6))
    assert {size for _, size in calls} == {1, 6}
    assert failures == {"bf16": "the engine is gone"}
    assert speeds.keys() == {"fp32", "int8"}
    assert calls.count(("bf16", 6)) == 1
    assert speeds["int8"].ratio_to_fp32 == {"1": 2.0, "6": 2.0}
    assert list(speeds["int8"].latency_ms) == ["1", "6"]
    assert speeds["fp32"].ratio_to_fp32 == {"1": 1.0, "6": 1.0}
    assert speeds["int8"].crops_per_s["6"] == pytest.approx(6000 / speeds["int8"].latency_ms["6"], rel=1e-2)
