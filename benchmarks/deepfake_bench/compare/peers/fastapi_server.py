"""The usual project's server: FastAPI and eager PyTorch, one request at a time (https://fastapi.tiangolo.com).

Runs in this project's own environment, because PyTorch is large and its export needs it anyway.
"""

import json
import os

import numpy as np
import torch
import uvicorn
from fastapi import FastAPI, Request

from deepfake_export import load_network

OPTIONS = json.loads(os.environ["PEER_OPTIONS"])
loaded = load_network(OPTIONS["checkpoint"])
network, spec = loaded.network, loaded.spec
mean, std = torch.tensor(spec.mean), torch.tensor(spec.std)
app = FastAPI()


def score(body: bytes) -> list[float]:
    """Score one crop as training code does."""
    crop = torch.from_numpy(np.frombuffer(body, np.uint8).copy()).reshape(
        spec.input_height_px, spec.input_width_px, 3
    )
    pixels = ((crop / 255 - mean) / std).permute(2, 0, 1)[None]
    with torch.inference_mode():
        return torch.sigmoid(network(pixels))[:, 0].tolist()


@app.post("/predict")
async def predict(request: Request) -> list[float]:
    """Raw uint8 crop in, probability out."""
    # One after another, with all threads: in FastAPI's thread pool, requests would fight for the cores.
    return score(await request.body())


if __name__ == "__main__":
    uvicorn.run(app, host="127.0.0.1", port=OPTIONS["port"], log_level="warning")
