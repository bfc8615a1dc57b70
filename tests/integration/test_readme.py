"""README is what a newcomer does first: every code block in it is run, as written."""

from __future__ import annotations

import os
import re
import shutil
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import yaml
from checkout import ROOT
from media import make_clip

from deepfake_preprocess.contract.spec import ModelSpec

README = (ROOT / "README.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"^```(\w+)\n(.*?)^```$", README, re.MULTILINE | re.DOTALL)


def blocks(language: str) -> list[str]:
    return [text for kind, text in BLOCKS if kind == language]


def environment() -> dict[str, str]:
    """`deepfake` and `python` are those of this environment, as after `make run`."""
    return os.environ | {"PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"}


def shell(command: str, cwd: Path) -> str:
    done = subprocess.run(
        ["sh", "-euc", command], cwd=cwd, env=environment(), capture_output=True, text=True, timeout=240, check=False
    )
    # 3 is INCONCLUSIVE: the calibrated demo network leaves the tests' small clip open.
    assert done.returncode in (0, 3), f"{command}\n{done.stdout}\n{done.stderr}"
    return done.stdout


def free_ports(count: int) -> list[int]:
    probes = [socket.socket() for _ in range(count)]
    for probe in probes:
        probe.bind(("127.0.0.1", 0))
    ports = [probe.getsockname()[1] for probe in probes]
    for probe in probes:
        probe.close()
    return ports


@contextmanager
def running(command: str, cwd: Path, ready_url: str) -> Iterator[None]:
    process = subprocess.Popen(["sh", "-euc", f"exec {command}"], cwd=cwd, env=environment())
    try:
        deadline = time.monotonic() + 120
        while True:
            try:
                urllib.request.urlopen(ready_url, timeout=5).close()
                break
            except OSError:
                assert process.poll() is None, "the server ended by itself"
                assert time.monotonic() < deadline, "the server was not ready in time"
                time.sleep(0.1)  # between polls of readiness
        yield
    finally:
        process.terminate()
        assert process.wait(60) == 0


def test_every_kind_of_block_is_covered_here() -> None:
    assert {kind for kind, _ in BLOCKS} == {"sh", "text", "yaml", "python"}
    assert len(blocks("sh")) == 4
    assert len(blocks("python")) == 2
    assert len(blocks("yaml")) == 1


def test_make_run_prints_what_the_readme_shows() -> None:
    if Path(sys.prefix) != ROOT / ".venv":
        pytest.skip("`make run` uses .venv; these tests run in another environment")
    # make passes its variables on to its children; this run must be as fresh as a person's.
    clean = {key: value for key, value in environment().items() if not key.startswith(("MAKE", "MFLAGS"))}
    clean["MODEL"] = "tiny"  # the others are fetched, and take minutes
    done = subprocess.run(
        ["sh", "-euc", blocks("sh")[0]], cwd=ROOT, env=clean, capture_output=True, text=True, timeout=280, check=False
    )
    assert done.returncode == 0, done.stderr
    assert "fake probability" in done.stdout
    for line in ("frames +of them +from +to", "model ", "For demonstrations, not for decisions about people"):
        assert re.search(line, done.stdout)
        assert re.search(line, blocks("text")[0])
    assert "deepfake_efficientnet_lite0 version" in done.stdout


def test_the_spec_is_valid(tmp_path: Path) -> None:
    assert ModelSpec.from_dict(yaml.safe_load(blocks("yaml")[0])).name == "my_detector"


def test_export_serve_analyze_python_and_curl(tmp_path: Path) -> None:
    grpc, http, metrics = free_ports(3)
    make_clip(tmp_path / "clip.mp4", size_wh=(640, 360), duration_s=1)
    (tmp_path / "videos").mkdir()
    shutil.copy(tmp_path / "clip.mp4", tmp_path / "videos")
    *prepare, serve = blocks("sh")[1].strip().splitlines()
    assert serve.startswith("deepfake serve")
    shell("\n".join(prepare), tmp_path)

    def ported(text: str) -> str:
        return text.replace("localhost:8001", f"127.0.0.1:{grpc}").replace("localhost:8000", f"127.0.0.1:{http}")

    serve += f" --grpc-port {grpc} --http-port {http} --metrics-port {metrics}"
    with running(serve, tmp_path, f"http://127.0.0.1:{http}/v2/health/ready"):
        commands = blocks("sh")[2].strip().splitlines()
        outputs = [shell(f"{command} --url 127.0.0.1:{grpc}", tmp_path) for command in commands]
        assert "deepfake_efficientnet_lite0" in outputs[0]
        assert re.search("REAL|FAKE|INCONCLUSIVE", outputs[1])
        assert '"fake_probability"' in outputs[2]
        assert (tmp_path / "results.csv").read_text().count("videos/clip.mp4") == 1
        assert list((tmp_path / "report").rglob("*.html"))
        for example in blocks("python"):
            (tmp_path / "example.py").write_text(ported(example))
            assert re.search("REAL|FAKE|INCONCLUSIVE", shell("python example.py", tmp_path))
        if shutil.which("curl"):
            assert '"deepfake.threshold"' in shell(ported(blocks("sh")[3]), tmp_path)


def test_links_lead_somewhere() -> None:
    for target in re.findall(r"\]\((?!https?://)([^)#]+)\)", README):
        assert (ROOT / target).exists(), target
