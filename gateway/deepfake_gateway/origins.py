"""Pages of other origins that may ask this service (CORS, https://fetch.spec.whatwg.org/#http-cors-protocol)."""

from __future__ import annotations

import re
from collections.abc import Collection
from typing import Final

from fastapi import FastAPI
from starlette.middleware.cors import CORSMiddleware

_ORIGIN: Final = re.compile(r"https?://([a-z0-9-]+(\.[a-z0-9-]+)*|\[[0-9a-f:]+\])(:[1-9][0-9]{0,4})?")
_USUAL_PORT: Final = {"http": ":80", "https": ":443"}
_ASKED_WITH: Final = (
    "Authorization", "X-Api-Key", "Content-Type", "Idempotency-Key", "Prefer", "Range", "If-Range", "If-None-Match",
    "Last-Event-ID", "X-Request-Id", "traceparent", "tracestate",
)  # fmt: skip
_ANSWERED_WITH: Final = (
    "Location", "Retry-After", "RateLimit-Limit", "RateLimit-Remaining", "RateLimit-Reset", "ETag",
    "Preference-Applied", "Accept-Ranges", "Content-Range", "Content-Disposition", "X-Request-Id",
)  # fmt: skip


def check_origin(text: str) -> None:
    """Raise ValueError, in a sentence, where a text is not an origin as browsers send it in ``Origin``."""
    if not _ORIGIN.fullmatch(text) or text.endswith(_USUAL_PORT[text.partition(":")[0]]):
        raise ValueError(
            f"{text[:90]!r} is not an origin as browsers send it; write scheme and host in small letters, and a port "
            "that is not the usual one, such as https://app.example or http://localhost:3000"
        )


def admit(app: FastAPI, origins: Collection[str]) -> None:
    """Have an application say to browsers that pages of these origins may ask it and read its answers.

    Cookies are never among what they may send: whoever looks at such a page has not asked it to act for them here.
    """
    app.add_middleware(
        CORSMiddleware,
        allow_origins=list(origins),
        allow_methods=["GET", "HEAD", "POST", "DELETE"],
        allow_headers=list(_ASKED_WITH),
        expose_headers=list(_ANSWERED_WITH),
    )
