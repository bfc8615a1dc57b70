"""What is tried again, how long, and what is not."""

from __future__ import annotations

import asyncio
import re
import subprocess
import sys
from dataclasses import replace

import numpy as np
import pytest
from checkout import ROOT
from numpy.typing import NDArray

from deepfake_client import NO_RETRY, Connection, DeepfakeClient, Retry, RetryingTransport, ServedModel, connect
from deepfake_client.transport.testing import FakeTransport
from deepfake_preprocess.errors import (
    InferenceError,
    ModelContractError,
    ModelNotFoundError,
    OptionError,
    ServerBusyError,
    ServerTimeoutError,
    ServerTlsError,
    ServerUnavailableError,
)
from deepfake_preprocess.support.extras import install_command

FACES = np.full((3, 224, 224, 3), 51, np.uint8)
AT_ONCE = Retry(initial_backoff_s=0, max_backoff_s=0)


def score(inner: FakeTransport, retry: Retry = AT_ONCE, *, times: int = 1) -> list[float]:
    """Describe and score `times` times, one after the other."""

    async def scenario() -> list[float]:
        transport = RetryingTransport(inner, retry)
        model = await transport.describe("fake_model")
        return [float((await transport.infer(model, FACES))[0]) for _ in range(times)]

    return asyncio.run(scenario())


@pytest.mark.parametrize("error", [ServerUnavailableError("gone"), ServerBusyError("full")])
def test_a_server_that_comes_back_loses_nothing(error):
    inner = FakeTransport(fail_after=2, error=error, num_failures=5)
    assert score(inner, times=4) == pytest.approx([0.2] * 4)
    assert (inner.failures, inner.batches) == (5, [3] * 4)


@pytest.mark.parametrize(
    "error",
    [ServerTimeoutError("late"), InferenceError("broken"), ModelContractError("other"), ServerTlsError("expired")],
)
def test_what_would_not_get_better_is_not_tried_again(error):
    inner = FakeTransport(fail_after=0, error=error)
    with pytest.raises(type(error)):
        score(inner)
    assert inner.failures == 1


def test_a_server_that_never_answered_is_given_up_at_once():
    class Nowhere(FakeTransport):
        calls = 0

        async def list_models(self) -> list[str]:
            self.calls += 1
            raise ServerUnavailableError("nobody there")

    inner = Nowhere()
    with pytest.raises(ServerUnavailableError, match=r"^nobody there$"):
        asyncio.run(RetryingTransport(inner).list_models())
    assert inner.calls == 1
    known = Retry(max_attempts=3, initial_backoff_s=0, max_backoff_s=0, from_start=True)
    with pytest.raises(ServerUnavailableError, match="tried 3 times"):
        asyncio.run(RetryingTransport(inner, known).list_models())
    assert inner.calls == 4


def test_attempts_and_time_are_bounded_and_the_error_says_how_far_it_went():
    inner = FakeTransport(fail_after=0, error=ServerUnavailableError("gone"))
    with pytest.raises(ServerUnavailableError, match=r"gone \(tried 4 times in "):
        score(inner, replace(AT_ONCE, max_attempts=4))
    assert inner.failures == 4
    inner = FakeTransport(fail_after=0, error=ServerBusyError("full"))
    with pytest.raises(ServerBusyError, match=r"full \(tried \d+ times in \d+\.\d s\)"):
        score(inner, Retry(total_s=0.05, initial_backoff_s=0.01, max_backoff_s=0.01, jitter=False))
    assert 2 <= inner.failures <= 6
    inner = FakeTransport(fail_after=0, error=ServerBusyError("full"))
    with pytest.raises(ServerBusyError, match=r"^full$"):
        score(inner, NO_RETRY)


def test_a_model_that_was_replaced_while_the_server_was_away_is_refused():
    class Replaced(FakeTransport):
        async def describe(self, model: str) -> ServedModel:
            found = await super().describe(model)
            return replace(found, spec=replace(found.spec, threshold=0.9)) if self.failures else found

    inner = Replaced(fail_after=1, error=ServerUnavailableError("gone"), num_failures=1)
    with pytest.raises(ModelContractError, match=r"replaced while it was in use: threshold was 0\.5 and is 0\.9"):
        score(inner, times=2)
    assert inner.batches == [3], "nothing may be scored by the new model"


