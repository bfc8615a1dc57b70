"""What a model's directory in a repository says: which versions it holds, which one is served, and who uses it.

::

    <repository>/<model>/
        config.pbtxt              production configuration; names the version that is served
        configs/embedded.pbtxt    the same for the embedded server
        1/  2/  ...               versions, each with its manifest

The configurations name the version by a `specific` version policy. Replacing that one small file is therefore
the step that changes what is served, parameters included, and a version that lies beside it without being named
is never loaded. This module only reads, and locks; it never writes.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, BinaryIO

from deepfake_preprocess.errors import RepositoryError
from deepfake_preprocess.manifest import MANIFEST_NAME

PROC_LOCKS = Path("/proc/locks")
NO_LOCKS = (errno.ENOLCK, errno.EOPNOTSUPP, errno.ENOSYS)
"""What a file system without locks answers."""


def versions_of(model_dir: Path) -> list[int]:
    """Return the version numbers in a model's directory, in ascending order; those that Triton would see."""
    if not model_dir.is_dir():
        return []
    return sorted(
        int(path.name)
        for path in model_dir.iterdir()
        if path.is_dir() and path.name.isascii() and path.name.isdecimal() and not path.name.startswith("0")
    )


def served_version(config: Any, versions: Sequence[int], *, where: Path) -> int:
    """Return the version that a configuration makes Triton serve.

    Args:
        config: a ``ModelConfig`` message.
        versions: the versions that are there, in ascending order; at least one.
        where: the configuration's path, for messages.

    Raises:
        RepositoryError: the policy names a version that is not there, or more than one: the configuration's
            parameters describe exactly one.
    """
    policy = config.version_policy
    kind = policy.WhichOneof("policy_choice")
    fix = f"`deepfake repository rollback {config.name or where.parent.name} --to VERSION` writes it again"
    present = ", ".join(map(str, versions))
    if kind == "specific":
        named = list(policy.specific.versions)
        if len(named) == 1 and named[0] in versions:
            return int(named[0])
        if len(named) == 1:
            raise RepositoryError(f"{where} serves version {named[0]}, which is not there, only: {present}; {fix}")
        raise RepositoryError(f"{where} serves the versions {named}, but its parameters describe one; {fix}")
    if kind == "all" or (kind == "latest" and policy.latest.num_versions > 1):
        if len(versions) > 1:
            raise RepositoryError(f"{where} serves several of the versions {present}, but describes one; {fix}")
        return versions[-1]
    # `latest`, or no policy at all, which Triton reads as the newest one.
    return versions[-1]


def hold_version(version_dir: Path) -> BinaryIO:
    """Mark a version as in use for as long as the returned file is open, in this or a child process.

    The mark is a shared lock on the version's manifest. It needs no right to write, ends with the process however
    that ends, and does not keep an export from adding another version.

    Raises:
        RepositoryError: the version is being removed, or has just been.
    """
    path = version_dir / MANIFEST_NAME
    with contextlib.ExitStack() as stack:
        try:
            stream = stack.enter_context(path.open("rb"))
        except OSError as exc:
            raise RepositoryError(f"{path} cannot be read ({exc.strerror}); export the model again") from exc
        try:
            fcntl.flock(stream, fcntl.LOCK_SH | fcntl.LOCK_NB)
            free = True
        except BlockingIOError:
            free = False
        except OSError as exc:
            if exc.errno not in NO_LOCKS:
                raise RepositoryError(f"{path} cannot be locked ({exc.strerror})") from exc
            # Serving works there all the same; only pruning beside it is on the operator's own watch.
            free = True
        # Moved away between the opening and the lock, the file is about to vanish.
        if not (free and path.exists() and os.path.samestat(os.fstat(stream.fileno()), path.stat())):
            raise RepositoryError(f"{version_dir} is being removed by `deepfake repository prune`; try again")
        stack.pop_all()
        return stream


@contextlib.contextmanager
def claimed_versions(version_dirs: Sequence[Path]) -> Iterator[None]:
    """Keep everybody from starting to use these versions, to remove them.

    Raises:
        RepositoryError: one is in use; says by which process.
    """
    with contextlib.ExitStack() as stack:
        for version_dir in version_dirs:
            path = version_dir / MANIFEST_NAME
            if not path.is_file():
                continue  # no manifest: nobody can be serving it
            try:
                # NFS grants an exclusive lock only on a file that was opened for writing.
                stream = stack.enter_context(path.open("r+b" if os.access(path, os.W_OK) else "rb"))
                fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                raise RepositoryError(
                    f"{version_dir} is in use by {who_locks(path)}, nothing was removed; stop that server, or start "
                    "it again so that it takes the version that is served now"
                ) from None
            except OSError as exc:
                raise RepositoryError(
                    f"{path} cannot be locked ({exc.strerror}), so it is not known whether the version is in use; "
                    "nothing was removed"
                ) from exc
        yield


def lock_holders(path: Path) -> tuple[int, ...]:
    """Return the process ids that hold a lock on `path`, as far as the system tells."""
    try:
        stat, lines = path.stat(), PROC_LOCKS.read_text(encoding="ascii").splitlines()
    except (OSError, UnicodeDecodeError):
        return ()
    pids = set()
    # proc_locks(5): "1: FLOCK ADVISORY READ <pid> <major>:<minor>:<inode> <start> <end>"; "->" marks a waiting one.
    for line in lines:
        fields = line.split()
        if len(fields) >= 6 and fields[1] == "FLOCK" and fields[5].rpartition(":")[2] == str(stat.st_ino):
            pids.add(int(fields[4]))
    return tuple(sorted(pid for pid in pids if pid > 0))


def who_locks(path: Path) -> str:
    """Return who holds a lock on `path`, as words for a message."""
    pids = lock_holders(path)
    if not pids:
        return "another process"
    return f"process{'es' if len(pids) > 1 else ''} {', '.join(map(str, pids))}"
