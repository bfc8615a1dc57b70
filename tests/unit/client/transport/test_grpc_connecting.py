"""A connection that takes long to make: over a far network, or to a machine with much else to do."""

import asyncio
import socket
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress

import grpc
from tritonclient.grpc import service_pb2, service_pb2_grpc

from deepfake_client import Connection
from deepfake_client.transport.grpc import GrpcTransport

LATE_S = 0.5
"""When the server's first byte comes: five times of what was waited for once."""


class Server(service_pb2_grpc.GRPCInferenceServiceServicer):
    def ServerLive(self, request, context):  # noqa: N802 - the service's name
        return service_pb2.ServerLiveResponse(live=True)


def copy(source, into):
    with suppress(OSError):
        while piece := source.recv(2**16):
            into.sendall(piece)


@contextmanager
def far_away(port):
    """Yield a port that leads to another; each connection is `LATE_S` late."""

    def take():
        with suppress(OSError):  # closed
            while True:
                threading.Thread(target=lead, args=(listening.accept()[0],), daemon=True).start()

    def lead(near):
        time.sleep(LATE_S)
        with near, socket.create_connection(("127.0.0.1", port)) as far:
            threading.Thread(target=copy, args=(near, far), daemon=True).start()
            copy(far, near)

    with socket.create_server(("127.0.0.1", 0)) as listening:
        threading.Thread(target=take, daemon=True).start()
        yield listening.getsockname()[1]


def test_a_server_that_is_slow_to_reach_is_reached_at_the_first_try():
    server = grpc.server(ThreadPoolExecutor(1))
    service_pb2_grpc.add_GRPCInferenceServiceServicer_to_server(Server(), server)
    with far_away(server.add_insecure_port("127.0.0.1:0")) as port:
        server.start()

        async def ask():
            client = GrpcTransport(Connection(url=f"127.0.0.1:{port}"))
            try:
                return (await client._ask("ServerLive")).live
            finally:
                await client.close()

        assert asyncio.run(ask())
        server.stop(None).wait()
