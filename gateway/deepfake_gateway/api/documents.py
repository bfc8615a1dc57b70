"""What the API answers, as types: they make the OpenAPI document, and functions that fill them from the store."""

from __future__ import annotations

import time
from collections import Counter
from datetime import UTC, date, datetime
from typing import Any

from pydantic import BaseModel, ConfigDict, Field

from deepfake_client.explain.types import Region
from deepfake_client.result.verdict import Verdict
from deepfake_client.transport.protocol import ServedModel
from deepfake_gateway.settings import Settings
from deepfake_gateway.store.analysis import Analysis, Status
from deepfake_gateway.store.batches import Batch, BatchItem
from deepfake_gateway.store.explanations import StoredExplanation
from deepfake_gateway.store.keys import PREFIX
from deepfake_gateway.store.usage import DailyUsage
from deepfake_gateway.store.watches import Watch


class Document(BaseModel):
    """What is answered: its docstrings are the descriptions."""

    model_config = ConfigDict(use_attribute_docstrings=True)


class FileDocument(Document):
    """The file that was sent."""

    name: str
    """As the sender named it."""
    media_type: str
    """By its first bytes, never by its name."""
    size_bytes: int
    sha256: str
    expires_at: datetime | None
    """When the file is removed, with its report, faces and heatmaps; null while the analysis is not over."""


class ProgressDocument(Document):
    """How far an analysis is, and what the frames so far say."""

    frames_done: int
    frames_expected: int | None
    faces_scored: int
    label: str | None
    fake_probability: float | None


class ErrorDocument(Document):
    """Why an analysis has no verdict."""

    type: str
    """Class of the error."""
    message: str
    """One sentence: what was received and what to do."""


class AnalysisDocument(Document):
    """One analysis."""

    id: str
    status: Status
    created_at: datetime
    started_at: datetime | None
    finished_at: datetime | None
    expires_at: datetime | None
    """When the analysis is removed with its verdict; null while it is not over."""
    file: FileDocument
    options: dict[str, Any]
    """All options of the analysis, also those that were not given."""
    progress: ProgressDocument | None
    """While it runs."""
    verdict: Verdict | None
    """When `status` is ``done``: the result that `deepfake analyze` gives, after docs/verdict.schema.json."""
    error: ErrorDocument | None
    """When `status` is ``failed``."""
    request_id: str | None
    """`X-Request-ID` of the request that began it, which logs and the inference server name it by."""
    links: dict[str, str]
    """Addresses of what belongs to it; what goes with the file is named as long as that is kept."""


class ListedAnalysis(Document):
    """One analysis in a list."""

    id: str
    status: Status
    created_at: datetime
    expires_at: datetime | None
    """When it is removed with its verdict; null while it is not over."""
    file: FileDocument
    label: str | None
    fake_probability: float | None
    reason: str | None
    model: str | None
    error: ErrorDocument | None
    links: dict[str, str]


class AnalysesDocument(Document):
    """A page of the list, newest first."""

    items: list[ListedAnalysis]
    next_cursor: str | None
    """Give it as `cursor` for the next page; null on the last."""


class BatchItemDocument(Document):
    """One file of a batch."""

    file_name: str
    """As the sender named it; the address of one that is awaited or could not be fetched; empty where the analysis
    was deleted."""
    is_awaited: bool
    """Whether it is yet to be fetched from its address."""
    analysis: ListedAnalysis | None
    refusal: str | None
    """Why it was not taken; where this and `analysis` are null and it is not awaited, the analysis was deleted."""


class BatchDocument(Document):
    """Files that were sent together."""

    id: str
    name: str
    created_at: datetime
    expires_at: datetime | None
    """When it is removed, with the last of its results; null before it is over."""
    is_over: bool
    """Whether nothing is fetched, waits or runs any more."""
    counts: dict[str, int]
    """Files by label where there is one, else by status; ``awaited``, ``refused`` and ``deleted`` beside them."""
    items: list[BatchItemDocument]
    """In the order in which they were sent."""
    links: dict[str, str]


class CropDocument(Document):
    """One of the most suspicious faces, of which there is a picture."""

    name: str
    track: int
    """Number of the face in the verdict, from 0."""
    frame_index: int
    pts_seconds: float
    box_xyxy: tuple[float, float, float, float]
    fake_probability: float
    """The verdict's score of this face in this frame."""
    href: str
    """Its picture as the model saw it, a PNG file."""


class CropsDocument(Document):
    """Faces with pictures, the most suspicious first."""

    items: list[CropDocument]


