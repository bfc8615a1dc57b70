"""`deepfake watch`, as a person runs it: a real Triton, the real detector, a file that grows, Ctrl-C."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from http_files import serving
from media import make_clip

from deepfake_serve import EmbeddedTriton


def start(*arguments: object) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-m", "deepfake_client.cli.main", "watch", *map(str, arguments)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


@pytest.fixture(scope="module")
def clip(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_clip(tmp_path_factory.mktemp("clips") / "two_faces.ts", size_wh=(640, 360), duration_s=3, faces=2)


def test_verdicts_are_lines_and_a_summary_comes_last(embedded_triton: EmbeddedTriton, clip: Path) -> None:
    process = start(clip, "--url", embedded_triton.grpc_url, "--idle", 0.1, "--step", 0.5, "--min-change", 0)
    out, err = process.communicate(timeout=120)
    assert process.returncode == 0, err
    *verdicts, _, _, _, _ = out.splitlines()
    early = [line for line in verdicts if "INCONCLUSIVE" in line]
    assert verdicts[: len(early)] == early, "before a face was seen often enough"
    judged = verdicts[len(early) :]
    assert len(judged) >= 2
    assert all("fake probability" in line and "of 2" in line for line in judged)
    assert f"of {clip}" in out
    assert "dropped   0 frames" in out


def test_ctrl_c_ends_a_watch_of_json_lines_with_the_summary(embedded_triton: EmbeddedTriton, clip: Path) -> None:
    process = start(clip, "--url", embedded_triton.grpc_url, "--idle", 100, "--jsonl")
    assert process.stdout is not None
    verdicts = [json.loads(process.stdout.readline())]
    while verdicts[-1]["label"] == "INCONCLUSIVE":  # before a face was seen often enough
        verdicts.append(json.loads(process.stdout.readline()))
    process.send_signal(signal.SIGINT)
    rest, err = process.communicate(timeout=60)
    assert process.returncode == 0, err
    assert "Traceback" not in err
    assert "verdicts" in err
    verdicts += map(json.loads, rest.splitlines())
    assert verdicts[-1]["label"] in ("REAL", "FAKE")
    for verdict in verdicts:
        assert verdict["frames_dropped"] == 0
        assert {track["track"] for track in verdict["tracks"]} == {0, 1}


def test_an_address_and_what_is_wrong_with_one(embedded_triton: EmbeddedTriton, clip: Path) -> None:
    with serving() as site:
        site.files["/live.ts"] = clip.read_bytes()
        good = start(f"{site.url}/live.ts", "--url", embedded_triton.grpc_url, "--on-slow", "wait")
        bad = start(f"{site.url}/gone.ts", "--url", embedded_triton.grpc_url)
        careless = start("https://localhost/gone.ts", "--source-ca", clip)
        out, _ = good.communicate(timeout=120)
        _, err = bad.communicate(timeout=120)
        _, no_ca = careless.communicate(timeout=120)
    assert good.returncode == 0
    assert "fake probability" in out
    assert bad.returncode == 2
    assert err.startswith("error: ")
    assert err.count("\n") == 1
    assert "404" in err
    assert careless.returncode == 2
    assert no_ca == f"error: {clip}: this is not a PEM file of certificates to trust\n"
