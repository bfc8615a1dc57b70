"""The most suspicious faces of a result as pictures, and the heatmaps that were asked for: a part of its page."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Any, Final

from fastapi import APIRouter, Form, Request
from fastapi.responses import HTMLResponse, RedirectResponse, Response
from markupsafe import escape
from pydantic import ValidationError

from deepfake_client.explain.types import METHODS
from deepfake_client.result.words import mark
from deepfake_gateway.intake.options import ExplanationForm
from deepfake_gateway.intake.problems import Problem, without_verdict
from deepfake_gateway.intake.submission import Desk
from deepfake_gateway.jobs.evidence import listed_faces
from deepfake_gateway.jobs.explaining import explainer_of
from deepfake_gateway.settings import Settings
from deepfake_gateway.store.analysis import Analysis
from deepfake_gateway.store.explanations import StoredExplanation
from deepfake_gateway.store.threads import in_media, in_store
from deepfake_gateway.web.language import Language, language_of
from deepfake_gateway.web.rendering import render
from deepfake_gateway.web.words import Json

PARTS: Final = {
    "outside face": mark("outside the face"),
    "forehead": mark("forehead"),
    "eyes": mark("eyes"),
    "nose": mark("nose"),
    "cheeks": mark("cheeks"),
    "mouth": mark("mouth"),
    "jaw": mark("jaw"),
}

router = APIRouter(include_in_schema=False)


async def moments_values(desk: Desk, say: Language, settings: Settings, analysis: Analysis) -> dict[str, Any]:
    """Return what the template ``moments.html.j2`` shows of a finished analysis."""
    verdict = analysis.verdict or {}
    known = await in_store(desk.explanations.store.of_analysis, analysis.id)
    explanation = known[0] if known else None
    request = {} if explanation is None else explanation.request
    # Another request may have asked for some of the faces only.
    alike = [item for item in known if _manner(item.request) == _manner(request)]
    moments = moments_of(say, verdict, analysis.id, alike)
    return {
        "moments": moments,
        "several": len({moment["track"] for moment in moments}) > 1,
        "explanation": explanation,
        "how": _agreement(say, explanation),
        "can_explain": settings.explain_url is not None and bool(moments),
        "methods": METHODS,
        "chosen": {"method": request.get("method", METHODS[0]), "layer": request.get("layer")},
    }


def _manner(request: Json) -> Json:
    """Return what a request for heatmaps says of how, and not of which."""
    return {name: value for name, value in request.items() if name != "crops"}


def moments_of(
    say: Language, verdict: Json, analysis_id: str, explanations: Sequence[StoredExplanation]
) -> list[Json]:
    """Return the most suspicious faces: time, score, picture and heatmap, the first of `explanations` that has it.

    The face that decides comes first, then others that were judged, and last those that were not.
    """
    drawn = {face["name"]: (item.id, face) for item in reversed(explanations) for face in item.faces or []}
    base = f"/v1/analyses/{analysis_id}"
    judged = {track["track"] for track in verdict["tracks"] if track["counted"] and not track["background"]}
    faces = sorted(
        listed_faces(verdict),
        key=lambda face: (face["track"] != verdict["deciding_track"], face["track"] not in judged),
    )
    moments = []
    for face in faces:
        kind = "fake" if face["fake_probability"] >= verdict["threshold"] else "real"
        explanation_id, heat = drawn.get(face["name"], (None, None))
        moments.append(
            {
                "face": face["track"] + 1,
                "track": face["track"],
                "pts_seconds": face["pts_seconds"],
                "score": face["fake_probability"],
                "kind": kind if face["track"] in judged else "inc",
                "crop": f"{base}/crops/{face['name']}.png",
                "heatmap": heat and f"{base}/heatmaps/{explanation_id}/{face['name']}.png",
                "part": _part(say, heat["regions"]) if heat else "",
                "is_blank": heat is not None and not heat["regions"],
            }
        )
    return moments


def _part(say: Language, regions: list[Json]) -> str:
    """Return the part of the face where the hottest area is."""
    part: str | None = regions[0]["part"] if regions else None
    return "" if part is None else say.say(PARTS.get(part, part))


def _agreement(say: Language, explanation: StoredExplanation | None) -> str:
    """Return how the heatmaps were drawn, and how near the explained scores are to the served ones."""
    if explanation is None or not explanation.faces:
        return ""
    face = explanation.faces[0]
    words = say.say("Method: %(method)s, layer %(layer)s.", method=face["method"], layer=face["layer"])
    differences = [item["difference"] for item in explanation.faces if item["difference"] is not None]
    if not differences:
        return words
    return f"{words} " + say.say(
        "The scores behind the heatmaps agree with those of the verdict: they differ by at most %(difference)s "
        "(allowed: %(tolerance)s).",
        difference=say.number(max(1e-5, *differences), 5), tolerance=say.number(face["tolerance"], 4),
    )  # fmt: skip


@router.get("/analyses/{analysis_id}/moments")
async def moments(analysis_id: str, request: Request) -> Response:
    """Show the faces and their heatmaps as a part of the result's page."""
    desk: Desk = request.state.desk
    analysis = await in_store(desk.find, analysis_id)
    if analysis.verdict is None:
        raise without_verdict(analysis)
    values = await moments_values(desk, language_of(request), request.app.state.settings, analysis)
    return render("moments.html.j2", request, analysis=analysis, **values)


@router.post("/analyses/{analysis_id}/moments")
async def draw(
    analysis_id: str,
    request: Request,
    method: Annotated[str, Form()] = METHODS[0],
    layer: Annotated[str, Form(max_length=200)] = "",
) -> Response:
    """Ask for heatmaps of all faces that are shown."""
    desk: Desk = request.state.desk
    analysis = await in_store(desk.find, analysis_id)
    names = [face["name"] for face in listed_faces(analysis.verdict or {})]
    try:
        form = ExplanationForm.model_validate({"method": method, "layer": layer or None, "crops": names or None})
    except ValidationError:
        raise Problem(422, f"`method` is {method[:40]!r}; it is one of {', '.join(METHODS)}") from None
    await in_media(desk.explanations.begin, analysis, form)
    if "hx-request" in request.headers:
        return await moments(analysis_id, request)
    return RedirectResponse(f"/analyses/{analysis_id}#moments", status_code=303)


@router.get("/explainer/layers")
async def layers(request: Request) -> Response:
    """Return the layers to choose from, as options of a select."""
    _, about = await explainer_of(request.app.state.settings)
    return HTMLResponse("".join(f"<option>{escape(name)}</option>" for name in about.get("layers", [])))
