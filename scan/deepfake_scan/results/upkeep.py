"""Which inputs are done, each exactly once; and what is done to finished parts: counting, joining, forgetting."""

from __future__ import annotations

import gzip
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from itertools import islice, repeat
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from deepfake_preprocess.support.extras import require_extra
from deepfake_scan.inputs.ids import Ids, IdSet, ids_of_texts
from deepfake_scan.results.parts import (
    GZIP_LEVEL,
    delete_part,
    part_name,
    part_names,
    read_json,
    read_part,
    write_tables,
)
from deepfake_scan.storage import Storage

COMPACT_ROWS: Final = 20_000
"""Rows of a part that others were joined to; its JSON has some 100 MB before compression."""
_READERS: Final = 8
_TOGETHER: Final = 256


@dataclass(slots=True)
class Counts:
    """What the parts of a scan hold.

    Attributes:
        rows: inputs with a result.
        parts: files that hold them.
        labels: verdicts by label.
        failures: inputs without a verdict, by the type of their error.
    """

    rows: int = 0
    parts: int = 0
    labels: Counter[str] = field(default_factory=Counter)
    failures: Counter[str] = field(default_factory=Counter)


def done_ids(storage: Storage) -> IdSet:
    """Return the ids of all results; a result that is there twice is removed once.

    So it can be where two runs worked side by side, or one was killed while it joined parts.
    """
    done = IdSet()
    parts = _read(storage, ["id"])
    # Many parts at once: each addition to the set costs as much as many ids.
    while group := [(name, _ids(table)) for name, table in islice(parts, _TOGETHER)]:
        new = done.add(np.concatenate([ids for _, ids in group]))
        if not new.all():
            ends = np.cumsum([len(ids) for _, ids in group])
            for (name, _), mask in zip(group, np.split(new, ends[:-1]), strict=True):
                if not mask.all():
                    _keep(storage, name, mask)
    return done


def count(storage: Storage) -> Counts:
    """Count the results of a scan."""
    counts = Counts()
    for _, table in _read(storage, ["label", "error_type"]):
        counts.parts += 1
        counts.rows += len(table)
        for column, found in (("label", counts.labels), ("error_type", counts.failures)):
            for item in table.column(column).value_counts().to_pylist():
                if item["values"] is not None:
                    found[item["values"]] += item["counts"]
    return counts


def forget_failed(storage: Storage) -> int:
    """Remove the results without a verdict, so that a scan tries them again; returns how many there were."""
    forgotten = 0
    for name, table in _read(storage, ["error_type"]):
        keep = table.column("error_type").is_null().to_numpy()
        if not keep.all():
            forgotten += int((~keep).sum())
            _keep(storage, name, keep)
    return forgotten


def compact(storage: Storage, *, rows: int = COMPACT_ROWS) -> tuple[int, int]:
    """Join small parts into larger ones; returns how many parts there were and are.

    Cut short at any time it loses nothing, and `done_ids` removes what is there twice then.
    """
    done_ids(storage)
    names = part_names(storage)
    after = 0
    group: list[tuple[str, Any]] = []
    for name in names:
        table = read_part(storage, name)
        if group and (
            sum(len(other) for _, other in group) + len(table) > rows or group[0][1].schema != table.schema
        ):
            after += _join(storage, group)
            group = []
        group.append((name, table))
    after += _join(storage, group) if group else 0
    return len(names), after


def _join(storage: Storage, group: list[tuple[str, Any]]) -> int:
    if len(group) > 1:
        table = require_extra("pyarrow", extra="scan").concat_tables([table for _, table in group])
        # Members of gzip one after the other are gzip.
        json_gz = b"".join(read_json(storage, name) for name, _ in group)
        write_tables(storage, part_name(table.column("id").to_pylist()), table, json_gz)
        for name, _ in group:
            delete_part(storage, name)
    return 1


def _keep(storage: Storage, name: str, mask: NDArray[np.bool_]) -> None:
    """Leave only some rows of a part."""
    if not mask.any():
        delete_part(storage, name)
        return
    table = read_part(storage, name).filter(mask)
    lines = gzip.decompress(read_json(storage, name)).splitlines(keepends=True)
    kept = b"".join(line for line, wanted in zip(lines, mask, strict=True) if wanted)
    write_tables(storage, part_name(table.column("id").to_pylist()), table, gzip.compress(kept, GZIP_LEVEL, mtime=0))
    delete_part(storage, name)


def _ids(table: Any) -> Ids:
    """Return the ids of a table, from Arrow's own buffers where all have their length."""
    chunks = []
    for chunk in table.column("id").chunks:
        if len(chunk):
            offsets = np.frombuffer(chunk.buffers()[1], np.int32)[chunk.offset : chunk.offset + len(chunk) + 1]
            chunks.append(bytes(chunk.buffers()[2][int(offsets[0]) : int(offsets[-1])]))
    return ids_of_texts(b"".join(chunks))


def _read(storage: Storage, columns: list[str]) -> Iterator[tuple[str, Any]]:
    """Yield each part's name and columns; some are read ahead."""
    names = part_names(storage)
    with ThreadPoolExecutor(_READERS, thread_name_prefix="scan-parts") as readers:
        for start in range(0, len(names), 8 * _READERS):
            group = names[start : start + 8 * _READERS]
            tables = readers.map(read_part, repeat(storage), group, repeat(columns))
            yield from zip(group, tables, strict=True)
