"""The embedded server's backend: an engine on the CPU, inside a process that Triton starts.

Triton loads this file as a "Python-based backend", so it exists once here and a model version in the
repository holds only its data. It runs in Triton's own Python stub, not in the caller's interpreter: it may
import numpy, the engine and, of this project, what needs no more than that.

All requests of a batch are answered together; a request that cannot run gets an error of its own. Where the batch is
full, Triton gets the next one ready while the last crops of this one are computed, and then while its answers go out.

Tensors pass by DLPack, without a copy. `Tensor.as_numpy()` and `Tensor(name, array)` must not be used here: the
stub was compiled against numpy 1 and reads the item size from where numpy 2 keeps something else, and outputs
arrive empty (seen with numpy 2.4 and Triton 2.51).
"""

from __future__ import annotations

import ctypes
import json
import os
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import triton_python_backend_utils as pb_utils

from deepfake_preprocess.support.engines import CROPS_PER_THREAD, Network, open_network
from deepfake_serve._cores import MIN_AHEAD_S, running_alone
from deepfake_serve._plan import RESTARTS_VARIABLE
from deepfake_serve._pulse import Pulse

Array = npt.NDArray[Any]

HUNG_S, HUNG_SHARE = 20.0, 30
"""A computation is taken for hung when it exceeds both: this many seconds, and this many times what the largest batch
should take, judging by its first crops."""

SLOW_S = 2.0
"""Where a full batch takes longer, warming up with one part is skipped: the first user hardly notices its
allocations."""

_set_destructor = ctypes.pythonapi.PyCapsule_SetDestructor
_set_destructor.argtypes = [ctypes.py_object, ctypes.c_void_p]
_keep = ctypes.pythonapi.Py_IncRef
_keep.argtypes = [ctypes.py_object]
_keep.restype = None


