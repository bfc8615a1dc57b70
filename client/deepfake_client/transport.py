"""Talks to an inference server: the `Transport` protocol, and gRPC (KServe v2) as its implementation.

This is the only module that knows gRPC; its errors are translated in `_translated` and nowhere else.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

import numpy as np
import tritonclient.grpc as triton
from numpy.typing import NDArray
from tritonclient.utils import InferenceServerException

from deepfake_preprocess.errors import (
    InferenceError,
    ModelContractError,
    ModelNotFoundError,
    ServerBusyError,
    ServerError,
    ServerTimeoutError,
    ServerUnavailableError,
    SpecError,
)
from deepfake_preprocess.spec import INPUT_NAME, LOGIT_NAME, PROBABILITY_NAME, ModelSpec

DEFAULT_URL = "localhost:8001"
"""Triton's standard gRPC port on this host."""
DEFAULT_TIMEOUT_S = 30.0


@dataclass(frozen=True, slots=True)
class ServedModel:
    """A detector as the server offers it.

    Attributes:
        name: Triton model name.
        version: Triton model version that answers.
        spec: the contract, read from the server's model configuration.
        max_batch_size: largest number of crops in one request.
    """

    name: str
    version: int
    spec: ModelSpec
    max_batch_size: int


@runtime_checkable
class Transport(Protocol):
    """What the client needs of a server. All methods may be called from any event loop."""

    url: str

    async def list_models(self) -> list[str]:
        """Return the names of the models that are ready.

        Raises:
            ServerError: see `deepfake_preprocess.errors`.
        """
        ...

    async def describe(self, model: str) -> ServedModel:
        """Return one model's contract.

        Raises:
            ModelNotFoundError: the server does not offer it.
            ModelContractError: it was not exported for this contract.
            ServerError: any other failure.
        """
        ...

    async def infer(self, model: ServedModel, faces: NDArray[np.uint8]) -> NDArray[np.float32]:
        """Score crops.

        Args:
            model: what `describe` returned.
            faces: uint8 ``[N, H, W, 3]`` RGB, 1 <= N <= `model.max_batch_size`.

        Returns:
            float32 ``[N]`` fake probabilities in [0, 1].

        Raises:
            ServerError: see `deepfake_preprocess.errors`.
        """
        ...

    async def close(self) -> None:
        """Release the connection; calls in flight are cancelled."""
        ...


