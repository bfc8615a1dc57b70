"""facenet-pytorch's MTCNN, the usual face detector of the field, as a peer to compare with.

It is not a dependency: it pins old versions of torch and numpy. It runs with the present ones when it is installed
without its dependencies into a folder of its own.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

Boxes = NDArray[np.float32]
Peer = Callable[[NDArray[np.uint8]], tuple[Boxes, NDArray[np.float32]]]
"""From a uint8 ``[H, W, 3]`` RGB image to float32 ``[N, 4]`` boxes and ``[N]`` confidences."""


def load_peer(path: Path | None, *, threads: int | None = None) -> Peer:
    """Return facenet-pytorch's MTCNN with its default settings and ``keep_all=True``.

    Args:
        path: folder that it is installed in; None where it is installed as any package.
        threads: threads of PyTorch, which runs it; its own choice when None.

    Raises:
        ImportError: it is not there.
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
