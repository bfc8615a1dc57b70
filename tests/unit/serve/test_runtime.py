"""Fetching Triton: complete or not at all, once, and with a reason when it fails. No network is used here."""

import os
import platform
import stat
import subprocess
import sys
from pathlib import Path

import pytest

from deepfake_preprocess.errors import ServerStartError
from deepfake_preprocess.support.wheels import CACHE_DIR_VARIABLE, cache_dir
from deepfake_serve import _runtime as runtime

VERSION = f"{sys.version_info.major}.{sys.version_info.minor}"
TARGET = f"triton-{runtime.TRITON_VERSION}"

# Stands in for `python -m pip install ... --target=DIR ...`: notes the call and makes what the wheel holds.
FAKE_PYTHON = f"""#!/bin/sh
echo "$@" >> "$CALLS"
[ -n "$FAIL" ] && {{ echo "$FAIL"; exit 1; }}
for argument; do case "$argument" in --target=*) target="${{argument#--target=}}";; esac; done
root="$target/pytriton/tritonserver"
mkdir -p "$root/bin" "$root/backends/python" "$root/python_backend_stubs/{VERSION}" "$target/nvidia_pytriton.libs"
[ -n "$DIE" ] && kill -9 $PPID
cp /bin/true "$root/bin/tritonserver"
cp /bin/true "$root/python_backend_stubs/{VERSION}/triton_python_backend_stub"
"""


@pytest.fixture
def calls(tmp_path, monkeypatch):
    """Put a stand-in for pip in place; returns a function that lists the calls it saw."""
    script = tmp_path / "python"
    script.write_text(FAKE_PYTHON)
    script.chmod(script.stat().st_mode | stat.S_IXUSR)
    log = tmp_path / "calls"
    log.touch()
    monkeypatch.setattr(sys, "executable", str(script))
    monkeypatch.setenv("CALLS", str(log))
    monkeypatch.setenv(CACHE_DIR_VARIABLE, str(tmp_path / "cache"))
    return lambda: log.read_text().splitlines()


def test_it_is_fetched_once_and_announced_with_its_size(calls, tmp_path):
    said = []
    found = runtime.ensure_runtime(announce=said.append)
    assert found.root == tmp_path / "cache" / TARGET
    assert found.tritonserver.is_file()
    assert [path.name for path in found.python_backend.iterdir()] == [found.stub.name]
    (line,) = said
    assert "55 MB" in line
    assert "144 MB" in line
    (call,) = calls()
    assert "--no-deps" in call
    assert "--require-hashes" in call
    assert runtime.ensure_runtime(announce=said.append) == found
    assert (len(said), len(calls())) == (1, 1)
    assert sorted(path.name for path in (tmp_path / "cache").iterdir()) == [TARGET, f"{TARGET}.lock"]


@pytest.mark.parametrize(
    ("output", "told"),
    [
        ("ERROR: Could not find a version that satisfies the requirement", "Could not find a version.*network"),
        ("/usr/bin/python3: No module named pip", "ensurepip"),
        ("killed", "killed.*network"),
    ],
)
def test_a_failed_fetch_says_why_and_leaves_nothing(calls, tmp_path, monkeypatch, output, told):
    monkeypatch.setenv("FAIL", output)
    with pytest.raises(ServerStartError, match=told) as caught:
        runtime.ensure_runtime(announce=lambda line: None)
    assert caught.value.exit_code == 4
    assert [path.name for path in (tmp_path / "cache").iterdir()] == [f"{TARGET}.lock"]
    monkeypatch.delenv("FAIL")
    assert runtime.ensure_runtime(announce=lambda line: None).tritonserver.is_file()


def fetch_in_another_process(**environment):
    code = (
        "import sys; from deepfake_serve import _runtime as runtime\n"
        f"sys.executable = {sys.executable!r}\n"
        "runtime.ensure_runtime(announce=lambda line: None)"
    )
    # The real interpreter: sys.executable is the stand-in here.
    interpreter = Path(sys.exec_prefix) / "bin" / "python3"
    return subprocess.Popen([interpreter, "-c", code], env={**os.environ, **environment})


def test_a_killed_fetch_leaves_nothing_that_looks_complete(calls, tmp_path):
    assert fetch_in_another_process(DIE="1").wait() < 0
    assert not (tmp_path / "cache" / TARGET).exists()
    assert runtime.ensure_runtime(announce=lambda line: None).tritonserver.is_file()
    assert not (tmp_path / "cache" / f"{TARGET}.partial").exists()


def test_two_processes_at_once_fetch_once(calls):
    processes = [fetch_in_another_process() for _ in range(3)]
    assert [process.wait() for process in processes] == [0, 0, 0]
    assert len(calls()) == 1


def test_a_cache_that_cannot_be_written_is_named_with_the_way_out(calls, tmp_path, monkeypatch):
    (tmp_path / "file").touch()
    monkeypatch.setenv(CACHE_DIR_VARIABLE, str(tmp_path / "file"))
    with pytest.raises(ServerStartError, match=rf"{CACHE_DIR_VARIABLE} to a folder you can write"):
        runtime.ensure_runtime(announce=lambda line: None)


def test_a_python_without_stub_is_refused_with_the_versions_there_are(calls):
    found = runtime.ensure_runtime(announce=lambda line: None)
    found.stub.parent.rename(found.stub.parents[1] / "3.8")
    with pytest.raises(ServerStartError, match=rf"no Python backend for Python {VERSION}, only for 3\.8"):
        runtime.ensure_runtime()


@pytest.mark.parametrize(
    ("missing", "told"),
    [
        ([f"libpython{VERSION}.so.1.0"], f"apt install libpython{VERSION}"),
        (["libfoo.so.1"], r"libfoo\.so\.1"),
    ],
)
def test_missing_libraries_are_named_with_their_package(calls, monkeypatch, missing, told):
    monkeypatch.setattr(runtime, "missing_libraries", lambda executable, search_path: missing)
    with pytest.raises(ServerStartError, match=told):
        runtime.ensure_runtime(announce=lambda line: None)


def test_what_is_here_lacks_no_library():
    assert runtime.missing_libraries(Path("/bin/true"), "") == []


@pytest.mark.parametrize(
    ("system", "machine", "libc", "told"),
    [
        ("darwin", "arm64", ("", ""), "not on darwin with arm64"),
        ("linux", "riscv64", ("glibc", "2.41"), "not on linux with riscv64"),
        ("linux", "x86_64", ("glibc", "2.31"), "glibc 2.35 or newer.*2.31"),
        ("linux", "x86_64", ("", ""), "another C library"),
    ],
)
def test_platforms_without_a_server_are_pointed_to_the_container(monkeypatch, system, machine, libc, told):
    monkeypatch.setattr(sys, "platform", system)
    monkeypatch.setattr(platform, "machine", lambda: machine)
    monkeypatch.setattr(platform, "libc_ver", lambda: libc)
    with pytest.raises(ServerStartError, match=f"{told}.*docker compose up"):
        runtime.check_platform()


def test_the_cache_follows_the_environment(monkeypatch, tmp_path):
    monkeypatch.delenv(CACHE_DIR_VARIABLE, raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert cache_dir() == tmp_path / "deepfake-serving"
    monkeypatch.setenv(CACHE_DIR_VARIABLE, str(tmp_path / "own"))
    assert cache_dir() == tmp_path / "own"
