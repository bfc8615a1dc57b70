"""An engine in a process of its own: the same answers, and a failure is an error with a reason."""

from __future__ import annotations

import os
import signal
import time
from contextlib import closing

import pytest

from deepfake_export.proof.crops import generate_crops
from deepfake_export.proof.running import EngineProcess, LocalEngine
from deepfake_preprocess.errors import ExportError

CROPS = generate_crops(2, (16, 16))


@pytest.fixture
def engine(tmp_path):
    path = tmp_path / "model.onnx"
    path.write_bytes(b"no network")
    with closing(EngineProcess(path, engine="onnxruntime", precision="fp32")) as process:
        yield process


def test_a_file_that_cannot_be_loaded_is_said_and_does_not_end_the_process(engine):
    for _ in range(2):
        with pytest.raises(ExportError, match=r"ONNX Runtime cannot load model\.onnx"):
            engine.run(CROPS)


def test_a_batch_that_the_graph_cannot_take_is_said(tmp_path, monkeypatch):
    def refuse(faces):
        raise RuntimeError("axis 1 is not in valid range\nmore")

    monkeypatch.setattr("deepfake_export.proof.running.open_network", lambda *_, **__: refuse)
    with pytest.raises(ExportError, match=r"does not run on 2 crop\(s\) \(axis 1 is not in valid range\)"):
        LocalEngine(tmp_path / "model.onnx").run(CROPS)


def test_a_process_that_ends_is_an_error_with_its_signal(engine):
    os.kill(engine.pid, signal.SIGABRT)
    with pytest.raises(ExportError, match=r"ONNX Runtime ended its process .* \(signal SIGABRT\)"):
        engine.seconds(CROPS, 1)


def test_one_that_does_not_answer_is_ended(engine, monkeypatch):
    monkeypatch.setattr("deepfake_export.proof.running.HUNG_S", 0.0)
    with pytest.raises(ExportError, match="did not answer"):
        engine.run(CROPS)
    with pytest.raises(ExportError, match="SIGKILL"):
        engine.run(CROPS)


def test_the_time_that_others_took_the_core_is_not_counted(tmp_path, monkeypatch):
    monkeypatch.setattr("deepfake_export.proof.running.open_network", lambda *_, **__: lambda _: time.sleep(0.05))
    assert LocalEngine(tmp_path / "model.onnx").seconds(CROPS, 2) < 0.05
