"""Sends one request to a server and waits for its answer: gRPC, gRPC with shared memory, and HTTP.

Requests are encoded as the client's transports encode them, but only once, and are sent by the barest means: the load
often shares the cores with the server, and a transport takes 1.6 to 4 times the CPU time per request
(docs/decisions.md). Answers are returned as the bytes that came; `deepfake_bench.server.reference` looks into them.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from deepfake_bench.load.http2 import CallFailedError, Http2Channel, framed
from deepfake_client import Connection
from deepfake_client.transport import grpc as grpc_transport
from deepfake_client.transport import http as http_transport
from deepfake_client.transport import shm as shm_transport
from deepfake_client.transport.address import ProtocolName, check_headers
from deepfake_client.transport.protocol import ServedModel

Crops = npt.NDArray[np.uint8]
Send = Callable[[int, float], Awaitable[bytes]]
"""Sends the request of a number (they repeat), with a deadline in seconds, and returns the answer's bytes. Several
may be under way at once. Raises `RequestFailedError`."""
QUEUE_TIMEOUT_S = 30.0
"""How long a request may wait in the server's queue; the client's default deadline."""


@dataclass(frozen=True, slots=True)
class HttpRequest:
    """A POST, but for the host; the headers are those of the content, without its length."""

    path: str
    headers: Mapping[str, str]
    body: bytes


@dataclass(frozen=True, slots=True)
class LoadTarget:
    """What the load is sent to: a model of a server that speaks KServe v2, or any other server.

    `http` says how crops travel to the latter; a function of a module, because it goes to another process.
    """

    connection: Connection
    model: ServedModel | None = None
    crops_per_request: int = 1
    http: Callable[[Crops], Awaitable[HttpRequest]] | None = None

    @property
    def protocol(self) -> ProtocolName:
        """How the server is spoken to."""
        return self.connection.address.protocol


class RequestFailedError(Exception):
    """One request failed; the message is its status."""


def connected(target: LoadTarget, crops: Crops | list[Crops]) -> AbstractAsyncContextManager[Send]:
    """Return a connection to a target, as a context of its `Send`.

    Requests take crops, uint8 ``[K, H, W, 3]``, in turn, `target.crops_per_request` at a time; or one each of a list
    of such arrays.
    """
    if isinstance(crops, list):
        parts: Sequence[Crops] = crops
    else:
        size = target.crops_per_request
        usable = max(1, len(crops) // size) * size
        parts = list(np.resize(crops, (usable, *crops.shape[1:])).reshape(-1, size, *crops.shape[1:]))
    if target.protocol == "http":
        return _connected_http(target, parts)
    assert target.model is not None
    connect = _connected_shared_memory if target.protocol == "grpc-shm" else _connected_grpc
    return connect(target.connection, target.model, parts)


@asynccontextmanager
async def _connected_grpc(connection: Connection, model: ServedModel, parts: Sequence[Crops]) -> AsyncIterator[Send]:
    requests = [framed(grpc_transport.encode_infer(model, part, timeout_s=QUEUE_TIMEOUT_S)) for part in parts]
    async with _calls(connection) as call:

        async def send(number: int, timeout_s: float) -> bytes:
            return await call(requests[number % len(requests)], timeout_s)

        yield send


@asynccontextmanager
async def _connected_shared_memory(
    connection: Connection, model: ServedModel, parts: Sequence[Crops]
) -> AsyncIterator[Send]:
    """Copy the crops of each request into the memory that the client's own transport shares with the server."""
    transport = shm_transport.SharedMemoryTransport(connection)
    try:
        region = await transport.region_for(parts[0][0].nbytes)
        async with _calls(connection) as call:

            async def send(number: int, timeout_s: float) -> bytes:
                part = parts[number % len(parts)]
                with region.holding(part) as offset:
                    if offset is None:  # full; the client does the same
                        request = grpc_transport.encode_infer(model, part, timeout_s=QUEUE_TIMEOUT_S)
                    else:
                        place = region.name, offset
                        request = shm_transport.encode_infer(model, part, *place, timeout_s=QUEUE_TIMEOUT_S)
                    return await call(framed(request), timeout_s)

            yield send
    finally:
        await transport.close()


