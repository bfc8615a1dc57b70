"""Ray Serve with request batching: https://docs.ray.io/en/latest/serve/advanced-guides/dyn-req-batch.html."""

import time

import numpy as np
import ray
from network import OPTIONS, load
from ray import serve
from starlette.requests import Request


@serve.deployment(num_replicas=OPTIONS["workers"], max_ongoing_requests=100, ray_actor_options={"num_cpus": 1})
class Detector:
    """Raw uint8 crops in, probabilities out."""

    def __init__(self) -> None:
        self.network = load(OPTIONS["threads"])

    @serve.batch(max_batch_size=OPTIONS["batch"], batch_wait_timeout_s=OPTIONS["batch_timeout_s"])
    async def predict(self, bodies: list[bytes]) -> list[list[float]]:
        """Run the network once for the crops of several requests."""
        crops = np.stack([np.frombuffer(body, np.uint8).reshape(OPTIONS["crop_shape"]) for body in bodies])
        return self.network(crops).tolist()

    async def __call__(self, request: Request) -> list[float]:
        """One crop."""
        return await self.predict(await request.body())


if __name__ == "__main__":
    # A cluster of its own, whatever else runs; nothing here needs the object store.
    ray.init(address="local", include_dashboard=False, log_to_driver=False, object_store_memory=2**27)
    serve.start(http_options={"host": "127.0.0.1", "port": OPTIONS["port"]})
    serve.run(Detector.bind(), route_prefix="/predict")
    while True:
        time.sleep(60)
