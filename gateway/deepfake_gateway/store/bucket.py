"""`media_of`: where media are kept; `MediaBucket`: in a bucket, through object_store (obstore).

Credentials and endpoints come from the environment, as object_store's documentation lists them
(``AWS_ACCESS_KEY_ID``, ``AWS_ENDPOINT_URL``, ...). Uploads come to a folder of this machine first; nothing is held in
memory but pieces.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path
from typing import Any, Final

from deepfake_gateway.settings import Settings
from deepfake_gateway.store.media import PIECE_BYTES, Incoming, Media, MediaAwayError, MediaFolder
from deepfake_preprocess.errors import OptionError
from deepfake_preprocess.support.extras import require_extra

PART_BYTES: Final = 8 * 2**20
PARTS_AT_ONCE: Final = 3
"""Parts of one file that are sent at once."""
GIVE_UP_S: Final = 20.0
"""A request is repeated for this long; then the bucket counts as away."""


class MediaBucket(Incoming):
    """A prefix with one prefix per analysis, ``media/ID/``, in which are ``media`` and what was made of it."""

    def __init__(self, address: str, root: Path) -> None:
        """Connect to the bucket at an address such as ``s3://bucket/prefix``; uploads come to a folder in `root`.

        Raises:
            OptionError: the address is wrong, or the bucket cannot be read.
        """
        super().__init__(root)
        self._address, self._obstore = address, require_extra("obstore", extra="gateway")
        self._errors = require_extra("obstore.exceptions", extra="gateway")
        retry = {"max_retries": 4, "retry_timeout": timedelta(seconds=GIVE_UP_S)}
        from_url = require_extra("obstore.store", extra="gateway").from_url
        try:
            self._store = from_url(address, retry_config=retry)
            self._asked_once = from_url(address, retry_config={"max_retries": 0, "retry_timeout": timedelta(0)})
            self._look()
        except (self._errors.BaseError, OSError, ValueError) as exc:
            raise OptionError(
                f"`blobs` is {address}, which cannot be read ({_reason(exc)}); check the address, the network and "
                "the credentials in the environment (AWS_..., GOOGLE_..., AZURE_...)"
            ) from exc

    def check(self) -> None:
        """See `Media.check`."""
        with self._translated():
            self._look()

    def _look(self) -> None:
        next(iter(self._obstore.list(self._asked_once, prefix="media", chunk_size=1)), None)

    def keep(self, upload: Path, analysis_id: str) -> None:
        """See `Media.keep`."""
        with self._translated():
            self._obstore.put(
                self._store, _medium(analysis_id), upload, chunk_size=PART_BYTES, max_concurrency=PARTS_AT_ONCE
            )
        upload.unlink()

    def send_again(self, analysis_id: str, path: Path) -> None:
        """See `Media.send_again`."""
        with path.open("xb") as file:
            for piece in self._all(analysis_id):
                file.write(piece)

    @contextmanager
    def local(self, analysis_id: str) -> Iterator[Path]:
        """See `Media.local`: a copy that is there as long as it is needed."""
        path = self.new_upload()
        try:
            self.send_again(analysis_id, path)
            yield path
        finally:
            path.unlink(missing_ok=True)

    def size(self, analysis_id: str) -> int | None:
        """See `Media.size`."""
        about = self._about(analysis_id)
        return None if about is None else int(about["size"])

    def pieces(self, analysis_id: str, start: int, stop: int) -> Iterator[bytes]:
        """See `Media.pieces`."""
        while start < stop:
            length = min(PIECE_BYTES, stop - start)
            with self._translated():
                piece = bytes(self._obstore.get_range(self._store, _medium(analysis_id), start=start, length=length))
            start += len(piece)
            yield piece

    def put(self, analysis_id: str, name: str, data: bytes) -> bool:
        """See `Media.put`."""
        if self._about(analysis_id) is None:
            return False
        with self._translated():
            self._obstore.put(self._store, f"media/{analysis_id}/{name}", data)
        return True

    def read(self, analysis_id: str, name: str) -> bytes | None:
        """See `Media.read`."""
        try:
            with self._translated():
                return bytes(self._obstore.get(self._store, f"media/{analysis_id}/{name}").bytes())
        except FileNotFoundError:
            return None

    def kept(self) -> list[str]:
        """See `Media.kept`."""
        with self._translated():
            found = self._obstore.list_with_delimiter(self._store, prefix="media")
        return [prefix.rstrip("/").rpartition("/")[2] for prefix in found["common_prefixes"]]

    def kept_since(self, analysis_id: str) -> float:
        """See `Media.kept_since`."""
        about = self._about(analysis_id)
        return time.time() if about is None else float(about["last_modified"].timestamp())

    def delete(self, analysis_id: str) -> None:
        """See `Media.delete`."""
        with self._translated():
            for entries in self._obstore.list(self._store, prefix=f"media/{analysis_id}"):
                self._obstore.delete(self._store, [entry["path"] for entry in entries])

    def _all(self, analysis_id: str) -> Iterator[bytes]:
        size = self.size(analysis_id)
        if size is None:
            raise FileNotFoundError(_medium(analysis_id))
        return self.pieces(analysis_id, 0, size)

    def _about(self, analysis_id: str) -> dict[str, Any] | None:
        try:
            with self._translated():
                about: dict[str, Any] = self._obstore.head(self._store, _medium(analysis_id))
                return about
        except FileNotFoundError:
            return None

    @contextmanager
    def _translated(self) -> Iterator[None]:
        """Translate what obstore raises; the only place that does."""
        try:
            yield
        except (self._errors.NotFoundError, FileNotFoundError) as exc:
            raise FileNotFoundError(self._address) from exc
        except (self._errors.BaseError, OSError) as exc:
            raise MediaAwayError(
                f"{self._address}, where media are kept, gives no answer ({_reason(exc)}); try again later"
            ) from exc


def media_of(settings: Settings) -> Media:
    """Return where media are kept, as the settings say; OptionError where a bucket cannot be read."""
    if settings.blobs is None:
        return MediaFolder(settings.data_dir)
    return MediaBucket(settings.blobs, settings.data_dir)


def _medium(analysis_id: str) -> str:
    return f"media/{analysis_id}/media"


def _reason(error: Exception) -> str:
    return " ".join(str(error).split())[:200]
