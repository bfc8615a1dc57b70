"""Helpers for the tests of `deepfake repository`: run the command, and change what is in a repository."""

from __future__ import annotations

import dataclasses

import pytest
from engines import ENGINE

from deepfake_client.cli import main as cli
from deepfake_export.repository.configs import refresh_configs
from deepfake_preprocess.contract import triton_config
from deepfake_preprocess.contract.manifest import Manifest, sha256_file
from deepfake_preprocess.contract.version_files import PLAN_FILE
from deepfake_serve._repository import check_repository


def deepfake(capsys, *arguments):
    """Run the command; return exit code, standard output and standard error."""
    with pytest.raises(SystemExit) as stopped:
        cli.main(["repository", *map(str, arguments)])
    out, err = capsys.readouterr()
    assert "Traceback" not in out + err
    return stopped.value.code or 0, out, err


def edit_config(root, name, change):
    path = root / "tiny" / name
    config = triton_config.read_config(path)
    change(config)
    path.write_text(triton_config.config_to_text(config), encoding="utf-8")


def served_threshold(root):
    (model,) = check_repository(root)
    return model.spec.version, model.spec.threshold


def add_plan(root, version, **changes):
    """Put a plan beside the ONNX file, as `deepfake build-engines` leaves it."""
    version_dir = root / "tiny" / str(version)
    (version_dir / PLAN_FILE).write_bytes(b"a plan")
    manifest = Manifest.read(version_dir)
    files = {**manifest.files, PLAN_FILE: sha256_file(version_dir / PLAN_FILE)}
    engine = dataclasses.replace(ENGINE, **changes)
    dataclasses.replace(manifest, files=files, engine=engine if engine.plan else None).write(version_dir)
    refresh_configs(root / "tiny", Manifest.read(root / "tiny/3"), max_batch_size=4)
