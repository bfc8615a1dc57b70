"""`Door`: who a request is from, whether that may ask for it, and how often.

Every path is closed to those without a key but the few that are named here, so that no route can forget to ask. A
route gets the desk of its caller (`request.state.desk`), in which there is only what is the caller's.
"""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from http.cookies import CookieError, SimpleCookie
from typing import Any, Final

from fastapi import Request
from fastapi.responses import Response
from limits import RateLimitItemPerMinute
from limits.storage import MemoryStorage
from limits.strategies import SlidingWindowCounterRateLimiter
from sqlalchemy.exc import DataError, SQLAlchemyError
from starlette.datastructures import Headers, MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from deepfake_gateway.api.guard import SAFE_METHODS
from deepfake_gateway.api.metrics import RequestMetrics
from deepfake_gateway.intake.problems import Problem
from deepfake_gateway.intake.submission import Desk
from deepfake_gateway.settings import Settings
from deepfake_gateway.store.keys import SESSION_COOKIE, Key, Keys
from deepfake_gateway.store.threads import in_store

SIGN_IN: Final = "/sign-in"
SLOW_START_S: Final = 30.0
"""Time that a body may take, and longer by what has come of it at `LEAST_BYTES_PER_S`."""
LEAST_BYTES_PER_S: Final = 4096
_PUBLIC: Final = frozenset(
    {
        SIGN_IN, "/docs", "/openapi.json", "/health", "/api/v1/health", "/v1/health/live", "/v1/health/ready",
    }
)  # fmt: skip
_METRICS: Final = frozenset({"/metrics"})
_TAKES_FILES: Final = frozenset(
    {"/", "/v1/analyses", "/v1/batches", "/predict/image", "/predict/video", "/api/v1/analyze-video"}
)
_KEYS: Final = {
    "bearer": {"type": "http", "scheme": "bearer", "description": "A key of `deepfake gateway keys create`."},
    "apiKey": {"type": "apiKey", "in": "header", "name": "X-Api-Key", "description": "The same key."},
}
MAX_BODY_BYTES: Final = 2**20
"""Largest body of a request to any other path; it is held in memory."""


class Door:
    """Lets requests in by key, counts them, and says what is left."""

    def __init__(
        self,
        app: ASGIApp,
        *,
        desk: Desk,
        keys: Keys,
        settings: Settings,
        metrics: RequestMetrics,
        on_refusal: Callable[[Request, Problem], Response],
    ) -> None:
        self._app, self._desk, self._keys, self._metrics = app, desk, keys, metrics
        self._answer = on_refusal
        self._required = False
        self._is_local = settings.is_local
        self._rate = RateLimitItemPerMinute(settings.requests_per_minute) if settings.requests_per_minute else None
        self._limiter = SlidingWindowCounterRateLimiter(MemoryStorage())
        self._uploads = _Uploads(settings.uploads_at_once, settings.uploads_in_all)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass a request on, or refuse it."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        headers = Headers(scope=scope)
        left: dict[str, str] = {}

        async def send_counted(message: Message) -> None:
            if message["type"] == "http.response.start":
                MutableHeaders(scope=message).update(left)
            await send(message)

        upload = None
        try:
            key = await self._caller(scope, headers)
            caller = key.id if key else (scope.get("client") or ("",))[0]
            is_counted = key is not None or not self._is_local
            if is_counted:
                left.update(self._counted(scope["path"], caller))
            bounded = caller if is_counted else None
            scope.setdefault("state", {}).update(
                key=key, desk=self._desk.of(key), on_its_way=partial(self._uploads.one, bounded)
            )
            if scope["method"] not in SAFE_METHODS:
                most = None if scope["path"] in _TAKES_FILES else MAX_BODY_BYTES
                upload = _Upload(self._uploads, bounded, receive, self._metrics, most)
        except (Problem, SQLAlchemyError) as exc:
            problem = exc if isinstance(exc, Problem) else not_stored(exc)
            self._metrics.refused(problem)
            await self._answer(Request(scope), problem)(scope, receive, send)
            return
        try:
            await self._app(scope, receive if upload is None else upload.receive, send_counted)
        finally:
            if upload is not None:
                upload.end()

    async def _caller(self, scope: Scope, headers: Headers) -> Key | None:
        """Return whose request it is, None on an open service; Problem 401 or 403 where it is nobody's that may."""
        path, method = scope["path"], scope["method"]
        if path in _PUBLIC or path.startswith("/static/"):
            return None
        self._required = self._required or await in_store(self._keys.are_required)
        if not self._required:
            return None
        token = _cookie(headers)
        if text := _text_of(headers):
            key = await in_store(self._keys.of_text, text)
        else:
            key = None if token is None else await in_store(self._keys.of_session, token)
        if key is None:
            detail = (
                "the key is not valid: it is mistyped, expired or revoked; ask whoever runs this service for another"
                if text
                else "this service wants a key; send it as `Authorization: Bearer KEY`, or sign in at /sign-in"
            )
            raise Problem(401, detail, {"WWW-Authenticate": "Bearer"})
        needed = (
            "metrics" if path in _METRICS else "read" if method in SAFE_METHODS or path == "/sign-out" else "analyze"
        )
        if not key.may(needed):
            raise Problem(403, f"this key may not do that: it has no scope `{needed}`; use one that has")
        # A browser sends the cookie whichever page makes it; `Guard` has refused every other origin that is named.
        if not text and method not in SAFE_METHODS and not _from_own_page(headers):
            raise Problem(403, "a change with a session must come from this service's own page; send a key instead")
        return key

    def _counted(self, path: str, caller: str) -> dict[str, str]:
        """Count a request; returns headers that say how many are left. Problem 429 where none was."""
        if self._rate is None or path.startswith("/static/"):
            return {}
        allowed = self._limiter.hit(self._rate, caller)
        stats = self._limiter.get_window_stats(self._rate, caller)
        reset_s = max(1, round(stats.reset_time - time.time()))
        left = {
            "RateLimit-Limit": str(self._rate.amount),
            "RateLimit-Remaining": str(max(0, stats.remaining)),
            "RateLimit-Reset": str(reset_s),
        }
        if not allowed:
            detail = f"more than {self._rate.amount} requests came within a minute; wait for {reset_s} s"
            raise Problem(429, detail, {**left, "Retry-After": str(reset_s)}, reason="requests_per_minute")
        return left