class TritonPythonModel:
    """One instance of one model; Triton runs each in a process of its own."""

    def initialize(self, args: dict[str, str]) -> None:
        """Load the model file that the configuration names, with the number of threads it asks for."""
        config = json.loads(args["model_config"])
        parameters = {key: value["string_value"] for key, value in config["parameters"].items()}
        (face_input,) = config["input"]
        self._input_name: str = face_input["name"]
        self._crop_shape = tuple(int(dim) for dim in face_input["dims"])
        self._output_names = [output["name"] for output in config["output"]]

        directory = Path(args["model_repository"])
        self._open_networks(directory / args["model_version"] / config["default_model_filename"], parameters)
        # Of the server's own, local folder: the weights may be where files cannot be locked.
        self._lock = (directory / "config.pbtxt").open("rb")

        self._pulse = Pulse()
        # Requests of one caller may hold more; Triton joins those of several up to this size.
        preferred = config.get("dynamic_batching", {}).get("preferred_batch_size", ())
        self._full = max(map(int, preferred), default=int(config["max_batch_size"]))
        self._buffer, self._other_buffer = (
            np.zeros((self._full, *self._crop_shape), dtype=np.uint8) for _ in range(2)
        )
        full_s = self._warm_up()
        self._runs_ahead = full_s >= MIN_AHEAD_S

        self._computing, self._answering = ThreadPoolExecutor(1), ThreadPoolExecutor(1)
        self._under_way: Future[list[Array]] | None = None
        largest_s = full_s * int(config["max_batch_size"]) / self._full
        _show_restarts()
        self._pulse.publish(config["name"], max(HUNG_S, HUNG_SHARE * largest_s))

    def _open_networks(self, path: Path, parameters: Mapping[str, str]) -> None:
        """Open the model file for batches, and once more for requests that come while nobody else wants the cores."""
        self._threads = int(parameters["intra_op_thread_count"])
        self._lone_threads = int(parameters.get("lone_intra_op_thread_count", self._threads))

        def network(threads: int, sizes: set[int], *, spinning: bool) -> Network:
            return open_network(
                path,
                self._output_names,
                engine=parameters["engine"],
                precision=parameters["served_precision"],
                threads=threads,
                spinning=spinning,
                sizes=sizes,
            )

        # Waiting threads that spin would take the cores from the other instances. The lone network runs only while
        # nobody else wants them, and mostly for a request of one crop.
        self._network = self._lone_network = network(
            self._threads, {1, CROPS_PER_THREAD * self._threads}, spinning=False
        )
        if self._lone_threads > self._threads:
            self._lone_network = network(self._lone_threads, {1}, spinning=True)

    def _warm_up(self) -> float:
        """Make the first allocations before the server is ready, and return the seconds of a full batch.

        A full batch is computed in parts of one size, and is never tried as a whole: of a large network that takes
        many seconds.
        """
        full_s = self._seconds_of(self._buffer[:1]) * self._full
        if self._lone_network is not self._network:
            self._infer(self._lone_network, self._buffer[:1])
        if full_s < SLOW_S:
            part = self._buffer[: self._rows(self._network)]
            self._infer(self._network, part)
            full_s = self._seconds_of(part) * self._full / len(part)
        return full_s

    def finalize(self) -> None:
        """Answer what was accepted."""
        self._pulse.end()
        self._computing.shutdown()
        self._answering.shutdown()
        self._lock.close()

    def execute(self, requests: Sequence[Any]) -> list[Any] | None:
        """Answer every request, in order; None where the answers follow."""
        responses: list[Any] = [None] * len(requests)
        accepted: list[tuple[int, Array]] = []
        for index, request in enumerate(requests):
            faces = np.from_dlpack(pb_utils.get_input_tensor_by_name(request, self._input_name))
            if faces.dtype == np.uint8 and faces.shape[1:] == self._crop_shape and len(faces):
                accepted.append((index, faces))
            else:
                responses[index] = _refusal(
                    f"'{self._input_name}' is {faces.dtype} {list(faces.shape)}; "
                    f"expected uint8 {['N', *self._crop_shape]} with N of at least 1"
                )
        if not accepted:
            return responses
        batch = self._gather([faces for _, faces in accepted])
        sizes = [len(faces) for _, faces in accepted]
        # A full batch of several requests: they had to wait, so this instance is not the only one that is busy, and
        # others have probably come since.
        is_queued = 1 < len(accepted) == len(requests) and len(batch) >= self._full
        if self._runs_ahead and is_queued and len(batch) > self._rows(self._network):
            last_part = threading.Event()
            self._under_way = self._computing.submit(self._run_ahead, batch, last_part)
            self._answering.submit(self._send, requests, sizes, self._under_way)
            last_part.wait()
            return None
        if self._under_way is not None:
            wait([self._under_way])
        answers = self._answers(
            [requests[index] for index, _ in accepted], sizes, lambda: self._run(batch, is_queued=is_queued)
        )
        for (index, _), answer in zip(accepted, answers, strict=True):
            responses[index] = answer
        return responses

    def _run_ahead(self, batch: Array, last_part: threading.Event) -> list[Array]:
        """Compute a full batch, in the thread for it; the event says that only its last part is left."""
        try:
            with running_alone(self._lock, cores_wanted=None):
                return self._infer(self._network, batch, before_last=last_part.set)
        finally:
            last_part.set()

    def _send(self, requests: Sequence[Any], sizes: list[int], outputs: Future[list[Array]]) -> None:
        """Answer a batch once it is computed, in the thread for that."""
        for request, answer in zip(requests, self._answers(requests, sizes, outputs.result), strict=True):
            try:
                request.get_response_sender().send(answer, flags=pb_utils.TRITONSERVER_RESPONSE_COMPLETE_FINAL)
            except Exception as exc:  # the others must get theirs
                pb_utils.Logger.log_error(f"an answer could not be sent: {exc}")

    def _answers(self, requests: Sequence[Any], sizes: list[int], outputs: Callable[[], list[Array]]) -> list[Any]:
        """Return the answer to each request of a batch: its part of the outputs, or why there are none."""
        try:
            return self._responses(requests, sizes, outputs())
        except Exception as exc:  # whatever it is, the callers must hear of it
            return [_refusal(f"the crops could not be scored: {exc}") for _ in requests]

    def _responses(self, requests: Sequence[Any], sizes: list[int], outputs: list[Array]) -> list[Any]:
        """Cut the outputs of a batch into an answer for each request, with the outputs that it asked for."""
        answers, start = [], 0
        for request, size in zip(requests, sizes, strict=True):
            wanted = request.requested_output_names()
            tensors = [
                _tensor(name, values[start : start + size])
                for name, values in zip(self._output_names, outputs, strict=True)
                if name in wanted
            ]
            answers.append(pb_utils.InferenceResponse(tensors))
            start += size
        return answers

    def _gather(self, parts: list[Array]) -> Array:
        """Return all crops as one array; a single request is used in place, in shared memory."""
        if len(parts) == 1:
            return parts[0]
        rows = sum(len(part) for part in parts)
        if rows > self._full:
            return np.concatenate(parts)
        # The batch before may still be in the other one.
        self._buffer, self._other_buffer = self._other_buffer, self._buffer
        return np.concatenate(parts, out=self._buffer[:rows])

    def _seconds_of(self, faces: Array) -> float:
        start = time.perf_counter()
        self._infer(self._network, faces)
        return time.perf_counter() - start

    def _run(self, faces: Array, *, is_queued: bool) -> list[Array]:
        if self._lone_network is self._network:
            return self._infer(self._network, faces)
        # Another instance is about to run what has queued up behind it.
        with running_alone(self._lock, cores_wanted=None if is_queued else self._lone_threads - 1) as alone:
            return self._infer(self._lone_network if alone else self._network, faces)

    def _infer(self, network: Network, faces: Array, *, before_last: Callable[[], None] | None = None) -> list[Array]:
        rows = self._rows(network)
        parts = []
        for start in range(0, len(faces), rows):
            if before_last is not None and start + rows >= len(faces):
                before_last()
            with self._pulse.beating():
                parts.append(network(faces[start : start + rows]))
        return parts[0] if len(parts) == 1 else [np.concatenate(values) for values in zip(*parts, strict=True)]

    def _rows(self, network: Network) -> int:
        """Return how many crops a network computes at once."""
        return CROPS_PER_THREAD * (self._threads if network is self._network else self._lone_threads)


def _show_restarts() -> None:
    """Add how often Triton was started again to its metrics.

    They stay until Triton ends: where this process frees one when its model is unloaded, it crashes (Triton issue
    8662), or the server does when the next process frees the same one (issue 8663).
    """
    family = pb_utils.MetricFamily(
        name="deepfake_server_restarts",
        description="How often this server was started again since the command that serves was",
        kind=pb_utils.MetricFamily.GAUGE,
    )
    metric = family.Metric(labels={})
    # A gauge, as each instance of each model writes the same figure.
    metric.set(float(os.environ.get(RESTARTS_VARIABLE, "0")))
    for kept in (family, metric):
        _keep(kept)


def _tensor(name: str, values: Array) -> Any:
    """Return Triton's tensor of an array, without a copy.

    The memory becomes Triton's, which marks the capsule in a way of its own (2.51). numpy does not know the mark and
    would complain of each tensor, by a traceback in the server's log and a third of a millisecond.
    """
    capsule = values.__dlpack__()
    _set_destructor(capsule, None)
    return pb_utils.Tensor.from_dlpack(name, capsule)


def _refusal(message: str) -> Any:
    return pb_utils.InferenceResponse(output_tensors=[], error=pb_utils.TritonError(message))
