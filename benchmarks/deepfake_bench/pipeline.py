"""End to end, side by side: our client on a warm embedded Triton, PyAV decoding alone, and the usual pipeline.

Ours runs with uniform and with fast sampling. The usual pipeline is what the field's projects do with a clip: OpenCV
seeks to each frame, facenet-pytorch's MTCNN finds the faces, eager PyTorch scores the crops. All run in turn in every
round, so that a noisy machine disturbs them alike; the ratios are medians over rounds. All but the fast one look at
the same frames.

::

    pip install --no-deps --target PEERS facenet-pytorch==2.6.0 requests tqdm
    PYTHONPATH=PEERS python -m deepfake_bench.pipeline clip.mp4 --checkpoint demo.safetensors --repository models

Without facenet-pytorch the usual pipeline is left out and the result says so.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import av
import cv2
import numpy as np
from rich.console import Console
from rich.table import Table

from deepfake_bench.environment import environment, write_results
from deepfake_client import DeepfakeClient, Sampling, Verdict
from deepfake_export.checkpoint import load_model
from deepfake_preprocess.crop import crop_face
from deepfake_preprocess.face import Face
from deepfake_preprocess.frame import ArrayFrame
from deepfake_preprocess.spec import ModelSpec
from deepfake_serve.server import EmbeddedTriton

PACKAGES = (
    "av",
    "numpy",
    "onnxruntime",
    "opencv-python-headless",
    "tritonclient",
    "torch",
    "timm",
    "facenet-pytorch",
)


def decode_alone(clip: Path) -> int:
    """Decode the whole clip with PyAV's automatic threading and return the number of frames."""
    with av.open(str(clip)) as container:
        container.streams.video[0].thread_type = "AUTO"
        return sum(1 for _ in container.decode(video=0))


def usual_pipeline(clip: Path, indices: list[int], spec: ModelSpec, checkpoint: Path) -> Callable[[], list[float]]:
    """Return the usual pipeline as a function: it scores the frames `indices` of `clip`, one after another.

    Networks are loaded here, outside of what is timed.
    """
    import torch
    from facenet_pytorch import MTCNN  # not a dependency; see the module's docstring

    detector = MTCNN(keep_all=True)
    network = load_model(checkpoint, spec)
    mean, std = torch.tensor(spec.mean).view(3, 1, 1), torch.tensor(spec.std).view(3, 1, 1)

    def run() -> list[float]:
        scores = []
        capture = cv2.VideoCapture(str(clip))
        for index in indices:
            capture.set(cv2.CAP_PROP_POS_FRAMES, index)
            found, image = capture.read()
            if not found:
                continue
            image_rgb = cv2.cvtColor(image, cv2.COLOR_BGR2RGB)
            boxes, confidences = detector.detect(image_rgb)
            if boxes is None:
                continue
            frame = ArrayFrame.from_rgb(np.asarray(image_rgb, dtype=np.uint8))
            for box, confidence in zip(boxes, confidences, strict=True):
                crop = crop_face(frame, Face(np.asarray(box, np.float32), float(confidence)), spec)
                pixels = (torch.from_numpy(crop).permute(2, 0, 1).float() / 255 - mean) / std
                with torch.no_grad():
                    scores.append(float(torch.sigmoid(network(pixels[None]))[0, 0]))
        capture.release()
        return scores

    return run


