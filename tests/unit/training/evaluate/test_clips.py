"""Labeled clips, and their split into parts that share no person and no source."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest
from drawn_faces import TINY
from hypothesis import given
from hypothesis import strategies as st

from deepfake_client.result.verdict import FaceScore, FrameResult
from deepfake_preprocess.errors import OptionError
from deepfake_training.data.labels import LabelName
from deepfake_training.evaluate.clips import LabeledFile, labeled_files, read_table, split_files
from deepfake_training.evaluate.evaluation import EvaluateOptions, evaluate_apart
from deepfake_training.evaluate.scoring import ScoredFile

NAMES = st.sampled_from("abcdefgh")
CLIPS = st.lists(
    st.builds(
        lambda number, label, source, people: LabeledFile(
            Path(f"{number}.mp4"), label, source, tuple(sorted(people))
        ),
        st.integers(0, 999),
        st.sampled_from(("real", "fake")),
        st.sampled_from(("", "tv", "web", "phone", "dfdc")),
        st.sets(NAMES, max_size=2),
    ),
    max_size=30,
)


@given(CLIPS, st.floats(0.2, 0.8))
def test_no_person_and_no_source_is_in_both_parts(clips: list[LabeledFile], share: float) -> None:
    try:
        parts = split_files(clips, share)
    except OptionError:
        return  # one label is left to one part only
    assert sorted(map(str, [*parts[0], *parts[1]])) == sorted(map(str, clips))
    people, sources = (
        [{value for clip in part for value in of(clip)} - {""} for part in parts]
        for of in (lambda clip: clip.people, lambda clip: (clip.source,))
    )
    assert not people[0] & people[1]
    assert not sources[0] & sources[1]
    assert all({clip.label for clip in part} == {"real", "fake"} for part in parts)


def test_parts_have_about_the_share_that_is_wanted() -> None:
    clips = [
        LabeledFile(Path(f"{number}.mp4"), "fake" if number % 3 == 0 else "real", people=(f"p{number // 2}",))
        for number in range(60)
    ]
    choosing, reported = split_files(clips, 0.5)
    assert len(choosing) == len(reported) == 30
    assert sum(clip.label == "fake" for clip in choosing) == 10
    assert split_files(clips, 0.5) == (choosing, reported)
    assert len(split_files(clips, 0.2)[0]) == pytest.approx(12, abs=1)
    with pytest.raises(OptionError, match=r"4 clips are of 1 groups .* no real one is left to choose on|to report"):
        split_files([LabeledFile(Path(f"{n}.mp4"), label, "tv") for n in (1, 2) for label in ("real", "fake")], 0.5)
    with pytest.raises(OptionError, match="strictly between 0 and 1"):
        split_files(clips, 1.0)


def test_a_table_says_who_is_in_a_clip(tmp_path: Path) -> None:
    (tmp_path / "web").mkdir()
    for name in ("a.mp4", "web/b.mp4"):
        (tmp_path / name).touch()
    table = tmp_path / "clips.csv"
    table.write_text("path,label,source,people,note\na.mp4,real,tv,519;515,x\nweb/b.mp4,Fake,,,\n")
    assert read_table(table) == [
        LabeledFile(tmp_path / "a.mp4", "real", "tv", ("515", "519")),
        LabeledFile(tmp_path / "web" / "b.mp4", "fake", "web"),
    ]
    for text, said in (
        ("path,label\na.mp4,maybe\n", "line 2 of .* has the path 'a.mp4' and the label 'maybe'"),
        ("path,label\na.mp4,real\nc.mp4,real\n", "line 3 of .* names 'c.mp4', and there is no such file"),
        ("path,label\n", "names no clip"),
        ("file;label\na.mp4;real\n", "line 2 of .* has the path ''"),
    ):
        table.write_text(text)
        with pytest.raises(OptionError, match=said):
            read_table(table)
    with pytest.raises(OptionError, match="cannot be read as CSV"):
        read_table(tmp_path / "missing.csv")
    with pytest.raises(OptionError, match="is named as real and as `fake`"):
        labeled_files([tmp_path / "a.mp4"], [tmp_path / "a.mp4"])


def scored(label: LabelName, *probabilities: float) -> list[ScoredFile]:
    return [
        ScoredFile(
            f"{label}{number}", label, score,
            frames=(FrameResult(0, 0.0, (FaceScore(0, (0.0, 0.0, 9.0, 9.0), 1.0, score),)),),
        )
        for number, score in enumerate(probabilities)
    ]  # fmt: skip


def test_what_was_chosen_on_some_files_is_reported_on_others() -> None:
    spec = dataclasses.replace(TINY, threshold=0.5)
    choosing = [*scored("real", 0.1, 0.2, 0.3, 0.75), *scored("fake", 0.7, 0.8, 0.9, 0.85)]
    reported = [*scored("real", 0.2, 0.6), *scored("fake", 0.65, 0.9)]
    options = EvaluateOptions(resamples=0)
    evaluation = evaluate_apart(choosing, reported, spec, options, through="server")
    assert evaluation.per_file.num_real == 2
    assert evaluation.per_file.threshold != 0.5
    assert evaluation.per_file.threshold == pytest.approx(evaluation.found["threshold (max-accuracy)"], abs=1e-4)
    assert "temperature and threshold were chosen on 8 other files" in evaluation.notes
    guessing = [*scored("real", 0.1, 0.9), *scored("fake", 0.1, 0.9)]
    kept = evaluate_apart(guessing, reported, spec, options, through="server")
    assert kept.per_file.threshold == 0.5
    assert any("those of the model were kept: on the 4 files to choose on" in note for note in kept.notes)
