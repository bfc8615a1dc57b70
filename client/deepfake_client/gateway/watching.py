"""`watched`: a live source that a verdict service watches, verdict by verdict."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncGenerator
from contextlib import suppress
from dataclasses import fields
from typing import TYPE_CHECKING, Any, Final

from deepfake_client.gateway.sending import error_of, pieces_of, understood
from deepfake_client.options import WatchOptions
from deepfake_client.result.verdict import Verdict
from deepfake_preprocess.errors import DeepfakeError, OptionError

if TYPE_CHECKING:
    from deepfake_client.gateway.http import GatewayHttp

TAKEN: Final = frozenset(
    {
        "window_s", "step_s", "fps", "min_change", "aggregation", "threshold", "min_face_px", "min_face_share",
        "reconnects",
    }
)  # fmt: skip
"""Options that a service takes; the others are of who opens the source."""
CANCEL_S: Final = 2.0


def form_of(url: str, options: WatchOptions, duration_s: float | None) -> dict[str, Any]:
    """Return what begins a watch.

    Raises:
        OptionError: an option is set that a service does not take.
    """
    form: dict[str, Any] = {"url": url}
    for field in fields(options):
        value = getattr(options, field.name)
        if field.name in TAKEN:
            form[field.name] = value
        elif value != field.default:
            raise OptionError(
                f"`{field.name}` cannot be asked of a gateway, which opens the source itself; leave it out, or ask "
                "Triton"
            )
    given = {**form, "duration_s": duration_s}
    return {name: value for name, value in given.items() if value is not None}


async def watched(http: GatewayHttp, form: dict[str, Any]) -> AsyncGenerator[Verdict, None]:
    """Begin a watch, and yield its verdicts; when it is left, the service ends it."""
    body = json.dumps(form).encode()
    begun = await http.json(
        "POST", "/v1/watches", headers={"content-type": "application/json"}, body=lambda: pieces_of(body)
    )
    with understood(http.url):
        address, name = f"/v1/watches/{begun['id']}", begun["source"]
    is_over, last = False, None
    try:
        async for event in http.events(f"{address}/events"):
            if event.kind == "end":
                is_over = True
                if event.data.get("error") is not None:
                    raise error_of(event.data, name, http.url)
            elif event.kind == "verdict":
                # The event is in short; several that come together lead to one that is complete.
                document = await http.json("GET", address)
                with understood(http.url):
                    verdict = None if document["verdict"] is None else Verdict.from_dict(document["verdict"])
                if verdict is not None and verdict != last:
                    last = verdict
                    yield verdict
    finally:
        if not is_over:
            with suppress(DeepfakeError, TimeoutError):
                async with asyncio.timeout(CANCEL_S):
                    await http.json("POST", f"{address}/cancel")
