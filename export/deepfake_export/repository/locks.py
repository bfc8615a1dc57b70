"""The lock that every change of a model holds, and the system's refusals to write, in plain words."""

from __future__ import annotations

import contextlib
import errno
import fcntl
from collections.abc import Iterator
from pathlib import Path

from deepfake_preprocess.contract.model_dir import who_locks
from deepfake_preprocess.errors import RepositoryError

NO_SPACE = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
NOT_WRITABLE = (
    *(errno.EACCES, errno.EPERM, errno.EROFS),
    *(errno.ENOTDIR, errno.EEXIST, errno.EISDIR, errno.EXDEV),
)
"""Refusals that trying again does not change."""


@contextlib.contextmanager
def locked(repository: Path, name: str, *, create: bool = True) -> Iterator[None]:
    """Hold the lock of one model, which every change of it needs; `create` makes a missing repository.

    Raises:
        RepositoryError: another change of the model is under way, or the repository cannot be written.
    """
    path = lock_path(repository, name)
    with writing(repository):
        if create:
            repository.mkdir(parents=True, exist_ok=True)
        # The file stays: removing it would let two processes lock two files of one name.
        stream = path.open("a")
    with stream:
        try:
            fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise RepositoryError(
                f"another export of {name!r}, or a rollback or prune, is running on {repository} "
                f"({who_locks(path)}); wait for it to end and try again"
            ) from None
        except OSError as exc:
            raise RepositoryError(
                f"{path} cannot be locked ({exc.strerror}); put the repository on a file system with locks"
            ) from exc
        yield


def lock_path(repository: Path, name: str) -> Path:
    """Return the file that is locked while a model is changed."""
    return repository / f"{name}.lock"


@contextlib.contextmanager
def writing(where: Path) -> Iterator[None]:
    """Turn the system's refusals to write inside of `where` into `RepositoryError`."""
    try:
        yield
    except OSError as exc:
        if exc.errno in NO_SPACE:
            what = f"no space is left for {where} ({exc.strerror}); what is served is unchanged. Free some"
        elif exc.errno in NOT_WRITABLE:
            what = f"{where} cannot be written ({exc.strerror}: {exc.filename or where}); change its permissions"
        else:
            raise
        raise RepositoryError(f"{what}, or name another `repository`") from exc
