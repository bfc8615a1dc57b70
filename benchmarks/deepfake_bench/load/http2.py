"""Unary gRPC calls by the barest means: HTTP/2 as far as they need it (RFC 9113), requests and answers as bytes.

`grpc.aio` takes 1.6 times the CPU time per call, which would be the server's where both share the cores. This knows
no server push, no priorities and no bound on streams, and reads of the headers no more than ``grpc-status``: the
server is told to keep no table of them (RFC 7541), and gRPC's own servers use no Huffman code.
"""

from __future__ import annotations

import asyncio
import re
import struct
from collections import deque
from collections.abc import Sequence
from ssl import SSLContext
from typing import Final, cast

import grpc

_PREFACE: Final = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
_DATA, _HEADERS, _RST_STREAM, _SETTINGS, _PING, _GOAWAY, _WINDOW_UPDATE = 0, 1, 3, 4, 6, 7, 8
_END_STREAM, _ACK, _END_HEADERS = 1, 1, 4
_HEADER = struct.Struct(">IBI")
"""Length (24 bits) and type, flags, stream."""
_TABLE_SIZE, _PUSH, _FIRST_WINDOW, _LARGEST_FRAME = 1, 2, 4, 5
"""Settings."""
_DEFAULT_WINDOW, _DEFAULT_FRAME, _LARGEST_WINDOW = 2**16 - 1, 2**14, 2**31 - 1
_GIVE_BACK_BYTES: Final = 2**24
_CANCEL: Final = 8
_STATUS: Final = re.compile(rb"grpc-status[\x01\x02](\d{1,2})")
_STATUS_NAMES: Final = {code.value[0]: code.name for code in grpc.StatusCode}


class CallFailedError(Exception):
    """A call failed; the message is the name of its gRPC status."""


class Http2Channel:
    """A connection to a server, made again where it ended; a context. Calls of one method share it.

    Args:
        host: name or address.
        port: TCP port.
        path: of the method.
        headers: sent with each call.
        tls: None for plain text.
    """

    def __init__(
        self,
        host: str,
        port: int,
        path: str,
        *,
        headers: Sequence[tuple[str, str]] = (),
        tls: SSLContext | None = None,
    ) -> None:
        self._where, self._tls = (host, port), tls
        if tls is not None:
            tls.set_alpn_protocols(["h2"])
        own = (("te", "trailers"), ("content-type", "application/grpc"))  # codespell:ignore te
        authority = f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
        # ":method: POST" and ":scheme" are entries of the static table, as are the names of the two after them.
        self._headers = (
            (b"\x83\x86" if tls is None else b"\x83\x87")
            + b"\x04" + _text(path) + b"\x01" + _text(authority)
            + b"".join(b"\x10" + _text(name) + _text(value) for name, value in (*own, *headers))
        )  # fmt: skip
        self._connection: _Connection | None = None
        self._connecting = asyncio.Lock()

    async def __aenter__(self) -> Http2Channel:
        return self

    async def __aexit__(self, *exc_info: object) -> None:
        if self._connection is not None:
            self._connection.close()

    async def call(self, message: bytes, timeout_s: float) -> bytes:
        """Send a message, as `framed` returned it, and return the answer's bytes. CallFailedError."""
        try:
            async with asyncio.timeout(timeout_s):
                connection = self._connection
                if connection is None or connection.ends:
                    connection = await self._connected()
                stream, answer = connection.start(self._headers, message)
                try:
                    return await answer
                finally:
                    connection.end(stream)
        except TimeoutError:
            raise CallFailedError("DEADLINE_EXCEEDED") from None
        except OSError as exc:
            raise CallFailedError("UNAVAILABLE") from exc

    async def _connected(self) -> _Connection:
        async with self._connecting:
            if self._connection is None or self._connection.ends:
                loop = asyncio.get_running_loop()
                _, connection = await loop.create_connection(_Connection, *self._where, ssl=self._tls)
                self._connection = connection
            return self._connection


def framed(message: bytes) -> bytes:
    """Return a message with what gRPC puts before it: that it is not compressed, and its length."""
    return b"\0" + struct.pack(">I", len(message)) + message


class _Stream:
    __slots__ = ("answer", "body", "message", "sent", "window")

    def __init__(self, message: bytes, window: int) -> None:
        self.answer: asyncio.Future[bytes] = asyncio.get_running_loop().create_future()
        self.message, self.sent, self.window, self.body = message, 0, window, bytearray()

    def fail(self, status: str) -> None:
        if not self.answer.done():
            self.answer.set_exception(CallFailedError(status))


