"""Virtual environments for peers: each has its own, because no peer's pins may reach this one or another peer."""

from __future__ import annotations

import hashlib
import shutil
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

from deepfake_preprocess.errors import DeepfakeError
from deepfake_preprocess.support.wheels import cache_dir

INSTALL_TIMEOUT_S = 900.0
MADE = "made"
"""File in an environment that is complete."""


class PeerUnavailableError(DeepfakeError):
    """A peer cannot be installed or started, or answers something else; the message says why."""


def peer_python(name: str, requirements: Sequence[str], *, announce: Callable[[str], None]) -> Path:
    """Return the Python of an environment with a peer's pinned `requirements`, made where the cache has none."""
    key = hashlib.sha256("\n".join([sys.version, *requirements]).encode()).hexdigest()[:8]
    folder = cache_dir() / "bench-peers" / f"{name}-{key}"
    python = folder / "bin" / "python"
    if (folder / MADE).is_file():
        return python
    announce(f"installing {', '.join(requirements)} into {folder}")
    shutil.rmtree(folder, ignore_errors=True)
    commands = (
        # Of the interpreter itself, not of a virtual environment it may run in.
        [sys.executable, "-m", "venv", str(folder)],
        [str(python), "-m", "pip", "install", "-q", *requirements],
    )
    for command in commands:
        try:
            subprocess.run(command, check=True, capture_output=True, text=True, timeout=INSTALL_TIMEOUT_S, input="")
        except subprocess.CalledProcessError as exc:
            reasons = [line for line in (exc.stderr + exc.stdout).splitlines() if line.startswith("ERROR")]
            reason = reasons[-1] if reasons else f"exit code {exc.returncode} of {' '.join(command)}"
            raise PeerUnavailableError(f"{', '.join(requirements)} cannot be installed: {reason}") from None
        except (OSError, subprocess.TimeoutExpired) as exc:
            raise PeerUnavailableError(f"{', '.join(requirements)} cannot be installed: {exc}") from exc
    (folder / MADE).touch()
    return python
