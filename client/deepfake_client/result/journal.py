"""`Journal`: a file of results, one JSON line each, from which an interrupted run goes on.

Every result is on disk before the next one is begun, so neither a crash nor a full terminal loses it. A line
that was torn by a crash is dropped; where a source was analyzed several times, the last result counts.
"""

from __future__ import annotations

import fcntl
import json
import os
from collections.abc import Mapping
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any, Self

from deepfake_client.result.outcome import Input, Outcome
from deepfake_client.result.verdict import ModelIdentity
from deepfake_preprocess.errors import OptionError
from deepfake_preprocess.support.files import write_whole, writing


class Journal:
    """Results of one or several runs in one file, which is made with its folder; a context manager.

    A line is what `Outcome.to_dict` returns and, where the source is a file, ``input``: size, time of change and the
    settings of the analysis, which are plain JSON data.

    Raises OptionError where the file cannot be written, holds something else, or belongs to a run under way.
    """

    def __init__(self, path: Path, settings: Mapping[str, Any]) -> None:
        self.path = path
        self._settings = json.loads(json.dumps(settings))
        self._inputs: dict[str, dict[str, Any] | None] = {}
        with self._checked():
            path.parent.mkdir(parents=True, exist_ok=True)
            if path.exists() and not path.is_file():
                raise OptionError(f"results cannot be kept in {path}, which is not a file; name another one")
            self._file = path.open("a+b")
            try:
                self._lines, self._superseded = self._load()
            except BaseException:
                self._file.close()
                raise

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    @property
    def outcomes(self) -> list[Outcome]:
        """All results in the file, one for each source."""
        return [Outcome.from_dict(line) for line in self._lines.values()]

    def reusable(self, source: str, model: ModelIdentity) -> Outcome | None:
        """Return the result for `source` if it is a verdict, and an analysis would only repeat it.

        So it is when the server was not in its way, and file, settings and model are the same.
        """
        line = self._lines.get(source)
        if line is None or "error" in line or line.get("input") is None:
            return None
        outcome = Outcome.from_dict(line)
        if outcome.server_failed or outcome.verdict is None or outcome.verdict.model != model:
            return None
        return outcome if line["input"] == self._input_of(source) else None

    def begin(self, source: str) -> None:
        """Note what `source` is like before it is analyzed; one that changes meanwhile is analyzed again later."""
        self._inputs[source] = self._input_of(source)

    def append(self, outcome: Outcome) -> None:
        """Put a result on disk; OptionError when the disk is full or gone."""
        line = outcome.to_dict()
        if (facts := self._inputs.get(outcome.source)) is not None:
            line["input"] = facts
        self._superseded |= outcome.source in self._lines
        self._lines[outcome.source] = line
        with self._checked():
            self._file.write(_encoded(line))
            self._file.flush()
            os.fsync(self._file.fileno())

    def close(self) -> None:
        """Release the file, with one line for each source. Closing twice is harmless."""
        if self._file.closed:
            return
        with self._checked(), self._file:
            if self._superseded:
                write_whole(self.path, b"".join(map(_encoded, self._lines.values())))

    def _checked(self) -> AbstractContextManager[None]:
        return writing(self.path, "free some space, or name another file")

    def _load(self) -> tuple[dict[str, dict[str, Any]], bool]:
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise OptionError(f"another run is writing {self.path}; wait for it, or name another file") from None
        self._file.seek(0)
        raw_lines = self._file.read().splitlines(keepends=True)
        lines: dict[str, dict[str, Any]] = {}
        length, last = 0, b""
        for number, raw in enumerate(raw_lines, start=1):
            try:
                line = json.loads(raw)
                lines[Outcome.from_dict(line).source] = line
            except (ValueError, AttributeError) as exc:
                # A crash can tear the last line only, and never writes another beginning.
                if raw.endswith(b"\n") or not (number > 1 or raw.startswith(b'{"source"')):
                    raise OptionError(
                        f"line {number} of {self.path} is not a result of `deepfake analyze`; name another file"
                    ) from exc
                break
            length, last = length + len(raw), raw
        self._file.truncate(length)
        if last and not last.endswith(b"\n"):
            self._file.write(b"\n")
        return lines, len(lines) < len(raw_lines)

    def _input_of(self, source: str) -> dict[str, Any] | None:
        try:
            state = Path(source).stat()
        except (OSError, ValueError):
            return None
        return Input(state.st_size, state.st_mtime_ns, self._settings).to_dict()


def _encoded(line: Mapping[str, Any]) -> bytes:
    # File names need not be UTF-8; ASCII with escapes writes those as well.
    return json.dumps(line).encode("ascii") + b"\n"
