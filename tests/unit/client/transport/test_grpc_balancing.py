"""One name for several servers, as a headless service has it: real gRPC servers and a real name server."""

import asyncio
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack

import grpc
import pytest
from name_server import name_server
from tritonclient.grpc import service_pb2, service_pb2_grpc

from deepfake_client import Connection
from deepfake_client.transport import grpc as transport
from deepfake_preprocess.errors import ServerUnavailableError

CONNECTION_AGE_MS = 300
FOUND_WITHIN_S = 30


class Server(service_pb2_grpc.GRPCInferenceServiceServicer):
    """Counts how often it is asked whether it is alive; ends connections as Triton does at their largest age."""

    def __init__(self, address: str, port: int = 0) -> None:
        self.asked = 0
        options = [("grpc.max_connection_age_ms", CONNECTION_AGE_MS), ("grpc.so_reuseport", 0)]
        self._server = grpc.server(ThreadPoolExecutor(2), options=options)
        service_pb2_grpc.add_GRPCInferenceServiceServicer_to_server(self, self._server)
        self.port = self._server.add_insecure_port(f"{address}:{port}")
        self._server.start()

    def ServerLive(self, request, context):  # noqa: N802 - the service's name
        self.asked += 1
        return service_pb2.ServerLiveResponse(live=True)

    def stop(self) -> None:
        self._server.stop(None).wait()


@pytest.fixture
def cluster(monkeypatch):
    """Two servers on one port, a name server that knows the first only, and a client that is given the name."""
    with ExitStack() as stack:
        names = stack.enter_context(name_server("127.0.0.1"))
        # In place of the machine's own name server.
        monkeypatch.setattr(transport, "_target", lambda address: f"dns://127.0.0.1:{names.port}/{address.target}")
        first = Server("127.0.0.1")
        stack.callback(first.stop)
        second = Server("127.0.0.2", first.port)
        stack.callback(second.stop)
        client = transport.GrpcTransport(Connection(url=f"triton.test:{first.port}", timeout_s=10))
        stack.callback(lambda: asyncio.run(client.close()))
        yield names, first, second, client


def ask(client, times: int) -> None:
    async def run():
        for _ in range(times):
            await client._ask("ServerLive")

    asyncio.run(run())


def until_asked(client, server: Server) -> None:
    deadline = time.monotonic() + FOUND_WITHIN_S
    while not server.asked:
        assert time.monotonic() < deadline, "the server that was added gets no requests"
        ask(client, 1)


def test_a_server_that_is_added_is_found_and_gets_its_share(cluster):
    names, first, second, client = cluster
    ask(client, 10)
    assert (first.asked, second.asked) == (10, 0)
    names.addresses.append("127.0.0.2")
    until_asked(client, second)
    deadline = time.monotonic() + FOUND_WITHIN_S
    got = (0, 0)
    while min(got) < 15:  # in turn, but for connections that are being made anew
        assert time.monotonic() < deadline, f"of 40 requests, the servers get {got}"
        before = first.asked, second.asked
        ask(client, 40)
        got = first.asked - before[0], second.asked - before[1]
        assert sum(got) == 40


def test_requests_go_on_where_one_of_the_servers_is_gone(cluster):
    names, first, second, client = cluster
    names.addresses.append("127.0.0.2")
    until_asked(client, second)
    first.stop()
    before = second.asked
    ask(client, 20)
    assert second.asked == before + 20


def test_where_no_server_is_left_the_error_says_so(cluster):
    _, first, _, client = cluster
    ask(client, 1)
    first.stop()
    with pytest.raises(ServerUnavailableError, match=r"no inference server answers at triton.test"):
        ask(client, 1)
