"""ONNX Runtime in-process: as an application without a server runs it, see `engine`."""

import argparse
import threading
import time

import engine
import numpy as np
import onnxruntime as ort

parser = argparse.ArgumentParser()
parser.add_argument("model")
parser.add_argument("--sessions", type=int)
parser.add_argument("--threads", type=int)
parser.add_argument("--batch", type=int)
args = parser.parse_args()


def session() -> ort.InferenceSession:
    """A session with its share of the cores."""
    options = ort.SessionOptions()
    options.intra_op_num_threads = args.threads
    return ort.InferenceSession(args.model, options, providers=["CPUExecutionProvider"])


sessions = [session() for _ in range(args.sessions)]


def run(crops: np.ndarray, number: int = 0) -> np.ndarray:
    """Run one session once."""
    return sessions[number].run(["fake_probability"], {"faces": crops})[0][:, 0]


def throughput(crops: np.ndarray, seconds: float) -> float:
    """Crops per second of all sessions together, each in a thread of its own with full batches."""
    batch = np.resize(crops, (args.batch, *crops.shape[1:]))
    rates = [0.0] * len(sessions)
    gate = threading.Barrier(len(sessions))

    def loop(number: int) -> None:
        run(batch, number)
        gate.wait()
        start, done = time.perf_counter(), 0
        while time.perf_counter() - start < seconds:
            run(batch, number)
            done += len(batch)
        rates[number] = done / (time.perf_counter() - start)

    threads = [threading.Thread(target=loop, args=(number,)) for number in range(len(sessions))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return sum(rates)


engine.obey(run, throughput)