class GrpcTransport:
    """KServe v2 over gRPC.

    Built on the threaded gRPC stack with futures, not on ``grpc.aio``: that one ties a channel to a single event
    loop for the whole process, so that two clients in two threads disturb each other.

    Args:
        url: ``host:port`` of the server's gRPC endpoint.
        timeout_s: deadline of every call, in seconds.
    """

    def __init__(self, url: str = DEFAULT_URL, *, timeout_s: float = DEFAULT_TIMEOUT_S) -> None:
        self.url = url
        self._timeout_s = timeout_s
        self._client = triton.InferenceServerClient(url)
        self._outputs = [triton.InferRequestedOutput(PROBABILITY_NAME)]

    async def health(self) -> tuple[bool, bool]:
        """Return whether the server is alive, and whether it is ready to infer.

        Raises:
            ServerError: it does not answer at all.
        """
        alive = await self._blocking(lambda: self._client.is_server_live(client_timeout=self._timeout_s))
        ready = await self._blocking(lambda: self._client.is_server_ready(client_timeout=self._timeout_s))
        return bool(alive), bool(ready)

    async def list_models(self) -> list[str]:
        """See `Transport.list_models`."""
        index = await self._blocking(lambda: self._client.get_model_repository_index(client_timeout=self._timeout_s))
        return sorted({item.name for item in index.models if item.state in ("READY", "")})

    async def describe(self, model: str) -> ServedModel:
        """See `Transport.describe`."""
        try:
            answer = await self._blocking(
                lambda: self._client.get_model_config(model, client_timeout=self._timeout_s)
            )
            metadata = await self._blocking(
                lambda: self._client.get_model_metadata(model, client_timeout=self._timeout_s)
            )
        except ModelNotFoundError:
            names = await self.list_models()
            offered = f"it offers {', '.join(names)}" if names else "it offers none"
            raise ModelNotFoundError(f"the server at {self.url} has no model {model!r}; {offered}") from None
        return served_model(answer.config, version=max((int(item) for item in metadata.versions), default=1))

    async def infer(self, model: ServedModel, faces: NDArray[np.uint8]) -> NDArray[np.float32]:
        """See `Transport.infer`."""
        tensor = triton.InferInput(INPUT_NAME, list(faces.shape), "UINT8")
        tensor.set_data_from_numpy(np.ascontiguousarray(faces))
        loop = asyncio.get_running_loop()
        answer: asyncio.Future[Any] = loop.create_future()

        def deliver(result: Any, error: Exception | None) -> None:
            if answer.done():
                return
            if error is not None:
                answer.set_exception(error)
            else:
                answer.set_result(result)

        def on_done(result: Any, error: Exception | None) -> None:
            # Called on a gRPC thread, possibly after the loop of a cancelled caller has gone.
            if not loop.is_closed():
                loop.call_soon_threadsafe(deliver, result, error)

        with self._translated():
            call = self._client.async_infer(
                model.name,
                [tensor],
                on_done,
                model_version=str(model.version),
                outputs=self._outputs,
                client_timeout=self._timeout_s,
            )
            try:
                result = await answer
            except asyncio.CancelledError:
                call.cancel()
                raise
        probabilities = result.as_numpy(PROBABILITY_NAME)
        if probabilities is None or probabilities.shape != (len(faces), 1):
            shape = None if probabilities is None else list(probabilities.shape)
            raise ModelContractError(
                f"model {model.name!r} answered {PROBABILITY_NAME} of shape {shape}, expected [{len(faces)}, 1]"
            )
        return np.asarray(probabilities[:, 0], dtype=np.float32)

    async def close(self) -> None:
        """See `Transport.close`."""
        await asyncio.to_thread(self._client.close)

    async def _blocking(self, call: Callable[[], Any]) -> Any:
        with self._translated():
            return await asyncio.to_thread(call)

    @contextmanager
    def _translated(self) -> Iterator[None]:
        try:
            yield
        except InferenceServerException as exc:
            raise self._as_server_error(exc) from exc

    def _as_server_error(self, exc: InferenceServerException) -> ServerError:
        status = (exc.status() or "").removeprefix("StatusCode.")
        message = " ".join((exc.message() or "no message").split()).rstrip(".")
        # Triton answers UNAVAILABLE with texts of its own for a full queue and for a model that is not loaded.
        if status in ("UNAVAILABLE", "RESOURCE_EXHAUSTED") and "queue" in message.lower():
            return ServerBusyError(
                f"the server at {self.url} refused a request ({message}); send less or raise its queue size"
            )
        if status == "NOT_FOUND" or "unknown model" in message.lower() or "is not found" in message.lower():
            return ModelNotFoundError(f"the server at {self.url} does not offer that model: {message}")
        if status in ("UNAVAILABLE", "CANCELLED"):
            return ServerUnavailableError(
                f"no inference server answers at {self.url}; start one with `deepfake serve`, "
                "or name another with --url"
            )
        if status == "DEADLINE_EXCEEDED":
            return ServerTimeoutError(
                f"the server at {self.url} gave no answer within {self._timeout_s:g} s; "
                "raise --timeout or look at its load"
            )
        return InferenceError(f"the server at {self.url} failed a request: {message}")


def served_model(config: Any, *, version: int) -> ServedModel:
    """Check a Triton model configuration against the wire contract.

    Args:
        config: `ModelConfig` protobuf message.
        version: model version the server answers with.

    Raises:
        ModelContractError: says what differs.
    """
    where = f"model {config.name!r}"
    try:
        spec = ModelSpec.from_parameters(
            {key: value.string_value for key, value in config.parameters.items()}, where=where
        )
    except SpecError as exc:
        raise ModelContractError(f"{exc}; serve a model that `deepfake export` wrote") from exc
    expected = [spec.input_height_px, spec.input_width_px, 3]
    inputs = {item.name: item for item in config.input}
    outputs = {item.name for item in config.output}
    if INPUT_NAME not in inputs or list(inputs[INPUT_NAME].dims) != expected:
        found = {name: list(item.dims) for name, item in inputs.items()}
        raise ModelContractError(f"{where} takes {found}, expected {{'{INPUT_NAME}': {expected}}}; export it again")
    if missing := {PROBABILITY_NAME, LOGIT_NAME} - outputs:
        raise ModelContractError(f"{where} has no output {', '.join(sorted(missing))}; export it again")
    return ServedModel(config.name, version, spec, max(1, config.max_batch_size))
