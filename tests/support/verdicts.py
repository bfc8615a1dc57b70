"""Makes verdicts of every kind without a server. Import it as ``import verdicts`` (see conftest.py)."""

from __future__ import annotations

import dataclasses

from deepfake_client.result.verdict import (
    Concern,
    Consistency,
    FaceScore,
    FrameResult,
    Interval,
    Label,
    ModelIdentity,
    Reason,
    Timing,
    Track,
    Verdict,
)

MODEL = ModelIdentity("tiny", 1, "0" * 64, "Not for decisions about people.")
LANDMARKS = ((20.0, 20.0), (40.0, 20.0), (30.0, 30.0), (22.0, 40.0), (38.0, 40.0))


def face(
    score: float | None, *, track: int = 0, weight: float = 1.0, concerns: tuple[Concern, ...] = ()
) -> FaceScore:
    return FaceScore(track, (10.0, 12.5, 60.0, 70.0), 0.99, score, weight, concerns, LANDMARKS)


def verdict(source: str = "clip.mp4", *, score: float = 0.9, threshold: float = 0.5, num_frames: int = 4) -> Verdict:
    """A video with two faces: the first has `score`; the second is left out once and not scored once."""
    label = Label.FAKE if score >= threshold else Label.REAL
    frames = tuple(
        FrameResult(
            index * 5,
            index / 5,
            (
                face(score),
                face(
                    None if index == num_frames - 1 else 0.2,
                    track=1,
                    weight=0.0 if index == 0 else 1.0,
                    concerns=(Concern.BLURRED, Concern.TINY) if index == 0 else (),
                ),
            ),
        )
        for index in range(num_frames)
    )
    end = (num_frames - 1) / 5
    interval = Interval(max(0.0, score - 0.1), min(1.0, score + 0.1))
    tracks = (
        Track(0, score, label, num_frames, 0.0, end, True, interval, Consistency(1.0, 0.01, num_frames)),
        Track(1, 0.2, Label.REAL, 2, 0.2, end, False, Interval(0.1, 0.3), Consistency(1.0, 0.0, 0)),
    )
    timing = Timing(0.5, 0.4, 0.01, 0.3, 0.001, 0.6)
    return Verdict(
        source, label, score, interval, 0, threshold, None, "", tracks, frames, MODEL, timing, corrupt_packets=2,
        frames_saved=3, frames_dropped=1,
    )  # fmt: skip


def inconclusive(source: str = "clip.mp4", reason: Reason = Reason.NO_FACE) -> Verdict:
    """A video without a verdict; frames are there, but faces are not."""
    frames = () if reason is Reason.UNDECODABLE else (FrameResult(0, 0.0, ()), FrameResult(9, 0.3, ()))
    return dataclasses.replace(
        verdict(source), label=Label.INCONCLUSIVE, fake_probability=None, interval=None, deciding_track=None,
        reason=reason, detail="a sentence", tracks=(), frames=frames,
    )  # fmt: skip
