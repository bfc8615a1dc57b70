"""A run yields one result for every input, whatever the server does meanwhile."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import cv2
import pytest
from media import astronaut
from rich.console import Console
from verdicts import MODEL, inconclusive, verdict

from deepfake_client import AnalyzeOptions, DeepfakeClient
from deepfake_client.cli.analyze import MAX_SERVER_FAILURES, AnalyzeRun
from deepfake_client.cli.progress import RunProgress
from deepfake_client.result.journal import Journal
from deepfake_client.result.outcome import Outcome
from deepfake_client.result.verdict import Reason
from deepfake_client.sources import inputs
from deepfake_client.sources.inputs import name_of
from deepfake_client.transport.protocol import ServedModel
from deepfake_client.transport.testing import FakeTransport
from deepfake_preprocess.contract.spec import ModelSpec
from deepfake_preprocess.errors import (
    DeepfakeError,
    MissingExtraError,
    ModelNotFoundError,
    OptionError,
    ServerUnavailableError,
)
from deepfake_preprocess.media.opening import Media, open_media

SPEC = ModelSpec(name=MODEL.name, architecture="timm:x", checkpoint_sha256=MODEL.checkpoint_sha256)


class FlakyClient:
    """Fails an input as often as `failures` says, with an error the first time and a cut-off verdict after that."""

    def __init__(self, failures: dict[str, int]) -> None:
        self.failures = failures
        self.asked: list[str] = []

    def model(self) -> ServedModel:
        return ServedModel(SPEC.name, SPEC.version, SPEC, 8)

    def analyze_many(self, sources: Iterable[str | Media], **options: Any) -> Iterator[Outcome]:
        for item in sources:
            source = str(name_of(item))
            self.asked.append(Path(source).name)
            left = self.failures.get(Path(source).name, 0)
            self.failures[Path(source).name] = left - 1
            if left <= 0:
                yield Outcome(source, verdict=verdict(source))
            elif left % 2:
                yield Outcome(source, error=ServerUnavailableError("nothing answers"))
            else:
                yield Outcome(source, verdict=inconclusive(source, Reason.SERVER_UNAVAILABLE))


@pytest.fixture
def images(tmp_path: Path) -> list[str]:
    paths = [tmp_path / f"{name}.jpg" for name in "abcdef"]
    for path in paths:
        cv2.imwrite(str(path), astronaut()[:64, :64])
    return [str(path) for path in paths]


class Server:
    """Stands for a `ServerChoice` whose client is `client`, or that raises."""

    takes_media = True

    def __init__(self, client: FlakyClient | DeepfakeError | None) -> None:
        self._client = client

    @contextmanager
    def client(self, waiting_for: object) -> Iterator[FlakyClient]:
        assert self._client is not None, "a server was asked"
        if isinstance(self._client, DeepfakeError):
            raise self._client
        yield self._client


def run_of(client: FlakyClient | DeepfakeError | None, sources: list[str], *, resume: bool = False) -> AnalyzeRun:
    server: Any = Server(client)
    progress = RunProgress(Console(), len(sources), visible=False)
    return AnalyzeRun(sources, server, AnalyzeOptions(), progress, concurrency=1, resume=resume)


def run(client: FlakyClient | DeepfakeError | None, sources: list[str]) -> dict[str, Outcome]:
    found = [result.outcome for result in run_of(client, sources).results()]
    by_name = {Path(outcome.source).name: outcome for outcome in found}
    assert len(by_name) == len(found), "one result for each input"
    return by_name


def test_what_the_server_failed_is_tried_again_when_it_is_back(images: list[str]) -> None:
    client = FlakyClient({"b.jpg": 1, "d.jpg": 1})
    found = run(client, images)
    assert client.asked == [f"{name}.jpg" for name in "abcdefbd"]
    assert set(found) == set(client.asked)
    assert not any(outcome.server_failed for outcome in found.values())


def test_what_the_server_fails_twice_is_reported_with_what_was_scored(images: list[str]) -> None:
    found = run(FlakyClient({"b.jpg": 3}), images)
    assert [name for name, outcome in found.items() if outcome.server_failed] == ["b.jpg"]
    assert found["b.jpg"].verdict is not None


def test_a_server_that_is_gone_is_not_asked_for_every_input(images: list[str]) -> None:
    client = FlakyClient({f"{name}.jpg": 9 for name in "bcdef"})
    found = run(client, images)
    assert client.asked == ["a.jpg", "b.jpg", "c.jpg", "d.jpg"]
    assert len(client.asked) == 1 + MAX_SERVER_FAILURES
    assert set(found) == {f"{name}.jpg" for name in "abcdef"}
    assert not found["a.jpg"].server_failed
    assert "not analyzed" in str(found["f.jpg"].error)


def test_what_is_tried_again_later_is_not_lost_by_an_interruption(images: list[str]) -> None:
    interrupted = run_of(FlakyClient({"a.jpg": 1}), images)
    results = interrupted.results()
    assert Path(next(results).outcome.source).name == "b.jpg"
    results.close()
    assert [Path(outcome.source).name for outcome in interrupted.unsettled] == ["a.jpg"]


def test_no_server_is_asked_when_nothing_can_be_opened(tmp_path: Path) -> None:
    found = run(None, [str(tmp_path / "x.mp4"), str(tmp_path / "y.mp4")])
    assert [type(outcome.error).__name__ for outcome in found.values()] == ["MediaNotFoundError"] * 2


def test_a_server_that_never_answers_is_the_result_of_every_input(images: list[str], tmp_path: Path) -> None:
    found = run(ServerUnavailableError("nothing answers"), [str(tmp_path / "x.mp4"), *images])
    assert not found["x.mp4"].server_failed
    assert sum(outcome.server_failed for outcome in found.values()) == len(images)


@pytest.mark.parametrize("kind", [OptionError, ModelNotFoundError, MissingExtraError])
def test_what_is_not_the_servers_failure_ends_the_run(images: list[str], kind: type[DeepfakeError]) -> None:
    with pytest.raises(kind, match="as said"):
        run(kind("as said"), images)


def test_every_file_is_opened_once_though_the_first_is_looked_at_before_the_server_is_asked(
    images: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    opened: list[str] = []

    def counted(source: Any, **options: Any) -> Media:
        opened.append(str(source))
        return open_media(source, **options)

    monkeypatch.setattr(inputs, "open_media", counted)
    with DeepfakeClient(FakeTransport()) as client, run_of(client, images) as whole:  # type: ignore[arg-type]
        looked_at: list[int] = []
        whole.on_verdict = lambda verdict, media, spec: looked_at.append(next(media.frames()).width_px)
        assert len(list(whole.results())) == len(images)
    assert sorted(opened) == sorted(images)
    assert looked_at == [64] * len(images), "and is open until it was looked at"


def test_a_resumed_run_analyzes_what_is_missing_only(images: list[str], tmp_path: Path) -> None:
    path = tmp_path / "run.jsonl"

    def kept(client: FlakyClient, sources: list[str], *, resume: bool) -> int:
        again = run_of(client, sources, resume=resume)
        with Journal(path, {}) as again.journal:
            reused = 0
            for result in again.results():
                reused += result.reused
                if not result.reused:
                    again.journal.append(result.outcome)
        return reused

    first = FlakyClient({"c.jpg": 9, "d.jpg": 9, "e.jpg": 9})
    assert kept(first, images[:5], resume=False) == 0
    second = FlakyClient({})
    assert kept(second, images, resume=True) == 2
    assert second.asked == ["c.jpg", "d.jpg", "e.jpg", "f.jpg"]
    third = FlakyClient({})
    assert kept(third, images, resume=True) == 6
    assert third.asked == []
    assert kept(third, images[:1], resume=False) == 0
    with Journal(path, {}) as journal:
        assert sorted(outcome.source for outcome in journal.outcomes) == images
