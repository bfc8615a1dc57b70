"""What sampling frames of a clip costs, against PyAV decoding the whole clip.

Run ``python -m deepfake_bench.decode CLIP...``. Both ways are run in turn, so that other load on the machine
meets both alike, and the sampled frames are first checked to be those of the plain decode, pixel by pixel. With
``--memory`` the peak memory of sampling a ten-second and a one-hour clip is measured too, in processes of its own.
"""

from __future__ import annotations

import argparse
import multiprocessing
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import av
import numpy as np

from deepfake_bench.environment import environment, write_results
from deepfake_preprocess.sampling import Sampling
from deepfake_preprocess.video import open_media


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure the clips given on the command line, print a table and write the results as JSON."""
    parser = argparse.ArgumentParser(prog="python -m deepfake_bench.decode", description=__doc__)
    parser.add_argument("clips", nargs="+", type=Path, metavar="CLIP")
    parser.add_argument("--frames", type=int, default=32, help="frames sampled per clip (default: %(default)s)")
    parser.add_argument("--repeats", type=int, default=7, help="runs of each way (default: %(default)s)")
    parser.add_argument("--memory", action="store_true", help="also compare peak memory of a long and a short clip")
    parser.add_argument("--output", type=Path, help="default: benchmarks/results/MACHINE-decode.json")
    options = parser.parse_args(arguments)

    rows = [measure_clip(clip, num_frames=options.frames, repeats=options.repeats) for clip in options.clips]
    print(f"{'clip':36} {'plain wall':>11} {'sampled':>9} {'ratio':>6} {'plain CPU':>10} {'sampled':>9} {'ratio':>6}")
    for row in rows:
        plain, ours = row["plain"], row["sampled"]
        print(
            f"{row['clip'][:36]:36} {plain['wall_s']:9.3f} s {ours['wall_s']:7.3f} s {row['wall_ratio']:6.2f} "
            f"{plain['cpu_s']:8.3f} s {ours['cpu_s']:7.3f} s {row['cpu_ratio']:6.2f}"
        )
    results: dict[str, Any] = {"environment": environment(["av", "numpy"]), "ffmpeg": _ffmpeg(), "clips": rows}
    if options.memory:
        results["memory"] = measure_memory(num_frames=options.frames)
        print(f"peak memory, MB: {results['memory']}")
    print(f"written to {write_results('decode', results, path=options.output)}")
    return 0


def measure_clip(clip: Path, *, num_frames: int, repeats: int) -> dict[str, Any]:
    """Return seconds (medians) of decoding `clip` plainly and of sampling `num_frames` frames, and their ratios.

    Raises:
        SystemExit: the sampled frames are not those of the plain decode.
    """
    decoded, sampled = verify(clip, num_frames)
    ways: dict[str, Callable[[], None]] = {
        "plain": lambda: _decode_plainly(clip),
        "sampled": lambda: _sample(clip, num_frames),
    }
    seconds: dict[str, list[tuple[float, float]]] = {name: [] for name in ways}
    for _ in range(repeats):
        for name, way in ways.items():
            started, busy = time.perf_counter(), time.process_time()
            way()
            seconds[name].append((time.perf_counter() - started, time.process_time() - busy))
    row: dict[str, Any] = {
        "clip": clip.name,
        "frames_verified": num_frames,
        "pictures_decoded": {"plain": decoded, "sampled": sampled},
        "repeats": repeats,
    }
    for name, pairs in seconds.items():
        wall, cpu = zip(*pairs, strict=True)
        row[name] = {
            "wall_s": round(statistics.median(wall), 4),
            "wall_min_s": round(min(wall), 4),
            "cpu_s": round(statistics.median(cpu), 4),
            "cpu_min_s": round(min(cpu), 4),
        }
    # The median of ratios of neighbouring runs, which saw about the same load.
    for number, kind in enumerate(("wall", "cpu")):
        ratios = [b[number] / a[number] for a, b in zip(seconds["plain"], seconds["sampled"], strict=True)]
        row[f"{kind}_ratio"] = round(statistics.median(ratios), 3)
    return row


def verify(clip: Path, num_frames: int) -> tuple[int, int]:
    """Check that sampled frames equal those of a plain decode; return how many pictures each way decoded.

    Raises:
        SystemExit: they differ.
    """
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
                sys.exit(f"{clip.name}: frame {count - 1} differs from the plain decode")
    if frames:
        sys.exit(f"{clip.name}: frames {sorted(frames)} are not in the plain decode")
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
    # Not getrusage: its peak is inherited from the process that started this one.
    status = Path("/proc/self/status").read_text(encoding="ascii")
    return round(int(status.partition("VmHWM:")[2].split()[0]) / 1024, 1)


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


def _decode_plainly(clip: Path) -> None:
    with av.open(str(clip)) as container:
        container.streams.video[0].thread_type = "AUTO"
        for _ in container.decode(video=0):
            pass


def _sample(clip: Path, num_frames: int) -> None:
    with open_media(clip) as media:
        for _ in media.frames(Sampling(num_frames)):
            pass


def _ffmpeg() -> dict[str, str]:
    return {name: ".".join(map(str, version)) for name, version in sorted(av.library_versions.items())}


if __name__ == "__main__":
    sys.exit(main())
