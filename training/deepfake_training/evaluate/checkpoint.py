"""A checkpoint that answers as a server does: what is measured is the weights themselves, in float32 PyTorch."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Final

import numpy as np
import torch
from numpy.typing import NDArray

from deepfake_client.transport.protocol import Health, ServedModel
from deepfake_export.graph.served_detector import ServedDetector
from deepfake_export.network import load_network
from deepfake_preprocess.contract.spec import ModelSpec

BATCH_SIZE: Final = 8
"""Crops per forward pass; larger ones are slower on a CPU."""


class CheckpointTransport:
    """Stands in for a server: the checkpoint answers in this process, in float32 PyTorch.

    Args:
        checkpoint: weights, or the YAML file of an ensemble.
        spec: their contract; None takes the YAML file of the checkpoint's name.

    Raises:
        CheckpointError: the file cannot be read, or is of another architecture.
        SpecError: there is no spec, or it is wrong.
    """

    def __init__(self, checkpoint: str | Path, spec: ModelSpec | Path | None = None) -> None:
        loaded = load_network(checkpoint, spec)
        self.url = str(checkpoint)
        self._detector = ServedDetector(loaded.network, loaded.spec).eval()
        self._model = ServedModel(loaded.spec.name, loaded.spec.version, loaded.spec, BATCH_SIZE)

    async def health(self) -> Health:
        """See `Transport.health`."""
        return Health(alive=True, ready=True)

    async def list_models(self) -> list[str]:
        """See `Transport.list_models`."""
        return [self._model.name]

    async def describe(self, model: str) -> ServedModel:
        """See `Transport.describe`."""
        return self._model

    async def infer(
        self, model: ServedModel, faces: NDArray[np.uint8], *, timeout_s: float | None = None
    ) -> NDArray[np.float32]:
        """See `Transport.infer`."""
        return await asyncio.to_thread(self.score, faces)

    def score(self, faces: NDArray[np.uint8]) -> NDArray[np.float32]:
        """Return float32 ``[N]`` fake probabilities of uint8 ``[N, H, W, 3]`` RGB crops."""
        scores = []
        with torch.inference_mode():
            for start in range(0, len(faces), BATCH_SIZE):
                batch = torch.from_numpy(faces[start : start + BATCH_SIZE])
                scores.append(self._detector(batch)[0][:, 0].float().numpy())
        return np.concatenate(scores) if scores else np.empty(0, np.float32)

    async def close(self) -> None:
        """See `Transport.close`."""
