"""The comparison with peers: only equal answers are timed, failures are reported, and nothing is left running."""

from __future__ import annotations

import asyncio
import json
import os
import signal
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import psutil
import pytest
from tiny_model import TINY_SPEC, write_tiny_onnx

from deepfake_bench.compare import environments as peer_env
from deepfake_bench.compare.comparison import SERVED, served_over_in_process
from deepfake_bench.compare.contenders import start_peer
from deepfake_bench.compare.environments import PeerUnavailableError, peer_python
from deepfake_bench.compare.peer_list import Peer, form_http, in_process_name, peers, plain_http
from deepfake_bench.server.reference import OnnxReference
from deepfake_client.cli import main as cli
from deepfake_preprocess.contract.forms import ServedForm

IN_PROCESS = in_process_name("onnxruntime", "fp32")
CROPS = np.random.default_rng(5).integers(0, 256, (3, 24, 32, 3), dtype=np.uint8)
SERVER = """
import http.server, json, sys
class Handler(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    def do_POST(self):
        body = self.rfile.read(int(self.headers["Content-Length"]))
        answer = json.dumps([{answer}]).encode()
        self.send_response(200)
        self.send_header("Content-Length", str(len(answer)))
        self.end_headers()
        self.wfile.write(answer)
    def log_message(self, *args):
        pass
http.server.ThreadingHTTPServer(("127.0.0.1", int(sys.argv[1])), Handler).serve_forever()
"""


def peer(code: str) -> Peer:
    return Peer("stand-in", "as it is", (), ("-c", code, "{port}"), http=plain_http)


def start(code: str, tmp_path):
    expected = np.full(len(CROPS), 0.25, np.float32)
    return start_peer(peer(code), crops=CROPS, expected=expected, scratch=tmp_path, announce=lambda _: None)


@pytest.fixture
def children():
    """Return what a test started and left running, but for the helper that Python keeps for shared memory."""
    before = set(psutil.Process().children(recursive=True))

    def started():
        found = set(psutil.Process().children(recursive=True)) - before
        return {process for process in found if "resource_tracker" not in " ".join(process.cmdline())}

    return started


def test_a_server_with_equal_answers_is_measured_paused_and_ended(tmp_path, children) -> None:
    code = SERVER.replace("{answer}", "0.25")
    contender = start(code, tmp_path)
    try:
        assert contender.difference == 0.0
        sample = contender.measure(2, 0.3)
        assert sample.crops_per_s == pytest.approx(len(sample.latencies_s) / 0.3)
        assert not sample.errors
        (process,) = [item for item in children() if code in item.cmdline()]
        # Returns when the server is stopped, or never, and then the test's time runs out.
        assert os.waitid(os.P_PID, process.pid, os.WSTOPPED | os.WNOWAIT).si_status == signal.SIGSTOP
    finally:
        contender.close()
    assert not children()


@pytest.mark.parametrize(
    ("code", "message"),
    [
        (SERVER.replace("{answer}", "0.75"), "other probabilities, by up to 0.5"),
        (SERVER.replace("{answer}", "float('nan')"), "other probabilities"),
        ("raise SystemExit('no such model')", "ended as it started: no such model"),
        (
            SERVER.replace("send_response(200)", "send_response(500)")
            .replace("{answer}", "0")
            .replace("import http.server,", "print('no such file', flush=True); import http.server,"),
            r"fails every request \(HTTP 500\): no such file",
        ),
    ],
)
def test_a_peer_that_fails_is_ended_with_its_reason(code, message, tmp_path, children) -> None:
    with pytest.raises(PeerUnavailableError, match=message):
        start(code, tmp_path)
    assert not children()


def served(file: Path, *forms: ServedForm):
    """Return what peers ask of a server."""
    first = forms[0]
    model = SimpleNamespace(precision=first.precision, spec=TINY_SPEC, max_batch_size=4)
    return SimpleNamespace(engine=first.engine, model=model, reference=file, forms=forms)


FP32 = ServedForm("onnxruntime", "fp32", "model.onnx")


def test_servers_run_the_engine_and_precision_that_is_served_and_engines_what_the_version_has(monkeypatch) -> None:
    monkeypatch.setattr("deepfake_bench.compare.peer_list.cpu_features", lambda: frozenset({"avx512_bf16"}))
    forms = (ServedForm("openvino", "int8", "model.onnx"), ServedForm("onnxruntime", "fp32", "fp32.onnx"))
    listed = peers(served(Path("m/1/model.onnx"), *forms), cores=2, checkpoint=None)
    by_name = {item.name: item for item in listed}
    assert list(by_name) == [
        "ONNX Runtime in-process",
        "OpenVINO INT8 in-process",
        "OpenVINO in-process",
        "OpenVINO BF16 in-process",
        "LitServe",
        "BentoML",
        "Ray Serve",
    ]
    for name in ("LitServe", "BentoML", "Ray Serve"):
        assert "openvino==" in by_name[name].requirements[1]
        options = by_name[name].options
        assert (options["engine"], options["precision"]) == ("openvino", "int8")
        assert Path(options["model"]) == Path("m/1/model.onnx").absolute()
    bf16 = by_name["OpenVINO BF16 in-process"]
    assert (bf16.options["precision"], Path(bf16.options["model"]).name) == ("bf16", "fp32.onnx")
    assert bf16.tolerance > by_name["LitServe"].tolerance > by_name["OpenVINO in-process"].tolerance / 100


