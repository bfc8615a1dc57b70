"""`Todo`: the inputs of a scan that have no result yet, listed ahead of the work so that the end can be foreseen."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from itertools import islice
from queue import Empty, Full, Queue
from typing import Final, NamedTuple, Self

from deepfake_scan.inputs.ids import IdMaker, IdSet, ScanInput, id_texts
from deepfake_scan.tally import ScanTally

FIRST_CHUNK: Final = 256
CHUNK: Final = 65_536
"""Inputs whose ids are looked up together."""
AHEAD: Final = 100_000
"""Inputs that are listed ahead: some 30 MB."""
_LOOK_S: Final = 0.2


class Item(NamedTuple):
    """An input and its id, as 32 hexadecimal digits."""

    input: ScanInput
    id: str


class Todo:
    """An iterator over the inputs that are not `done`; listed in a thread. A context manager, which ends that."""

    def __init__(self, inputs: Iterator[ScanInput], ids: IdMaker, done: IdSet, tally: ScanTally) -> None:
        self._inputs, self._ids, self._done, self._tally = inputs, ids, done, tally
        self._queue: Queue[Item | BaseException | None] = Queue(AHEAD)
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._list, name="scan-listing", daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *exc: object) -> None:
        self._stop.set()

    def __iter__(self) -> Self:
        return self

    def __next__(self) -> Item:
        while not self._stop.is_set():
            try:
                found = self._queue.get(timeout=_LOOK_S)
            except Empty:
                continue
            if isinstance(found, BaseException):
                raise found
            if found is None:
                break
            return found
        self._stop.set()
        raise StopIteration

    def _list(self) -> None:
        end: BaseException | None = None
        try:
            size = FIRST_CHUNK
            while chunk := list(islice(self._inputs, size)):
                ids = self._ids.ids(chunk)
                new = self._done.add(ids)
                self._tally.listed += len(chunk)
                self._tally.skipped += int((~new).sum())
                left = [item for item, wanted in zip(chunk, new, strict=True) if wanted]
                for item, text in zip(left, id_texts(ids[new]), strict=True):
                    self._put(Item(item, text))
                if self._stop.is_set():
                    return
                size = CHUNK
            self._tally.total = self._tally.listed
        except BaseException as exc:  # raised where the inputs are taken
            end = exc
        self._put(end)

    def _put(self, item: Item | BaseException | None) -> None:
        while not self._stop.is_set():
            try:
                self._queue.put(item, timeout=_LOOK_S)
                return
            except Full:
                continue
