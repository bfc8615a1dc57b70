"""`server_of`: the web server; it closes connections that ask for nothing, so that nobody keeps all its places.

uvicorn bounds how long a connection may be silent after an answer, and not how long before the first request, or in
the middle of its headers.
"""

from __future__ import annotations

import asyncio
import json
import resource
from typing import Any, Final

import h11
import uvicorn
from fastapi import FastAPI
from uvicorn.protocols.http.h11_impl import H11Protocol

from deepfake_gateway.intake.problems import PROBLEM_TYPE, Problem

ASKED_WITHIN_S: Final = 15.0
"""A connection on which no request came within this time, up to twice of it, is closed."""
MAX_CONNECTIONS: Final = 2000
"""Open at once; more are closed at once."""
_OTHER_FILES: Final = 512
"""Open files that are no connections: uploads, the database, processes."""


class PatientProtocol(H11Protocol):
    """HTTP on one connection, which is closed where no request comes, or where there are too many."""

    _judged: tuple[bool, Any] = (False, None)
    _timer: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """See `asyncio.Protocol.connection_made`."""
        super().connection_made(transport)
        if len(self.connections) > MAX_CONNECTIONS:
            transport.close()
        else:
            self._look_again()

    def connection_lost(self, exc: Exception | None) -> None:
        """See `asyncio.Protocol.connection_lost`."""
        if self._timer is not None:
            self._timer.cancel()
        super().connection_lost(exc)

    def send_400_response(self, msg: str) -> None:
        """Answer what cannot be read as HTTP as every other refusal; uvicorn would send `msg`, a plain text."""
        detail = "the request cannot be read as HTTP/1.1, or its headers are too long; check the address and headers"
        body = json.dumps(Problem(400, detail).document()).encode()
        headers = {"content-type": PROBLEM_TYPE, "content-length": str(len(body)), "connection": "close"}
        start = h11.Response(status_code=400, headers=list(headers.items()), reason="Bad Request")
        for event in (start, h11.Data(data=body), h11.EndOfMessage()):
            self.transport.write(self.conn.send(event) or b"")
        self.transport.close()

    def _look_again(self) -> None:
        self._timer = self.loop.call_later(ASKED_WITHIN_S, self._judge)

    def _judge(self) -> None:
        """Close the connection where nothing is under way, and nothing was since the last time."""
        is_idle = self.cycle is None or self.cycle.response_complete
        if is_idle and self._judged == (True, self.cycle):
            self.transport.close()
            return
        self._judged = is_idle, self.cycle
        self._look_again()


def server_of(app: FastAPI) -> uvicorn.Server:
    """Return a web server of an application; this process may have as many files open as its connections need."""
    _allow_connections()
    return uvicorn.Server(
        uvicorn.Config(
            app, http=PatientProtocol, log_config=None, access_log=False, server_header=False,
            timeout_graceful_shutdown=2, timeout_keep_alive=20,
        )
    )  # fmt: skip


def _allow_connections() -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = MAX_CONNECTIONS + _OTHER_FILES
    if soft != resource.RLIM_INFINITY and soft < wanted:
        resource.setrlimit(
            resource.RLIMIT_NOFILE, (wanted if hard == resource.RLIM_INFINITY else min(wanted, hard), hard)
        )