def test_peers_run_elsewhere_and_find_files_that_were_named_relative_to_here() -> None:
    server = served(Path("models/tiny/1/model.onnx"), FP32)
    listed = peers(server, cores=2, checkpoint=Path("tiny.safetensors"))
    files = [item.options.get("model") or item.options["checkpoint"] for item in listed]
    assert files
    assert all(Path(file).is_absolute() for file in files)


def test_a_crop_in_a_form_arrives_as_a_file() -> None:
    request = asyncio.run(form_http(CROPS[:1]))
    head, _, rest = request.body.partition(b"\r\n\r\n")
    assert b'name="crops"; filename="crop"' in head
    assert rest.startswith(CROPS[:1].tobytes())
    boundary = request.headers["Content-Type"].partition("boundary=")[2]
    assert request.body.endswith(f"--{boundary}--\r\n".encode())


def test_an_engine_in_process_gives_the_reference_answers(tmp_path, children) -> None:
    model = tmp_path / "model.onnx"
    write_tiny_onnx(model)
    listed = peers(served(model, FP32), cores=2, checkpoint=None)
    engine = next(item for item in listed if not item.requirements)
    contender = start_peer(
        engine, crops=CROPS, expected=OnnxReference(model)(CROPS), scratch=tmp_path, announce=lambda _: None
    )
    try:
        alone, many = contender.measure(1, 0.1), contender.measure(32, 0.1)
        assert alone.latencies_s is not None
        assert many.latencies_s is None
        assert many.crops_per_s > 0
    finally:
        contender.close()
    assert not children()


@pytest.mark.slow
def test_packages_that_cannot_be_installed_are_a_reason_and_leave_no_environment(tmp_path, monkeypatch) -> None:
    monkeypatch.setenv("DEEPFAKE_CACHE_DIR", str(tmp_path))
    wanted = [f"{tmp_path}/no-such-package.whl"]
    with pytest.raises(PeerUnavailableError, match="cannot be installed"):
        peer_python("absent", wanted, announce=lambda _: None)
    assert not list(tmp_path.glob(f"*/*/{peer_env.MADE}"))


def test_the_command_reports_ratios_and_what_it_could_not_measure(
    shared_tiny_repository, tmp_path, monkeypatch, capsys
) -> None:
    output = tmp_path / "here-compare.json"

    def refuse(name, requirements, *, announce):
        raise PeerUnavailableError(f"{name} cannot be installed: no network")

    monkeypatch.setattr("deepfake_bench.compare.contenders.peer_python", refuse)
    monkeypatch.setattr("deepfake_bench.compare.comparison.TRIAL_S", 0.3)
    arguments = ["--peer", "onnx,litserve", "--rounds", "1", "--seconds", "0.5", "--output", str(output)]
    with pytest.raises(SystemExit) as left:
        cli.main(["bench", "compare", "--repository", str(shared_tiny_repository), *arguments])
    assert left.value.code == 0
    data = json.loads(output.read_text(encoding="utf-8"))
    assert [item["name"] for item in data["contenders"]] == [*SERVED, IN_PROCESS]
    assert data["ours"] in SERVED
    assert set(data["ours_over"]) == {item["name"] for item in data["contenders"]} - {data["ours"]}
    tried = {item["name"]: item["crops_per_s"] for item in data["settings_tried"] if item["name"] in SERVED}
    assert max(tried, key=tried.__getitem__) == data["ours"]
    costs = served_over_in_process(data)
    assert list(costs) == list(SERVED)
    assert costs[data["ours"]] == pytest.approx(data["ours_over"][IN_PROCESS]["throughput"], rel=1e-2)
    for item in data["contenders"]:
        many = item["concurrency"]["32"]
        assert many["cpu_ms_per_crop"] > 0
        assert (many["load_cpu_ms_per_crop"] is None) == (many["mean_batch"] is None) == (item["name"] == IN_PROCESS)
        if item["name"] in SERVED:
            assert 1 < many["mean_batch"] <= 32
    assert {item["reason"] for item in data["not_measured"]} == {"litserve cannot be installed: no network"}
    assert "not measured: LitServe" in capsys.readouterr().err
