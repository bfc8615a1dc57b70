"""The benchmarks of analyses, on small clips and a real Triton: what is timed is checked, mistakes are sentences."""

from __future__ import annotations

import json
import os
import signal
import subprocess
from dataclasses import replace

import media
import numpy as np
import psutil
import pytest
from serve_command import DEEPFAKE
from server_processes import assert_all_end
from tiny_model import TINY_SPEC, write_tiny_onnx

from deepfake_bench.pipeline.analyses import Analyses
from deepfake_bench.pipeline.usual import usual_pipeline
from deepfake_bench.report.figures import pipeline_rows
from deepfake_bench.report.plots import write_plots
from deepfake_bench.server.serving import embedded_server
from deepfake_client.cli import main as cli
from deepfake_preprocess.contract.spec import ModelSpec
from deepfake_preprocess.errors import DeepfakeError
from deepfake_preprocess.support.extras import install_command

STAGES = ["decode", "detect", "crop", "wire", "queue", "compute", "aggregate", "total"]


@pytest.fixture(scope="module")
def clips(tmp_path_factory):
    folder = tmp_path_factory.mktemp("clips")
    media.make_clip(folder / "one.mp4", duration_s=0.4, faces=1)
    media.make_clip(folder / "two.mp4", duration_s=0.4, faces=2)
    return folder


def bench(*arguments: str) -> int:
    with pytest.raises(SystemExit) as left:
        cli.main(["bench", *arguments])
    assert isinstance(left.value.code, int)
    return left.value.code


def test_an_analysis_is_split_measured_against_its_floors_and_repeated(
    clips, shared_tiny_repository, tmp_path, capsys
) -> None:
    output = tmp_path / "here-pipeline.json"
    arguments = ["--repository", str(shared_tiny_repository), "--num-frames", "4", "--rounds", "1"]
    assert bench("pipeline", str(clips), *arguments, "--repeat-clips", "2,1", "--output", str(output)) == 0
    data = json.loads(output.read_text(encoding="utf-8"))
    assert [(clip["clip"], clip["faces_ours"]) for clip in data["clips"]] == [("one.mp4", 4), ("two.mp4", 8)]
    for clip in data["clips"]:
        assert list(clip["stages_s"]) == STAGES
        assert clip["stages_s"]["queue"] > clip["stages_s"]["compute"] > 0  # this configuration waits 20 ms
        assert set(clip["median_seconds"]) == {
            *("decode_alone", "detector_alone", "inference_alone", "ours", "ours_fast")
        }
        assert clip["ours_over_inference_alone"] > 1
    assert data["set"]["videos_per_s"] == pytest.approx(2 / data["set"]["seconds"][0], rel=1e-3)
    assert [item["clips"] for item in data["repeated"]] == [1, 2]
    assert all(item["peak_mb"] > 50 and item["cpu_s_per_clip"] > 0 for item in data["repeated"])
    assert data["usual"] == "not measured: no checkpoint was given"
    assert "two.mp4" in capsys.readouterr().out
    (picture,) = write_plots(output, form="svg")
    assert picture.name == "here-pipeline-stages.svg"
    assert all(f"<!-- {stage} -->" in picture.read_text(encoding="utf-8") for stage in STAGES[:-1])
    figures = [row.figure for row in pipeline_rows(data)]
    assert sum("x the time per clip" in figure for figure in figures) == 1


def test_scores_that_are_not_the_files_are_never_timed(clips, tiny_repository, tmp_path) -> None:
    import onnx

    other = tmp_path / "other.onnx"
    write_tiny_onnx(other)
    changed = onnx.load(other)
    weights = next(item for item in changed.graph.initializer if item.name == "weights")
    weights.CopyFrom(onnx.numpy_helper.from_array(-onnx.numpy_helper.to_array(weights), "weights"))
    onnx.save(changed, other)
    with embedded_server(tiny_repository) as server, Analyses(server, 2, lambda _: None) as analyses:
        analyses.analyze(clips / "one.mp4", analyses.uniform)
        crops = analyses.crops(clips / "one.mp4")
        assert crops.shape == (2, *TINY_SPEC.input_size_wh[::-1], 3)
        analyses.server = replace(server, reference=other)
        with pytest.raises(DeepfakeError, match="nothing was measured"):
            analyses.crops(clips / "one.mp4")


