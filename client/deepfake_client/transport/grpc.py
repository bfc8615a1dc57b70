"""KServe v2 over gRPC. The only module that knows gRPC; its errors are translated in `_as_server_error` alone.

Requests are written to the wire format here instead of by ``tritonclient``'s request classes: those copy the crops
three times, this once.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
from typing import Any, Final

import numpy as np
from google.protobuf import json_format
from numpy.typing import NDArray

from deepfake_client.transport.address import Address, check_headers
from deepfake_client.transport.connection import Connection
from deepfake_client.transport.errors import server_error
from deepfake_client.transport.protocol import (
    Health,
    ServedModel,
    not_offered,
    probabilities,
    proved_health,
    refuse_changed,
    served_model,
)
from deepfake_client.transport.request_id import REQUEST_ID
from deepfake_client.transport.tls import diagnose
from deepfake_preprocess.contract.spec import INPUT_NAME, PROBABILITY_NAME
from deepfake_preprocess.contract.triton_config import BULK_PRIORITY
from deepfake_preprocess.errors import InferenceError, ModelNotFoundError, ServerError, ServerTlsError
from deepfake_preprocess.support.proxies import is_loopback, through_proxy

# gRPC writes failed handshakes to standard error; ours are exceptions. It reads this once, when it is imported.
os.environ.setdefault("GRPC_VERBOSITY", "ERROR")
import grpc
from tritonclient.grpc import service_pb2 as kserve

SERVICE: Final = "/inference.GRPCInferenceService/"
_RAW_INPUT_TAG: Final = b"\x3a"
"""Field 7 (`raw_input_contents`), wire type 2, of `ModelInferRequest`."""

KEEPALIVE_S: Final = 60.0
"""A silent connection with calls under way is probed this often. Triton's default allows a probe every 5 minutes and
forgives two that come too early; gRPC sends two without data at most."""
KEEPALIVE_TIMEOUT_S: Final = 10.0
"""A peer that acknowledges neither probe nor data for this long is taken for dead (also set as TCP_USER_TIMEOUT)."""
PROXY_VARIABLES: Final = ("grpc_proxy", "https_proxy", "http_proxy")
"""Those of the environment that gRPC reads."""
CONNECT_S: Final = 10.0
"""A connection that takes longer to make is given up: over a far network with TLS, or to a busy machine, it may take
some tenths of a second. gRPC reads it from `min_reconnect_backoff_ms`; pauses between tries do not depend on it."""
MAX_RECONNECT_BACKOFF_S: Final = 1.0
"""gRPC's own default grows to 2 minutes, during which a server that is back would count as absent."""
MIN_RESOLUTION_S: Final = 2.0
"""A name is resolved again no more often, whenever a server closes its connection; gRPC's own default is 30 s, during
which a server that was added would get no requests."""

_OPTIONS: Final = (
    ("grpc.max_send_message_length", -1),
    ("grpc.max_receive_message_length", -1),
    ("grpc.keepalive_time_ms", int(KEEPALIVE_S * 1_000)),
    ("grpc.keepalive_timeout_ms", int(KEEPALIVE_TIMEOUT_S * 1_000)),
    ("grpc.initial_reconnect_backoff_ms", 100),
    ("grpc.min_reconnect_backoff_ms", int(CONNECT_S * 1_000)),
    ("grpc.max_reconnect_backoff_ms", int(MAX_RECONNECT_BACKOFF_S * 1_000)),
    ("grpc.service_config", '{"loadBalancingConfig": [{"round_robin": {}}]}'),
    ("grpc.dns_min_time_between_resolutions_ms", int(MIN_RESOLUTION_S * 1_000)),
)


