"""A finished ONNX file is given another temperature."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from tiny_model import TINY_SPEC, write_tiny_onnx

from deepfake_export.graph.temperature import recalibrated
from deepfake_preprocess.contract.spec import ModelSpec
from deepfake_preprocess.errors import ExportError

CROPS = np.random.default_rng(3).integers(0, 256, (5, 24, 32, 3), dtype=np.uint8)


def outputs_of(path: Path) -> tuple[np.ndarray, np.ndarray]:
    session = ort.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    probability, logit = session.run(["fake_probability", "logit"], {"faces": CROPS})
    return np.asarray(probability), np.asarray(logit)


def test_logits_are_divided_once_however_often_it_is_done(tmp_path: Path) -> None:
    first, second, third = (tmp_path / f"{number}.onnx" for number in range(3))
    write_tiny_onnx(first)
    warm = dataclasses.replace(TINY_SPEC, temperature=2.5, threshold=0.7)
    cold = dataclasses.replace(warm, temperature=0.5, version=3)
    assert recalibrated(first, second, TINY_SPEC, warm) < 1e-5
    assert recalibrated(second, third, warm, cold) < 1e-5
    logit = outputs_of(first)[1]
    for path, spec in ((second, warm), (third, cold)):
        probability, found = outputs_of(path)
        assert found == pytest.approx(logit / spec.temperature, rel=1e-5)
        assert probability == pytest.approx(1 / (1 + np.exp(-found)), abs=1e-6)
        model = onnx.load(path)
        onnx.checker.check_model(model, full_check=True)
        carried = ModelSpec.from_parameters({item.key: item.value for item in model.metadata_props})
        assert carried == spec
        assert [node.op_type for node in model.graph.node].count("Div") == 1


def test_a_threshold_alone_leaves_the_graph_as_it_is(tmp_path: Path) -> None:
    source, target = tmp_path / "a.onnx", tmp_path / "b.onnx"
    write_tiny_onnx(source)
    assert recalibrated(source, target, TINY_SPEC, dataclasses.replace(TINY_SPEC, threshold=0.9)) < 1e-6
    assert onnx.load(source).graph == onnx.load(target).graph


def test_a_probability_that_is_not_of_the_logit_is_refused(tmp_path: Path) -> None:
    source = tmp_path / "a.onnx"
    write_tiny_onnx(source)
    model = onnx.load(source)
    model.graph.node[-1].op_type = "Tanh"
    onnx.save(model, source)
    with pytest.raises(ExportError, match=r"differs by .* from what it should give; write the temperature into"):
        recalibrated(source, tmp_path / "b.onnx", TINY_SPEC, TINY_SPEC)
