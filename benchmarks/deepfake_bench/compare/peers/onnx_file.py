"""What the peers with ONNX Runtime have in common: their options, and the session."""

import json
import os

import onnxruntime as ort

OPTIONS = json.loads(os.environ["PEER_OPTIONS"])
"""From the environment, because some peers start their files again in processes of their own."""


def open_session(threads: int) -> ort.InferenceSession:
    """Load the model file with so many threads."""
    options = ort.SessionOptions()
    options.intra_op_num_threads = threads
    return ort.InferenceSession(OPTIONS["model"], options, providers=["CPUExecutionProvider"])
