"""A journal keeps what is done, whatever happens to the run that writes it."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest
from verdicts import MODEL, inconclusive, verdict

from deepfake_client.result.journal import Journal
from deepfake_client.result.outcome import Outcome
from deepfake_client.result.verdict import ModelIdentity, Reason
from deepfake_preprocess.errors import MediaOpenError, OptionError

SETTINGS = {"aggregation": "mean", "threshold": None, "sampling": {"num_frames": 32}}


@pytest.fixture
def clips(tmp_path: Path) -> list[str]:
    paths = [tmp_path / name for name in ("a.mp4", "b.mp4", "c.mp4")]
    for path in paths:
        path.write_bytes(path.name.encode())
    return [str(path) for path in paths]


def keep(path: Path, *outcomes: Outcome, settings: dict[str, object] = SETTINGS) -> None:
    with Journal(path, settings) as journal:
        for outcome in outcomes:
            journal.begin(outcome.source)
            journal.append(outcome)


def done(source: str, score: float = 0.9) -> Outcome:
    return Outcome(source, verdict=verdict(source, score=score))


def lines(path: Path) -> list[str]:
    return [json.loads(line)["source"] for line in path.read_text().splitlines()]


def test_a_verdict_is_used_again_only_when_nothing_has_changed(tmp_path: Path, clips: list[str]) -> None:
    path = tmp_path / "results" / "run.jsonl"
    keep(path, done(clips[0]))
    with Journal(path, SETTINGS) as journal:
        known = journal.reusable(clips[0], MODEL)
        assert known is not None
        assert known.to_dict() == done(clips[0]).to_dict()
        assert journal.reusable(clips[1], MODEL) is None
        assert journal.reusable(clips[0], ModelIdentity("tiny", 1, "1" * 64)) is None
    with Journal(path, SETTINGS | {"threshold": 0.7}) as journal:
        assert journal.reusable(clips[0], MODEL) is None
    Path(clips[0]).write_bytes(b"longer than before")
    with Journal(path, SETTINGS) as journal:
        assert journal.reusable(clips[0], MODEL) is None


def test_a_change_of_time_alone_is_a_change(tmp_path: Path, clips: list[str]) -> None:
    keep(tmp_path / "run.jsonl", done(clips[0]))
    os.utime(clips[0], ns=(1, 1))
    with Journal(tmp_path / "run.jsonl", SETTINGS) as journal:
        assert journal.reusable(clips[0], MODEL) is None


def test_failures_are_not_used_again_but_inconclusive_answers_are(tmp_path: Path, clips: list[str]) -> None:
    path = tmp_path / "run.jsonl"
    keep(
        path,
        Outcome(clips[0], error=MediaOpenError("a.mp4 is empty")),
        Outcome(clips[1], verdict=inconclusive(clips[1], Reason.SERVER_UNAVAILABLE)),
        Outcome(clips[2], verdict=inconclusive(clips[2], Reason.NO_FACE)),
    )
    with Journal(path, SETTINGS) as journal:
        assert [journal.reusable(clip, MODEL) is not None for clip in clips] == [False, False, True]
        assert len(journal.outcomes) == 3


def test_an_input_that_changed_during_its_analysis_is_analyzed_again(tmp_path: Path, clips: list[str]) -> None:
    with Journal(tmp_path / "run.jsonl", SETTINGS) as journal:
        journal.begin(clips[0])
        Path(clips[0]).write_bytes(b"it grew meanwhile")
        journal.append(done(clips[0]))
    with Journal(tmp_path / "run.jsonl", SETTINGS) as journal:
        assert journal.reusable(clips[0], MODEL) is None


def test_the_last_result_counts_and_one_line_is_left(tmp_path: Path, clips: list[str]) -> None:
    path = tmp_path / "run.jsonl"
    keep(path, done(clips[0], 0.2), done(clips[1]))
    keep(path, done(clips[0], 0.8))
    assert sorted(lines(path)) == clips[:2]
    with Journal(path, SETTINGS) as journal:
        known = journal.reusable(clips[0], MODEL)
    assert known is not None
    assert known.verdict is not None
    assert known.verdict.fake_probability == 0.8


def test_results_are_on_disk_before_the_journal_is_closed(tmp_path: Path, clips: list[str]) -> None:
    with Journal(tmp_path / "run.jsonl", SETTINGS) as journal:
        journal.append(done(clips[0]))
        assert lines(tmp_path / "run.jsonl") == clips[:1]


@pytest.mark.parametrize("kept_bytes", [1, 12, 200, -1])
def test_a_line_torn_by_a_crash_costs_that_line_only(tmp_path: Path, clips: list[str], kept_bytes: int) -> None:
    path = tmp_path / "run.jsonl"
    keep(path, done(clips[0]))
    whole = path.read_bytes()
    path.write_bytes(whole + whole[:kept_bytes].replace(b"a.mp4", b"b.mp4"))
    complete = kept_bytes == -1  # only the newline is missing
    keep(path, done(clips[2]))
    assert lines(path) == [clips[0], *clips[1:2] * complete, clips[2]]


def test_a_file_that_begins_with_a_torn_line_is_empty(tmp_path: Path, clips: list[str]) -> None:
    path = tmp_path / "run.jsonl"
    path.write_text('{"source": "a.mp4", "lab')
    keep(path, done(clips[1]))
    assert lines(path) == clips[1:2]


@pytest.mark.parametrize(
    "text", ["my diary\n", "my diary", '{"a": 1}\n', '{"source": "x"}\n{"source": "y"}\n', "[]\n"]
)
def test_another_file_is_refused_and_left_alone(tmp_path: Path, text: str) -> None:
    path = tmp_path / "diary.txt"
    path.write_text(text)
    with pytest.raises(OptionError, match=r"line 1 of .*diary.txt is not a result"):
        Journal(path, SETTINGS)
    assert path.read_text() == text


def test_two_runs_do_not_write_one_file(tmp_path: Path) -> None:
    with (
        Journal(tmp_path / "run.jsonl", SETTINGS),
        pytest.raises(OptionError, match="another run is writing"),
    ):
        Journal(tmp_path / "run.jsonl", SETTINGS)


def test_a_place_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(OptionError, match="cannot be written"):
        Journal(tmp_path / "file" / "run.jsonl", SETTINGS)


def test_names_that_are_not_utf8_survive(tmp_path: Path) -> None:
    name = os.fsdecode(b"caf\xe9.mp4")
    keep(tmp_path / "run.jsonl", Outcome(name, error=MediaOpenError("it is empty")))
    with Journal(tmp_path / "run.jsonl", SETTINGS) as journal:
        assert [outcome.source for outcome in journal.outcomes] == [name]
