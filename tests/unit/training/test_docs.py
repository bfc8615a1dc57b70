"""docs/training.md: its Python is run as written."""

from __future__ import annotations

import dataclasses
import re
from pathlib import Path

import pytest
import yaml
from checkout import ROOT
from drawn_faces import QUICK, make_faces


def test_the_library_is_used_as_the_page_says(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    page = (ROOT / "docs" / "training.md").read_text(encoding="utf-8")
    (block,) = re.findall(r"^```python\n(.*?)^```$", page, re.MULTILINE | re.DOTALL)
    monkeypatch.chdir(tmp_path)
    make_faces().save("faces.safetensors")
    config = dataclasses.replace(QUICK, epochs=1, pack="faces.safetensors")
    Path("train.yaml").write_text(yaml.safe_dump(config.to_dict()))
    exec(compile(block, "docs/training.md", "exec"), {})
    assert re.fullmatch(r"1 \d\.\d{3} \[\d\.\d{3}, \d\.\d{3}\]\n", capsys.readouterr().out)
    assert (tmp_path / "runs" / "second" / "best.safetensors").is_file()
