"""How a backend process shows that it lives: a small file that it writes as it works, and the supervisor reads.

The file is there from the moment at which the process can serve until it is told to end: a process that is gone while
its file is not has died. Imported by the backend inside Triton's Python stub, so standard library only.
"""

from __future__ import annotations

import contextlib
import mmap
import os
import select
import struct
from collections.abc import Iterator
from pathlib import Path

FOLDER_VARIABLE = "DEEPFAKE_SERVE_PULSES"
_LAYOUT = struct.Struct("=Qd")
"""How often the process began or ended to compute, so it computes while that is odd; and how long that may take."""
STOPPED_S = 0.6
"""A process that is seen stopped for longer was stopped by somebody. Whoever stops the supervisor as well, to pause a
whole server, wakes both at once."""


class Pulse:
    """The backend's end. Without a folder in the environment, nobody looks and nothing is written."""

    def __init__(self) -> None:
        self._memory = mmap.mmap(-1, _LAYOUT.size)
        self._path: Path | None = None
        self._beats = 0
        self._limit_s = float("inf")

    def publish(self, model: str, limit_s: float) -> None:
        """Begin to be watched; a single computation may take `limit_s`."""
        self._limit_s = limit_s
        if folder := os.environ.get(FOLDER_VARIABLE):
            path = Path(folder) / f"{os.getpid()}-{model}"
            whole = path.with_name(f".{path.name}")
            whole.write_bytes(_LAYOUT.pack(self._beats, limit_s))
            with whole.open("r+b") as file:
                self._memory = mmap.mmap(file.fileno(), _LAYOUT.size)
            self._path = whole.rename(path)

    @contextlib.contextmanager
    def beating(self) -> Iterator[None]:
        """Show that this process computes for as long as the context lasts."""
        self._beat()
        try:
            yield
        finally:
            self._beat()

    def end(self) -> None:
        """Be watched no more: the process ends because it was told to."""
        if self._path is not None:
            self._path.unlink(missing_ok=True)

    def _beat(self) -> None:
        self._beats += 1
        _LAYOUT.pack_into(self._memory, 0, self._beats, self._limit_s)


class _Patient:
    """One backend process as the supervisor sees it."""

    def __init__(self, path: Path) -> None:
        pid, _, self.model = path.name.partition("-")
        self.path, self.pid = path, int(pid)
        self.beats, self.computing_s, self.stopped_s = 0, 0.0, 0.0
        try:
            self.ended: int | None = os.pidfd_open(self.pid)
        except ProcessLookupError:
            self.ended = None

    def ailment(self, elapsed_s: float) -> str:
        """Return what is wrong with it, after the time since it was looked at before; empty where nothing is."""
        name = f"process {self.pid} of model {self.model!r}"
        if self.ended is None or _is_readable(self.ended):
            # Gone, and nobody has told it to go.
            return f"{name} died" if self.path.exists() else ""
        self.stopped_s = self.stopped_s + elapsed_s if is_stopped(self.pid) else 0.0
        if self.stopped_s > STOPPED_S:
            return f"{name} was stopped"
        beats, limit_s = _LAYOUT.unpack(self.path.read_bytes())
        self.computing_s = self.computing_s + elapsed_s if beats % 2 and beats == self.beats else 0.0
        self.beats = beats
        return f"{name} has computed one batch for more than {limit_s:.0f} s" if self.computing_s > limit_s else ""


class PulseWatch:
    """The supervisor's end: all backend processes of one server.

    Time is that which the supervisor has looked on: where the whole server was paused, nothing has become late.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._patients: dict[str, _Patient] = {}
        self.beats = 0
        """Grows whenever a process begins or ends to compute."""

    @property
    def ends(self) -> list[int]:
        """Descriptors that become readable when a process ends."""
        return [patient.ended for patient in self._patients.values() if patient.ended is not None]

    def look(self, elapsed_s: float) -> str:
        """Return what is wrong with a process, after the time since the last look; empty where nothing is."""
        present = {path.name: path for path in self._folder.iterdir() if not path.name.startswith(".")}
        for name in self._patients.keys() - present.keys():
            self._drop(name)
        for name, path in present.items():
            if name not in self._patients:
                self._patients[name] = _Patient(path)
            with contextlib.suppress(FileNotFoundError):  # told to end just now
                if ailment := self._patients[name].ailment(elapsed_s):
                    return ailment
        self.beats = sum(patient.beats for patient in self._patients.values())
        return ""

    def close(self) -> None:
        """Look no more, and forget processes that were killed with their server."""
        for name in list(self._patients):
            self._drop(name)
        for path in self._folder.iterdir():
            path.unlink(missing_ok=True)

    def _drop(self, name: str) -> None:
        if (ended := self._patients.pop(name).ended) is not None:
            os.close(ended)


def is_stopped(pid: int) -> bool:
    """Return whether a process was stopped by a signal or a debugger (proc(5): state T or t)."""
    try:
        stat = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8", errors="replace")
    except (FileNotFoundError, ProcessLookupError):
        return False
    return stat.rpartition(")")[2].split()[0] in "Tt"


def _is_readable(descriptor: int) -> bool:
    poll = select.poll()
    poll.register(descriptor, select.POLLIN)
    return bool(poll.poll(0))
