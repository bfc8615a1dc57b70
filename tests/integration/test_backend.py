"""The embedded server's backend by itself: full batches are answered after `execute`, each request exactly once.

`test_serve` runs it inside Triton. Here a stand-in for Triton's Python utilities shows what happens when ONNX Runtime
or a single answer fails, which cannot be brought about there.
"""

from __future__ import annotations

import gc
import importlib
import json
import sys
import threading
import weakref
from types import ModuleType, SimpleNamespace
from typing import ClassVar

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


class Sender:
    def __init__(self, *, broken=False):
        self.answers, self._broken = [], broken

    def send(self, answer, flags):
        assert flags == "final"
        if self._broken:
            raise RuntimeError("the caller is gone")
        self.answers.append(answer)


class Request:
    def __init__(self, faces, *, outputs=("fake_probability", "logit"), broken=False):
        self.faces, self._outputs, self._sender = faces, outputs, Sender(broken=broken)

    def requested_output_names(self):
        return list(self._outputs)

    def get_response_sender(self):
        return self._sender

    @property
    def answers(self):
        return self._sender.answers


class Metric:
    def set(self, value):
        pass


class MetricFamily:
    GAUGE = "gauge"
    made: ClassVar[list[weakref.ref]] = []

    def __init__(self, **described):
        self.made.append(weakref.ref(self))

    def Metric(self, labels):  # noqa: N802
        metric = Metric()
        self.made.append(weakref.ref(metric))
        return metric


@pytest.fixture
def logged():
    return []


@pytest.fixture
def backend(monkeypatch, logged):
    utils = ModuleType("triton_python_backend_utils")
    utils.Tensor, utils.InferenceResponse, utils.TritonError = Tensor, Response, str
    utils.TRITONSERVER_RESPONSE_COMPLETE_FINAL = "final"
    utils.MetricFamily = MetricFamily
    utils.Logger = SimpleNamespace(log_error=logged.append)
    utils.get_input_tensor_by_name = lambda request, name: request.faces
    monkeypatch.setitem(sys.modules, "triton_python_backend_utils", utils)
    monkeypatch.delitem(sys.modules, "deepfake_serve._backend", raising=False)
    yield importlib.import_module("deepfake_serve._backend")
    del sys.modules["deepfake_serve._backend"]


@pytest.fixture
def model(backend, tmp_path):
    (tmp_path / "1").mkdir()
    write_tiny_onnx(tmp_path / "1" / "model.onnx")
    (tmp_path / "config.pbtxt").touch()
    config = {
        "name": "tiny",
        "dynamic_batching": {"preferred_batch_size": [MAX_BATCH]},
        "parameters": {
            "intra_op_thread_count": {"string_value": "1"},
            "engine": {"string_value": "onnxruntime"},
            "served_precision": {"string_value": "fp32"},
        },
        "input": [{"name": "faces", "dims": [str(size) for size in SHAPE]}],
        "output": [{"name": "fake_probability"}, {"name": "logit"}],
        "default_model_filename": "model.onnx",
        "max_batch_size": 4 * MAX_BATCH,
    }
    made = backend.TritonPythonModel()
    made.initialize({"model_config": json.dumps(config), "model_repository": str(tmp_path), "model_version": "1"})
    made._runs_ahead = True  # as for a network that takes its time
    return made


def requests_of(*sizes, **options):
    parts = np.split(CROPS[: sum(sizes)], np.cumsum(sizes)[:-1])
    return [Request(part, **options) for part in parts]


def expected(model):
    return dict(zip(("fake_probability", "logit"), model._infer(model._network, CROPS), strict=True))


@pytest.mark.parametrize("sizes", [(1,) * 8, (2, 1, 5)])
def test_a_full_batch_of_several_requests_is_answered_later_in_order(model, sizes) -> None:
    wanted = expected(model)
    batches = [requests_of(*sizes) for _ in range(5)]
    assert [model.execute(batch) for batch in batches] == [None] * 5
    model.finalize()  # waits for the answers
    for batch in batches:
        assert [len(request.answers) for request in batch] == [1] * len(sizes)
        for name, values in wanted.items():
            given = np.concatenate([request.answers[0].values[name] for request in batch])
            np.testing.assert_array_equal(given, values)


