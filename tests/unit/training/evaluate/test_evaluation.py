from __future__ import annotations

import dataclasses
import json
import re
from pathlib import Path

import cv2
import media
import numpy as np
import pytest
import torch
from drawn_faces import QUICK, TINY, make_faces
from numpy.typing import NDArray
from safetensors.torch import save_file
from sklearn.metrics import roc_auc_score

from deepfake_client import AnalyzeOptions
from deepfake_client.client import DeepfakeClient
from deepfake_client.result.journal import Journal
from deepfake_client.result.verdict import FaceScore, FrameResult
from deepfake_client.transport.testing import FakeTransport
from deepfake_export.checkpoint.architectures import build_network
from deepfake_export.graph.served_detector import ServedDetector
from deepfake_preprocess.contract.spec import Head
from deepfake_preprocess.errors import OptionError, ServerUnavailableError
from deepfake_preprocess.media.sampling import Sampling
from deepfake_training.data.labels import LabelName
from deepfake_training.evaluate.calibration import apply_temperature, find_temperature, find_threshold
from deepfake_training.evaluate.checkpoint import CheckpointTransport
from deepfake_training.evaluate.clips import labeled_files
from deepfake_training.evaluate.evaluation import (
    EvaluateOptions,
    Evaluation,
    RobustnessPoint,
    calibrated_spec,
    evaluate_files,
)
from deepfake_training.evaluate.held_out import score_held_out
from deepfake_training.evaluate.metrics import (
    FIGURES,
    Confusion,
    equal_error_rate,
    exact_interval,
    measure,
    recall_at,
)
from deepfake_training.evaluate.report import write_report
from deepfake_training.evaluate.robustness import DEGRADATIONS, view_of
from deepfake_training.evaluate.scoring import ScoredFile, score_files
from deepfake_training.loop.run import TrainingRun


def scored_file(name: str, label: LabelName, *probabilities: float) -> ScoredFile:
    frames = tuple(
        FrameResult(number, float(number), (FaceScore(0, (0.0, 0.0, 9.0, 9.0), 1.0, probability),))
        for number, probability in enumerate(probabilities)
    )
    return ScoredFile(name, label, float(np.mean(probabilities)), frames=frames)


SCORED = [
    scored_file("r1", "real", 0.1, 0.2, 0.3),
    scored_file("r2", "real", 0.4, 0.5, 0.6),
    scored_file("f1", "fake", 0.4, 0.4, 0.4),
    scored_file("f2", "fake", 0.9, 0.9, 0.9),
    ScoredFile("f3", "fake", None, "no_face: no face was found"),
]
SPEC = dataclasses.replace(TINY, threshold=0.45)


def evaluation_of(scored: list[ScoredFile] = SCORED, *, rule: str = "max-accuracy") -> Evaluation:
    return evaluate_files(scored, SPEC, EvaluateOptions(rule=rule, resamples=50), through="server")


def test_figures_by_hand() -> None:
    metrics = measure([0, 0, 1, 1], [0.2, 0.5, 0.4, 0.9], 0.45, resamples=0)
    assert metrics.confusion == Confusion(1, 1, 1, 1)
    values = {name: getattr(metrics, name).value for name in FIGURES}
    assert values["roc_auc"] == 0.75
    assert values["accuracy"] == values["precision"] == values["recall"] == values["f1"] == 0.5
    assert values["eer"] == 0.5
    assert values["pr_auc"] == pytest.approx(0.5 * 1 + 0.5 * 2 / 3)
    assert values["ece"] == pytest.approx((0.2 + 0.5 + 0.6 + 0.1) / 4)


def test_equal_error_rate_of_a_perfect_and_of_a_blind_detector() -> None:
    labels = np.array([0, 0, 1, 1])
    assert equal_error_rate(labels, np.array([0.1, 0.2, 0.8, 0.9])) == 0.0
    assert equal_error_rate(labels, np.array([0.5, 0.5, 0.5, 0.5])) == pytest.approx(0.5)
    assert equal_error_rate(labels, np.array([0.8, 0.9, 0.1, 0.2])) == 1.0


