"""Sends one request to a server and waits for its answer: gRPC, gRPC with shared memory, and HTTP.

Requests are built once and sent as bytes: the load often shares the cores with the server and must not spend them on
protobuf or JSON. Answers are handed back as the bytes that came; `deepfake_bench.server.reference` looks into them.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from itertools import count
from multiprocessing import shared_memory
from typing import Any, Protocol, Self
from urllib.parse import urlsplit

import grpc
import numpy as np
import numpy.typing as npt
from tritonclient.grpc import service_pb2

from deepfake_preprocess.contract.spec import INPUT_NAME, PROBABILITY_NAME
from deepfake_preprocess.errors import OptionError

Crops = npt.NDArray[np.uint8]

PROTOCOLS = ("grpc", "http", "grpc-shm")


def protocols_named(text: str) -> list[str]:
    """Read a comma-separated list of protocols.

    Raises:
        OptionError: there is none, or an unknown one.
    """
    names = [item.strip() for item in text.split(",") if item.strip()]
    if not names or set(names) - set(PROTOCOLS):
        raise OptionError(f"protocol is {text!r}; allowed: {', '.join(PROTOCOLS)}")
    return list(dict.fromkeys(names))


_SERVICE = "/inference.GRPCInferenceService/"


@dataclass(frozen=True, slots=True)
class HttpRequest:
    """A POST, but for the host.

    Attributes:
        path: begins with a slash.
        headers: those of the content; host and length are added.
        body: as it is sent.
    """

    path: str
    headers: Mapping[str, str]
    body: bytes


def kserve_http(model: str, crops: Crops) -> HttpRequest:
    """KServe v2 with the binary tensor extension, as Triton speaks it."""
    head = json.dumps(
        {
            "inputs": [
                {
                    "name": INPUT_NAME,
                    "shape": list(crops.shape),
                    "datatype": "UINT8",
                    "parameters": {"binary_data_size": crops.nbytes},
                }
            ],
            "outputs": [{"name": PROBABILITY_NAME, "parameters": {"binary_data": True}}],
        }
    ).encode()
    headers = {"Content-Type": "application/octet-stream", "Inference-Header-Content-Length": str(len(head))}
    return HttpRequest(f"/v2/models/{model}/infer", headers, head + crops.tobytes())


def plain_http(model: str, crops: Crops) -> HttpRequest:
    """The crops' bytes as the body and nothing else, for servers whose requests are what their code reads."""
    return HttpRequest("/predict", {"Content-Type": "application/octet-stream"}, crops.tobytes())


@dataclass(frozen=True, slots=True)
class Target:
    """What the load is sent to.

    Attributes:
        protocol: one of `PROTOCOLS`.
        url: ``host:port`` of gRPC, or of HTTP for ``http``.
        model: name of the model.
        crops_per_request: crops in each request.
        http: how crops travel over HTTP; a function of a module, as it goes to another process.
    """

    protocol: str
    url: str
    model: str
    crops_per_request: int = 1
    http: Callable[[str, Crops], HttpRequest] = kserve_http

    def __post_init__(self) -> None:
        if self.protocol not in PROTOCOLS:
            raise OptionError(f"protocol is {self.protocol!r}; allowed: {', '.join(PROTOCOLS)}")


class RequestFailedError(Exception):
    """One request failed; the message is its status."""


class Sender(Protocol):
    """Sends request after request; several may be under way at once."""

    async def __aenter__(self) -> Self:
        """Connect."""
        ...

    async def __aexit__(self, *exc: object) -> None:
        """Disconnect."""
        ...

    async def send(self, timeout_s: float, number: int | None = None) -> bytes:
        """Send a request, by its number or the next one in turn, and return the answer's bytes.

        Raises:
            RequestFailedError: no answer, or an error.
        """
        ...


