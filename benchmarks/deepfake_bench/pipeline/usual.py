"""What the field's projects do with a clip.

OpenCV seeks to each frame, facenet-pytorch finds the faces, and eager PyTorch scores the crops, one after another.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np

from deepfake_bench.pipeline.facenet import Peer
from deepfake_preprocess.contract.spec import ModelSpec
from deepfake_preprocess.faces.crop import crop_face
from deepfake_preprocess.faces.detector import Face
from deepfake_preprocess.media.frame import ArrayFrame


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