def test_pauses_grow_to_their_bound_and_are_spread():
    even = Retry(initial_backoff_s=0.1, max_backoff_s=2, jitter=False)
    assert [even.pause_s(failures) for failures in (1, 2, 3, 6, 10_000)] == [0.1, 0.2, 0.4, 2, 2]
    drawn = [replace(even, jitter=True).pause_s(3) for _ in range(200)]
    assert min(drawn) < 0.1
    assert 0.3 < max(drawn) <= 0.4


def test_closing_ends_the_attempts():
    class Announcing(FakeTransport):
        async def infer(self, *args: object, **options: object) -> NDArray[np.float32]:
            asked.set()
            return await super().infer(*args, **options)  # type: ignore[arg-type]

    asked = asyncio.Event()

    async def scenario() -> None:
        inner = Announcing(fail_after=0, error=ServerUnavailableError("gone"))
        transport = RetryingTransport(inner, AT_ONCE)
        model = await transport.describe("fake_model")
        task = asyncio.create_task(transport.infer(model, FACES))
        await asked.wait()
        await transport.close()
        with pytest.raises(ServerUnavailableError):
            await task
        assert inner.closed

    asyncio.run(scenario())


@pytest.mark.parametrize(
    ("options", "name"),
    [
        ({"total_s": -1}, "total_s"),
        ({"max_backoff_s": float("nan")}, "max_backoff_s"),
        ({"max_attempts": 0}, "attempts"),
    ],
)
def test_numbers_out_of_range_are_refused(options, name):
    with pytest.raises(OptionError, match=name):
        Retry(**options)


def test_connect_wraps_retries_around_every_protocol_and_only_if_wanted():
    for protocol in ("grpc", "http", "grpc-shm"):
        for retry, kind in ((Retry(), True), (Retry(total_s=1), True), (NO_RETRY, False)):
            transport = connect(Connection(protocol=protocol, retry=retry))
            assert isinstance(transport, RetryingTransport) is kind
            asyncio.run(transport.close())


def test_http_without_its_extra_names_the_pip_command_and_nothing_else_needs_it():
    script = """
import sys
sys.modules["aiohttp"] = None
from deepfake_client import Connection, MissingExtraError, connect
connect(Connection(protocol="grpc-shm"))
try:
    connect(Connection(protocol="http"))
except MissingExtraError as error:
    print(error)
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout == f"'aiohttp' is not installed; run: {install_command('http')}\n"


def test_the_client_takes_the_options_of_the_connection():
    with DeepfakeClient(
        Connection(url="https://127.0.0.1:1", headers={"authorization": "Bearer x"}, retry=NO_RETRY)
    ) as client:
        assert client._client._transport.url == "https://127.0.0.1:1"
    with pytest.raises(OptionError, match="set `protocol` to 'http'"):
        DeepfakeClient(Connection(url="http://127.0.0.1:1", protocol="grpc"))


def test_the_example_for_tests_of_ones_own_works_as_printed():
    page = (ROOT / "docs" / "client.md").read_text(encoding="utf-8")
    (example,) = (block for block in re.findall(r"```python\n(.*?)```", page, re.DOTALL) if "FakeTransport" in block)
    exec(example, {})


def test_the_fake_can_be_slow_and_unknown_models_fail_at_once():
    async def scenario() -> None:
        fake = FakeTransport(latency_s=0.001)
        model = await fake.describe("fake_model")
        assert len(await fake.infer(model, FACES)) == 3
        with pytest.raises(ServerTimeoutError, match=r"within 0\.0001 s"):
            await fake.infer(model, FACES, timeout_s=0.0001)
        with pytest.raises(ModelNotFoundError):
            await RetryingTransport(fake).describe("other")
        assert (await fake.health()).ready

    asyncio.run(scenario())
