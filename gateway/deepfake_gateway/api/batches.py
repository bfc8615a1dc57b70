"""Routes of batches: many files in one request, and what became of each."""

from __future__ import annotations

import csv
import io
from collections.abc import Mapping
from typing import Annotated, Any, Final

from fastapi import APIRouter, Query, Request
from fastapi.responses import JSONResponse, Response

from deepfake_gateway.addresses import MAX_URL
from deepfake_gateway.api.documents import BatchDocument, batch_json
from deepfake_gateway.api.parts import KNOWN_QUERY, DeskOf, FetcherOf, SettingsOf
from deepfake_gateway.intake.options import OptionsForm, form_properties
from deepfake_gateway.intake.problems import OF_BODIES, responses
from deepfake_gateway.intake.sink import MAX_NAME, printable_of
from deepfake_gateway.intake.upload import MAX_FILES, media_type_in, named_together, received_together
from deepfake_gateway.store.threads import in_media, in_store
from deepfake_preprocess.support.text import table_cell

router = APIRouter(tags=["batches"])

_OPTIONS: Final[dict[str, Any]] = OptionsForm.model_json_schema()["properties"]
_FIELDS: Final = form_properties()
_FILE: Final = {"type": "string", "contentMediaType": "application/octet-stream", "minLength": 1}
_NAME: Final = {"type": "string", "maxLength": MAX_NAME}
_BODY: Final = {
    "requestBody": {
        "required": True,
        "content": {
            "multipart/form-data": {
                "schema": {
                    "type": "object",
                    "required": ["file"],
                    "properties": {
                        "file": {"type": "array", "items": _FILE, "minItems": 1, "maxItems": MAX_FILES},
                        "name": _NAME,
                        **_FIELDS,
                    },
                    "additionalProperties": False,
                }
            },
            "application/json": {
                "schema": {
                    "type": "object",
                    "required": ["urls"],
                    "properties": {
                        "urls": {
                            "type": "array",
                            "items": {"type": "string", "maxLength": MAX_URL},
                            "minItems": 1,
                            "maxItems": MAX_FILES,
                        },
                        "name": _NAME,
                        **_OPTIONS,
                    },
                    "additionalProperties": False,
                }
            },
        },
    }
}


@router.post(
    "/v1/batches",
    status_code=202,
    dependencies=[KNOWN_QUERY],
    responses={
        202: {"model": BatchDocument, "description": "They are queued; `Location` is where they are."},
        **responses(*OF_BODIES),
    },
    openapi_extra=_BODY,
)
async def begin(request: Request, desk: DeskOf, settings: SettingsOf, fetcher: FetcherOf) -> Response:
    """Analyze many files with the same options, behind everything that somebody waits for.

    Send multipart with several ``file``, or where this service is set to fetch files, JSON with ``urls``: these are
    fetched after the answer, and each item says what became of its own.
    """

    def parts(fields: Mapping[str, str]) -> tuple[dict[str, str], str]:
        options = {name: value for name, value in fields.items() if name != "name"}
        return options, printable_of(fields.get("name", ""))[:MAX_NAME]

    if media_type_in(request) == "application/json":
        urls, fields = await named_together(request)
        batch = await desk.batches.submit_addresses(urls, *parts(fields), fetcher.check)
    else:
        async with received_together(request, desk.media.new_upload, max_bytes=settings.max_upload_bytes) as (
            files,
            fields,
        ):
            batch = await desk.batches.submit(files, *parts(fields))
    document = batch_json(batch, settings)
    return JSONResponse(document, 202, {"Location": document["links"]["self"]})


@router.get("/v1/batches/{batch_id}", responses={200: {"model": BatchDocument}, **responses(404)})
async def read(batch_id: str, desk: DeskOf, settings: SettingsOf) -> Response:
    """Read a batch: how many files came out how, and each of them."""
    return JSONResponse(batch_json(await in_store(desk.batches.find, batch_id), settings))


@router.delete("/v1/batches/{batch_id}", status_code=204, responses=responses(404))
async def delete(batch_id: str, desk: DeskOf) -> Response:
    """Remove a batch with all its analyses, their media, reports and results; what is awaited is not fetched."""
    await in_media(desk.batches.delete, batch_id)
    return Response(status_code=204)


@router.get(
    "/v1/batches/{batch_id}/report",
    responses={200: {"content": {"text/csv": {}}, "description": "A line for each file."}, **responses(404)},
    dependencies=[KNOWN_QUERY],
    response_class=Response,
)
async def report(batch_id: str, desk: DeskOf, format: Annotated[str, Query(pattern="^csv$")] = "csv") -> Response:
    """Return a table with a line for each file."""
    batch = await in_store(desk.batches.find, batch_id)
    out = io.StringIO()
    writer = csv.writer(out)
    writer.writerow(["file_name", "analysis", "status", "label", "fake_probability", "reason", "model", "problem"])
    for item in batch.items:
        found = item.analysis
        if found is None:
            status = "" if item.url is None else "awaited"
            problem = item.refusal or ("deleted" if item.url is None else "")
            row: list[Any] = [item.file_name, "", status, "", "", "", "", problem]
        else:
            row = [
                item.file_name, found.id, found.status.value, found.label, found.fake_probability, found.reason,
                found.model_name, found.error_detail,
            ]  # fmt: skip
        writer.writerow(map(table_cell, row))
    headers = {"Content-Disposition": f'attachment; filename="batch-{batch.id[:8]}.csv"'}
    return Response(out.getvalue(), media_type="text/csv; charset=utf-8", headers=headers)
