"""Folders of this machine and prefixes of buckets, behind one small interface; foreign errors are translated here.

Buckets (``s3://``, ``gs://``, ``az://``) are reached through object_store (obstore), with the credentials and
endpoints of the environment, as its documentation lists them (``AWS_ACCESS_KEY_ID``, ``AWS_ENDPOINT_URL``, ...).
"""

from __future__ import annotations

import functools
import io
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, Final, Protocol, cast

from deepfake_preprocess.errors import MediaNotFoundError, MediaOpenError, OptionError
from deepfake_preprocess.support.extras import require_extra
from deepfake_preprocess.support.files import write_whole

BUCKET_SCHEMES: Final = ("s3://", "s3a://", "gs://", "az://", "abfs://", "abfss://")
READ_BYTES: Final = 4 * 2**20
"""Read at once of an object that is opened: few requests, and little more than is asked for."""


def is_bucket(address: str) -> bool:
    """Return whether an address is that of an object or a prefix in a bucket."""
    return address.startswith(BUCKET_SCHEMES)


@dataclass(frozen=True, slots=True)
class Entry:
    """A file or an object: its path below the storage, and what changes with its content."""

    path: str
    size: int
    version: str


class Storage(Protocol):
    """Named files below one folder or prefix. OptionError where it cannot be read or written."""

    address: str

    def names(self, folder: str) -> list[str]:
        """Return the names of the files in a folder, sorted; none where there is no such folder."""
        ...

    def open(self, name: str) -> BinaryIO:
        """Open a file for reading. FileNotFoundError where it is missing."""
        ...

    def write(self, name: str, content: bytes | Path) -> None:
        """Write a file that readers find completely or not at all: bytes, or what another file holds."""
        ...

    def delete(self, name: str) -> None:
        """Remove a file, if it is there."""
        ...


def open_storage(address: str) -> Storage:
    """Return the storage at an address; its folder is made with the first file."""
    return Bucket(address) if is_bucket(address) else Folder(Path(address))


class Folder:
    """A folder of this machine."""

    def __init__(self, path: Path) -> None:
        self._path = path.absolute()
        self.address = str(self._path)

    def names(self, folder: str) -> list[str]:
        """See `Storage.names`."""
        with self._checked("read"):
            directory = self._path / folder
            hidden = (".",)
            return (
                sorted(item.name for item in directory.iterdir() if not item.name.startswith(hidden))
                if (directory.is_dir())
                else []
            )

    def open(self, name: str) -> BinaryIO:
        """See `Storage.open`."""
        return (self._path / name).open("rb")

    def write(self, name: str, content: bytes | Path) -> None:
        """See `Storage.write`."""
        target = self._path / name
        with self._checked("written"):
            target.parent.mkdir(parents=True, exist_ok=True)
            write_whole(target, content.read_bytes() if isinstance(content, Path) else content)

    def delete(self, name: str) -> None:
        """See `Storage.delete`."""
        with self._checked("written"):
            (self._path / name).unlink(missing_ok=True)

    @contextmanager
    def _checked(self, what: str) -> Iterator[None]:
        try:
            yield
        except OSError as exc:
            raise OptionError(
                f"`output` {self.address} cannot be {what} ({exc.strerror}); free some space, or name another folder"
            ) from exc


class Bucket:
    """A prefix of a bucket."""

    def __init__(self, address: str) -> None:
        self.address = address.rstrip("/")
        self._obstore = _obstore()
        self._store = _store(self.address)

    def names(self, folder: str) -> list[str]:
        """See `Storage.names`."""
        with _translated(self.address):
            chunks = self._obstore.list(self._store, prefix=folder)
            return sorted(entry["path"].rpartition("/")[2] for chunk in chunks for entry in chunk)

    def open(self, name: str) -> BinaryIO:
        """See `Storage.open`."""
        try:
            return open_object(f"{self.address}/{name}")
        except MediaNotFoundError as exc:
            raise FileNotFoundError(name) from exc

    def write(self, name: str, content: bytes | Path) -> None:
        """See `Storage.write`. Objects appear completely or not at all."""
        with _translated(self.address):
            self._obstore.put(self._store, name, content)

    def delete(self, name: str) -> None:
        """See `Storage.delete`."""
        with _translated(self.address):
            self._obstore.delete(self._store, name)


def list_objects(address: str) -> Iterator[Entry]:
    """Yield the objects below a prefix, in the order of the bucket; paths are those below the bucket."""
    root, _, prefix = _split(address)
    with _translated(address):
        for chunk in _obstore().list(_store(root), prefix=prefix or None):
            for entry in chunk:
                version = entry["e_tag"] or entry["last_modified"].isoformat()
                yield Entry(entry["path"], entry["size"], version)


def bucket_of(address: str) -> str:
    """Return the address of an object's bucket."""
    return _split(address)[0]


def open_object(address: str) -> BinaryIO:
    """Open an object of a bucket for reading; MediaNotFoundError or MediaOpenError where that fails."""
    root, _, path = _split(address)
    with _translated(address, MediaOpenError):
        raw = _Object(_obstore(), _store(root), path, address)
    return cast(BinaryIO, io.BufferedReader(raw, READ_BYTES))


class _Object(io.RawIOBase):
    """Reads an object by ranges."""

    def __init__(self, obstore: Any, store: Any, path: str, address: str) -> None:
        self._obstore, self._store, self._path, self._address = obstore, store, path, address
        self._size: int = obstore.head(store, path)["size"]
        self._place = 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        base = {io.SEEK_SET: 0, io.SEEK_CUR: self._place, io.SEEK_END: self._size}[whence]
        self._place = max(0, base + offset)
        return self._place

    def tell(self) -> int:
        return self._place

    def readinto(self, buffer: Any) -> int:
        length = min(len(buffer), self._size - self._place)
        if length <= 0:
            return 0
        with _translated(self._address, MediaOpenError):
            found = self._obstore.get_range(self._store, self._path, start=self._place, length=length)
        data = memoryview(found)
        buffer[: len(data)] = data
        self._place += len(data)
        return len(data)


def _split(address: str) -> tuple[str, str, str]:
    """Return the address of the bucket, the separator, and the path below it."""
    scheme, _, rest = address.partition("://")
    bucket, slash, path = rest.partition("/")
    return f"{scheme}://{bucket}", slash, path


@functools.lru_cache(maxsize=64)
def _store(address: str) -> Any:
    with _translated(address):
        return require_extra("obstore.store", extra="scan").from_url(address)


def _obstore() -> Any:
    return require_extra("obstore", extra="scan")


@contextmanager
def _translated(address: str, kind: type[Exception] = OptionError) -> Iterator[None]:
    """Translate what obstore raises; the only place that does."""
    errors = require_extra("obstore.exceptions", extra="scan")
    try:
        yield
    except (errors.NotFoundError, FileNotFoundError) as exc:
        raise MediaNotFoundError(f"there is no {address}; check the address") from exc
    except (errors.UnauthenticatedError, errors.PermissionDeniedError) as exc:
        raise kind(
            f"access to {address} is denied; give credentials in the environment (AWS_..., GOOGLE_..., AZURE_...)"
        ) from exc
    except (errors.BaseError, OSError, ValueError) as exc:
        reason = " ".join(str(exc).split())[:300]
        raise kind(
            f"{address} cannot be reached ({reason}); check the address, the credentials and the network"
        ) from exc
