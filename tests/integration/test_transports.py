"""Every protocol against a real Triton: same numbers, cancellation, deadlines, restarts, and nothing left behind."""

from __future__ import annotations

import asyncio
import contextvars
import gc
import json
import os
import signal
import subprocess
import sys
import threading
import urllib.request
from contextlib import asynccontextmanager, suppress
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from server_processes import tritonserver_of
from tiny_model import TINY_SPEC, write_tiny_repository

from deepfake_client import (
    NO_RETRY,
    Connection,
    ModelContractError,
    ModelNotFoundError,
    Retry,
    ServerAccessError,
    ServerBusyError,
    ServerTimeoutError,
    ServerUnavailableError,
    SharedMemoryError,
    Transport,
    connect,
)
from deepfake_client.cli import main as cli
from deepfake_client.transport import grpc as transport_grpc
from deepfake_client.transport import http as transport_http
from deepfake_client.transport import shm as transport_shm
from deepfake_client.transport.request_id import REQUEST_ID
from deepfake_preprocess.contract import triton_config
from deepfake_serve import EmbeddedTriton, Ports

PROTOCOLS = ("grpc", "http", "grpc-shm")
FACES = np.random.default_rng(3).integers(0, 256, (8, 24, 32, 3), dtype=np.uint8)
SHARED_MEMORY = Path("/dev/shm")


def address(triton: EmbeddedTriton, protocol: str) -> str:
    return triton.http_url if protocol == "http" else triton.grpc_url


@asynccontextmanager
async def connected(triton: EmbeddedTriton, protocol: str, *, retry: Retry = NO_RETRY, **options):
    transport = connect(Connection(url=address(triton, protocol), protocol=protocol, retry=retry, **options))
    try:
        yield transport
    finally:
        await transport.close()


def regions() -> set[str]:
    """Names of the regions that are there now; those of tests in other processes come and go."""
    return {path.name for path in SHARED_MEMORY.glob("deepfake-client-*")}


def counted(triton: EmbeddedTriton, metric: str) -> float:
    with urllib.request.urlopen(triton.metrics_url, timeout=5) as answer:
        lines = answer.read().decode().splitlines()
    return sum(float(line.rpartition(" ")[2]) for line in lines if line.startswith(metric))


def on_the_same_ports(triton: EmbeddedTriton, repository: Path) -> EmbeddedTriton:
    return EmbeddedTriton(
        repository,
        ports=Ports(
            grpc=int(triton.grpc_url.rpartition(":")[2]),
            http=int(triton.http_url.rpartition(":")[2]),
        ),
    )


def test_all_protocols_give_the_same_numbers_bit_by_bit(embedded_triton):
    async def scores(protocol: str) -> list[np.ndarray]:
        async with connected(embedded_triton, protocol) as transport:
            assert isinstance(transport, Transport)
            assert await transport.list_models() == ["tiny"]
            health = await transport.health()
            assert (health.alive, health.ready) == (True, True)
            model = await transport.describe("tiny")
            assert model.spec == TINY_SPEC
            assert model.max_batch_size == 32
            # Alone, so that the server forms the same batches for every protocol; strided, so that layout is checked.
            return [await transport.infer(model, FACES[start:]) for start in range(8)] + [
                await transport.infer(model, FACES[::3, :, ::-1])
            ]

    before = regions()
    plain, http, shared = (asyncio.run(scores(protocol)) for protocol in PROTOCOLS)
    for other in (http, shared):
        assert all(np.array_equal(left, right) for left, right in zip(plain, other, strict=True))
    assert len(np.unique(plain[0])) == 8
    assert regions() <= before


