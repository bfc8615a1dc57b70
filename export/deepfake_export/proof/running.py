"""Runs an artifact in an engine: ONNX Runtime in this process, every other engine in a process of its own.

An engine is a large piece of native code with its own pool of threads beside PyTorch's. What ends its process is one
artifact that fails, never the end of an export. The process imports no PyTorch.
"""

from __future__ import annotations

import multiprocessing
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from functools import partial
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt

from deepfake_preprocess.contract.forms import ENGINE_NAMES
from deepfake_preprocess.contract.spec import LOGIT_NAME, PROBABILITY_NAME
from deepfake_preprocess.contract.triton_config import EMBEDDED_THREADS
from deepfake_preprocess.errors import DeepfakeError, ExportError
from deepfake_preprocess.support.engines import CROPS_PER_THREAD, ONNX_RUNTIME, Network, open_network
from deepfake_preprocess.support.limits import end_with_parent

UInt8Array = npt.NDArray[np.uint8]
Float32Array = npt.NDArray[np.float32]
Outputs = tuple[Float32Array, Float32Array]
"""`fake_probability` and `logit`, each float32 ``[N, 1]``."""
Runner = Callable[[UInt8Array], Outputs]
"""From uint8 ``[N, H, W, 3]`` RGB to the outputs."""

HUNG_S = 600.0
"""An engine that takes longer for one batch, or to load a file, never ends."""


def batches_of(crops: UInt8Array, batch_size: int) -> Sequence[UInt8Array]:
    """Split crops into batches of `batch_size`; the last one may be smaller."""
    return [crops[start : start + batch_size] for start in range(0, len(crops), batch_size)]


class LocalEngine:
    """An ONNX file in an engine of this process; loaded on first use, for one of both uses at a time.

    Both raise an `ExportError` where the engine cannot load or run the file.
    """

    def __init__(self, path: Path, *, engine: str = ONNX_RUNTIME, precision: str = "fp32") -> None:
        outputs = [PROBABILITY_NAME, LOGIT_NAME]
        self._open = partial(open_network, path, outputs, engine=engine, precision=precision)
        self._network: Network | None = None
        self._served: Network | None = None

    def run(self, faces: UInt8Array) -> Outputs:
        """Return the outputs of a batch, computed on all cores."""
        if self._network is None:
            self._served, self._network = None, self._open()
        try:
            probability, logit = self._network(faces)
        except Exception as exc:  # whatever the engine's native code raises
            raise ExportError(
                f"the graph does not run on {len(faces)} crop(s) ({str(exc).splitlines()[0][:200]}); what the "
                "network's forward() does may depend on the size of the batch, as squeeze() without a dimension"
            ) from exc
        return probability, logit

    def seconds(self, faces: UInt8Array, repeats: int) -> float:
        """Return the seconds that a batch takes as it is served: by one thread, in parts; the mean of so many.

        Seconds of CPU time: where other programs took the core meanwhile, one ratio of time by the clock was 5.96
        instead of 1.6.
        """
        if self._served is None:
            # With all cores, other programs disturb each round.
            self._network, self._served = None, self._open(threads=EMBEDDED_THREADS, sizes={1, CROPS_PER_THREAD})
        start = time.process_time()
        for _ in range(repeats):
            for part in batches_of(faces, CROPS_PER_THREAD):
                self._served(part)
        return (time.process_time() - start) / repeats

    def close(self) -> None:
        """Free what is loaded."""
        self._network = self._served = None


class EngineProcess:
    """An ONNX file in an engine in a process of its own, used as `LocalEngine`.

    Both uses raise an `ExportError` where the engine cannot load or run the file, has ended its process, or does not
    answer; it cannot be used any further then.
    """

    def __init__(self, path: Path, *, engine: str, precision: str) -> None:
        self._name = ENGINE_NAMES[engine]
        self._pipe, far_end = multiprocessing.Pipe()
        with far_end:
            self._process = subprocess.Popen(
                [sys.executable, "-m", __name__, str(far_end.fileno()), str(path), engine, precision],
                pass_fds=[far_end.fileno()],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,  # that of a command is its result
                start_new_session=True,  # Ctrl-C is for this process, which ends that one
            )

    @property
    def pid(self) -> int:
        """Of the process."""
        return self._process.pid

    def run(self, faces: UInt8Array) -> Outputs:
        """See `LocalEngine.run`."""
        probability, logit = self._ask("run", faces)
        return probability, logit

    def seconds(self, faces: UInt8Array, repeats: int) -> float:
        """See `LocalEngine.seconds`."""
        return float(self._ask("seconds", faces, repeats))

    def close(self) -> None:
        """End the process."""
        self._pipe.close()
        self._process.kill()
        self._process.wait()

    def _ask(self, use: str, *values: object) -> Any:
        try:
            self._pipe.send((use, *values))
            if not self._pipe.poll(HUNG_S):
                self._process.kill()
                self._process.wait()
                raise ExportError(f"{self._name} did not answer within {HUNG_S:g} s")
            done, answer = self._pipe.recv()
        except (OSError, EOFError):
            code = self._process.wait()
            how = f"signal {signal.Signals(-code).name}" if code < 0 else f"exit code {code}"
            raise ExportError(f"{self._name} ended its process while it ran the network ({how})") from None
        if not done:
            raise ExportError(answer)
        return answer


Engine: TypeAlias = LocalEngine | EngineProcess


def engine_for(path: Path, *, engine: str, precision: str) -> Engine:
    """Return an ONNX file in an engine of `ENGINES`; the caller closes it."""
    kind = LocalEngine if engine == ONNX_RUNTIME else EngineProcess
    return kind(path, engine=engine, precision=precision)


def _main(descriptor: str, path: str, engine: str, precision: str) -> None:
    """Answer what comes through a pipe until it ends."""
    end_with_parent()
    pipe, network = Connection(int(descriptor)), LocalEngine(Path(path), engine=engine, precision=precision)
    while True:
        try:
            use, *values = pipe.recv()
        except EOFError:
            # The engine's threads need not end in order.
            os._exit(0)
        try:
            answer = True, getattr(network, use)(*values)
        except Exception as exc:  # whatever its native code raises
            answer = False, str(exc) if isinstance(exc, DeepfakeError) else f"{type(exc).__name__}: {exc}"
        pipe.send(answer)


if __name__ == "__main__":
    _main(*sys.argv[1:])
