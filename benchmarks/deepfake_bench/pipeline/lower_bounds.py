"""What an analysis cannot be faster than: its parts alone, each with all the cores and nothing else to do."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from queue import SimpleQueue
from typing import Any

import av
import numpy as np

from deepfake_bench.load.senders import Crops
from deepfake_bench.server.reference import OnnxReference
from deepfake_bench.server.serving import Server
from deepfake_preprocess.faces.detector import FaceDetector, detection_image
from deepfake_preprocess.faces.following import DETECT_EVERY, find_faces
from deepfake_preprocess.media.opening import open_media
from deepfake_preprocess.media.sampling import Sampling
from deepfake_preprocess.support.engines import CROPS_PER_THREAD
from deepfake_preprocess.support.machine import usable_cores


def decode_alone(clip: Path) -> int:
    """Decode the whole clip with PyAV's automatic threading and return the number of frames."""
    with av.open(str(clip)) as container:
        container.streams.video[0].thread_type = "AUTO"
        return sum(1 for _ in container.decode(video=0))


def detector_alone(clip: Path, sampling: Sampling, detector: FaceDetector) -> Callable[[], int]:
    """Return the face detection of one analysis as a function; frames are decoded and scaled here, before the clock.

    Faces are followed from frame to frame as in an analysis, and frames detected in full run side by side, one thread
    per core. The function returns how many faces it found.
    """
    with open_media(clip) as media:
        images = [(detection_image(frame, detector), frame.pts_seconds) for frame in media.frames(sampling)]
    chains = [images[start : start + DETECT_EVERY] for start in range(0, len(images), DETECT_EVERY)]

    def follow(chain: Sequence[tuple[Crops, float]]) -> int:
        before, faces = None, 0
        for image, pts_seconds in chain:
            before = find_faces(detector, image, pts_seconds, before)
            faces += len(before.faces)
        return faces

    def run() -> int:
        with ThreadPoolExecutor(usable_cores()) as pool:
            return sum(pool.map(follow, chains))

    return run


def inference_alone(server: Server, crops: Crops) -> Callable[[], Crops]:
    """Return the inference of one analysis as a function: the server's engine in-process, arranged as it is there.

    It has as many sessions and threads as the server has ``instances`` and ``threads``. The function returns float32
    ``[N]`` fake probabilities of the crops, uint8 ``[N, H, W, 3]``, N at least 1.
    """
    arrangement = server.arrangement
    batch = CROPS_PER_THREAD * arrangement["threads"]
    sessions: SimpleQueue[OnnxReference] = SimpleQueue()
    for _ in range(arrangement["instances"]):
        session = server.in_process(threads=arrangement["threads"])
        assert session is not None  # an embedded server has its file
        session(crops[:batch])  # the first run allocates
        sessions.put(session)

    def score(part: Crops) -> Any:
        session = sessions.get()
        try:
            return session(part)
        finally:
            sessions.put(session)

    def run() -> Any:
        parts = [crops[start : start + batch] for start in range(0, len(crops), batch)]
        with ThreadPoolExecutor(arrangement["instances"]) as pool:
            return np.concatenate(list(pool.map(score, parts)))

    return run
