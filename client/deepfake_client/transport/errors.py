"""What a server's refusal means, in one place for all protocols: Triton says the same over gRPC and HTTP."""

from __future__ import annotations

from deepfake_preprocess.errors import (
    InferenceError,
    ModelNotFoundError,
    ServerAccessError,
    ServerBusyError,
    ServerError,
    ServerTimeoutError,
    ServerUnavailableError,
    SharedMemoryError,
)

_QUEUE_FULL_TEXT = "maximum queue size"
_QUEUE_TIMEOUT_TEXT = "request timeout expired"
"""Both come with the status of a server that is not there. The second is our deadline or the queue's own, whichever
is shorter."""
_DEAD_BACKEND_TEXT = "stub process"
"""A backend process of Triton died. Until whoever supervises the server has started it again, it is away."""
_RESTARTING_TEXTS = (
    "stopping",
    "not at ready state",
    "not ready",
    "exiting",
    "no available versions",
    "is not healthy",
)


def server_error(status: str, message: str, *, url: str, timeout_s: float, proxy: str = "") -> ServerError:
    """Return the error for a request that failed, with a gRPC status such as ``UNAVAILABLE``."""
    # Triton explains shapes at length after its sentence.
    message = " ".join((message or "no message").split()).partition(" NOTE: ")[0]
    message = message.removeprefix("[request id: <id_unknown>] ").rstrip(".")
    text = message.lower()
    if "is restricted, expecting" in text or status in ("UNAUTHENTICATED", "PERMISSION_DENIED"):
        return ServerAccessError(
            f"the server at {url} refused access ({message}); give the header that it expects (`headers`)"
        )
    if "shared memory" in text:
        return SharedMemoryError(f"the server at {url} cannot use the client's shared memory: {message}")
    if _QUEUE_TIMEOUT_TEXT in text:
        return ServerTimeoutError(
            f"the server at {url} dropped a request that waited too long in its queue (deadline {timeout_s:g} s); "
            "raise `timeout_s` or look at its load"
        )
    if status == "RESOURCE_EXHAUSTED" or (status == "UNAVAILABLE" and _QUEUE_FULL_TEXT in text):
        return ServerBusyError(
            f"the server at {url} refused a request ({message}); send less or raise its queue size"
        )
    if status in ("UNAVAILABLE", "CANCELLED") or _DEAD_BACKEND_TEXT in text:
        return ServerUnavailableError(_absence(message, url) + proxy)
    if status == "DEADLINE_EXCEEDED":
        return ServerTimeoutError(
            f"the server at {url} gave no answer within {timeout_s:g} s; raise `timeout_s` or look at its load{proxy}"
        )
    if status == "NOT_FOUND":
        return ModelNotFoundError(f"the server at {url} does not offer that model: {message}")
    return InferenceError(f"the server at {url} failed a request: {message}")


def _absence(message: str, url: str) -> str:
    text = message.lower()
    if any(item in text for item in _RESTARTING_TEXTS):
        return f"the server at {url} is starting or stopping ({message}); try again in a moment"
    if "closed channel" in text or "channel closed" in text or "connection is closed" in text:
        return f"the connection to {url} was closed by this client; make a new one"
    if "resolving" in text or "name resolution" in text or "domain name" in text:
        return f"the host name in {url} cannot be resolved; correct `url`"
    if "socket closed" in text and "backends failing" in text:
        return (
            f"what listens at {url} hangs up on gRPC; Triton's gRPC port is usually 8001, "
            "its HTTP port (8000) needs `protocol` 'http'"
        )
    return f"no inference server answers at {url}; start one with `deepfake serve`, or correct `url`"