def measure(
    clip: Path, client: DeepfakeClient, *, num_frames: int, rounds: int, checkpoint: Path | None, console: Console
) -> dict[str, Any]:
    """Time one clip in all ways, `rounds` times in turn, and return plain JSON data (seconds of wall clock)."""
    sampling = Sampling(num_frames=num_frames)
    fast = Sampling(num_frames=num_frames, mode="fast")
    verdict = client.analyze(clip, sampling=sampling)  # warms up, and says which frames are taken
    fast_verdict = client.analyze(clip, sampling=fast)
    indices = [frame.index for frame in verdict.frames]
    ways: dict[str, Callable[[], object]] = {
        "decode_alone": lambda: decode_alone(clip),
        "ours": lambda: client.analyze(clip, sampling=sampling),
        "ours_fast": lambda: client.analyze(clip, sampling=fast),
    }
    peer_scores: list[float] | None = None
    if checkpoint is not None:
        usual = usual_pipeline(clip, indices, client.model().spec, checkpoint)
        peer_scores = usual()
        ways["usual"] = usual
    seconds: dict[str, list[float]] = {name: [] for name in ways}
    for number in range(rounds):
        for name, way in ways.items():
            console.print(f"[dim]{clip.name}: round {number + 1} of {rounds}, {name}[/]", highlight=False)
            started = time.perf_counter()
            way()
            seconds[name].append(time.perf_counter() - started)
    data: dict[str, Any] = {
        "clip": clip.name,
        "frames": len(indices),
        "faces_ours": sum(len(frame.faces) for frame in verdict.frames),
        "mean_score_ours": _mean_score(verdict),
        "seconds": seconds,
        "median_seconds": {name: statistics.median(values) for name, values in seconds.items()},
        "ours_over_decode_alone": _ratio(seconds["ours"], seconds["decode_alone"]),
        "stages_s": verdict.timing.to_dict(),
        "faces_fast": sum(len(frame.faces) for frame in fast_verdict.frames),
        "mean_score_fast": _mean_score(fast_verdict),
        "fast_over_decode_alone": _ratio(seconds["ours_fast"], seconds["decode_alone"]),
    }
    if peer_scores is not None:
        data["faces_usual"] = len(peer_scores)
        data["mean_score_usual"] = statistics.fmean(peer_scores) if peer_scores else None
        data["ours_over_usual"] = _ratio(seconds["ours"], seconds["usual"])
    return data


def _ratio(ours: list[float], other: list[float]) -> float:
    """Median of the ratios of neighbouring measurements: what disturbs both cancels out."""
    return statistics.median(a / b for a, b in zip(ours, other, strict=True))


def _mean_score(verdict: Verdict) -> float | None:
    scores = [
        face.fake_probability for frame in verdict.frames for face in frame.faces if face.fake_probability is not None
    ]
    return statistics.fmean(scores) if scores else None


def main() -> None:
    """Run the benchmark from the command line."""
    parser = argparse.ArgumentParser(
        description="Times whole analyses against decoding alone and the usual pipeline."
    )
    parser.add_argument("clips", nargs="+", type=Path, metavar="CLIP")
    parser.add_argument("--repository", type=Path, required=True, help="model repository to serve")
    parser.add_argument("--checkpoint", type=Path, help="checkpoint of the served model; enables the usual pipeline")
    parser.add_argument("--frames", type=int, default=32)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--output", type=Path, help="results file (default: under benchmarks/results)")
    options = parser.parse_args()
    console = Console(stderr=True)
    checkpoint = options.checkpoint
    if checkpoint is not None:
        try:
            import facenet_pytorch  # noqa: F401
        except ImportError:
            sys.exit(
                "facenet-pytorch cannot be imported; install it as `python -m pydoc deepfake_bench.pipeline` says"
            )
    with EmbeddedTriton(options.repository) as triton, DeepfakeClient(triton.grpc_url) as client:
        clips = [
            measure(
                clip, client, num_frames=options.frames, rounds=options.rounds, checkpoint=checkpoint, console=console
            )
            for clip in options.clips
        ]
        model = client.model()
    table = Table(
        "clip", "decode alone", "ours", "fast", "usual", "ours / decode", "fast / decode", "usual / ours", "faces"
    )
    for data in clips:
        medians = data["median_seconds"]
        table.add_row(
            data["clip"],
            f"{medians['decode_alone']:.2f} s",
            f"{medians['ours']:.2f} s",
            f"{medians['ours_fast']:.2f} s",
            f"{medians['usual']:.2f} s" if "usual" in medians else "not measured",
            f"{data['ours_over_decode_alone']:.2f}",
            f"{data['fast_over_decode_alone']:.2f}",
            f"{1 / data['ours_over_usual']:.1f}" if "ours_over_usual" in data else "not measured",
            f"{data['faces_ours']} / {data['faces_fast']} / {data.get('faces_usual', '-')}",
        )
    Console().print(table)
    path = write_results(
        "pipeline",
        {
            "benchmark": "pipeline",
            "environment": environment(PACKAGES),
            "model": model.spec.name,
            "precision": "fp32",
            "frames_per_clip": options.frames,
            "rounds": options.rounds,
            "clips": clips,
        },
        path=options.output,
    )
    console.print(f"written to {path}")


if __name__ == "__main__":
    main()
