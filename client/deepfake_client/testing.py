"""A server that needs no server: `FakeTransport`, for the tests of applications that use the client."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from deepfake_client.transport import ServedModel
from deepfake_preprocess.errors import DeepfakeError, ModelNotFoundError
from deepfake_preprocess.spec import ModelSpec

Scorer = Callable[[NDArray[np.uint8]], NDArray[np.float32]]
"""Takes uint8 ``[N, H, W, 3]`` RGB crops and returns float32 ``[N]`` fake probabilities."""


def mean_brightness(faces: NDArray[np.uint8]) -> NDArray[np.float32]:
    """Score crops by their brightness, in [0, 1]: a stand-in that depends on the input."""
    return np.asarray(faces.reshape(len(faces), -1).mean(axis=1) / 255, dtype=np.float32)


class FakeTransport:
    """Answers in-process with a function of the crops.

    ::

        client = DeepfakeClient(transport=FakeTransport(lambda faces: np.full(len(faces), 0.9, np.float32)))

    Args:
        scorer: what the "model" answers.
        spec: contract of the "model".
        max_batch_size: largest request; a larger one raises ValueError.
        fail_after: number of requests that succeed before `error` is raised, or None for never.
        error: what is raised then.

    Attributes:
        batches: number of crops of each request received, in order.
    """

    def __init__(
        self,
        scorer: Scorer = mean_brightness,
        *,
        spec: ModelSpec | None = None,
        max_batch_size: int = 8,
        fail_after: int | None = None,
        error: DeepfakeError | None = None,
    ) -> None:
        self.url = "fake"
        self.batches: list[int] = []
        self.closed = False
        self._scorer = scorer
        self._spec = spec or ModelSpec(name="fake_model", architecture="timm:efficientnet_b0")
        self._max_batch_size = max_batch_size
        self._fail_after = fail_after
        self._error = error

    async def list_models(self) -> list[str]:
        """See `Transport.list_models`."""
        return [self._spec.name]

    async def describe(self, model: str) -> ServedModel:
        """See `Transport.describe`."""
        if model != self._spec.name:
            raise ModelNotFoundError(f"the server at {self.url} has no model {model!r}; it offers {self._spec.name}")
        return ServedModel(self._spec.name, self._spec.version, self._spec, self._max_batch_size)

    async def infer(self, model: ServedModel, faces: NDArray[np.uint8]) -> NDArray[np.float32]:
        """See `Transport.infer`."""
        if len(faces) > model.max_batch_size:
            raise ValueError(f"a request holds at most {model.max_batch_size} crops, got {len(faces)}")
        await asyncio.sleep(0)
        if self._error is not None and self._fail_after is not None and len(self.batches) >= self._fail_after:
            raise self._error
        self.batches.append(len(faces))
        return self._scorer(faces)

    async def close(self) -> None:
        """See `Transport.close`."""
        self.closed = True
