"""The proof can fail: each kind of deviation is found, and named with its figure and its limit."""

from __future__ import annotations

import dataclasses
import json
import re

import numpy as np
import pytest
import torch

from deepfake_export.graph.served_detector import ServedDetector
from deepfake_export.proof.crops import CropSet, generate_crops
from deepfake_export.proof.parity import ParityReport, measure_parity, reference_outputs, require_parity
from deepfake_export.proof.tolerances import TOLERANCES
from deepfake_preprocess.contract.spec import ModelSpec
from deepfake_preprocess.errors import ParityError

SIZE_WH = (16, 16)
CROPS = generate_crops(7, SIZE_WH)


class MeanLogit(torch.nn.Module):
    """One logit: the crop's mean over everything, so that crops differ."""

    def forward(self, crops):
        return crops.mean(dim=(1, 2, 3))


DETECTOR = ServedDetector(
    MeanLogit(), ModelSpec(name="tiny", architecture="timm:none", input_width_px=16, input_height_px=16)
).eval()


def exact(faces):
    return reference_outputs(DETECTOR, faces)


def shifted(by: float):
    def run(faces):
        _, logit = exact(faces)
        logit = logit + np.float32(by)
        return 1 / (1 + np.exp(-logit)), logit

    return run


def measure(artifact, *, threshold: float = 0.5, precision: str = "fp32", sha256: str | None = None) -> ParityReport:
    report, probability = measure_parity(
        reference_outputs(DETECTOR, CROPS),
        artifact,
        CropSet(CROPS, "of a test", sha256=sha256),
        name="the artifact",
        precision=precision,
        threshold=threshold,
        max_batch_size=4,
        size_bytes=1_000_000,
    )
    assert probability.shape == (7,)
    return report


def test_the_reference_itself_passes():
    report = measure(exact)
    require_parity(report)
    assert report.batch_sizes == (1, 3, 4)
    assert report.probability.max_abs < 1e-6
    assert report.verdict_flips == 0
    assert report.notes == []
    assert report.to_dict()["passed"]
    assert json.loads(json.dumps(report.to_dict())) == report.to_dict()


def test_a_shift_is_refused_with_figure_and_limit():
    report = measure(shifted(0.01))
    assert report.probability.max_abs == pytest.approx(0.0025, rel=0.2)
    assert report.logit.mean_abs == pytest.approx(0.01, rel=1e-3)
    with pytest.raises(ParityError, match=r"fake_probability differs by up to 0\.002\d* \(limit 0\.0001\).*logit"):
        require_parity(report)
    assert not report.to_dict()["passed"]


def test_nan_is_refused():
    with pytest.raises(ParityError, match="differs by up to nan"):
        require_parity(measure(lambda faces: (exact(faces)[0] * np.nan, exact(faces)[1])))


def test_an_output_that_depends_on_the_batch_is_refused():
    def mixed(faces):
        probability, logit = exact(faces)
        return probability + np.float32(5e-5) * (len(faces) > 1), logit

    report = measure(mixed)
    # Within the limit against the reference; only the comparison between batches shows it.
    assert report.probability.max_abs < TOLERANCES["fp32"].probability_abs
    with pytest.raises(ParityError, match="in different batches"):
        require_parity(report)


def test_a_verdict_that_changes_within_fp32s_tolerance_is_no_problem():
    middle = float(np.sort(exact(CROPS)[0].ravel())[3])
    report = measure(shifted(-1e-5), threshold=middle)
    assert report.verdict_flips == 1
    require_parity(report)


@pytest.mark.parametrize(("allowed", "passes"), [(1, True), (0, False)])
def test_of_other_precisions_a_share_of_the_verdicts_may_change_however_near_they_are(monkeypatch, allowed, passes):
    tolerance = dataclasses.replace(TOLERANCES["bf16"], flip_share=allowed / len(CROPS))
    monkeypatch.setitem(TOLERANCES, "bf16", tolerance)
    middle = float(np.sort(exact(CROPS)[0].ravel())[3])
    report = measure(shifted(-1e-5), threshold=middle, precision="bf16", sha256="of faces")
    assert report.verdict_flips == 1
    assert report.problems == ([] if passes else ["1 of 7 verdicts change (limit 0)"])


def test_a_wrong_shape_is_refused():
    with pytest.raises(ParityError, match=r"has shape \[1\] instead of \[1, 1\]"):
        measure(lambda faces: tuple(item[:, 0] for item in exact(faces)))


def test_a_reference_that_ignores_its_input_is_called_weak():
    constant = ServedDetector(
        torch.nn.Sequential(torch.nn.AdaptiveAvgPool2d(1), torch.nn.Flatten(), torch.nn.Linear(3, 1)),
        ModelSpec(name="tiny", architecture="timm:none"),
    )
    torch.nn.init.zeros_(constant.network[2].weight)
    report, _ = measure_parity(
        reference_outputs(constant.eval(), CROPS),
        lambda faces: reference_outputs(constant, faces),
        CropSet(CROPS, "generated"),
        name="constant",
        precision="fp32",
        threshold=0.5,
        max_batch_size=1,
        size_bytes=1,
    )
    assert "weak proof" in report.notes[0]


def test_every_tolerance_has_its_reason():
    assert all(len(tolerance.reason) > 40 for tolerance in TOLERANCES.values())


@pytest.mark.parametrize(("by", "sha256", "passes"), [(0.014, None, True), (0.015, None, False), (0.015, "ab", True)])
def test_generated_faces_prove_by_the_error_of_their_logits_and_real_ones_by_their_verdicts(by, sha256, passes):
    report = measure(shifted(by), precision="bf16", threshold=0.01, sha256=sha256)
    assert report.verdict_flips == 0
    assert report.passed == passes
    if not passes:
        (problem,) = report.problems
        assert re.search(r"logit of generated faces differs by 0\.015 on average \(limit 0\.0143;", problem)
