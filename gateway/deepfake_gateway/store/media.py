"""`Media`: where the media of analyses are kept; and what kind of medium a file's first bytes say that it is.

Uploads come to a folder of this machine, and from there to `MediaFolder`, beside it, or to a `MediaBucket`.
"""

from __future__ import annotations

import secrets
import shutil
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import AbstractContextManager, ExitStack, asynccontextmanager, contextmanager, suppress
from pathlib import Path
from typing import Final, Protocol

from deepfake_gateway.store.threads import in_media
from deepfake_preprocess.errors import DeepfakeError
from deepfake_preprocess.support.files import write_whole

UNKNOWN: Final = "application/octet-stream"
SNIFF_BYTES: Final = 64
PIECE_BYTES: Final = 2**20
"""Read at once of a medium that is passed on."""


class MediaAwayError(DeepfakeError, ConnectionError):
    """Where media are kept gives no answer; later it may."""


class Media(Protocol):
    """One medium for each analysis, by its id, and the files that were made of it; and uploads on their way.

    Its methods block, and raise MediaAwayError where it cannot be reached.
    """

    def check(self) -> None:
        """Raise MediaAwayError where it cannot be reached, soon."""
        ...

    def new_upload(self) -> Path:
        """Return a path for an upload that is on its way."""
        ...

    def keep(self, upload: Path, analysis_id: str) -> None:
        """Take a finished upload as the medium of an analysis."""
        ...

    def send_again(self, analysis_id: str, path: Path) -> None:
        """Make the medium of an analysis an upload once more; FileNotFoundError where it is gone."""
        ...

    def local(self, analysis_id: str) -> AbstractContextManager[Path]:
        """Yield the medium of an analysis as a file that can be opened; FileNotFoundError where it is gone."""
        ...

    def size(self, analysis_id: str) -> int | None:
        """Return the size of a medium in bytes, or None where it is gone."""
        ...

    def pieces(self, analysis_id: str, start: int, stop: int) -> Iterator[bytes]:
        """Yield the bytes of a medium from `start` up to `stop`; FileNotFoundError where it is gone."""
        ...

    def put(self, analysis_id: str, name: str, data: bytes) -> bool:
        """Keep a file that was made of a medium, as a whole or not at all; False where the analysis was deleted."""
        ...

    def read(self, analysis_id: str, name: str) -> bytes | None:
        """Return a file that was made of a medium, or None where there is none."""
        ...

    def kept(self) -> list[str]:
        """Return the analyses of which there are files."""
        ...

    def kept_since(self, analysis_id: str) -> float:
        """Return when the files of an analysis began to be there, in seconds since 1970; now where there are none."""
        ...

    def discard_uploads(self, before: float) -> None:
        """Remove uploads that nothing was added to since a time in seconds since 1970."""
        ...

    def delete(self, analysis_id: str) -> None:
        """Remove all files of an analysis."""
        ...


@asynccontextmanager
async def local_file(media: Media, analysis_id: str) -> AsyncIterator[Path]:
    """Yield the medium of an analysis as a file; see `Media.local`."""
    with ExitStack() as stack:
        yield await in_media(stack.enter_context, media.local(analysis_id))


class Incoming:
    """A folder of uploads that are on their way."""

    def __init__(self, root: Path) -> None:
        self._incoming = root / "incoming"
        self._incoming.mkdir(parents=True, exist_ok=True, mode=0o700)

    def new_upload(self) -> Path:
        """See `Media.new_upload`."""
        return self._incoming / secrets.token_hex(16)

    def discard_uploads(self, before: float) -> None:
        """See `Media.discard_uploads`."""
        for path in self._incoming.iterdir():
            with suppress(FileNotFoundError):
                if path.stat().st_mtime < before:
                    path.unlink()


class MediaFolder(Incoming):
    """A folder with one folder per analysis, `ID/media`, in which what was made of it is kept as well."""

    def __init__(self, root: Path) -> None:
        super().__init__(root)
        self._root = root / "media"
        self._root.mkdir(parents=True, exist_ok=True, mode=0o700)

    def check(self) -> None:
        """See `Media.check`; a folder is there."""

    def keep(self, upload: Path, analysis_id: str) -> None:
        """See `Media.keep`."""
        folder = self._root / analysis_id
        folder.mkdir(mode=0o700)
        upload.rename(folder / "media")

    def send_again(self, analysis_id: str, path: Path) -> None:
        """See `Media.send_again`: without a copy."""
        path.hardlink_to(self.path(analysis_id))

    def path(self, analysis_id: str) -> Path:
        """Return where the medium of an analysis is, or was."""
        return self._root / analysis_id / "media"

    @contextmanager
    def local(self, analysis_id: str) -> Iterator[Path]:
        """See `Media.local`."""
        path = self.path(analysis_id)
        path.stat()
        yield path

    def size(self, analysis_id: str) -> int | None:
        """See `Media.size`."""
        try:
            return self.path(analysis_id).stat().st_size
        except FileNotFoundError:
            return None

    def pieces(self, analysis_id: str, start: int, stop: int) -> Iterator[bytes]:
        """See `Media.pieces`."""
        with self.path(analysis_id).open("rb") as file:
            file.seek(start)
            while start < stop and (piece := file.read(min(PIECE_BYTES, stop - start))):
                start += len(piece)
                yield piece

    def put(self, analysis_id: str, name: str, data: bytes) -> bool:
        """See `Media.put`."""
        path = self._root / analysis_id / name
        try:
            if "/" in name:
                path.parent.mkdir(exist_ok=True, mode=0o700)  # never the folder of the analysis itself
            write_whole(path, data)
        except FileNotFoundError:
            return False
        return True

    def read(self, analysis_id: str, name: str) -> bytes | None:
        """See `Media.read`."""
        try:
            return (self._root / analysis_id / name).read_bytes()
        except FileNotFoundError:
            return None

    def kept(self) -> list[str]:
        """See `Media.kept`."""
        return [folder.name for folder in self._root.iterdir()]

    def kept_since(self, analysis_id: str) -> float:
        """See `Media.kept_since`."""
        try:
            return (self._root / analysis_id).stat().st_mtime
        except FileNotFoundError:
            return time.time()

    def delete(self, analysis_id: str) -> None:
        """See `Media.delete`."""
        shutil.rmtree(self._root / analysis_id, ignore_errors=True)


def media_type_of(head: bytes) -> str:
    """Return the media type that a file begins as: of a video or a picture, else `UNKNOWN`.

    By its bytes and never by its name, so that no upload can make itself a page: what is not known is only ever
    offered as a download.
    """
    if head[4:8] == b"ftyp":
        return "image/avif" if head[8:12] in (b"avif", b"avis") else "video/mp4"
    if head.startswith(b"\x1a\x45\xdf\xa3"):
        return "video/webm" if b"webm" in head else "video/x-matroska"
    if head.startswith(b"RIFF") and head[8:12] == b"AVI ":
        return "video/x-msvideo"
    if head.startswith(b"RIFF") and head[8:12] == b"WEBP":
        return "image/webp"
    for magic, kind in _MAGIC.items():
        if head.startswith(magic):
            return kind
    return UNKNOWN


_MAGIC: Final = {
    b"\xff\xd8\xff": "image/jpeg",
    b"\x89PNG\r\n\x1a\n": "image/png",
    b"GIF87a": "image/gif",
    b"GIF89a": "image/gif",
    b"BM": "image/bmp",
    b"OggS": "video/ogg",
    b"FLV\x01": "video/x-flv",
    b"\x00\x00\x01\xba": "video/mpeg",
}
