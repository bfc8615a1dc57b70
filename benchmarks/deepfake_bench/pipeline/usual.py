"""What the field's projects do with a clip, as a peer to compare with.

OpenCV seeks to each frame, facenet-pytorch's MTCNN finds the faces, and eager PyTorch scores the crops, one after
another. facenet-pytorch is not a dependency: it pins old versions of torch and numpy. It runs with the present ones
when it is installed without its dependencies into a folder of its own.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from deepfake_preprocess.contract.spec import ModelSpec
from deepfake_preprocess.faces.crop import crop_face
from deepfake_preprocess.faces.detector import Face
from deepfake_preprocess.media.frame import ArrayFrame

Boxes = NDArray[np.float32]
Peer = Callable[[NDArray[np.uint8]], tuple[Boxes, NDArray[np.float32]]]
"""From a uint8 ``[H, W, 3]`` RGB image to float32 ``[N, 4]`` boxes and ``[N]`` confidences."""


def load_peer(path: Path | None, *, threads: int | None = None) -> Peer:
    """Return facenet-pytorch's MTCNN, with its defaults and ``keep_all=True``, from a folder or as it is installed.

    `threads` are those of PyTorch, which runs it; its own choice when None.
    """
    if path is not None:
        sys.path.append(str(path))
    from facenet_pytorch import MTCNN

    if threads is not None:
        import torch

        torch.set_num_threads(threads)
    peer = MTCNN(keep_all=True)

    def detect(image: NDArray[np.uint8]) -> tuple[Boxes, NDArray[np.float32]]:
        boxes, confidences = peer.detect(image)
        if boxes is None:
            return np.empty((0, 4), np.float32), np.empty(0, np.float32)
        return np.asarray(boxes, np.float32), np.asarray(confidences, np.float32)

    return detect


def usual_pipeline(
    clip: Path, indices: Sequence[int], spec: ModelSpec, checkpoint: Path, peer: Peer
) -> Callable[[], list[float]]:
    """Return the usual pipeline as a function: it scores the frames `indices` of `clip`.

    Networks are loaded here, outside of what is timed.
    """
    import cv2
    import torch

    from deepfake_export import load_network

    network = load_network(checkpoint, spec).network
    mean, std = torch.tensor(spec.mean).view(3, 1, 1), torch.tensor(spec.std).view(3, 1, 1)

    def run() -> list[float]:
        scores = []
        capture = cv2.VideoCapture(str(clip))
        for index in indices:
            capture.set(cv2.CAP_PROP_POS_FRAMES, index)
            found, image = capture.read()
            if not found:
                continue
            image_rgb = np.asarray(cv2.cvtColor(image, cv2.COLOR_BGR2RGB), dtype=np.uint8)
            frame = ArrayFrame.from_rgb(image_rgb)
            for box, confidence in zip(*peer(image_rgb), strict=True):
                crop = crop_face(frame, Face(box, float(confidence)), spec)
                pixels = (torch.from_numpy(crop).permute(2, 0, 1).float() / 255 - mean) / std
                with torch.no_grad():
                    scores.append(float(torch.sigmoid(network(pixels[None]))[0, 0]))
        capture.release()
        return scores

    return run
