"""Uploads: a request's body goes to disk as it comes, and is hashed on the way.

Nothing of a file is held in memory but the piece that is being written, whatever its size.
"""

from __future__ import annotations

import json
import re
from collections.abc import AsyncIterator, Awaitable, Callable, Collection, Mapping
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, Final

from python_multipart.exceptions import FormParserError
from python_multipart.multipart import MultipartParser, parse_options_header
from starlette.requests import ClientDisconnect, Request

from deepfake_gateway.intake.fetching import Fetcher
from deepfake_gateway.intake.problems import Problem, json_of, repeated
from deepfake_gateway.intake.sink import (
    Sink,
    Upload,
    extended_name,
    file_name_of,
    safe_name,
    too_large,
)

MAX_FIELD_BYTES: Final = 4096
MAX_FIELDS: Final = 32
MAX_HEADER_BYTES: Final = 8192
MAX_JSON_BYTES: Final = 2**20
_FIELDS: Final = re.compile(rb"[\w%+.~*-]*=[\x21-\x7e]*\Z")
"""The head of a form in a body."""
MAX_FILES: Final = 1000
"""In one batch."""

Check = Callable[[Mapping[str, str]], object]
"""Raises Problem for the fields of a request that names addresses; nothing is fetched then."""


@asynccontextmanager
async def received(
    request: Request,
    path: Path,
    *,
    max_bytes: int,
    file_fields: Collection[str] = ("file",),
    fetcher: Fetcher | None = None,
    check: Check | None = None,
) -> AsyncIterator[Upload]:
    """Write the file of a request's body to `path`, and remove it at the end unless it was moved.

    A body is ``multipart/form-data`` with one of `file_fields`, or the file itself, whose name is in
    ``Content-Disposition``, or in the query as ``file_name``; with a `fetcher` also JSON with its ``url``, and the
    other fields beside it, which are given to `check` before the file is fetched.

    Raises:
        Problem: 400 for a broken body, 413 for one that is too large, 422 for none, or one that has what it may not;
            for an address see `Fetcher`.
    """
    _check_length(request, max_bytes)
    kind, parameters = parse_options_header(request.headers.get("content-type", ""))
    sink = Sink(path, max_bytes)
    try:
        try:
            if kind == b"multipart/form-data":
                _check_unnamed(request)
                await _read_form(request, sink, parameters.get(b"boundary", b""), file_fields)
            elif kind == b"application/json" and fetcher is not None:
                _check_unnamed(request)
                url, sink.upload.fields = await _read_json(request)
                if check is not None:
                    check(sink.upload.fields)
                await fetcher.fetch(url, sink)
            else:
                sink.upload.file_name = file_name_of(
                    request.headers.get("content-disposition", ""), request.query_params.get("file_name", "")
                )
                async for chunk in request.stream():
                    await sink.write(chunk)
                # What `curl --data-binary` sends is said to be a form, and is a file.
                if kind == b"application/x-www-form-urlencoded" and _FIELDS.match(sink.head):
                    raise Problem(
                        415, "the body is a form without a file; send multipart/form-data, or the file itself"
                    )
        except ClientDisconnect:
            raise Problem(400, "the upload broke off; send it again") from None
        yield sink.finished(file_fields)
    finally:
        sink.discard()


def media_type_in(request: Request) -> str:
    """Return what a request's body says that it is."""
    return parse_options_header(request.headers.get("content-type", ""))[0].decode("latin-1")


def _check_length(request: Request, max_bytes: int) -> None:
    length = request.headers.get("content-length", "")
    if length.isdigit() and int(length) > max_bytes + MAX_FIELDS * MAX_FIELD_BYTES:
        raise too_large(max_bytes)


def _check_unnamed(request: Request) -> None:
    """Refuse a name for a file that has one."""
    if "file_name" in request.query_params:
        raise Problem(
            422, "`file_name` is of a file that is the body itself; a form names its own, and an address does, too"
        )


class _Form:
    """Takes a form apart: fields into `fields`, files into `pieces`, where each begins with its name, a text."""

    def __init__(self, boundary: bytes, file_fields: Collection[str]) -> None:
        self.pieces: list[bytes | str] = []
        self.fields: dict[str, str] = {}
        self._file_fields = file_fields
        self._headers: dict[bytes, bytes] = {}
        self._header = b""
        self._value = b""
        self._field: str | None = None  # None while the file comes
        self._text = b""
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
        # Headers are bounded by `_check_header`, which says what to do.
        self.parser = MultipartParser(boundary, any_callbacks, max_header_size=2**20)

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
            raise Problem(422, "a header of the form is too long; send the file with a shorter name")

    def _header_ends(self) -> None:
        self._headers[self._header.lower()] = self._value
        self._header = self._value = b""

    def _headers_end(self) -> None:
        disposition = self._headers.get(b"content-disposition", b"")
        _, parameters = parse_options_header(disposition)
        # Forbidden in forms, and what .NET gives the name in that can be read.
        if (extended := extended_name(disposition.decode("latin-1"))) is not None:
            parameters[b"filename"] = extended.encode()
        name = parameters.get(b"name", b"").decode("utf-8", "replace")
        if name not in self._file_fields:
            if parameters.get(b"filename"):
                fields = " or ".join(sorted(self._file_fields))
                raise Problem(422, f"the file is in the field {name[:80]!r}; send it as {fields}")
            if len(self.fields) >= MAX_FIELDS:
                raise Problem(422, f"the form has more than {MAX_FIELDS} fields; send fewer")
            if name in self.fields:
                raise repeated("the form", name)
            self._field, self.fields[name] = name, ""
            return
        if b"filename" not in parameters and b"content-type" not in self._headers:
            raise Problem(422, f"the field {name!r} holds text and not a file; with curl, write {name}=@clip.mp4")
        self._field = None
        self.pieces.append(safe_name(parameters.get(b"filename", b"").decode("utf-8", "replace")))

    def _on_data(self, data: bytes, start: int, end: int) -> None:
        if self._field is None:
            self.pieces.append(data[start:end])
            return
        self._text += data[start:end]
        if len(self._text) > MAX_FIELD_BYTES:
            raise Problem(
                422, f"the field {self._field[:80]!r} is longer than {MAX_FIELD_BYTES} bytes; send the file as 'file'"
            )

    def _part_ends(self) -> None:
        if self._field is not None:
            self.fields[self._field] = self._text.decode("utf-8", "replace")

    def _end(self) -> None:
        self.ended = True


