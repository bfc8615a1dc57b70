"""Signing in on the page: a key is exchanged for a session, whose cookie no script can read."""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, Form, Query, Request
from fastapi.responses import RedirectResponse, Response

from deepfake_gateway.intake.problems import Problem
from deepfake_gateway.store.keys import SESSION_COOKIE, SESSION_S, Keys
from deepfake_gateway.store.threads import in_store
from deepfake_gateway.web.rendering import render

router = APIRouter(include_in_schema=False)


@router.get("/sign-in")
async def sign_in_page(request: Request, next: Annotated[str, Query(max_length=2048)] = "/") -> Response:
    """Ask for a key."""
    return render("sign_in.html.j2", request, next=next, wrong=False)


@router.post("/sign-in")
async def sign_in(
    request: Request,
    key: Annotated[str, Form(max_length=200)],
    next: Annotated[str, Form(max_length=2048)] = "/",
) -> Response:
    """Begin a session, and show what was asked for."""
    keys: Keys = request.app.state.keys
    found = await in_store(keys.of_text, key.strip())
    if found is None:
        return render("sign_in.html.j2", request, 401, next=next, wrong=True)
    if not found.may("read"):
        raise Problem(403, "this key may not see results: it has no scope `read`; sign in with one that has")
    token = await in_store(keys.begin_session, found)
    response = RedirectResponse(_own(next), status_code=303)
    # Lax, so that a link in a mail shows a result; a change needs our own page beyond that.
    response.set_cookie(
        SESSION_COOKIE, token, max_age=SESSION_S, httponly=True, samesite="lax", secure=request.url.scheme == "https"
    )
    return response


@router.post("/sign-out")
async def sign_out(request: Request) -> Response:
    """End the session."""
    keys: Keys = request.app.state.keys
    await in_store(keys.end_session, request.cookies.get(SESSION_COOKIE, ""))
    response = RedirectResponse("/sign-in", status_code=303)
    response.delete_cookie(SESSION_COOKIE)
    return response


def _own(path: str) -> str:
    """Return an address of this service, whatever was asked for."""
    is_own = path.startswith("/") and not path.startswith(("//", "/\\")) and path.isprintable()
    return path if is_own else "/"
