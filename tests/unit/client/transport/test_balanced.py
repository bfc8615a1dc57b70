"""Several servers as one: who is asked, what happens while one is away, and how many requests each may have."""

import asyncio

import numpy as np
import pytest

from deepfake_client import Connection, ModelSpec, OptionError, Retry, RetryingTransport, connect
from deepfake_client.transport import balanced
from deepfake_client.transport.balanced import FIRST_LIMIT, LARGEST_LIMIT, BalancedTransport, Endpoint
from deepfake_client.transport.grpc import infer_request
from deepfake_client.transport.testing import FakeTransport
from deepfake_preprocess.errors import ModelContractError, ServerBusyError, ServerUnavailableError

CROP = np.zeros((1, 224, 224, 3), np.uint8)


def scores(transport, *, requests):
    async def run():
        model = await transport.describe("fake_model")
        return await asyncio.gather(*(transport.infer(model, CROP) for _ in range(requests)), return_exceptions=True)

    return asyncio.run(run())


def test_requests_are_shared_out():
    servers = [FakeTransport(latency_s=0.001), FakeTransport(latency_s=0.001)]
    # As many as may be under way before any answer says how fast a server is.
    assert len(scores(BalancedTransport(servers), requests=2 * int(FIRST_LIMIT))) == 2 * FIRST_LIMIT
    assert [len(server.batches) for server in servers] == [FIRST_LIMIT, FIRST_LIMIT]


def test_a_request_goes_on_to_another_server_when_one_is_away(monkeypatch):
    monkeypatch.setattr(balanced, "AWAY_S", 1000.0)
    gone, there = FakeTransport(fail_after=0, error=ServerUnavailableError("gone")), FakeTransport(latency_s=0.001)
    found = scores(BalancedTransport([gone, there]), requests=30)
    assert [type(one) for one in found] == [np.ndarray] * 30
    assert len(there.batches) == 30
    assert gone.failures < 15  # it is left alone once that is known


def test_where_all_are_away_the_retries_around_it_decide():
    servers = [FakeTransport(fail_after=0, error=ServerUnavailableError("gone"), num_failures=2) for _ in range(2)]
    transport = RetryingTransport(BalancedTransport(servers), Retry(initial_backoff_s=0.001, from_start=True))
    assert isinstance(scores(transport, requests=1)[0], np.ndarray)


def test_servers_must_offer_the_same_model():
    servers = [FakeTransport(), FakeTransport(spec=ModelSpec("fake_model", "timm:efficientnet_b0", threshold=0.3))]
    servers[1].url = "other"
    with pytest.raises(ModelContractError, match="offer different models under the name 'fake_model'"):
        scores(BalancedTransport(servers), requests=1)


def test_a_server_that_refuses_or_gets_slow_is_sent_less_and_later_more_again():
    endpoint = Endpoint(FakeTransport(), in_flight=8)
    for _ in range(200):
        endpoint.answered(0.01)
        endpoint.in_flight = int(endpoint.limit)
    high = endpoint.limit
    assert 8 < high <= LARGEST_LIMIT
    endpoint.answered(0.2)
    assert endpoint.limit < high
    busy = BalancedTransport([FakeTransport(fail_after=0, error=ServerBusyError("full"))])
    assert {type(one) for one in scores(busy, requests=3)} == {ServerBusyError}
    assert busy.endpoints[0].limit < 8
    assert busy.endpoints[0].in_flight == 0


def test_no_more_requests_are_under_way_than_the_limit(monkeypatch):
    monkeypatch.setattr(balanced, "LARGEST_LIMIT", 2.0)

    class Counting(FakeTransport):
        now = most = 0

        async def infer(self, model, faces, *, timeout_s=None):
            self.now += 1
            self.most = max(self.most, self.now)
            await asyncio.sleep(0)
            self.now -= 1
            return np.zeros(len(faces), np.float32)

    server = Counting()
    transport = BalancedTransport([server])
    transport.endpoints[0].limit = 2.0
    scores(transport, requests=12)
    assert server.most == 2


def test_a_connection_names_several_servers_and_yields_to_others():
    connection = Connection(url="one:8001,two:8001", bulk=True)
    assert [str(address) for address in connection.addresses] == ["one:8001", "two:8001"]
    assert connect(connection).url == "one:8001,two:8001"
    with pytest.raises(OptionError, match="mixes gRPC and HTTP"):
        Connection(url="one:8001,http://two:8000")
    model = asyncio.run(FakeTransport().describe("fake_model"))
    assert infer_request(model, CROP.shape, timeout_s=1, bulk=True).parameters["priority"].uint64_param == 2
    assert "priority" not in infer_request(model, CROP.shape, timeout_s=1).parameters
