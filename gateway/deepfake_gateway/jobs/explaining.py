"""The job of an explanation: faces of a finished analysis, explained by the explain service and kept as pictures."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Sequence
from contextlib import closing
from typing import Any, Final

import aiohttp
import numpy as np

from deepfake_client.async_client import AsyncDeepfakeClient
from deepfake_client.explain.encoding import encode_png
from deepfake_client.explain.findings import explain_crops, open_explainer
from deepfake_client.explain.service import service_url
from deepfake_client.explain.types import ExplainOptions, Explanation
from deepfake_client.result.verdict import Verdict
from deepfake_client.transport.request_id import REQUEST_ID
from deepfake_gateway.jobs.evidence import Crop, Evidence, MediumGoneError, listed_faces
from deepfake_gateway.jobs.running import stored
from deepfake_gateway.sandbox.process import TaskError
from deepfake_gateway.settings import Settings
from deepfake_gateway.store.explanations import Explanations, StoredExplanation
from deepfake_gateway.store.media import Media
from deepfake_gateway.store.records import Store
from deepfake_gateway.tracing import traced
from deepfake_preprocess.errors import (
    DeepfakeError,
    MediaOpenError,
    OptionError,
    ServerBusyError,
    ServerUnavailableError,
)
from deepfake_preprocess.support.pauses import Pauses

logger = logging.getLogger(__name__)

ASK_S: Final = 5.0

Explain = Callable[[Verdict, Sequence[Crop], ExplainOptions], Awaitable[list[Explanation]]]
"""Explains crops of a verdict, and compares each with its served score; raises DeepfakeError."""


class ServiceExplain:
    """Asks the explain service that is set, and the inference server for the scores to compare with."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings

    async def __call__(self, verdict: Verdict, crops: Sequence[Crop], options: ExplainOptions) -> list[Explanation]:
        """See `Explain`."""
        settings = self._settings
        with closing(open_explainer(service=settings.explain_url)) as explainer:
            async with AsyncDeepfakeClient(settings.connection, model=settings.model) as client:
                return await explain_crops(
                    verdict,
                    np.stack([crop.rgb() for crop in crops]),
                    [crop.landmarks_xy for crop in crops],
                    get_model=client.model,
                    score=client.score,
                    explainer=explainer,
                    options=options,
                )


def patient(explain: Explain, server_wait_s: float) -> Explain:
    """Return what asks again and again while the explain service, or the server, is away: it may be starting."""

    async def explain_once_there(
        verdict: Verdict, crops: Sequence[Crop], options: ExplainOptions
    ) -> list[Explanation]:
        pauses = Pauses(server_wait_s)
        while True:
            try:
                return await explain(verdict, crops, options)
            except (ServerUnavailableError, ServerBusyError):
                if not pauses.fits:
                    raise
            await pauses.take()

    return explain_once_there


async def run_explanation(
    store: Store, media: Media, evidence: Evidence, explanation_id: str, explain: Explain
) -> None:
    """Bring an explanation to its end: pictures and what they show, or the reason why there are none."""
    explanation = await stored(Explanations(store.engine).start, explanation_id)
    if explanation is None:
        return
    REQUEST_ID.set(explanation.request_id or "")
    with traced("explain", {"deepfake.explanation": explanation_id}, parent=explanation.traceparent):
        await _run(store, media, evidence, explanation, explain)


async def _run(
    store: Store, media: Media, evidence: Evidence, explanation: StoredExplanation, explain: Explain
) -> None:
    explanations, explanation_id = Explanations(store.engine), explanation.id
    try:
        faces = await _explained(store, media, evidence, explanation, explain)
    except TaskError as exc:
        problem = exc.kind, str(exc)
    except MediumGoneError:
        problem = MediaOpenError.__name__, "the medium of this analysis was removed; send the file again"
    except DeepfakeError as exc:
        problem = type(exc).__name__, str(exc)
    except Exception as exc:  # a job that ends without a word would be waited for forever
        logger.exception("explanation %s failed", explanation_id)
        problem = "InternalError", f"the gateway failed ({type(exc).__name__}); ask again, and report it if it lasts"
    else:
        await stored(explanations.finish, explanation_id, faces)
        return
    await stored(explanations.fail, explanation_id, *problem)


async def _explained(
    store: Store, media: Media, evidence: Evidence, explanation: StoredExplanation, explain: Explain
) -> list[dict[str, Any]]:
    analysis = await stored(store.get, explanation.analysis_id)
    if analysis is None or analysis.verdict is None:
        raise MediumGoneError
    request = explanation.request
    crops = await evidence.crops(analysis)
    listed = {face["name"]: face for face in listed_faces(analysis.verdict)}
    chosen = [crops[name] for name in request["crops"] if name in crops]
    if not chosen:
        raise MediaOpenError("none of the faces could be decoded again; send the file again")
    options = ExplainOptions(request["method"], request["layer"], request["faithfulness"], request["sanity"])
    explanations = await explain(Verdict.from_dict(analysis.verdict), chosen, options)
    for crop, found in zip(chosen, explanations, strict=True):
        await asyncio.to_thread(
            media.put, analysis.id, heatmap_file(explanation.id, crop.name), encode_png(found.overlay)
        )
    return [
        {**listed[crop.name], **_facts(found, listed[crop.name])}
        for crop, found in zip(chosen, explanations, strict=True)
    ]


def _facts(found: Explanation, face: dict[str, Any]) -> dict[str, Any]:
    """Return what is stored of an explanation; the verdict's score stays beside PyTorch's and the server's."""
    facts = found.facts()
    served = facts["served_probability"]
    return {
        **facts,
        "explained_probability": facts["fake_probability"],
        "fake_probability": face["fake_probability"],
        "difference": None if served is None else abs(served - facts["fake_probability"]),
    }


def heatmap_file(explanation_id: str, crop_name: str) -> str:
    """Return the name of a heatmap's file beside the medium."""
    return f"heatmaps/{explanation_id}-{crop_name}.png"


async def explainer_of(settings: Settings) -> tuple[str | None, dict[str, Any]]:
    """Return why there is no explain service, or None, and what it says about itself."""
    if settings.explain_url is None:
        return "no explain service is set (`explain_url`, or `checkpoint`)", {}
    try:
        url = service_url(settings.explain_url)
        async with (
            aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=ASK_S)) as session,
            session.get(f"{url}/v1/model", allow_redirects=False, raise_for_status=True) as answer,
        ):
            about: dict[str, Any] = await answer.json()
            return None, about
    except OptionError as exc:
        return str(exc), {}
    except (aiohttp.ClientError, TimeoutError, OSError, ValueError):
        return "the explain service gives no answer", {}
