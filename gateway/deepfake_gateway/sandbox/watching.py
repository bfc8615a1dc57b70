"""What a sandbox does with a live source: it watches, and says each verdict as progress until the source ends."""

from __future__ import annotations

import errno
import os
from collections.abc import Callable
from contextlib import closing
from dataclasses import replace
from typing import Any, Final

from deepfake_client.client import DeepfakeClient
from deepfake_client.options import WatchOptions
from deepfake_client.result.verdict import Verdict
from deepfake_gateway.sandbox.limits import Limits
from deepfake_preprocess.errors import MediaLimitError, MediaNotFoundError, MediaOpenError
from deepfake_preprocess.media.remote import without_password

_BROKEN: Final = os.strerror(errno.EIO)
"""All that FFmpeg says of a certificate that it does not trust, which cannot be fetched from in here."""


def watch(
    client: DeepfakeClient, task: dict[str, Any], limits: Limits, say: Callable[[dict[str, Any]], None]
) -> dict[str, Any]:
    """Watch the ``url`` of a task, through its ``proxy``, under its ``name``; returns once the source has ended.

    Raises:
        InputError: the source cannot be opened, broke off for good, or is larger than is accepted.
        ServerError: the server cannot be reached at the start.
    """
    options = WatchOptions(**task["options"], source_proxy=task["proxy"])
    try:
        with closing(client.watch(task["url"], options=options)) as verdicts:
            for verdict in verdicts:
                _check_size(verdict, task["name"], limits)
                say({"progress": replace(verdict, source=task["name"]).to_dict()})
    except (MediaOpenError, MediaNotFoundError) as exc:
        # A camera is asked for at another address in here.
        detail = str(exc).replace(without_password(task["url"]), task["name"])
        if task["url"].startswith("https:") and _BROKEN in detail:
            detail = f"{task['name']} broke off at once; check that its certificate is one that everybody trusts"
        raise type(exc)(detail) from exc
    return {"is_over": True}


def _check_size(verdict: Verdict, name: str, limits: Limits) -> None:
    width_px, height_px = verdict.frames[-1].size_wh if verdict.frames else (0, 0)
    if width_px * height_px > limits.max_pixels:
        raise MediaLimitError(
            f"{name} has {width_px}x{height_px} pixels, and at most {limits.max_pixels} are accepted; have it sent "
            "scaled down"
        )
