"""`Sink`: where a file goes that comes in pieces, whether it is sent or fetched; `Upload`: what it is in the end."""

from __future__ import annotations

import asyncio
import hashlib
import re
from collections.abc import Collection, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from email.message import Message
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import BinaryIO, Final
from unicodedata import normalize
from urllib.parse import unquote

from deepfake_gateway.intake.problems import Problem
from deepfake_gateway.store.media import SNIFF_BYTES, media_type_of

MAX_NAME: Final = 255
UNNAMED: Final = "upload"
_EXTENDED: Final = re.compile(r";\s*filename\*\s*=\s*(utf-8|iso-8859-1)'[^']*'([^\s;]+)", re.IGNORECASE)


@dataclass(slots=True)
class Upload:
    """A file that came, at `path`, and the fields that came with it."""

    path: Path
    file_name: str = UNNAMED
    size_bytes: int = 0
    sha256: str = ""
    media_type: str = ""
    fields: dict[str, str] = field(default_factory=dict)


def too_large(max_bytes: int) -> Problem:
    """Return the refusal of a file that is larger than it may be."""
    detail = f"the upload has more than {max_bytes} bytes; send a shorter part, or a smaller encoding"
    return Problem(413, detail, reason="max_upload_bytes")


class Sink:
    """Writes a file that comes in pieces, hashes it and counts."""

    def __init__(self, path: Path, max_bytes: int) -> None:
        self.upload = Upload(path)
        self._max_bytes = max_bytes
        self._hash = hashlib.sha256()
        self.head = b""
        with _room():
            self._file: BinaryIO = path.open("xb")
        path.chmod(0o600)

    def expect(self, size_bytes: int) -> None:
        """Refuse a file that says that it is too large."""
        if size_bytes > self._max_bytes:
            raise too_large(self._max_bytes)

    async def write(self, chunk: bytes) -> None:
        """Add a piece; Problem 413 where the file becomes too large."""
        upload = self.upload
        upload.size_bytes += len(chunk)
        self.expect(upload.size_bytes)
        if len(self.head) < SNIFF_BYTES:
            self.head += chunk[: SNIFF_BYTES - len(self.head)]
        with _room():
            await asyncio.to_thread(self._write, chunk)

    def _write(self, chunk: bytes) -> None:
        self._file.write(chunk)
        self._hash.update(chunk)

    def finished(self, file_fields: Collection[str]) -> Upload:
        """Return what came; Problem 422 where that is nothing."""
        if self.upload.size_bytes == 0 and self.upload.file_name != UNNAMED:
            raise Problem(422, "the file is empty; copy or download it again")
        if self.upload.size_bytes == 0:
            fields = " or ".join(sorted(file_fields))
            raise Problem(422, f"there is no file; send it as {fields} of multipart/form-data, or as the body")
        self.close()
        self.upload.sha256 = self._hash.hexdigest()
        self.upload.media_type = media_type_of(self.head)
        return self.upload

    def close(self) -> None:
        """Write what is left; Problem 503 where there is no room for it."""
        with _room():
            self._file.close()

    def discard(self) -> None:
        """Remove the file, unless it was moved."""
        with suppress(OSError):
            self._file.close()
        self.upload.path.unlink(missing_ok=True)


@contextmanager
def _room() -> Iterator[None]:
    """Turn what a full disk raises into Problem 503."""
    try:
        yield
    except OSError as exc:
        raise Problem(
            503, f"this service has no room for the file ({exc.strerror}); try again later", {"Retry-After": "60"}
        ) from exc


def file_name_of(disposition: str, otherwise: str) -> str:
    """Return the name of a file by its ``Content-Disposition``, or else the last part of another name."""
    with suppress(UnicodeError):  # headers are read as Latin-1, and most programs write UTF-8
        disposition = disposition.encode("latin-1").decode()
    name = extended_name(disposition)
    if name is None:
        message = Message()
        message["content-disposition"] = printable_of(disposition)
        with suppress(TypeError, ValueError):  # continuations (RFC 2231) that do not go together
            name = message.get_filename()
    return safe_name(name or otherwise)


def extended_name(disposition: str) -> str | None:
    """Return what ``filename*`` of a ``Content-Disposition`` says (RFC 6266): it comes before ``filename``."""
    if (found := _EXTENDED.search(disposition)) is None:
        return None
    try:
        return unquote(found[2], found[1], errors="strict")
    except UnicodeError:
        return None


def safe_name(name: str) -> str:
    """Return the last part of a file's name, without what cannot be printed."""
    last = PurePosixPath(PureWindowsPath(name).name).name
    printable = printable_of(last)[:MAX_NAME]
    return printable if printable.strip(".") else UNNAMED


def printable_of(text: str) -> str:
    """Return a text without what cannot be printed, which databases and terminals trip over.

    Its letters are composed (NFC), as they are typed who search for it; macOS takes the names of files apart.
    """
    return "".join(filter(str.isprintable, normalize("NFC", text)))
