"""The public names of `deepfake_preprocess`, and the modules that they are loaded from on first use."""

from deepfake_preprocess.contract.manifest import EngineInfo, Manifest
from deepfake_preprocess.contract.spec import Crop, Head, ModelSpec
from deepfake_preprocess.errors import (
    CheckpointError,
    ClientUseError,
    DeepfakeError,
    EngineError,
    ExplainDisagreementError,
    ExplainError,
    ExportError,
    InferenceError,
    InputError,
    MediaNotFoundError,
    MediaOpenError,
    MissingExtraError,
    ModelContractError,
    ModelNotFoundError,
    ModelReplacedError,
    NoFaceError,
    OptionError,
    ParityError,
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
    TrainingError,
)
from deepfake_preprocess.faces.crop import crop_face
from deepfake_preprocess.faces.detector import Face, FaceDetector, FaceFollower, faces_in
from deepfake_preprocess.faces.geometry import CropGeometry, crop_geometry
from deepfake_preprocess.faces.mtcnn import MtcnnDetector
from deepfake_preprocess.media.frame import ArrayFrame, Frame
from deepfake_preprocess.media.frames_source import open_frames
from deepfake_preprocess.media.live import LiveOptions, LiveSource, open_live
from deepfake_preprocess.media.opening import Media, open_media
from deepfake_preprocess.media.packets.decoder import DecodeStats
from deepfake_preprocess.media.remote import open_url
from deepfake_preprocess.media.sampling import Sampling

__all__ = [
    "ArrayFrame",
    "CheckpointError",
    "ClientUseError",
    "Crop",
    "CropGeometry",
    "DecodeStats",
    "DeepfakeError",
    "EngineError",
    "EngineInfo",
    "ExplainDisagreementError",
    "ExplainError",
    "ExportError",
    "Face",
    "FaceDetector",
    "FaceFollower",
    "Frame",
    "Head",
    "InferenceError",
    "InputError",
    "LiveOptions",
    "LiveSource",
    "Manifest",
    "Media",
    "MediaNotFoundError",
    "MediaOpenError",
    "MissingExtraError",
    "ModelContractError",
    "ModelNotFoundError",
    "ModelReplacedError",
    "ModelSpec",
    "MtcnnDetector",
    "NoFaceError",
    "OptionError",
    "ParityError",
    "RepositoryError",
    "Sampling",
    "ServerAccessError",
    "ServerBusyError",
    "ServerError",
    "ServerStartError",
    "ServerTimeoutError",
    "ServerTlsError",
    "ServerUnavailableError",
    "SharedMemoryError",
    "SpecError",
    "TrainingError",
    "crop_face",
    "crop_geometry",
    "faces_in",
    "open_frames",
    "open_live",
    "open_media",
    "open_url",
]