class ExplainedFaceDocument(CropDocument):
    """A face with its heatmap, which is given only where PyTorch's score is the served one."""

    heatmap: str
    """The heatmap over the crop, a PNG file."""
    served_probability: float | None
    """What the server said to this crop again."""
    explained_probability: float
    """What PyTorch said to it, from the checkpoint."""
    difference: float | None
    tolerance: float | None
    """How far the two may be apart."""
    method: str
    layer: str
    checkpoint_sha256: str
    regions: list[Region]
    """Areas that matter, in pixels of the crop."""
    part_shares: dict[str, float]
    """Share of the heat on each part of the face."""
    checks: dict[str, Any]
    """Faithfulness and sanity, as far as they were asked for."""


class ExplanationDocument(Document):
    """Heatmaps that were asked for."""

    id: str
    status: Status
    created_at: datetime
    finished_at: datetime | None
    request: dict[str, Any]
    """What was asked for, complete."""
    faces: list[ExplainedFaceDocument] | None
    """When `status` is ``done``."""
    error: ErrorDocument | None
    """When `status` is ``failed``."""
    links: dict[str, str]


class ExplanationsDocument(Document):
    """All explanations of an analysis, the newest first."""

    items: list[ExplanationDocument]


class ExplainerDocument(Document):
    """Which heatmaps can be asked for."""

    available: bool
    reason: str | None
    """Why there are none."""
    methods: list[str]
    default_layer: str | None
    layers: list[str]


class UsageAmounts(Document):
    """What was sent, and how it ended."""

    sent: int
    """Analyses that were begun; what an earlier result answers is none."""
    done: int
    failed: int
    canceled: int
    video_seconds: float
    """Of finished analyses, up to the last frame that was looked at; a picture counts for one."""
    bytes: int
    """Of the media that were sent."""


class DailyUsageDocument(UsageAmounts):
    """What one key used in one day."""

    day: date
    """In UTC."""
    key: str | None
    """Null for what came without one."""
    name: str | None
    tenant: str | None


class UsageDocument(Document):
    """What keys used, by the day."""

    first: date = Field(alias="from")
    last: date = Field(alias="to")
    total: UsageAmounts
    items: list[DailyUsageDocument]
    """The latest day first; days on which a key was not used are left out."""


class ModelDocument(Document):
    """A detector that the server offers."""

    name: str
    version: int
    checkpoint_sha256: str | None
    threshold: float
    precision: str
    training_data: str
    is_default: bool
    """Whether uploads are analyzed with it."""
    spec: dict[str, Any]
    """Its contract, complete, as `deepfake export` publishes it."""


class ModelsDocument(Document):
    """All detectors of the server."""

    models: list[ModelDocument]


def analysis_json(analysis: Analysis, settings: Settings, progress: dict[str, Any] | None = None) -> dict[str, Any]:
    """Return an `AnalysisDocument` as JSON data; the verdict is passed on as it was stored."""
    return {
        "id": analysis.id,
        "status": analysis.status.value,
        "created_at": time_text(analysis.created_at),
        "started_at": time_text(analysis.started_at),
        "finished_at": time_text(analysis.finished_at),
        "expires_at": time_text(settings.result_until(analysis.finished_at)),
        "file": _file(analysis, settings),
        "options": analysis.options,
        "progress": progress if analysis.status is Status.RUNNING else None,
        "verdict": analysis.verdict,
        "error": error_json(analysis),
        "request_id": analysis.request_id,
        "links": _links(analysis, settings),
    }


def listed_json(analysis: Analysis, settings: Settings) -> dict[str, Any]:
    """Return a `ListedAnalysis` as JSON data."""
    return {
        "id": analysis.id,
        "status": analysis.status.value,
        "created_at": time_text(analysis.created_at),
        "expires_at": time_text(settings.result_until(analysis.finished_at)),
        "file": _file(analysis, settings),
        "label": analysis.label,
        "fake_probability": analysis.fake_probability,
        "reason": analysis.reason,
        "model": analysis.model_name,
        "error": error_json(analysis),
        "links": _links(analysis, settings),
    }