@pytest.mark.parametrize("sizes", [(8,), (1, 2), (1,)])
def test_other_batches_are_answered_at_once(model, sizes) -> None:
    wanted = expected(model)
    ahead = requests_of(*(1,) * 8)
    assert model.execute(ahead) is None
    requests = requests_of(*sizes, outputs=("logit",))
    responses = model.execute(requests)
    # The batch before was computed first; an instance computes one at a time.
    assert model._under_way.done()
    given = np.concatenate([response.values["logit"] for response in responses])
    np.testing.assert_allclose(given, wanted["logit"][: sum(sizes)], rtol=1e-6)
    assert all(list(response.values) == ["logit"] for response in responses)
    assert not any(request.answers for request in requests)
    model.finalize()
    assert all(len(request.answers) == 1 for request in ahead)


def test_batches_that_take_no_time_are_answered_at_once(model) -> None:
    model._runs_ahead = False
    requests = requests_of(*(1,) * 8)
    assert len(model.execute(requests)) == 8
    assert not any(request.answers for request in requests)
    model.finalize()


def test_the_next_batch_is_taken_before_the_last_part_is_computed(model, monkeypatch) -> None:
    go_on, parts = threading.Event(), []
    network = model._network

    def run(faces):
        parts.append(len(faces))
        if len(parts) == 4:
            assert go_on.wait(30)
        return network(faces)

    model._network = run
    requests = requests_of(*(1,) * 8)
    assert model.execute(requests) is None  # returns although the fourth part cannot be computed yet
    assert not model._under_way.done()
    go_on.set()
    model.finalize()
    assert parts == [2, 2, 2, 2]
    assert all(len(request.answers) == 1 for request in requests)


def test_a_failure_is_everyones_answer_and_the_next_batch_runs(model) -> None:
    network, calls = model._network, []

    def fail_once(faces):
        calls.append(1)
        if len(calls) == 2:
            raise RuntimeError("no memory")
        return network(faces)

    model._network = fail_once
    failed, good = requests_of(*(1,) * 8), requests_of(*(1,) * 8)
    assert model.execute(failed) is None
    assert model.execute(good) is None
    model.finalize()
    assert [request.answers[0].error for request in failed] == ["the crops could not be scored: no memory"] * 8
    assert [request.answers[0].error for request in good] == [None] * 8


def test_answers_that_cannot_be_made_are_errors(model, monkeypatch) -> None:
    def fail(*_):
        raise MemoryError("full")

    requests = requests_of(*(1,) * 8)
    monkeypatch.setattr(model, "_responses", fail)
    assert model.execute(requests) is None
    model.finalize()
    assert [request.answers[0].error for request in requests] == ["the crops could not be scored: full"] * 8


def test_one_caller_that_is_gone_keeps_nobody_from_an_answer(model, logged) -> None:
    requests = [*requests_of(1, 1, 1, broken=True), *requests_of(*(1,) * 5)]
    assert model.execute(requests) is None
    model.finalize()
    assert [len(request.answers) for request in requests] == [0] * 3 + [1] * 5
    assert logged == ["an answer could not be sent: the caller is gone"] * 3


def test_a_wrong_request_in_a_full_batch_gets_an_error_of_its_own(model) -> None:
    wrong = Request(CROPS[:1, :-1])
    responses = model.execute([*requests_of(*(1,) * 8), wrong])
    assert [response.error is None for response in responses] == [True] * 8 + [False]
    model.finalize()


def test_metrics_are_never_freed_since_triton_crashes_where_they_are(backend) -> None:
    backend._show_restarts()
    gc.collect()
    family, metric = (made() for made in MetricFamily.made[-2:])
    assert isinstance(family, MetricFamily)
    assert isinstance(metric, Metric)
