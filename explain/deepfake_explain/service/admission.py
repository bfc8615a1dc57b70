"""Lets a bounded number of requests in, each with a bound in bytes and a deadline, and refuses the others.

In front of FastAPI's reading of the form, or an upload would be read before it could be refused. What is refused, for
whatever reason, is answered by one sentence as problem+json (RFC 9457).
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from dataclasses import dataclass
from functools import partial
from http import HTTPStatus
from typing import Any, Final, TypeAlias

from fastapi import Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from fastapi.routing import APIRoute
from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram
from starlette.exceptions import HTTPException
from starlette.types import Message

from deepfake_client.explain.wire import PROBLEM_TYPE, ExplainProblem
from deepfake_preprocess import errors

Handler: TypeAlias = Callable[[Request], Coroutine[Any, Any, Response]]

_STATUS_OF: Final = (
    (errors.MediaOpenError, 415),
    (errors.InputError, 422),
    (errors.ExplainDisagreementError, 409),
    (errors.ServerTimeoutError, 504),
    (errors.ServerError, 502),
    (errors.DeepfakeError, 500),
)
"""The first that an error is an instance of counts."""

REFUSALS: Final[dict[int | str, dict[str, Any]]] = {
    status: {
        "description": HTTPStatus(status).phrase,
        "content": {PROBLEM_TYPE: {"schema": ExplainProblem.model_json_schema()}},
    }
    for status in (400, 409, 413, 415, 422, 502, 503, 504)
}
"""How a request may be refused, for OpenAPI."""


@dataclass(frozen=True, slots=True)
class RequestLimits:
    """What the service takes on; all numbers are above 0."""

    max_requests: int = 32  # let in at a time, whether uploading, waiting or computing
    max_upload_bytes: int = 10 * 2**20  # of one request's body
    max_pixels: int = 2**25  # of one picture
    timeout_s: float = 30.0  # from the first byte to the answer


class Admission:
    """Keeps the limits of one app, and counts for Prometheus in `registry`."""

    def __init__(self, limits: RequestLimits) -> None:
        self.registry = CollectorRegistry()
        self._limits = limits
        self._places = asyncio.Semaphore(limits.max_requests)
        prefix, registry = "deepfake_explain", self.registry
        self._answers = Counter(f"{prefix}_requests", "Answers to POST /v1/explain.", ["status"], registry=registry)
        self._seconds = Histogram(f"{prefix}_seconds", "Time to answer those that were let in.", registry=registry)
        self._inside = Gauge(f"{prefix}_requests_in_flight", "Requests that were let in.", registry=registry)

    @property
    def open(self) -> bool:
        """Whether another request would be let in."""
        return not self._places.locked()

    def route(self) -> type[APIRoute]:
        """Return the class of routes that are behind this admission."""
        answer = self._answer

        class Admitted(APIRoute):
            def get_route_handler(self) -> Handler:
                return partial(answer, super().get_route_handler())

        return Admitted

    async def _answer(self, handler: Handler, request: Request) -> Response:
        """Return what `handler` answers, or the problem that keeps it from answering."""
        limits = self._limits
        try:
            if self.open:
                async with self._places, asyncio.timeout(limits.timeout_s):
                    with self._inside.track_inprogress(), self._seconds.time():
                        response = await handler(_bounded(request, limits.max_upload_bytes))
            else:
                busy = f"the explain service is busy with {limits.max_requests} requests, as many as it takes"
                response = problem_of(HTTPException(503, f"{busy}; try again later", {"Retry-After": "1"}))
        except (HTTPException, RequestValidationError, errors.DeepfakeError) as exc:
            response = problem_of(exc)
        except TimeoutError:
            late = f"there was no explanation within {limits.timeout_s:g} s, upload included; try again later"
            response = problem_of(HTTPException(504, late))
        self._answers.labels(str(response.status_code)).inc()
        return response


def _bounded(request: Request, limit: int) -> Request:
    """Return a form's request that is refused as soon as more than `limit` bytes of its body have come."""
    kind = request.headers.get("content-type", "without a content type")
    if not kind.lower().startswith("multipart/form-data"):
        raise HTTPException(415, f"the request is {kind}; send multipart/form-data with a 'crop' or a 'frame'")
    received = 0

    async def receive() -> Message:
        nonlocal received
        message = await request.receive()
        received += len(message.get("body", b""))
        if received > limit:
            raise HTTPException(413, f"the upload has more than {limit} bytes; send the crop, or a smaller picture")
        return message

    return Request(request.scope, receive)


def problem_of(error: Exception) -> JSONResponse:
    """Return the answer that an error of this project, of FastAPI or of Starlette stands for."""
    if isinstance(error, RequestValidationError):
        error = HTTPException(422, "; ".join(_sentence(item) for item in error.errors()))
    elif not isinstance(error, HTTPException):
        error = HTTPException(next(status for kind, status in _STATUS_OF if isinstance(error, kind)), str(error))
    status = error.status_code
    problem = ExplainProblem(title=HTTPStatus(status).phrase, status=status, detail=error.detail)
    return JSONResponse(problem.model_dump(), status, error.headers, media_type=PROBLEM_TYPE)


def _sentence(item: dict[str, Any]) -> str:
    """Return one finding of pydantic's as a part of a sentence."""
    field = ".".join(str(part) for part in item["loc"] if part != "body")
    message = str(item["msg"]).removeprefix("Value error, ")
    return f"`{field}` is {str(item['input'])[:80]!r}: {message}" if field else message
