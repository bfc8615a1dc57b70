"""ONNX Runtime in-process: as an application without a server runs it, see `engine`."""

import threading
import time

import engine
import numpy as np
from network import OPTIONS, load

sessions = [load(OPTIONS["threads"]) for _ in range(OPTIONS["sessions"])]
lone_session = sessions[0] if len(sessions) == 1 else load(len(sessions) * OPTIONS["threads"])


def run(crops: np.ndarray) -> np.ndarray:
    """Run once with all threads: what a single crop is fastest with."""
    return lone_session(crops)[:, 0]


def throughput(crops: np.ndarray, seconds: float) -> float:
    """Crops per second of all sessions together, each in a thread of its own with full batches."""
    batch = np.resize(crops, (OPTIONS["batch"], *crops.shape[1:]))
    rates = [0.0] * len(sessions)
    gate = threading.Barrier(len(sessions))

    def loop(number: int) -> None:
        sessions[number](batch)
        gate.wait()
        start, done = time.perf_counter(), 0
        while time.perf_counter() - start < seconds:
            sessions[number](batch)
            done += len(batch)
        rates[number] = done / (time.perf_counter() - start)

    threads = [threading.Thread(target=loop, args=(number,)) for number in range(len(sessions))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return sum(rates)


engine.obey(run, throughput)
