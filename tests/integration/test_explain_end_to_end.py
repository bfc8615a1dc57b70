"""Checkpoint, export, a real Triton, a clip: what is explained is what is served, here and by the service."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
from contextlib import contextmanager
from pathlib import Path

import cv2
import httpx
import numpy as np
import pytest
from gateway_process import Running
from media import make_clip
from safetensors.torch import save_file
from tiny_model import write_tiny_repository

from deepfake_client.cli import main as cli
from deepfake_client.explain.service import ServiceExplainer
from deepfake_client.explain.types import ExplainOptions
from deepfake_explain import explainer
from deepfake_export import ExportRequest, PrecisionOptions, export_checkpoint
from deepfake_export.demo.untrained import build_untrained_network
from deepfake_export.proof import speed
from deepfake_export.proof.crops import generate_crops
from deepfake_export.proof.tolerances import TOLERANCES
from deepfake_preprocess.contract.spec import ModelSpec
from deepfake_preprocess.errors import ExplainDisagreementError
from deepfake_serve import EmbeddedTriton

pytestmark = pytest.mark.usefixtures("exported_once")

SPEC = ModelSpec("small", "timm:test_efficientnet", input_height_px=64, input_width_px=64)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("explained")
    network = build_untrained_network(SPEC)
    save_file(network.state_dict(), folder / "small.safetensors")
    (folder / "small.yaml").write_text(SPEC.to_yaml())
    export_checkpoint(ExportRequest(folder / "small.safetensors", folder / "repository", spec=SPEC, max_batch_size=4))
    network.classifier.bias.data += 1
    save_file(network.state_dict(), folder / "other.safetensors")
    (folder / "other.yaml").write_text(SPEC.to_yaml())
    make_clip(folder / "clip.mp4", duration_s=1.0)
    return folder


@pytest.fixture(scope="module")
def triton(folder):
    with EmbeddedTriton(folder / "repository") as triton:
        yield triton


def explain(folder, triton, *arguments):
    """Run `deepfake explain` and return its exit code."""
    command = ["explain", folder / "clip.mp4", "--url", triton.grpc_url, "--num-frames", "4", *arguments]
    with pytest.raises(SystemExit) as stopped:
        cli.main([str(item) for item in command])
    return stopped.value.code or 0


def test_a_clip_is_explained_with_the_served_checkpoint_and_with_no_other(folder, triton, tmp_path, capsys):
    code = explain(folder, triton, "--checkpoint", folder / "small.safetensors", "-o", tmp_path, "--top", 2)
    assert code == 0
    data = json.loads((tmp_path / "explanation.json").read_text())
    assert len(data["faces"]) == 2
    for face in data["faces"]:
        assert face["layer"] == "bn2"
        assert face["served_probability"] == pytest.approx(face["fake_probability"], abs=1e-4)
        assert face["checkpoint_sha256"] == data["model"]["checkpoint_sha256"]
    assert cv2.imread(str(tmp_path / data["contact_sheet"])).shape[1] > 900
    capsys.readouterr()
    code = explain(folder, triton, "--checkpoint", folder / "other.safetensors", "-o", tmp_path)
    assert code == ExplainDisagreementError.exit_code
    error = capsys.readouterr().err
    assert data["model"]["checkpoint_sha256"] in error
    assert "load the served one" in error


def test_a_report_holds_heatmaps_or_says_why_not(folder, triton, tmp_path):
    texts = {}
    for name, who in (("small", "--checkpoint"), ("other", "--checkpoint"), ("down", "--service")):
        given = "http://127.0.0.1:9" if name == "down" else folder / f"{name}.safetensors"
        command = ["analyze", folder / "clip.mp4", "--url", triton.grpc_url, "--num-frames", "4", "-q"]
        with pytest.raises(SystemExit) as stopped:
            cli.main([str(item) for item in [*command, "--report", tmp_path / name, "--explain", who, given]])
        assert not stopped.value.code, "the verdict is there whatever becomes of the heatmaps"
        (page,) = (tmp_path / name).glob("*/report.html")
        texts[name] = page.read_text(encoding="utf-8")
    assert texts["small"].count("data:image/png;base64,") == 4
    assert "grad-cam on bn2" in texts["small"]
    assert "There are no heatmaps: the served model was made from checkpoint" in texts["other"]
    assert "There are no heatmaps: no explain service answers at http://127.0.0.1:9" in texts["down"]


@pytest.mark.parametrize("command", ["explain", "analyze"])
def test_what_a_networks_code_prints_is_not_among_the_results(folder, triton, tmp_path, capsys, monkeypatch, command):
    network_of = explainer.load_network

    def loud(*arguments):
        loaded = network_of(*arguments)
        loaded.network.register_forward_hook(lambda *_: print("a network speaks"))
        return loaded

    monkeypatch.setattr(explainer, "load_network", loud)
    options = {"explain": ["--json", "-o"], "analyze": ["--jsonl", "--explain", "--report"]}[command]
    call = [command, folder / "clip.mp4", "--url", triton.grpc_url, "--num-frames", 4, *options, tmp_path]
    with pytest.raises(SystemExit) as stopped:
        cli.main([str(item) for item in [*call, "--checkpoint", folder / "small.safetensors"]])
    assert not stopped.value.code
    shown = capsys.readouterr()
    assert json.loads(shown.out)
    assert "a network speaks" in shown.err


def test_heatmaps_are_added_to_the_pages_of_an_earlier_run(folder, triton, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    # Of no use to a run without --explain, nor to one with a checkpoint.
    monkeypatch.setenv("DEEPFAKE_EXPLAIN_URL", "http://127.0.0.1:9")
    for name in ("one.mp4", "two.mp4"):
        shutil.copy(folder / "clip.mp4", name)
    command = ["analyze", "one.mp4", "two.mp4", "--url", triton.grpc_url, "--num-frames", 4, "-q", "--report", "out"]

    def run(*more):
        with pytest.raises(SystemExit) as stopped:
            cli.main([str(item) for item in [*command, *more]])
        assert not stopped.value.code
        pages = {path.parent.name[:3]: path for path in Path("out").glob("*/report.html")}
        return {
            name: (page.stat().st_mtime_ns, page.read_text().count("data:image/png;base64,"))
            for name, page in pages.items()
        }

    assert {name: heatmaps for name, (_, heatmaps) in run().items()} == {"one": 0, "two": 0}
    results = Path("out/results.jsonl").read_bytes()
    explaining = ("--resume", "--explain", "--checkpoint", folder / "small.safetensors")
    made = run(*explaining)
    assert Path("out/results.jsonl").read_bytes() == results, "nothing was analyzed again"
    assert {name: heatmaps for name, (_, heatmaps) in made.items()} == {"one": 4, "two": 4}
    assert run(*explaining) == made, "what has heatmaps is left as it is"


@contextmanager
def service(checkpoint, triton):
    """Yield the address of `deepfake explain-serve`, which compares every score with that of `triton`."""
    command = [sys.executable, "-m", "deepfake_client.cli.main", "explain-serve", checkpoint]
    options = ["--url", triton.grpc_url, "--port", "0"]
    with subprocess.Popen([*map(str, command), *options], stderr=subprocess.PIPE, text=True) as process:
        try:
            assert process.stderr is not None
            lines = []
            while not (found := re.search(r"on (http://127\.0\.0\.1:\d+);", "".join(lines))):
                lines.append(process.stderr.readline())
                assert lines[-1], f"the service ended: {lines}"
            yield found[1]
        finally:
            process.terminate()
            assert process.wait(30) in (0, -15)


def test_the_service_explains_what_triton_serves(folder, triton, tmp_path, capsys):
    with service(folder / "small.safetensors", triton) as url:
        code = explain(folder, triton, "--service", url, "-o", tmp_path, "--method", "hires-cam", "--top", 1)
    assert code == 0
    (face,) = json.loads((tmp_path / "explanation.json").read_text())["faces"]
    assert face["method"] == "hires-cam"
    assert face["served_probability"] == pytest.approx(face["fake_probability"], abs=1e-4)


def test_the_service_allows_what_the_served_precision_allows(folder, tmp_path, monkeypatch):
    monkeypatch.setattr(speed, "MIN_ROUND_S", 0.001)  # nobody looks at how fast it is
    repository = tmp_path / "repository"
    checkpoint = folder / "small.safetensors"
    request = ExportRequest(
        checkpoint, repository, max_batch_size=4, precisions=PrecisionOptions(("fp16",), promote="fp16")
    )
    assert export_checkpoint(request).manifest.precision == "fp16"
    crops = generate_crops(12, SPEC.input_size_wh, seed=3)
    with EmbeddedTriton(repository) as triton, service(checkpoint, triton) as url:
        found = ServiceExplainer(url).explain(crops, ExplainOptions())
    tolerance = TOLERANCES["fp16"].probability_abs
    assert {item.tolerance for item in found} == {tolerance}
    differences = [abs(item.fake_probability - item.served_probability) for item in found]
    assert TOLERANCES["fp32"].probability_abs < max(differences) <= tolerance


def test_the_gateway_shows_heatmaps_of_the_checkpoint_that_it_serves_beside_another_model(folder, tmp_path):
    repository = write_tiny_repository(shutil.copytree(folder / "repository", tmp_path / "repository"))
    checkpoint = str(folder / "small.safetensors")
    gateway = Running(repository, tmp_path / "data", checkpoint=checkpoint, model=SPEC.name)
    try:
        analysis = gateway.send(folder / "clip.mp4", wait_s=90, num_frames=4)
        gateway.until(lambda: httpx.get(f"{gateway.address}/v1/explainer").json()["available"])
        answer = httpx.post(
            f"{gateway.address}{analysis['links']['explanations']}",
            json={"method": "grad-cam++"}, headers={"Prefer": "wait=200"}, timeout=240,
        )  # fmt: skip
        explanation = answer.json()
        assert (answer.status_code, explanation["status"]) == (200, "done"), explanation
        scores = {
            (frame["index"], face["track"]): face["fake_probability"]
            for frame in analysis["verdict"]["frames"]
            for face in frame["faces"]
        }
        assert len(explanation["faces"]) == 3
        for face in explanation["faces"]:
            assert face["checkpoint_sha256"] == analysis["verdict"]["model"]["checkpoint_sha256"]
            assert face["difference"] <= face["tolerance"]
            assert face["served_probability"] == pytest.approx(scores[face["frame_index"], face["track"]], abs=1e-5)
            png = httpx.get(gateway.address + face["heatmap"]).content
            assert cv2.imdecode(np.frombuffer(png, np.uint8), cv2.IMREAD_COLOR).shape == (64, 64, 3)
    finally:
        gateway.stop()