@asynccontextmanager
async def _calls(connection: Connection) -> AsyncIterator[Callable[[bytes, float], Awaitable[bytes]]]:
    """Yield a function that sends an inference request, encoded and framed, and returns its encoded answer."""
    address, headers = connection.address, check_headers(connection.headers)
    tls = None if address.tls is None else address.tls.context()
    path = f"{grpc_transport.SERVICE}ModelInfer"
    async with Http2Channel(address.host, address.port, path, headers=headers, tls=tls) as channel:

        async def call(request: bytes, timeout_s: float) -> bytes:
            try:
                return await channel.call(request, timeout_s)
            except CallFailedError as exc:
                raise RequestFailedError(str(exc)) from exc

        yield call


@asynccontextmanager
async def _connected_http(target: LoadTarget, parts: Sequence[Crops]) -> AsyncIterator[Send]:
    """HTTP/1.1 with requests as the target builds them; one kept-alive connection per request in flight."""
    address = target.connection.address
    tls = None if address.tls is None else address.tls.context()
    requests = [_http_bytes(await _http_request(target, part), target.connection) for part in parts]
    idle: list[tuple[asyncio.StreamReader, asyncio.StreamWriter]] = []

    async def exchange(request: bytes) -> bytes:
        reader, writer = idle.pop() if idle else await asyncio.open_connection(address.host, address.port, ssl=tls)
        try:
            writer.write(request)
            await writer.drain()
            status, headers, body = await _read_answer(reader)
        except BaseException:
            writer.close()
            raise
        if "close" in headers.get("connection", ""):
            writer.close()
        else:
            idle.append((reader, writer))
        if status != "200":
            raise RequestFailedError(f"HTTP {status}")
        return body

    async def send(number: int, timeout_s: float) -> bytes:
        try:
            async with asyncio.timeout(timeout_s):
                return await exchange(requests[number % len(requests)])
        except TimeoutError:
            raise RequestFailedError("DEADLINE_EXCEEDED") from None
        except (OSError, EOFError, asyncio.LimitOverrunError, ValueError) as exc:
            raise RequestFailedError(type(exc).__name__) from exc

    try:
        yield send
    finally:
        for _, writer in idle:
            writer.close()


async def _http_request(target: LoadTarget, crops: Crops) -> HttpRequest:
    if target.http is not None:
        return await target.http(crops)
    assert target.model is not None
    path, headers, parts = http_transport.encode_infer(target.model, crops, timeout_s=QUEUE_TIMEOUT_S)
    return HttpRequest(f"/v2/{path}", headers, b"".join(parts))


def _http_bytes(request: HttpRequest, connection: Connection) -> bytes:
    address = connection.address
    headers = {
        "host": address.target,
        "content-length": str(len(request.body)),
        **connection.headers,
        **request.headers,
    }
    lines = (f"POST {address.path}{request.path} HTTP/1.1", *(f"{name}: {value}" for name, value in headers.items()))
    return "\r\n".join((*lines, "", "")).encode() + request.body


async def _read_answer(reader: asyncio.StreamReader) -> tuple[str, dict[str, str], bytes]:
    """Return status, headers in lower case, and body."""
    status_line, *lines = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1").lower().split("\r\n")
    headers = dict(line.split(":", 1) for line in lines if line)
    if "chunked" not in headers.get("transfer-encoding", ""):
        body = await reader.readexactly(int(headers.get("content-length", "no length")))
        return status_line.split(" ")[1], headers, body
    chunks = []
    while size := int((await reader.readline()).split(b";")[0], 16):
        chunks.append(await reader.readexactly(size))
        await reader.readline()
    await reader.readuntil(b"\r\n")  # no trailers
    return status_line.split(" ")[1], headers, b"".join(chunks)
