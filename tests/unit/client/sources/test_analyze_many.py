"""`analyze_many`: outcomes as they finish, in order on request, and nothing left behind when it is cut off."""

from __future__ import annotations

import asyncio
import io
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import aclosing
from pathlib import Path

import cv2
import numpy as np
import pytest
from fixed_detector import LEFT, FixedDetector
from media import write_video
from numpy.typing import NDArray

from deepfake_client import (
    AnalyzeOptions,
    AsyncDeepfakeClient,
    DeepfakeClient,
    MediaNotFoundError,
    MediaOpenError,
    OptionError,
    Progress,
    Sampling,
    ServedModel,
    open_frames,
    open_media,
)
from deepfake_client.transport.testing import FakeTransport

FEW = Sampling(num_frames=2)


class Gated(FakeTransport):
    """Answers for a brightness only after it was let through; notes how many requests waited at once."""

    def __init__(self) -> None:
        super().__init__()
        self.waiting = 0
        self.most_waiting = 0
        self.cancelled = 0
        self.arrived = threading.Condition()
        self._loop: asyncio.AbstractEventLoop | None = None
        self._gates: dict[int, asyncio.Event] = {}

    async def infer(
        self, model: ServedModel, faces: NDArray[np.uint8], *, timeout_s: float | None = None
    ) -> NDArray[np.float32]:
        self._loop = asyncio.get_running_loop()
        gate = self._gates.setdefault(int(np.median(faces)), asyncio.Event())
        with self.arrived:
            self.waiting += 1
            self.most_waiting = max(self.most_waiting, self.waiting)
            self.arrived.notify_all()
        try:
            await gate.wait()
        except asyncio.CancelledError:
            self.cancelled += 1
            raise
        finally:
            self.waiting -= 1
        return await super().infer(model, faces, timeout_s=timeout_s)

    def let_through(self, brightness: int) -> None:
        gate = self._gates.setdefault(brightness, asyncio.Event())
        if self._loop is None:
            gate.set()
        else:
            self._loop.call_soon_threadsafe(gate.set)

    def wait_for(self, count: int) -> None:
        with self.arrived:
            assert self.arrived.wait_for(lambda: self.waiting >= count, timeout=30)


def image(brightness: int) -> NDArray[np.uint8]:
    return np.full((60, 80, 3), brightness, np.uint8)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """a.png, b.mp4, c.jpg, and in a folder below d.png; text.mp4 cannot be opened."""
    root = tmp_path_factory.mktemp("many")
    (root / "below").mkdir()
    cv2.imwrite(str(root / "a.png"), image(10))
    write_video(root / "b.mp4", [image(60)] * 5)
    cv2.imwrite(str(root / "c.jpg"), image(120))
    cv2.imwrite(str(root / "below" / "d.png"), image(250))
    (root / "text.mp4").write_text("no video")
    (root / "notes.txt").write_text("no media")
    return root


@pytest.fixture
def client() -> Iterator[DeepfakeClient]:
    with DeepfakeClient(FakeTransport(), detector=FixedDetector(LEFT)) as client:
        yield client


def test_a_directory_yields_an_outcome_for_each_file_and_the_error_of_the_unreadable(
    client: DeepfakeClient, folder: Path
) -> None:
    outcomes = list(client.analyze_many(folder, ordered=True, options=AnalyzeOptions(sampling=FEW)))
    names = ["a.png", "b.mp4", "below/d.png", "c.jpg", "text.mp4"]
    assert [Path(outcome.source).relative_to(folder).as_posix() for outcome in outcomes] == names
    assert isinstance(outcomes[-1].error, MediaOpenError)
    for outcome in outcomes[:-1]:
        assert outcome.verdict is not None
        assert outcome.verdict.source == outcome.source
        assert (
            outcome.verdict.fake_probability
            == client.analyze(outcome.source, options=AnalyzeOptions(sampling=FEW)).fake_probability
        )


