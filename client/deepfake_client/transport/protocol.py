"""What the client needs of a server: the `Transport` protocol, and the check of a served model's contract.

The ways to reach a server are in modules of their own (`transport.grpc`, `transport.http`, `transport.shm`), and
`transport.connect.connect` chooses. This module knows none of them.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Final, Protocol, runtime_checkable

import numpy as np
from numpy.typing import NDArray

from deepfake_client.result.verdict import ModelIdentity
from deepfake_preprocess.contract.spec import INPUT_NAME, LOGIT_NAME, PROBABILITY_NAME, ModelSpec
from deepfake_preprocess.contract.triton_config import PRECISION_PARAMETER, config_parameters
from deepfake_preprocess.errors import (
    ModelContractError,
    ModelNotFoundError,
    ModelReplacedError,
    ServerAccessError,
    ServerError,
    SpecError,
)

HEALTH_TIMEOUT_S: Final = 10.0
"""A server that scores one crop no sooner is not one to send requests to."""


@dataclass(frozen=True, slots=True)
class ServedModel:
    """A detector as the server offers it.

    Attributes:
        name: Triton model name.
        version: Triton model version that answers.
        spec: the contract, read from the server's model configuration.
        max_batch_size: largest number of crops in one request.
        precision: what the server computes in: ``fp32``, ``fp16``, ``bf16`` or ``int8``.
        tensorrt: whether it runs a TensorRT plan.
    """

    name: str
    version: int
    spec: ModelSpec
    max_batch_size: int
    precision: str = "fp32"
    tensorrt: bool = False

    @property
    def identity(self) -> ModelIdentity:
        """What a verdict of this model names."""
        return ModelIdentity(self.name, self.version, self.spec.checkpoint_sha256, self.spec.caution)


@dataclass(frozen=True, slots=True)
class Health:
    """How a server is.

    Attributes:
        alive: it answers.
        ready: it says so, and each of its models answered a real inference.
        reason: why it is not ready; empty where it is, or gives no reason.
    """

    alive: bool
    ready: bool
    reason: str = ""


@runtime_checkable
class Transport(Protocol):
    """What the client needs of a server. All methods may be called from any event loop.

    Attributes:
        url: the server's address, as messages name it.
    """

    url: str

    async def health(self) -> Health:
        """Return whether the server is alive, and whether its models answer: each of them is asked to score a crop.

        Raises:
            ServerError: it does not answer at all.
        """
        ...

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

    async def infer(
        self, model: ServedModel, faces: NDArray[np.uint8], *, timeout_s: float | None = None
    ) -> NDArray[np.float32]:
        """Score crops. Canceling the task cancels the request on the server.

        Args:
            model: what `describe` returned.
            faces: uint8 ``[N, H, W, 3]`` RGB, 1 <= N <= `model.max_batch_size`.
            timeout_s: deadline of this call, in seconds; the transport's own when None.

        Returns:
            float32 ``[N]`` fake probabilities in [0, 1].

        Raises:
            ModelContractError: the model was changed since it was described; says what changed.
            ServerError: see `deepfake_preprocess.errors`.
        """
        ...

    async def close(self) -> None:
        """Release the connection; calls in flight are cancelled."""
        ...


def served_model(config: Any, *, version: int) -> ServedModel:
    """Check a `ModelConfig` message against the wire contract; ModelContractError says what differs."""
    where = f"model {config.name!r}"
    parameters = config_parameters(config)
    try:
        spec = ModelSpec.from_parameters(parameters, where=where)
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
    precision = parameters.get(PRECISION_PARAMETER)
    if precision is None:
        raise ModelContractError(f"{where} has no parameter {PRECISION_PARAMETER!r}; export it again")
    return ServedModel(
        config.name, version, spec, max(1, config.max_batch_size), precision, config.backend == "tensorrt"
    )


def probabilities(
    model: ServedModel, raw: bytes | memoryview, shape: list[int], *, num_faces: int
) -> NDArray[np.float32]:
    """Check one answer of a model and return it as float32 ``[N]``.

    `raw` are little-endian float32 values of the output `fake_probability`, empty when it is missing; `shape` is what
    the server states. ModelContractError where it is not that of `num_faces` crops.
    """
    if shape != [num_faces, 1] or len(raw) != 4 * num_faces:
        raise ModelContractError(
            f"model {model.name!r} answered {PROBABILITY_NAME} of shape {shape or None}, expected [{num_faces}, 1]"
        )
    return np.frombuffer(raw, "<f4").astype(np.float32)


async def proved_health(transport: Transport, *, alive: bool, ready: bool) -> Health:
    """Have each model of this project score a black crop, where the server says that it is ready.

    Triton calls itself ready while one of its backend processes is dead, and requests fail.
    """
    if not (alive and ready):
        return Health(alive, ready)
    try:
        names = await transport.list_models()
        for name in names:
            try:
                model = await transport.describe(name)
            except ModelContractError:  # another project's; how to ask it is unknown
                continue
            crop = np.zeros((1, model.spec.input_height_px, model.spec.input_width_px, 3), np.uint8)
            await transport.infer(model, crop, timeout_s=HEALTH_TIMEOUT_S)
    except ServerAccessError:
        raise
    except ServerError as exc:
        return Health(alive, ready=False, reason=str(exc))
    return Health(alive, ready=bool(names), reason="" if names else "it offers no model")


async def refuse_changed(transport: Transport, model: ServedModel) -> None:
    """Ask the server for the model again; ModelContractError names what changed since it was described.

    Scores of two models must not end up in one verdict.
    """
    now = await transport.describe(model.name)
    before, after = _facts(model), _facts(now)
    changes = [f"{key} was {before[key]!r} and is {after[key]!r}" for key in before if before[key] != after[key]]
    if changes:
        raise ModelReplacedError(
            f"model {model.name!r} on the server at {transport.url} was replaced while it was in use: "
            f"{', '.join(changes)}; analyze again"
        )


async def not_offered(transport: Transport, model: str) -> ModelNotFoundError:
    """Return the error that says which models the server offers instead of `model`."""
    try:
        names = await transport.list_models()
    except ServerAccessError:
        return ModelNotFoundError(f"the server at {transport.url} has no model {model!r}")
    offered = f"it offers {', '.join(names)}" if names else "it offers none"
    return ModelNotFoundError(f"the server at {transport.url} has no model {model!r}; {offered}")


def _facts(model: ServedModel) -> dict[str, Any]:
    return {**model.spec.to_dict(), "version": model.version, "max_batch_size": model.max_batch_size}
