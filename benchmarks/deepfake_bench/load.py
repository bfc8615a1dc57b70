"""Sends requests to an inference server and notes when each one was due, sent and answered.

Runs in a process of its own (see `deepfake_bench.load_process`). Requests are built once and sent as bytes: the load
often shares the cores with the server and must not spend them on protobuf or JSON. Two kinds of load:

- closed loop: a number of requests is kept in flight; the next one is sent when an answer arrives. Shows the
  throughput that many callers get, but hides waiting: a slow server is asked less often.
- open loop: requests are due at random times (Poisson arrivals), whether or not earlier ones were answered. Latency
  counts from the time a request was due, not from when it could be sent, so that no waiting is hidden ("coordinated
  omission", G. Tene, "How NOT to Measure Latency", 2013).
"""

from __future__ import annotations

import asyncio
import json
import resource
import time
from collections.abc import Callable, Coroutine
from dataclasses import dataclass
from multiprocessing import shared_memory
from typing import Any, Protocol, Self
from urllib.parse import urlsplit

import grpc
import numpy as np
import numpy.typing as npt

from deepfake_preprocess.errors import OptionError
from deepfake_preprocess.spec import INPUT_NAME, PROBABILITY_NAME

Crops = npt.NDArray[np.uint8]

PROTOCOLS = ("grpc", "http", "grpc-shm")
MAX_IN_FLIGHT = 4096
"""Open loop: a request that is due while this many are unanswered is not sent, and counted as an error."""
_SERVICE = "/inference.GRPCInferenceService/"


@dataclass(frozen=True, slots=True)
class Target:
    """What the load is sent to.

    Attributes:
        protocol: one of `PROTOCOLS`.
        url: ``host:port`` of gRPC, or of HTTP for ``http``.
        model: name of the model.
        crops_per_request: crops in each request.
    """

    protocol: str
    url: str
    model: str
    crops_per_request: int = 1

    def __post_init__(self) -> None:
        if self.protocol not in PROTOCOLS:
            raise OptionError(f"protocol is {self.protocol!r}; allowed: {', '.join(PROTOCOLS)}")


@dataclass(frozen=True, slots=True)
class Load:
    """How a measurement loads the server: exactly one of concurrency and rate is set.

    Attributes:
        concurrency: closed loop: requests kept in flight by this process.
        requests_per_s: open loop: mean rate of this process's Poisson arrivals.
        start_at: `time.perf_counter` at which the first request is sent; the clock is the machine's, so that several
            processes start together.
        ramp_s: time after `start_at` that is not measured.
        measure_s: time that is measured.
        seed: of the arrival times.
        timeout_s: deadline of one request.
    """

    concurrency: int | None
    requests_per_s: float | None
    start_at: float
    ramp_s: float
    measure_s: float
    seed: int = 0
    timeout_s: float = 30.0


@dataclass(frozen=True, slots=True, eq=False)
class Trace:
    """What one process saw.

    Attributes:
        due_s: float64 ``[N]``: when each request was due, in seconds after the start of the measured time; in a
            closed loop when it was sent.
        sent_s: float64 ``[N]``: when it was sent.
        answered_s: float64 ``[N]``: when its answer was there, or its failure.
        errors: failures by their status, over the whole run.
        failed: bool ``[N]``: whether it failed.
        cpu_s: CPU time of the process during the measured time.
    """

    due_s: npt.NDArray[np.float64]
    sent_s: npt.NDArray[np.float64]
    answered_s: npt.NDArray[np.float64]
    failed: npt.NDArray[np.bool_]
    errors: dict[str, int]
    cpu_s: float


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

    async def send(self, timeout_s: float) -> None:
        """Send the next request and wait for its answer.

        Raises:
            RequestFailedError: no answer, or an error.
        """
        ...


def make_sender(target: Target, crops: Crops) -> Sender:
    """Return the sender for a target.

    Args:
        target: where to.
        crops: uint8 ``[K, H, W, 3]``; requests take them in turn, `target.crops_per_request` at a time.
    """
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
    """KServe v2 over gRPC, crops in the message. `parts` is uint8 ``[requests, crops, H, W, 3]``."""

    def __init__(self, target: Target, parts: Crops) -> None:
        self._url = target.url
        self._requests = [_grpc_request(target.model, part.shape, part.tobytes()) for part in parts]
        self._next = 0

    async def __aenter__(self) -> Self:
        self._channel = grpc.aio.insecure_channel(self._url)
        self._infer = self._channel.unary_unary(f"{_SERVICE}ModelInfer")
        return self

    async def __aexit__(self, *exc: object) -> None:
        await self._channel.close()

    async def send(self, timeout_s: float) -> None:
        """See `Sender.send`."""
        request = self._requests[self._next % len(self._requests)]
        self._next += 1
        await _grpc_call(self._infer, request, timeout_s)