def test_the_server_answers_under_the_name_of_the_context(embedded_triton):
    async def names() -> list[str]:
        async with connected(embedded_triton, "grpc") as grpc, connected(embedded_triton, "http") as http:
            model = await grpc.describe("tiny")
            answer = await grpc._call("ModelInfer", transport_grpc.encode_infer(model, FACES, timeout_s=9), 9)
            path, head, parts = transport_http.encode_infer(model, FACES, timeout_s=9)
            _, headers, body = await http._request("POST", path, parts, head)
            return [answer.id, json.loads(body[: int(headers["Inference-Header-Content-Length"])]).get("id", "")]

    assert asyncio.run(names()) == ["", ""]
    context = contextvars.copy_context()
    context.run(REQUEST_ID.set, "4f1c-a")
    assert context.run(asyncio.run, names()) == ["4f1c-a", "4f1c-a"]


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_a_transport_serves_several_event_loops_and_many_requests_at_once(embedded_triton, protocol):
    transport = connect(Connection(url=address(embedded_triton, protocol), protocol=protocol))
    model = asyncio.run(transport.describe("tiny"))
    expected = asyncio.run(transport.infer(model, FACES))

    async def many() -> None:
        counts = [index % 8 + 1 for index in range(100)]
        answers = await asyncio.gather(*(transport.infer(model, FACES[:count]) for count in counts))
        for count, answer in zip(counts, answers, strict=True):
            np.testing.assert_allclose(answer, expected[:count], atol=1e-6)

    threads = [threading.Thread(target=lambda: asyncio.run(many())) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    asyncio.run(transport.close())


def test_requests_that_find_no_room_in_shared_memory_go_another_way(embedded_triton, monkeypatch):
    monkeypatch.setattr(transport_shm, "REGION_BYTES", 2 * FACES[0].nbytes)

    async def scenario() -> None:
        async with connected(embedded_triton, "grpc-shm") as transport:
            model = await transport.describe("tiny")
            expected = await transport.infer(model, FACES)
            for answer in await asyncio.gather(*(transport.infer(model, FACES[:2]) for _ in range(10))):
                np.testing.assert_allclose(answer, expected[:2], atol=1e-6)

    asyncio.run(scenario())


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_many_requests_leave_no_objects_behind(embedded_triton, protocol):
    async def scenario() -> int:
        async with connected(embedded_triton, protocol) as transport:
            model = await transport.describe("tiny")

            async def rounds(count: int) -> int:
                for _ in range(count):
                    await asyncio.gather(*(transport.infer(model, FACES) for _ in range(10)))
                gc.collect()
                return len(gc.get_objects())

            before = await rounds(5)
            return await rounds(20) - before

    assert asyncio.run(scenario()) < 100, "200 requests may not keep an object each"


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_models_and_health_work_with_every_protocol(embedded_triton, capsys, protocol):
    def deepfake(command: str) -> str:
        with pytest.raises(SystemExit) as ended:
            cli.main([command, "--url", address(embedded_triton, protocol), "--protocol", protocol, "--json"])
        assert ended.value.code == 0
        return capsys.readouterr().out

    (model,) = json.loads(deepfake("models"))
    assert (model["name"], model["spec"]["threshold"]) == ("tiny", 0.4)
    health = json.loads(deepfake("health"))
    assert health == {"url": address(embedded_triton, protocol), "alive": True, "ready": True}


def test_a_url_for_the_wrong_port_is_told_with_the_right_one(embedded_triton):
    async def error(url: str, protocol: str) -> str:
        transport = connect(Connection(url=url, protocol=protocol))
        try:
            with pytest.raises(ServerUnavailableError) as caught:
                await transport.health()
        finally:
            await transport.close()
        return str(caught.value)

    assert "does not speak HTTP" in asyncio.run(error(embedded_triton.grpc_url, "http"))
    assert "hangs up on gRPC" in asyncio.run(error(embedded_triton.http_url.removeprefix("http://"), "grpc"))


# --- a server that is slow and has a short queue --------------------------------------------------------------------


@pytest.fixture(scope="module")
def slow_triton(tmp_path_factory):
    """Waits 2 s for more crops before it runs fewer than 8, queues two requests, and restricts two protocols."""
    repository = write_tiny_repository(tmp_path_factory.mktemp("slow") / "model_repository")
    path = repository / "tiny" / "configs" / "embedded.pbtxt"
    config = triton_config.read_config(path)
    config.dynamic_batching.max_queue_delay_microseconds = 2_000_000
    config.dynamic_batching.default_queue_policy.max_queue_size = 2
    path.write_text(triton_config.config_to_text(config), encoding="utf-8")
    flags = [
        "grpc-restricted-protocol=model-repository,shared-memory:token=secret",
        "http-restricted-api=model-repository,shared-memory:token=secret",
    ]
    with EmbeddedTriton(repository, flags=flags) as triton:
        yield triton


def token_for(protocol: str) -> dict[str, str]:
    return {"token": "secret"} if protocol == "http" else {"triton-grpc-protocol-token": "secret"}


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_headers_reach_the_server_and_without_them_access_is_refused(slow_triton, protocol):
    async def scenario() -> None:
        async with connected(slow_triton, protocol, headers=token_for(protocol)) as transport:
            assert await transport.list_models() == ["tiny"]
            await transport.describe("tiny")
        async with connected(slow_triton, protocol) as transport:
            with pytest.raises(ServerAccessError, match=r"restricted.*`headers`"):
                await transport.list_models()
            with pytest.raises(ModelNotFoundError, match=r"has no model 'other'$"):
                await transport.describe("other")

    asyncio.run(scenario())


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_a_deadline_ends_a_call_for_the_client_and_for_one_call(slow_triton, protocol):
    async def scenario() -> None:
        async with connected(slow_triton, protocol, headers=token_for(protocol)) as transport:
            model = await transport.describe("tiny")
            with pytest.raises(ServerTimeoutError, match=r"(within|deadline) 0\.05 s.*raise `timeout_s`"):
                await transport.infer(model, FACES[:1], timeout_s=0.05)
            assert len(await transport.infer(model, FACES)) == 8, "the connection is still good"
        async with connected(slow_triton, protocol, headers=token_for(protocol), timeout_s=0.2) as transport:
            model = await transport.describe("tiny")
            with pytest.raises(ServerTimeoutError, match=r"(within|deadline) 0\.2 s"):
                await transport.infer(model, FACES[:1])

    asyncio.run(scenario())


def test_a_cancelled_task_cancels_the_request_on_the_server(slow_triton):
    canceled = 'nv_inference_request_failure{model="tiny",reason="CANCELED"'
    waiting = "nv_inference_pending_request_count{"

    async def scenario() -> None:
        async with connected(slow_triton, "grpc", headers=token_for("grpc")) as transport:
            model = await transport.describe("tiny")
            before = counted(slow_triton, canceled)
            while counted(slow_triton, canceled) == before:
                task = asyncio.create_task(transport.infer(model, FACES[:1]))
                while not task.done() and not await asyncio.to_thread(counted, slow_triton, waiting):
                    pass
                task.cancel()
                with suppress(asyncio.CancelledError, ServerBusyError):
                    await task
                # It is taken out of the queue when its wait is over.
                while await asyncio.to_thread(counted, slow_triton, waiting):
                    pass

    asyncio.run(scenario())


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_a_full_queue_is_an_error_of_its_own_and_waiting_helps(slow_triton, protocol):
    async def scenario() -> None:
        async with connected(slow_triton, protocol, headers=token_for(protocol)) as transport:
            model = await transport.describe("tiny")
            answers = await asyncio.gather(
                *(transport.infer(model, FACES[:1]) for _ in range(6)), return_exceptions=True
            )
            refused = [answer for answer in answers if isinstance(answer, BaseException)]
            assert refused
            assert {type(error) for error in refused} == {ServerBusyError}
            assert "queue size" in str(refused[0])
        async with connected(slow_triton, protocol, headers=token_for(protocol), retry=Retry()) as transport:
            answers = await asyncio.gather(*(transport.infer(model, FACES[:4]) for _ in range(6)))
            assert all(len(answer) == 4 for answer in answers)

    asyncio.run(scenario())


# --- servers that go away, come back, or come back as another one ---------------------------------------------------


def test_a_server_that_another_one_replaces_loses_no_request(tiny_repository):
    """With all protocols at once; the second server knows nothing of the first one's shared memory."""
    before = regions()
    first = EmbeddedTriton(tiny_repository)
    first.start()
    second = on_the_same_ports(first, tiny_repository)

    async def keep_asking(protocol: str) -> None:
        async with connected(first, protocol, retry=Retry(total_s=120)) as transport:
            model = await transport.describe("tiny")
            expected = await transport.infer(model, FACES)
            await everybody.wait()
            while not restarted.is_set():
                for answer in await asyncio.gather(*(transport.infer(model, FACES) for _ in range(4))):
                    np.testing.assert_array_equal(answer, expected)
            # The new server has answered, and all of it works.
            await transport.describe("tiny")

    async def restart() -> None:
        await everybody.wait()
        await asyncio.to_thread(first.stop)
        await asyncio.to_thread(second.start)
        restarted.set()

    everybody = asyncio.Barrier(len(PROTOCOLS) + 1)
    restarted = asyncio.Event()

    async def scenario() -> None:
        await asyncio.gather(restart(), *(keep_asking(protocol) for protocol in PROTOCOLS))

    try:
        asyncio.run(scenario())
    finally:
        first.stop()
        second.stop()
    assert regions() <= before


def test_another_model_under_the_same_name_is_refused_with_what_changed(tiny_repository, tmp_path):
    other = write_tiny_repository(
        tmp_path / "other", replace(TINY_SPEC, input_height_px=48, input_width_px=64, training_data="")
    )

    async def scenario() -> None:
        patient = [
            connect(Connection(url=address(first, name), protocol=name, retry=Retry(total_s=120)))
            for name in PROTOCOLS
        ]
        direct = [connect(Connection(url=address(first, name), protocol=name, retry=NO_RETRY)) for name in PROTOCOLS]
        model = await patient[0].describe("tiny")
        for transport in (*patient, *direct):
            await transport.infer(model, FACES)
        await asyncio.to_thread(first.stop)
        asking = asyncio.gather(*(item.infer(model, FACES) for item in patient), return_exceptions=True)
        await asyncio.to_thread(second.start)
        errors = list(await asking)
        for transport in direct:
            # An old connection is noticed by the first call; the server's refusal comes with one that arrives.
            with suppress(ServerUnavailableError):
                await transport.health()
            with pytest.raises(ModelContractError) as caught:
                await transport.infer(model, FACES)
            errors.append(caught.value)
        for error in errors:
            assert isinstance(error, ModelContractError)
            assert "input_height_px was 24 and is 48" in str(error)
            assert "input_width_px was 32 and is 64" in str(error)
        for transport in (*patient, *direct):
            await transport.close()

    first = EmbeddedTriton(tiny_repository)
    first.start()
    second = on_the_same_ports(first, other)
    try:
        asyncio.run(scenario())
    finally:
        first.stop()
        second.stop()


# --- shared memory --------------------------------------------------------------------------------------------------


def test_a_server_that_does_not_see_our_memory_is_named_before_any_work(embedded_triton, monkeypatch, tmp_path):
    """As with a server on another host, or in a container with its own /dev/shm."""
    monkeypatch.setattr(transport_shm, "SHARED_MEMORY", tmp_path)

    async def scenario() -> None:
        async with connected(embedded_triton, "grpc-shm", retry=Retry()) as transport:
            with pytest.raises(SharedMemoryError, match=r"another host.*IPC namespace.*set `protocol` to 'grpc'"):
                await transport.describe("tiny")

    asyncio.run(scenario())
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGINT, signal.SIGTERM])
def test_a_client_that_dies_leaves_no_shared_memory(embedded_triton, number):
    script = f"""
import asyncio, numpy as np
from deepfake_client import Connection, connect
async def main():
    transport = connect(Connection(url={embedded_triton.grpc_url!r}, protocol="grpc-shm"))
    model = await transport.describe("tiny")
    faces = np.zeros((8, 24, 32, 3), np.uint8)
    await transport.infer(model, faces)
    print("ready", flush=True)
    while True:
        await asyncio.gather(*(transport.infer(model, faces) for _ in range(8)))
asyncio.run(main())
"""
    before = regions()
    with subprocess.Popen(
        [sys.executable, "-c", script], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
    ) as client:
        assert client.stdout is not None
        assert client.stdout.readline() == "ready\n"
        os.kill(client.pid, number)
        client.wait(60)
    assert regions() <= before


