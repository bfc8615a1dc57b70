"""The start page, what is sent from it, and files that were sent together."""

from __future__ import annotations

from collections import Counter
from typing import Annotated, Any, Final

from fastapi import APIRouter, Form, Request
from fastapi.responses import RedirectResponse, Response

from deepfake_gateway.addresses import MAX_URL
from deepfake_gateway.intake.fetching import Fetcher
from deepfake_gateway.intake.sink import Sink
from deepfake_gateway.intake.submission import Desk
from deepfake_gateway.intake.upload import MAX_FILES, received_together
from deepfake_gateway.settings import Settings
from deepfake_gateway.store.analysis import UNFINISHED, Filters
from deepfake_gateway.store.batches import Batch
from deepfake_gateway.store.threads import in_media, in_store
from deepfake_gateway.web.language import Language, language_of
from deepfake_gateway.web.progress import Progress, progress_of
from deepfake_gateway.web.rendering import render
from deepfake_gateway.web.words import label_words, state_words

RECENT: Final = 8
RECENT_BATCHES: Final = 4
FIELDS: Final = ("num_frames", "threshold")
"""Options that the page asks for."""
ORDER: Final = ("FAKE", "INCONCLUSIVE", "REAL", "running", "queued", "failed", "canceled")
"""Order of outcomes in a batch: what needs a look comes first."""

router = APIRouter(include_in_schema=False)


@router.get("/")
async def start(request: Request) -> Response:
    """Show where files are sent, what runs, and what was found last."""
    desk, settings, say = _parts(request)
    unfinished = [
        analysis
        for status in reversed(UNFINISHED)
        for analysis in await in_store(desk.store.page, Filters(status=status.value), limit=RECENT)
    ]
    recent = await in_store(desk.store.page, Filters(), limit=RECENT)
    return render(
        "start.html.j2",
        request,
        running=[await progress_of(desk, say, analysis) for analysis in unfinished],
        recent=[await progress_of(desk, say, analysis) for analysis in recent if analysis.status.is_final],
        batches=await in_store(desk.batches.store.latest, RECENT_BATCHES),
        max_bytes=settings.max_upload_bytes,
        max_files=MAX_FILES,
        media_hours=f"{settings.media_hours:g}",
        takes_addresses=settings.url_intake,
        address=str(request.base_url).rstrip("/"),
    )


@router.post("/")
async def upload(request: Request) -> Response:
    """Take the start page's form: one file, whose result is shown, or several, which become a batch."""
    desk, settings, _ = _parts(request)
    async with received_together(request, desk.media.new_upload, max_bytes=settings.max_upload_bytes) as (
        files,
        sent,
    ):
        fields = {name: value for name, value in sent.items() if name in FIELDS}
        if len(files) > 1:
            batch = await desk.batches.submit(files, fields, "")
            return _shown(f"/batches/{batch.id}")
        if isinstance(files[0], tuple):
            raise files[0][1]
        submitted = await desk.submit(files[0], fields)
    return _shown(f"/analyses/{submitted.analysis.id}")


@router.post("/addresses")
async def fetch(request: Request, url: Annotated[str, Form(max_length=MAX_URL)]) -> Response:
    """Take a file by its address, and show its result's page."""
    desk, settings, _ = _parts(request)
    sink = Sink(desk.media.new_upload(), settings.max_upload_bytes)
    try:
        await Fetcher(settings, request.state.on_its_way).fetch(url, sink)
        submitted = await desk.submit(sink.finished(("url",)), {})
    finally:
        sink.discard()
    return _shown(f"/analyses/{submitted.analysis.id}")


@router.get("/batches/{batch_id}")
async def batch(batch_id: str, request: Request) -> Response:
    """Show files that were sent together; with ``?delete`` ask whether to remove them."""
    desk, _, say = _parts(request)
    found = await in_store(desk.batches.find, batch_id)
    asks = "delete" in request.query_params
    return render("batch.html.j2", request, asks=asks, **await _batch_values(desk, say, found))


@router.get("/batches/{batch_id}/part")
async def batch_part(batch_id: str, request: Request) -> Response:
    """Show what became of the files of a batch, as a part of its page."""
    desk, _, say = _parts(request)
    found = await in_store(desk.batches.find, batch_id)
    return render("batch_part.html.j2", request, **await _batch_values(desk, say, found))


@router.post("/batches/{batch_id}/delete")
async def delete_batch(batch_id: str, request: Request) -> Response:
    """Remove files that were sent together, and go back to the start."""
    desk, _, _ = _parts(request)
    await in_media(desk.batches.delete, batch_id)
    return _shown("/")


async def _batch_values(desk: Desk, say: Language, found: Batch) -> dict[str, Any]:
    known = [item.analysis for item in found.items if item.analysis is not None]
    items = [await progress_of(desk, say, analysis) for analysis in known]
    outcomes = Counter(_outcome(item) for item in items)
    others = [item for item in found.items if item.analysis is None]
    awaited = sum(item.url is not None for item in others)
    refused = sum(item.refusal is not None for item in others)
    without = (
        (say.say("to be fetched"), awaited),
        (say.say("not accepted"), refused),
        (say.say("deleted"), len(others) - awaited - refused),
    )
    finished = sum(item.analysis.status.is_final for item in items)
    return {
        "batch": found,
        "items": sorted(items, key=_urgency),
        "others": [item for item in others if item.url or item.refusal],
        "counts": [(outcome, _words(say, outcome), outcomes[outcome]) for outcome in ORDER if outcomes[outcome]]
        + [("", words, count) for words, count in without if count],
        "finished": finished,
        "expected": len(items) + awaited,
        "is_over": finished == len(items) + awaited,
    }


def _outcome(item: Progress) -> str:
    return item.analysis.label or item.analysis.status.value


def _words(say: Language, outcome: str) -> str:
    return label_words(say, outcome) if outcome.isupper() else state_words(say, outcome)


def _urgency(item: Progress) -> tuple[int, float]:
    return ORDER.index(_outcome(item)), -(item.analysis.fake_probability or 0.0)


def _parts(request: Request) -> tuple[Desk, Settings, Language]:
    return request.state.desk, request.app.state.settings, language_of(request)


def _shown(path: str) -> Response:
    return RedirectResponse(path, status_code=303)