class SharedMemorySender:
    """KServe v2 over gRPC, crops in system shared memory: each request copies its crops into a slot of a region."""

    def __init__(self, target: Target, parts: Crops) -> None:
        self._target, self._parts = target, parts
        self._slot_bytes = parts[0].nbytes
        self._free: list[int] = []
        self._slots = 0
        self._next = 0
        self._regions: list[shared_memory.SharedMemory] = []
        self._requests: list[bytes] = []

    async def __aenter__(self) -> Self:
        self._channel = grpc.aio.insecure_channel(self._target.url)
        self._infer = self._channel.unary_unary(f"{_SERVICE}ModelInfer")
        return self

    async def __aexit__(self, *exc: object) -> None:
        from tritonclient.grpc import service_pb2

        unregister = self._channel.unary_unary(f"{_SERVICE}SystemSharedMemoryUnregister")
        try:
            for region in self._regions:
                await unregister(
                    service_pb2.SystemSharedMemoryUnregisterRequest(name=region.name).SerializeToString(), timeout=5
                )
        except grpc.RpcError:
            pass  # a server that is gone holds no region
        finally:
            for region in self._regions:
                region.close()
                region.unlink()
            await self._channel.close()

    async def send(self, timeout_s: float) -> None:
        """See `Sender.send`."""
        slot = self._free.pop() if self._free else await self._new_slot()
        try:
            part = self._parts[self._next % len(self._parts)]
            self._next += 1
            np.ndarray(part.shape, np.uint8, buffer=self._regions[slot].buf)[:] = part
            await _grpc_call(self._infer, self._requests[slot], timeout_s)
        finally:
            self._free.append(slot)

    async def _new_slot(self) -> int:
        from tritonclient.grpc import service_pb2

        region = shared_memory.SharedMemory(create=True, size=self._slot_bytes)
        self._regions.append(region)
        self._requests.append(_grpc_request(self._target.model, self._parts.shape[1:], None, region=region.name))
        slot = len(self._regions) - 1
        register = self._channel.unary_unary(f"{_SERVICE}SystemSharedMemoryRegister")
        message = service_pb2.SystemSharedMemoryRegisterRequest(
            name=region.name, key=f"/{region.name}", offset=0, byte_size=self._slot_bytes
        )
        await _grpc_call(register, message.SerializeToString(), 30.0)
        return slot


class HttpSender:
    """KServe v2 over HTTP/1.1 with the binary tensor extension; one kept-alive connection per request in flight."""

    def __init__(self, target: Target, parts: Crops) -> None:
        address = urlsplit(target.url if "//" in target.url else f"//{target.url}")
        self._host, self._port = address.hostname or "localhost", address.port or 8000
        self._requests = [self._request(target.model, part) for part in parts]
        self._idle: list[tuple[asyncio.StreamReader, asyncio.StreamWriter]] = []
        self._next = 0

    def _request(self, model: str, part: Crops) -> bytes:
        head = json.dumps(
            {
                "inputs": [
                    {
                        "name": INPUT_NAME,
                        "shape": list(part.shape),
                        "datatype": "UINT8",
                        "parameters": {"binary_data_size": part.nbytes},
                    }
                ],
                "outputs": [{"name": PROBABILITY_NAME, "parameters": {"binary_data": True}}],
            }
        ).encode()
        lines = (
            f"POST /v2/models/{model}/infer HTTP/1.1",
            f"Host: {self._host}:{self._port}",
            f"Inference-Header-Content-Length: {len(head)}",
            f"Content-Length: {len(head) + part.nbytes}",
            "Content-Type: application/octet-stream",
        )
        return "\r\n".join((*lines, "", "")).encode() + head + part.tobytes()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *exc: object) -> None:
        for _, writer in self._idle:
            writer.close()

    async def send(self, timeout_s: float) -> None:
        """See `Sender.send`."""
        request = self._requests[self._next % len(self._requests)]
        self._next += 1
        try:
            async with asyncio.timeout(timeout_s):
                await self._exchange(request)
        except TimeoutError:
            raise RequestFailedError("DEADLINE_EXCEEDED") from None
        except (OSError, EOFError, asyncio.LimitOverrunError, ValueError) as exc:
            raise RequestFailedError(type(exc).__name__) from exc

    async def _exchange(self, request: bytes) -> None:
        reader, writer = self._idle.pop() if self._idle else await asyncio.open_connection(self._host, self._port)
        try:
            writer.write(request)
            await writer.drain()
            head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1").lower()
            status = head.split(" ", 2)[1]
            length = next(line for line in head.split("\r\n") if line.startswith("content-length:"))
            await reader.readexactly(int(length.split(":")[1]))
        except BaseException:
            writer.close()
            raise
        self._idle.append((reader, writer))
        if status != "200":
            raise RequestFailedError(f"HTTP {status}")


