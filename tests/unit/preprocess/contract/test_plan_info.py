"""Whether a plan may be loaded here, and what its manifest says of it."""

from __future__ import annotations

import dataclasses
import json

import pytest
from engines import ENGINE

from deepfake_preprocess.contract.manifest import EngineInfo, Manifest
from deepfake_preprocess.contract.plan_info import check_plan
from deepfake_preprocess.contract.spec import ModelSpec
from deepfake_preprocess.contract.version_files import PLAN_FILE
from deepfake_preprocess.errors import RepositoryError

SPEC = ModelSpec(name="tiny", architecture="timm:test_efficientnet", training_data="none")


def manifest(engine: EngineInfo | None = ENGINE, **changes) -> Manifest:
    engine = dataclasses.replace(engine, **changes) if engine else None
    return Manifest(SPEC, {PLAN_FILE: "0" * 64}, "fp32", engine=engine)


@pytest.mark.parametrize("version", ["11.4.0.106", "11.4.0", "11.4.0.99"])
def test_the_version_that_wrote_the_plan_loads_it(version):
    check_plan(manifest(), tensorrt_version=version, compute_capability="8.9")


@pytest.mark.parametrize("version", ["11.4.1", "11.5.0", "10.12.0"])
def test_another_version_is_refused_with_what_to_rebuild(version):
    with pytest.raises(
        RepositoryError, match=rf"model\.plan of 'tiny' version 1 .* 11\.4\.0\.106, but {version} runs"
    ):
        check_plan(manifest(), tensorrt_version=version, compute_capability="8.9")
    with pytest.raises(RepositoryError, match=r"deepfake build-engines.*docker compose run engines"):
        check_plan(manifest(), tensorrt_version=version, compute_capability="8.9")


def test_another_gpu_is_refused():
    with pytest.raises(RepositoryError, match=r"compute capability 8\.9, but this one has 9\.0"):
        check_plan(manifest(), tensorrt_version="11.4.0", compute_capability="9.0")


def test_a_version_compatible_plan_loads_in_later_minor_versions_only():
    compatible = manifest(version_compatible=True)
    for version in ("11.4.0", "11.9.2"):
        check_plan(compatible, tensorrt_version=version, compute_capability="8.9")
    for version in ("12.0.0", "11.3.0"):
        with pytest.raises(RepositoryError, match=r"later versions of 11\.x"):
            check_plan(compatible, tensorrt_version=version, compute_capability="8.9")


def test_a_plan_of_which_nothing_is_known_is_refused():
    for unknown in (manifest(None), manifest(plan="")):
        with pytest.raises(RepositoryError, match="no entry in its manifest"):
            check_plan(unknown, tensorrt_version="11.4.0", compute_capability="8.9")
    with pytest.raises(RepositoryError, match="'new' is not a TensorRT version"):
        check_plan(manifest(), tensorrt_version="new", compute_capability="8.9")


def test_a_version_without_a_plan_has_nothing_to_refuse():
    check_plan(Manifest(SPEC, {"model.onnx": "0" * 64}, "fp32"), tensorrt_version="1.0", compute_capability="1.0")


def test_the_manifest_keeps_the_engine(tmp_path):
    written = manifest()
    written.write(tmp_path)
    assert Manifest.read(tmp_path).engine == ENGINE
    Manifest(SPEC, {}, "fp32").write(tmp_path)
    assert Manifest.read(tmp_path).engine is None


def test_a_damaged_entry_is_named(tmp_path):
    path = manifest().write(tmp_path)
    data = json.loads(path.read_text())
    del data["engine"]["builder"]
    path.write_text(json.dumps(data))
    with pytest.raises(RepositoryError, match=r"damaged \(field 'engine.builder' is missing.*export the model"):
        Manifest.read(tmp_path)
