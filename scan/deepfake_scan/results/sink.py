"""`ResultSink`: takes answers and writes them as parts; a failure of the server is not taken for one of the input."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from datetime import UTC, datetime
from typing import Final

from deepfake_preprocess.errors import InferenceError
from deepfake_scan.inputs.todo import Item
from deepfake_scan.results.parts import ResultRow, write_part
from deepfake_scan.storage import Storage
from deepfake_scan.work.task import ProcessAnswer

PART_ROWS: Final = 500
PART_S: Final = 60.0
"""A part is written when it has this many rows or is this old (seconds): what a killed scan has to do again."""
MAX_SERVER_FAILURES: Final = 20
"""From this many inputs in a row that the server fails, the fault is the server's; with fewer it is theirs."""


class ResultSink:
    """Collects results and writes parts. `close` writes what is left; nothing else may run then."""

    def __init__(
        self, storage: Storage, *, faces: bool, on_row: Callable[[ProcessAnswer], None], on_part: Callable[[], None]
    ) -> None:
        self._storage, self._faces = storage, faces
        self._on_row, self._on_part = on_row, on_part
        self._rows: list[ResultRow] = []
        self._since = time.monotonic()
        self._doubtful: list[tuple[Item, ProcessAnswer]] = []

    async def add(self, item: Item, answer: ProcessAnswer) -> None:
        """Take a result.

        Raises:
            InferenceError: the server has failed too many inputs in a row; they are left for the next run.
            OptionError: a part cannot be written.
        """
        if answer.server:
            self._doubtful.append((item, answer))
            if len(self._doubtful) >= MAX_SERVER_FAILURES:
                self._doubtful.clear()
                raise InferenceError(
                    f"the server failed {MAX_SERVER_FAILURES} inputs in a row, the last with: {answer.why}"
                )
            return
        # It answers, so what it failed before is to blame itself.
        for doubtful in (*self._doubtful, (item, answer)):
            self._take(*doubtful)
        self._doubtful.clear()
        if len(self._rows) >= PART_ROWS or time.monotonic() - self._since >= PART_S:
            await self._write()

    def _take(self, item: Item, answer: ProcessAnswer) -> None:
        if not self._rows:
            self._since = time.monotonic()
        self._rows.append(ResultRow(item.id, answer.cells, answer.json, datetime.now(UTC), answer.faces))
        self._on_row(answer)

    async def _write(self) -> None:
        rows, self._rows = self._rows, []
        written = asyncio.ensure_future(asyncio.to_thread(write_part, self._storage, rows, faces=self._faces))
        try:
            await asyncio.shield(written)
        except asyncio.CancelledError:
            await written  # or `close` would write the same results once more
            self._on_part()
            raise
        except BaseException:
            self._rows = rows + self._rows  # no space: `close` tries once more
            raise
        self._on_part()

    async def close(self, *, complete: bool) -> None:
        """Write what is left; where all inputs were `complete`, also what the server failed."""
        if complete:
            for doubtful in self._doubtful:
                self._take(*doubtful)
        if self._rows:
            await self._write()
