"""The usual project's server: FastAPI and eager PyTorch, one request at a time (https://fastapi.tiangolo.com).

Runs in this project's own environment, because PyTorch is large and its export needs it anyway.
"""

import argparse
from pathlib import Path

import numpy as np
import torch
import uvicorn
from fastapi import FastAPI, Request

from deepfake_export import load_network
from deepfake_preprocess.contract.spec import ModelSpec

parser = argparse.ArgumentParser()
parser.add_argument("checkpoint", type=Path)
parser.add_argument("--spec", type=Path)
parser.add_argument("--port", type=int)
args = parser.parse_args()

spec = ModelSpec.from_yaml(args.spec)
network = load_network(args.checkpoint, spec).network
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
    uvicorn.run(app, host="127.0.0.1", port=args.port, log_level="warning")
