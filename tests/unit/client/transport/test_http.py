"""What HTTP servers may answer besides the right thing; a few lines of asyncio stand in for such a server."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Awaitable, Callable

import numpy as np
import pytest

from deepfake_client import (
    Connection,
    InferenceError,
    ModelContractError,
    ServedModel,
    ServerTimeoutError,
    ServerUnavailableError,
)
from deepfake_client.transport import tls as transport_tls
from deepfake_client.transport.http import HttpTransport
from deepfake_preprocess.contract.spec import ModelSpec
from deepfake_preprocess.contract.triton_config import PRECISION_PARAMETER, contract_config
from deepfake_preprocess.errors import ServerError

SPEC = ModelSpec(name="m", architecture="timm:efficientnet_b0", input_height_px=16, input_width_px=16)
MODEL = ServedModel("m", 1, SPEC, 8)
FACES = np.random.default_rng(5).integers(0, 256, (2, 16, 16, 3), dtype=np.uint8)
CONFIG = {
    "name": "m",
    "max_batch_size": 8,
    "input": [{"name": "faces", "data_type": "TYPE_UINT8", "dims": [16, 16, 3]}],
    "output": [{"name": "fake_probability"}, {"name": "logit"}],
    "parameters": {
        **{key: {"string_value": value.string_value} for key, value in contract_config(SPEC).parameters.items()},
        PRECISION_PARAMETER: {"string_value": "fp32"},
    },
    "unknown_to_us": 1,
}


@pytest.fixture(autouse=True)
def short_probe(monkeypatch):
    """Our stand-in does not answer the probe for TLS at all."""
    monkeypatch.setattr(transport_tls, "PROBE_TIMEOUT_S", 0.1)


async def talk_to(
    answer: Callable[[str, bytes], bytes | None], use: Callable[[HttpTransport], Awaitable[object]], **options: float
) -> object:
    """Run `use` on a transport to a server that answers each request (path, body) with raw bytes, or not at all."""

    async def handle(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        head = (await reader.readuntil(b"\r\n\r\n")).decode()
        headers = {line.split(":")[0].lower(): line.split(":")[1].strip() for line in head.split("\r\n")[1:-2]}
        assert "transfer-encoding" not in headers, "Triton wants to know the length"
        body = await reader.readexactly(int(headers.get("content-length", 0)))
        raw = answer(head.split(" ")[1], body)
        if raw is not None:
            writer.write(raw)
        else:
            await reader.read()  # until the client hangs up
            hung_up.set()
        writer.close()

    hung_up = asyncio.Event()
    async with await asyncio.start_server(handle, "127.0.0.1", 0) as server:
        transport = HttpTransport(Connection(url=f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}", **options))
        try:
            return await use(transport)
        except (asyncio.CancelledError, ServerTimeoutError) as exc:
            await hung_up.wait()
            return exc
        finally:
            await transport.close()


def page(body: bytes, status: str = "200 OK", **headers: object) -> bytes:
    lines = "".join(f"{key.replace('_', '-')}: {value}\r\n" for key, value in headers.items())
    return f"HTTP/1.1 {status}\r\nContent-Length: {len(body)}\r\nConnection: close\r\n{lines}\r\n".encode() + body


def outputs(*items: tuple[str, list[int], bytes]) -> bytes:
    head = json.dumps(
        {
            "outputs": [
                {"name": name, "shape": shape, "datatype": "FP32", "parameters": {"binary_data_size": len(raw)}}
                for name, shape, raw in items
            ]
        }
    ).encode()
    return page(head + b"".join(raw for _, _, raw in items), Inference_Header_Content_Length=len(head))


def numbers(*values: float) -> bytes:
    return np.array(values, "<f4").tobytes()


def test_an_address_may_end_with_the_version():
    transport = HttpTransport(Connection(url="http://proxy/triton/v2/"))
    assert transport.url == "http://proxy:80/triton"
    asyncio.run(transport.close())


def test_the_request_holds_the_crops_as_raw_bytes_and_the_answer_is_found_among_others():
    seen: list[tuple[str, bytes]] = []

    def answer(path: str, body: bytes) -> bytes:
        seen.append((path, body))
        return outputs(("logit", [2, 1], numbers(-1, 1)), ("fake_probability", [2, 1], numbers(0.25, 0.75)))

    scores = asyncio.run(talk_to(answer, lambda transport: transport.infer(MODEL, FACES[:, ::-1], timeout_s=5)))
    np.testing.assert_array_equal(scores, np.array([0.25, 0.75], np.float32))
    ((path, body),) = seen
    assert path == "/v2/models/m/versions/1/infer"
    raw = np.ascontiguousarray(FACES[:, ::-1]).tobytes()
    assert body.endswith(raw)
    head = json.loads(body.removesuffix(raw))
    assert head["inputs"][0]["shape"] == [2, 16, 16, 3]
    assert head["parameters"] == {"timeout": 5_000_000}


@pytest.mark.parametrize(
    ("raw", "kind", "says"),
    [
        (outputs(("fake_probability", [2], numbers(0, 1))), ModelContractError, r"shape \[2\], expected \[2, 1\]"),
        (outputs(("fake_probability", [2, 1], numbers(0))), ModelContractError, "expected"),
        (outputs(("logit", [2, 1], numbers(0, 1))), ModelContractError, "shape None, expected"),
        (page(b'{"outputs": []}'), InferenceError, "not KServe v2 in binary"),
        (page(b"not json", Inference_Header_Content_Length=8), InferenceError, "not KServe v2 in binary"),
        (b"HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\nhalf", ServerUnavailableError, "no inference server"),
        (b"", ServerUnavailableError, "no inference server"),
        (b"SSH-2.0-OpenSSH_9.2\r\n", ServerUnavailableError, "does not speak HTTP"),
        (page(b"", "302 Found", Location="/login"), InferenceError, "HTTP status 302"),
        (page(b"<html>", "502 Bad Gateway"), ServerUnavailableError, "no inference server"),
    ],
)
def test_answers_of_other_kinds_are_told_apart(raw, kind, says):
    def answer(path: str, body: bytes) -> bytes:
        if path.endswith("/infer"):
            return raw
        return page(json.dumps(CONFIG if path.endswith("/config") else {"versions": ["1"]}).encode())

    with pytest.raises(kind, match=says):
        asyncio.run(talk_to(answer, lambda transport: transport.infer(MODEL, FACES)))


def test_a_list_of_models_that_is_no_json_is_an_error_of_ours():
    with pytest.raises(ServerError, match="no JSON; is it Triton"):
        asyncio.run(talk_to(lambda *_: page(b"<html>"), lambda transport: transport.list_models()))


def test_a_passed_deadline_and_a_cancelled_task_close_the_connection():
    """`talk_to` returns only after the server has seen the client hang up."""
    late = asyncio.run(talk_to(lambda *_: None, lambda transport: transport.infer(MODEL, FACES), timeout_s=0.05))
    assert isinstance(late, ServerTimeoutError)

    async def cancelled(transport: HttpTransport) -> None:
        task = asyncio.create_task(transport.infer(MODEL, FACES))
        await asked.wait()
        task.cancel()
        await task

    def answer(path: str, body: bytes) -> None:
        asked.set()

    asked = asyncio.Event()
    assert isinstance(asyncio.run(talk_to(answer, cancelled)), asyncio.CancelledError)
