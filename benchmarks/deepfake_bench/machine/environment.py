"""What a result was measured on: every results file carries it, and it names the file."""

from __future__ import annotations

import os
import platform
import re
import subprocess
from collections.abc import Sequence
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path
from typing import Any

from deepfake_export.tensorrt.gpu import find_gpu


def cpu_name() -> str:
    """Return the processor's name as the kernel gives it."""
    try:
        text = Path("/proc/cpuinfo").read_text(encoding="utf-8")
    except OSError:
        return platform.processor() or platform.machine()
    found = re.search(r"^model name\s*:\s*(.+)$", text, re.MULTILINE)
    return found.group(1).strip() if found else platform.machine()


def gpu_name() -> str:
    """Return the first NVIDIA GPU's name; ``none`` without one."""
    found = find_gpu()
    return "none" if found is None else found.name


def usable_cores() -> int:
    """Return the number of cores this process may run on."""
    return len(os.sched_getaffinity(0))


def environment(packages: Sequence[str] = ()) -> dict[str, Any]:
    """Return processor, cores, system, Python, git commit and the versions of `packages`, as plain JSON data."""
    return {
        "cpu": cpu_name(),
        "cores": usable_cores(),
        "gpu": gpu_name(),
        "system": f"{platform.system()} {platform.release()}",
        "python": platform.python_version(),
        "packages": {name: _version(name) for name in packages},
        "git_commit": _git_commit(),
        "measured_at": datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ"),
    }


def machine_slug() -> str:
    """Return a short name of the machine for file names, for example ``amd-epyc-2core``."""
    words = re.sub(r"[^a-z0-9]+", "-", cpu_name().lower()).strip("-").split("-")
    return "-".join([*words[:3], f"{usable_cores()}core"])


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
