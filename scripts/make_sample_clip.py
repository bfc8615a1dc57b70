"""Makes the clip that `make run` analyzes when no VIDEO is given: a slow pan over a real face.

The picture is `skimage.data.astronaut()` (NASA, public domain), so nothing needs to be downloaded or committed.
"""

from __future__ import annotations

import sys
from pathlib import Path

import av
import cv2
import numpy as np
from skimage.data import astronaut

WIDTH_PX, HEIGHT_PX, FPS, SECONDS = 1280, 720, 25, 6


def main(path: Path) -> None:
    """Write the clip to `path` as H.264 in MP4."""
    picture = cv2.resize(astronaut(), (WIDTH_PX, WIDTH_PX), interpolation=cv2.INTER_CUBIC)
    path.parent.mkdir(parents=True, exist_ok=True)
    unfinished = path.with_name(f".{path.name}.part")
    with av.open(str(unfinished), "w", format="mp4") as container:
        stream = container.add_stream("libx264", rate=FPS)
        stream.width, stream.height, stream.pix_fmt = WIDTH_PX, HEIGHT_PX, "yuv420p"
        for number in range(FPS * SECONDS):
            top = round(60 * (1 - np.cos(2 * np.pi * number / (FPS * SECONDS))))
            frame = av.VideoFrame.from_ndarray(np.ascontiguousarray(picture[top : top + HEIGHT_PX]), format="rgb24")
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
    unfinished.rename(path)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
