"""Scores labelled files through the client's own pipeline, with a server behind it or with the checkpoint itself.

So what is measured is what users get: the same sampling, detector, crops, tracks and verdicts. A file without a
verdict is kept with its reason.
"""

from __future__ import annotations

import asyncio
import dataclasses
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from deepfake_client.analysis.aggregation import STRATEGIES, most_suspicious, score_tracks
from deepfake_client.client import DeepfakeClient
from deepfake_client.options import AnalyzeOptions
from deepfake_client.result.verdict import FrameResult
from deepfake_client.transport.protocol import Health, ServedModel
from deepfake_export.graph.served_detector import ServedDetector
from deepfake_export.network import load_network
from deepfake_export.proof.faces import media_of
from deepfake_preprocess.contract.spec import ModelSpec
from deepfake_preprocess.errors import InputError, ModelNotFoundError, OptionError
from deepfake_preprocess.media.opening import Media, open_media
from deepfake_training.data.faces import FAKE, REAL
from deepfake_training.evaluate.calibration import apply_temperature

BATCH_SIZE = 8
"""Crops per forward pass of a checkpoint; larger ones are slower on a CPU."""


@dataclass(frozen=True, slots=True)
class ScoredFile:
    """What one labelled file got.

    Attributes:
        source: path as it was given.
        label: `REAL` or `FAKE`.
        probability: score of the file, in [0, 1]; None without a verdict.
        reason: why there is no verdict; empty where there is one.
        frames: every sampled frame with its faces.
        kind: what sort of real or fake it is: the folder it was found in.
    """

    source: str
    label: int
    probability: float | None
    reason: str
    frames: tuple[FrameResult, ...] = ()
    kind: str = ""

    def frame_probabilities(self) -> list[float]:
        """Return the score of the most suspicious face of each frame that has one that was scored and counts."""
        scores = (
            [face.fake_probability for face in frame.faces if face.fake_probability is not None and face.weight]
            for frame in self.frames
        )
        return [max(frame) for frame in scores if frame]

    def with_temperature(self, temperature: float, aggregation: str) -> ScoredFile:
        """Return what the file would have got with every logit divided by `temperature`."""
        if self.probability is None:
            return self
        frames = tuple(
            dataclasses.replace(
                frame,
                faces=tuple(
                    face
                    if face.fake_probability is None
                    else dataclasses.replace(
                        face,
                        fake_probability=float(apply_temperature(np.array([face.fake_probability]), temperature)[0]),
                    )
                    for face in frame.faces
                ),
            )
            for frame in self.frames
        )
        suspect = most_suspicious(score_tracks(frames, strategy=STRATEGIES[aggregation], threshold=0.5))
        assert suspect is not None  # it had a verdict, and the same faces count
        return dataclasses.replace(self, probability=suspect.fake_probability, frames=frames)


class CheckpointTransport:
    """Stands in for a server: the checkpoint answers in this process, in float32 PyTorch.

    Args:
        checkpoint: weights.
        spec: their contract.
        device: ``cpu`` or ``cuda``.

    Raises:
        CheckpointError: the file cannot be read, or is of another architecture.
    """

    def __init__(self, checkpoint: str | Path, spec: ModelSpec, *, device: str = "cpu") -> None:
        loaded = load_network(checkpoint, spec)
        self.url = str(checkpoint)
        self._device = torch.device(device)
        self._detector = ServedDetector(loaded.network, loaded.spec).eval().to(self._device)
        self._model = ServedModel(loaded.spec.name, loaded.spec.version, loaded.spec, BATCH_SIZE)

    async def health(self) -> Health:
        """See `Transport.health`."""
        return Health(alive=True, ready=True)

    async def list_models(self) -> list[str]:
        """See `Transport.list_models`."""
        return [self._model.name]

    async def describe(self, model: str) -> ServedModel:
        """See `Transport.describe`."""
        if model != self._model.name:
            raise ModelNotFoundError(
                f"{self.url} is the model {self._model.name!r}, not {model!r}; leave --model out"
            )
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
                batch = torch.from_numpy(faces[start : start + BATCH_SIZE]).to(self._device)
                scores.append(self._detector(batch)[0][:, 0].float().cpu().numpy())
        return np.concatenate(scores) if scores else np.empty(0, np.float32)

    async def close(self) -> None:
        """See `Transport.close`."""


def labelled_files(real: Sequence[str | Path], fake: Sequence[str | Path]) -> list[tuple[Path, int]]:
    """Return all files with their labels; a folder stands for the images and videos in it.

    Raises:
        OptionError: nothing was named, or a folder holds no media.
    """
    found = [
        (file, label)
        for places, label in ((real, REAL), (fake, FAKE))
        for place in map(Path, places)
        for file in ([place] if place.is_file() else media_of(place))
    ]
    if not found:
        raise OptionError("nothing to evaluate: name files or folders with --real and --fake")
    return found


def score_files(
    files: Sequence[tuple[Path, int]],
    client: DeepfakeClient,
    *,
    options: AnalyzeOptions,
    view: Callable[[Media], Media] | None = None,
    on_file: Callable[[int, ScoredFile], None] | None = None,
) -> list[ScoredFile]:
    """Analyze every file; one that cannot be opened is kept as inconclusive.

    Args:
        files: paths and labels.
        client: connected to a server, or to a `CheckpointTransport`.
        options: how each file is analyzed.
        view: makes of each opened file what is analyzed, for example a degraded version.
        on_file: called after each file with its number, from 1.

    Raises:
        ServerError: the server cannot be reached.
    """
    scored = []
    for number, (path, label) in enumerate(files, start=1):
        try:
            with open_media(path, name=str(path)) as media:
                verdict = client.analyze(view(media) if view is not None else media, options=options)
        except OptionError:
            raise
        except InputError as exc:
            result = ScoredFile(str(path), label, None, str(exc), kind=path.parent.name)
        else:
            reason = "" if verdict.reason is None else f"{verdict.reason.value}: {verdict.detail}"
            result = ScoredFile(
                str(path), label, verdict.fake_probability, reason, verdict.frames, kind=path.parent.name
            )
        scored.append(result)
        if on_file is not None:
            on_file(number, result)
    return scored
