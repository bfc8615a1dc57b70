"""Scores labeled files through the client's own pipeline, with a server behind it or with the checkpoint itself.

What is measured is what users get: the same sampling, detector, crops, tracks and verdicts. A file without a
verdict is kept with its reason.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field, replace
from math import exp

from deepfake_client.analysis.judging.abstaining import abstention
from deepfake_client.analysis.judging.aggregation import STRATEGIES, score_tracks
from deepfake_client.client import DeepfakeClient
from deepfake_client.options import CALIBRATED_AGGREGATION, AnalyzeOptions
from deepfake_client.result.journal import Journal
from deepfake_client.result.outcome import Outcome
from deepfake_client.result.verdict import FaceScore, FrameResult, Reason, Verdict
from deepfake_preprocess.contract.spec import ModelSpec
from deepfake_preprocess.errors import InputError, OptionError, ServerUnavailableError
from deepfake_preprocess.media.opening import Media, open_media
from deepfake_preprocess.support.json_data import JsonData
from deepfake_training.data.labels import FAKE, REAL, LabelName
from deepfake_training.evaluate.calibration import apply_temperature, logits_of
from deepfake_training.evaluate.clips import LabeledFile


@dataclass(frozen=True, slots=True)
class ScoredFile(JsonData):
    """What one labeled file got.

    Attributes:
        source: path as it was given.
        label: ``real`` or ``fake``.
        fake_probability: score of the file, in [0, 1]; None without a verdict.
        reason: why there is no verdict; empty where there is one.
        kind: its source: the folder it was found in, or what a table says.
        frames: every sampled frame with its faces.
        verdict: all that was found; None where the file could not be opened, or is no file.
    """

    source: str
    label: LabelName
    fake_probability: float | None
    reason: str = ""
    kind: str = ""
    frames: tuple[FrameResult, ...] = field(default=(), metadata={"exclude": True})
    verdict: Verdict | None = field(default=None, metadata={"exclude": True})

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

    def left_open(self, spec: ModelSpec, aggregation: str) -> Reason | None:
        """Return why a client leaves the verdict open by the spec's calibration; None where it does not."""
        verdict = self.verdict
        if spec.calibration is None or verdict is None or verdict.fake_probability is None:
            return None
        track = verdict.deciding
        assert track is not None, "a verdict with a score has a face that decided"
        found = abstention(
            verdict.fake_probability,
            verdict.interval if track.num_frames > 1 else None,
            track.look,
            spec.calibration,
            spec.threshold,
            knows_scores=aggregation == CALIBRATED_AGGREGATION,
        )
        return None if found is None else found[0]

    def with_temperature(self, temperature: float, aggregation: str) -> ScoredFile:
        """Return what the file would have got with every logit divided by `temperature`.

        The same face decides, and what it loses for being the highest of several is a shift of its logit.
        """
        if self.fake_probability is None:
            return self
        deciding = 0 if self.verdict is None else self.verdict.deciding_track
        frames = tuple(
            replace(frame, faces=tuple(_with_temperature(face, temperature) for face in frame.faces))
            for frame in self.frames
        )
        before, after = (
            next(track.fake_probability for track in tracks if track.track == deciding)
            for tracks in (
                score_tracks(found, strategy=STRATEGIES[aggregation], threshold=0.5)
                for found in (self.frames, frames)
            )
        )
        shift = float(logits_of(self.fake_probability) - logits_of(before))
        probability = 1 / (1 + exp(-float(logits_of(after)) - shift))
        return replace(self, fake_probability=probability, frames=frames)


def _with_temperature(face: FaceScore, temperature: float) -> FaceScore:
    if face.fake_probability is None:
        return face
    return replace(face, fake_probability=float(apply_temperature(face.fake_probability, temperature)))


def score_files(
    files: Iterable[LabeledFile],
    client: DeepfakeClient,
    options: AnalyzeOptions,
    *,
    view: Callable[[Media], Media] | None = None,
    on_file: Callable[[int, ScoredFile], None] | None = None,
    journal: Journal | None = None,
) -> list[ScoredFile]:
    """Analyze every file; one that cannot be opened is kept as inconclusive.

    Args:
        files: with their labels.
        client: connected to a server, or to a `CheckpointTransport`.
        options: how each file is analyzed.
        view: makes of each opened file what is analyzed, for example a degraded version.
        on_file: called after each file with its number, from 1.
        journal: keeps each result, and spares those that it has.

    Raises:
        ServerError: the server cannot be reached, or failed; files without its scores would make a wrong figure.
    """
    scored = []
    for number, file in enumerate(files, start=1):
        outcome = None if journal is None else journal.reusable(str(file.path), client.model().identity)
        if outcome is None:
            outcome = _analyze(file, client, options, view, journal)
        scored.append(_scored(file, outcome))
        if on_file is not None:
            on_file(number, scored[-1])
    return scored


def _analyze(
    file: LabeledFile,
    client: DeepfakeClient,
    options: AnalyzeOptions,
    view: Callable[[Media], Media] | None,
    journal: Journal | None,
) -> Outcome:
    name = str(file.path)
    if journal is not None:
        journal.begin(name)
    try:
        with open_media(file.path, name=name) as media:
            verdict = client.analyze(view(media) if view is not None else media, options=options)
    except OptionError:
        raise
    except InputError as exc:
        outcome = Outcome(name, error=exc)
    else:
        outcome = Outcome(name, verdict=verdict)
        if outcome.server_failed:
            raise ServerUnavailableError(f"the server failed on {name} {verdict.detail}")
    if journal is not None:
        journal.append(outcome)
    return outcome


def _scored(file: LabeledFile, outcome: Outcome) -> ScoredFile:
    name, verdict = str(file.path), outcome.verdict
    if verdict is None:
        return ScoredFile(name, file.label, None, str(outcome.error), file.source)
    reason = "" if verdict.reason is None else f"{verdict.reason.value}: {verdict.detail}"
    return ScoredFile(name, file.label, verdict.fake_probability, reason, file.source, verdict.frames, verdict)
