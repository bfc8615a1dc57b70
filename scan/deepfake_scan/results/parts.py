"""Parts: some hundred results each as one Parquet file, with the verdicts' JSON beside, written whole.

``parts/NAME.parquet`` has a row for each input, `id`, `address` and the columns of `deepfake_client.result.table`;
line k of ``json/NAME.jsonl.gz`` is the JSON of row k. A part counts when its Parquet file is there, which is written
last. Its name follows from its ids, so work that is done twice after a failure writes the same part again.
"""

from __future__ import annotations

import gzip
import hashlib
import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Final

from deepfake_client.result.table import COLUMNS
from deepfake_preprocess.support.extras import require_extra
from deepfake_scan.storage import Storage

PARTS: Final = "parts"
JSON: Final = "json"
GZIP_LEVEL: Final = 3
"""JSON of verdicts shrinks to a seventh; higher levels take three times the time for a tenth less."""
_WHOLE: Final = ("deciding_track", "longest_run", "tracks", "frames", "frames_saved", "frames_dropped",
                 "corrupt_packets", "model_version")  # fmt: skip
_NUMBERS: Final = ("fake_probability", "interval_low", "interval_high", "threshold", "agreeing_share",
                   "score_variance", "unread_s", "total_s")  # fmt: skip


@dataclass(frozen=True, slots=True)
class ResultRow:
    """One result.

    Attributes:
        id: 32 hexadecimal digits.
        cells: what `outcome_row` returned.
        json: the verdict's or the failure's JSON, one line.
        finished_at: when it was finished, in UTC.
        faces: the tracks as data, where they are asked for as a nested column.
    """

    id: str
    cells: Mapping[str, Any]
    json: str
    finished_at: datetime
    faces: Sequence[Mapping[str, Any]] | None = None


def schema(*, faces: bool) -> Any:
    """Return the Arrow schema of a part; with `faces` each row has its tracks as a list of structs."""
    pa = require_extra("pyarrow", extra="scan")
    kinds = dict.fromkeys(_WHOLE, pa.int64()) | dict.fromkeys(_NUMBERS, pa.float64())
    fields = [pa.field("id", pa.string(), nullable=False), pa.field("address", pa.string(), nullable=False)]
    fields += [pa.field(name, kinds.get(name, pa.string())) for name in COLUMNS if name != "source"]
    fields.append(pa.field("finished_at", pa.timestamp("us", tz="UTC"), nullable=False))
    if faces:
        track = pa.struct([
            ("track", pa.int64()), ("fake_probability", pa.float64()), ("label", pa.string()),
            ("num_frames", pa.int64()), ("first_pts_seconds", pa.float64()), ("last_pts_seconds", pa.float64()),
            ("counted", pa.bool_()), ("background", pa.bool_()),
        ])  # fmt: skip
        fields.append(pa.field("faces", pa.list_(track)))
    return pa.schema(fields)


def load() -> None:
    """Load what parts are written with, which takes half a second: the first array makes Arrow load pandas, too."""
    require_extra("pyarrow", extra="scan").array([None])
    require_extra("pyarrow.parquet", extra="scan")


def part_name(ids: Sequence[str]) -> str:
    """Return the name of the part that holds these ids."""
    return "part-" + hashlib.blake2b("".join(ids).encode(), digest_size=10).hexdigest()


def write_part(storage: Storage, rows: Sequence[ResultRow], *, faces: bool) -> str:
    """Write a part and return its name."""
    pa = require_extra("pyarrow", extra="scan")
    name = part_name([row.id for row in rows])
    data = []
    for row in rows:
        cells = {key: value for key, value in row.cells.items() if key != "source"}
        cells |= {"id": row.id, "address": _utf8(row.cells["source"]), "finished_at": row.finished_at}
        if faces:
            cells["faces"] = row.faces
        data.append({key: _utf8(value) if isinstance(value, str) else value for key, value in cells.items()})
    table = pa.Table.from_pylist(data, schema=schema(faces=faces))
    lines = "".join(f"{row.json}\n" for row in rows).encode()
    write_tables(storage, name, table, gzip.compress(lines, GZIP_LEVEL, mtime=0))
    return name


def write_tables(storage: Storage, name: str, table: Any, json_gz: bytes) -> None:
    """Write the two files of a part, the one that counts last."""
    sink = io.BytesIO()
    require_extra("pyarrow.parquet", extra="scan").write_table(table, sink, compression="zstd")
    storage.write(f"{JSON}/{name}.jsonl.gz", json_gz)
    storage.write(f"{PARTS}/{name}.parquet", sink.getvalue())


def part_names(storage: Storage) -> list[str]:
    """Return the names of the parts that are there."""
    return [name.removesuffix(".parquet") for name in storage.names(PARTS) if name.endswith(".parquet")]


def read_part(storage: Storage, name: str, columns: Sequence[str] | None = None) -> Any:
    """Return a part, or some columns of it, as an Arrow table."""
    parquet = require_extra("pyarrow.parquet", extra="scan")
    with storage.open(f"{PARTS}/{name}.parquet") as file:
        return parquet.ParquetFile(file).read(columns=columns)


def read_json(storage: Storage, name: str) -> bytes:
    """Return the compressed JSON lines of a part."""
    with storage.open(f"{JSON}/{name}.jsonl.gz") as file:
        return file.read()


def delete_part(storage: Storage, name: str) -> None:
    """Remove a part, the file that counts first."""
    storage.delete(f"{PARTS}/{name}.parquet")
    storage.delete(f"{JSON}/{name}.jsonl.gz")


def _utf8(text: str) -> str:
    # File names need not be UTF-8; those that are not are shown with escapes.
    return text.encode("utf-8", "backslashreplace").decode()
