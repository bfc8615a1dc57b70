"""A transport that notes what passes through it: when requests were sent and answered, their crops and scores."""

from __future__ import annotations

import time
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from deepfake_bench.load.senders import Crops
from deepfake_client.transport.protocol import Health, ServedModel, Transport


@dataclass(frozen=True, slots=True, eq=False)
class Exchange:
    """One request that was answered.

    Attributes:
        sent_s: `time.perf_counter` when it was sent.
        answered_s: when its answer was there.
        crops: uint8 ``[N, H, W, 3]`` RGB.
        probabilities: float32 ``[N]``, the answer.
    """

    sent_s: float
    answered_s: float
    crops: Crops
    probabilities: npt.NDArray[np.float32]


class ObservingTransport:
    """Passes everything on to another transport; see `deepfake_client.transport.protocol.Transport`.

    Attributes:
        url: the other's.
        exchanges: answered requests since the list was last emptied, in the order of their answers.
    """

    def __init__(self, transport: Transport) -> None:
        self.url = transport.url
        self.exchanges: list[Exchange] = []
        self._transport = transport

    async def health(self) -> Health:
        """See `Transport.health`."""
        return await self._transport.health()

    async def list_models(self) -> list[str]:
        """See `Transport.list_models`."""
        return await self._transport.list_models()

    async def describe(self, model: str) -> ServedModel:
        """See `Transport.describe`."""
        return await self._transport.describe(model)

    async def infer(
        self, model: ServedModel, faces: Crops, *, timeout_s: float | None = None
    ) -> npt.NDArray[np.float32]:
        """See `Transport.infer`."""
        sent_s = time.perf_counter()
        answer = await self._transport.infer(model, faces, timeout_s=timeout_s)
        self.exchanges.append(Exchange(sent_s, time.perf_counter(), faces, answer))
        return answer

    async def close(self) -> None:
        """See `Transport.close`."""
        await self._transport.close()
