"""Uploads: a request's body goes to disk as it comes, and is hashed on the way.

Nothing of a file is held in memory but the piece that is being written, whatever its size.
"""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Callable, Collection
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, Final

from python_multipart.exceptions import FormParserError
from python_multipart.multipart import MultipartParser, parse_options_header
from starlette.requests import ClientDisconnect, Request

from deepfake_gateway.intake.fetching import Fetcher
from deepfake_gateway.intake.problems import Problem
from deepfake_gateway.intake.sink import Sink, Upload, file_name_of, safe_name, too_large

MAX_FIELD_BYTES: Final = 4096
MAX_FIELDS: Final = 32
MAX_HEADER_BYTES: Final = 8192
MAX_JSON_BYTES: Final = 65536


@asynccontextmanager
async def received(
    request: Request,
    path: Path,
    *,
    max_bytes: int,
    file_fields: Collection[str] = ("file",),
    fetcher: Fetcher | None = None,
) -> AsyncIterator[Upload]:
    """Write the file of a request's body to `path`, and remove it at the end unless it was moved.

    A body is ``multipart/form-data`` with one of `file_fields`, or the file itself, whose name is in
    ``Content-Disposition``, or in the query as ``file_name``; with a `fetcher` also JSON with its ``url``, and the
    other fields beside it.

    Raises:
        Problem: 400 for a broken body, 413 for one that is too large, 422 for none; for an address see `Fetcher`.
    """
    _check_length(request, max_bytes)
    kind, parameters = parse_options_header(request.headers.get("content-type", ""))
    sink = Sink(path, max_bytes)
    try:
        try:
            if kind == b"multipart/form-data":
                await _read_form(request, sink, parameters.get(b"boundary", b""), file_fields)
            elif kind == b"application/x-www-form-urlencoded":
                raise Problem(415, "the body is a form without a file; send multipart/form-data, or the file itself")
            elif kind == b"application/json" and fetcher is not None:
                fields = await _read_json(request)
                await fetcher.fetch(fields.pop("url"), sink)
                sink.upload.fields = fields
            else:
                sink.upload.file_name = file_name_of(
                    request.headers.get("content-disposition", ""), request.query_params.get("file_name", "")
                )
                async for chunk in request.stream():
                    await sink.write(chunk)
        except ClientDisconnect:
            raise Problem(400, "the upload broke off; send it again") from None
        yield sink.finished(file_fields)
    finally:
        sink.discard()


def _check_length(request: Request, max_bytes: int) -> None:
    length = request.headers.get("content-length", "")
    if length.isdigit() and int(length) > max_bytes + MAX_FIELDS * MAX_FIELD_BYTES:
        raise too_large(max_bytes)


class _Form:
    """Takes a form apart: pieces of the file in `pieces`, fields in the upload; only what callbacks leave behind."""

    def __init__(self, upload: Upload, boundary: bytes, file_fields: Collection[str]) -> None:
        self.pieces: list[bytes] = []
        self._upload, self._file_fields = upload, file_fields
        self._headers: dict[bytes, bytes] = {}
        self._header = b""
        self._value = b""
        self._field: str | None = None  # None while the file comes
        self._text = b""
        self._has_file = False
        self.ended = False
        callbacks: dict[str, Callable[..., None]] = {
            "on_part_begin": self._part_begins,
            "on_header_field": self._on_header_field,
            "on_header_value": self._on_header_value,
            "on_header_end": self._header_ends,
            "on_headers_finished": self._headers_end,
            "on_part_data": self._on_data,
            "on_part_end": self._part_ends,
            "on_end": self._end,
        }
        any_callbacks: Any = callbacks
        self.parser = MultipartParser(boundary, any_callbacks)

    def _part_begins(self) -> None:
        self._headers, self._text = {}, b""

    def _on_header_field(self, data: bytes, start: int, end: int) -> None:
        self._header += data[start:end]
        self._check_header()

    def _on_header_value(self, data: bytes, start: int, end: int) -> None:
        self._value += data[start:end]
        self._check_header()

    def _check_header(self) -> None:
        if len(self._header) + len(self._value) > MAX_HEADER_BYTES:
            raise Problem(400, "a header of the form is too long; send the file with a shorter name")

    def _header_ends(self) -> None:
        self._headers[self._header.lower()] = self._value
        self._header = self._value = b""

    def _headers_end(self) -> None:
        _, parameters = parse_options_header(self._headers.get(b"content-disposition", b""))
        name = parameters.get(b"name", b"").decode("utf-8", "replace")
        if name not in self._file_fields:
            if parameters.get(b"filename"):
                fields = " or ".join(sorted(self._file_fields))
                raise Problem(422, f"the file is in the field {name[:80]!r}; send it as {fields}")
            if len(self._upload.fields) >= MAX_FIELDS:
                raise Problem(400, f"the form has more than {MAX_FIELDS} fields; send fewer")
            self._field = name
            return
        if self._has_file:
            raise Problem(400, "the form has several files; send one request for each")
        self._has_file, self._field = True, None
        self._upload.file_name = safe_name(parameters.get(b"filename", b"").decode("utf-8", "replace"))

    def _on_data(self, data: bytes, start: int, end: int) -> None:
        if self._field is None:
            self.pieces.append(data[start:end])
            return
        self._text += data[start:end]
        if len(self._text) > MAX_FIELD_BYTES:
            raise Problem(
                400, f"the field {self._field[:80]!r} is longer than {MAX_FIELD_BYTES} bytes; send the file as 'file'"
            )

    def _part_ends(self) -> None:
        if self._field is not None:
            self._upload.fields[self._field] = self._text.decode("utf-8", "replace")

    def _end(self) -> None:
        self.ended = True


async def _read_form(request: Request, sink: Sink, boundary: bytes, file_fields: Collection[str]) -> None:
    try:
        form = _Form(sink.upload, boundary, file_fields)
        async for chunk in request.stream():
            form.parser.write(chunk)
            pieces, form.pieces = form.pieces, []
            for piece in pieces:
                await sink.write(piece)
        form.parser.finalize()
    except FormParserError as exc:
        raise Problem(400, f"the form cannot be read ({exc}); send multipart/form-data as curl -F does") from None
    if not form.ended:
        raise Problem(400, "the form ends before its last boundary; send it again")


async def _read_json(request: Request) -> dict[str, str]:
    """Return the fields of a small JSON object with a ``url``, as a form would have them."""
    body = b""
    async for chunk in request.stream():
        body += chunk
        if len(body) > MAX_JSON_BYTES:
            raise Problem(413, f"the JSON has more than {MAX_JSON_BYTES} bytes; send an address and options only")
    try:
        data = json.loads(body)
    except ValueError:
        raise Problem(400, 'the body is no JSON; send {"url": ...} and options') from None
    if not isinstance(data, dict) or not isinstance(data.get("url"), str):
        raise Problem(422, 'the JSON has no `url`; send {"url": ...} and options beside it')
    given = {name: value for name, value in data.items() if value is not None}
    return {name: value if isinstance(value, str) else json.dumps(value) for name, value in given.items()}
