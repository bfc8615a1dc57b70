"""LitServe with batching: https://lightning.ai/docs/litserve/features/batching."""

import argparse
from typing import Annotated

import litserve as ls
import numpy as np
import onnxruntime as ort
from fastapi import Body

# FastAPI hands such a body over as it came; LitServe's default is JSON.
RawBody = Annotated[bytes, Body(media_type="application/octet-stream")]


class Detector(ls.LitAPI):
    """Raw uint8 crops in, probabilities out."""

    def __init__(self, model: str, threads: int, **options: float) -> None:
        super().__init__(**options)
        self.path, self.threads = model, threads

    def setup(self, device: str) -> None:
        """Load the model."""
        options = ort.SessionOptions()
        options.intra_op_num_threads = self.threads
        self.session = ort.InferenceSession(self.path, options, providers=["CPUExecutionProvider"])
        self.shape = self.session.get_inputs()[0].shape[1:]

    def decode_request(self, request: RawBody) -> np.ndarray:
        """One crop."""
        return np.frombuffer(request, np.uint8).reshape(self.shape)

    def batch(self, inputs: list[np.ndarray]) -> np.ndarray:
        """Crops of several requests."""
        return np.stack(inputs)

    def predict(self, crops: np.ndarray) -> np.ndarray:
        """Run the network once."""
        return self.session.run(["fake_probability"], {"faces": crops})[0]

    def unbatch(self, output: np.ndarray) -> list[np.ndarray]:
        """One row each."""
        return list(output)

    def encode_response(self, output: np.ndarray) -> list[float]:
        """JSON."""
        return output.tolist()


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("model")
    parser.add_argument("--port", type=int)
    parser.add_argument("--batch", type=int)
    parser.add_argument("--batch-timeout", type=float)
    parser.add_argument("--workers", type=int)
    parser.add_argument("--threads", type=int)
    args = parser.parse_args()
    api = Detector(args.model, args.threads, max_batch_size=args.batch, batch_timeout=args.batch_timeout)
    server = ls.LitServer(api, accelerator="cpu", workers_per_device=args.workers)
    server.run(host="127.0.0.1", port=args.port, log_level="warning", generate_client_file=False)
