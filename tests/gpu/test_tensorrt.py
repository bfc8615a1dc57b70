"""Plans on a real GPU: built, loaded, run, and compared with ONNX Runtime."""

from __future__ import annotations

import dataclasses

import numpy as np
import onnxruntime
import pytest

from deepfake_export.proof.crops import generate_crops
from deepfake_export.proof.tolerances import PLAN_PROBABILITY_ABS
from deepfake_export.tensorrt.engine import LoadedPlan, build_engine
from deepfake_export.tensorrt.gpu import find_gpu
from deepfake_export.tensorrt.library import load_tensorrt
from deepfake_export.tensorrt.options import EngineOptions
from deepfake_export.tensorrt.plans import build_engines
from deepfake_preprocess.contract.manifest import Manifest
from deepfake_preprocess.contract.model_dir import versions_of
from deepfake_preprocess.contract.plan_info import check_plan
from deepfake_preprocess.contract.triton_config import read_config
from deepfake_preprocess.errors import EngineError, RepositoryError

pytestmark = pytest.mark.needs("tensorrt")


@pytest.fixture(scope="module")
def exported(tmp_path_factory):
    """The demo network, exported as people export it."""
    from safetensors.torch import save_file

    from deepfake_export import ExportRequest, export_checkpoint
    from deepfake_export.demo.untrained import UNTRAINED_SPEC, build_untrained_network

    folder = tmp_path_factory.mktemp("demo")
    checkpoint = folder / "demo.safetensors"
    save_file(build_untrained_network(UNTRAINED_SPEC).state_dict(), checkpoint)
    return export_checkpoint(ExportRequest(checkpoint, folder / "models", spec=UNTRAINED_SPEC, max_batch_size=16))


def test_a_plan_gives_what_onnx_runtime_gives(exported, tmp_path):
    onnx_path, plan, cache = exported.version_dir / "model.onnx", tmp_path / "model.plan", tmp_path / "timing.cache"
    engine = build_engine(onnx_path, plan, max_batch_size=16, options=EngineOptions(timing_cache=cache))
    gpu = find_gpu()
    assert gpu is not None
    assert (engine.builder, engine.compute_capability) == ("tensorrt", gpu.compute_capability)
    assert engine.cuda_version
    assert cache.stat().st_size > 0
    run = LoadedPlan(plan).score
    session = onnxruntime.InferenceSession(onnx_path, providers=["CPUExecutionProvider"])
    for batch_size in (1, 3, 8, 16):
        crops = generate_crops(batch_size, exported.manifest.spec.input_size_wh)
        expected_probability, expected_logit = session.run(["fake_probability", "logit"], {"faces": crops})
        probability, logit = run(crops)
        assert probability.shape == logit.shape == (batch_size, 1)
        np.testing.assert_allclose(probability, expected_probability, atol=PLAN_PROBABILITY_ABS["fp32"])
        np.testing.assert_allclose(logit, expected_logit, atol=1e-2)
    with pytest.raises(EngineError, match="does not take batches of 17"):
        run(generate_crops(17, exported.manifest.spec.input_size_wh))
    # A second build reads the cache; a damaged one is replaced.
    cache.write_bytes(b"damaged")
    build_engine(onnx_path, plan, max_batch_size=16, options=EngineOptions(timing_cache=cache))
    assert cache.stat().st_size > 7


def test_a_version_compatible_plan_says_so(exported, tmp_path):
    plan = tmp_path / "model.plan"
    options = EngineOptions(version_compatible=True)
    engine = build_engine(exported.version_dir / "model.onnx", plan, max_batch_size=2, options=options)
    assert engine.version_compatible


def test_engines_are_put_into_a_repository_and_kept_while_they_fit(exported):
    (first,) = build_engines(exported.repository)
    assert first.created
    manifest = Manifest.read(exported.version_dir)
    manifest.verify(exported.version_dir)
    version, capability = load_tensorrt().version, first.engine.compute_capability
    check_plan(manifest, tensorrt_version=version, compute_capability=capability)
    with pytest.raises(RepositoryError, match="build it again"):
        check_plan(manifest, tensorrt_version="1.0.0", compute_capability=capability)
    config = read_config(exported.model_dir / "config.pbtxt")
    assert (config.backend, config.default_model_filename) == ("tensorrt", "model.plan")
    (again,) = build_engines(exported.repository)
    assert not again.created
    # A plan of another GPU, or one that a crash left without its manifest, is built again.
    engine = dataclasses.replace(first.engine, compute_capability="1.0")
    dataclasses.replace(manifest, engine=engine).write(exported.version_dir)
    assert build_engines(exported.repository)[0].created
    (exported.version_dir / "model.plan").write_bytes(b"half a plan")
    (healed,) = build_engines(exported.repository, options=EngineOptions(typical_batch_size=4))
    assert healed.created
    Manifest.read(exported.version_dir).verify(exported.version_dir)
    assert versions_of(exported.model_dir) == [1]


def test_a_file_that_is_no_plan_is_refused(tmp_path):
    (tmp_path / "model.plan").write_bytes(b"this is no plan")
    with pytest.raises(EngineError, match=r"cannot load .*model\.plan"):
        LoadedPlan(tmp_path / "model.plan")
