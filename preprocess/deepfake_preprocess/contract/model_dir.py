"""A model's directory in a repository: which versions it holds, which one is served, and who uses it.

::

    <repository>/<model>/
        config.pbtxt              production configuration; names the version that is served
        configs/embedded.pbtxt    the same for the embedded server
        1/  2/  ...               versions, each with its manifest

The configurations name the version by a `specific` version policy, so replacing that one small file changes what is
served, parameters included. This module only reads and locks; it never writes.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from deepfake_preprocess.errors import RepositoryError

PROC_LOCKS = Path("/proc/locks")
NO_LOCKS = (errno.ENOLCK, errno.EOPNOTSUPP, errno.ENOSYS, errno.EBADF, errno.EINVAL)
"""Errors of file systems that have no locks on folders, such as NFS."""


def versions_of(model_dir: Path) -> list[int]:
    """Return the version numbers in a model's directory that Triton would see, in ascending order."""
    if not model_dir.is_dir():
        return []
    return sorted(
        int(path.name)
        for path in model_dir.iterdir()
        if path.is_dir() and path.name.isascii() and path.name.isdecimal() and not path.name.startswith("0")
    )


def served_version(config: Any, versions: Sequence[int], *, where: Path) -> int:
    """Return which of `versions` (ascending, at least one) the ``ModelConfig`` at `where` makes Triton serve."""
    policy = config.version_policy
    kind = policy.WhichOneof("policy_choice")
    # Triton reads no policy as the newest version.
    newest = versions[-max(1, policy.latest.num_versions) :]
    named = {"specific": policy.specific.versions, "all": versions}.get(kind, newest)
    fix = f"`deepfake repository rollback {config.name or where.parent.name} VERSION` writes it again"
    if len(named) != 1:
        raise RepositoryError(f"{where} serves the versions {list(named)}, but its parameters describe one; {fix}")
    if named[0] not in versions:
        present = ", ".join(map(str, versions))
        raise RepositoryError(f"{where} serves version {named[0]}, which is not there, only: {present}; {fix}")
    return int(named[0])


def hold_version(version_dir: Path) -> int:
    """Mark a version as in use until the returned descriptor is closed, here and in child processes that inherit it.

    The mark is a shared lock on the version's folder: it needs no write permission and ends with the process in any
    case. Where the file system has no such locks, nothing is marked, and serving works anyway. `RepositoryError`
    where the version is gone, or is being removed.
    """
    descriptor = _open_folder(version_dir)
    free = _lock(descriptor, fcntl.LOCK_SH)
    # A folder that was moved between opening and locking is about to be removed.
    if free and version_dir.exists() and os.path.samestat(os.fstat(descriptor), version_dir.stat()):
        return descriptor
    os.close(descriptor)
    raise RepositoryError(f"{version_dir} is being removed by `deepfake repository prune`; try again")


@contextlib.contextmanager
def claimed_versions(version_dirs: Sequence[Path]) -> Iterator[None]:
    """Keep other processes from starting to use versions while they are removed; `RepositoryError` if one does."""
    with contextlib.ExitStack() as stack:
        for version_dir in version_dirs:
            descriptor = _open_folder(version_dir)
            stack.callback(os.close, descriptor)
            if not _lock(descriptor, fcntl.LOCK_EX):
                raise RepositoryError(
                    f"{version_dir} is in use by {who_locks(version_dir)}, nothing was removed; stop that server, or "
                    "restart it on the version that is served now"
                )
        yield


def lock_holders(path: Path) -> tuple[int, ...]:
    """Return the process ids that hold a lock on a file or folder, as far as the system shows them."""
    try:
        stat, lines = path.stat(), PROC_LOCKS.read_text(encoding="ascii").splitlines()
    except (OSError, UnicodeDecodeError):
        return ()
    pids = set()
    # proc_locks(5): "1: FLOCK ADVISORY READ <pid> <major>:<minor>:<inode> <start> <end>"; "->" marks one that waits.
    for line in lines:
        fields = line.split()
        if len(fields) >= 6 and fields[1] == "FLOCK" and fields[5].rpartition(":")[2] == str(stat.st_ino):
            pids.add(int(fields[4]))
    # The device in that line is not always that of stat(2) (btrfs, overlayfs), and inodes repeat across devices.
    return tuple(sorted(pid for pid in pids if pid > 0 and _may_have_open(pid, stat)))


def _open_folder(path: Path) -> int:
    try:
        return os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    except OSError as exc:
        raise RepositoryError(f"{path} cannot be read ({exc.strerror}); export the model again") from exc


def _lock(descriptor: int, kind: int) -> bool:
    """Return whether the lock was granted, or the file system has no locks."""
    try:
        fcntl.flock(descriptor, kind | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError as exc:
        if exc.errno not in NO_LOCKS:
            raise
    return True


def _may_have_open(pid: int, stat: os.stat_result) -> bool:
    """Return whether a process has a file open; True if that cannot be seen (another user's, or one that ended)."""
    try:
        for descriptor in Path(f"/proc/{pid}/fd").iterdir():
            with contextlib.suppress(FileNotFoundError):
                if os.path.samestat(descriptor.stat(), stat):
                    return True
    except OSError:
        return True
    return False


def who_locks(path: Path) -> str:
    """Return who holds a lock on `path`, in words for a message."""
    pids = lock_holders(path)
    return f"process{'es' if len(pids) > 1 else ''} {', '.join(map(str, pids))}" if pids else "another process"
