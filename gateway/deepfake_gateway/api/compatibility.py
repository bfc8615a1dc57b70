"""The shapes of projects that people come from: their routes and fields, with verdicts of this one behind them.

Where there is no verdict, their fields are null and ``reason`` says why; it is never 0.5.
"""

from __future__ import annotations

from typing import Any, Final

from fastapi import APIRouter, Request

from deepfake_client.result.words import REASON_WORDS
from deepfake_gateway.api.parts import DeskOf, SettingsOf
from deepfake_gateway.intake.problems import OF_BODIES, Problem, responses
from deepfake_gateway.intake.submission import Desk
from deepfake_gateway.intake.upload import received
from deepfake_gateway.settings import Settings
from deepfake_gateway.store.analysis import Analysis, Status

router = APIRouter(tags=["compatibility"])

_WAIT_S: Final = 600.0


def _file(name: str, *fields: str) -> dict[str, Any]:
    properties: dict[str, Any] = {name: {"type": "string", "contentMediaType": "application/octet-stream"}}
    properties |= {field: {"type": "string"} for field in fields}
    schema = {"type": "object", "required": [name], "properties": properties}
    return {"requestBody": {"required": True, "content": {"multipart/form-data": {"schema": schema}}}}


_REFUSALS: Final = responses(*OF_BODIES, 404)


@router.get("/health")
async def health() -> dict[str, str]:
    """Say that the service answers."""
    return {"status": "ok"}


@router.get("/api/v1/health")
async def health_v1() -> dict[str, str]:
    """Say that the service answers."""
    return {"status": "healthy"}


@router.post("/predict/image", responses=_REFUSALS, openapi_extra=_file("file"))
async def predict_image(request: Request, desk: DeskOf, settings: SettingsOf) -> dict[str, Any]:
    """Judge a picture."""
    return _prediction(await _analyzed(request, desk, settings, "file", {}), "image")


@router.post("/predict/video", responses=_REFUSALS, openapi_extra=_file("file"))
async def predict_video(request: Request, desk: DeskOf, settings: SettingsOf) -> dict[str, Any]:
    """Judge a video."""
    return _prediction(await _analyzed(request, desk, settings, "file", {}), "video")


def _prediction(analysis: Analysis, file_type: str) -> dict[str, Any]:
    verdict = analysis.verdict
    if (kind := analysis.media_type.partition("/")[0]) in ("image", "video"):  # whichever address it was sent to
        file_type = kind
    if verdict is None or verdict["fake_probability"] is None:
        frames = 0 if verdict is None else len(verdict["frames"])
        return {
            "file_type": file_type, "frames_processed": frames, "confidence": None, "label": None,
            "reason": _reason(analysis),
        }  # fmt: skip
    return {
        "file_type": file_type,
        "frames_processed": len(verdict["frames"]),
        "confidence": _confidence(verdict["fake_probability"], verdict["label"]),
        "label": verdict["label"],
    }


@router.post(
    "/api/v1/analyze-video", responses=_REFUSALS, openapi_extra=_file("video_file", "num_frames", "enable_gradcam")
)
async def analyze_video(request: Request, desk: DeskOf, settings: SettingsOf) -> dict[str, Any]:
    """Judge a video, with a prediction for each frame."""
    analysis = await _analyzed(request, desk, settings, "video_file", {"num_frames": "num_frames"})
    verdict = analysis.verdict
    if verdict is None or verdict["fake_probability"] is None:
        return {
            "video_id": analysis.id, "overall_prediction": None, "confidence_score": None, "frame_predictions": [],
            "processing_time": None if verdict is None else verdict["timing_s"]["total"],
            "model_version": None if verdict is None else _model(verdict), "reason": _reason(analysis),
        }  # fmt: skip
    return {
        "video_id": analysis.id,
        "overall_prediction": verdict["label"],
        "confidence_score": _confidence(verdict["fake_probability"], verdict["label"]),
        "frame_predictions": _frames(verdict),
        "processing_time": verdict["timing_s"]["total"],
        "model_version": _model(verdict),
    }


def _frames(verdict: dict[str, Any]) -> list[dict[str, Any]]:
    """Return the most suspicious face of each frame that has one which counts."""
    predictions = []
    for number, frame in enumerate(verdict["frames"]):
        scores = [
            face["fake_probability"]
            for face in frame["faces"]
            if face["fake_probability"] is not None and face["weight"]
        ]
        if scores:
            label = "FAKE" if max(scores) >= verdict["threshold"] else "REAL"
            predictions.append(
                {
                    "frame_number": number,
                    "timestamp": frame["pts_seconds"],
                    "prediction": label,
                    "confidence": _confidence(max(scores), label),
                }
            )
    return predictions


def _confidence(fake_probability: float, label: str) -> float:
    """Return the score of the label, as those projects do: of REAL it is what is left to 1."""
    return round(fake_probability if label == "FAKE" else 1 - fake_probability, 6)


def _model(verdict: dict[str, Any]) -> str:
    return f"{verdict['model']['name']} version {verdict['model']['version']}"


def _reason(analysis: Analysis) -> str:
    if analysis.verdict is None:
        return analysis.error_detail or f"the analysis is {analysis.status.value}"
    return str(analysis.verdict["detail"] or REASON_WORDS[analysis.verdict["reason"]])


async def _analyzed(
    request: Request, desk: Desk, settings: Settings, file_field: str, renamed: dict[str, str]
) -> Analysis:
    """Take the upload in and wait for its end; fields that are not `renamed` to options are passed over."""
    upload_path = desk.media.new_upload()
    async with received(
        request, upload_path, max_bytes=settings.max_upload_bytes, file_fields=(file_field,)
    ) as upload:
        options = {option: upload.fields[name] for name, option in renamed.items() if name in upload.fields}
        submitted = await desk.submit(upload, options)
    analysis = await desk.finished(submitted.analysis.id, _WAIT_S)
    if not analysis.status.is_final:
        raise Problem(503, "the analysis is not over yet; ask POST /v1/analyses, which need not be waited for")
    if analysis.status is Status.FAILED and analysis.error_type == "MediaLimitError":
        raise Problem(413, analysis.error_detail or "the file is larger or longer than is accepted")
    if analysis.status is Status.FAILED and analysis.error_type == "MediaOpenError":
        raise Problem(415, analysis.error_detail or "the file is neither a video nor a picture")
    return analysis
