"""The loop of an in-process engine: one order per line on standard input, one line of JSON as the answer.

Orders are ``{"crops": "file.npy"}``, answered with the probabilities, ``{"concurrency": 1, "seconds": 3}``, answered
with the latencies of single crops, and ``{"concurrency": 32, "seconds": 3}``, answered with crops per second.
"""

import json
import sys
import time
from collections.abc import Callable

import numpy as np

Run = Callable[[np.ndarray], np.ndarray]
Throughput = Callable[[np.ndarray, float], float]


def obey(run: Run, throughput: Throughput) -> None:
    """Carry out orders until standard input ends."""
    crops = np.empty(0, np.uint8)
    for line in sys.stdin:
        order = json.loads(line)
        if "crops" in order:
            crops = np.load(order["crops"])
            answer = {"probabilities": [float(run(crop[None])[0]) for crop in crops]}
        elif order["concurrency"] == 1:
            answer = {"latencies_s": latencies(run, crops, order["seconds"])}
        else:
            answer = {"crops_per_s": throughput(crops, order["seconds"])}
        print(json.dumps(answer), flush=True)


def latencies(run: Run, crops: np.ndarray, seconds: float) -> list[float]:
    """Seconds of single crops, one after another."""
    taken: list[float] = []
    start = time.perf_counter()
    while (begin := time.perf_counter()) - start < seconds:
        run(crops[len(taken) % len(crops)][None])
        taken.append(time.perf_counter() - begin)
    return taken
