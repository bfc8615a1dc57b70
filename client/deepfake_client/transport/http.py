"""KServe v2 over HTTP, with tensors in binary.

The only module that knows aiohttp; its errors are translated in `_as_server_error` alone.

For networks whose proxies let nothing but HTTP/1.1 through. Needs the extra ``http``.
"""

from __future__ import annotations

import asyncio
import json
import ssl
from collections.abc import AsyncIterator, Mapping, Sequence
from typing import Any, Final
from urllib.parse import quote

import aiohttp
import numpy as np
from google.protobuf import json_format
from numpy.typing import NDArray
from tritonclient.grpc import model_config_pb2

from deepfake_client.sources.threads import LoopThread
from deepfake_client.transport.address import check_headers, without_version
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
from deepfake_preprocess.errors import (
    InferenceError,
    ModelNotFoundError,
    ServerError,
    ServerTlsError,
    ServerUnavailableError,
)
from deepfake_preprocess.support.proxies import through_proxy

_LENGTH_HEADER: Final = "Inference-Header-Content-Length"
"""Length of the JSON part of a body, which raw tensors follow (KServe v2's binary tensor data extension)."""
_STATUS_NAMES: Final = {
    400: "INVALID_ARGUMENT",
    401: "UNAUTHENTICATED",
    403: "PERMISSION_DENIED",
    404: "NOT_FOUND",
    408: "DEADLINE_EXCEEDED",
    429: "RESOURCE_EXHAUSTED",
    499: "CANCELLED",
    502: "UNAVAILABLE",
    503: "UNAVAILABLE",
    504: "DEADLINE_EXCEEDED",
}
"""What Triton and proxies mean by a status, in gRPC's names."""


