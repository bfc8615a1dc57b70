"""What could not be read of an input is in its verdict."""

import dataclasses

import pytest
import verdicts

from deepfake_client.analysis.clocks import Clocks, verdict_of
from deepfake_client.analysis.judging.scoring import Judgment
from deepfake_client.transport.protocol import ServedModel
from deepfake_preprocess.contract.spec import ModelSpec
from deepfake_preprocess.media.opening import Media

MODEL = ServedModel("m", 1, ModelSpec(name="m", architecture="timm:x"), 8)


def judged(**stats):
    """The verdict on a 10 s video, of which decoding says `stats`."""
    whole = verdicts.verdict(score=0.2)
    fields = {field.name: getattr(whole, field.name) for field in dataclasses.fields(Judgment)} | {"notes": ()}
    media = Media("a.mp4", "video", 64, 48, 10.0, 25.0, "h264")
    for name, value in stats.items():
        setattr(media.stats, name, value)
    return verdict_of(media, Judgment(**fields), 0.5, MODEL, Clocks())


def test_an_intact_input_has_its_interval():
    verdict = judged()
    assert (verdict.interval, verdict.unread_s, verdict.input_notes) == (
        verdicts.verdict(score=0.2).interval,
        0.0,
        (),
    )
    assert verdict.notes() == []


def test_what_could_not_be_read_widens_the_interval_and_is_said():
    verdict = judged(unread=[(8.0, 10.0), (9.0, 12.5)], notes=["HDR (PQ) was mapped"])
    assert verdict.unread_s == pytest.approx(4.5)
    share = 4.5 / 12.5
    assert verdict.interval is not None
    assert verdict.interval.low == pytest.approx(0.1 * (1 - share))
    assert verdict.interval.high == pytest.approx(0.3 * (1 - share) + share)
    assert verdict.notes()[:2] == ["HDR (PQ) was mapped", "4.5 s of the video could not be read"]
