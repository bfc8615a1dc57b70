"""OpenVINO in throughput mode, in-process.

Many requests of one crop are in flight, which is how its documentation uses this mode:
https://docs.openvino.ai/2026/openvino-workflow/running-inference/optimize-inference/optimizing-throughput.html
"""

import time

import engine
import numpy as np
import openvino as ov
from network import HINTS, OPTIONS

HINT = {"INFERENCE_PRECISION_HINT": HINTS[OPTIONS["precision"]]}
core = ov.Core()
model = core.read_model(OPTIONS["model"])
throughput_model = core.compile_model(model, "CPU", {"PERFORMANCE_HINT": "THROUGHPUT", **HINT})
latency_model = core.compile_model(model, "CPU", {"PERFORMANCE_HINT": "LATENCY", **HINT})


def run(crops: np.ndarray) -> np.ndarray:
    """Run it once, in the mode for single requests."""
    return latency_model({"faces": crops})["fake_probability"][:, 0]


def throughput(crops: np.ndarray, seconds: float) -> float:
    """Crops per second with as many requests of one crop in flight as OpenVINO likes best."""
    queue = ov.AsyncInferQueue(throughput_model)
    for crop in crops:
        queue.start_async({"faces": crop[None]})
    queue.wait_all()
    start, done = time.perf_counter(), 0
    while time.perf_counter() - start < seconds:
        queue.start_async({"faces": crops[done % len(crops)][None]})
        done += 1
    queue.wait_all()
    return done / (time.perf_counter() - start)


engine.obey(run, throughput)
