"""Analyses that are observed: when their requests were sent and answered, with crops and scores."""

from __future__ import annotations

import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from deepfake_bench.load.senders import Crops
from deepfake_client import NO_RETRY, AnalyzeOptions, DeepfakeClient, Reason, Verdict
from deepfake_client.transport.protocol import ServedModel, Transport
from deepfake_client.transport.retry import RetryingTransport
from deepfake_preprocess.errors import DeepfakeError


@dataclass(frozen=True, slots=True, eq=False)
class Exchange:
    """One request that was answered; times by `time.perf_counter`."""

    sent_s: float
    answered_s: float
    crops: Crops
    probabilities: npt.NDArray[np.float32]


def analyzed(client: DeepfakeClient, clip: Path, options: AnalyzeOptions) -> Verdict:
    """Return the verdict of a clip; a `DeepfakeError` where the server failed."""
    verdict = client.analyze(clip, options=options)
    if verdict.reason in (Reason.SERVER_ERROR, Reason.SERVER_UNAVAILABLE):
        raise DeepfakeError(f"{clip.name}: {verdict.detail}; nothing was measured")
    return verdict


class ObservingTransport(RetryingTransport):
    """Passes everything on to another transport; `exchanges` are those answered since the list was emptied."""

    def __init__(self, transport: Transport) -> None:
        super().__init__(transport, NO_RETRY)
        self.exchanges: list[Exchange] = []

    async def infer(
        self, model: ServedModel, faces: Crops, *, timeout_s: float | None = None
    ) -> npt.NDArray[np.float32]:
        """See `Transport.infer`."""
        sent_s = time.perf_counter()
        answer = await super().infer(model, faces, timeout_s=timeout_s)
        self.exchanges.append(Exchange(sent_s, time.perf_counter(), faces, answer))
        return answer
