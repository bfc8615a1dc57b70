"""`MediaFolder`: the media of analyses as files, and what kind of medium a file's first bytes say that it is."""

from __future__ import annotations

import secrets
import shutil
import time
from contextlib import suppress
from pathlib import Path
from typing import Final

from deepfake_preprocess.support.files import write_whole

UNKNOWN: Final = "application/octet-stream"
SNIFF_BYTES: Final = 64


class MediaFolder:
    """A folder with one folder per analysis, `ID/media`, in which what was made of it is kept as well."""

    def __init__(self, root: Path) -> None:
        self._root = root / "media"
        self._incoming = root / "incoming"
        for folder in (self._root, self._incoming):
            folder.mkdir(parents=True, exist_ok=True, mode=0o700)

    def new_upload(self) -> Path:
        """Return a path for an upload that is on its way."""
        return self._incoming / secrets.token_hex(16)

    def keep(self, upload: Path, analysis_id: str) -> None:
        """Take a finished upload as the medium of an analysis."""
        folder = self._root / analysis_id
        folder.mkdir(mode=0o700)
        upload.rename(folder / "media")

    def link(self, analysis_id: str, path: Path) -> None:
        """Make the medium of an analysis an upload once more, without a copy; FileNotFoundError where it is gone."""
        path.hardlink_to(self.path(analysis_id))

    def path(self, analysis_id: str) -> Path:
        """Return where the medium of an analysis is, or was."""
        return self._root / analysis_id / "media"

    def put(self, analysis_id: str, name: str, data: bytes) -> bool:
        """Keep a file that was made of a medium, as a whole or not at all; False where the analysis was deleted."""
        path = self._root / analysis_id / name
        try:
            if "/" in name:
                path.parent.mkdir(exist_ok=True, mode=0o700)  # never the folder of the analysis itself
            write_whole(path, data)
        except FileNotFoundError:
            return False
        return True

    def read(self, analysis_id: str, name: str) -> bytes | None:
        """Return a file that was made of a medium, or None where there is none."""
        try:
            return (self._root / analysis_id / name).read_bytes()
        except FileNotFoundError:
            return None

    def kept(self) -> list[str]:
        """Return the analyses of which there are files."""
        return [folder.name for folder in self._root.iterdir()]

    def kept_since(self, analysis_id: str) -> float:
        """Return when the files of an analysis began to be there, in seconds since 1970; now where there are none."""
        try:
            return (self._root / analysis_id).stat().st_mtime
        except FileNotFoundError:
            return time.time()

    def discard_uploads(self, before: float) -> None:
        """Remove uploads that nothing was added to since a time in seconds since 1970."""
        for path in self._incoming.iterdir():
            with suppress(FileNotFoundError):
                if path.stat().st_mtime < before:
                    path.unlink()

    def delete(self, analysis_id: str) -> None:
        """Remove all files of an analysis."""
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