class HttpTransport:
    """KServe v2 over HTTP/1.1.

    aiohttp's connections belong to one event loop; they live on one of their own, in a thread, so callers may use
    any.
    """

    def __init__(self, connection: Connection) -> None:
        self._address = connection.address
        self.url = without_version(str(self._address), "v2")
        self._timeout_s = connection.timeout_s
        self._bulk = connection.bulk
        # Compressing a few numbers would only cost.
        self._headers = {"accept-encoding": "identity", **dict(check_headers(connection.headers))}
        self._context: ssl.SSLContext | bool = self._address.tls.context() if self._address.tls else True
        scheme = "https" if self._address.tls else "http"
        self._proxy = through_proxy(self._address.host, (f"{scheme}_proxy", f"{scheme.upper()}_PROXY"))
        self._session: aiohttp.ClientSession | None = None
        self._loop = LoopThread("the HTTP transport")
        self._closed = False
        self._has_answered = False

    async def health(self) -> Health:
        """See `Transport.health`."""
        alive, ready = await self._says_yes("health/live"), await self._says_yes("health/ready")
        return await proved_health(self, alive=alive, ready=ready)

    async def list_models(self) -> list[str]:
        """See `Transport.list_models`."""
        index = await self._json("POST", "repository/index", {})
        return sorted({item["name"] for item in index if item.get("state", "READY") == "READY"})

    async def describe(self, model: str) -> ServedModel:
        """See `Transport.describe`."""
        try:
            config = await self._json("GET", f"models/{quote(model, safe='')}/config")
            metadata = await self._json("GET", f"models/{quote(model, safe='')}")
        except ModelNotFoundError:
            raise await not_offered(self, model) from None
        message = json_format.ParseDict(config, model_config_pb2.ModelConfig(), ignore_unknown_fields=True)
        return served_model(message, version=max((int(item) for item in metadata.get("versions", ())), default=1))

    async def statistics(self, model: ServedModel) -> dict[str, Any]:
        """Return what the server has counted for a model, as the JSON of Triton's statistics extension."""
        path = f"models/{quote(model.name, safe='')}/versions/{model.version}/stats"
        found: dict[str, Any] = (await self._json("GET", path))["model_stats"][0]
        return found

    async def infer(
        self, model: ServedModel, faces: NDArray[np.uint8], *, timeout_s: float | None = None
    ) -> NDArray[np.float32]:
        """See `Transport.infer`."""
        timeout_s = timeout_s or self._timeout_s
        path, head, parts = encode_infer(model, faces, timeout_s=timeout_s, bulk=self._bulk)
        try:
            status, headers, body = await self._request("POST", path, parts, head, timeout_s)
            self._check(status, body, timeout_s)
        except (InferenceError, ModelNotFoundError):
            await refuse_changed(self, model)
            raise
        return self._read_answer(model, headers, body, num_faces=len(faces))

    async def close(self) -> None:
        """See `Transport.close`."""
        self._closed = True
        session, self._session = self._session, None
        if session is not None:
            await self._loop.run(session.close())
        await asyncio.to_thread(self._loop.stop)

    def _read_answer(
        self, model: ServedModel, headers: Mapping[str, str], body: bytes, *, num_faces: int
    ) -> NDArray[np.float32]:
        try:
            head_length = int(headers[_LENGTH_HEADER])
            start = head_length
            for output in json.loads(body[:head_length])["outputs"]:
                length = output["parameters"]["binary_data_size"]
                if output["name"] == PROBABILITY_NAME:
                    return probabilities(model, body[start : start + length], output["shape"], num_faces=num_faces)
                start += length
        except (KeyError, TypeError, ValueError) as exc:
            raise InferenceError(f"the server at {self.url} sent an answer that is not KServe v2 in binary") from exc
        return probabilities(model, b"", [], num_faces=num_faces)

    async def _says_yes(self, path: str) -> bool:
        status, _, body = await self._request("GET", path)
        # Triton answers 400, newer ones 503, for a plain no.
        if status not in (400, 503):
            self._check(status, body, self._timeout_s)
        return status == 200

    async def _json(self, method: str, path: str, data: Any = None) -> Any:
        body = [] if data is None else [memoryview(json.dumps(data).encode())]
        status, _, answer = await self._request(method, path, body)
        self._check(status, answer, self._timeout_s)
        try:
            return json.loads(answer)
        except ValueError as exc:
            raise InferenceError(f"the server at {self.url} answered /v2/{path} with no JSON; is it Triton?") from exc

    def _check(self, status: int, body: bytes, timeout_s: float) -> None:
        if status == 200:
            return
        name = _STATUS_NAMES.get(status, "INTERNAL")
        try:
            message = str(json.loads(body)["error"])
        except (KeyError, TypeError, ValueError):
            message = f"HTTP status {status}" + (self._proxy if status == 404 else "")
            # A page that does not exist says nothing about models.
            name = "UNIMPLEMENTED" if status == 404 else name
        raise self._error(name, message, timeout_s)

    async def _request(
        self,
        method: str,
        path: str,
        body: Sequence[bytes | memoryview] = (),
        headers: Mapping[str, str] | None = None,
        timeout_s: float | None = None,
    ) -> tuple[int, Mapping[str, str], bytes]:
        """Send one request; returns status, headers and body."""
        timeout_s = timeout_s or self._timeout_s

        async def parts() -> AsyncIterator[bytes | memoryview]:
            for part in body:
                yield part

        async def exchange() -> tuple[int, Mapping[str, str], bytes]:
            if self._session is None:
                # The client bounds requests in flight; a second bound would only hide it.
                connector = aiohttp.TCPConnector(ssl=self._context, limit=0)
                self._session = aiohttp.ClientSession(
                    connector=connector, headers=self._headers, trust_env=bool(self._proxy)
                )
            async with self._session.request(
                method,
                f"{self.url}/v2/{path}",
                # In parts, so the crops are not copied; with their length, so they are not sent in chunks.
                data=parts() if body else None,
                headers={**(headers or {}), **({"content-length": str(sum(map(len, body)))} if body else {})},
                timeout=aiohttp.ClientTimeout(total=timeout_s),
                allow_redirects=False,
            ) as response:
                return response.status, response.headers, await response.read()

        if self._closed:
            raise server_error("CANCELLED", "the connection is closed", url=self.url, timeout_s=timeout_s)
        try:
            answer = await self._loop.run(exchange())
        except (aiohttp.ClientError, OSError) as exc:
            raise await asyncio.to_thread(self._as_server_error, exc, timeout_s) from exc
        self._has_answered = True
        return answer

    def _as_server_error(self, exc: Exception, timeout_s: float) -> ServerError:
        """Translate what aiohttp raises; may block while it finds out what is wrong with TLS."""
        if isinstance(exc, TimeoutError):
            return self._error("DEADLINE_EXCEEDED", "", timeout_s)
        if self._proxy:
            # What a probe past the proxy would see is something else.
            return self._error("UNAVAILABLE", str(exc), timeout_s)
        address = self._address
        reason = diagnose(address.host, address.port, address.tls, alpn="http/1.1", worked_before=self._has_answered)
        if reason is not None:
            return ServerTlsError(f"the server at {self.url} {reason}")
        if isinstance(exc, aiohttp.ClientConnectorDNSError):
            return self._error("UNAVAILABLE", "name resolution failed", timeout_s)
        if isinstance(exc, aiohttp.ClientResponseError):
            return ServerUnavailableError(
                f"what listens at {self.url} does not speak HTTP; Triton's HTTP port is usually 8000, "
                "its gRPC port (8001) needs `protocol` 'grpc'"
            )
        return self._error("UNAVAILABLE", str(exc), timeout_s)

    def _error(self, status: str, message: str, timeout_s: float) -> ServerError:
        return server_error(status, message, url=self.url, timeout_s=timeout_s, proxy=self._proxy)


def encode_infer(
    model: ServedModel, faces: NDArray[np.uint8], *, timeout_s: float, bulk: bool = False
) -> tuple[str, dict[str, str], list[bytes | memoryview]]:
    """Return an inference request: its path below ``/v2/``, its headers, and the parts of its body.

    The uint8 ``[N, H, W, 3]`` crops are not copied; the request may wait in the server's queue for `timeout_s`.
    """
    crops = np.ascontiguousarray(faces)
    tensor = {
        "name": INPUT_NAME,
        "datatype": "UINT8",
        "shape": crops.shape,
        "parameters": {"binary_data_size": crops.nbytes},
    }
    wanted = {"name": PROBABILITY_NAME, "parameters": {"binary_data": True}}
    parameters = {"timeout": int(timeout_s * 1e6)} | ({"priority": BULK_PRIORITY} if bulk else {})
    name = {"id": request_id} if (request_id := REQUEST_ID.get()) else {}
    head = json.dumps({**name, "inputs": [tensor], "outputs": [wanted], "parameters": parameters}).encode()
    headers = {"content-type": "application/octet-stream", _LENGTH_HEADER: str(len(head))}
    return f"models/{model.name}/versions/{model.version}/infer", headers, [head, crops.data.cast("B")]
