"""What every request passes: who may ask a service without a login, and headers that keep a page harmless."""

from __future__ import annotations

import logging
import time
from collections.abc import Awaitable, Callable, Collection
from typing import Final
from urllib.parse import parse_qsl, unquote_to_bytes, urlsplit

from fastapi import Request
from fastapi.responses import Response
from starlette.datastructures import Headers, MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from deepfake_client.transport.request_id import REQUEST_ID
from deepfake_gateway.api.metrics import RequestMetrics
from deepfake_gateway.intake.problems import Problem, first_repeated, problem_answer, repeated
from deepfake_gateway.logs import request_id_of
from deepfake_preprocess.support.text import visible

logger = logging.getLogger(__name__)

OnFault = Callable[[Request, Exception], Awaitable[Response]]
"""Returns the answer to a request that a fault of the service's own ended."""

POLICY: Final = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data:; media-src 'self'; "
    "connect-src 'self'; form-action 'self'; base-uri 'none'; frame-ancestors 'none'"
)
SAFE_METHODS: Final = frozenset({"GET", "HEAD", "OPTIONS"})
LOCAL_NAMES: Final = frozenset({"localhost", "127.0.0.1", "::1"})
_HEADERS: Final = {
    "Content-Security-Policy": POLICY,
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "same-origin",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
}


class Guard:
    """Refuses what other sites make a browser send, and adds headers and a request id to every answer.

    A service on this machine without a login is open to every page that this machine's browsers show: so a request
    must name this machine as its host (or it is a page whose name was bound to this address), and a change must come
    from our own pages, from one of an allowed origin without cookies, or from no page at all.
    """

    def __init__(
        self,
        app: ASGIApp,
        *,
        only_local_names: bool,
        allowed_origins: Collection[str],
        metrics: RequestMetrics,
        on_fault: OnFault,
    ) -> None:
        self._app, self._only_local_names, self._allowed_origins = app, only_local_names, allowed_origins
        self._metrics, self._on_fault = metrics, on_fault

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass a request on, or refuse it."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        headers = Headers(scope=scope)
        request_id = request_id_of(headers.get("x-request-id"))
        REQUEST_ID.set(request_id)
        began, is_answered = time.monotonic(), False

        async def send_guarded(message: Message) -> None:
            nonlocal is_answered
            if message["type"] == "http.response.start":
                is_answered = True
                self._metrics.answered(scope["method"], message["status"])
                sent = MutableHeaders(scope=message)
                for name, value in _HEADERS.items():
                    sent.setdefault(name, value)
                sent["X-Request-Id"] = request_id
                _log(scope, message["status"], time.monotonic() - began)
            await send(message)

        problem = (
            _no_text(scope)
            or _said_twice(scope)
            or self._problem(scope["method"], headers)
            or _compressed(scope["method"], headers)
        )
        if problem is not None:
            self._metrics.refused(problem)
            await problem_answer(problem)(scope, receive, send_guarded)
            return
        try:
            await self._app(scope, receive, send_guarded)
        except Exception as exc:
            if not is_answered:
                await (await self._on_fault(Request(scope), exc))(scope, receive, send_guarded)
            raise  # for the server's log

    def _problem(self, method: str, headers: Headers) -> Problem | None:
        host = headers.get("host", "")
        if self._only_local_names and _name_of(host) not in LOCAL_NAMES:
            return Problem(403, "this service answers only under 127.0.0.1 and localhost; ask it there")
        origin = headers.get("origin")
        if method in SAFE_METHODS or origin is None or urlsplit(origin).netloc == host:
            return None
        if origin not in self._allowed_origins:
            return Problem(
                403, "the request comes from a page of another site; send it from this service's own page, or have "
                "whoever runs the service add that site to `allowed_origins`",
            )  # fmt: skip
        if "cookie" in headers:
            return Problem(403, "the page of another site sends cookies; have it send a key, and no credentials")
        return None


def _no_text(scope: Scope) -> Problem | None:
    """Return the refusal of an address with a NUL, which no name has, and which not every database can look up."""
    if "\0" in scope["path"]:
        return Problem(404, "there is nothing at an address with a NUL (%00); /docs lists what there is")
    if b"\0" in unquote_to_bytes(scope["query_string"]):
        return Problem(422, "the query has a NUL (%00), which no name or option has; leave it out")
    return None


def _said_twice(scope: Scope) -> Problem | None:
    """Return the refusal of a query that has a name twice, of which one would be passed over without a word."""
    query = parse_qsl(scope["query_string"].decode("latin-1"), keep_blank_values=True)
    name = first_repeated(name for name, _ in query)
    return None if name is None else repeated("the query", name)


def _compressed(method: str, headers: Headers) -> Problem | None:
    """Return the refusal of a body that is compressed on the way: it would be taken for the file itself."""
    coding = headers.get("content-encoding", "").strip()
    if method in SAFE_METHODS or coding.lower() in ("", "identity"):
        return None
    detail = f"the body is compressed (Content-Encoding: {coding[:40]}); send it as it is"
    return Problem(415, detail, {"Accept-Encoding": "identity"})


def _log(scope: Scope, status: int, took_s: float) -> None:
    """Log a request without its query, which may have names of files in it."""
    method, path, key = scope["method"], scope["path"], scope.get("state", {}).get("key")
    facts = {"method": method, "path": path, "status": status, "took_s": round(took_s, 4)}
    logger.info("%s %s %d", method, visible(path), status, extra={**facts, "key": None if key is None else key.id})


def _name_of(host: str) -> str:
    try:
        return urlsplit(f"//{host}").hostname or ""
    except ValueError:
        return ""
