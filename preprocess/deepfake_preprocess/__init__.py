"""From a video to face crops, and the contract of the models that score them. Imports no torch and no server.

::

    from deepfake_preprocess import ModelSpec, MtcnnDetector, crop_face, faces_in, open_media

    spec, detector = ModelSpec.from_yaml("detector.yaml"), MtcnnDetector()
    with open_media("clip.mp4") as media:
        for frame in media.frames():
            crops = [crop_face(frame, face, spec) for face in faces_in(frame, detector)]

Folders: `media` (from a file, an address, a camera or arrays to frames), `faces` (from a frame to faces and crops),
`contract` (what a served model is), `support` (what every package needs). `errors` is the error tree of the whole
project. Public names are listed in ``__init__.pyi`` and loaded on first use.
"""

from deepfake_preprocess.support.lazy import attach_stub

__getattr__, __all__ = attach_stub(__name__, __file__)
