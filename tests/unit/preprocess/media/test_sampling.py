from fractions import Fraction
from itertools import accumulate, islice, takewhile

import pytest
from hypothesis import given
from hypothesis import strategies as st

from deepfake_preprocess.errors import OptionError
from deepfake_preprocess.media.sampling import FramePicker, Sampling, early_offsets


@pytest.mark.parametrize(
    "options",
    [
        {"num_frames": None},
        {"num_frames": 3, "fps": 2.0},
        {"num_frames": 0},
        {"num_frames": -1},
        {"num_frames": True},
        {"num_frames": 3.5},
        {"num_frames": "3"},
        {"num_frames": None, "fps": "2"},
        {"num_frames": None, "fps": 0.0},
        {"num_frames": None, "fps": float("nan")},
        {"num_frames": None, "fps": float("inf")},
        {"at_seconds": (1.0,)},
        {"num_frames": None, "at_seconds": (1.0, 1.0)},
        {"num_frames": None, "at_seconds": (2.0, 1.0)},
        {"num_frames": None, "at_seconds": (-1.0,)},
        {"num_frames": None, "at_seconds": (float("nan"),)},
        {"num_frames": None, "at_seconds": (1.0,), "mode": "fast"},
        {"num_frames": 3, "mode": "keyframes"},
    ],
)
def test_sampling_refuses_what_makes_no_sense(options):
    with pytest.raises(OptionError, match=r"num_frames|fps|at_seconds|allowed: uniform, fast"):
        Sampling(**options)


def test_targets_are_midpoints_of_equal_parts():
    targets = Sampling(4).targets(start=100, duration=80, time_base=Fraction(1, 1000))
    assert list(targets) == [110, 130, 150, 170]


def test_rate_targets_are_rounded_up_to_ticks():
    targets = Sampling(None, 30.0).targets(start=5, duration=None, time_base=Fraction(1, 1000))
    assert list(islice(targets, 4)) == [5, 39, 72, 105]


def test_rate_finer_than_the_time_base_asks_for_every_tick_once():
    targets = Sampling(None, 1e9).targets(start=0, duration=None, time_base=Fraction(1, 10))
    assert list(islice(targets, 4)) == [0, 1, 2, 3]


@st.composite
def schedules(draw):
    """Times of frames in decoding order with their decoding times, as an encoder with B-frames writes them."""
    steps = draw(st.lists(st.integers(1, 40), min_size=1, max_size=40))
    shown = [draw(st.integers(-20, 20))]
    for step in steps:
        shown.append(shown[-1] + step)
    order = []
    rest = list(range(len(shown)))
    while rest:
        take = draw(st.integers(1, 4))
        group, rest = rest[:take], rest[take:]
        order += [group[-1], *draw(st.permutations(group[:-1]))]
    # The latest decoding times that are rising and before all times still to be shown.
    decoded = []
    for position in range(len(order)):
        decoded.append(min(shown[index] for index in order[position:]) - draw(st.integers(0, 3)))
    decoded = [min(decoded[position:]) for position in range(len(decoded))]
    return shown, [(shown[index], dts) for index, dts in zip(order, decoded, strict=True)]


@given(schedules(), st.lists(st.integers(-40, 900), min_size=1, max_size=20).map(sorted))
def test_picker_finds_the_frames_on_screen(schedule, targets):
    shown, packets = schedule
    expected = {}
    for target in targets:
        pick = max((pts for pts in shown if pts <= target), default=shown[0])
        if not expected or pick > max(expected):
            expected[pick] = shown.index(pick)

    picker = FramePicker(iter(targets))
    picked = {}
    for pts, dts in packets:
        picked.update(picker.read(pts, dts))
        # What is given up must not be asked for later.
        for seen, _ in packets[: packets.index((pts, dts)) + 1]:
            assert not (picker.is_settled(seen) and seen in expected and seen not in picked)
    picked.update(picker.end())
    assert list(picked.items()) == list(expected.items())