class _Connection(asyncio.Protocol):
    """One connection. `ends` says that it takes no more calls."""

    def __init__(self) -> None:
        self.ends = False
        self._received = bytearray()
        self._streams: dict[int, _Stream] = {}
        self._blocked: deque[int] = deque()
        self._window, self._first_window, self._largest_frame = _DEFAULT_WINDOW, _DEFAULT_WINDOW, _DEFAULT_FRAME
        self._number, self._taken = -1, 0

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)
        settings = struct.pack(">HIHIHI", _TABLE_SIZE, 0, _PUSH, 0, _FIRST_WINDOW, _LARGEST_WINDOW)
        more = struct.pack(">I", _LARGEST_WINDOW - _DEFAULT_WINDOW)
        self._transport.write(_PREFACE + _frame(_SETTINGS, 0, 0, settings) + _frame(_WINDOW_UPDATE, 0, 0, more))

    def connection_lost(self, exc: Exception | None) -> None:
        self.ends = True
        for stream in self._streams.values():
            stream.fail("UNAVAILABLE")

    def close(self) -> None:
        self._transport.close()

    def start(self, headers: bytes, message: bytes) -> tuple[int, asyncio.Future[bytes]]:
        """Send a request; return its number and its answer."""
        self._number += 2
        self._streams[self._number] = stream = _Stream(message, self._first_window)
        self._transport.write(_frame(_HEADERS, _END_HEADERS, self._number, headers))
        self._send(self._number, stream)
        return self._number, stream.answer

    def end(self, number: int) -> None:
        """Tell the server that nobody waits for an answer any more, unless it is there."""
        if self._streams.pop(number, None) is not None and not self._transport.is_closing():
            self._transport.write(_frame(_RST_STREAM, 0, number, struct.pack(">I", _CANCEL)))

    def _send(self, number: int, stream: _Stream) -> None:
        """Send as much of a request as the server's windows allow."""
        message, total = memoryview(stream.message), len(stream.message)
        pieces: list[bytes | memoryview] = []
        while stream.sent < total:
            size = min(self._largest_frame, total - stream.sent, self._window, stream.window)
            if size <= 0:
                self._blocked.append(number)
                break
            end = stream.sent + size
            pieces += [
                _HEADER.pack(size << 8 | _DATA, _END_STREAM * (end == total), number),
                message[stream.sent : end],
            ]
            stream.sent = end
            self._window -= size
            stream.window -= size
        if pieces:
            self._transport.writelines(pieces)

    def _send_blocked(self) -> None:
        for _ in range(len(self._blocked)):
            number = self._blocked.popleft()
            if (stream := self._streams.get(number)) is not None:
                self._send(number, stream)

    def data_received(self, data: bytes) -> None:
        self._received += data
        received, place = bytes(self._received), 0
        while len(received) - place >= _HEADER.size:
            length_and_kind, flags, number = _HEADER.unpack_from(received, place)
            end = place + _HEADER.size + (length_and_kind >> 8)
            if end > len(received):
                break
            self._take(length_and_kind & 255, flags, number, received[place + _HEADER.size : end])
            place = end
        del self._received[:place]

    def _take(self, kind: int, flags: int, number: int, payload: bytes) -> None:
        if kind == _DATA:
            if (stream := self._streams.get(number)) is not None:
                stream.body += payload
            self._taken += len(payload)
            if self._taken >= _GIVE_BACK_BYTES:
                self._transport.write(_frame(_WINDOW_UPDATE, 0, 0, struct.pack(">I", self._taken)))
                self._taken = 0
        elif kind == _HEADERS and flags & _END_STREAM:
            if (stream := self._streams.pop(number, None)) is not None:
                _finish(stream, payload)
        elif kind == _RST_STREAM:
            if (stream := self._streams.pop(number, None)) is not None:
                stream.fail("CANCELLED")
        elif kind == _WINDOW_UPDATE:
            (more,) = struct.unpack(">I", payload)
            if number == 0:
                self._window += more
            elif (stream := self._streams.get(number)) is not None:
                stream.window += more
            self._send_blocked()
        elif kind == _SETTINGS and not flags & _ACK:
            self._set(payload)
        elif kind == _PING and not flags & _ACK:
            self._transport.write(_frame(_PING, _ACK, 0, payload))
        elif kind == _GOAWAY:
            self.ends = True

    def _set(self, settings: bytes) -> None:
        for name, value in struct.iter_unpack(">HI", settings):
            if name == _FIRST_WINDOW:
                for stream in self._streams.values():
                    stream.window += value - self._first_window
                self._first_window = value
            elif name == _LARGEST_FRAME:
                self._largest_frame = value
        self._transport.write(_frame(_SETTINGS, _ACK, 0, b""))
        self._send_blocked()


def _finish(stream: _Stream, trailers: bytes) -> None:
    """Resolve a call by its trailers and the message that came before them."""
    body, status = stream.body, 2  # UNKNOWN
    if found := _STATUS.search(trailers):
        status = int(found[1])
    elif len(body) >= 5 and len(body) == 5 + int.from_bytes(body[1:5]):
        status = 0  # a proxy writes its headers otherwise; a call that fails has no message
    if status:
        stream.fail(_STATUS_NAMES.get(status, "UNKNOWN"))
    elif not stream.answer.done():
        stream.answer.set_result(bytes(body[5:]))


def _frame(kind: int, flags: int, number: int, payload: bytes) -> bytes:
    return _HEADER.pack(len(payload) << 8 | kind, flags, number) + payload


def _text(value: str) -> bytes:
    """Return a string literal: its length (7 bits, then as many as it takes) and its bytes."""
    data, left = value.encode("ascii"), len(value) - 127
    if left < 0:
        return bytes([len(data)]) + data
    length = bytearray([127])
    while left >= 128:
        length.append(left % 128 + 128)
        left //= 128
    return bytes([*length, left]) + data
