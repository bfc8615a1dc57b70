"""`deepfake calibrate` through a real Triton: what is written is what is served then, and PyTorch is not needed."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import cv2
import media
import numpy as np
import pytest
from tiny_model import TINY_SPEC
from without_torch import WITHOUT_TORCH

from deepfake_client import AnalyzeOptions, DeepfakeClient, Reason, Sampling
from deepfake_client.cli.main import main
from deepfake_preprocess.contract.model_dir import versions_of
from deepfake_preprocess.contract.spec import Calibration
from deepfake_serve import EmbeddedTriton

NUM_REAL, NUM_FAKE = 12, 10


@pytest.fixture(scope="module")
def clips(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Pictures of one face, each a little different; the "fakes" are brighter. One shows none, one is no picture."""
    root, rng = tmp_path_factory.mktemp("clips"), np.random.default_rng(0)
    for label, count, gain in (("real", NUM_REAL, 0.85), ("fake", NUM_FAKE, 1.1)):
        (root / label).mkdir()
        for number in range(count):
            face = media.picture(200 + 4 * number, 200) * gain + rng.normal(0, 3, (200, 200 + 4 * number, 3))
            blurred = cv2.GaussianBlur(np.clip(face, 0, 255).astype(np.uint8), (0, 0), 0.4 + 0.05 * number)
            cv2.imwrite(str(root / label / f"{number}.png"), blurred[..., ::-1])
    cv2.imwrite(str(root / "real" / "empty.png"), np.full((90, 90, 3), 128, np.uint8))
    (root / "real" / "broken.png").write_bytes(b"no picture")
    return root


def call(*arguments: str | Path) -> int:
    with pytest.raises(SystemExit) as left:
        main([*map(str, arguments)])
    return int(left.value.code or 0)


def scores(client: DeepfakeClient, clips: Path, *, abstain: bool = False) -> Iterator[float | None]:
    options = AnalyzeOptions(sampling=Sampling(num_frames=32), abstain=abstain)
    for number in range(NUM_REAL):
        yield client.analyze(clips / "real" / f"{number}.png", options=options).fake_probability


def test_what_was_found_is_served(
    embedded_triton: EmbeddedTriton,
    tiny_repository: Path,
    clips: Path,
    tmp_path: Path,
    capfd: pytest.CaptureFixture[str],
) -> None:
    url, spec_file = f"grpc://{embedded_triton.grpc_url}", tmp_path / "tiny.yaml"
    spec_file.write_text(TINY_SPEC.to_yaml())
    places = (clips / "real", "--fake", clips / "fake", "--url", url, "--model", "tiny", "-r", tiny_repository)
    assert call("calibrate", *places, "--false-alarms", "0.1", "--dry-run") == 0
    said = capfd.readouterr().out
    assert "nothing was written" in said
    assert "empty.png (real): no_face" in said
    assert versions_of(tiny_repository / "tiny") == [1]

    options = map(str, [*places, "--false-alarms", "0.1", "--json", "--write-spec", spec_file])
    command = [sys.executable, "-c", WITHOUT_TORCH, "calibrate", *options]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert (found["written"], found["num_real"], found["num_fake"]) == (2, NUM_REAL, NUM_FAKE)
    assert {Path(item["source"]).name for item in found["left_out"]} == {"empty.png", "broken.png"}
    point = found["point"]
    with DeepfakeClient(url, model="tiny") as client:
        before = [score for score in scores(client, clips) if score is not None]
    with EmbeddedTriton(tiny_repository) as triton, DeepfakeClient(f"grpc://{triton.grpc_url}") as client:
        spec = client.model().spec
        assert (spec.version, spec.threshold, spec.temperature) == (2, point["threshold"], found["temperature"])
        assert spec.calibration == Calibration.from_dict(found["calibration"])
        served = [score for score in scores(client, clips) if score is not None]
        logits = np.log(np.array(before)) - np.log1p(-np.array(before))
        expected = 1 / (1 + np.exp(-logits * TINY_SPEC.temperature / spec.temperature))
        assert served == pytest.approx(expected, abs=1e-4)
        share = np.mean([score >= spec.threshold for score in served])
        assert share == pytest.approx(point["real_called_fake"]["value"])
        # The same clips again have not changed; larger faces have.
        counts = (("real", NUM_REAL), ("fake", NUM_FAKE))
        pictures = [clips / label / f"{number}.png" for label, count in counts for number in range(count)]
        week = [client.analyze(path).to_dict() for path in pictures]
        results, place = tmp_path / "week.jsonl", ("--url", f"grpc://{triton.grpc_url}", "-o", tmp_path)
        results.write_text("".join(json.dumps(line) + "\n" for line in week))
        assert call("evaluate", "--drift", results, *place) == 0
        said = capfd.readouterr().out
        assert "no change that chance does not explain" in said
        assert "fake probability             as before  index 0.00" in said
        for line in week:
            for face in line["frames"][0]["faces"]:
                face["box_xyxy"] = [4 * end for end in face["box_xyxy"]]
        results.write_text(json.dumps(week))
        assert call("evaluate", "--drift", results, *place) == 1
        drifted = json.loads((tmp_path / "drift.json").read_text())["figures"]
        assert [figure["figure"] for figure in drifted if figure["drifted"]] == ["size"]
        # A camera in the dark: nothing that the calibration has seen.
        gray = media.picture(200, 200).mean(axis=2, keepdims=True).repeat(3, axis=2)
        dark = np.clip(gray + np.random.default_rng(1).normal(0, 25, gray.shape), 0, 255).astype(np.uint8)
        cv2.imwrite(str(tmp_path / "dark.png"), dark)
        verdict = client.analyze(tmp_path / "dark.png")
        assert verdict.reason is Reason.OUT_OF_DISTRIBUTION, verdict
    carried = type(TINY_SPEC).from_yaml(spec_file)
    assert (carried.version, carried.threshold) == (1, spec.threshold)
    assert carried.calibration == spec.calibration

    # The server still has version 1, and the repository serves version 2.
    assert call("calibrate", *places, "--false-alarms", "0.1") == 2
    assert "the clips were scored by version 1 of 'tiny', but" in capfd.readouterr().err
    assert call("calibrate", *places, "--dry-run") == 2
    said = capfd.readouterr().err
    assert "12 real clips with a face are too few for a share of false alarms of 0.05: at least 19" in said
    assert "--false-alarms" in said
