"""The flags of docker-compose.yml on a real Triton (the embedded one, on the CPU)."""

from __future__ import annotations

import json
import re
import urllib.request

import numpy as np
import pytest
import tritonclient.grpc as triton_grpc
from compose import ROOT, TOKEN, read_compose
from tiny_model import TINY_SPEC
from tritonclient.utils import InferenceServerException

from deepfake_serve import EmbeddedTriton

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
