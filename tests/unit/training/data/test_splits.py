from __future__ import annotations

import numpy as np
import pytest

from deepfake_preprocess.errors import OptionError
from deepfake_training.data.splits import find_groups, split_by_group


def different(count: int) -> np.ndarray:
    return np.random.default_rng(0).random((count, 4, 4, 3)).astype(np.float32)


def test_frames_of_one_video_stay_together() -> None:
    groups = find_groups(["real/a.mp4", "real/b.mp4", "real/a.mp4"], different(3))
    assert groups[0] == groups[2] != groups[1]


def test_a_face_swap_joins_the_two_people_in_its_name() -> None:
    sources = ["real/004.mp4", "real/982.mp4", "real/519.mp4", "fake/004_982.mp4"]
    groups = find_groups(sources, different(4), identity_pattern=r"(\d{3})(?:_(\d{3}))?")
    assert groups[0] == groups[1] == groups[3]
    assert groups[2] != groups[0]


def test_stills_of_one_shot_and_near_duplicates_stay_together() -> None:
    thumbnails = different(5)
    thumbnails[1] = thumbnails[0] + 0.08  # the next frame of a shot: alike, and a neighbor
    thumbnails[4] = thumbnails[2] + 0.02  # a near duplicate elsewhere
    groups = find_groups([f"real/{number}.jpg" for number in range(5)], thumbnails)
    assert groups[0] == groups[1]
    assert groups[2] == groups[4]
    assert len(set(groups)) == 3


def test_alike_stills_far_apart_are_other_people() -> None:
    thumbnails = different(3)
    thumbnails[2] = thumbnails[0] + 0.08
    assert len(set(find_groups(["r/0.jpg", "r/1.jpg", "r/2.jpg"], thumbnails))) == 3


@pytest.mark.parametrize(
    ("pattern", "said"),
    [("(", "not a regular expression"), (r"\d+", "captures nothing"), ("(zebra)", "matches none")],
)
def test_a_useless_identity_pattern_is_refused(pattern: str, said: str) -> None:
    with pytest.raises(OptionError, match=said):
        find_groups(["real/1.jpg"], different(1), identity_pattern=pattern)


def test_no_group_lies_on_both_sides() -> None:
    rng = np.random.default_rng(1)
    groups = tuple(f"g{number}" for number in rng.integers(0, 40, 400))
    held_out = split_by_group(groups, 0.2, seed=0)
    assert 0.12 < held_out.mean() <= 0.2
    assert not {g for g, out in zip(groups, held_out, strict=True) if out} & {
        g for g, out in zip(groups, held_out, strict=True) if not out
    }


def test_a_split_follows_the_seed_and_survives_new_data() -> None:
    groups = tuple(f"g{number}" for number in range(100))
    first = split_by_group(groups, 0.2, seed=0)
    assert np.array_equal(first, split_by_group(groups, 0.2, seed=0))
    assert not np.array_equal(first, split_by_group(groups, 0.2, seed=1))
    grown = split_by_group((*groups, "new1", "new2"), 0.2, seed=0)
    assert (first != grown[:100]).sum() <= 2


def test_one_group_cannot_be_split() -> None:
    with pytest.raises(OptionError, match=r"all 3 faces belong to one .*'only'"):
        split_by_group(("only",) * 3, 0.2, seed=0)
