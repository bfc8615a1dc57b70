"""The model repository is changed whole or not at all, by one export of a model at a time."""

from __future__ import annotations

import dataclasses
import errno
import os
from pathlib import Path

import pytest

from deepfake_export.repository.configs import refresh_configs
from deepfake_export.repository.locks import locked
from deepfake_export.repository.staging import find_identical, leftovers, publish, staged
from deepfake_preprocess.contract.manifest import Manifest, file_hashes
from deepfake_preprocess.contract.model_dir import versions_of
from deepfake_preprocess.contract.repository import served_in
from deepfake_preprocess.contract.spec import ModelSpec
from deepfake_preprocess.contract.triton_config import read_config
from deepfake_preprocess.contract.version_files import MODEL_FILE
from deepfake_preprocess.errors import RepositoryError

SPEC = ModelSpec(name="tiny", architecture="timm:none", checkpoint_sha256="a" * 64)


def add_version(root: Path, spec: ModelSpec = SPEC, *, content: bytes = b"onnx", max_batch_size: int = 4) -> int:
    with locked(root, spec.name), staged(root, spec.name) as version_dir:
        spec = dataclasses.replace(spec, version=int(version_dir.name))
        (version_dir / MODEL_FILE).write_bytes(content)
        manifest = Manifest(spec, file_hashes(version_dir), "fp32")
        manifest.write(version_dir)
        publish(root, manifest, max_batch_size=max_batch_size)
    return spec.version


def listing(root: Path) -> set[str]:
    return {path.relative_to(root).as_posix() for path in root.rglob("*") if path.is_file()}


def test_the_first_version_brings_the_configurations(tmp_path):
    root = tmp_path / "new" / "repository"
    assert add_version(root) == 1
    assert listing(root) == {
        "tiny.lock",
        "tiny/config.pbtxt",
        "tiny/configs/cpu.pbtxt",
        "tiny/configs/embedded.pbtxt",
        "tiny/1/model.onnx",
        "tiny/1/manifest.json",
    }
    config = read_config(root / "tiny/config.pbtxt")
    assert (config.name, config.max_batch_size) == ("tiny", 4)
    Manifest.read(root / "tiny/1").verify(root / "tiny/1")
    # Triton runs as another user: what we make must be as open as what the user makes.
    (tmp_path / "ordinary").mkdir()
    assert (root / "tiny/1").stat().st_mode == (tmp_path / "ordinary").stat().st_mode


def test_the_next_free_version_is_taken_and_others_stay(tmp_path):
    for name in ("1", "7", "notes", "007"):
        (tmp_path / "tiny" / name).mkdir(parents=True)
    (tmp_path / "tiny/1/model.onnx").write_bytes(b"old")
    assert versions_of(tmp_path / "tiny") == [1, 7]
    assert add_version(tmp_path) == 8
    assert (tmp_path / "tiny/1/model.onnx").read_bytes() == b"old"
    parameters = read_config(tmp_path / "tiny/config.pbtxt").parameters
    assert parameters["deepfake.version"].string_value == "8"


@pytest.mark.parametrize("existing", [False, True])
@pytest.mark.parametrize("crash", [RuntimeError, KeyboardInterrupt])
def test_a_crash_in_the_middle_leaves_nothing(tmp_path, existing, crash):
    if existing:
        add_version(tmp_path)
    before = listing(tmp_path) | {"tiny.lock"}

    def half_an_export() -> None:
        with locked(tmp_path, "tiny"), staged(tmp_path, "tiny") as version_dir:
            (version_dir / MODEL_FILE).write_bytes(b"half")
            raise crash

    with pytest.raises(crash):
        half_an_export()
    assert listing(tmp_path) == before
    assert (tmp_path / "tiny").exists() == existing
    assert add_version(tmp_path) == 1 + existing


def test_what_a_killed_process_left_is_cleared_away(tmp_path):
    root = tmp_path / "models"
    add_version(root)
    places = (".tiny.partial", "../.models.tiny.partial", "tiny/.partial", "tiny/.removed")
    for place in places:
        (root / place / "3").mkdir(parents=True)
        (root / place / "3/model.onnx").write_bytes(b"half")
    (root / "tiny/.config.pbtxt.partial").write_text("name: ")
    (root / "tiny/configs/.embedded.pbtxt.partial").write_text("name: ")
    assert len(leftovers(root, "tiny")) == 6
    assert add_version(root) == 2
    assert leftovers(root, "tiny") == []
    assert versions_of(root / "tiny") == [1, 2]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["models"]


def folders(root: Path) -> list[str]:
    return sorted(path.name for path in root.iterdir() if path.is_dir())


def test_while_a_version_is_made_triton_sees_no_folder_that_is_no_model(tmp_path):
    """It takes every folder for a model, hidden ones too, and does not start beside one without configuration."""
    root = tmp_path / "models"
    for expected in ([], ["tiny"]):
        with locked(root, "tiny"), staged(root, "tiny"):
            assert folders(root) == expected
        add_version(root)