def _grpc_request(model: str, shape: tuple[int, ...], data: bytes | None, *, region: str | None = None) -> bytes:
    from tritonclient.grpc import service_pb2

    request = service_pb2.ModelInferRequest(model_name=model)
    tensor = request.inputs.add(name=INPUT_NAME, datatype="UINT8", shape=shape)
    request.outputs.add(name=PROBABILITY_NAME)
    if data is not None:
        request.raw_input_contents.append(data)
    if region is not None:
        tensor.parameters["shared_memory_region"].string_param = region
        tensor.parameters["shared_memory_byte_size"].int64_param = int(np.prod(shape))
    return bytes(request.SerializeToString())


async def _grpc_call(call: Any, request: bytes, timeout_s: float) -> None:
    try:
        await call(request, timeout=timeout_s)
    except grpc.aio.AioRpcError as exc:
        raise RequestFailedError(exc.code().name) from exc


async def run_load(sender: Sender, load: Load) -> Trace:
    """Load the server as asked and return what was seen of the requests that were due in the measured time.

    Args:
        sender: connected.
        load: what to do.

    Raises:
        OptionError: not exactly one of concurrency and rate is set.
    """
    if (load.concurrency is None) == (load.requests_per_s is None):
        raise OptionError("a load has either a concurrency or a rate")
    recorder = _Recorder(sender, load)
    if load.concurrency is not None:
        await recorder.closed_loop(load.concurrency)
    else:
        assert load.requests_per_s is not None
        await recorder.open_loop(load.requests_per_s)
    return recorder.trace()


class _Recorder:
    def __init__(self, sender: Sender, load: Load) -> None:
        self._sender, self._load = sender, load
        self._begin = load.start_at + load.ramp_s
        self._end = self._begin + load.measure_s
        self._rows: list[tuple[float, float, float, bool]] = []
        self._errors: dict[str, int] = {}
        self._cpu: list[float] = []

    async def closed_loop(self, concurrency: int) -> None:
        async def one() -> None:
            while (now := time.perf_counter()) < self._end:
                await self._send(due=now)

        await self._with_cpu_clock(_together(one() for _ in range(concurrency)))

    async def open_loop(self, requests_per_s: float) -> None:
        random = np.random.default_rng(self._load.seed)
        under_way: set[asyncio.Task[None]] = set()

        async def arrivals() -> None:
            due = self._load.start_at
            while (due := due + float(random.exponential(1 / requests_per_s))) < self._end:
                if (wait := due - time.perf_counter()) > 0:
                    await asyncio.sleep(wait)
                if len(under_way) >= MAX_IN_FLIGHT:
                    self._note(due, due, time.perf_counter(), "too many in flight")
                    continue
                task = asyncio.create_task(self._send(due=due))
                under_way.add(task)
                task.add_done_callback(under_way.discard)
            await asyncio.gather(*under_way)

        await self._with_cpu_clock(arrivals())

    async def _with_cpu_clock(self, work: Coroutine[Any, Any, None]) -> None:
        async def clock() -> None:
            for at in (self._begin, self._end):
                await asyncio.sleep(max(0.0, at - time.perf_counter()))
                usage = resource.getrusage(resource.RUSAGE_SELF)
                self._cpu.append(usage.ru_utime + usage.ru_stime)

        await asyncio.sleep(max(0.0, self._load.start_at - time.perf_counter()))
        await _together((work, clock()))

    async def _send(self, *, due: float) -> None:
        sent, error = time.perf_counter(), None
        try:
            await self._sender.send(self._load.timeout_s)
        except RequestFailedError as exc:
            error = str(exc)
        self._note(due, sent, time.perf_counter(), error)
        if error is not None:
            # A server that refuses at once must not be asked in a tight loop.
            await asyncio.sleep(0.01)

    def _note(self, due: float, sent: float, answered: float, error: str | None) -> None:
        if error is not None:
            self._errors[error] = self._errors.get(error, 0) + 1
        self._rows.append((due, sent, answered, error is not None))

    def trace(self) -> Trace:
        rows = np.array([row[:3] for row in self._rows], dtype=np.float64).reshape(-1, 3) - self._begin
        failed = np.array([row[3] for row in self._rows], dtype=np.bool_)
        # Closed loop: what was answered in the measured time. Open loop: what was due in it, however late.
        moment = rows[:, 2] if self._load.concurrency is not None else rows[:, 0]
        inside = (moment >= 0) & (moment < self._load.measure_s)
        rows, failed = rows[inside], failed[inside]
        return Trace(rows[:, 0], rows[:, 1], rows[:, 2], failed, self._errors, self._cpu[1] - self._cpu[0])


async def _together(works: Any) -> None:
    async with asyncio.TaskGroup() as group:
        for work in works:
            group.create_task(work)
