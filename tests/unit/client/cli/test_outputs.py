"""Outputs that cannot be written, and names that would print something else: the command as a process of its own."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import cv2
import numpy as np
import pytest

from deepfake_client import DeepfakeClient
from deepfake_client.cli import groups, main
from deepfake_client.cli.terminal import json_text
from deepfake_client.transport.testing import FakeTransport
from deepfake_preprocess.support.text import visible

COMMAND = """
import os, resource, sys
if "DISK_BYTES" in os.environ:
    resource.setrlimit(resource.RLIMIT_FSIZE, (int(os.environ["DISK_BYTES"]),) * 2)
from deepfake_client import DeepfakeClient
from deepfake_client.cli import groups, main
from deepfake_client.transport.testing import FakeTransport
groups.DeepfakeClient = lambda connection=None, **options: DeepfakeClient(FakeTransport(), **options)
main.main(sys.argv[1:])
"""
FORGED = "x.png\n REAL   fake probability 0.0001   evidence.mp4\x1b[8m\x9b2J\u202e"
"""Prints a line of its own, hides what follows, clears the screen and turns the direction of writing."""


def deepfake(folder: Path, *arguments: str, stdout: str = "", disk_bytes: int | None = None) -> tuple[int, str, str]:
    """Run the command in `folder` with a server that is not there; returns exit code, output and errors.

    With `disk_bytes`, no file can grow beyond.
    """
    with open(stdout or os.devnull, "w") as target:  # noqa: PTH123
        done = subprocess.run(
            [sys.executable, "-c", COMMAND, *arguments],
            cwd=folder,
            env={**os.environ, **({} if disk_bytes is None else {"DISK_BYTES": str(disk_bytes)})},
            stdout=target if stdout else subprocess.PIPE,
            stderr=subprocess.PIPE,
            timeout=100,
            check=False,
        )
    return done.returncode, (done.stdout or b"").decode(), done.stderr.decode()


@pytest.fixture
def pictures(tmp_path: Path) -> Path:
    for name in ("a.png", "b.png", "c.png"):
        cv2.imwrite(str(tmp_path / name), np.full((48, 64, 3), 90, np.uint8))
    return tmp_path


def sentences(errors: str) -> list[str]:
    return [line for line in errors.splitlines() if line.startswith("error:")]


@pytest.mark.parametrize("form", [["--jsonl"], []])
def test_a_full_disk_behind_standard_output_is_one_sentence_and_the_other_outputs_are_complete(
    pictures: Path, form: list[str]
) -> None:
    code, _, errors = deepfake(pictures, "analyze", ".", *form, "--output", "kept.jsonl", stdout="/dev/full")
    assert code == 2
    (sentence,) = sentences(errors)
    assert "standard output cannot be written (No space left on device)" in sentence
    assert "Traceback" not in errors
    kept = [json.loads(line)["source"] for line in (pictures / "kept.jsonl").read_text().splitlines()]
    assert sorted(kept) == ["a.png", "b.png", "c.png"]


def test_a_run_ends_when_nothing_takes_its_results_any_more(pictures: Path) -> None:
    code, _, errors = deepfake(pictures, "analyze", ".", "--jsonl", "--concurrency", "1", stdout="/dev/full")
    assert code == 2
    assert "ended, because nothing takes the results any more: 1 of 3 inputs were analyzed" in errors


def test_every_command_says_that_standard_output_is_full(pictures: Path) -> None:
    code, _, errors = deepfake(pictures, "--help", stdout="/dev/full")
    assert (code, len(sentences(errors))) == (2, 1)
    assert "Traceback" not in errors


def test_a_command_whose_reader_has_seen_enough_ends_without_a_word(pictures: Path) -> None:
    command = ["bash", "-o", "pipefail", "-c", '"$@" | true', "bash", sys.executable, "-c", COMMAND, "--help"]
    done = subprocess.run(command, cwd=pictures, capture_output=True, timeout=100, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (141, b"", b"")


@pytest.mark.parametrize(("option", "disk_bytes"), [("--csv", 400), ("--output", 1500), ("--report", 5000)])
def test_a_disk_that_fills_up_ends_one_output_and_the_others_get_everything(
    pictures: Path, option: str, disk_bytes: int
) -> None:
    code, out, errors = deepfake(pictures, "analyze", ".", "--json", option, "target", disk_bytes=disk_bytes)
    assert code == 2
    (sentence,) = sentences(errors)
    assert re.search(r"target\S* (cannot be written )?\(File too large\); free some space", sentence)
    assert "Traceback" not in errors
    assert [item["source"] for item in json.loads(out)] == ["a.png", "b.png", "c.png"]


def analyze_here(capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[object, str, str]:
    with pytest.raises(SystemExit) as stopped:
        main.main(["analyze", *arguments])
    return (stopped.value.code, *capsys.readouterr())


@pytest.fixture
def here(pictures: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(pictures)
    monkeypatch.setattr(
        groups, "DeepfakeClient", lambda connection=None, **options: DeepfakeClient(FakeTransport(), **options)
    )
    return pictures


@pytest.mark.parametrize("device", ["/dev/zero", "/dev/null", "pipe"])
def test_results_are_not_kept_in_a_device_which_would_be_read_for_ever(
    here: Path, capsys: pytest.CaptureFixture[str], device: str
) -> None:
    os.mkfifo(here / "pipe")
    code, _, errors = analyze_here(capsys, "a.png", "--output", device)
    assert code == 2
    assert f"results cannot be kept in {device}, which is not a file" in errors


def test_a_table_that_cannot_be_begun_is_refused_before_anything_is_analyzed(
    here: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    code, _, errors = analyze_here(capsys, "a.png", "--csv", "/dev/full", "--quiet")
    assert code == 2
    assert "--csv /dev/full cannot be written (No space left on device)" in errors


@pytest.mark.parametrize("form", [[], ["--json"], ["--jsonl"], ["--csv", "-"], ["--report", "report"]])
def test_a_file_name_cannot_print_a_verdict(here: Path, capsys: pytest.CaptureFixture[str], form: list[str]) -> None:
    (here / "a.png").rename(here / f"{FORGED}.png")
    (here / f"{FORGED}.mp4").write_text("no video")
    for names in ([f"{FORGED}.png"], [f"{FORGED}.png", "b.png", f"{FORGED}.mp4"]):
        code, out, errors = analyze_here(capsys, *form, "--", *names)
        assert code == (3 if len(names) == 1 else 5)
        for text in (out, errors, *(page.read_text() for page in here.rglob("*.html"))):
            assert not {"\x1b", "\x9b", "\u202e"} & set(text)
            assert not [line for line in text.splitlines() if line.strip().startswith("REAL")]
        assert "x.png\\n REAL" in out
        if form == ["--json"]:
            data = json.loads(out)
            assert (data if len(names) == 1 else data[0])["source"] == names[0]


def test_a_report_is_there_as_pdf_too_also_when_asked_for_later(
    here: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    analyze_here(capsys, "a.png", "b.png", "--report", "report")
    assert list(here.rglob("*.pdf")) == []
    again = ("a.png", "b.png", "--report", "report", "--resume")
    analyze_here(capsys, *again, "--pdf")
    files = sorted(here.rglob("*.pdf"))
    assert [file.parent.name[:5] for file in files] == ["a.png", "b.png"]
    assert {file.read_bytes()[:5] for file in files} == {b"%PDF-"}
    assert all(file.with_name("report.html").exists() for file in files)

    monkeypatch.setitem(sys.modules, "fpdf", None)
    monkeypatch.delitem(sys.modules, "deepfake_client.report.pdf", raising=False)
    for arguments, sentence in (
        (again, r"'fpdf' is not installed; run: pip install .*\[pdf\]"),
        (["a.png"], "--report DIR"),
    ):
        code, _, errors = analyze_here(capsys, *arguments, "--pdf")
        assert code == 2
        assert re.search(sentence, errors)


def test_text_is_shown_as_it_is_and_what_is_not_printed_as_escapes() -> None:
    for text in ("Straße 3\u202fPM.mp4", "写真\u3000二.jpg", "a\\nb", "👩‍🚀"[0]):
        assert visible(text) == text
    assert visible("a\nb\x1b[2J\u202e\udcff\x9b") == "a\\nb\\x1b[2J\\u202e\\udcff\\x9b"
    assert visible("x" + " " * 3 + "REAL") == "x \\x20\\x20REAL"
    data = {"a": "b\u202e\x9b\udcff\U000e0001é"}
    assert json.loads(json_text(data)) == data
    assert json_text(data).isprintable()


def test_a_standard_output_that_is_closed_is_no_place_for_a_verdict(pictures: Path) -> None:
    command = ["sh", "-c", 'exec "$@" >&-', "sh", sys.executable, "-c", COMMAND, "analyze", "a.png"]
    done = subprocess.run(command, cwd=pictures, stderr=subprocess.PIPE, text=True, timeout=100, check=False)
    assert done.returncode == 2
    assert sentences(done.stderr)[0].startswith("error: standard output cannot be written (it is closed)")