async def _read_form(request: Request, sink: Sink, boundary: bytes, file_fields: Collection[str]) -> None:
    """Read a form with one file."""
    has_file = False

    async def begin(name: str) -> Sink:
        nonlocal has_file
        if has_file:
            raise Problem(422, "the form has several files; send one request for each, or POST /v1/batches")
        has_file, sink.upload.file_name = True, name
        return sink

    sink.upload.fields = await _read_files(request, boundary, file_fields, begin)


async def _read_files(
    request: Request, boundary: bytes, file_fields: Collection[str], begin: Callable[[str], Awaitable[Sink]]
) -> dict[str, str]:
    """Read a form, each file of which goes where `begin` says for its name; returns the other fields."""
    sink: Sink | None = None
    if not boundary:
        raise Problem(
            400, "the Content-Type of the form has no boundary; let the program that makes the form set this header "
            "(with fetch and FormData, give none)",
        )  # fmt: skip
    try:
        form = _Form(boundary, file_fields)
        async for chunk in request.stream():
            form.parser.write(chunk)
            pieces, form.pieces = form.pieces, []
            for piece in pieces:
                if isinstance(piece, str):
                    sink = await begin(piece)
                elif sink is not None:
                    await sink.write(piece)
        form.parser.finalize()
    except FormParserError as exc:
        raise Problem(400, f"the form cannot be read ({exc}); send multipart/form-data as curl -F does") from None
    except ClientDisconnect:
        raise Problem(400, "the upload broke off; send it again") from None
    if not form.ended:
        raise Problem(400, "the form ends before its last boundary; send it again")
    return form.fields


@asynccontextmanager
async def received_together(
    request: Request, new_path: Callable[[], Path], *, max_bytes: int
) -> AsyncIterator[tuple[list[Upload | tuple[str, Problem]], dict[str, str]]]:
    """Write the files of a form.

    Yields each file, or its name and why it cannot be used, and the other fields. Files are removed at the end unless
    they were moved.

    Raises:
        Problem: 400 for a broken body, 413 for a file that is too large, 415 and 422 for what has no files.
    """
    kind, parameters = parse_options_header(request.headers.get("content-type", ""))
    if kind != b"multipart/form-data":
        raise Problem(415, "a batch is multipart/form-data with several `file`, or JSON with `urls`")
    sinks: list[Sink] = []

    async def begin(name: str) -> Sink:
        _check_count(len(sinks) + 1)
        if sinks:
            sinks[-1].close()
        sinks.append(Sink(new_path(), max_bytes))
        sinks[-1].upload.file_name = name
        return sinks[-1]

    try:
        fields = await _read_files(request, parameters.get(b"boundary", b""), ("file", "files"), begin)
        _check_count(len(sinks))
        yield [_one_of_many(sink) for sink in sinks], fields
    finally:
        for sink in sinks:
            sink.discard()


async def named_together(request: Request) -> tuple[list[str], dict[str, str]]:
    """Return the addresses that a JSON object has as ``urls``, and its other fields as a form would have them.

    Raises:
        Problem: 400 for a broken body, 413 for one that is too large, 422 for what has no addresses.
    """
    data = await _json_object(request)
    urls = data.pop("urls", None)
    if not isinstance(urls, list) or not all(isinstance(url, str) for url in urls):
        raise Problem(422, 'the JSON has no `urls`; send {"urls": [...]} and options beside it')
    _check_count(len(urls))
    return urls, _as_fields(data)


def _check_count(num_files: int) -> None:
    if num_files > MAX_FILES:
        raise Problem(413, f"the batch has more than {MAX_FILES} files; send several batches")
    if not num_files:
        raise Problem(422, "there is no file; send several as `file` of multipart/form-data, or JSON with `urls`")


def _one_of_many(sink: Sink) -> Upload | tuple[str, Problem]:
    try:
        return sink.finished(("file",))
    except Problem as problem:
        return sink.upload.file_name, problem


async def _read_json(request: Request) -> tuple[str, dict[str, str]]:
    """Return the ``url`` of a JSON object, and its other fields as a form would have them."""
    data = await _json_object(request)
    url = data.pop("url", None)
    if not isinstance(url, str):
        raise Problem(422, 'the JSON has no `url`; send {"url": ...} and options beside it')
    return url, _as_fields(data)


async def _json_object(request: Request) -> dict[str, Any]:
    body = b""
    async for chunk in request.stream():
        body += chunk
        if len(body) > MAX_JSON_BYTES:
            raise Problem(413, f"the JSON has more than {MAX_JSON_BYTES} bytes; send addresses and options only")
    try:
        data = json_of(body)
    except (ValueError, RecursionError):
        raise Problem(400, "the body is not JSON; send an object with addresses and options") from None
    if not isinstance(data, dict):
        raise Problem(422, "the JSON is not an object; send one with addresses and options")
    return data


def _as_fields(data: dict[str, Any]) -> dict[str, str]:
    given = {name: value for name, value in data.items() if value is not None}
    return {name: value if isinstance(value, str) else json.dumps(value) for name, value in given.items()}
