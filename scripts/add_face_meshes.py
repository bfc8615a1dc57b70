"""Adds dense landmarks to a file of packed faces; run once after `deepfake pack-faces`, in an environment of its own.

::

    python -m venv mesh && mesh/bin/pip install mediapipe==0.10.21 safetensors
    mesh/bin/python scripts/add_face_meshes.py faces.safetensors

MediaPipe (Apache-2.0) pins older versions of what the project uses, so nothing of the project is imported here. A
face whose mesh is not found, or does not agree with the detector's landmarks, keeps NaN; training then fits the mean
mesh to its five landmarks.
"""

from __future__ import annotations

import sys
from pathlib import Path

import cv2
import mediapipe
import numpy as np
from safetensors import safe_open
from safetensors.numpy import save_file

POINTS = 468
BORDER = 0.4
"""Added around each picture, as a share of its longer side: MediaPipe wants a face with surroundings."""
CORNERS = [[33, 133], [362, 263], [1], [61], [291]]
"""Points of the mesh whose mean is each of the detector's landmarks: eyes, nose, corners of the mouth."""
AGREES = 0.15
"""Largest mean distance from the detector's landmarks, as a share of the face's width."""


def main(path: str) -> None:
    """Write the meshes into the file `path`."""
    with safe_open(path, framework="numpy") as file:
        arrays = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (not a mapping)
        metadata = file.metadata()
    count = len(arrays["labels"])
    meshes = np.full((count, POINTS, 2), np.nan, dtype=np.float32)
    finder = mediapipe.solutions.face_mesh.FaceMesh(
        static_image_mode=True, max_num_faces=3, min_detection_confidence=0.3
    )
    for index in range(count):
        start, end = arrays["offsets"][index : index + 2]
        picture = cv2.imdecode(arrays["encoded"][start:end], cv2.IMREAD_COLOR)
        height, width = picture.shape[:2]
        edge = round(BORDER * max(height, width))
        padded = cv2.copyMakeBorder(picture, edge, edge, edge, edge, cv2.BORDER_REPLICATE)
        found = finder.process(cv2.cvtColor(padded, cv2.COLOR_BGR2RGB)).multi_face_landmarks or []
        box, known = arrays["boxes_xyxy"][index], arrays["landmarks_xy"][index]
        nearest = AGREES * (box[2] - box[0])
        for face in found:
            mesh = np.array([(point.x, point.y) for point in face.landmark], dtype=np.float32)
            mesh = mesh * (padded.shape[1], padded.shape[0]) - edge
            corners = np.stack([mesh[each].mean(axis=0) for each in CORNERS])
            distance = np.linalg.norm(corners - known, axis=1).mean()
            if distance < nearest:
                nearest, meshes[index] = distance, mesh
        if index % 500 == 499 or index == count - 1:
            print(f"{index + 1} of {count}", flush=True)
    missing = int(np.isnan(meshes[:, 0, 0]).sum())
    save_file({**arrays, "meshes_xy": meshes.astype(np.float16)}, f"{path}.part", metadata=metadata)
    Path(f"{path}.part").replace(path)
    print(f"{count - missing} of {count} faces have a mesh of their own")


if __name__ == "__main__":
    main(sys.argv[1])