class GrpcTransport:
    """KServe v2 over gRPC.

    Where the host's name stands for several addresses, such as those of a headless service of Kubernetes, requests go
    to each in turn. Servers that were added are found when one closes its connection, as Triton does after its
    ``grpc-max-connection-age``.

    Built on the threaded gRPC stack with futures, not on ``grpc.aio``: that one ties a channel to a single event loop
    for the whole process, so two clients in two threads disturb each other.
    """

    def __init__(self, connection: Connection) -> None:
        self._address = connection.address
        self.url = str(self._address)
        self._timeout_s = connection.timeout_s
        self._bulk = connection.bulk
        self._headers = check_headers(connection.headers)
        self._proxy = through_proxy(self._address.host, PROXY_VARIABLES)
        self._channel = _channel(self._address)
        self._methods: dict[str, Any] = {}
        self._has_answered = False

    async def health(self) -> Health:
        """See `Transport.health`."""
        alive, ready = (await self._ask("ServerLive")).live, (await self._ask("ServerReady")).ready
        return await proved_health(self, alive=bool(alive), ready=bool(ready))

    async def list_models(self) -> list[str]:
        """See `Transport.list_models`."""
        index = await self._ask("RepositoryIndex")
        return sorted({item.name for item in index.models if item.state in ("READY", "")})

    async def describe(self, model: str) -> ServedModel:
        """See `Transport.describe`."""
        try:
            answer = await self._ask("ModelConfig", name=model)
            metadata = await self._ask("ModelMetadata", name=model)
        except ModelNotFoundError:
            raise await not_offered(self, model) from None
        return served_model(answer.config, version=max((int(item) for item in metadata.versions), default=1))

    async def statistics(self, model: ServedModel) -> dict[str, Any]:
        """Return what the server has counted for a model, as the JSON of Triton's statistics extension."""
        answer = await self._ask("ModelStatistics", name=model.name, version=str(model.version))
        found: dict[str, Any] = json_format.MessageToDict(
            answer.model_stats[0], preserving_proto_field_name=True, always_print_fields_with_no_presence=True
        )
        return found

    async def infer(
        self, model: ServedModel, faces: NDArray[np.uint8], *, timeout_s: float | None = None
    ) -> NDArray[np.float32]:
        """See `Transport.infer`."""
        timeout_s = timeout_s or self._timeout_s
        request = encode_infer(model, faces, timeout_s=timeout_s, bulk=self._bulk)
        return await self._score(model, request, num_faces=len(faces), timeout_s=timeout_s)

    async def close(self) -> None:
        """See `Transport.close`."""
        await asyncio.to_thread(self._channel.close)

    async def _score(
        self, model: ServedModel, request: bytes, *, num_faces: int, timeout_s: float
    ) -> NDArray[np.float32]:
        """Send an encoded `ModelInferRequest` and read the probabilities."""
        try:
            answer = await self._call("ModelInfer", request, timeout_s)
        except (InferenceError, ModelNotFoundError):
            await refuse_changed(self, model)
            raise
        found = [item.name for item in answer.outputs]
        if PROBABILITY_NAME not in found or len(answer.raw_output_contents) != len(found):
            return probabilities(model, b"", [], num_faces=num_faces)
        place = found.index(PROBABILITY_NAME)
        shape = list(answer.outputs[place].shape)
        return probabilities(model, answer.raw_output_contents[place], shape, num_faces=num_faces)

    async def _ask(self, method: str, *, timeout_s: float | None = None, **fields: str) -> Any:
        """Call one method of the service with the fields of its request; returns its answer."""
        request = getattr(kserve, f"{method}Request")(**fields)
        return await self._call(method, request.SerializeToString(), timeout_s or self._timeout_s)

    async def _call(self, method: str, request: bytes, timeout_s: float) -> Any:
        """Call one method of the service with an encoded request; returns its answer."""
        loop = asyncio.get_running_loop()
        finished: asyncio.Future[None] = loop.create_future()
        call = self._begin(method, request, timeout_s)

        def wake() -> None:
            if not finished.done():
                finished.set_result(None)

        def on_done(_: Any) -> None:
            # Called on a gRPC thread, possibly after the loop of a cancelled caller has gone.
            with contextlib.suppress(RuntimeError):
                loop.call_soon_threadsafe(wake)

        call.add_done_callback(on_done)
        try:
            await finished
        except asyncio.CancelledError:
            call.cancel()
            raise
        if call.code() is grpc.StatusCode.OK:
            self._has_answered = True
            return getattr(kserve, f"{method}Response").FromString(call.result())
        raise await asyncio.to_thread(self._as_server_error, call.code(), call.details() or "", timeout_s)

    def _begin(self, method: str, request: bytes, timeout_s: float) -> Any:
        """Start a call and return gRPC's future of the encoded answer."""
        if method not in self._methods:
            # Without serializers: bytes in, bytes out.
            self._methods[method] = self._channel.unary_unary(SERVICE + method)
        try:
            return self._methods[method].future(request, timeout=timeout_s, metadata=self._headers)
        except ValueError as exc:  # the channel was closed
            raise server_error("CANCELLED", str(exc), url=self.url, timeout_s=timeout_s) from exc

    def _as_server_error(self, code: grpc.StatusCode, details: str, timeout_s: float) -> ServerError:
        """Translate a failed call; may block while it finds out what is wrong with TLS."""
        # Where nobody answers at all, a probe would only wait once more; past a proxy it would see something else.
        if (
            not self._proxy
            and code is grpc.StatusCode.UNAVAILABLE
            and "backends failing" in details
            and "timed out" not in details
        ):
            address = self._address
            reason = diagnose(address.host, address.port, address.tls, alpn="h2", worked_before=self._has_answered)
            if reason is not None:
                return ServerTlsError(f"the server at {self.url} {reason}")
        return server_error(code.name, details, url=self.url, timeout_s=timeout_s, proxy=self._proxy)


