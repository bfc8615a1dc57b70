"""The server that is measured: a private Triton on this machine, or one that runs already."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import psutil

from deepfake_bench.load.counters import Counters, read_counters
from deepfake_bench.load.senders import Crops, Target
from deepfake_bench.server.reference import OnnxReference, random_crops, verify_served
from deepfake_client import DeepfakeClient
from deepfake_preprocess.contract.manifest import Manifest
from deepfake_preprocess.errors import RepositoryError

VERIFIED_CROPS = 16


@dataclass(frozen=True, slots=True)
class Server:
    """A running server.

    Attributes:
        grpc_url: ``host:port``.
        http_url: ``host:port`` or URL of the HTTP port.
        model: name of the measured model.
        version: its version.
        max_batch_size: largest number of crops in one request.
        identity: who the model is, as plain JSON data for results.
        arrangement: how it is served, likewise.
        reference: the ONNX file whose answers it must give; None where unknown.
        crops: uint8 ``[VERIFIED_CROPS, H, W, 3]``, of the model's size.
        root: root of its processes; None for a server elsewhere.
    """

    grpc_url: str
    http_url: str
    model: str
    version: int
    max_batch_size: int
    identity: dict[str, Any]
    arrangement: dict[str, Any]
    reference: Path | None
    crops: Crops
    root: psutil.Process | None

    def counters(self) -> Counters:
        """Read what it has counted so far."""
        return read_counters(self.grpc_url, self.model, self.version)

    def target(self, protocol: str, crops_per_request: int = 1) -> Target:
        """Return where a load goes."""
        url = self.http_url if protocol == "http" else self.grpc_url
        return Target(protocol, url, self.model, crops_per_request)

    def verify(self, target: Target) -> float | None:
        """Return the largest difference from the reference's probabilities; None without a reference.

        Raises:
            DeepfakeError: it is too large.
        """
        return None if self.reference is None else verify_served(target, self.crops, OnnxReference(self.reference))


@contextmanager
def embedded_server(
    repository: Path, *, model: str | None = None, instances: int | None = None, threads: int | None = None
) -> Iterator[Server]:
    """Serve a model on a private Triton for as long as the context lasts; options as in `deepfake serve`.

    Raises:
        DeepfakeError: the server does not start.
    """
    from deepfake_preprocess.contract.repository import MODEL_FILE
    from deepfake_serve.server import EmbeddedTriton

    with EmbeddedTriton(repository, models=[model] if model else (), instances=instances, threads=threads) as triton:
        served = triton.models[0]
        yield _describe(
            triton.grpc_url,
            triton.http_url,
            served.spec.name,
            arrangement={"server": "embedded", **asdict(triton.shares[served.spec.name])},
            reference=served.version_dir / MODEL_FILE,
            root=psutil.Process(triton.pid),
        )


def running_server(grpc_url: str, http_url: str, *, model: str | None, reference: Path | None) -> Server:
    """Return a server that runs already.

    Raises:
        DeepfakeError: it does not answer, or does not offer the model.
    """
    return _describe(grpc_url, http_url, model, arrangement={"server": grpc_url}, reference=reference, root=None)


def _describe(
    grpc_url: str,
    http_url: str,
    model: str | None,
    *,
    arrangement: dict[str, Any],
    reference: Path | None,
    root: psutil.Process | None,
) -> Server:
    with DeepfakeClient(grpc_url, model=model) as client:
        found = client.model()
    spec = found.spec
    identity = {
        "name": found.name,
        "version": found.version,
        "architecture": spec.architecture,
        "input_size_wh": list(spec.input_size_wh),
        "max_batch_size": found.max_batch_size,
        "checkpoint_sha256": spec.checkpoint_sha256,
        "precision": _precision(reference),
    }
    return Server(
        grpc_url,
        http_url,
        found.name,
        found.version,
        found.max_batch_size,
        identity,
        arrangement,
        reference,
        random_crops(VERIFIED_CROPS, spec.input_size_wh),
        root,
    )


def _precision(model_file: Path | None) -> str:
    """Return the precision in the manifest beside a model file."""
    if model_file is None:
        return "unknown"
    try:
        return Manifest.read(model_file.parent).precision
    except RepositoryError:
        return "unknown"
