"""`build_app`: one web process, made of its parts."""

from __future__ import annotations

from collections.abc import AsyncIterator, MutableMapping
from contextlib import asynccontextmanager
from importlib import metadata
from typing import Any, Final
from urllib.parse import quote

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import RedirectResponse, Response
from sqlalchemy.exc import SQLAlchemyError
from starlette.exceptions import HTTPException
from starlette.routing import Match, Mount

from deepfake_client.transport.request_id import REQUEST_ID
from deepfake_gateway.api import (
    analyses,
    batches,
    compatibility,
    explanations,
    metrics,
    operations,
    results,
    watches,
    webhooks,
)
from deepfake_gateway.api.door import SIGN_IN, Door, describe_keys, not_stored
from deepfake_gateway.api.guard import Guard
from deepfake_gateway.api.heads import Heads
from deepfake_gateway.intake.problems import Problem, problem_answer
from deepfake_gateway.intake.submission import AskModels, Desk
from deepfake_gateway.jobs.queue import Queue
from deepfake_gateway.origins import admit
from deepfake_gateway.sandbox.process import Sandboxes
from deepfake_gateway.settings import Settings, wrong_value
from deepfake_gateway.store.bucket import media_of
from deepfake_gateway.store.keys import Keys
from deepfake_gateway.store.media import MediaAwayError
from deepfake_gateway.store.records import Store
from deepfake_gateway.web import pages

NOT_TRACED: Final = frozenset({"/health", "/api/v1/health", "/metrics"})

DESCRIPTION = """
Send a video or a picture, and get for each face in it whether it looks manipulated, how sure that is, and why not.

```
curl -F file=@clip.mp4 -H 'Prefer: wait=60' http://127.0.0.1:8080/v1/analyses
```
"""


class _Described(FastAPI):
    """An application whose OpenAPI document says how a key is sent."""

    def openapi(self) -> dict[str, Any]:
        """See `FastAPI.openapi`."""
        document = super().openapi()
        describe_keys(document)
        return document


def build_app(settings: Settings, store: Store, queue: Queue, ask_models: AskModels, sandboxes: Sandboxes) -> FastAPI:
    """Return the web application; it closes store, queue and sandboxes at its end."""

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        yield
        await sandboxes.close()
        queue.close()
        store.close()

    app = _Described(
        title="deepfake-serving verdict service",
        version=metadata.version("deepfake-serving"),
        description=DESCRIPTION,
        lifespan=lifespan,
        # The pages that FastAPI shows load their scripts from elsewhere; `web` has one of its own.
        docs_url=None,
        redoc_url=None,
        openapi_url="/openapi.json",
        redirect_slashes=False,  # a client that follows none would lose its body
        # Spans go where `set_up_traces` says; metrics and logs have ways of their own.
        telemetry={"metrics": False, "logs": False, "operation_spans": False, "exclude": _is_noise},
    )
    app.state.settings = settings
    counted = app.state.metrics = metrics.RequestMetrics()
    keys = app.state.keys = Keys(store.engine)
    # Of all tenants; a route takes the one of its caller, `request.state.desk`.
    desk = app.state.whole_desk = Desk(store, media_of(settings), queue, ask_models, sandboxes.run, settings)
    for part in (analyses, batches, results, explanations, operations, metrics, compatibility, webhooks, watches):
        app.include_router(part.router)
    pages.add_to(app)
    app.add_exception_handler(Problem, _on_problem)
    app.add_exception_handler(HTTPException, _on_http)
    app.add_exception_handler(RequestValidationError, _on_validation)
    app.add_exception_handler(SQLAlchemyError, _on_database)
    app.add_exception_handler(MediaAwayError, _on_media)
    app.add_middleware(Door, desk=desk, keys=keys, settings=settings, metrics=counted, on_refusal=_refusal)
    app.add_middleware(Heads)
    app.add_middleware(
        Guard,
        only_local_names=settings.is_local,
        allowed_origins=settings.allowed_origins,
        metrics=counted,
        on_fault=_on_fault,
    )
    if settings.allowed_origins:
        admit(app, settings.allowed_origins)
    return app


