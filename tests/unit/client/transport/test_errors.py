"""Every error of a foreign library becomes one of ours, with one sentence; nothing slips through."""

from __future__ import annotations

import asyncio
import ssl

import aiohttp
import grpc
import pytest
from aiohttp import client_exceptions
from aiohttp.client_reqrep import ConnectionKey

from deepfake_client import NO_RETRY, Connection, connect
from deepfake_client.transport.errors import server_error
from deepfake_client.transport.grpc import GrpcTransport
from deepfake_client.transport.http import HttpTransport
from deepfake_preprocess.errors import (
    InferenceError,
    ModelNotFoundError,
    ServerAccessError,
    ServerBusyError,
    ServerError,
    ServerTimeoutError,
    ServerUnavailableError,
    SharedMemoryError,
)


@pytest.mark.parametrize(
    ("status", "message", "kind"),
    [
        # As Triton 2.51 says them.
        ("UNAVAILABLE", "[request id: <id_unknown>] Exceeds maximum queue size", ServerBusyError),
        ("UNAVAILABLE", "Request timeout expired", ServerTimeoutError),
        ("UNAVAILABLE", "Server is stopping, scheduler for model has stopped accepting", ServerUnavailableError),
        ("UNAVAILABLE", "Request for unknown model: 'm' version 1 is not at ready state", ServerUnavailableError),
        ("UNAVAILABLE", "This protocol is restricted, expecting header 'token'", ServerAccessError),
        ("INTERNAL", "Stub process 'm_0_0' is not healthy.", ServerUnavailableError),
        ("NOT_FOUND", "Request for unknown model: 'm' is not found", ModelNotFoundError),
        ("NOT_FOUND", "Unable to find shared memory region: 'r'", SharedMemoryError),
        ("INTERNAL", "Unable to open shared memory region: '/r'", SharedMemoryError),
        ("INVALID_ARGUMENT", "unexpected shape for input 'faces'", InferenceError),
        # As gRPC and proxies say them.
        (
            "UNAVAILABLE",
            "connections to all backends failing; last error: Connection refused",
            ServerUnavailableError,
        ),
        ("UNAVAILABLE", "Stream removed (recvmsg:Connection reset by peer (104))", ServerUnavailableError),
        ("CANCELLED", "Channel closed!", ServerUnavailableError),
        ("RESOURCE_EXHAUSTED", "", ServerBusyError),
        ("DEADLINE_EXCEEDED", "Deadline Exceeded", ServerTimeoutError),
        ("UNAUTHENTICATED", "no token", ServerAccessError),
        ("PERMISSION_DENIED", "wrong token", ServerAccessError),
    ],
)
def test_a_refusal_is_told_apart_by_what_the_caller_can_do(status, message, kind):
    error = server_error(status, message, url="host:1", timeout_s=3)
    assert type(error) is kind
    assert "host:1" in str(error)
    assert "id_unknown" not in str(error)


@pytest.mark.parametrize("code", [code for code in grpc.StatusCode if code is not grpc.StatusCode.OK])
def test_every_status_of_grpc_is_translated(code):
    transport = GrpcTransport(Connection(url="127.0.0.1:1"))
    error = transport._as_server_error(code, "some\n details ", 1.0)
    assert isinstance(error, ServerError)
    assert "\n" not in str(error)
    asyncio.run(transport.close())


def errors_of(base: type[BaseException]) -> list[type[BaseException]]:
    return [base, *(kind for child in base.__subclasses__() for kind in errors_of(child))]


def example_of(kind: type[BaseException]) -> BaseException:
    key = ConnectionKey("127.0.0.1", 1, False, True, None, None, None)
    if issubclass(kind, aiohttp.ClientConnectorCertificateError):
        return kind(key, ssl.SSLCertVerificationError("bad"))
    if issubclass(kind, aiohttp.ServerFingerprintMismatch):
        return kind(b"a", b"b", "127.0.0.1", 1)
    if issubclass(kind, client_exceptions.UnixClientConnectorError):
        return kind("/socket", key, OSError(111, "refused"))
    if issubclass(kind, aiohttp.ClientConnectorError):
        return kind(key, OSError(111, "refused"))
    if issubclass(kind, aiohttp.ClientResponseError):
        return kind(None, (), status=400, message="bad")  # type: ignore[arg-type]
    if issubclass(kind, aiohttp.InvalidURL):
        return kind("url")
    return kind()


@pytest.mark.parametrize("kind", sorted(set(errors_of(aiohttp.ClientError)) | {TimeoutError}, key=str))
def test_every_error_of_aiohttp_is_translated(monkeypatch, kind):
    async def scenario() -> None:
        transport = HttpTransport(Connection(url="http://127.0.0.1:1"))

        def fail(*args, **kwargs):
            raise example_of(kind)

        monkeypatch.setattr(aiohttp.ClientSession, "request", fail)
        try:
            with pytest.raises(ServerError) as caught:
                await transport.list_models()
        finally:
            await transport.close()
        assert "127.0.0.1:1" in str(caught.value)
        timed_out = issubclass(kind, TimeoutError)
        assert isinstance(caught.value, ServerTimeoutError) == timed_out

    asyncio.run(scenario())


@pytest.mark.parametrize(
    "status", [100, 204, 301, 400, 401, 403, 404, 408, 413, 429, 499, 500, 501, 502, 503, 504, 599]
)
@pytest.mark.parametrize("body", [b"", b"<html>", b'{"error":"some text"}', b'"text"', b"\xff\xfe"])
def test_every_status_of_http_is_translated(status, body):
    with pytest.raises(ServerError):
        HttpTransport(Connection(url="http://127.0.0.1:1"))._check(status, body, 1.0)


def test_a_page_of_another_web_server_is_not_taken_for_a_missing_model():
    with pytest.raises(InferenceError, match="HTTP status 404"):
        HttpTransport(Connection(url="http://127.0.0.1:1"))._check(404, b"<html>not here</html>", 1.0)


@pytest.mark.parametrize("url", ["127.0.0.1:1", "http://127.0.0.1:1"])
def test_a_closed_transport_says_so(url):
    async def scenario() -> None:
        transport = connect(Connection(url=url, retry=NO_RETRY))
        await transport.close()
        await transport.close()
        with pytest.raises(ServerUnavailableError, match="closed by this client"):
            await transport.health()

    asyncio.run(scenario())