def test_sampling_is_checked_and_timed(clips, tmp_path, capsys) -> None:
    output = tmp_path / "here-decode.json"
    assert (
        bench("decode", str(clips / "one.mp4"), "--num-frames", "3", "--repeats", "1", "--output", str(output)) == 0
    )
    (row,) = json.loads(output.read_text(encoding="utf-8"))["clips"]
    assert (row["frames_verified"], row["pictures_decoded"]["plain"]) == (3, 10)
    assert "one.mp4" in capsys.readouterr().out


@pytest.mark.slow
def test_the_usual_pipeline_scores_every_face_of_the_same_frames(clips, tmp_path) -> None:
    from safetensors.torch import save_file

    from deepfake_export.demo.untrained import build_untrained_network

    spec = ModelSpec("net", "timm:test_efficientnet", input_height_px=64, input_width_px=64)
    save_file(build_untrained_network(spec).state_dict(), tmp_path / "net.safetensors")
    seen = []

    def peer(image):
        seen.append(media.read_number(image))
        return np.array([[20, 20, 90, 90], [170, 20, 240, 90]], np.float32), np.array([0.9, 0.8], np.float32)

    run = usual_pipeline(clips / "two.mp4", [1, 4, 8], spec, tmp_path / "net.safetensors", peer)
    scores = run()
    assert seen == [1, 4, 8]
    assert len(scores) == 6
    assert all(0 < score < 1 for score in scores)
    assert run() == scores


@pytest.mark.slow
def test_explaining_is_checked_and_timed(tmp_path, capsys) -> None:
    output = tmp_path / "here-explain.json"
    arguments = [
        "--architecture",
        "timm:test_efficientnet",
        "--num-crops",
        "2",
        "--repeats",
        "1",
        "--methods",
        "grad-cam",
    ]
    assert bench("explain", *arguments, "--output", str(output)) == 0
    (row,) = json.loads(output.read_text(encoding="utf-8"))["methods"]
    assert row["method"] == "grad-cam"
    assert row["max_difference"] <= 1e-5
    assert "grad-cam" in capsys.readouterr().out


@pytest.mark.parametrize("command", ["pipeline", "decode", "detector"])
@pytest.mark.parametrize(
    ("given", "message"),
    [("absent.mp4", "absent.mp4"), ("face.png", "is an image; benchmarks of clips take videos")],
)
def test_what_is_no_clip_is_a_sentence(command, given, message, tmp_path, monkeypatch, capsys) -> None:
    import cv2

    monkeypatch.chdir(tmp_path)
    cv2.imwrite("face.png", media.astronaut())
    assert bench(command, given) == 2
    error = capsys.readouterr().err
    assert message in error
    assert len(error.strip().splitlines()) == 1


@pytest.mark.parametrize(
    ("command", "options", "message"),
    [
        ("pipeline", [], "there is no such model repository"),
        ("pipeline", ["--checkpoint", "absent.pth"], "absent.pth: there is no such file"),
        ("pipeline", ["--peer-path", "peers"], "needs --checkpoint"),
        ("pipeline", ["--repeat-clips", "1,x"], "--repeat-clips is '1,x'"),
        ("pipeline", ["--checkpoint", "one.mp4"], "pip install --no-deps --target DIR facenet-pytorch"),
        ("detector", [], "pip install --no-deps --target DIR facenet-pytorch"),
        ("detector", ["--peer-path", "peers"], "peers: there is no such folder"),
    ],
)
def test_what_is_missing_is_a_sentence(command, options, message, clips, monkeypatch, capsys) -> None:
    monkeypatch.chdir(clips)
    monkeypatch.setitem(__import__("sys").modules, "facenet_pytorch", None)
    assert bench(command, "one.mp4", *options) == 2
    error = capsys.readouterr().err
    assert message in error
    assert len(error.strip().splitlines()) == 1