def batch_json(batch: Batch, settings: Settings) -> dict[str, Any]:
    """Return a `BatchDocument` as JSON data."""
    address = f"/v1/batches/{batch.id}"
    analyses = [item.analysis for item in batch.items if item.analysis is not None]
    is_over = all(one.status.is_final for one in analyses) and all(item.url is None for item in batch.items)
    last = max([batch.created_at, *(one.finished_at or 0.0 for one in analyses)]) if is_over else None
    return {
        "id": batch.id,
        "name": batch.name,
        "created_at": time_text(batch.created_at),
        "expires_at": time_text(settings.result_until(last)),
        "is_over": is_over,
        "counts": dict(Counter(map(_outcome, batch.items))),
        "items": [
            {
                "file_name": item.file_name,
                "is_awaited": item.url is not None,
                "analysis": None if item.analysis is None else listed_json(item.analysis, settings),
                "refusal": item.refusal,
            }
            for item in batch.items
        ],
        "links": {"self": address, "report": f"{address}/report", "page": f"/batches/{batch.id}"},
    }


def _outcome(item: BatchItem) -> str:
    if item.url is not None:
        return "awaited"
    if item.analysis is None:
        return "deleted" if item.refusal is None else "refused"
    return item.analysis.label or item.analysis.status.value


def crop_json(analysis_id: str, face: dict[str, Any]) -> dict[str, Any]:
    """Return a `CropDocument` as JSON data."""
    return {**face, "href": f"/v1/analyses/{analysis_id}/crops/{face['name']}.png"}


def explanation_json(explanation: StoredExplanation) -> dict[str, Any]:
    """Return an `ExplanationDocument` as JSON data."""
    analysis = f"/v1/analyses/{explanation.analysis_id}"
    faces = None
    if explanation.faces is not None:
        faces = [
            {
                **crop_json(explanation.analysis_id, face),
                "heatmap": f"{analysis}/heatmaps/{explanation.id}/{face['name']}.png",
            }
            for face in explanation.faces
        ]
    return {
        "id": explanation.id,
        "status": explanation.status.value,
        "created_at": time_text(explanation.created_at),
        "finished_at": time_text(explanation.finished_at),
        "request": explanation.request,
        "faces": faces,
        "error": error_json(explanation),
        "links": {"self": f"{analysis}/explanations/{explanation.id}", "analysis": analysis},
    }


def usage_json(first: date, last: date, found: list[DailyUsage]) -> dict[str, Any]:
    """Return a `UsageDocument` as JSON data."""
    items: list[dict[str, Any]] = [
        {
            "day": one.day,
            "key": None if one.key_id is None else f"{PREFIX}_{one.key_id}",
            "name": one.name,
            "tenant": one.tenant,
            "sent": one.sent,
            "done": one.done,
            "failed": one.failed,
            "canceled": one.canceled,
            "video_seconds": round(one.seconds, 3),
            "bytes": one.size_bytes,
        }
        for one in found
    ]
    total = {name: sum(item[name] for item in items) for name in UsageAmounts.model_fields}
    return {"from": first.isoformat(), "to": last.isoformat(), "total": total, "items": items}


def model_document(model: ServedModel, *, is_default: bool) -> ModelDocument:
    """Return how a model is shown."""
    return ModelDocument(
        name=model.name,
        version=model.version,
        checkpoint_sha256=model.spec.checkpoint_sha256,
        threshold=model.spec.threshold,
        precision=model.precision,
        training_data=model.spec.training_data or "",
        is_default=is_default,
        spec=model.spec.to_dict(),
    )


def address_of(analysis: Analysis) -> str:
    """Return the path of an analysis."""
    return f"/v1/analyses/{analysis.id}"


def _links(analysis: Analysis, settings: Settings) -> dict[str, str]:
    address, is_done = address_of(analysis), analysis.status is Status.DONE
    names = ["events", *(["explanations"] if is_done else [])]
    file_until = settings.media_until(analysis.finished_at)
    if file_until is None or file_until > time.time():
        names += ["media", *(["report", "crops"] if is_done else [])]
    return {"self": address, "page": f"/analyses/{analysis.id}", **{name: f"{address}/{name}" for name in names}}


def _file(analysis: Analysis, settings: Settings) -> dict[str, Any]:
    return {
        "name": analysis.file_name,
        "media_type": analysis.media_type,
        "size_bytes": analysis.size_bytes,
        "sha256": analysis.sha256,
        "expires_at": time_text(settings.media_until(analysis.finished_at)),
    }


def error_json(analysis: Analysis | StoredExplanation | Watch) -> dict[str, Any] | None:
    """Return the `ErrorDocument` of a job that failed as JSON data, or None."""
    if analysis.error_type is None:
        return None
    return {"type": analysis.error_type, "message": analysis.error_detail or ""}


def time_text(seconds: float | None) -> str | None:
    """Return a time in seconds since 1970 as text."""
    return None if seconds is None else datetime.fromtimestamp(seconds, UTC).isoformat().replace("+00:00", "Z")
