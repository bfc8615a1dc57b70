"""`deepfake analyze`, as a person runs it: real clips, the real detector, a real Triton, exit codes and sentences."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from http_files import free_port
from media import astronaut, make_audio_only, make_clip, make_truncated, picture, write_video

from deepfake_client import NO_RETRY, AnalyzeOptions, Connection, DeepfakeClient, Label, Progress, Reason, Sampling
from deepfake_client.cli.main import main
from deepfake_preprocess.faces.crop import crop_face
from deepfake_preprocess.faces.detector import Face
from deepfake_preprocess.media.opening import open_media
from deepfake_serve import EmbeddedTriton


@dataclass(frozen=True)
class Run:
    code: int
    out: str
    err: str

    def json(self) -> Any:
        return json.loads(self.out)


def deepfake(*arguments: object, **environment: str) -> Run:
    done = subprocess.run(
        [sys.executable, "-m", "deepfake_client.cli.main", *map(str, arguments)],
        capture_output=True,
        text=True,
        timeout=120,
        env=os.environ | environment,
        check=False,
    )
    assert "Traceback" not in done.stderr, done.stderr
    return Run(done.returncode, done.stdout, done.stderr)


@pytest.fixture(scope="module")
def clip(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_clip(tmp_path_factory.mktemp("clips") / "two_faces.mp4", size_wh=(640, 360), duration_s=2, faces=2)


def test_a_video_gets_a_verdict_for_every_face(embedded_triton: EmbeddedTriton, clip: Path) -> None:
    run = deepfake("analyze", clip, "--url", embedded_triton.grpc_url, "--json", "--num-frames", 8)
    assert run.code == 0, run.err
    data = run.json()
    assert data["source"] == str(clip)
    assert data["label"] in ("REAL", "FAKE")
    assert len(data["tracks"]) == 2
    # The higher of two scores is a little too high by chance; the verdict allows for it.
    scores = sorted(track["fake_probability"] for track in data["tracks"])
    assert scores[0] <= data["fake_probability"] <= scores[1]
    assert data["tracks"][data["deciding_track"]]["fake_probability"] == scores[1]
    assert data["threshold"] == 0.4, "the server's own threshold"
    assert data["model"]["name"] == "tiny"
    assert len(data["frames"]) == 8
    for frame in data["frames"]:
        centers = sorted((face["box_xyxy"][0] + face["box_xyxy"][2]) / 2 for face in frame["faces"])
        assert centers == pytest.approx([320 * 225 / 512, 320 + 320 * 225 / 512], abs=15)


def test_scores_are_those_of_the_model_on_the_same_crops(
    embedded_triton: EmbeddedTriton, shared_tiny_repository: Path, clip: Path
) -> None:
    import onnxruntime

    session = onnxruntime.InferenceSession(shared_tiny_repository / "tiny" / "1" / "model.onnx")
    with DeepfakeClient(embedded_triton.grpc_url) as client, open_media(clip) as media:
        spec = client.model().spec
        verdict = client.analyze(media, options=AnalyzeOptions(sampling=Sampling(num_frames=4)))
        frames = list(media.frames(Sampling(num_frames=4)))
    assert len(frames) == len(verdict.frames) == 4
    for frame, result in zip(frames, verdict.frames, strict=True):
        assert frame.index == result.index
        crops = np.stack(
            [crop_face(frame, Face(np.array(face.box_xyxy, np.float32), 1.0), spec) for face in result.faces]
        )
        (expected,) = session.run(["fake_probability"], {"faces": crops})
        np.testing.assert_allclose([face.fake_probability for face in result.faces], expected[:, 0], atol=1e-5)


def test_the_table_names_verdict_frames_timing_and_model(embedded_triton: EmbeddedTriton, clip: Path) -> None:
    run = deepfake("analyze", clip, "--url", embedded_triton.grpc_url, "--num-frames", 4)
    assert run.code == 0
    assert "fake probability" in run.out
    assert "total " in run.out
    assert "tiny version 1" in run.out
    assert "random numbers" in run.out, "what the scores are worth is said with them"


def test_images_and_directories(embedded_triton: EmbeddedTriton, tmp_path: Path) -> None:
    for name in ("a.jpg", "b.png", "c.webp"):
        cv2.imwrite(str(tmp_path / name), cv2.cvtColor(astronaut(), cv2.COLOR_RGB2BGR))
    (tmp_path / "notes.txt").write_text("no media")
    run = deepfake("analyze", tmp_path, "--url", embedded_triton.grpc_url, "--json")
    assert run.code == 0, run.err
    assert [Path(item["source"]).name for item in run.json()] == ["a.jpg", "b.png", "c.webp"]
    assert all(len(item["frames"]) == len(item["tracks"]) == 1 for item in run.json())
    pattern = deepfake("analyze", f"{tmp_path}/*.p?g", "--url", embedded_triton.grpc_url, "--json")
    assert pattern.json()["source"].endswith("b.png")


def test_an_embedded_server_is_started_for_one_run_and_stopped(tiny_repository: Path, clip: Path) -> None:
    run = deepfake("analyze", clip, "--embedded", "--repository", tiny_repository, "--json", "--num-frames", 8)
    assert run.code == 0, run.err
    assert run.json()["model"]["name"] == "tiny"


def unreadable_inputs(folder: Path) -> dict[str, Path]:
    paths = {name: folder / name for name in ("missing.mp4", "empty.mp4", "text.mp4", "truncated.mp4", "sound.mp4")}
    paths["empty.mp4"].touch()
    paths["text.mp4"].write_text("this is a text file, whatever it is called\n" * 50)
    make_truncated(paths["truncated.mp4"])
    make_audio_only(paths["sound.mp4"])
    return paths


@pytest.fixture(scope="module")
def unreadable(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    return unreadable_inputs(tmp_path_factory.mktemp("unreadable"))


@pytest.mark.parametrize("server_runs", [True, False])
@pytest.mark.parametrize("name", ["missing.mp4", "empty.mp4", "text.mp4", "truncated.mp4", "sound.mp4"])
def test_an_input_that_cannot_be_opened_is_reported_whether_or_not_a_server_runs(
    embedded_triton: EmbeddedTriton, unreadable: dict[str, Path], name: str, server_runs: bool
) -> None:
    url = embedded_triton.grpc_url if server_runs else f"127.0.0.1:{free_port()}"
    run = deepfake("analyze", unreadable[name], "--url", url, "--json")
    assert run.code == 2
    assert run.out == ""
    assert run.err.startswith("error: ")
    assert run.err.count("\n") == 1, "one sentence, one line"
    assert name in run.err


def test_good_files_are_analyzed_although_others_cannot_be_opened(
    embedded_triton: EmbeddedTriton, unreadable: dict[str, Path], clip: Path
) -> None:
    run = deepfake(
        "analyze",
        unreadable["text.mp4"],
        clip,
        unreadable["missing.mp4"],
        "--url",
        embedded_triton.grpc_url,
        "--json",
    )
    assert run.code == 5
    first, second, third = run.json()
    assert first["error"]["type"] == "MediaOpenError"
    assert second["label"] in ("REAL", "FAKE")
    assert third["error"]["type"] == "MediaNotFoundError"
    assert run.err.count("error: ") == 2


def test_a_video_without_a_face_is_inconclusive(embedded_triton: EmbeddedTriton, tmp_path: Path) -> None:
    path = tmp_path / "gray.mp4"
    write_video(path, [np.full((240, 320, 3), 127, np.uint8)] * 10)
    run = deepfake("analyze", path, "--url", embedded_triton.grpc_url, "--json")
    assert run.code == 3
    assert (run.json()["label"], run.json()["reason"]) == ("INCONCLUSIVE", "no_face")
    assert run.json()["fake_probability"] is None


def test_a_video_of_one_pixel_is_inconclusive(embedded_triton: EmbeddedTriton, tmp_path: Path) -> None:
    path = tmp_path / "pixel.mkv"
    write_video(path, [np.zeros((1, 1, 3), np.uint8)] * 3, codec="ffv1", pix_fmt="bgr0")
    run = deepfake("analyze", path, "--url", embedded_triton.grpc_url, "--json")
    assert run.code == 3
    assert run.json()["reason"] == "no_face"


def test_a_frame_of_8k_is_analyzed(embedded_triton: EmbeddedTriton, tmp_path: Path) -> None:
    path = tmp_path / "8k.mp4"
    write_video(path, [picture(7680, 4320)], codec="mjpeg", pix_fmt="yuvj420p")
    run = deepfake("analyze", path, "--url", embedded_triton.grpc_url, "--json")
    assert run.code == 0, run.err
    (face,) = run.json()["frames"][0]["faces"]
    assert face["box_xyxy"][0] == pytest.approx(7680 * 170 / 512 * 4320 / 7680, rel=0.15)


def test_a_server_that_does_not_run_is_exit_code_4(clip: Path) -> None:
    run = deepfake("analyze", clip, "--url", f"127.0.0.1:{free_port()}")
    assert run.code == 4
    assert "deepfake serve" in run.err
    assert run.err.count("\n") == 1


def test_a_model_that_is_not_served_is_named_with_those_that_are(embedded_triton: EmbeddedTriton, clip: Path) -> None:
    run = deepfake("analyze", clip, "--url", embedded_triton.grpc_url, "--model", "efficientnet_b7")
    assert run.code == 2
    assert "'efficientnet_b7'" in run.err
    assert "it offers tiny" in run.err


def test_a_model_that_is_not_in_the_repository_is_refused(tiny_repository: Path, clip: Path) -> None:
    run = deepfake("analyze", clip, "--embedded", "--repository", tiny_repository, "--model", "other")
    assert run.code == 2
    assert "other" in run.err
    assert "tiny" in run.err


def test_usage_errors_are_exit_code_2(clip: Path, tmp_path: Path) -> None:
    for arguments in (
        ["analyze"],
        ["analyze", clip, "--num-frames", 0],
        ["analyze", clip, "--num-frames", 4, "--fps", 2],
        ["analyze", clip, "--fps", -1],
        ["analyze", clip, "--threshold", 2],
        ["analyze", clip, "--aggregation", "best"],
        ["analyze", tmp_path],
        ["analyse", clip],
    ):
        with pytest.raises(SystemExit) as left:
            main([str(item) for item in arguments])
        assert left.value.code == 2, arguments


def test_what_was_scored_before_the_server_was_killed_is_reported(tiny_repository: Path, clip: Path) -> None:
    with (
        EmbeddedTriton(tiny_repository) as triton,
        DeepfakeClient(Connection(url=triton.grpc_url, retry=NO_RETRY)) as client,
    ):

        def kill(progress: Progress) -> None:
            if progress.frames_done == 5:
                os.kill(triton.pid or 0, signal.SIGKILL)

        verdict = client.analyze(clip, options=AnalyzeOptions(sampling=Sampling(num_frames=50)), on_progress=kill)
    assert (verdict.label, verdict.reason) == (Label.INCONCLUSIVE, Reason.SERVER_UNAVAILABLE)
    scored = [face for frame in verdict.frames for face in frame.faces if face.fake_probability is not None]
    assert len(scored) >= 10, "five frames of two faces were scored before the server was killed"
    assert verdict.tracks[0].num_frames >= 5


def test_models_and_health_say_what_the_server_offers(embedded_triton: EmbeddedTriton) -> None:
    (model,) = deepfake("models", "--url", embedded_triton.grpc_url, "--json").json()
    assert model["name"] == "tiny"
    assert model["spec"]["input_height_px"] == 24
    assert "random numbers" in deepfake("models", DEEPFAKE_URL=embedded_triton.grpc_url, COLUMNS="200").out
    assert deepfake("health", "--url", embedded_triton.grpc_url, "--json").json()["ready"] is True
    assert deepfake("health", "--url", f"127.0.0.1:{free_port()}").code == 4
    assert deepfake("models", "--url", f"127.0.0.1:{free_port()}").code == 4


def test_help_teaches_and_version_is_printed() -> None:
    assert "Exit codes" in deepfake("analyze", "--help").out
    overview = deepfake("--help").out
    for command in ("analyze", "serve", "export", "models", "health", "demo-checkpoint"):
        assert command in overview
        assert deepfake(command, "--help").code == 0
    assert deepfake("--version").out.startswith("deepfake-serving ")
