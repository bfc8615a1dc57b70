"""Scores labeled files through the client's own pipeline, with a server behind it or with the checkpoint itself.

What is measured is what users get: the same sampling, detector, crops, tracks and verdicts. A file without a
verdict is kept with its reason.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field, replace
from pathlib import Path

from deepfake_client.analysis.aggregation import STRATEGIES, most_suspicious, score_tracks
from deepfake_client.client import DeepfakeClient
from deepfake_client.options import AnalyzeOptions
from deepfake_client.result.verdict import FaceScore, FrameResult
from deepfake_preprocess.errors import InputError, OptionError
from deepfake_preprocess.media.opening import Media, open_media
from deepfake_preprocess.media.suffixes import media_of
from deepfake_preprocess.support.json_data import JsonData
from deepfake_training.data.labels import FAKE, REAL, LabelName
from deepfake_training.evaluate.calibration import apply_temperature


@dataclass(frozen=True, slots=True)
class ScoredFile(JsonData):
    """What one labeled file got.

    Attributes:
        source: path as it was given.
        label: ``real`` or ``fake``.
        fake_probability: score of the file, in [0, 1]; None without a verdict.
        reason: why there is no verdict; empty where there is one.
        kind: what sort of real or fake it is: the folder it was found in.
        frames: every sampled frame with its faces.
    """

    source: str
    label: LabelName
    fake_probability: float | None
    reason: str = ""
    kind: str = ""
    frames: tuple[FrameResult, ...] = field(default=(), metadata={"exclude": True})

    @property
    def class_index(self) -> int:
        """`REAL` or `FAKE`."""
        return FAKE if self.label == "fake" else REAL

    def frame_probabilities(self) -> list[float]:
        """Return the score of the most suspicious face of each frame that has one that was scored and counts."""
        scores = (
            [face.fake_probability for face in frame.faces if face.fake_probability is not None and face.weight]
            for frame in self.frames
        )
        return [max(frame) for frame in scores if frame]

    def with_temperature(self, temperature: float, aggregation: str) -> ScoredFile:
        """Return what the file would have got with every logit divided by `temperature`."""
        if self.fake_probability is None:
            return self
        frames = tuple(
            replace(frame, faces=tuple(_with_temperature(face, temperature) for face in frame.faces))
            for frame in self.frames
        )
        suspect = most_suspicious(score_tracks(frames, strategy=STRATEGIES[aggregation], threshold=0.5))
        assert suspect is not None  # it had a verdict, and the same faces count
        return replace(self, fake_probability=suspect.fake_probability, frames=frames)


def _with_temperature(face: FaceScore, temperature: float) -> FaceScore:
    if face.fake_probability is None:
        return face
    return replace(face, fake_probability=float(apply_temperature(face.fake_probability, temperature)))


def labeled_files(real: Iterable[str | Path], fake: Iterable[str | Path]) -> list[tuple[Path, LabelName]]:
    """Return all files with their labels; a folder stands for the images and videos in it.

    Raises:
        OptionError: nothing was named, or a folder holds no media.
    """
    labeled: tuple[tuple[Iterable[str | Path], LabelName], ...] = ((real, "real"), (fake, "fake"))
    found = [
        (file, label)
        for places, label in labeled
        for place in map(Path, places)
        for file in ([place] if place.is_file() else media_of(place))
    ]
    if not found:
        raise OptionError("there is nothing to evaluate; name files or folders with `real` and `fake`")
    return found


def score_files(
    files: Iterable[tuple[Path, LabelName]],
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
            result = ScoredFile(str(path), label, None, str(exc), path.parent.name)
        else:
            reason = "" if verdict.reason is None else f"{verdict.reason.value}: {verdict.detail}"
            result = ScoredFile(str(path), label, verdict.fake_probability, reason, path.parent.name, verdict.frames)
        scored.append(result)
        if on_file is not None:
            on_file(number, result)
    return scored
