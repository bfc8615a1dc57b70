"""The flags of docker-compose.yml on a real Triton (the embedded one, on the CPU)."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import time
import urllib.request

import numpy as np
import pytest
import tritonclient.grpc as triton_grpc
from compose import ROOT, TOKEN, read_compose
from server_processes import END_TIMEOUT_S
from tiny_model import TINY_SPEC, write_tiny_repository
from tritonclient.utils import InferenceServerException

from deepfake_preprocess.cli.options import DEFAULT_REPOSITORY
from deepfake_serve import EmbeddedTriton, Ports
from deepfake_serve._launch import environment_of, write_backends
from deepfake_serve._plan import Plan
from deepfake_serve._runtime import ensure_runtime

OWN = ("model-", "strict-readiness", "disable-auto-complete-config", "exit-timeout-secs", "http-port", "grpc-port")
"""What an embedded Triton sets itself."""


@pytest.fixture(scope="module")
def triton(shared_tiny_repository):
    flags = [item.removeprefix("--") for item in read_compose()["services"]["triton"]["command"][1:]]
    flags = [item for item in flags if not item.startswith((*OWN, "metrics-port"))]
    with EmbeddedTriton(shared_tiny_repository, flags=flags) as running:
        yield running


@pytest.fixture(scope="module")
def grpc_client(triton):
    with triton_grpc.InferenceServerClient(triton.grpc_url) as client:
        yield client


def test_clients_get_what_they_need_and_admin_protocols_want_the_token(grpc_client):
    assert grpc_client.is_server_ready()
    assert [model.name for model in grpc_client.get_model_repository_index().models] == [TINY_SPEC.name]
    assert grpc_client.get_model_config(TINY_SPEC.name).config.name == TINY_SPEC.name
    for restricted in (
        grpc_client.get_system_shared_memory_status,
        grpc_client.get_inference_statistics,
        grpc_client.get_trace_settings,
        grpc_client.get_log_settings,
    ):
        with pytest.raises(InferenceServerException, match="restricted"):
            restricted()
        restricted(headers={"triton-grpc-protocol-admin-token": TOKEN})
    with pytest.raises(InferenceServerException, match="load / unload is not allowed"):
        grpc_client.load_model(TINY_SPEC.name)


def test_the_dashboard_finds_its_metrics(triton, grpc_client):
    shape = [1, TINY_SPEC.input_height_px, TINY_SPEC.input_width_px, 3]
    faces = triton_grpc.InferInput("faces", shape, "UINT8")
    faces.set_data_from_numpy(np.zeros(shape, np.uint8))
    grpc_client.infer(TINY_SPEC.name, [faces])
    with urllib.request.urlopen(triton.metrics_url, timeout=5) as answer:
        lines = answer.read().decode().splitlines()
    offered = {re.split(r"[{ ]", line)[0] for line in lines if line and not line.startswith("#")}
    dashboard = json.loads((ROOT / "docker/grafana/dashboards/deepfake-serving.json").read_text())
    text = json.dumps([target["expr"] for panel in dashboard["panels"] for target in panel["targets"]])
    # The GPU's cannot be here.
    wanted = {name for name in re.findall(r"nv_\w+", text) if not name.startswith("nv_gpu_")}
    assert wanted <= offered
    assert any("nv_inference_request_summary_us{" in line and 'quantile="0.99"' in line for line in lines)
    assert any("nv_inference_request_failure{" in line and 'reason="REJECTED"' in line for line in lines)


# --- the folder that is mounted by default, under exactly the flags of the file


class Composed:
    """A Triton as `docker compose up` starts it in a checkout, on the CPU: same flags, embedded configurations."""

    def __init__(self, checkout, scratch) -> None:
        service = read_compose()["services"]["triton"]
        (folder,) = [volume["source"] for volume in service["volumes"] if volume["target"] == "/models"]
        runtime = ensure_runtime()
        self._prefix = f"deepfake-compose-{os.getpid()}-"
        plan = Plan([], os.getpid(), 0, self._prefix, str(scratch), 60.0, notify=False)
        plan.pulses.mkdir(parents=True)
        write_backends(runtime, scratch / "backends")
        with Ports().reserved() as reserved:
            ports = {f"--{name}-port={item.getsockname()[1]}" for name, item in reserved.items()}
            self.grpc_url = f"127.0.0.1:{reserved['grpc'].getsockname()[1]}"
        flags = [flag for flag in service["command"][1:] if not re.match(r"--(http|grpc|metrics)-port=", flag)]
        flags = [flag.replace("/models", str((checkout / folder).resolve())) for flag in flags]
        own = ["--model-config-name=embedded", f"--backend-directory={scratch / 'backends'}"]
        own += [f"--backend-config=python,shm-region-prefix-name={self._prefix}"]
        own += [f"--{name}-address=127.0.0.1" for name in ("http", "grpc", "metrics")]
        self.process = subprocess.Popen(
            [runtime.tritonserver, *flags, *own, *ports],
            env=environment_of(runtime, plan),
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        )

    def close(self) -> None:
        self.process.send_signal(signal.SIGTERM)
        try:
            self.process.wait(END_TIMEOUT_S)
        finally:
            if self.process.poll() is None:
                os.killpg(self.process.pid, signal.SIGKILL)
                self.process.wait()


def test_the_folder_that_commands_write_by_default_is_served_under_the_files_flags(tmp_path):
    write_tiny_repository(tmp_path / DEFAULT_REPOSITORY)
    composed = Composed(tmp_path, tmp_path / "scratch")
    try:
        with triton_grpc.InferenceServerClient(composed.grpc_url) as client:
            deadline = time.monotonic() + 60
            while True:
                try:
                    ready = client.is_server_ready()
                except InferenceServerException:
                    ready = False
                if ready:
                    break
                assert composed.process.poll() is None, "Triton has ended"
                assert time.monotonic() < deadline
            shape = [32, TINY_SPEC.input_height_px, TINY_SPEC.input_width_px, 3]
            faces = triton_grpc.InferInput("faces", shape, "UINT8")
            faces.set_data_from_numpy(np.zeros(shape, np.uint8))
            assert client.infer(TINY_SPEC.name, [faces]).as_numpy("fake_probability").shape == (32, 1)
    finally:
        composed.close()


def test_the_committed_example_is_nothing_to_serve(tmp_path):
    """Which is why no default names it."""
    shutil.copytree(ROOT / "model_repository", tmp_path / DEFAULT_REPOSITORY)
    composed = Composed(tmp_path, tmp_path / "scratch")
    try:
        assert composed.process.wait(60) != 0
    finally:
        composed.close()
