"""The client library of deepfake-serving: from a video or an image to a verdict, with the help of Triton.

::

    from deepfake_client import DeepfakeClient

    with DeepfakeClient("localhost:8001") as client:
        verdict = client.analyze("clip.mp4")
    print(verdict.label, verdict.fake_probability)

Works without torch. Errors are in `deepfake_preprocess.errors` and can be imported from here as well.
"""

from deepfake_client.aggregation import STRATEGIES
from deepfake_client.client import AsyncDeepfakeClient, DeepfakeClient
from deepfake_client.inputs import Source
from deepfake_client.outcome import Outcome
from deepfake_client.pipeline import Progress
from deepfake_client.transport import GrpcTransport, ServedModel, Transport
from deepfake_client.verdict import (
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
    ServerBusyError,
    ServerError,
    ServerStartError,
    ServerTimeoutError,
    ServerUnavailableError,
)
from deepfake_preprocess.stream import open_frames
from deepfake_preprocess.video import Sampling, open_media

__all__ = [
    "STRATEGIES",
    "AsyncDeepfakeClient",
    "Concern",
    "Consistency",
    "DeepfakeClient",
    "DeepfakeError",
    "FaceScore",
    "FrameResult",
    "GrpcTransport",
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
    "Sampling",
    "ServedModel",
    "ServerBusyError",
    "ServerError",
    "ServerStartError",
    "ServerTimeoutError",
    "ServerUnavailableError",
    "Source",
    "Timing",
    "Track",
    "Transport",
    "Verdict",
    "open_frames",
    "open_media",
]
