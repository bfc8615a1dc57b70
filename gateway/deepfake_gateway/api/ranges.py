"""`ranged`: the bytes of a medium, or the one range of them that a request asks for (RFC 9110, section 14)."""

from __future__ import annotations

import re
from collections.abc import AsyncIterator, Callable, Iterator, Mapping

from fastapi import Request
from fastapi.responses import Response, StreamingResponse

from deepfake_gateway.intake.problems import Problem
from deepfake_gateway.store.threads import in_media


def ranged(
    request: Request,
    size: int,
    pieces: Callable[[int, int], Iterator[bytes]],
    *,
    media_type: str,
    headers: Mapping[str, str],
) -> Response:
    """Answer with all of `size` bytes, or with the range that is asked for; `pieces` yields those between two places.

    What is no single range of bytes, or is asked for of another version, is answered with all, as the RFC allows. Who
    has this version already (``If-None-Match``) is told so, with 304.

    Raises:
        Problem: 416, the range begins behind the end.
    """
    known = {tag.strip().removeprefix("W/") for tag in request.headers.get("if-none-match", "").split(",")}
    if known & {"*", headers["ETag"]}:
        return Response(status_code=304, headers=dict(headers))
    asked = request.headers.get("range", "")
    if request.headers.get("if-range") not in (None, headers["ETag"]):
        asked = ""
    found = re.fullmatch(r"\s*bytes\s*=\s*([0-9]{0,99})-([0-9]{0,99})\s*", asked, re.IGNORECASE)
    start, stop = 0, size
    if found and found[1]:
        start = int(found[1])
        stop = min(size, int(found[2]) + 1) if found[2] else size
        if found[2] and int(found[2]) < start:
            found, start, stop = None, 0, size
    elif found and found[2]:
        start = max(0, size - int(found[2]))
    else:
        found = None
    if start >= stop:
        raise Problem(
            416, f"the range {asked[:80]!r} begins behind the end; the file has {size} bytes",
            {"Content-Range": f"bytes */{size}"},
        )  # fmt: skip
    given = {**headers, "Accept-Ranges": "bytes", "Content-Length": str(stop - start)}
    if found:
        given["Content-Range"] = f"bytes {start}-{stop - 1}/{size}"
    return StreamingResponse(_one_by_one(pieces(start, stop)), 206 if found else 200, given, media_type)


async def _one_by_one(pieces: Iterator[bytes]) -> AsyncIterator[bytes]:
    while piece := await in_media(next, pieces, b""):
        yield piece
