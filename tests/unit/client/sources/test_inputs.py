"""What cannot be used as an input is one typed error, for this input alone."""

from __future__ import annotations

import io
import os
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from fixed_detector import LEFT, FixedDetector

from deepfake_client import DeepfakeClient, InputError, MediaNotFoundError, MediaOpenError, open_frames
from deepfake_client.sources import inputs
from deepfake_client.sources.inputs import name_of
from deepfake_client.transport.testing import FakeTransport

PICTURE = np.zeros((48, 64, 3), np.uint8)


@pytest.fixture(scope="module")
def client() -> Iterator[DeepfakeClient]:
    with DeepfakeClient(FakeTransport(), detector=FixedDetector(LEFT)) as client:
        yield client


class Upload:
    """As web frameworks have it: read with await, and without a word about seeking."""

    filename = "folder/upload.mp4"

    async def read(self, size: int = -1) -> bytes:
        return b""

    async def seek(self, offset: int) -> None:
        return None


class Reader:
    """A file of sorts that gives, or raises, what it is told to."""

    def __init__(self, answer: object) -> None:
        self.answer = answer

    def read(self, size: int = -1) -> object:
        if isinstance(self.answer, Exception):
            raise self.answer
        return self.answer

    def seek(self, offset: int) -> int:
        return offset

    @property
    def name(self) -> str:
        raise ValueError("a property that fails")


def closed_file() -> object:
    with tempfile.TemporaryFile() as file:
        return file


def used_media() -> object:
    media = open_frames([PICTURE])
    media.close()
    return media


def failing_frames() -> Iterator[np.ndarray]:
    yield PICTURE
    raise OSError("the camera is gone")


@pytest.fixture
def odd_inputs(tmp_path: Path) -> Iterator[list[tuple[Any, str]]]:
    """Inputs, and words of the error that each must give."""
    pipe, loop = tmp_path / "pipe.mp4", tmp_path / "loop.mp4"
    os.mkfifo(pipe)
    loop.symlink_to(loop)
    with open(os.devnull, "wb") as writer:  # noqa: PTH123
        yield [
            ("", "the path is empty"),
            ("x" * 300, "File name too long"),
            ("a\0b.mp4", "null byte"),
            (pipe, "is a pipe"),
            ("/dev/zero", "is a device"),
            (loop, "symbolic links"),
            (tmp_path, "is a folder"),
            (Upload(), "upload.mp4 can only be read with await"),
            (io.StringIO("text"), "is open as text"),
            (closed_file(), "is a closed file"),
            (writer, "is open for writing only"),
            (Reader("text"), "gives str and not bytes"),
            (Reader(KeyError("a reader that fails")), "raised KeyError: 'a reader that fails'"),
            (used_media(), "were used already"),
            (failing_frames(), "raised OSError: the camera is gone"),
            (None, "got a NoneType"),
            (15, "got a int"),
            ([], "there are no frames"),
        ]


def test_every_odd_input_is_an_error_of_ours(client: DeepfakeClient, odd_inputs: list[tuple[Any, str]]) -> None:
    for source, words in odd_inputs:
        with pytest.raises(InputError) as caught:
            client.analyze(source)
        assert words in str(caught.value)


def test_a_run_goes_on_after_every_odd_input(client: DeepfakeClient, odd_inputs: list[tuple[Any, str]]) -> None:
    odd = [source for source, _ in odd_inputs]
    outcomes = list(client.analyze_many([PICTURE, *odd, PICTURE], ordered=True))
    assert len(outcomes) == len(odd) + 2
    assert all(isinstance(outcome.error, InputError) for outcome in outcomes[1:-1])
    assert outcomes[0].verdict is not None
    assert outcomes[-1].verdict is not None


def test_a_path_that_cannot_be_watched_is_refused_at_once(client: DeepfakeClient, tmp_path: Path) -> None:
    pipe = tmp_path / "pipe.ts"
    os.mkfifo(pipe)
    for path, error in (("", MediaNotFoundError), ("x" * 300, MediaOpenError), (pipe, MediaOpenError)):
        with pytest.raises(error):
            client.watch(path)


def test_frames_that_raise_while_they_are_watched_end_it_with_an_error_of_ours(client: DeepfakeClient) -> None:
    with pytest.raises(MediaOpenError, match="the camera is gone"):
        list(client.watch(failing_frames()))


def test_inputs_are_called_by_names_that_people_gave_them(tmp_path: Path) -> None:
    (tmp_path / "a.mp4").write_bytes(b"")
    with (
        tempfile.TemporaryFile() as unnamed,
        tempfile.SpooledTemporaryFile() as spooled,
        (tmp_path / "a.mp4").open() as file,
    ):
        assert [name_of(source) for source in (unnamed, spooled, file)] == [None, None, "a.mp4"]  # type: ignore[arg-type]
    assert name_of(Upload()) == "upload.mp4"  # type: ignore[arg-type]
    assert name_of(Reader(b"")) is None  # type: ignore[arg-type]


def test_an_empty_path_is_not_the_current_folder(
    client: DeepfakeClient, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "a.png").write_bytes(b"no picture")
    monkeypatch.chdir(tmp_path)
    (outcome,) = client.analyze_many("")
    assert isinstance(outcome.error, MediaNotFoundError)


def test_folders_are_searched_for_all_kinds_of_media_and_the_rest_is_named(tmp_path: Path) -> None:
    endings = "mp4 gif heic avif m2ts vob mxf ogg f4v qt jfif apng tiff bmp m2v mpe divx 3g2 h264 JPG".split()  # noqa: SIM905
    for ending in (*endings, "txt", "docx"):
        (tmp_path / f"a.{ending}").touch()
    (tmp_path / "README").touch()
    (tmp_path / ".hidden").touch()
    passed_over: list[str] = []
    found = list(inputs.expand([str(tmp_path)], passed_over))
    assert sorted(Path(name).suffix[1:] for name in found) == sorted(endings)
    assert sorted(Path(name).name for name in passed_over) == ["README", "a.docx", "a.txt"]
