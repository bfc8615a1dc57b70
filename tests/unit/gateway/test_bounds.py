"""What is larger or longer than it may be: refused with its own error, by the header where that tells it."""

from dataclasses import replace

import gateways
import pytest
from fixed_detector import LEFT, FixedDetector
from media import make_clip

from deepfake_client import DeepfakeClient
from deepfake_client.transport.testing import FakeTransport
from deepfake_gateway.intake.options import stored_options
from deepfake_gateway.sandbox.child import result_of


def analyzed(path, limits, **options):
    task = {"kind": "analyze", "name": "clip.mp4", "options": stored_options(options, max_frames=1000)}
    transport = FakeTransport(spec=gateways.SPEC)
    with DeepfakeClient(transport, detector=FixedDetector(LEFT)) as client, path.open("rb") as medium:
        return result_of(client, medium, task, replace(gateways.LIMITS, **limits), lambda line: None), transport


@pytest.fixture(scope="module")
def clips(tmp_path_factory):
    folder = tmp_path_factory.mktemp("clips")
    # The second states no length.
    return {name: make_clip(folder / name, duration_s=1.0) for name in ("clip.mp4", "clip.h264")}


@pytest.mark.parametrize(
    ("name", "limits", "options", "words"),
    [
        ("clip.mp4", {"max_pixels": 320 * 240 - 1}, {}, "320x240 pixels, and at most 76799 are accepted; send"),
        ("clip.mp4", {"max_duration_s": 0.5}, {}, "is 1 s long, and at most 0.5 s are accepted; send a shorter part"),
        ("clip.mp4", {"max_frames": 9}, {"fps": 10}, "in 10 frames or more, and at most 9 are; give a lower `fps`"),
    ],
)
def test_the_header_suffices_to_refuse(clips, name, limits, options, words):
    line, transport = analyzed(clips[name], limits, **options)
    assert line["error"] == "MediaLimitError"
    assert words in line["detail"]
    assert transport.batches == []


def test_a_length_that_nothing_states_is_bounded_while_frames_come(clips):
    line, _ = analyzed(clips["clip.h264"], {"max_frames": 5}, fps=1000)
    assert (line["error"], "in 6 frames or more" in line["detail"]) == ("MediaLimitError", True)


def test_what_is_just_within_the_bounds_is_analyzed(clips):
    limits = {"max_pixels": 320 * 240, "max_duration_s": 1.0, "max_frames": 25}
    line, _ = analyzed(clips["clip.mp4"], limits, fps=1000)
    assert len(line["verdict"]["frames"]) == 25
