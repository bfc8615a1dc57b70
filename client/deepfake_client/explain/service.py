"""`ServiceExplainer`: explanations from a `deepfake explain-serve` elsewhere; needs the extra ``http``."""

from __future__ import annotations

import asyncio
import dataclasses
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Final
from urllib.parse import urlsplit

import aiohttp
import numpy as np
from numpy.typing import NDArray
from pydantic import ValidationError

from deepfake_client.explain.encoding import encode_png
from deepfake_client.explain.types import DEFAULT_SERVICE_URL, ExplainOptions, Explanation, ServedScores
from deepfake_client.explain.wire import EXPLAIN_PATH, ExplainAnswer, ExplainProblem
from deepfake_client.transport.address import without_version
from deepfake_preprocess.errors import (
    DeepfakeError,
    ExplainDisagreementError,
    InferenceError,
    MediaOpenError,
    OptionError,
    ServerBusyError,
    ServerTimeoutError,
    ServerUnavailableError,
)

_ERROR_OF: Final[dict[int, type[DeepfakeError]]] = {
    409: ExplainDisagreementError,
    429: ServerBusyError,
    503: ServerBusyError,
    504: ServerTimeoutError,
}
"""What a refusal is here; see docs/explain.md for the statuses."""


def service_url(given: str) -> str:
    """Return the address of an explain service, before ``/v1``; OptionError where it is not one of the web."""
    parts = urlsplit(given if "://" in given else f"http://{given}")
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise OptionError(f"the explain service is {given!r}; allowed: a URL such as {DEFAULT_SERVICE_URL}")
    return without_version(f"{parts.scheme}://{parts.netloc}{parts.path.rstrip('/')}", "v1")


class ServiceExplainer:
    """Asks an explain service over HTTP, within `timeout_s` each time; an `explain.types.Explainer`."""

    def __init__(self, url: str = DEFAULT_SERVICE_URL, *, timeout_s: float = 60.0) -> None:
        self.url = service_url(url)
        self._timeout = aiohttp.ClientTimeout(total=timeout_s)

    def explain(
        self,
        crops: NDArray[np.uint8],
        options: ExplainOptions,
        *,
        landmarks_xy: Sequence[NDArray[np.float32] | None] | None = None,
        served: ServedScores | None = None,
    ) -> list[Explanation]:
        """See `Explainer.explain`; the service explains one crop at a time, so each is a request after the other."""
        forms = []
        for index, crop in enumerate(crops):
            fields: dict[str, object] = dataclasses.asdict(options)
            if landmarks_xy is not None and (points := landmarks_xy[index]) is not None:
                fields["landmarks"] = ",".join(map(str, points.ravel().tolist()))
            if served is not None:
                fields["served_probability"] = float(served.probabilities[index])
                for name in ("checkpoint_sha256", "precision", "tensorrt"):
                    fields[f"served_{name}"] = getattr(served, name)
            form = aiohttp.FormData({name: str(value) for name, value in fields.items() if value is not None})
            form.add_field("crop", encode_png(crop), filename="crop.png")
            forms.append(form)

        async def post_all() -> list[Explanation]:
            async with aiohttp.ClientSession(timeout=self._timeout) as session:
                return [await self._post(session, form) for form in forms]

        # In a thread, because the caller's may run an event loop.
        with ThreadPoolExecutor(1, thread_name_prefix="deepfake-explain") as thread:
            return thread.submit(asyncio.run, post_all()).result()

    def close(self) -> None:
        """See `Explainer.close`; no connection is kept."""

    async def _post(self, session: aiohttp.ClientSession, form: aiohttp.FormData) -> Explanation:
        try:
            async with session.post(self.url + EXPLAIN_PATH, data=form, allow_redirects=False) as response:
                status, body = response.status, await response.read()
        except TimeoutError as exc:
            raise ServerTimeoutError(
                f"the explain service at {self.url} gave no answer within {self._timeout.total:g} s; look at its load"
            ) from exc
        except (aiohttp.ClientError, OSError) as exc:
            raise ServerUnavailableError(
                f"no explain service answers at {self.url}; start one with `deepfake explain-serve CHECKPOINT`, name "
                "another with `service`, or explain here with `checkpoint`"
            ) from exc
        try:
            if status == 200:
                return ExplainAnswer.model_validate_json(body).explanation
            kind = _ERROR_OF.get(status, OptionError if status < 500 else InferenceError)
            raise kind(f"the explain service at {self.url}: {ExplainProblem.model_validate_json(body).detail}")
        except (ValidationError, EOFError, MediaOpenError) as exc:
            raise InferenceError(
                f"{self.url} answered with status {status} and something else than an explanation; is it an explain "
                "service of this version?"
            ) from exc
