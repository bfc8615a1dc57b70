"""Errors as HTTP answers: one clear sentence as problem+json (RFC 9457), and the status that belongs to it."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Mapping
from http import HTTPStatus

from starlette.requests import Request
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from deepfake_client.explain.wire import PROBLEM_TYPE
from deepfake_explain.service.intake import TooManyPixelsError
from deepfake_preprocess.errors import (
    DeepfakeError,
    ExplainDisagreementError,
    InputError,
    MediaOpenError,
    ServerError,
    ServerTimeoutError,
)

DRAIN_BYTES = 64 * 2**20
DRAIN_S = 2.0
"""How much of a refused upload is thrown away, and for how long: most clients read the answer only after they have
sent everything, and see a broken connection instead if nobody listens."""


class RefusedError(DeepfakeError):
    """A request that is refused for what it is and not for its picture.

    Attributes:
        status: of the answer.
        headers: further ones of it.
    """

    def __init__(self, status: HTTPStatus, detail: str, headers: Mapping[str, str] | None = None) -> None:
        super().__init__(detail)
        self.status = status
        self.headers = dict(headers or {})


def status_of(error: DeepfakeError) -> HTTPStatus:
    """Return the status that an error is answered with."""
    if isinstance(error, RefusedError):
        return error.status
    for kind, status in (
        (TooManyPixelsError, HTTPStatus.REQUEST_ENTITY_TOO_LARGE),
        (MediaOpenError, HTTPStatus.UNSUPPORTED_MEDIA_TYPE),
        (InputError, HTTPStatus.UNPROCESSABLE_ENTITY),
        (ExplainDisagreementError, HTTPStatus.CONFLICT),
        (ServerTimeoutError, HTTPStatus.GATEWAY_TIMEOUT),
        (ServerError, HTTPStatus.BAD_GATEWAY),
    ):
        if isinstance(error, kind):
            return status
    return HTTPStatus.INTERNAL_SERVER_ERROR


class Problem(Response):
    """An error as an answer.

    Args:
        status: of the answer.
        detail: one sentence.
        headers: further ones.
        drain: throw away what is left of the upload, up to a bound, before the answer ends.
    """

    def __init__(
        self, status: HTTPStatus, detail: str, headers: Mapping[str, str] | None = None, *, drain: bool = False
    ) -> None:
        body = {"type": "about:blank", "title": status.phrase, "status": int(status), "detail": detail}
        super().__init__(
            json.dumps(body, ensure_ascii=False), int(status), headers=dict(headers or {}), media_type=PROBLEM_TYPE
        )
        self._drain = drain

    @classmethod
    def of(cls, error: DeepfakeError, *, drain: bool) -> Problem:
        """Return the answer for an error."""
        headers = error.headers if isinstance(error, RefusedError) else None
        return cls(status_of(error), str(error), headers, drain=drain)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Send the answer at once, then listen on for a while."""
        await send({"type": "http.response.start", "status": self.status_code, "headers": self.raw_headers})
        await send({"type": "http.response.body", "body": self.body, "more_body": True})
        # Who asked whether to go on (curl does, for large bodies) sends nothing after this answer.
        if self._drain and "expect" not in Request(scope).headers:
            await _drain(receive)
        await send({"type": "http.response.body", "body": b"", "more_body": False})


async def _drain(receive: Receive) -> None:
    seen = 0
    try:
        async with asyncio.timeout(DRAIN_S):
            while seen < DRAIN_BYTES:
                message = await receive()
                if message["type"] != "http.request" or not message.get("more_body"):
                    return
                seen += len(message.get("body", b""))
    except TimeoutError:
        return