def _is_noise(scope: MutableMapping[str, Any]) -> bool:
    """Whether a request is one of those that come every few seconds, and is not traced."""
    path: str = scope["path"]
    return path in NOT_TRACED or path.startswith(("/static/", "/v1/health/"))


def _refusal(request: Request, problem: Problem) -> Response:
    """Answer what the door refuses; a person without a session is asked for a key, then shown what was asked for."""
    is_read = request.method == "GET" and "text/html" in request.headers.get("accept", "")
    if problem.status == 401 and (is_read or pages.wants_page(request)):
        asked = request.url.path + (f"?{request.url.query}" if request.url.query else "")
        where = asked if is_read else "/"
        return RedirectResponse(f"{SIGN_IN}?next={quote(where, safe='')}", status_code=303)
    return pages.problem_page(request, problem) if pages.wants_page(request) else problem_answer(problem)


async def _on_problem(request: Request, error: Exception) -> Response:
    assert isinstance(error, Problem)
    request.app.state.metrics.refused(error)
    return pages.problem_page(request, error) if pages.wants_page(request) else problem_answer(error)


async def _on_http(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    if isinstance(error.__cause__, Problem):  # of the body, which FastAPI reads itself
        return await _on_problem(request, error.__cause__)
    path = request.url.path
    advice = "leave out the slash at its end" if path.endswith("/") else "/docs lists what there is"
    detail = {
        404: f"there is nothing at {path[:100]}; {advice}",
        405: f"{path[:100]} does not take {request.method}; /docs lists what it takes",
        400: "the body cannot be read; send what /docs shows for it",
    }.get(error.status_code, str(error.detail))
    headers = dict(error.headers or {})
    if error.status_code == 405:
        headers["Allow"] = _allowed(request, headers.get("Allow", ""))
    return await _on_problem(request, Problem(error.status_code, detail, headers))


def _allowed(request: Request, known: str) -> str:
    """Return the methods that an address takes, for ``Allow``; the route that refused one knows its own alone."""
    routes = [route for route in request.app.routes if not isinstance(route, Mount)]
    methods = {
        method
        for method in ("GET", "POST", "PUT", "PATCH", "DELETE")
        if any(route.matches({**request.scope, "method": method})[0] is Match.FULL for route in routes)
    }
    methods |= set(known.replace(" ", "").split(",")) - {""}
    return ", ".join(sorted(methods | ({"HEAD"} if "GET" in methods else set())))


async def _on_validation(request: Request, error: Exception) -> Response:
    assert isinstance(error, RequestValidationError)
    first = error.errors()[0]
    name = ".".join(str(part) for part in first["loc"][1:]) or "the body"
    if isinstance(first.get("input"), bytes):  # for its type is another, nobody read it
        problem = Problem(415, "the body is not said to be JSON; send it with `Content-Type: application/json`")
    elif first["type"] == "json_invalid":
        problem = Problem(422, "the body is not JSON; send what /docs shows for it")
    else:
        problem = Problem(422, wrong_value(name, first))
    return await _on_problem(request, problem)


async def _on_database(request: Request, error: Exception) -> Response:
    assert isinstance(error, SQLAlchemyError)
    return await _on_problem(request, not_stored(error))


async def _on_fault(request: Request, error: Exception) -> Response:
    """Answer what a fault of this service's own ended; the server logs it with the same id."""
    detail = (
        f"the service failed ({type(error).__name__}); report it to whoever runs it, with the request id "
        f"{REQUEST_ID.get()}, which is in its log"
    )
    return await _on_problem(request, Problem(500, detail))


async def _on_media(request: Request, error: Exception) -> Response:
    return await _on_problem(request, Problem(503, str(error), {"Retry-After": "5"}, reason="media"))