def test_wrong_methods_and_missing_extras_are_sentences(monkeypatch, capsys) -> None:
    assert bench("explain", "--methods", "guess") == 2
    assert "--methods is 'guess'; allowed: " in capsys.readouterr().err
    monkeypatch.setitem(__import__("sys").modules, "pytorch_grad_cam", None)
    assert bench("explain") == 2
    assert install_command("explain") in capsys.readouterr().err


def test_every_command_teaches(capsys) -> None:
    for command in ("pipeline", "detector", "decode", "explain", "scan"):
        assert bench(command, "--help") == 0
        text = capsys.readouterr().out
        assert f"deepfake bench {command}" in text
        assert "Examples" in text


@pytest.mark.slow
def test_a_verdict_by_the_gateway_is_measured_beside_one_by_the_client(
    clips, shared_tiny_repository, tmp_path, capsys
) -> None:
    output = tmp_path / "here-gateway.json"
    arguments = ["--repository", str(shared_tiny_repository), "--num-frames", "4", "--rounds", "1"]
    assert bench("gateway", str(clips), *arguments, "--output", str(output)) == 0
    data = json.loads(output.read_text(encoding="utf-8"))
    assert data["clips"] == ["one.mp4", "two.mp4"]
    assert (data["model"], data["precision"], data["engine"]) == (TINY_SPEC.name, "fp32", "onnxruntime")
    assert [item["at_once"] for item in data["measured"]] == [1, 2]
    for item in data["measured"]:
        assert set(item["ratios"]) == {"library", "command"}
        assert all(figures["wall_s"] > 0 and figures["cpu_s"] > 0 for figures in item["ways"].values())
        for kind, ratios in item["ratios"].items():
            by_gateway, own = item["ways"][f"{kind} by gateway"], item["ways"][kind]
            assert ratios["cpu"] == pytest.approx(by_gateway["cpu_s"] / own["cpu_s"], rel=0.02)
    assert "command by gateway" in capsys.readouterr().out


def test_a_benchmark_that_is_terminated_leaves_no_process(clips, shared_tiny_repository) -> None:
    arguments = [str(clips), "--repository", str(shared_tiny_repository), "--num-frames", "4"]
    command = [*DEEPFAKE, "bench", "gateway", *arguments]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as process:
        assert process.stderr is not None
        while "comparing the verdicts" not in process.stderr.readline():
            assert process.poll() is None
        started = psutil.Process(process.pid).children(recursive=True)
        # Below them the gateway and its worker, and Triton and its supervisor.
        assert {"deepfake_gateway.worker", "gateway"} <= {word for item in started for word in item.cmdline()}
        assert "tritonserver" in [item.name() for item in started]
        process.send_signal(signal.SIGTERM)
        assert process.wait(60) == 128 + signal.SIGTERM
    assert_all_end(started)


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_a_scan_is_measured_beside_the_library(clips, shared_tiny_repository, tmp_path, capsys, monkeypatch) -> None:
    monkeypatch.setattr("deepfake_bench.pipeline.scan.ASKED_ALONE_S", 1.0)
    output = tmp_path / "here-scan.json"
    arguments = ["--repository", str(shared_tiny_repository), "--num-frames", "4", "--rounds", "1", "--copies", "4"]
    assert bench("scan", str(clips), *arguments, "--output", str(output)) == 0
    data = json.loads(output.read_text(encoding="utf-8"))
    assert data["clips"] == ["one.mp4", "two.mp4"]
    assert data["clips_timed"] == 8 - 1 - 2 * min(2 * len(os.sched_getaffinity(0)), 3)
    assert set(data["ways"]) == {"analyze_many", "scan local", "scan ray"}
    for figures in data["ways"].values():
        assert figures["caller_p99_ms"] >= figures["caller_p50_ms"] > 0
        assert figures["caller_p99_ratio"] == pytest.approx(
            figures["caller_p99_ms"] / data["caller_alone"]["p99_ms"], abs=0.01
        )
        assert figures["caller_answers"] > 0
    assert (data["precision"], data["engine"]) == ("fp32", "onnxruntime")
    assert data["ways"]["analyze_many"]["rate_ratio"] == 1
    assert data["caller_alone"]["p50_ms"] > 0
    assert "scan ray" in capsys.readouterr().out
