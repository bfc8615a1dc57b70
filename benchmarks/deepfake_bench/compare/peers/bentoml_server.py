"""BentoML with adaptive batching: https://docs.bentoml.com/en/latest/get-started/adaptive-batching.html.

Crops come as a file of a multipart form, the binary format BentoML takes from clients. Options come from the
environment, because `bentoml serve` starts this file in processes of its own.
"""

import os
from pathlib import Path

import bentoml
import numpy as np
import onnxruntime as ort

MODEL, THREADS = os.environ["PEER_MODEL"], int(os.environ["PEER_THREADS"])
BATCH = int(os.environ["PEER_BATCH"])


@bentoml.service(workers=int(os.environ["PEER_WORKERS"]), traffic={"timeout": 60})
class Detector:
    """Raw uint8 crops in, probabilities out."""

    def __init__(self) -> None:
        options = ort.SessionOptions()
        options.intra_op_num_threads = THREADS
        self.session = ort.InferenceSession(MODEL, options, providers=["CPUExecutionProvider"])
        self.shape = self.session.get_inputs()[0].shape[1:]

    @bentoml.api(batchable=True, max_batch_size=BATCH)
    def predict(self, crops: list[Path]) -> list[float]:
        """Run the network once for the crops of several requests."""
        batch = np.stack([np.fromfile(crop, np.uint8).reshape(self.shape) for crop in crops])
        return self.session.run(["fake_probability"], {"faces": batch})[0][:, 0].tolist()
