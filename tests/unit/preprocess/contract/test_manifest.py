"""A manifest finds every kind of difference between what was exported and what lies there."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from deepfake_preprocess.contract.manifest import MANIFEST_NAME, Manifest, file_hashes
from deepfake_preprocess.contract.spec import ModelSpec
from deepfake_preprocess.errors import RepositoryError

SPEC = ModelSpec(name="m", architecture="timm:efficientnet_b0")


@pytest.fixture
def version_dir(tmp_path: Path) -> Path:
    version_dir = tmp_path / "m" / "1"
    (version_dir / "sub").mkdir(parents=True)
    (version_dir / "model.onnx").write_bytes(b"weights")
    (version_dir / "sub" / "data.bin").write_bytes(b"more")
    manifest = Manifest(SPEC, file_hashes(version_dir), "fp16", {"torch": "2"}, {"max": 1e-6})
    manifest.write(version_dir)
    return version_dir


def test_it_reads_back_and_verifies(version_dir: Path) -> None:
    manifest = Manifest.read(version_dir)
    manifest.verify(version_dir)
    assert manifest.spec == SPEC
    assert manifest.precision == "fp16"
    assert set(manifest.files) == {"model.onnx", "sub/data.bin"}
    assert manifest.tools == {"torch": "2"}
    assert manifest.parity == {"max": 1e-6}


@pytest.mark.parametrize(
    ("harm", "message"),
    [
        (lambda d: (d / "model.onnx").write_bytes(b"weightz"), "model.onnx has changed"),
        (lambda d: (d / "sub" / "data.bin").unlink(), "sub/data.bin is missing"),
        (lambda d: (d / "extra.py").write_text(""), "extra.py is not in the manifest"),
    ],
)
def test_a_difference_is_named(version_dir: Path, harm: Callable[[Path], object], message: str) -> None:
    harm(version_dir)
    with pytest.raises(RepositoryError, match=message):
        Manifest.read(version_dir).verify(version_dir)


def test_a_version_that_was_copied_or_renamed_is_not_that_of_its_manifest(version_dir: Path) -> None:
    copy = version_dir.rename(version_dir.with_name("2"))
    with pytest.raises(RepositoryError, match=r"manifest.json is that of 'm' version 1: .* copied or renamed"):
        Manifest.read(copy).verify(copy)


def test_a_missing_manifest_says_what_to_do(tmp_path: Path) -> None:
    with pytest.raises(RepositoryError, match=r"has no manifest.json; put models there with `deepfake export`"):
        Manifest.read(tmp_path)


def test_a_manifest_without_the_precision_is_damaged(version_dir: Path) -> None:
    path = version_dir / MANIFEST_NAME
    path.write_text(path.read_text().replace('"precision"', '"accuracy"'))
    with pytest.raises(RepositoryError, match=r"damaged .field 'accuracy' is unknown.*export the model again"):
        Manifest.read(version_dir)


@pytest.mark.parametrize("content", ["", "[]", "{}", '{"format": 99}', '{"format": 1, "spec": {}}', "\x00"])
def test_a_damaged_manifest_is_refused(tmp_path: Path, content: str) -> None:
    (tmp_path / MANIFEST_NAME).write_text(content)
    with pytest.raises(RepositoryError, match="export the model again"):
        Manifest.read(tmp_path)
