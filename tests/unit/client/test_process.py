"""A client and the process that it lives in: forks, the end, pickling, calls from its own callbacks, closing."""

from __future__ import annotations

import asyncio
import copy
import pickle
import subprocess
import sys
import textwrap
import threading
from collections.abc import Callable, Iterator

import numpy as np
import pytest
from numpy.typing import NDArray

from deepfake_client import (
    AnalyzeOptions,
    AsyncDeepfakeClient,
    ClientUseError,
    Connection,
    DeepfakeClient,
    DeepfakeError,
)
from deepfake_client.transport.testing import FakeTransport

PICTURE = np.zeros((48, 64, 3), np.uint8)

PRELUDE = """
import asyncio, itertools, os, queue, sys
import numpy as np
from deepfake_client import *
from deepfake_client.transport.testing import FakeTransport
picture = np.zeros((48, 64, 3), np.uint8)

def stalling():  # some frames, and then none for ever
    yield from itertools.repeat(picture, 9)
    queue.Queue().get()

def in_child(call):
    if os.fork() == 0:
        try:
            print(call())
        except DeepfakeError as exc:
            print(type(exc).__name__)
        sys.exit(7)
    print(os.waitstatus_to_exitcode(os.wait()[1]))
"""


def run_python(code: str) -> tuple[int, list[str]]:
    """Run code after the prelude in a Python of its own, which must end by itself."""
    done = subprocess.run(
        [sys.executable, "-W", "ignore::DeprecationWarning", "-u", "-c", PRELUDE + textwrap.dedent(code)],
        capture_output=True,
        text=True,
        timeout=100,
        check=False,
    )
    assert "Traceback" not in done.stderr, done.stderr
    return done.returncode, done.stdout.split()


def test_a_forked_child_gets_an_error_and_the_parent_goes_on() -> None:
    code, out = run_python("""
        client = DeepfakeClient(FakeTransport())
        rest = client.analyze_many([picture] * 3)
        next(rest)
        in_child(lambda: client.analyze(picture))
        in_child(client.close)
        in_child(lambda: next(rest))
        in_child(lambda: client.watch([picture]))
        in_child(lambda: DeepfakeClient(FakeTransport()).analyze(picture).label.value)
        print(len(list(rest)))
    """)
    refused = ["ClientUseError", "7"]
    assert (code, out) == (0, [*refused, "None", "7", *refused, *refused, "INCONCLUSIVE", "7", "2"])


def test_an_asynchronous_client_is_refused_in_a_forked_child_too() -> None:
    code, out = run_python("""
        client = AsyncDeepfakeClient(FakeTransport())
        asyncio.run(client.model())
        in_child(lambda: asyncio.run(client.score(np.zeros((1, 224, 224, 3), np.uint8))))
        in_child(lambda: asyncio.run(client.close()))
    """)
    assert (code, out) == (0, ["ClientUseError", "7", "None", "7"])


@pytest.mark.parametrize(
    "left_open",
    [
        "client.analyze_many([picture, stalling()])",
        "client.analyze_many(stalling())",
        "client.watch(stalling(), options=WatchOptions(fps=25, step_s=0.01, min_change=0))",
    ],
)
def test_a_generator_that_is_left_open_does_not_keep_the_process(left_open: str) -> None:
    code = f"""
        client = DeepfakeClient(FakeTransport())
        results = {left_open}
        next(results)
        sys.exit(3)
    """
    assert run_python(code) == (3, [])


def test_nor_does_one_that_an_event_loop_closes_at_its_end() -> None:
    code = """
        async def main():
            client = AsyncDeepfakeClient(FakeTransport())
            await anext(client.analyze_many([picture, stalling()]))
        asyncio.run(main())
        sys.exit(3)
    """
    assert run_python(code) == (3, [])


@pytest.mark.parametrize("duplicate", [pickle.dumps, copy.copy, copy.deepcopy])
@pytest.mark.parametrize("kind", [DeepfakeClient, AsyncDeepfakeClient])
def test_a_client_cannot_be_copied(
    kind: Callable[[FakeTransport], DeepfakeClient | AsyncDeepfakeClient], duplicate: Callable[[object], object]
) -> None:
    with pytest.raises(ClientUseError, match="make one in each process"):
        duplicate(kind(FakeTransport()))


def test_what_makes_a_client_and_what_it_gives_can_be_pickled() -> None:
    with DeepfakeClient(FakeTransport()) as client:
        for value in (Connection(headers={"a": "b"}), AnalyzeOptions(), client.analyze(PICTURE)):
            assert pickle.loads(pickle.dumps(value)) == value


def test_calling_the_client_in_on_progress_is_refused_and_its_own_errors_go_through() -> None:
    with DeepfakeClient(FakeTransport()) as client:
        for call in (client.model, client.close, lambda: client.analyze(PICTURE)):
            with pytest.raises(ClientUseError, match="called from its own thread"):
                client.analyze(PICTURE, on_progress=lambda progress, call=call: call())
            with pytest.raises(ClientUseError, match="called from its own thread"):
                list(client.analyze_many([PICTURE], on_progress=lambda name, progress, call=call: call()))
        assert [
            outcome.error for outcome in client.analyze_many([PICTURE], on_verdict=lambda *_: client.model())
        ] == [None], "`on_verdict` is called in a thread of its own"
        with pytest.raises(ZeroDivisionError):
            list(client.analyze_many([PICTURE], on_progress=lambda name, progress: 1 / 0))


def test_what_ends_a_program_reaches_the_caller_and_leaves_the_client_usable() -> None:
    def leaving() -> Iterator[NDArray[np.uint8]]:
        yield PICTURE
        sys.exit(3)

    def leave(*_: object) -> None:
        sys.exit(3)

    with DeepfakeClient(FakeTransport()) as client:
        for call in (
            lambda: client.analyze(PICTURE, on_progress=leave),
            lambda: list(client.analyze_many([PICTURE] * 3, on_progress=leave)),
            lambda: list(client.analyze_many([PICTURE] * 3, on_verdict=leave)),
            lambda: client.analyze(leaving()),
            lambda: list(client.watch(leaving())),
        ):
            with pytest.raises(SystemExit):
                call()
            assert client.analyze(PICTURE).frames


def test_a_closed_client_says_so() -> None:
    client = DeepfakeClient(FakeTransport())
    left_open = client.analyze_many([PICTURE] * 3)
    next(left_open)
    client.close()
    client.close()
    for call in (
        client.model,
        lambda: client.analyze(PICTURE),
        lambda: client.analyze_many([PICTURE]),
        lambda: client.watch([PICTURE]),
        lambda: next(left_open),
    ):
        with pytest.raises(ClientUseError, match="was closed; make a new one"):
            call()


def test_a_closed_asynchronous_client_says_so() -> None:
    async def main() -> None:
        async with AsyncDeepfakeClient(FakeTransport()) as client:
            pass
        with pytest.raises(ClientUseError, match="was closed; make a new one"):
            await client.analyze(PICTURE)

    asyncio.run(main())


def test_closing_ends_a_call_of_another_thread_with_an_error_of_ours() -> None:
    asked = threading.Event()

    class Silent(FakeTransport):
        async def list_models(self) -> list[str]:
            asked.set()
            await asyncio.Event().wait()
            return []

    client = DeepfakeClient(Silent())
    errors: list[DeepfakeError] = []

    def ask() -> None:
        try:
            client.model()
        except DeepfakeError as exc:
            errors.append(exc)

    thread = threading.Thread(target=ask)
    thread.start()
    assert asked.wait(30)
    client.close()
    thread.join(30)
    assert [type(error) for error in errors] == [ClientUseError]