def encode_infer(model: ServedModel, faces: NDArray[np.uint8], *, timeout_s: float, bulk: bool = False) -> bytes:
    """Return an encoded `ModelInferRequest` with uint8 ``[N, H, W, 3]`` crops; it may be queued for `timeout_s`."""
    crops = np.ascontiguousarray(faces)
    # Serialized messages may be joined: the crops follow as one more field, copied once.
    head = infer_request(model, crops.shape, timeout_s=timeout_s, bulk=bulk).SerializeToString()
    return b"".join((head, _RAW_INPUT_TAG, _varint(crops.nbytes), crops.data))


def infer_request(model: ServedModel, shape: tuple[int, ...], *, timeout_s: float, bulk: bool = False) -> Any:
    """Return a `ModelInferRequest` message without its crops, of which this is the shape."""
    request = kserve.ModelInferRequest(model_name=model.name, model_version=str(model.version), id=REQUEST_ID.get())
    request.inputs.add(name=INPUT_NAME, datatype="UINT8", shape=shape)
    request.outputs.add(name=PROBABILITY_NAME)
    request.parameters["timeout"].int64_param = int(timeout_s * 1e6)
    if bulk:
        request.parameters["priority"].uint64_param = BULK_PRIORITY
    return request


def _target(address: Address) -> str:
    """Return the address as gRPC's resolver takes it: all that the name stands for, not the first alone."""
    return f"dns:///{address.target}"


def _channel(address: Address) -> Any:
    # gRPC would ask a proxy even for this machine.
    options = (*_OPTIONS, ("grpc.enable_http_proxy", 0)) if is_loopback(address.host) else _OPTIONS
    if address.tls is None:
        return grpc.insecure_channel(_target(address), options=options)
    # gRPC would report a bad file only when it connects, as a failed handshake.
    address.tls.context()
    ca, key, certificate = address.tls.read()
    return grpc.secure_channel(_target(address), grpc.ssl_channel_credentials(ca, key, certificate), options=options)


def _varint(value: int) -> bytes:
    """Return a length as protobuf writes it: seven bits a byte, lowest first."""
    encoded = bytearray()
    while value > 0x7F:
        encoded.append(value & 0x7F | 0x80)
        value >>= 7
    encoded.append(value)
    return bytes(encoded)