def test_patterns_lists_and_everything_that_analyze_takes(client: DeepfakeClient, folder: Path) -> None:
    def sources(path: str) -> list[str]:
        return [
            Path(outcome.source).name
            for outcome in client.analyze_many(path, ordered=True, options=AnalyzeOptions(sampling=FEW))
        ]

    assert sources(f"{folder}/*.p?g") == ["a.png"]
    assert sources(str(folder / "c.jpg")) == ["c.jpg"]
    with open_media(folder / "b.mp4") as media, (folder / "b.mp4").open("rb") as file:
        mixed = [
            folder / "below", f"{folder}/none*.mp4", folder / "missing.mp4", media, file, io.BytesIO(b"?"),
            (folder / "a.png").read_bytes(), image(200), (image(value) for value in (1, 2)), 7,
            open_frames([image(3)], name="camera"),
        ]  # fmt: skip
        outcomes = list(client.analyze_many(mixed, ordered=True, options=AnalyzeOptions(sampling=FEW)))
    kinds = [(Path(item.source).name, type(item.error).__name__ if item.error else item.verdict) for item in outcomes]
    assert [(name, kind if isinstance(kind, str) else "verdict") for name, kind in kinds] == [
        ("d.png", "verdict"), ("none*.mp4", "MediaNotFoundError"), ("missing.mp4", "MediaNotFoundError"),
        ("b.mp4", "verdict"), ("b.mp4", "verdict"), ("source 5", "MediaOpenError"), ("source 6", "verdict"),
        ("source 7", "verdict"), ("source 8", "verdict"), ("source 9", "MediaOpenError"), ("camera", "verdict"),
    ]  # fmt: skip


def test_outcomes_come_as_they_finish(folder: Path) -> None:
    slow, quick = str(folder / "a.png"), str(folder / "c.jpg")
    transport = Gated()
    transport.let_through(120)
    with DeepfakeClient(transport, detector=FixedDetector(LEFT)) as client:
        outcomes = client.analyze_many([slow, quick], concurrency=2)
        assert next(outcomes).source == quick
        transport.let_through(10)
        assert [outcome.source for outcome in outcomes] == [slow]


def test_or_in_the_order_of_the_inputs(folder: Path) -> None:
    slow, quick = str(folder / "a.png"), str(folder / "c.jpg")
    finished: list[str] = []

    def note(name: str, progress: Progress) -> None:
        finished.append(name)
        transport.let_through(10)

    transport = Gated()
    transport.let_through(120)
    with DeepfakeClient(transport, detector=FixedDetector(LEFT)) as client:
        outcomes = client.analyze_many([slow, quick], concurrency=2, ordered=True, on_progress=note)
        assert [outcome.source for outcome in outcomes] == [slow, quick]
    assert finished == [quick, slow]


def test_inputs_are_read_only_as_far_as_they_are_started() -> None:
    taken: list[int] = []

    def endless() -> Iterator[NDArray[np.uint8]]:
        while True:
            taken.append(len(taken))
            yield image(30)

    transport = Gated()
    with DeepfakeClient(transport, detector=FixedDetector(LEFT)) as client:
        outcomes = client.analyze_many(endless(), concurrency=3)
        assert taken == []
        reader = threading.Thread(target=next, args=(outcomes,))
        reader.start()
        transport.wait_for(3)
        assert taken == [0, 1, 2]
        transport.let_through(30)
        reader.join(30)
        assert transport.most_waiting == 3
        outcomes.close()


