"""What an export says about disks: which one is full, and what a version takes."""

from __future__ import annotations

import errno
import os
from collections import namedtuple
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest

from deepfake_export.api import ExportResult, _keep_artifacts, _work_dir
from deepfake_export.cli.export import _summary_rows
from deepfake_preprocess.contract.spec import ModelSpec
from deepfake_preprocess.errors import OptionError

Usage = namedtuple("Usage", "total used free")


@pytest.mark.parametrize(("free", "is_named"), [(0, True), (5_000, False)])
def test_a_full_disk_of_temporary_files_is_not_taken_for_that_of_the_repository(
    tmp_path, monkeypatch, free, is_named
):
    usages = {str(tmp_path): Usage(10_000, 9_000, 1_000)}
    monkeypatch.setattr("shutil.disk_usage", lambda path: usages.get(str(path), Usage(8_000, 8_000 - free, free)))
    with (
        pytest.raises(OptionError if is_named else OSError, match=r"temporary files|No space") as caught,
        _work_dir(tmp_path),
    ):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    assert ("set TMPDIR" in str(caught.value)) == is_named


def test_of_artifacts_no_part_is_left_on_a_full_disk(tmp_path, monkeypatch):
    def until_full(_: Path, target: Path) -> None:
        Path(target).write_bytes(b"part")
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr("shutil.copyfile", until_full)
    with pytest.raises(OptionError, match=r"`artifacts` is .* cannot be written \(No space left on device\)"):
        _keep_artifacts(tmp_path / "art", "tiny", {"fp32": tmp_path / "model.onnx"})
    assert list((tmp_path / "art").iterdir()) == []


def test_the_size_is_that_of_all_files_of_the_version(tmp_path):
    for name in ("model.onnx", "bf16.bin"):
        (tmp_path / name).write_bytes(bytes(1_000_000))
    difference = {"max_abs": 0.0, "limit": 1.0}
    figures = {
        **{"probability": difference, "logit": difference, "size_bytes": 1_000_000, "verdict_flips": 0},
        **{"num_crops": 1, "batch_sizes": [1], "crops": "generated"},
    }
    manifest = SimpleNamespace(
        spec=ModelSpec("tiny", "torchscript"), parity=figures, served_forms=["OpenVINO in BF16"]
    )
    result = cast("ExportResult", SimpleNamespace(manifest=cast("Any", manifest), version_dir=tmp_path))
    assert dict(_summary_rows(result))["size"] == "2.0 MB"
