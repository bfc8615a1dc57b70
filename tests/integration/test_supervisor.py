"""An embedded server that is killed, stopped or brought down by a request serves again, and says what is so."""

from __future__ import annotations

import asyncio
import json
import socket
import time
import urllib.request
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from urllib.parse import urlsplit

import numpy as np
import psutil
import pytest
from media import make_clip
from server_processes import END_TIMEOUT_S, FAULTS, assert_all_end, backends_of, log_of, shm_prefix, tritonserver_of

from deepfake_client import (
    NO_RETRY,
    AnalyzeOptions,
    Connection,
    DeepfakeClient,
    Progress,
    Retry,
    Sampling,
    ServerUnavailableError,
    connect,
)
from deepfake_client.cli import main as cli
from deepfake_serve import EmbeddedTriton

PROTOCOLS = ("grpc", "http", "grpc-shm")
FACES = np.random.default_rng(3).integers(0, 256, (8, 24, 32, 3), dtype=np.uint8)
PATIENT = Retry(total_s=120)
WAIT_S = 60


def connection(triton: EmbeddedTriton, protocol: str, retry: Retry) -> Connection:
    url = triton.http_url if protocol == "http" else triton.grpc_url
    return Connection(url=url, protocol=protocol, retry=retry)


@asynccontextmanager
async def connected(triton: EmbeddedTriton, protocol: str, retry: Retry = PATIENT):
    transport = connect(connection(triton, protocol, retry))
    try:
        yield transport
    finally:
        await transport.close()


def wait_for_restarts(triton: EmbeddedTriton, count: int = 1) -> None:
    deadline = time.monotonic() + WAIT_S
    while sum("serves again" in line for line in log_of(triton)) < count:
        assert time.monotonic() < deadline, log_of(triton)
        assert triton.wait(0.05) is None, log_of(triton)


def restarts_shown(triton: EmbeddedTriton) -> float:
    with urllib.request.urlopen(triton.metrics_url) as answer:
        lines = answer.read().decode().splitlines()
    (shown,) = (line.split()[-1] for line in lines if line.startswith("deepfake_server_restarts"))
    return float(shown)


@pytest.mark.parametrize("fault", FAULTS)
def test_no_request_is_lost_whatever_happens_to_the_server(tiny_repository, fault):
    """With all protocols at once; what was started again knows nothing of the shared memory of before."""

    async def keep_asking(protocol: str) -> None:
        async with connected(triton, protocol) as transport:
            model = await transport.describe("tiny")
            expected = await transport.infer(model, FACES)
            await everybody.wait()
            while not restarted.is_set():
                for answer in await asyncio.gather(*(transport.infer(model, FACES) for _ in range(4))):
                    np.testing.assert_allclose(answer, expected, atol=1e-6)
            await transport.infer(model, FACES)

    async def harm() -> None:
        await everybody.wait()
        FAULTS[fault](triton.pid)
        await asyncio.to_thread(wait_for_restarts, triton)
        restarted.set()

    async def scenario() -> None:
        await asyncio.gather(harm(), *(keep_asking(protocol) for protocol in PROTOCOLS))

    everybody, restarted = asyncio.Barrier(len(PROTOCOLS) + 1), asyncio.Event()
    with EmbeddedTriton(tiny_repository, instances=2) as triton:
        before = [tritonserver_of(triton.pid), *backends_of(triton.pid, 2)]
        prefix = shm_prefix(before[0])
        asyncio.run(scenario())
        assert_all_end(before)
        assert {item.pid for item in before}.isdisjoint(item.pid for item in backends_of(triton.pid, 2))
        assert log_of(triton)[0].endswith("; starting Triton again (restart 1)")
    assert list(Path("/dev/shm").glob(f"{prefix}*")) == []


def test_an_analysis_survives_a_restart_with_every_frame_scored(tiny_repository, tmp_path):
    clip = make_clip(tmp_path / "clip.mp4", size_wh=(320, 180), duration_s=2, faces=1)
    options = AnalyzeOptions(sampling=Sampling(num_frames=40))

    def kill(progress: Progress) -> None:
        if progress.frames_done == 5:
            FAULTS["backend killed"](triton.pid)

    with EmbeddedTriton(tiny_repository) as triton, DeepfakeClient(triton.grpc_url) as client:
        expected = client.analyze(clip, options=options)
        verdict = client.analyze(clip, options=options, on_progress=kill)
        wait_for_restarts(triton)
    assert verdict.reason is expected.reason is None, verdict.detail
    assert verdict.label is expected.label
    assert [len(frame.faces) for frame in verdict.frames] == [len(frame.faces) for frame in expected.frames]
    for frame, other in zip(verdict.frames, expected.frames, strict=True):
        for face, same in zip(frame.faces, other.faces, strict=True):
            assert face.fake_probability == pytest.approx(same.fake_probability, abs=1e-6)