def make_sender(target: Target, crops: Crops | list[Crops]) -> Sender:
    """Return the sender for a target.

    Args:
        target: where to.
        crops: uint8 ``[K, H, W, 3]``; requests take them in turn, `target.crops_per_request` at a time. Or a list of
            such arrays, one for each request.

    Raises:
        OptionError: a list for shared memory, whose slots are of one size.
    """
    if isinstance(crops, list):
        if target.protocol == "grpc-shm":
            raise OptionError("requests of several sizes go over grpc or http, not grpc-shm")
        return HttpSender(target, crops) if target.protocol == "http" else GrpcSender(target, crops)
    size = target.crops_per_request
    usable = max(1, len(crops) // size) * size
    parts = np.resize(crops, (usable, *crops.shape[1:])).reshape(-1, size, *crops.shape[1:])
    senders: dict[str, Callable[[Target, Crops], Sender]] = {
        "grpc": GrpcSender,
        "http": HttpSender,
        "grpc-shm": SharedMemorySender,
    }
    return senders[target.protocol](target, parts)


class GrpcSender:
    """KServe v2 over gRPC, crops in the message. `parts` are uint8 ``[crops, H, W, 3]``, one for each request."""

    def __init__(self, target: Target, parts: Iterable[Crops]) -> None:
        self._url = target.url
        self._requests = [_grpc_request(target.model, part.shape, part.tobytes()) for part in parts]
        self._turn = count()

    async def __aenter__(self) -> Self:
        self._channel = grpc.aio.insecure_channel(self._url)
        self._infer = self._channel.unary_unary(f"{_SERVICE}ModelInfer")
        return self

    async def __aexit__(self, *exc: object) -> None:
        await self._channel.close()

    async def send(self, timeout_s: float, number: int | None = None) -> bytes:
        """See `Sender.send`."""
        request = self._requests[next(self._turn) % len(self._requests) if number is None else number]
        return await _grpc_call(self._infer, request, timeout_s)


class SharedMemorySender:
    """KServe v2 over gRPC, crops in system shared memory: each request copies its crops into a slot of a region."""

    def __init__(self, target: Target, parts: Crops) -> None:
        self._target, self._parts = target, parts
        self._slot_bytes = parts[0].nbytes
        self._free: list[int] = []
        self._turn = count()
        self._regions: list[shared_memory.SharedMemory] = []
        self._requests: list[bytes] = []

    async def __aenter__(self) -> Self:
        self._channel = grpc.aio.insecure_channel(self._target.url)
        self._infer = self._channel.unary_unary(f"{_SERVICE}ModelInfer")
        return self

    async def __aexit__(self, *exc: object) -> None:
        unregister = self._channel.unary_unary(f"{_SERVICE}SystemSharedMemoryUnregister")
        try:
            for region in self._regions:
                message = service_pb2.SystemSharedMemoryUnregisterRequest(name=region.name)
                await unregister(message.SerializeToString(), timeout=5)
        except grpc.RpcError:
            pass  # a server that is gone holds no region
        finally:
            for region in self._regions:
                region.close()
                region.unlink()
            await self._channel.close()

    async def send(self, timeout_s: float, number: int | None = None) -> bytes:
        """See `Sender.send`."""
        slot = self._free.pop() if self._free else await self._new_slot()
        try:
            part = self._parts[next(self._turn) % len(self._parts) if number is None else number]
            np.ndarray(part.shape, np.uint8, buffer=self._regions[slot].buf)[:] = part
            return await _grpc_call(self._infer, self._requests[slot], timeout_s)
        finally:
            self._free.append(slot)

    async def _new_slot(self) -> int:
        region = shared_memory.SharedMemory(create=True, size=self._slot_bytes)
        slot = len(self._regions)
        self._regions.append(region)
        self._requests.append(_grpc_request(self._target.model, self._parts.shape[1:], None, region=region.name))
        register = self._channel.unary_unary(f"{_SERVICE}SystemSharedMemoryRegister")
        message = service_pb2.SystemSharedMemoryRegisterRequest(
            name=region.name, key=f"/{region.name}", offset=0, byte_size=self._slot_bytes
        )
        await _grpc_call(register, message.SerializeToString(), 30.0)
        return slot


class HttpSender:
    """HTTP/1.1 with requests as the target builds them; one kept-alive connection per request in flight."""

    def __init__(self, target: Target, parts: Iterable[Crops]) -> None:
        address = urlsplit(target.url if "//" in target.url else f"//{target.url}")
        self._host, self._port = address.hostname or "localhost", address.port or 80
        self._requests = [self._bytes(target.http(target.model, part)) for part in parts]
        self._idle: list[tuple[asyncio.StreamReader, asyncio.StreamWriter]] = []
        self._turn = count()

    def _bytes(self, request: HttpRequest) -> bytes:
        headers = {"Host": f"{self._host}:{self._port}", "Content-Length": str(len(request.body)), **request.headers}
        lines = (f"POST {request.path} HTTP/1.1", *(f"{name}: {value}" for name, value in headers.items()))
        return "\r\n".join((*lines, "", "")).encode() + request.body

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *exc: object) -> None:
        for _, writer in self._idle:
            writer.close()

    async def send(self, timeout_s: float, number: int | None = None) -> bytes:
        """See `Sender.send`."""
        request = self._requests[next(self._turn) % len(self._requests) if number is None else number]
        try:
            async with asyncio.timeout(timeout_s):
                return await self._exchange(request)
        except TimeoutError:
            raise RequestFailedError("DEADLINE_EXCEEDED") from None
        except (OSError, EOFError, asyncio.LimitOverrunError, ValueError) as exc:
            raise RequestFailedError(type(exc).__name__) from exc

    async def _exchange(self, request: bytes) -> bytes:
        reader, writer = self._idle.pop() if self._idle else await asyncio.open_connection(self._host, self._port)
        try:
            writer.write(request)
            await writer.drain()
            head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1").lower()
            status_line, *lines = head.split("\r\n")
            headers = dict(line.split(":", 1) for line in lines if line)
            body = await _read_body(reader, headers)
        except BaseException:
            writer.close()
            raise
        if "close" in headers.get("connection", ""):
            writer.close()
        else:
            self._idle.append((reader, writer))
        status = status_line.split(" ")[1]
        if status != "200":
            raise RequestFailedError(f"HTTP {status}")
        return body


async def _read_body(reader: asyncio.StreamReader, headers: Mapping[str, str]) -> bytes:
    if "chunked" not in headers.get("transfer-encoding", ""):
        return await reader.readexactly(int(headers.get("content-length", "no length")))
    parts = []
    while size := int((await reader.readline()).split(b";")[0], 16):
        parts.append(await reader.readexactly(size))
        await reader.readline()
    await reader.readuntil(b"\r\n")  # no trailers
    return b"".join(parts)


def _grpc_request(model: str, shape: tuple[int, ...], data: bytes | None, *, region: str | None = None) -> bytes:
    request = service_pb2.ModelInferRequest(model_name=model)
    tensor = request.inputs.add(name=INPUT_NAME, datatype="UINT8", shape=shape)
    request.outputs.add(name=PROBABILITY_NAME)
    if data is not None:
        request.raw_input_contents.append(data)
    if region is not None:
        tensor.parameters["shared_memory_region"].string_param = region
        tensor.parameters["shared_memory_byte_size"].int64_param = int(np.prod(shape))
    return bytes(request.SerializeToString())


async def _grpc_call(call: Any, request: bytes, timeout_s: float) -> bytes:
    try:
        return bytes(await call(request, timeout=timeout_s))
    except grpc.aio.AioRpcError as exc:
        raise RequestFailedError(exc.code().name) from exc
