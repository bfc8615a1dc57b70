"""Scores for a sandbox that has no network: it asks its parent over a socket, and the parent asks the server.

A message is a line of JSON, and behind it as many bytes as its ``bytes`` says: crops one way, scores the other. What
the child says is checked before it is used; nothing of it is unpickled.
"""

from __future__ import annotations

import asyncio
import base64
import json
import pickle
import socket
from collections.abc import Awaitable, Callable
from contextlib import suppress
from contextvars import copy_context
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from deepfake_client.transport.protocol import Health, ServedModel, Transport
from deepfake_gateway.tracing import traced
from deepfake_preprocess import errors

MAX_REQUESTS: Final = 64
"""Requests of one sandbox under way at once; more wait in its socket."""
MAX_ANSWER: Final = 2**20
MAX_HEAD: Final = 2**16


class RelayTransport:
    """The child's end: a `Transport` to whatever server the parent has."""

    url = "the inference server"

    def __init__(self, end: socket.socket) -> None:
        self._end = end
        self._number = 0
        self._writer: asyncio.StreamWriter | None = None
        self._reading: asyncio.Task[None] | None = None
        self._waiting: dict[int, asyncio.Future[tuple[Any, bytes]]] = {}

    async def health(self) -> Health:
        """See `Transport.health`."""
        raise NotImplementedError("a sandbox looks after no server")

    async def list_models(self) -> list[str]:
        """See `Transport.list_models`."""
        names, _ = await self._ask("list_models")
        return [str(name) for name in names]

    async def describe(self, model: str) -> ServedModel:
        """See `Transport.describe`."""
        pickled, _ = await self._ask("describe", model=model)
        served: ServedModel = pickle.loads(base64.b64decode(pickled))  # of the parent, which is trusted
        return served

    async def infer(
        self, model: ServedModel, faces: NDArray[np.uint8], *, timeout_s: float | None = None
    ) -> NDArray[np.float32]:
        """See `Transport.infer`."""
        crops = np.ascontiguousarray(faces)
        _, scores = await self._ask("infer", crops.tobytes(), model=model.name, count=len(crops), timeout_s=timeout_s)
        return np.frombuffer(scores, np.float32)

    async def close(self) -> None:
        """See `Transport.close`."""
        if self._reading is not None:
            self._reading.cancel()
        if self._writer is not None:
            self._writer.close()

    async def _ask(self, method: str, payload: bytes = b"", **fields: Any) -> tuple[Any, bytes]:
        if self._writer is None:
            reader, self._writer = await asyncio.open_connection(sock=self._end, limit=MAX_HEAD)
            self._reading = asyncio.create_task(self._read(reader))
        self._number += 1
        number = self._number
        answer: asyncio.Future[tuple[Any, bytes]] = asyncio.get_running_loop().create_future()
        self._waiting[number] = answer
        try:
            _write(self._writer, {"id": number, "method": method, **fields}, payload)
            await self._writer.drain()
            return await answer
        except asyncio.CancelledError:
            _write(self._writer, {"id": number, "method": "cancel"})
            raise
        finally:
            del self._waiting[number]

    async def _read(self, reader: asyncio.StreamReader) -> None:
        while True:
            head, payload = await _message(reader, lambda: MAX_ANSWER)
            waiting = self._waiting.get(head["id"])
            if waiting is None or waiting.done():
                continue
            if "error" in head:
                waiting.set_exception(getattr(errors, head["error"])(head["detail"]))
            else:
                waiting.set_result((head["result"], payload))


class Relay:
    """The parent's end: answers one sandbox until its socket ends.

    The server is asked in `context`, that of who wants the task in hand: its requests have its name.
    """

    def __init__(self, end: socket.socket, transport: Transport) -> None:
        self._end, self._transport = end, transport
        self.context = copy_context()
        self._models: dict[str, ServedModel] = {}
        self._places = asyncio.Semaphore(MAX_REQUESTS)
        self._under_way: dict[int, asyncio.Task[None]] = {}

    async def run(self) -> None:
        """Answer requests; ends with the socket, or with a message that no sandbox of ours sends."""
        reader, writer = await asyncio.open_connection(sock=self._end, limit=MAX_HEAD)
        try:
            with suppress(asyncio.IncompleteReadError, ConnectionError, ValueError, KeyError, TypeError):
                while True:
                    await self._take(*await _message(reader, self._largest), writer)
        finally:
            for task in self._under_way.values():
                task.cancel()
            writer.close()

    def _largest(self) -> int:
        """Return how many bytes a request may have: as many as the largest batch of a model that was described."""
        return max((_crop_bytes(model) * model.max_batch_size for model in self._models.values()), default=0)

    async def _take(self, head: dict[str, Any], payload: bytes, writer: asyncio.StreamWriter) -> None:
        number = int(head["id"])
        if head["method"] == "cancel":
            if (task := self._under_way.get(number)) is not None:
                task.cancel()
            return
        answer: Callable[[], Awaitable[tuple[Any, bytes]]]
        if head["method"] == "infer":
            model, count = self._models[head["model"]], int(head["count"])
            crops = np.frombuffer(payload, np.uint8).reshape(
                count, model.spec.input_height_px, model.spec.input_width_px, 3
            )
            timeout_s = None if head["timeout_s"] is None else float(head["timeout_s"])

            async def answer() -> tuple[Any, bytes]:
                with traced("infer", {"deepfake.model": model.name, "deepfake.crops": count}):
                    scores = await self._transport.infer(model, crops, timeout_s=timeout_s)
                return None, np.ascontiguousarray(scores, np.float32).tobytes()
        elif head["method"] == "describe":

            async def answer() -> tuple[Any, bytes]:
                described = await self._transport.describe(str(head["model"]))
                self._models[described.name] = described
                return base64.b64encode(pickle.dumps(described)).decode("ascii"), b""
        else:

            async def answer() -> tuple[Any, bytes]:
                return await self._transport.list_models(), b""

        await self._places.acquire()
        task = asyncio.create_task(self._answer(number, answer, writer), context=self.context.copy())
        self._under_way[number] = task
        task.add_done_callback(lambda _: self._end_of(number))

    def _end_of(self, number: int) -> None:
        self._under_way.pop(number, None)
        self._places.release()

    async def _answer(
        self, number: int, answer: Callable[[], Awaitable[tuple[Any, bytes]]], writer: asyncio.StreamWriter
    ) -> None:
        try:
            result, payload = await answer()
        except errors.DeepfakeError as exc:
            _write(writer, {"id": number, "error": type(exc).__name__, "detail": str(exc)})
        else:
            _write(writer, {"id": number, "result": result}, payload)


def _crop_bytes(model: ServedModel) -> int:
    return 3 * model.spec.input_height_px * model.spec.input_width_px


def _write(writer: asyncio.StreamWriter, head: dict[str, Any], payload: bytes = b"") -> None:
    writer.write(json.dumps({**head, "bytes": len(payload)}).encode() + b"\n")
    if payload:
        writer.write(payload)


async def _message(reader: asyncio.StreamReader, largest: Callable[[], int]) -> tuple[dict[str, Any], bytes]:
    """Read one message; ValueError for anything else, and for one that is too large."""
    line = await reader.readline()
    if not line.endswith(b"\n"):
        raise asyncio.IncompleteReadError(line, None)
    head = json.loads(line)
    size = int(head["bytes"])
    if not 0 <= size <= largest():
        raise ValueError(f"a message of {size} bytes")
    return head, await reader.readexactly(size)