def test_a_new_model_is_made_in_the_repository_where_there_is_no_place_beside_it(tmp_path, monkeypatch):
    root = tmp_path / "models"
    monkeypatch.setattr(os, "access", lambda path, mode: False)
    with locked(root, "tiny"), staged(root, "tiny"):
        assert folders(root) == [".tiny.partial"]
    assert add_version(root) == 1
    assert folders(root) == ["tiny"]


def test_a_repository_that_is_another_mount_gets_a_new_model_in_one_step_all_the_same(tmp_path, monkeypatch):
    root = tmp_path / "models"
    rename = Path.rename

    def refuse_from_outside(source: Path, target: Path) -> Path:
        if source.parent == tmp_path:
            raise OSError(errno.EXDEV, "Invalid cross-device link", str(source))
        return rename(source, target)

    monkeypatch.setattr(Path, "rename", refuse_from_outside)
    assert add_version(root) == 1
    Manifest.read(root / "tiny/1").verify(root / "tiny/1")
    assert folders(root) == ["tiny"]
    assert folders(tmp_path) == ["models"]


def test_two_exports_of_a_model_at_once_are_refused_and_of_two_models_are_not(tmp_path):
    with locked(tmp_path, "tiny"):
        with pytest.raises(RepositoryError, match="another export of 'tiny'"), locked(tmp_path, "tiny"):
            pytest.fail("locked twice")
        with locked(tmp_path, "other"):
            pass
    with locked(tmp_path, "tiny"):
        pass


@pytest.mark.parametrize(
    ("code", "message"),
    [(errno.ENOSPC, "no space is left"), (errno.EDQUOT, "no space is left"), (errno.EACCES, "cannot be written")],
)
def test_a_full_disk_and_missing_rights_are_said_plainly(tmp_path, code, message):
    with (
        pytest.raises(RepositoryError, match=message),
        locked(tmp_path, "tiny"),
        staged(tmp_path, "tiny"),
    ):
        raise OSError(code, "refused", "model.onnx")
    assert listing(tmp_path) == {"tiny.lock"}


def test_a_file_in_the_repositorys_place(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(RepositoryError, match="cannot be written"), locked(tmp_path / "file", "tiny"):
        pytest.fail("locked a file")


def test_a_version_that_cannot_be_put_into_service_is_taken_out_again(tmp_path, monkeypatch):
    add_version(tmp_path)
    before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    replace = Path.replace

    def refuse(source: Path, target: Path) -> Path:
        raise OSError(errno.ENOSPC, "No space left on device", str(source))

    monkeypatch.setattr(Path, "replace", refuse)
    with pytest.raises(RepositoryError, match="no space is left"):
        add_version(tmp_path)
    assert {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()} == before
    assert versions_of(tmp_path / "tiny") == [1]
    monkeypatch.setattr(Path, "replace", replace)
    assert add_version(tmp_path) == 2


def test_production_runs_the_plan_where_a_version_has_one(tmp_path):
    add_version(tmp_path)
    with locked(tmp_path, "tiny"), staged(tmp_path, "tiny") as version_dir:
        (version_dir / "model.plan").write_bytes(b"plan")
        publish(tmp_path, Manifest(dataclasses.replace(SPEC, version=2), {}, "fp32"), max_batch_size=4)
    assert read_config(tmp_path / "tiny/config.pbtxt").backend == "tensorrt"
    refresh_configs(tmp_path / "tiny", Manifest.read(tmp_path / "tiny/1"), max_batch_size=4)
    assert read_config(tmp_path / "tiny/config.pbtxt").backend == "onnxruntime"


def test_only_an_intact_version_of_the_same_checkpoint_and_spec_is_identical(tmp_path):
    assert find_identical(tmp_path, SPEC) is None
    add_version(tmp_path)
    found = find_identical(tmp_path, SPEC)
    assert found is not None
    assert found.spec.version == 1
    assert find_identical(tmp_path, dataclasses.replace(SPEC, threshold=0.6)) is None
    assert find_identical(tmp_path, dataclasses.replace(SPEC, checkpoint_sha256="b" * 64)) is None
    (tmp_path / "tiny/1/model.onnx").write_bytes(b"tampered")
    assert find_identical(tmp_path, SPEC) is None


def test_only_the_served_and_the_newest_version_count(tmp_path):
    newest = dataclasses.replace(SPEC, threshold=0.6)
    add_version(tmp_path)
    add_version(tmp_path, newest)
    # Version 1 has this spec, but it is not the one that is served.
    assert find_identical(tmp_path, SPEC) is None
    refresh_configs(tmp_path / "tiny", Manifest.read(tmp_path / "tiny/1"), max_batch_size=4)
    assert served_in(tmp_path / "tiny") == 1
    for spec, version in ((SPEC, 1), (newest, 2)):
        found = find_identical(tmp_path, spec)
        assert found is not None
        assert found.spec.version == version