def describe_keys(document: dict[str, Any]) -> None:
    """Say in an OpenAPI document how a key is sent: to every path but the public ones, where there are keys."""
    document["components"]["securitySchemes"] = _KEYS
    document["security"] = [*({name: []} for name in _KEYS), {}]
    for path in _PUBLIC & document["paths"].keys():
        for operation in document["paths"][path].values():
            operation["security"] = []


class _Uploads:
    """Bodies that are on their way: by caller, and all."""

    def __init__(self, at_once: int, in_all: int) -> None:
        self._at_once, self._in_all = at_once, in_all
        self._by_caller: Counter[str | None] = Counter()

    def begin(self, caller: str | None) -> None:
        """Count a body, of a caller where its own are bounded; Problem 429 or 503 where too many are on their way."""
        if caller is not None and self._by_caller[caller] >= self._at_once:
            raise Problem(
                429, f"{self._at_once} uploads are on their way, as many as may; send the next when one is there",
                {"Retry-After": "2"}, reason="uploads_at_once",
            )  # fmt: skip
        if self._by_caller.total() >= self._in_all:
            raise Problem(
                503, f"{self._in_all} uploads are on their way, as many as this service takes; try again in a moment",
                {"Retry-After": "2"}, reason="uploads_in_all",
            )  # fmt: skip
        self._by_caller[caller] += 1

    @contextmanager
    def one(self, caller: str | None) -> Iterator[None]:
        """Count a file that is fetched for a caller, for as long as it comes; Problem as `begin`."""
        self.begin(caller)
        try:
            yield
        finally:
            self.end(caller)

    def end(self, caller: str | None) -> None:
        """Count a body as there."""
        self._by_caller[caller] -= 1
        if not self._by_caller[caller]:
            del self._by_caller[caller]


class _Upload:
    """A body that is on its way: counted until it is there, and given up where it is too slow or too large."""

    def __init__(
        self, uploads: _Uploads, caller: str | None, receive: Receive, metrics: RequestMetrics, most: int | None
    ) -> None:
        uploads.begin(caller)
        self._metrics, self._most, self._num_bytes = metrics, most, 0
        self._uploads, self._caller, self._receive, self._ended = uploads, caller, receive, False
        self._give_up_at = time.monotonic() + SLOW_START_S

    async def receive(self) -> Message:
        """Return the next piece; Problem 408 where it does not come in time, 413 where it has more than may be."""
        if self._ended:
            return await self._receive()
        try:
            async with asyncio.timeout(self._give_up_at - time.monotonic()):
                message = await self._receive()
        except TimeoutError:
            self.end()
            raise Problem(
                408, f"the upload comes slower than {LEAST_BYTES_PER_S >> 10} KiB a second; send it again over a "
                "faster connection, or a smaller file", {"Connection": "close"},
            ) from None  # fmt: skip
        num_bytes = len(message.get("body", b""))
        self._metrics.received(num_bytes)
        self._num_bytes += num_bytes
        if self._most is not None and self._num_bytes > self._most:
            self.end()
            raise Problem(413, f"the body has more than {self._most} bytes, which this address does not take")
        self._give_up_at += num_bytes / LEAST_BYTES_PER_S
        if not message.get("more_body", False):
            self.end()
        return message

    def end(self) -> None:
        """Count it as there, once."""
        if not self._ended:
            self._ended = True
            self._uploads.end(self._caller)


def _text_of(headers: Headers) -> str:
    kind, _, value = headers.get("authorization", "").partition(" ")
    return value.strip() if kind.lower() == "bearer" else headers.get("x-api-key", "").strip()


def _cookie(headers: Headers) -> str | None:
    try:
        found = SimpleCookie(headers.get("cookie", "")).get(SESSION_COOKIE)
    except CookieError:
        return None
    return None if found is None else found.value


def _from_own_page(headers: Headers) -> bool:
    return headers.get("origin", "null") != "null" or headers.get("sec-fetch-site") == "same-origin"


def not_stored(error: SQLAlchemyError) -> Problem:
    """Return the refusal of what the database does not take, or of anything while it gives no answer."""
    if isinstance(error, DataError):
        return Problem(422, "the request has a text or a number that cannot be stored or looked up; correct it")
    detail = f"the database gives no answer ({type(error).__name__}); try again later"
    return Problem(503, detail, {"Retry-After": "5"}, reason="database")
