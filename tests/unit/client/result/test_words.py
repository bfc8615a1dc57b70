"""What people read instead of names of the code."""

import pytest

from deepfake_client.result.verdict import Concern, Reason
from deepfake_client.result.words import CONCERN_WORDS, REASON_SENTENCES, REASON_WORDS, concern_words, sentence


def test_each_reason_and_concern_has_words():
    assert list(REASON_SENTENCES) == list(REASON_WORDS) == list(Reason)
    assert list(CONCERN_WORDS) == list(Concern)
    assert concern_words([Concern.TINY, Concern.EXTREME_POSE]) == "too small, turned away"


@pytest.mark.parametrize(
    ("message", "read"),
    [
        ("raise `num_frames`, `x_y` or more", "Raise the number of frames, `x_y` or more."),
        ("clip.mp4: is a face visible?", "clip.mp4: is a face visible?"),
        ("", ""),
    ],
)
def test_a_message_becomes_a_sentence(message, read):
    assert sentence(message) == read