def test_intervals_hold_the_truth_and_draw_whole_videos() -> None:
    rng = np.random.default_rng(0)
    labels = np.repeat([0, 1], 300)
    scores = np.clip(rng.normal(0.4 + 0.2 * labels, 0.2), 0, 1)
    alone = measure(labels, scores, 0.5, resamples=60).roc_auc
    assert alone.low is not None
    assert alone.high is not None
    assert alone.low < roc_auc_score(labels, scores) < alone.high
    assert 0.03 < alone.high - alone.low < 0.12
    # Frames of ten videos each, all alike, say no more than ten scores: the interval must widen.
    units = [f"video{number // 30}" for number in range(600)]
    alike = np.repeat(scores[::30], 30)
    together = measure(labels, alike, 0.5, units=units, resamples=60).roc_auc
    assert together.high is not None
    assert together.low is not None
    assert together.high - together.low > 2 * (alone.high - alone.low)


def test_a_figure_lies_in_its_interval() -> None:
    rng = np.random.default_rng(3)
    for count in (8, 60, 400):
        # Calibrated on the spot: the ECE of every resample is worse.
        scores = np.repeat((np.arange(4) + 0.5) / 4, count // 4)
        labels = (np.tile(np.arange(count // 4), 4) < scores * (count // 4)).astype(np.int64)
        for drawn in (scores, np.clip(rng.normal(0.5, 0.3, len(scores)), 0, 1)):
            metrics = measure(labels, drawn, 0.5, resamples=60)
            for name in FIGURES:
                figure = getattr(metrics, name)
                assert 0 <= figure.low <= figure.value <= figure.high <= 1, (name, figure)


def test_figures_that_need_both_classes_are_missing_without_them() -> None:
    metrics = measure([1, 1], [0.2, 0.9], 0.5, resamples=20)
    assert metrics.roc_auc.value is None
    assert metrics.eer.value is None
    assert metrics.recall.value == 0.5
    assert measure([], [], 0.5).accuracy.value is None


def test_temperature_undoes_overconfidence() -> None:
    rng = np.random.default_rng(0)
    true = rng.uniform(0.05, 0.95, 4000)
    labels = (rng.random(4000) < true).astype(np.int64)
    sharp = apply_temperature(true, 1 / 3)
    assert find_temperature(labels, sharp) == pytest.approx(3, rel=0.15)
    assert np.allclose(apply_temperature(sharp, 3), true, atol=1e-6)
    assert find_temperature(np.ones(5, np.int64), np.full(5, 0.9)) == 1.0


def test_thresholds_follow_their_rule() -> None:
    labels = np.array([0] * 20 + [1] * 20)
    scores = np.concatenate([np.linspace(0.0, 0.6, 20), np.linspace(0.4, 1.0, 20)])
    strict = find_threshold(labels, scores, "fpr=0.05")
    assert strict is not None
    assert (scores[:20] >= strict).mean() <= 0.05
    assert (scores[20:] >= strict).mean() > 0.6
    best = find_threshold(np.array([0, 0, 1, 1]), np.array([0.1, 0.2, 0.6, 0.9]), "max-accuracy")
    assert best == pytest.approx(0.4)
    assert find_threshold(np.array([1, 1]), np.array([0.1, 0.2]), "max-f1") is None
    with pytest.raises(OptionError, match=r"'best' is unknown; choose one of max-f1, max-accuracy, fpr=SHARE"):
        find_threshold(labels, scores, "best")


def test_files_without_a_verdict_are_reported_and_left_out() -> None:
    evaluation = evaluation_of()
    assert [item.source for item in evaluation.inconclusive] == ["f3"]
    assert evaluation.per_file.num_fake == 2
    assert "not in the figures: 1, of these 1 fake" in " ".join(evaluation.notes)


def test_each_source_is_measured_against_its_own_reals_or_all() -> None:
    places = {"r1": "dfdc", "r2": "web", "f1": "dfdc", "f2": "swaps"}
    evaluation = evaluation_of([dataclasses.replace(item, kind=places[item.source]) for item in SCORED[:4]])
    found = evaluation.by_source
    assert {source: (row.num_real, row.num_fake) for source, row in found.items()} == {
        "dfdc": (1, 1),
        "swaps": (2, 1),
        "web": (1, 0),
    }
    assert (found["dfdc"].roc_auc.value, found["swaps"].roc_auc.value, found["web"].roc_auc.value) == (1.0, 1.0, None)
    assert (found["web"].false_positive_rate.value, found["dfdc"].false_positive_rate.value) == (1.0, 0.0)
    assert not evaluation_of().by_source


def test_false_alarms_have_exact_intervals_by_file() -> None:
    # Values of R's binom.test(0, 28) and binom.test(4, 28).
    assert exact_interval(0, 28) == pytest.approx((0, 0.1234), abs=1e-4)
    assert exact_interval(4, 28) == pytest.approx((0.0403, 0.3267), abs=1e-4)
    assert exact_interval(3, 3)[1] == 1.0
    scores = [0.1] * 24 + [0.9] * 4 + [0.8] * 5
    rate = measure([0] * 28 + [1] * 5, scores, 0.5, resamples=20).false_positive_rate
    assert (rate.value, rate.low, rate.high) == pytest.approx((4 / 28, 0.0403, 0.3267), abs=1e-4)


def test_fakes_found_at_a_share_of_false_alarms() -> None:
    labels = np.array([0] * 20 + [1] * 4)
    scores = np.array([*np.linspace(0, 0.5, 18), 0.7, 0.9, 0.6, 0.8, 0.95, 0.1])
    # One real of twenty may be accused (0.9), or two (0.7 as well).
    assert recall_at(labels, scores, 0.05) == 0.5
    assert recall_at(labels, scores, 0.1) == 0.75
    assert recall_at(labels, scores, 0.0) == 0.25


def test_one_class_only_is_measured_as_far_as_it_goes() -> None:
    evaluation = evaluation_of(SCORED[:2])
    assert "there is no fake file" in " ".join(evaluation.notes)
    assert evaluation.per_file.accuracy.value == 0.5
    with pytest.raises(OptionError, match="without real and fake files"):
        calibrated_spec(SPEC, evaluation, "max-accuracy")


def test_nothing_is_calibrated_on_scores_that_guess() -> None:
    turned = [dataclasses.replace(item, label="fake" if item.label == "real" else "real") for item in SCORED]
    with pytest.raises(OptionError, match=r"ROC-AUC 0\.25, a coin has 0\.5.*'head\.fake_index' agree"):
        calibrated_spec(SPEC, evaluation_of(turned), "max-accuracy")
    assert any("temperature is at its bound (20 times" in note for note in evaluation_of(turned).notes)
    apart = [scored_file("r", "real", 0.1, 0.2), scored_file("f", "fake", 0.8, 0.9)]
    assert any("told apart without an error" in note for note in evaluation_of(apart).notes)
    assert not any("at its bound" in note for note in evaluation_of().notes)


def test_what_was_found_goes_into_the_spec_and_works_there() -> None:
    evaluation = evaluation_of(rule="max-f1")
    found = calibrated_spec(SPEC, evaluation, "max-f1")
    assert found.temperature == round(evaluation.found["temperature"], 4)
    assert found.threshold == round(evaluation.found["threshold (max-f1)"], 4)
    # What the graph answers with this temperature is what the threshold was chosen on.
    raw = torch.tensor([[0.3], [-1.2]])
    with_temperature = ServedDetector(torch.nn.Identity(), found).logit_of(raw)
    expected = apply_temperature(torch.sigmoid(raw[:, 0]).double().numpy(), found.temperature)
    assert torch.sigmoid(with_temperature)[:, 0].numpy() == pytest.approx(expected, abs=1e-5)


def test_temperature_divides_the_fake_logit_of_every_head() -> None:
    two = dataclasses.replace(TINY, head=Head("softmax", 0), temperature=2.0)
    assert ServedDetector(torch.nn.Identity(), two).logit_of(torch.tensor([[5.0, 1.0]])).tolist() == [[2.0]]
    negated = dataclasses.replace(TINY, head=Head("sigmoid", 0), temperature=2.0)
    assert ServedDetector(torch.nn.Identity(), negated).logit_of(torch.tensor([[5.0]])).tolist() == [[-2.5]]


def test_a_report_is_json_markdown_and_plots(tmp_path: Path) -> None:
    evaluation = dataclasses.replace(
        evaluation_of(),
        robustness={"jpeg": (RobustnessPoint(50, 0.8, 0.5, 1),)},
    )
    written = {path.name for path in write_report(evaluation, tmp_path)}
    assert written == {"evaluation.json", "evaluation.md", "roc.png", "reliability.png", "robustness.png"}
    data = json.loads((tmp_path / "evaluation.json").read_text())
    assert data["per_file"]["roc_auc"]["value"] == 0.75
    text = (tmp_path / "evaluation.md").read_text()
    assert "| ROC-AUC | 0.750 [" in text
    assert "f3 (fake): no_face" in text
    assert re.search(r"Made by deepfake-serving \S+ on \d+ \w+ 20\d\d, \d\d:\d\d UTC\.$", text.rstrip())
    assert "| jpeg | 50 | 0.800 | 0.500 | 1 |" in text


@pytest.fixture
def clips(tmp_path: Path) -> Path:
    for label in ("real", "fake"):
        (tmp_path / label).mkdir()
    face = media.picture(240, 240)
    cv2.imwrite(
        str(tmp_path / "real" / "bright.png"), np.clip(face[..., ::-1].astype(int) + 60, 0, 255).astype(np.uint8)
    )
    cv2.imwrite(str(tmp_path / "fake" / "dark.png"), face[..., ::-1] // 2)
    cv2.imwrite(str(tmp_path / "fake" / "wall.png"), np.full((120, 120, 3), 90, np.uint8))
    (tmp_path / "fake" / "broken.jpg").write_bytes(b"\xff\xd8\xff" + b"junk" * 20)
    return tmp_path


def test_files_are_scored_through_the_clients_pipeline(clips: Path) -> None:
    darkness = FakeTransport(lambda faces: 1 - faces.reshape(len(faces), -1).mean(1).astype(np.float32) / 255)
    files = labeled_files([clips / "real"], [clips / "fake"])
    options = AnalyzeOptions(sampling=Sampling(num_frames=2))
    with DeepfakeClient(darkness) as client:
        scored = score_files(files, client, options)
        blurred = score_files(files[:1], client, options, view=view_of(DEGRADATIONS["blur"], 1))
    by_name = {Path(item.source).name: item for item in scored}
    bright, dark = by_name["bright.png"].fake_probability, by_name["dark.png"].fake_probability
    assert bright is not None
    assert dark is not None
    assert bright < dark
    assert by_name["wall.png"].reason.startswith("no_face")
    assert "damaged" in by_name["broken.jpg"].reason
    assert blurred[0].fake_probability not in (None, bright)


def test_what_was_scored_before_the_server_failed_is_not_scored_again(clips: Path) -> None:
    files, options = (
        labeled_files([clips / "real"], [clips / "fake"]),
        AnalyzeOptions(sampling=Sampling(num_frames=2)),
    )
    asked: list[int] = []

    def answer(faces: NDArray[np.uint8]) -> NDArray[np.float32]:
        asked.append(len(faces))
        if len(asked) == 2:
            raise ServerUnavailableError("the server went away")
        return np.full(len(faces), 0.5, np.float32)

    with DeepfakeClient(FakeTransport(answer)) as client:
        # Figures of those that happened to be scored would be wrong ones.
        with Journal(clips / "kept.jsonl", {}) as journal, pytest.raises(ServerUnavailableError, match=r"dark\.png"):
            score_files(files, client, options, journal=journal)
        with Journal(clips / "kept.jsonl", {}) as journal:
            scored = score_files(files, client, options, journal=journal)
        assert len(asked) == 3, "bright, dark in vain, and dark; a wall and a broken file have no face"
    assert [item.fake_probability for item in scored] == [0.5, None, 0.5, None]
    assert [item.label for item in scored] == ["real", "fake", "fake", "fake"]


def test_a_checkpoint_answers_as_its_graph_does(tmp_path: Path) -> None:
    network = build_network(TINY).eval()
    save_file(network.state_dict(), tmp_path / "tiny.safetensors")
    faces = np.random.default_rng(0).integers(0, 256, (11, 32, 32, 3), dtype=np.uint8)
    with torch.inference_mode():
        expected = ServedDetector(network, TINY)(torch.from_numpy(faces))[0][:, 0].numpy()
    assert CheckpointTransport(tmp_path / "tiny.safetensors", TINY).score(faces) == pytest.approx(expected, abs=1e-6)


def test_a_run_is_evaluated_on_what_it_held_out(tmp_path: Path) -> None:
    faces = make_faces()
    pack = tmp_path / "faces.safetensors"
    faces.save(pack)
    best = TrainingRun(faces, dataclasses.replace(QUICK, epochs=1, pack=str(pack)), tmp_path / "run").train()
    spec, scored = score_held_out(tmp_path / "run")
    assert spec.checkpoint_sha256 is not None
    auc = roc_auc_score([item.class_index for item in scored], [item.fake_probability for item in scored])
    assert auc == pytest.approx(best.validation_auc, abs=1e-6)
    assert score_held_out(tmp_path / "run", faces) == (spec, scored)
    assert len(score_held_out(tmp_path / "run", num_crops=4)[1]) == 4
    with pytest.raises(OptionError, match="is not the directory of a run"):
        score_held_out(tmp_path)
