"""What sampling frames of a clip costs, against PyAV decoding the whole clip.

Both ways are run in turn, because other load on the machine then meets both alike, and the sampled frames are first
checked to be those of the plain decode, pixel by pixel.
"""

from __future__ import annotations

import multiprocessing
import tempfile
from pathlib import Path
from typing import Any

import av
import numpy as np

from deepfake_bench.machine.processes import own_peak_mb
from deepfake_bench.machine.stopwatch import in_turn, median_ratio, spread
from deepfake_bench.pipeline.lower_bounds import decode_alone
from deepfake_preprocess.errors import DeepfakeError
from deepfake_preprocess.media.opening import open_media
from deepfake_preprocess.media.sampling import Sampling


def measure_clip(clip: Path, *, num_frames: int, repeats: int) -> dict[str, Any]:
    """Return seconds (medians) of decoding `clip` plainly and of sampling `num_frames` frames, and their ratios."""
    decoded, sampled = verify(clip, num_frames)
    taken = in_turn({"plain": lambda: decode_alone(clip), "sampled": lambda: _sample(clip, num_frames)}, repeats)
    ratios = [median_ratio(*([pair[kind] for pair in taken[way]] for way in ("sampled", "plain"))) for kind in (0, 1)]
    return {
        "clip": clip.name,
        "frames_verified": num_frames,
        "pictures_decoded": {"plain": decoded, "sampled": sampled},
        "repeats": repeats,
        "plain": spread(taken["plain"]),
        "sampled": spread(taken["sampled"]),
        "wall_ratio": round(ratios[0], 3),
        "cpu_ratio": round(ratios[1], 3),
    }


def verify(clip: Path, num_frames: int) -> tuple[int, int]:
    """Check that sampled frames equal those of a plain decode; return how many pictures each way decoded."""
    with open_media(clip) as media:
        frames = {frame.index: frame for frame in media.frames(Sampling(num_frames))}
        sampled = media.stats.frames_decoded
    count = 0
    with av.open(str(clip)) as container:
        container.streams.video[0].thread_type = "AUTO"
        for count, picture in enumerate(container.decode(video=0), start=1):
            frame = frames.pop(count - 1, None)
            # Turned clips are compared as stored.
            if frame is not None and not np.array_equal(
                picture.to_ndarray(format="rgb24"),
                frame.picture.to_ndarray(format="rgb24"),  # type: ignore[attr-defined]
            ):
                raise DeepfakeError(
                    f"{clip.name}: frame {count - 1} differs from the plain decode; nothing was measured"
                )
    if frames:
        raise DeepfakeError(f"{clip.name}: frames {sorted(frames)} are not in the plain decode; nothing was measured")
    return count, sampled


def measure_memory(*, num_frames: int) -> dict[str, float]:
    """Return peak memory in MB of sampling a ten-second and a one-hour clip (320x240, H.264), made on the spot."""
    peaks = {}
    with tempfile.TemporaryDirectory() as folder:
        for name, length_s in (("10 s", 10), ("1 h", 3600)):
            clip = Path(folder) / f"{length_s}.mp4"
            _write_clip(clip, length_s)
            # A fresh process: the peak of this one would remember what came before.
            with multiprocessing.get_context("spawn").Pool(1) as pool:
                peaks[name] = pool.apply(_peak_mb, (clip, num_frames))
    return peaks


def _peak_mb(clip: Path, num_frames: int) -> float:
    _sample(clip, num_frames)
    return own_peak_mb()


def _write_clip(path: Path, length_s: int) -> None:
    rng = np.random.default_rng(0)
    image = rng.integers(0, 255, (240, 320, 3), dtype=np.uint8)
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=30, options={"preset": "ultrafast", "crf": "30"})
        stream.width, stream.height, stream.pix_fmt = 320, 240, "yuv420p"
        pictures = [
            av.VideoFrame.from_ndarray(np.roll(image, step, axis=1), format="rgb24").reformat(format="yuv420p")
            for step in range(8)
        ]
        for number in range(length_s * 30):
            picture = pictures[number // 30 % 8]
            picture.pts = number
            container.mux(stream.encode(picture))
        container.mux(stream.encode(None))


def _sample(clip: Path, num_frames: int) -> None:
    with open_media(clip) as media:
        for _ in media.frames(Sampling(num_frames)):
            pass


def ffmpeg_versions() -> dict[str, str]:
    """Return the versions of FFmpeg's libraries."""
    return {name: ".".join(map(str, version)) for name, version in sorted(av.library_versions.items())}
