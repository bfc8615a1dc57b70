"""What a scan left."""

from __future__ import annotations

import gzip
import json
from pathlib import Path
from typing import Any

from deepfake_scan.results.parts import part_names, read_json, read_part
from deepfake_scan.storage import open_storage


def results(output: Path | str) -> dict[str, dict[str, Any]]:
    """Return the JSON of each result by its address, which may be there once only."""
    storage = open_storage(str(output))
    found: dict[str, dict[str, Any]] = {}
    for name in part_names(storage):
        lines = gzip.decompress(read_json(storage, name)).splitlines()
        for address, line in zip(read_part(storage, name, ["address"]).column(0).to_pylist(), lines, strict=True):
            assert address not in found
            found[address] = json.loads(line)
    return found
