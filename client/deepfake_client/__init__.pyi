"""The public names of `deepfake_client`, and the modules that they are loaded from on first use."""

from deepfake_client.analysis.pipeline import OnProgress, Progress
from deepfake_client.async_client import AsyncDeepfakeClient, OnVerdict
from deepfake_client.client import DeepfakeClient
from deepfake_client.explain.evidence import Evidence, Pick
from deepfake_client.explain.findings import ExplainedFace, open_explainer
from deepfake_client.explain.types import Explainer, ExplainOptions, Explanation, MemberHeatmap, Region, ServedScores
from deepfake_client.gateway.client import AsyncGatewayClient, GatewayClient, GatewayModel
from deepfake_client.gateway.sending import EncodedSource
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
from deepfake_client.transport.address import Address
from deepfake_client.transport.connect import connect
from deepfake_client.transport.connection import Connection
from deepfake_client.transport.protocol import Health, ServedModel, Transport
from deepfake_client.transport.retry import NO_RETRY, Retry, RetryingTransport
from deepfake_client.transport.tls import Tls
from deepfake_preprocess.contract.spec import Calibration, Crop, Head, Histogram, Looks, ModelSpec
from deepfake_preprocess.errors import (
    CheckpointError,
    ClientUseError,
    DeepfakeError,
    ExplainDisagreementError,
    ExplainError,
    InferenceError,
    InputError,
    MediaCrashError,
    MediaLimitError,
    MediaNotFoundError,
    MediaOpenError,
    MissingExtraError,
    ModelContractError,
    ModelNotFoundError,
    ModelReplacedError,
    NoFaceError,
    OptionError,
    RepositoryError,
    ServerAccessError,
    ServerBusyError,
    ServerError,
    ServerStartError,
    ServerTimeoutError,
    ServerTlsError,
    ServerUnavailableError,
    SharedMemoryError,
    SpecError,
)
from deepfake_preprocess.faces.detector import Face, FaceDetector
from deepfake_preprocess.faces.geometry import CropGeometry
from deepfake_preprocess.media.frame import Frame
from deepfake_preprocess.media.frames_source import open_frames
from deepfake_preprocess.media.live import LiveOptions
from deepfake_preprocess.media.opening import Media, open_media
from deepfake_preprocess.media.packets.decoder import DecodeStats
from deepfake_preprocess.media.sampling import Sampling

__all__ = [
    "AGGREGATIONS",
    "NO_RETRY",
    "Address",
    "AnalyzeOptions",
    "AsyncDeepfakeClient",
    "AsyncGatewayClient",
    "AsyncSource",
    "Calibration",
    "CheckpointError",
    "ClientUseError",
    "Concern",
    "Connection",
    "Consistency",
    "Crop",
    "CropGeometry",
    "DecodeStats",
    "DeepfakeClient",
    "DeepfakeError",
    "EncodedSource",
    "Evidence",
    "ExplainDisagreementError",
    "ExplainError",
    "ExplainOptions",
    "ExplainedFace",
    "Explainer",
    "Explanation",
    "Face",
    "FaceDetector",
    "FaceScore",
    "Frame",
    "FrameResult",
    "GatewayClient",
    "GatewayModel",
    "Head",
    "Health",
    "Histogram",
    "InferenceError",
    "InputError",
    "Interval",
    "Label",
    "LiveOptions",
    "Looks",
    "Media",
    "MediaCrashError",
    "MediaLimitError",
    "MediaNotFoundError",
    "MediaOpenError",
    "MemberHeatmap",
    "MissingExtraError",
    "ModelContractError",
    "ModelIdentity",
    "ModelNotFoundError",
    "ModelReplacedError",
    "ModelSpec",
    "NoFaceError",
    "OnProgress",
    "OnVerdict",
    "OptionError",
    "Outcome",
    "Pick",
    "Progress",
    "Reason",
    "Region",
    "RepositoryError",
    "Retry",
    "RetryingTransport",
    "Sampling",
    "ServedModel",
    "ServedScores",
    "ServerAccessError",
    "ServerBusyError",
    "ServerError",
    "ServerStartError",
    "ServerTimeoutError",
    "ServerTlsError",
    "ServerUnavailableError",
    "SharedMemoryError",
    "Source",
    "SpecError",
    "Timing",
    "Tls",
    "Track",
    "Transport",
    "Verdict",
    "WatchOptions",
    "connect",
    "open_explainer",
    "open_frames",
    "open_media",
]
