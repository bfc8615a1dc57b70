"""LitServe with batching: https://lightning.ai/docs/litserve/features/batching."""

from typing import Annotated

import litserve as ls
import numpy as np
from fastapi import Body
from network import OPTIONS, load

# FastAPI hands such a body over as it came; LitServe's default is JSON.
RawBody = Annotated[bytes, Body(media_type="application/octet-stream")]


class Detector(ls.LitAPI):
    """Raw uint8 crops in, probabilities out."""

    def setup(self, device: str) -> None:
        """Load the model."""
        self.network = load(OPTIONS["threads"])

    def decode_request(self, request: RawBody) -> np.ndarray:
        """One crop."""
        return np.frombuffer(request, np.uint8).reshape(OPTIONS["crop_shape"])

    def batch(self, inputs: list[np.ndarray]) -> np.ndarray:
        """Crops of several requests."""
        return np.stack(inputs)

    def predict(self, crops: np.ndarray) -> np.ndarray:
        """Run the network once."""
        return self.network(crops)

    def unbatch(self, output: np.ndarray) -> list[np.ndarray]:
        """One row each."""
        return list(output)

    def encode_response(self, output: np.ndarray) -> list[float]:
        """JSON."""
        return output.tolist()


if __name__ == "__main__":
    api = Detector(max_batch_size=OPTIONS["batch"], batch_timeout=OPTIONS["batch_timeout_s"])
    server = ls.LitServer(api, accelerator="cpu", workers_per_device=OPTIONS["workers"])
    server.run(host="127.0.0.1", port=OPTIONS["port"], log_level="warning", generate_client_file=False)
