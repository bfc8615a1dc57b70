"""The load generator's HTTP/2 speaks with gRPC's own server: messages of any size, statuses, deadlines, restarts."""

import asyncio
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager

import grpc
import pytest

from deepfake_bench.load.http2 import CallFailedError, Http2Channel, framed


class Methods(grpc.GenericRpcHandler):
    def service(self, details):
        def answer(request, context):
            if details.method == "/refuse":
                context.abort(grpc.StatusCode.RESOURCE_EXHAUSTED, "full")
            if details.method == "/wait":
                time.sleep(1)
            if details.method == "/headers":
                return dict(context.invocation_metadata())["x-long"].encode()
            return request[::-1]

        return grpc.unary_unary_rpc_method_handler(answer)


@contextmanager
def served(port=0):
    server = grpc.server(ThreadPoolExecutor(4), [Methods()], options=[("grpc.max_receive_message_length", -1)])
    bound = server.add_insecure_port(f"127.0.0.1:{port}")
    server.start()
    try:
        yield bound
    finally:
        server.stop(None).wait()


def called(port, path, *messages, timeout_s=30.0, **options):
    async def run():
        async with Http2Channel("127.0.0.1", port, path, **options) as channel:
            return await asyncio.gather(*(channel.call(framed(message), timeout_s) for message in messages))

    return asyncio.run(run())


def test_messages_of_any_size_share_a_connection():
    messages = [bytes([number]) * (10**number) for number in range(1, 8)]
    messages[-1] += b"end"
    with served() as port:
        assert called(port, "/reverse", *messages) == [message[::-1] for message in messages]


def test_headers_are_sent_with_each_call():
    long = "x" * 400
    with served() as port:
        assert called(port, "/headers", b"", headers=[("x-long", long)]) == [long.encode()]


@pytest.mark.parametrize(
    ("path", "timeout_s", "status"), [("/refuse", 30.0, "RESOURCE_EXHAUSTED"), ("/wait", 0.05, "DEADLINE_EXCEEDED")]
)
def test_a_call_that_fails_says_its_status(path, timeout_s, status):
    with served() as port, pytest.raises(CallFailedError, match=status):
        called(port, path, b"x", timeout_s=timeout_s)


def test_a_server_that_is_started_again_is_found_again():
    async def run():
        with served() as port:
            channel = Http2Channel("127.0.0.1", port, "/reverse")
            assert await channel.call(framed(b"ab"), 30.0) == b"ba"
        with pytest.raises(CallFailedError, match="UNAVAILABLE"):
            await channel.call(framed(b"ab"), 30.0)
        with served(port):
            assert await channel.call(framed(b"cd"), 30.0) == b"dc"
            async with channel:
                pass

    asyncio.run(run())