def test_health_is_not_ready_while_requests_fail(tiny_repository, capsys):
    """The supervisor is kept from mending anything: so Triton alone looks, ready with a dead backend."""

    def health(protocol: str, *options: str) -> tuple[int, str]:
        url = connection(triton, protocol, NO_RETRY).url
        with pytest.raises(SystemExit) as ended:
            cli.main(["health", "--url", url, "--protocol", protocol, *options])
        return ended.value.code, capsys.readouterr().out

    with EmbeddedTriton(tiny_repository, instances=1) as triton:
        supervisor = psutil.Process(triton.pid)
        supervisor.suspend()
        try:
            FAULTS["backend killed"](triton.pid)
            with urllib.request.urlopen(f"{triton.http_url}/v2/health/ready", timeout=5) as answer:
                assert answer.status == 200, "or this test shows nothing"
            for protocol in PROTOCOLS:
                code, said = health(protocol)
                assert code == 4
                assert "alive, not ready: the server at" in said
            code, said = health("grpc", "--json")
            assert code == 4
            assert (json.loads(said)["alive"], json.loads(said)["ready"]) == (True, False)
            assert "Stub process" in json.loads(said)["reason"]
            assert restarts_shown(triton) == 0
        finally:
            supervisor.resume()
        wait_for_restarts(triton)
        assert health("grpc")[0] == 0
        assert restarts_shown(triton) == 1


# --- requests that end Triton 2.51; the server listens on the loopback interface only


def send_nothing_but(triton: EmbeddedTriton, head: str, body: list[bytes]) -> None:
    place = urlsplit(triton.http_url)
    with socket.create_connection((place.hostname, place.port), timeout=END_TIMEOUT_S) as connection:
        lines = f"POST /v2/models/tiny/infer HTTP/1.1\r\nHost: {place.netloc}\r\n{head}\r\n\r\n"
        with suppress(OSError):  # it is gone before all has arrived
            connection.sendall(lines.encode())
            for part in body:
                connection.sendall(part)
            connection.recv(1024)


def json_body(data: str) -> tuple[str, list[bytes]]:
    return f"Content-Type: application/json\r\nContent-Length: {len(data)}", [data.encode()]


DEADLY = {
    "a shape of 2^40": json_body(
        json.dumps({"inputs": [{"name": "faces", "shape": [2**40], "datatype": "UINT8", "data": [1]}]})
    ),
    "200,000 brackets": json_body('{"inputs":' + "[" * 200_000),
    "600,000 chunks": ("Transfer-Encoding: chunked", [b"1\r\nx\r\n" * 600_000, b"0\r\n\r\n"]),
}


def test_a_request_that_kills_triton_costs_a_restart(tiny_repository):
    with EmbeddedTriton(tiny_repository, instances=1) as triton, DeepfakeClient(triton.grpc_url) as client:
        expected = client.score(FACES)
        for number, request in enumerate(DEADLY.values()):
            before = tritonserver_of(triton.pid)
            send_nothing_but(triton, *request)
            assert_all_end([before])
            np.testing.assert_allclose(client.score(FACES), expected, atol=1e-6)
            assert sum("Triton ended by itself" in line for line in log_of(triton)) == number + 1


# --- ends


def test_a_stop_while_it_is_started_again_leaves_nothing(tiny_repository):
    triton = EmbeddedTriton(tiny_repository, instances=1)
    triton.start()
    run_dir, supervisor = triton.log_path.parent, psutil.Process(triton.pid)
    prefix = shm_prefix(tritonserver_of(triton.pid))
    FAULTS["server killed"](triton.pid)
    second = tritonserver_of(triton.pid)
    triton.stop()
    assert_all_end([supervisor, second])
    assert list(Path("/dev/shm").glob(f"{prefix}*")) == []
    assert not run_dir.exists()


@pytest.mark.slow
def test_a_server_that_cannot_start_again_is_given_up_with_its_reason(tiny_repository):
    """Its weights are gone by then."""
    with EmbeddedTriton(tiny_repository, instances=1) as triton:
        (tiny_repository / "tiny" / "1" / "model.onnx").unlink()
        FAULTS["server killed"](triton.pid)
        assert triton.wait(WAIT_S) not in (None, 0)
        assert "and is given up" in log_of(triton)[-1]
        with pytest.raises(ServerUnavailableError):
            asyncio.run(connect(connection(triton, "grpc", NO_RETRY)).list_models())
        assert "model.onnx" in triton.failure("Triton is gone")