def test_leaving_the_loop_cancels_what_is_under_way_and_leaves_no_thread() -> None:
    before = set(threading.enumerate())
    transport = Gated()
    transport.let_through(10)
    with DeepfakeClient(transport, detector=FixedDetector(LEFT)) as client:
        for outcome in client.analyze_many([image(10), image(90), image(91)], concurrency=3):
            assert outcome.source == "source 0"
            transport.wait_for(2)
            break
        assert transport.cancelled == 2
        assert transport.waiting == 0
    leftover = [thread for thread in set(threading.enumerate()) - before if not thread.name.startswith("asyncio_")]
    for thread in leftover:
        thread.join(30)  # nobody waits for the one that takes items, which ends by itself
    assert [thread for thread in leftover if thread.is_alive()] == []


def test_closing_the_client_ends_a_loop_that_was_left_standing(folder: Path) -> None:
    transport = Gated()
    transport.let_through(10)
    client = DeepfakeClient(transport, detector=FixedDetector(LEFT))
    outcomes = client.analyze_many([image(10), image(90)], concurrency=2)
    next(outcomes)
    transport.wait_for(1)
    client.close()
    assert transport.cancelled == 1
    outcomes.close()


def test_an_interrupt_while_waiting_cancels_cleanly() -> None:
    transport = Gated()

    def interrupt() -> None:
        transport.wait_for(2)
        signal.pthread_kill(threading.main_thread().ident or 0, signal.SIGINT)

    with DeepfakeClient(transport, detector=FixedDetector(LEFT)) as client:
        outcomes = client.analyze_many([image(90), image(91)], concurrency=2)
        helper = threading.Thread(target=interrupt)
        helper.start()
        with pytest.raises(KeyboardInterrupt):
            next(outcomes)
        helper.join()
        assert transport.cancelled == 2
        transport.let_through(10)
        assert client.analyze(image(10)).fake_probability is not None, "the client still works"


def test_a_wrong_option_raises_at_once(client: DeepfakeClient, folder: Path) -> None:
    with pytest.raises(OptionError, match="`concurrency` must be at least 1"):
        client.analyze_many(folder, concurrency=0)
    for single in (b"data", io.BytesIO(), image(1), 7):
        with pytest.raises(OptionError, match="put it into a list"):
            client.analyze_many(single)  # type: ignore[arg-type]


def test_an_error_of_the_callers_iterable_comes_after_what_was_under_way(client: DeepfakeClient) -> None:
    def broken() -> Iterator[NDArray[np.uint8]]:
        yield image(10)
        raise RuntimeError("the list of files is gone")

    outcomes = client.analyze_many(broken())
    assert next(outcomes).verdict is not None
    with pytest.raises(RuntimeError, match="list of files"):
        next(outcomes)


def test_an_empty_directory_is_an_outcome_and_progress_names_the_input(
    client: DeepfakeClient, tmp_path: Path
) -> None:
    (outcome,) = client.analyze_many(tmp_path)
    assert isinstance(outcome.error, MediaNotFoundError)
    assert list(client.analyze_many([])) == []
    seen: list[tuple[str, int]] = []
    list(
        client.analyze_many([image(4)], on_progress=lambda name, progress: seen.append((name, progress.frames_done)))
    )
    assert seen == [("source 0", 1)]


def test_the_async_client_has_it_too(folder: Path) -> None:
    async def names() -> list[str]:
        async with (
            AsyncDeepfakeClient(FakeTransport(), detector=FixedDetector(LEFT)) as client,
            aclosing(client.analyze_many(folder, options=AnalyzeOptions(sampling=FEW), concurrency=4)) as outcomes,
        ):
            return [Path(outcome.source).name async for outcome in outcomes]

    assert sorted(asyncio.run(names())) == ["a.png", "b.mp4", "c.jpg", "d.png", "text.mp4"]


def test_the_client_needs_no_torch() -> None:
    code = (
        "import sys, numpy as np\n"
        "from deepfake_client import DeepfakeClient\n"
        "from deepfake_client.transport.testing import FakeTransport\n"
        "with DeepfakeClient(FakeTransport()) as client:\n"
        "    client.analyze(np.zeros((64, 64, 3), np.uint8))\n"
        "assert 'torch' not in sys.modules\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)
