"""Scores labeled files through the client's own pipeline, with a server behind it or with the checkpoint itself.

What is measured is what users get: the same sampling, detector, crops, tracks and verdicts. A file without a
verdict is kept with its reason.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from deepfake_client.analysis.aggregation import STRATEGIES, most_suspicious, score_tracks
from deepfake_client.client import DeepfakeClient
from deepfake_client.options import AnalyzeOptions
from deepfake_client.result.verdict import FrameResult
from deepfake_preprocess.errors import InputError, OptionError
from deepfake_preprocess.media.opening import Media, open_media
from deepfake_preprocess.media.suffixes import media_of
from deepfake_training.data.labels import FAKE, REAL
from deepfake_training.evaluate.calibration import apply_temperature


@dataclass(frozen=True, slots=True)
class ScoredFile:
    """What one labeled file got.

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


def labeled_files(real: Sequence[str | Path], fake: Sequence[str | Path]) -> list[tuple[Path, int]]:
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
        raise OptionError("there is nothing to evaluate; name files or folders with `real` and `fake`")
    return found


def score_files(
    files: Sequence[tuple[Path, int]],
    client: DeepfakeClient,
    options: AnalyzeOptions,
    *,
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