@given(schedules(), st.lists(st.integers(1, 200), min_size=1, max_size=20), st.integers(0, 100), st.data())
def test_picker_prefers_referenced_frames_within_reach(schedule, gaps, reach, data):
    shown, packets = schedule
    targets = list(accumulate((reach + gap for gap in gaps), initial=-40))
    referenced = {pts: data.draw(st.booleans()) for pts in shown}
    expected = {}
    for target in targets:
        pick = max((pts for pts in shown if pts <= target), default=shown[0])
        near = [pts for pts in shown if target - reach <= pts <= target and referenced[pts]]
        pick = max(near, default=pick)
        if not expected or pick > max(expected):
            expected[pick] = shown.index(pick)
        if target >= shown[-1]:
            break  # later targets are after the end

    picker = FramePicker(iter(targets), reach=reach)
    picked = {}
    for number, (pts, dts) in enumerate(packets, start=1):
        picked.update(picker.read(pts, dts, referenced=referenced[pts]))
        for seen, _ in packets[:number]:
            assert not (picker.is_settled(seen) and seen in expected and seen not in picked)
    picked.update(picker.end())
    assert list(picked.items()) == list(expected.items())


@given(st.integers(1, 60), st.integers(1, 200), st.data())
def test_evenly_spaced_samples_within_reach_stay_different_frames(num_frames, length, data):
    step, sampling = 40, Sampling(num_frames)
    options = {"duration": length * step, "time_base": Fraction(1, 1000)}
    picker = FramePicker(sampling.targets(start=0, **options), reach=sampling.reach(**options))
    picks = {}
    for number in range(length):
        picks.update(picker.read(number * step, number * step, referenced=number == 0 or data.draw(st.booleans())))
    picks.update(picker.end())
    assert len(picks) == min(num_frames, length)
    assert all(pts == index * step for pts, index in picks.items())


@given(schedules())
def test_picks_are_known_as_soon_as_decoding_times_allow(schedule):
    _, packets = schedule
    target = packets[0][0]
    picker = FramePicker(iter([target]))
    late = [dts for pts, dts in packets if not picker.read(pts, dts) and picker.target is not None]
    assert all(dts <= target for dts in late)


@given(st.integers(1, 60), st.integers(1, 60))
def test_even_sampling_takes_as_many_as_there_are(num_frames, length):
    """Constant rate: N frames of more than N, and all frames of fewer."""
    step = 40
    picker = FramePicker(Sampling(num_frames).targets(start=0, duration=length * step, time_base=Fraction(1, 1000)))
    picks = {}
    for number in range(length):
        picks.update(picker.read(number * step, number * step))
    picks.update(picker.end())
    assert len(picks) == min(num_frames, length)
    assert all(pts == index * step for pts, index in picks.items())


def test_ordinals_go_on_after_a_jump():
    picker = FramePicker(iter([10, 1005]))
    first = picker.read(0, 0) | picker.read(20, 20)
    picker.jump(50)
    assert first | picker.read(1000, 1000) | picker.read(1020, 1020) == {0: 0, 1000: 50}


def test_endless_targets_end_with_the_frames():
    picker = FramePicker(Sampling(None, 10.0).targets(start=0, duration=None, time_base=Fraction(1, 1000)))
    for pts in takewhile(lambda pts: pts < 1000, range(0, 2000, 40)):
        picker.read(pts, pts)
    picker.end()
    assert picker.target is None


@given(st.integers(1, 50), st.integers(1, 20), st.integers(1, 300))
def test_early_offsets_stay_early_and_meet_different_frames(count, frame, length):
    stretch = frame * length
    offsets = early_offsets(count, stretch, frame)
    assert len(offsets) == count
    assert offsets[0] == 0
    assert offsets[-1] < stretch
    if length >= 8 * count:  # room enough in a quarter
        assert offsets[-1] <= stretch / 4
    if length >= 2 * count:
        assert len({offset // frame for offset in offsets}) == count
