"""What a served model must answer: its ONNX file in-process. Nothing is timed before the answers agree."""

from __future__ import annotations

import asyncio
from pathlib import Path

import numpy as np
import numpy.typing as npt

from deepfake_bench.load.senders import Crops, LoadTarget
from deepfake_client import connect
from deepfake_export.proof.tolerances import TOLERANCES
from deepfake_preprocess.contract.spec import PROBABILITY_NAME
from deepfake_preprocess.errors import DeepfakeError
from deepfake_preprocess.support.engines import ONNX_RUNTIME, open_network

PROBABILITY_TOLERANCE = 1e-4
"""Float32 on the same machine; only the batch size, and so the order of sums, differs."""


class OnnxReference:
    """A file in one engine on the CPU, as an application without a server would run it."""

    def __init__(
        self, path: Path, *, threads: int | None = None, engine: str = ONNX_RUNTIME, precision: str = "fp32"
    ) -> None:
        self.precision = precision
        self._network = open_network(path, [PROBABILITY_NAME], engine=engine, precision=precision, threads=threads)

    def __call__(self, crops: Crops) -> npt.NDArray[np.float32]:
        """Return float32 ``[N]`` fake probabilities of uint8 ``[N, H, W, 3]`` crops."""
        (probabilities,) = self._network(crops)
        return np.asarray(probabilities[:, 0], dtype=np.float32)


def tolerance_of(precision: str) -> float:
    """Return how far a probability may be from the same engine's in another batch, which means other kernels."""
    return max(PROBABILITY_TOLERANCE, TOLERANCES[precision].batch_abs)


def random_crops(count: int, size_wh: tuple[int, int]) -> Crops:
    """Return uint8 ``[count, H, W, 3]`` noise, the same at every call; speed does not depend on the pixels."""
    width, height = size_wh
    return np.random.default_rng(0).integers(0, 256, (count, height, width, 3), dtype=np.uint8)


def verify_served(target: LoadTarget, crops: Crops, reference: OnnxReference) -> float:
    """Return the largest difference of probability between server and file, one crop and many at a time.

    Above the reference's tolerance it is a `DeepfakeError`.
    """

    async def ask() -> float:
        transport = connect(target.connection)
        model, largest = target.model, 0.0
        assert model is not None
        try:
            for size in {1, min(len(crops), model.max_batch_size)}:
                for start in range(0, len(crops), size):
                    part = crops[start : start + size]
                    answer = await transport.infer(model, part)
                    largest = max(largest, float(np.abs(answer - reference(part)).max()))
            return largest
        finally:
            await transport.close()

    largest = asyncio.run(ask())
    if not largest <= tolerance_of(reference.precision):
        raise DeepfakeError(
            f"probabilities served over {target.protocol} differ from the file's by {largest:g}; nothing was measured"
        )
    return largest
