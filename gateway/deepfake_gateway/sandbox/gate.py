"""`Gate`: the way out for a sandbox that reads a live source and has no network.

FFmpeg opens addresses by itself, and what it reads names further ones: redirects, playlists, segments. In a sandbox
it finds one socket, which this side answers as an HTTP proxy (and for a camera, as the camera): each connection is
looked up, checked and made here. What comes over it is not looked into, but for one thing: a camera that sends
elsewhere is cut off, for it is not asked through a proxy.
"""

from __future__ import annotations

import asyncio
import os
import re
import socket
from collections.abc import Iterator
from contextlib import suppress
from typing import Final, Self
from urllib.parse import SplitResult, urlsplit, urlunsplit

from deepfake_gateway.addresses import Addresses, AddressRefusedError, checked_url

CAMERA_PORT: Final = 554
CONNECT_S: Final = 10.0
MAX_HEAD: Final = 2**15
MAX_CONNECTIONS: Final = 16
"""Open at once; a playlist with its parts needs three."""
_PIECE: Final = 2**16
_REDIRECT: Final = re.compile(rb"RTSP/\S*\s+3")
_FAILED: Final = b"HTTP/1.1 502 Bad Gateway\r\nContent-Length: 0\r\nConnection: close\r\n\r\n"
_CONNECTED: Final = b"HTTP/1.1 200 Connection established\r\n\r\n"


class _CannotOpenError(Exception):
    """A connection that is not there; says why in one sentence."""


class Gate:
    """Answers at a sandbox's door for as long as it is open.

    `problem` is why the latest connection could not be made, None where it was.
    """

    def __init__(self, door: socket.socket, addresses: Addresses, source: str) -> None:
        self.problem: str | None = None
        self._door, self._addresses, self._source = door, addresses, urlsplit(source)
        self._port = door.getsockname()[1]
        self._server: asyncio.Server | None = None
        self._open: set[asyncio.Task[None]] = set()

    @property
    def proxy(self) -> str:
        """Address of the proxy, as the sandbox sees it."""
        return f"http://127.0.0.1:{self._port}"

    @property
    def url(self) -> str:
        """Address of the source, as the sandbox is given it."""
        if self._source.scheme != "rtsp":
            return urlunsplit(self._source)
        user, at, _ = self._source.netloc.rpartition("@")
        return urlunsplit(self._source._replace(netloc=f"{user}{at}127.0.0.1:{self._port}"))

    async def __aenter__(self) -> Self:
        self._server = await asyncio.start_server(self._take, sock=self._door, limit=MAX_HEAD)
        return self

    async def __aexit__(self, *_: object) -> None:
        assert self._server is not None
        self._server.close()
        await asyncio.sleep(0)  # what was taken in this moment begins, so that it is closed
        for task in list(self._open):
            task.cancel()
        await asyncio.gather(*self._open, return_exceptions=True)

    async def _take(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._open.add(task)
        try:
            if len(self._open) <= MAX_CONNECTIONS:
                with suppress(OSError, ValueError, asyncio.IncompleteReadError, asyncio.CancelledError):
                    await self._answer(reader, writer)
        finally:
            try:
                await _close(writer)
            finally:
                self._open.discard(task)

    async def _answer(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        async with asyncio.timeout(CONNECT_S):
            head = await reader.readuntil(b"\r\n\r\n")
        method, target, protocol = head.split(b"\r\n", 1)[0].decode("latin-1").split(" ")
        is_camera = protocol.startswith("RTSP/")
        first = head
        try:
            if is_camera:
                place = _place(self._source, CAMERA_PORT)
            elif method == "CONNECT":
                place, first = _place(checked_url(f"https://{target}", ("https",)), 443), b""
            else:
                parts = checked_url(target, ("http",))
                place, first = _place(parts, 80), _for_origin(head, method, parts)
            out, into = await self._connect(*place)
        except (_CannotOpenError, AddressRefusedError) as exc:
            self.problem = str(exc)
            if not is_camera:
                writer.write(_FAILED)
                await writer.drain()
            return
        self.problem = None
        if method == "CONNECT":
            writer.write(_CONNECTED)
        try:
            into.write(first)
            await _first_over(_copy(reader, into), self._copy_back(out, writer, is_camera=is_camera))
        finally:
            await _close(into)

    async def _connect(self, host: str, port: int) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        try:
            async with asyncio.timeout(CONNECT_S):
                return await asyncio.open_connection(await self._addresses.resolve(host, port), port)
        except AddressRefusedError:
            raise
        except TimeoutError:
            why = f"nothing answers at {host}:{port} within {CONNECT_S:g} s; check the address, and that it is on"
        except OSError as exc:
            reason = os.strerror(exc.errno).lower() if exc.errno else str(exc)
            why = f"nothing answers at {host}:{port} ({reason}); check the address, and that it is on"
        raise _CannotOpenError(why)

    async def _copy_back(self, out: asyncio.StreamReader, writer: asyncio.StreamWriter, *, is_camera: bool) -> None:
        seen = b""
        while piece := await out.read(_PIECE):
            if is_camera and _REDIRECT.search(seen := seen[-MAX_HEAD:] + piece if len(seen) < MAX_HEAD else piece):
                self.problem = "the camera sends to another address; name that one"
                return
            writer.write(piece)
            await writer.drain()


async def _copy(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    while piece := await reader.read(_PIECE):
        writer.write(piece)
        await writer.drain()


async def _close(writer: asyncio.StreamWriter) -> None:
    """Close a connection once all is sent, or at once where nobody takes it."""
    try:
        writer.close()
        async with asyncio.timeout(CONNECT_S):
            await writer.wait_closed()
    except (OSError, TimeoutError):
        writer.transport.abort()
    except asyncio.CancelledError:
        writer.transport.abort()
        raise


async def _first_over(*both: object) -> None:
    tasks = [asyncio.ensure_future(one) for one in both]  # type: ignore[call-overload]
    try:
        await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


def _place(parts: SplitResult, default_port: int) -> tuple[str, int]:
    if not parts.hostname:
        raise AddressRefusedError("the address names no host; check it")
    return parts.hostname, parts.port or default_port


def _for_origin(head: bytes, method: str, parts: SplitResult) -> bytes:
    """Return the head of a request to a proxy as one to the server itself, which closes the connection after it."""
    target = urlunsplit(("", "", parts.path or "/", parts.query, ""))
    return b"\r\n".join(
        [f"{method} {target} HTTP/1.1".encode("latin-1"), *_kept(head), b"Connection: close", b"", b""]
    )


def _kept(head: bytes) -> Iterator[bytes]:
    for line in head.split(b"\r\n")[1:]:
        if line and not line.lower().startswith((b"connection:", b"proxy-")):
            yield line
