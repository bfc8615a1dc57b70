"""The client library of deepfake-serving: from a video or an image to a verdict, with the help of Triton.

::

    from deepfake_client import DeepfakeClient

    with DeepfakeClient("localhost:8001") as client:
        verdict = client.analyze("clip.mp4")
    print(verdict.label, verdict.fake_probability)

Works without torch. Errors are in `deepfake_preprocess.errors` and can be imported from here as well.
"""

from deepfake_client.analysis.pipeline import Progress
from deepfake_client.async_client import AsyncDeepfakeClient
from deepfake_client.client import DeepfakeClient
from deepfake_client.options import AGGREGATIONS, AnalyzeOptions, WatchOptions
from deepfake_client.result.outcome import Outcome
from deepfake_client.result.verdict import (
    Concern,
    Consistency,
    FaceScore,
    FrameResult,
    Interval,
    Label,
    ModelIdentity,
    Reason,
    Timing,
    Track,
    Verdict,
)
from deepfake_client.sources.inputs import AsyncSource, Source
from deepfake_client.transport.connect import connect
from deepfake_client.transport.connection import Connection
from deepfake_client.transport.protocol import Health, ServedModel, Transport
from deepfake_client.transport.retry import NO_RETRY, Retry, RetryingTransport
from deepfake_client.transport.tls import Tls
from deepfake_preprocess.errors import (
    DeepfakeError,
    InferenceError,
    InputError,
    MediaNotFoundError,
    MediaOpenError,
    MissingExtraError,
    ModelContractError,
    ModelNotFoundError,
    OptionError,
    ServerAccessError,
    ServerBusyError,
    ServerError,
    ServerStartError,
    ServerTimeoutError,
    ServerTlsError,
    ServerUnavailableError,
    SharedMemoryError,
)
from deepfake_preprocess.media.frames_source import open_frames
from deepfake_preprocess.media.opening import open_media
from deepfake_preprocess.media.sampling import Sampling

__all__ = [
    "AGGREGATIONS",
    "NO_RETRY",
    "AnalyzeOptions",
    "AsyncDeepfakeClient",
    "AsyncSource",
    "Concern",
    "Connection",
    "Consistency",
    "DeepfakeClient",
    "DeepfakeError",
    "FaceScore",
    "FrameResult",
    "Health",
    "InferenceError",
    "InputError",
    "Interval",
    "Label",
    "MediaNotFoundError",
    "MediaOpenError",
    "MissingExtraError",
    "ModelContractError",
    "ModelIdentity",
    "ModelNotFoundError",
    "OptionError",
    "Outcome",
    "Progress",
    "Reason",
    "Retry",
    "RetryingTransport",
    "Sampling",
    "ServedModel",
    "ServerAccessError",
    "ServerBusyError",
    "ServerError",
    "ServerStartError",
    "ServerTimeoutError",
    "ServerTlsError",
    "ServerUnavailableError",
    "SharedMemoryError",
    "Source",
    "Timing",
    "Tls",
    "Track",
    "Transport",
    "Verdict",
    "WatchOptions",
    "connect",
    "open_frames",
    "open_media",
]
