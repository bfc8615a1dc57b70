"""Brings NVIDIA's Triton server onto this machine: out of the PyPI wheel `nvidia-pytriton`, into a user cache.

The wheel is unpacked outside of the Python environment: its pin on numpy 1 must not reach that. It is fetched once,
checked against a known SHA-256 and put in place with one rename, so what is in the cache is always complete. This
module does not start a server.
"""

from __future__ import annotations

import fcntl
import os
import platform
import shutil
import subprocess
import sys
import sysconfig
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from rich.console import Console

from deepfake_preprocess.errors import ServerStartError

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

CACHE_DIR_VARIABLE = "DEEPFAKE_CACHE_DIR"
INSTALL_TIMEOUT_S = 1_800
"""55 MB at 30 kB/s; a slower line is as good as none."""

PYTHON_VERSION = f"{sys.version_info.major}.{sys.version_info.minor}"

Announce = Callable[[str], None]


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


def cache_dir() -> Path:
    """Return where this project keeps what it fetched: `DEEPFAKE_CACHE_DIR`, else the user's cache folder."""
    if own := os.environ.get(CACHE_DIR_VARIABLE):
        return Path(own).expanduser().absolute()
    base = os.environ.get("XDG_CACHE_HOME") or "~/.cache"
    return Path(base).expanduser().absolute() / "deepfake-serving"


def ensure_runtime(*, announce: Announce | None = None) -> TritonRuntime:
    """Return an unpacked Triton that can run here, fetching it first where it is not in the cache.

    Of several processes one fetches, and the others wait for it. `announce` is called with one line of text before
    something slow; by default that goes to standard error.

    Raises:
        ServerStartError: this machine or Python cannot run it, or it cannot be fetched; says what to do.
    """
    check_platform()
    say = announce or Console(stderr=True, highlight=False, soft_wrap=True, markup=False).print
    target = cache_dir() / f"triton-{TRITON_VERSION}"
    runtime = TritonRuntime(target)
    try:
        if not target.is_dir():
            target.parent.mkdir(parents=True, exist_ok=True)
            with _lock(target, say):
                if not target.is_dir():
                    _fetch(target, say)
        _check_stub(runtime)
        if not runtime.python_backend.is_dir():
            with _lock(target, say):
                if not runtime.python_backend.is_dir():
                    _complete_backend(runtime)
    except OSError as exc:
        raise ServerStartError(
            f"Triton cannot be put into {target.parent} ({exc.strerror or exc}); "
            f"set {CACHE_DIR_VARIABLE} to a folder you can write, with {UNPACKED_MB} MB free"
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


def _fetch(target: Path, say: Announce) -> None:
    """Unpack the wheel into `target`; the caller holds the lock, so a partial folder is nobody else's."""
    partial = target.with_name(target.name + ".partial")
    shutil.rmtree(partial, ignore_errors=True)
    say(
        f"Fetching Triton {TRITON_VERSION} ({WHEEL_NAME} {WHEEL_VERSION} from PyPI: {DOWNLOAD_MB} MB to download, "
        f"{UNPACKED_MB} MB in {target}); this happens once"
    )
    partial.mkdir()
    requirement = partial / "requirements.txt"
    pin = f"hash=sha256:{WHEEL_SHA256[platform.machine()]}"
    requirement.write_text(f"{WHEEL_NAME}=={WHEEL_VERSION} --{pin}\n")
    unpacked = partial / "unpacked"
    flags = ["quiet", "disable-pip-version-check", "no-input", "no-deps", "no-compile", "only-binary=:all:"]
    flags += ["require-hashes", f"target={unpacked}", f"requirement={requirement}"]
    command = [sys.executable, "-m", "pip", "install", *(f"--{flag}" for flag in flags)]
    # A user's pip settings for environments do not apply to a plain folder, and `user` even contradicts it.
    environment = {**os.environ, "PIP_USER": "0", "PIP_REQUIRE_VIRTUALENV": "0"}
    try:
        done = subprocess.run(
            command,
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=INSTALL_TIMEOUT_S,
            check=False,
        )
        if done.returncode:
            raise ServerStartError(_pip_failure(done.stdout))
        unpacked.rename(target)
    except subprocess.TimeoutExpired:
        raise ServerStartError(
            f"fetching {WHEEL_NAME} took longer than {INSTALL_TIMEOUT_S} s and was given up; check the network"
        ) from None
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def _pip_failure(output: str) -> str:
    if "No module named pip" in output:
        return f"Triton is fetched with pip, which {sys.executable} lacks; run: {sys.executable} -m ensurepip"
    errors = [line.removeprefix("ERROR:").strip() for line in output.splitlines() if line.startswith("ERROR:")]
    reason = errors[-1] if errors else (output.strip().splitlines() or ["no reason given"])[-1]
    return (
        f"pip could not fetch {WHEEL_NAME}=={WHEEL_VERSION} ({reason}); check the network and pip's index, or fill "
        f"{CACHE_DIR_VARIABLE} from a machine that has it"
    )


@contextmanager
def _lock(target: Path, say: Announce) -> Iterator[None]:
    """Hold the exclusive lock for `target`; the system frees it even when this process is killed."""
    with target.with_name(target.name + ".lock").open("w") as stream:
        try:
            fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            say(f"Waiting for another process that is fetching Triton {TRITON_VERSION}")
            fcntl.flock(stream, fcntl.LOCK_EX)
        yield
