"""Results files: JSON with what was measured and what it was measured on, written and read here alone."""

from __future__ import annotations

import json
import platform
import re
import subprocess
from collections.abc import Mapping
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path
from typing import Any, TypeAlias

from deepfake_export.tensorrt.gpu import find_gpu
from deepfake_preprocess.support.machine import usable_cores

RESULTS_DIR = Path("benchmarks/results")
PACKAGES = (
    *("av", "facenet-pytorch", "fastapi", "grad-cam", "grpcio", "numpy", "onnxruntime", "onnxruntime-gpu"),
    *("opencv-python-headless", "protobuf", "tensorrt", "tensorrt_rtx_cu12_libs", "timm", "torch", "tritonclient"),
    "uvicorn",
)
"""Figures depend on these; the versions of those that are installed are in every file."""
Results: TypeAlias = Mapping[str, Any]
"""The content of a file; its ``benchmark`` says which one, its ``environment`` on what machine."""


def default_path(benchmark: str) -> Path:
    """Return where results are written where no file is named, such as ``amd-epyc-2core-server.json``."""
    words = re.sub(r"[^a-z0-9]+", "-", cpu_name().lower()).strip("-").split("-")
    return RESULTS_DIR / f"{'-'.join(words[:3])}-{usable_cores()}core-{benchmark}.json"


def write_results(benchmark: str, data: Results, path: Path | None) -> Path:
    """Write results with their `environment`, to `default_path` when None; return the path."""
    path = path or default_path(benchmark)
    path.parent.mkdir(parents=True, exist_ok=True)
    whole = {"benchmark": benchmark, "environment": environment(), **data}
    path.write_text(json.dumps(whole, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
    return path


def read_results(path: Path) -> dict[str, Any]:
    """Return the content of a results file."""
    data: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    return data


def cpu_name() -> str:
    """Return the processor's name as the kernel gives it."""
    found = re.search(r"^model name\s*:\s*(.+)$", Path("/proc/cpuinfo").read_text(encoding="utf-8"), re.MULTILINE)
    return found.group(1).strip() if found else platform.machine()


def environment() -> dict[str, Any]:
    """Return processor, cores, system, Python, git commit and the versions of `PACKAGES`, as plain JSON data."""
    gpu = find_gpu()
    return {
        "cpu": cpu_name(),
        "cores": usable_cores(),
        "gpu": "none" if gpu is None else gpu.name,
        "system": f"{platform.system()} {platform.release()}",
        "python": platform.python_version(),
        "packages": {name: found for name in PACKAGES if (found := _version(name))},
        "git_commit": _git_commit(),
        "measured_at": datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ"),
    }


def _version(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def _git_commit() -> str | None:
    try:
        answer = subprocess.run(["git", "rev-parse", "HEAD"], capture_output=True, text=True, check=True)
    except (OSError, subprocess.CalledProcessError):
        return None
    return answer.stdout.strip()[:12]
