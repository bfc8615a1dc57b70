"""docs/client.md: the Python of its sections on inputs, many inputs and live sources is run, as written."""

from __future__ import annotations

import re
import shutil
from pathlib import Path

import pytest
from checkout import ROOT
from media import make_clip

from deepfake_serve import EmbeddedTriton

PAGE = (ROOT / "docs" / "client.md").read_text(encoding="utf-8")
SECTIONS = dict(re.findall(r"^## (.+?)\n(.*?)(?=^## |\Z)", PAGE, re.MULTILINE | re.DOTALL))


def blocks(section: str) -> list[str]:
    return re.findall(r"^```python\n(.*?)^```$", SECTIONS[section], re.MULTILINE | re.DOTALL)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("docs")
    make_clip(root / "clip.mp4", size_wh=(640, 360), duration_s=1)
    (root / "videos").mkdir()
    shutil.copy(root / "clip.mp4", root / "videos")
    (root / "videos" / "text.mp4").write_text("no video")
    make_clip(root / "recording.ts", size_wh=(640, 360), duration_s=4)
    return root


@pytest.mark.parametrize(
    ("section", "number", "printed"),
    [
        ("Inputs", 0, r"(REAL|FAKE) 0\.\d+\n"),
        ("Inputs", 1, r"INCONCLUSIVE no_face 32\ndoor camera 10\n"),
        (
            "Many inputs",
            0,
            r"(videos/clip\.mp4 (REAL|FAKE)\n|videos/text\.mp4 cannot be opened.*\n|.*text\.mp4.*\n){2}",
        ),
        ("Many inputs", 1, r"(clip\.mp4|None)\n|videos/clip.mp4\n"),
        ("Live sources", 0, r"([\d.]+ INCONCLUSIVE None 0\n)?([\d.]+ (REAL|FAKE) 0\.\d+ 0\n)+"),
    ],
)
def test_python_blocks_print_what_they_promise(
    embedded_triton: EmbeddedTriton,
    folder: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    section: str,
    number: int,
    printed: str,
) -> None:
    monkeypatch.chdir(folder)
    code = blocks(section)[number].replace("localhost:8001", embedded_triton.grpc_url)
    exec(compile(code, f"docs/client.md, {section}", "exec"), {"__name__": "example"})
    assert re.fullmatch(printed, capsys.readouterr().out)


def test_every_block_is_run() -> None:
    assert [len(blocks(section)) for section in ("Inputs", "Many inputs", "Live sources")] == [2, 2, 1]


def test_every_code_block_ends_before_the_next_heading() -> None:
    assert [title for title, text in SECTIONS.items() if text.count("```") % 2] == []
