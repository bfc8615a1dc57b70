"""Routes of the faces behind a verdict: their pictures, and heatmaps that explain their served scores."""

from __future__ import annotations

from typing import Annotated, Any, Final

from fastapi import APIRouter, Body, Path
from fastapi.responses import JSONResponse, Response

from deepfake_client.explain.types import METHODS
from deepfake_gateway.api.documents import (
    CropsDocument,
    ExplainerDocument,
    ExplanationDocument,
    ExplanationsDocument,
    crop_json,
    explanation_json,
)
from deepfake_gateway.api.parts import KNOWN_QUERY, SEALED, DeskOf, JsonRoute, SettingsOf, WaitOf, made
from deepfake_gateway.intake.options import ExplanationForm
from deepfake_gateway.intake.problems import OF_BODIES, Problem, responses, without_verdict
from deepfake_gateway.intake.submission import Desk
from deepfake_gateway.jobs.evidence import listed_faces
from deepfake_gateway.jobs.explaining import explainer_of, heatmap_file
from deepfake_gateway.store.analysis import Analysis
from deepfake_gateway.store.threads import in_media, in_store

router = APIRouter(tags=["explanations"], route_class=JsonRoute)

CropName = Annotated[str, Path(pattern=r"^\d{1,9}-\d{1,12}$")]
_PICTURE: Final[dict[int | str, dict[str, Any]]] = {
    200: {"content": {"image/png": {}}, "description": "The picture."}
}


@router.get("/v1/analyses/{analysis_id}/crops", responses=responses(404, 409))
async def list_crops(analysis_id: str, desk: DeskOf) -> CropsDocument:
    """List the faces that the verdict rests on most, of which there are pictures."""
    analysis = await _done(desk, analysis_id)
    await in_media(desk.medium_bytes, analysis_id)
    faces = listed_faces(analysis.verdict or {})
    return CropsDocument.model_validate({"items": [crop_json(analysis_id, face) for face in faces]})


@router.get(
    "/v1/analyses/{analysis_id}/crops/{name}.png",
    responses={**_PICTURE, **responses(404, 409)},
    response_class=Response,
)
async def crop(analysis_id: str, name: CropName, desk: DeskOf) -> Response:
    """Return a face as the model saw it, a PNG file."""
    found = (await made(desk.evidence.crops(await _done(desk, analysis_id)))).get(name)
    if found is None:
        raise Problem(
            404, f"there is no picture {name!r}; GET /v1/analyses/{analysis_id}/crops lists those there are"
        )
    return _picture(found.png)


@router.post(
    "/v1/analyses/{analysis_id}/explanations",
    status_code=202,
    dependencies=[KNOWN_QUERY],
    responses={
        200: {"model": ExplanationDocument, "description": "It is over: made before, or while waiting."},
        202: {"model": ExplanationDocument, "description": "It is queued; `Location` is where it is."},
        **responses(*OF_BODIES, 404, 409),
    },
)
async def explain(
    analysis_id: str, desk: DeskOf, wait_s: WaitOf, form: Annotated[ExplanationForm | None, Body()] = None
) -> Response:
    """Draw where the model saw the fake: heatmaps of faces, each compared with its served score."""
    analysis = await in_store(desk.find, analysis_id)
    explanation = await in_media(desk.explanations.begin, analysis, form or ExplanationForm())
    if wait_s:
        explanation = await desk.explanations.finished(explanation, wait_s)
    document = explanation_json(explanation)
    headers = {"Location": document["links"]["self"]}
    if wait_s:
        headers["Preference-Applied"] = f"wait={wait_s:g}"
    return JSONResponse(document, 200 if explanation.status.is_final else 202, headers)


@router.get(
    "/v1/analyses/{analysis_id}/explanations", responses={200: {"model": ExplanationsDocument}, **responses(404)}
)
async def list_explanations(analysis_id: str, desk: DeskOf) -> Response:
    """List the explanations of an analysis, the newest first."""
    await in_store(desk.find, analysis_id)
    found = await in_store(desk.explanations.store.of_analysis, analysis_id)
    return JSONResponse({"items": [explanation_json(explanation) for explanation in found]})


@router.get(
    "/v1/analyses/{analysis_id}/explanations/{explanation_id}",
    responses={200: {"model": ExplanationDocument}, **responses(404)},
)
async def read_explanation(analysis_id: str, explanation_id: str, desk: DeskOf) -> Response:
    """Read an explanation: its state, and at the end its faces with their heatmaps."""
    await in_store(desk.find, analysis_id)
    return JSONResponse(explanation_json(await in_store(desk.explanations.find, analysis_id, explanation_id)))


@router.get(
    "/v1/analyses/{analysis_id}/heatmaps/{explanation_id}/{name}.png",
    responses={**_PICTURE, **responses(404)},
    response_class=Response,
)
async def heatmap(analysis_id: str, explanation_id: str, name: CropName, desk: DeskOf) -> Response:
    """Return a heatmap over its crop, a PNG file."""
    await in_store(desk.find, analysis_id)
    await in_store(desk.explanations.find, analysis_id, explanation_id)
    png = await in_media(desk.media.read, analysis_id, heatmap_file(explanation_id, name))
    if png is None:
        raise Problem(404, f"the explanation has no heatmap {name!r}; its `faces` say which there are")
    return _picture(png)


@router.get("/v1/explainer", responses=responses())
async def explainer(settings: SettingsOf) -> ExplainerDocument:
    """Say which heatmaps can be asked for."""
    reason, about = await explainer_of(settings)
    return ExplainerDocument(
        available=reason is None,
        reason=reason,
        methods=list(METHODS),
        default_layer=about.get("default_layer"),
        layers=about.get("layers", []),
    )


async def _done(desk: Desk, analysis_id: str) -> Analysis:
    analysis = await in_store(desk.find, analysis_id)
    if analysis.verdict is None:
        raise without_verdict(analysis)
    return analysis


def _picture(png: bytes) -> Response:
    return Response(
        png,
        media_type="image/png",
        headers={"Cache-Control": "private, max-age=3600", "Content-Security-Policy": SEALED},
    )
