"""The embedded server's backend by itself: who is answered with what, and in whose turn it computes.

`test_serve` runs it inside Triton. Here a stand-in for Triton's Python utilities shows what happens when ONNX Runtime
or a single answer fails, which cannot be brought about there.
"""

from __future__ import annotations

import importlib
import json
import os
import sys
import threading
import time
from types import ModuleType, SimpleNamespace

import numpy as np
import pytest
from tiny_model import TINY_SPEC, write_tiny_onnx

MAX_BATCH = 8
SHAPE = (TINY_SPEC.input_height_px, TINY_SPEC.input_width_px, 3)
CROPS = np.random.default_rng(3).integers(0, 256, (MAX_BATCH, *SHAPE), dtype=np.uint8)


class Tensor:
    def __init__(self, name, capsule):
        self.name = name
        holder = SimpleNamespace(__dlpack__=lambda **_: capsule, __dlpack_device__=lambda: (1, 0))
        self.values = np.from_dlpack(holder).copy()

    @classmethod
    def from_dlpack(cls, name, capsule):
        return cls(name, capsule)


class Response:
    def __init__(self, output_tensors=(), error=None):
        self.error = error
        self.values = {tensor.name: tensor.values for tensor in output_tensors}


class Request:
    def __init__(self, faces, *, outputs=("fake_probability", "logit")):
        self.faces, self._outputs = faces, outputs

    def requested_output_names(self):
        return list(self._outputs)


@pytest.fixture
def backend(monkeypatch):
    utils = ModuleType("triton_python_backend_utils")
    utils.Tensor, utils.InferenceResponse, utils.TritonError = Tensor, Response, str
    metric = SimpleNamespace(set=lambda value: None)
    utils.MetricFamily = lambda **described: SimpleNamespace(Metric=lambda labels: metric)
    utils.MetricFamily.GAUGE = "gauge"
    utils.get_input_tensor_by_name = lambda request, name: request.faces
    monkeypatch.setitem(sys.modules, "triton_python_backend_utils", utils)
    monkeypatch.delitem(sys.modules, "deepfake_serve._backend", raising=False)
    yield importlib.import_module("deepfake_serve._backend")
    del sys.modules["deepfake_serve._backend"]


@pytest.fixture
def made(backend, tmp_path):
    """Make an instance of the model, by its number; two of them compute at a time."""
    (tmp_path / "1").mkdir()
    write_tiny_onnx(tmp_path / "1" / "model.onnx")
    (tmp_path / "config.pbtxt").touch()
    os.mkfifo(tmp_path / "turns")
    parameters = {
        "intra_op_thread_count": "1",
        "engine": "onnxruntime",
        "served_precision": "fp32",
        "turns_pipe": str(tmp_path / "turns"),
        "computing_instances": "2",
    }
    config = {
        "name": "tiny",
        "dynamic_batching": {"preferred_batch_size": [MAX_BATCH]},
        "parameters": {key: {"string_value": value} for key, value in parameters.items()},
        "input": [{"name": "faces", "dims": [str(size) for size in SHAPE]}],
        "output": [{"name": "fake_probability"}, {"name": "logit"}],
        "default_model_filename": "model.onnx",
        "max_batch_size": 4 * MAX_BATCH,
    }
    instances = []

    def make(number):
        instance = backend.TritonPythonModel()
        instance.initialize(
            {
                "model_config": json.dumps(config),
                "model_repository": str(tmp_path),
                "model_version": "1",
                "model_instance_name": f"tiny_0_{number}",
            }
        )
        instances.append(instance)
        return instance

    yield make
    for instance in instances:
        instance.finalize()


@pytest.fixture
def model(made):
    return made(0)


def requests_of(*sizes, **options):
    parts = np.split(CROPS[: sum(sizes)], np.cumsum(sizes)[:-1])
    return [Request(part, **options) for part in parts]


def expected(model):
    return dict(zip(("fake_probability", "logit"), model._infer(model._network, CROPS), strict=True))


@pytest.mark.parametrize("sizes", [(1,) * 8, (2, 1, 5), (8,), (1, 2), (1,)])
def test_each_request_is_answered_with_its_part_of_the_batch(model, sizes) -> None:
    wanted = expected(model)
    for _ in range(3):
        responses = model.execute(requests_of(*sizes))
        assert [len(response.values["logit"]) for response in responses] == list(sizes)
        for name, values in wanted.items():
            given = np.concatenate([response.values[name] for response in responses])
            np.testing.assert_allclose(given, values[: sum(sizes)], rtol=1e-6)
    (response, *_) = model.execute(requests_of(*sizes, outputs=("logit",)))
    assert list(response.values) == ["logit"]


def test_an_instance_gathers_before_its_turn_and_computes_in_it(made) -> None:
    instances = [made(number) for number in range(3)]
    go_on, computing, answered = threading.Event(), threading.Semaphore(0), []

    def slowly(network):
        def run(faces):
            computing.release()
            assert go_on.wait(30)
            return network(faces)

        return run

    def execute(instance):
        answered.append(instance.execute(requests_of(*(1,) * 8)))

    threads = []
    for instance in instances:
        instance._network = instance._lone_network = slowly(instance._network)
        threads.append(threading.Thread(target=execute, args=(instance,)))
        threads[-1].start()
    assert computing.acquire(timeout=30)
    assert computing.acquire(timeout=30)
    deadline = time.monotonic() + 30
    while not all((instance._buffer == CROPS).all() for instance in instances):
        assert time.monotonic() < deadline
        time.sleep(0.01)
    assert not computing.acquire(blocking=False), "the third one has its batch and waits"
    go_on.set()
    for thread in threads:
        thread.join()
    assert [len(responses) for responses in answered] == [8, 8, 8]


def test_a_failure_is_everyones_answer_and_the_next_batch_runs(model) -> None:
    network, calls = model._network, []

    def fail_once(faces):
        calls.append(1)
        if len(calls) == 2:
            raise RuntimeError("no memory")
        return network(faces)

    model._network = model._lone_network = fail_once
    failed, good = (model.execute(requests_of(*(1,) * 8)) for _ in range(2))
    assert [response.error for response in failed] == ["the crops could not be scored: no memory"] * 8
    assert [response.error for response in good] == [None] * 8


def test_answers_that_cannot_be_made_are_errors(model, monkeypatch) -> None:
    def fail(*_):
        raise MemoryError("full")

    monkeypatch.setattr(model, "_responses", fail)
    responses = model.execute(requests_of(*(1,) * 8))
    assert [response.error for response in responses] == ["the crops could not be scored: full"] * 8


def test_a_wrong_request_in_a_full_batch_gets_an_error_of_its_own(model) -> None:
    wrong = Request(CROPS[:1, :-1])
    responses = model.execute([*requests_of(*(1,) * 8), wrong])
    assert [response.error is None for response in responses] == [True] * 8 + [False]
