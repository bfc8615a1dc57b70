"""A server that needs no server: `FakeTransport`, for the tests of applications that use the client."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import KW_ONLY, dataclass, field

import numpy as np
from numpy.typing import NDArray

from deepfake_client.transport.protocol import Health, ServedModel
from deepfake_preprocess.contract.spec import ModelSpec
from deepfake_preprocess.errors import DeepfakeError, ModelNotFoundError, ServerTimeoutError

Scorer = Callable[[NDArray[np.uint8]], NDArray[np.float32]]
"""Takes uint8 ``[N, H, W, 3]`` RGB crops and returns float32 ``[N]`` fake probabilities."""


def mean_brightness(faces: NDArray[np.uint8]) -> NDArray[np.float32]:
    """Score crops by their brightness, in [0, 1]: a stand-in that depends on the input."""
    return np.asarray(faces.reshape(len(faces), -1).mean(axis=1) / 255, dtype=np.float32)


@dataclass(eq=False)
class FakeTransport:
    """Answers in-process with a function of the crops.

    ::

        client = DeepfakeClient(FakeTransport(lambda faces: np.full(len(faces), 0.9, np.float32)))

    A server that goes away after two requests and is back after three more, as the client sees it with retries::

        away = FakeTransport(fail_after=2, error=ServerUnavailableError("restarting"), num_failures=3)
        client = DeepfakeClient(RetryingTransport(away))

    Attributes:
        scorer: what the "model" answers.
        spec: contract of the "model".
        max_batch_size: largest request; a larger one raises ValueError.
        latency_s: how long each request takes, in seconds. A call with a shorter deadline raises ServerTimeoutError.
        fail_after: number of requests that succeed before `error` is raised, or None for never.
        error: what is raised then.
        num_failures: number of requests that fail before the server answers again; None for all.
        precision: what the "model" says it computes in.
        batches: number of crops of each request that was answered, in order.
        failures: number of requests that failed with `error`.
        closed: `close` was called.
    """

    scorer: Scorer = mean_brightness
    _: KW_ONLY
    spec: ModelSpec = field(default_factory=lambda: ModelSpec("fake_model", "timm:efficientnet_b0"))
    max_batch_size: int = 8
    latency_s: float = 0.0
    fail_after: int | None = None
    error: DeepfakeError | None = None
    num_failures: int | None = None
    precision: str = "fp32"
    url: str = field(default="fake", init=False)
    batches: list[int] = field(default_factory=list, init=False)
    failures: int = field(default=0, init=False)
    closed: bool = field(default=False, init=False)

    async def health(self) -> Health:
        """See `Transport.health`."""
        return Health(alive=True, ready=not self.closed)

    async def list_models(self) -> list[str]:
        """See `Transport.list_models`."""
        return [self.spec.name]

    async def describe(self, model: str) -> ServedModel:
        """See `Transport.describe`."""
        if model != self.spec.name:
            raise ModelNotFoundError(f"the server at {self.url} has no model {model!r}; it offers {self.spec.name}")
        return ServedModel(self.spec.name, self.spec.version, self.spec, self.max_batch_size, self.precision)

    async def infer(
        self, model: ServedModel, faces: NDArray[np.uint8], *, timeout_s: float | None = None
    ) -> NDArray[np.float32]:
        """See `Transport.infer`."""
        if len(faces) > model.max_batch_size:
            raise ValueError(f"a request holds at most {model.max_batch_size} crops, got {len(faces)}")
        late = timeout_s is not None and timeout_s < self.latency_s
        await asyncio.sleep(timeout_s if late and timeout_s is not None else self.latency_s)
        if late:
            raise ServerTimeoutError(f"the server at {self.url} gave no answer within {timeout_s:g} s")
        if self.error is not None and self._is_failing():
            self.failures += 1
            raise self.error
        self.batches.append(len(faces))
        return self.scorer(faces)

    async def close(self) -> None:
        """See `Transport.close`."""
        self.closed = True

    def _is_failing(self) -> bool:
        if self.fail_after is None or len(self.batches) < self.fail_after:
            return False
        return self.num_failures is None or self.failures < self.num_failures
