"""From a video to face crops, and the contract of the models that score them. Imports no torch and no server.

::

    from deepfake_preprocess import ModelSpec, MtcnnDetector, crop_face, faces_in, open_media

    spec, detector = ModelSpec.from_yaml("detector.yaml"), MtcnnDetector()
    with open_media("clip.mp4") as media:
        for frame in media.frames():
            crops = [crop_face(frame, face, spec) for face in faces_in(frame, detector)]

Folders: `media` (from a file, an address, a camera or arrays to frames), `faces` (from a frame to faces and crops),
`contract` (what a served model is), `support` (what every package needs). `errors` is the error tree of the whole
project. Everything but the errors is loaded when it is first used.
"""

from typing import TYPE_CHECKING

from deepfake_preprocess.errors import (
    CheckpointError,
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
from deepfake_preprocess.support.lazy import lazy_attributes

if TYPE_CHECKING:
    from deepfake_preprocess.contract.manifest import Manifest
    from deepfake_preprocess.contract.plan_info import EngineInfo
    from deepfake_preprocess.contract.spec import Crop, Head, ModelSpec
    from deepfake_preprocess.faces.crop import crop_face
    from deepfake_preprocess.faces.detector import Face, FaceDetector, FaceFollower, faces_in
    from deepfake_preprocess.faces.geometry import CropGeometry, crop_geometry
    from deepfake_preprocess.faces.mtcnn import MtcnnDetector
    from deepfake_preprocess.media.decoding import DecodeStats
    from deepfake_preprocess.media.frame import ArrayFrame, Frame
    from deepfake_preprocess.media.frames_source import open_frames
    from deepfake_preprocess.media.live import LiveSource, open_live
    from deepfake_preprocess.media.opening import Media, open_media
    from deepfake_preprocess.media.remote import open_url
    from deepfake_preprocess.media.sampling import Sampling
else:
    __getattr__ = lazy_attributes(
        __name__,
        {
            "contract.manifest": "Manifest",
            "contract.plan_info": "EngineInfo",
            "contract.spec": "Crop Head ModelSpec",
            "faces.crop": "crop_face",
            "faces.detector": "Face FaceDetector FaceFollower faces_in",
            "faces.geometry": "CropGeometry crop_geometry",
            "faces.mtcnn": "MtcnnDetector",
            "media.decoding": "DecodeStats",
            "media.frame": "ArrayFrame Frame",
            "media.frames_source": "open_frames",
            "media.live": "LiveSource open_live",
            "media.opening": "Media open_media",
            "media.remote": "open_url",
            "media.sampling": "Sampling",
        },
    )

__all__ = [
    "ArrayFrame",
    "CheckpointError",
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
    "LiveSource",
    "Manifest",
    "Media",
    "MediaNotFoundError",
    "MediaOpenError",
    "MissingExtraError",
    "ModelContractError",
    "ModelNotFoundError",
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