def mapped(triton: EmbeddedTriton) -> int:
    """How many regions of clients the server has."""
    maps = Path(f"/proc/{tritonserver_of(triton.pid).pid}/maps").read_text()
    return maps.count("deepfake-client-")


def test_closing_gives_the_servers_part_of_the_memory_back(embedded_triton):
    async def scenario() -> None:
        async with connected(embedded_triton, "grpc-shm") as transport:
            await transport.describe("tiny")
            assert mapped(embedded_triton) == before + 1
        assert mapped(embedded_triton) == before

    before = mapped(embedded_triton)
    asyncio.run(scenario())


def test_closing_gives_it_back_also_while_the_server_has_requests_that_were_given_up(embedded_triton):
    async def scenario() -> None:
        async with connected(embedded_triton, "grpc-shm") as transport:
            model = await transport.describe("tiny")
            faces = np.repeat(FACES[:1], model.max_batch_size, axis=0)
            given_up = [asyncio.create_task(transport.infer(model, faces)) for _ in range(200)]
            await asyncio.wait(given_up, return_when=asyncio.FIRST_COMPLETED)
            for task in given_up:
                task.cancel()
            await asyncio.gather(*given_up, return_exceptions=True)
        assert mapped(embedded_triton) == before

    before = mapped(embedded_triton)
    asyncio.run(scenario())
