"""Ray Serve with request batching: https://docs.ray.io/en/latest/serve/advanced-guides/dyn-req-batch.html."""

import argparse
import time

import numpy as np
import onnxruntime as ort
import ray
from ray import serve
from starlette.requests import Request

parser = argparse.ArgumentParser()
parser.add_argument("model")
parser.add_argument("--port", type=int)
parser.add_argument("--batch", type=int)
parser.add_argument("--batch-timeout", type=float)
parser.add_argument("--workers", type=int)
parser.add_argument("--threads", type=int)
args = parser.parse_args()


@serve.deployment(num_replicas=args.workers, max_ongoing_requests=100, ray_actor_options={"num_cpus": 1})
class Detector:
    """Raw uint8 crops in, probabilities out."""

    def __init__(self, model: str, threads: int) -> None:
        options = ort.SessionOptions()
        options.intra_op_num_threads = threads
        self.session = ort.InferenceSession(model, options, providers=["CPUExecutionProvider"])
        self.shape = self.session.get_inputs()[0].shape[1:]

    @serve.batch(max_batch_size=args.batch, batch_wait_timeout_s=args.batch_timeout)
    async def predict(self, bodies: list[bytes]) -> list[list[float]]:
        """Run the network once for the crops of several requests."""
        crops = np.stack([np.frombuffer(body, np.uint8).reshape(self.shape) for body in bodies])
        return self.session.run(["fake_probability"], {"faces": crops})[0].tolist()

    async def __call__(self, request: Request) -> list[float]:
        """One crop."""
        return await self.predict(await request.body())


if __name__ == "__main__":
    # A cluster of its own, whatever else runs; nothing here needs the object store.
    ray.init(address="local", include_dashboard=False, log_to_driver=False, object_store_memory=2**27)
    serve.start(http_options={"host": "127.0.0.1", "port": args.port})
    serve.run(Detector.bind(args.model, args.threads), route_prefix="/predict")
    while True:
        time.sleep(60)
