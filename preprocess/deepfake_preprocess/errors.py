"""The error tree of the whole project; every part raises from it, and callers catch by kind.

::

    DeepfakeError
    ├── InputError                      what the user passed in cannot be used        (exit code 2)
    │   ├── MediaNotFoundError          also FileNotFoundError
    │   ├── MediaOpenError              exists, but cannot be opened or read as a video or an image
    │   │   ├── MediaCrashError         the process that decoded it died
    │   │   └── MediaLimitError         it is larger than is allowed, or needs more memory or time
    │   ├── SpecError                   also ValueError: a ModelSpec field is wrong
    │   ├── CheckpointError             a checkpoint cannot be read or does not fit
    │   ├── RepositoryError             a model repository is missing, incomplete or altered
    │   ├── NoFaceError                 no face where one is to be explained
    │   └── OptionError                 also ValueError: an option or argument is out of range
    ├── ServerError                     the inference server is the cause             (exit code 4)
    │   ├── ServerUnavailableError      also ConnectionError: nothing answers, or it went away
    │   ├── ServerTlsError              also ConnectionError: certificates or TLS itself do not fit
    │   ├── ServerAccessError           also PermissionError: a token or header is missing or wrong
    │   ├── SharedMemoryError           client and server cannot share memory
    │   ├── ServerTimeoutError          also TimeoutError: no answer within the deadline
    │   ├── ServerBusyError             the server's queue is full; retrying later may help
    │   ├── ModelNotFoundError          the server runs but does not offer that model (exit code 2)
    │   ├── ModelContractError          the model is served, but not under this project's contract
    │   │   └── ModelReplacedError      another one is served under its name than when it was described
    │   └── InferenceError              the server answered with an error of its own
    ├── ServerStartError                an embedded server could not be started       (exit code 4)
    ├── ExportError                     an export or its proof failed                 (exit code 1)
    │   ├── ParityError                 an artifact does not reproduce the checkpoint
    │   └── EngineError                 TensorRT is missing, or refuses the graph
    ├── ClientUseError                  also RuntimeError: a client is closed, of another process, or called by itself
    ├── TrainingError                   a training run cannot continue                (exit code 1)
    ├── ExplainError                    a heatmap cannot be made                      (exit code 1)
    │   └── ExplainDisagreementError    the checkpoint does not give the score that is served
    └── MissingExtraError               also ImportError: an optional part is not installed (exit code 2)

Foreign errors (gRPC, PyAV, ONNX Runtime) are translated in one place each and never reach a caller. Every message is
one sentence that states what was received and what to do. Messages name parameters; commands show their options.
"""

from __future__ import annotations

from typing import Final


class DeepfakeError(Exception):
    """Base of every error this project raises on purpose.

    Attributes:
        exit_code: exit code of the `deepfake` command for this kind of error.
    """

    exit_code: int = 1


class InputError(DeepfakeError):
    """Something that the user passed in cannot be used."""

    exit_code = 2


class MediaNotFoundError(InputError, FileNotFoundError):
    """The named video or image does not exist."""


class MediaOpenError(InputError):
    """The file exists but cannot be opened, read or converted as a video or an image."""


class MediaCrashError(MediaOpenError):
    """The process that decoded the file died; the file is damaged, or made to do harm."""


class MediaLimitError(MediaOpenError):
    """The file is larger or longer than is allowed, or analyzing it needs more memory or time."""


class SpecError(InputError, ValueError):
    """A field of a `ModelSpec` is missing or wrong; the message names field, value and allowed values."""


class CheckpointError(InputError):
    """A checkpoint cannot be read, or its weights do not fit the architecture."""


class RepositoryError(InputError):
    """A model repository is missing, incomplete, or does not match its manifest."""


class NoFaceError(InputError):
    """No face was found in a picture whose face is to be explained."""


class OptionError(InputError, ValueError):
    """An option or an argument is out of its allowed range."""


class ServerError(DeepfakeError):
    """The inference server is the cause."""

    exit_code = 4


class ServerUnavailableError(ServerError, ConnectionError):
    """Nothing answers at the server's address, or it went away."""


class ServerTlsError(ServerError, ConnectionError):
    """The connection cannot be secured: a certificate is not accepted, or only one side speaks TLS."""


class ServerAccessError(ServerError, PermissionError):
    """The server answers, but requires a token or header that was not given."""


class SharedMemoryError(ServerError):
    """Crops cannot be passed to the server in shared memory."""


class ServerTimeoutError(ServerError, TimeoutError):
    """The server did not answer within the deadline."""


class ServerBusyError(ServerError):
    """The server refused the request because its queue is full."""


AWAY: Final = tuple(kind.__name__ for kind in (ServerUnavailableError, ServerTimeoutError, ServerBusyError))
"""Names of the errors of a server that will be there again, or have time again, for where errors travel by name."""


class ModelNotFoundError(ServerError):
    """The server runs but does not offer the model that was asked for, or several and none was."""

    exit_code = 2


class ModelContractError(ServerError):
    """The model is served, but its tensors or parameters do not follow this project's contract."""


class ModelReplacedError(ModelContractError):
    """Another model is served under the name than when it was described; the message says what changed."""


class InferenceError(ServerError):
    """The server answered a request with an error of its own."""


class ServerStartError(DeepfakeError):
    """An embedded server could not be installed or started."""

    exit_code = 4


class ExportError(DeepfakeError):
    """An export failed."""


class ParityError(ExportError):
    """An exported artifact does not reproduce the checkpoint within tolerance."""


class EngineError(ExportError):
    """TensorRT or a GPU is missing, or TensorRT cannot parse or build the graph; names node and layer where known."""


class ClientUseError(DeepfakeError, RuntimeError):
    """A client is used where it cannot work: closed, in a forked process, pickled, or within its own callback."""


class TrainingError(DeepfakeError):
    """A training run cannot continue (no finite loss, no memory, no space); what it saved before is intact."""


class ExplainError(DeepfakeError):
    """A heatmap cannot be made."""


class ExplainDisagreementError(ExplainError):
    """The checkpoint does not give the served score, or differs from the served one; states both sides."""


class MissingExtraError(DeepfakeError, ImportError):
    """An optional part of the project is not installed; the message holds the pip command."""

    exit_code = 2
