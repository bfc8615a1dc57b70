"""Results files: JSON with what was measured and what it was measured on, written and read here alone."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, TypeAlias

from deepfake_bench.machine.environment import environment, machine_slug

RESULTS_DIR = Path("benchmarks/results")
Results: TypeAlias = Mapping[str, Any]
"""The content of a file; its ``benchmark`` says which one, its ``environment`` on what machine."""


def default_path(benchmark: str) -> Path:
    """Return where results of this machine are written where no file is named."""
    return RESULTS_DIR / f"{machine_slug()}-{benchmark}.json"


def write_results(benchmark: str, data: Results, *, packages: Sequence[str], path: Path | None = None) -> Path:
    """Write results with the machine and return the path.

    Args:
        benchmark: its name, for example ``pipeline``.
        data: plain JSON data.
        packages: whose versions matter.
        path: where to write; `default_path` when None.
    """
    path = path or default_path(benchmark)
    path.parent.mkdir(parents=True, exist_ok=True)
    whole = {"benchmark": benchmark, "environment": environment(packages), **data}
    path.write_text(json.dumps(whole, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
    return path


def read_results(path: Path) -> dict[str, Any]:
    """Return the content of a results file."""
    data: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    return data
