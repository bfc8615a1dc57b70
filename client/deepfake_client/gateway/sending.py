"""What goes to a verdict service: options as its fields, inputs in pieces; and what its failures are here."""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path
from typing import Any, BinaryIO, Final, TypeAlias

from deepfake_client.options import AnalyzeOptions
from deepfake_client.sources.inputs import opened
from deepfake_preprocess import errors
from deepfake_preprocess.errors import DeepfakeError, InferenceError, MediaOpenError, OptionError
from deepfake_preprocess.media.opening import Media
from deepfake_preprocess.media.remote import is_url

EncodedSource: TypeAlias = str | os.PathLike[str] | bytes | BinaryIO
"""One input that can be sent: a path, an address that the service fetches, an encoded file in memory or open."""
PIECE_BYTES: Final = 2**20


def fields_of(options: AnalyzeOptions) -> dict[str, str]:
    """Return options as the service's fields; those that are None are left out."""
    sampling = options.sampling
    if sampling.at_seconds is not None:
        raise OptionError("`at_seconds` cannot be asked of a gateway; give `num_frames` or `fps`, or ask Triton")
    if options.timeout_s is not None:
        raise OptionError("`timeout_s` is for requests to Triton; set the deadline in the connection to the gateway")
    fields = {
        "num_frames": sampling.num_frames,
        "fps": sampling.fps,
        "mode": sampling.mode,
        "aggregation": options.aggregation,
        "threshold": options.threshold,
        "until_sure": options.until_sure,
        "min_face_px": options.min_face_px,
        "min_face_share": options.min_face_share,
    }
    return {name: str(value) for name, value in fields.items() if value is not None}


def content_of(source: Any) -> str | bytes:
    """Return the path or address of an input, or its bytes."""
    if isinstance(source, str | os.PathLike):
        return os.fsdecode(source)
    if isinstance(source, bytes | bytearray | memoryview):
        return bytes(source)
    if hasattr(source, "read") and hasattr(source, "seek"):
        source.seek(0)
        if isinstance(data := source.read(), bytes):
            return data
    raise MediaOpenError(
        f"a gateway takes encoded videos and images: a path, an address, bytes or a binary file; got a "
        f"{type(source).__name__}"
    )


@asynccontextmanager
async def opened_here(content: str | bytes, name: str, *, needed: bool) -> AsyncIterator[Media | None]:
    """Open an input, which checks it; an address is the service's to fetch, and opened only where it is needed."""
    if isinstance(content, str) and is_url(content) and not needed:
        yield None
        return
    async with opened(content, name=name) as (media, _):
        yield media


async def pieces_of(content: str | bytes) -> AsyncIterator[bytes]:
    """Yield the pieces of what is in memory, or of the file at a path."""
    if isinstance(content, bytes):
        for start in range(0, len(content), PIECE_BYTES):
            yield content[start : start + PIECE_BYTES]
        return
    file = await asyncio.to_thread(Path(content).open, "rb")
    try:
        while piece := await asyncio.to_thread(file.read, PIECE_BYTES):
            yield piece
    finally:
        file.close()


@contextmanager
def understood(url: str) -> Iterator[None]:
    """Translate what an answer of another version of the service raises where it is read."""
    try:
        yield
    except (KeyError, TypeError, ValueError) as exc:
        raise InferenceError(
            f"the gateway at {url} answers otherwise than this client understands ({type(exc).__name__}: {exc}); use "
            "the same version of deepfake-serving on both sides"
        ) from exc


def error_of(analysis: dict[str, Any], name: str, url: str) -> DeepfakeError:
    """Return what kept an analysis from its verdict."""
    error = analysis.get("error")
    if error is None:
        status = analysis.get("status", "deleted")
        return InferenceError(f"{name}: the analysis was {status} at the gateway at {url}; send it again")
    kind = getattr(errors, error["type"], None)
    if not (isinstance(kind, type) and issubclass(kind, DeepfakeError)):
        # A process that opened the file died of it, or the gateway has kinds of its own.
        kind = MediaOpenError if error["type"] == "SandboxError" else InferenceError
    sent_as = analysis["file"]["name"] if "file" in analysis else name
    return kind(error["message"].replace(sent_as, name, 1))
