"""Brings NVIDIA's Triton server onto this machine: out of the PyPI wheel `nvidia-pytriton`, into a user cache.

The wheel is unpacked outside of the Python environment (`deepfake_preprocess.support.wheels`): its pin on numpy 1
must not reach that. This module does not start a server.
"""

from __future__ import annotations

import os
import platform
import shutil
import subprocess
import sys
import sysconfig
from dataclasses import dataclass
from pathlib import Path

from deepfake_preprocess.errors import ServerStartError
from deepfake_preprocess.support.text import reason_of
from deepfake_preprocess.support.wheels import Announce, Wheel, locked, unpacked

TRITON_VERSION = "2.51.0"
"""Triton's own version inside the wheel (NVIDIA's container release 24.10)."""
WHEEL_NAME = "nvidia-pytriton"
WHEEL_VERSION = "0.7.0"
WHEEL_SHA256 = {
    "x86_64": "21f063ff93bb426d0c06b7a55e7eb9efcfe62c0dddd9a908e9877e18710128df",
    "aarch64": "f99e07ee56fe065337453956afba17d2673e02ec6a632c3de26ce6e7b32a0898",
}
"""By machine; pip refuses any other file, whichever index it came from."""
DOWNLOAD_MB = 55
UNPACKED_MB = 144
MINIMUM_GLIBC = (2, 35)
"""From the wheel's platform tag, manylinux_2_35."""

PYTHON_VERSION = f"{sys.version_info.major}.{sys.version_info.minor}"


@dataclass(frozen=True, slots=True)
class TritonRuntime:
    """Where the parts of one Triton are, whose wheel is unpacked in `root`."""

    root: Path

    @property
    def tritonserver(self) -> Path:
        """The server's executable."""
        return self.root / "pytriton" / "tritonserver" / "bin" / "tritonserver"

    @property
    def stub(self) -> Path:
        """The Python backend's executable for the running Python version, as the wheel has it."""
        stubs = self.root / "pytriton" / "tritonserver" / "python_backend_stubs"
        return stubs / PYTHON_VERSION / "triton_python_backend_stub"

    @property
    def python_backend(self) -> Path:
        """A complete Python backend for the running Python version: the wheel's, with the stub in it."""
        return self.root / f"python-backend-{PYTHON_VERSION}"

    @property
    def libraries(self) -> Path:
        """Shared libraries that server and stub need on the loader's path."""
        return self.root / "nvidia_pytriton.libs"


def ensure_runtime(*, announce: Announce | None = None) -> TritonRuntime:
    """Return an unpacked Triton that can run here, fetching it first where it is not in the cache.

    Of several processes one fetches, and the others wait for it; see `unpacked`, also for `announce`.

    Raises:
        ServerStartError: this machine or Python cannot run it, or it cannot be fetched; says what to do.
    """
    check_platform()
    wheel = Wheel(
        f"Triton {TRITON_VERSION}",
        WHEEL_NAME,
        WHEEL_VERSION,
        WHEEL_SHA256[platform.machine()],
        DOWNLOAD_MB,
        UNPACKED_MB,
    )
    target = unpacked(wheel, f"triton-{TRITON_VERSION}", error=ServerStartError, announce=announce)
    runtime = TritonRuntime(target)
    try:
        _check_stub(runtime)
        if not runtime.python_backend.is_dir():
            with locked(target, wheel.title, announce):
                if not runtime.python_backend.is_dir():
                    _complete_backend(runtime)
    except OSError as exc:
        raise ServerStartError(
            f"Triton's Python backend cannot be put into {target} ({reason_of(exc)}); make the folder writable"
        ) from exc
    return runtime


def check_platform() -> None:
    """Raise `ServerStartError` where the wheel has no server for this system, processor or C library."""
    instead = "Use NVIDIA's container instead (`docker compose up`)"
    machine = platform.machine()
    if sys.platform != "linux" or machine not in WHEEL_SHA256:
        raise ServerStartError(
            f"the embedded Triton runs on Linux with {' or '.join(WHEEL_SHA256)}, not on {sys.platform} with "
            f"{machine}. {instead}"
        )
    library, version = platform.libc_ver()
    needed = ".".join(map(str, MINIMUM_GLIBC))
    if library != "glibc" or tuple(int(part) for part in version.split(".")[:2]) < MINIMUM_GLIBC:
        raise ServerStartError(
            f"the embedded Triton needs glibc {needed} or newer (Debian 12, Ubuntu 22.04), "
            f"and this system has {library or 'another C library'} {version}".rstrip()
            + f". {instead}"
        )


def python_library() -> Path | None:
    """Return the shared libpython of the running interpreter, or None where it was built without one."""
    directory, name = sysconfig.get_config_var("LIBDIR"), sysconfig.get_config_var("INSTSONAME")
    if not directory or not name or ".so" not in name:
        return None
    path = Path(directory) / name
    return path if path.is_file() else None


def library_path(runtime: TritonRuntime) -> str:
    """Return the `LD_LIBRARY_PATH` under which server and stub find their libraries."""
    # The stub must run the very Python it was started from: another build of the same version finds another
    # standard library.
    library = python_library()
    parts = [runtime.libraries, library and library.parent, os.environ.get("LD_LIBRARY_PATH")]
    return os.pathsep.join(str(part) for part in parts if part)


def missing_libraries(executable: Path, search_path: str) -> list[str]:
    """Return the shared libraries of `executable` that the loader does not find, as `ldd` would."""
    environment = {**os.environ, "LD_TRACE_LOADED_OBJECTS": "1", "LD_LIBRARY_PATH": search_path}
    listing = subprocess.run([executable], env=environment, capture_output=True, text=True, check=False).stdout
    return [line.split()[0] for line in listing.splitlines() if line.rstrip().endswith("=> not found")]


def _check_stub(runtime: TritonRuntime) -> None:
    if not runtime.tritonserver.is_file():
        raise ServerStartError(f"{runtime.root} is damaged: it holds no tritonserver; delete it and start again")
    if not runtime.stub.is_file():
        versions = [path.name for path in runtime.stub.parents[1].iterdir()]
        have = ", ".join(sorted(versions, key=lambda name: [int(part) for part in name.split(".")]))
        raise ServerStartError(
            f"Triton {TRITON_VERSION} has no Python backend for Python {PYTHON_VERSION}, only for {have}; "
            "run deepfake-serving with one of these"
        )
    missing = missing_libraries(runtime.stub, library_path(runtime))
    if any(name.startswith("libpython") for name in missing):
        raise ServerStartError(
            f"Triton's Python backend needs libpython{PYTHON_VERSION}.so.1.0, which is not on this machine; "
            f"install it (Debian, Ubuntu: apt install libpython{PYTHON_VERSION}; "
            f"Fedora: dnf install python{PYTHON_VERSION}-libs)"
        )
    if missing:
        raise ServerStartError(
            f"Triton's Python backend needs {', '.join(missing)}, which this machine lacks; install them with "
            "the system's package manager"
        )


def _complete_backend(runtime: TritonRuntime) -> None:
    """Put the stub next to the backend's library, where Triton looks for it; the caller holds the lock."""
    partial = runtime.python_backend.with_name(runtime.python_backend.name + ".partial")
    shutil.rmtree(partial, ignore_errors=True)
    backend = runtime.root / "pytriton" / "tritonserver" / "backends" / "python"
    shutil.copytree(backend, partial, ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy2(runtime.stub, partial)
    partial.rename(runtime.python_backend)
