"""`REQUEST_ID`: the name under which the server logs and traces the requests of one piece of work."""

from __future__ import annotations

from contextvars import ContextVar
from typing import Final

REQUEST_ID: Final[ContextVar[str]] = ContextVar("deepfake_request_id", default="")
"""KServe v2's ``id`` of all inference requests that are made in this context; none where it is empty."""
