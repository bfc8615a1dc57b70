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


def session(threads: int) -> ort.InferenceSession:
    """A session with so many threads."""
    options = ort.SessionOptions()
    options.intra_op_num_threads = threads
    return ort.InferenceSession(args.model, options, providers=["CPUExecutionProvider"])


sessions = [session(args.threads) for _ in range(args.sessions)]
lone_session = sessions[0] if args.sessions == 1 else session(args.sessions * args.threads)


def run(crops: np.ndarray) -> np.ndarray:
    """Run once with all threads: what a single crop is fastest with."""
    return lone_session.run(["fake_probability"], {"faces": crops})[0][:, 0]


def throughput(crops: np.ndarray, seconds: float) -> float:
    """Crops per second of all sessions together, each in a thread of its own with full batches."""
    batch = np.resize(crops, (args.batch, *crops.shape[1:]))
    rates = [0.0] * len(sessions)
    gate = threading.Barrier(len(sessions))

    def loop(number: int) -> None:
        sessions[number].run(None, {"faces": batch})
        gate.wait()
        start, done = time.perf_counter(), 0
        while time.perf_counter() - start < seconds:
            sessions[number].run(None, {"faces": batch})
            done += len(batch)
        rates[number] = done / (time.perf_counter() - start)

    threads = [threading.Thread(target=loop, args=(number,)) for number in range(len(sessions))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return sum(rates)


engine.obey(run, throughput)
