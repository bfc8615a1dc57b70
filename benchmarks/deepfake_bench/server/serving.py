"""The server that is measured: a private Triton on this machine, or one that runs already."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import psutil

from deepfake_bench.load.counters import Counters, read_counters
from deepfake_bench.load.senders import Crops, LoadTarget
from deepfake_bench.server.reference import OnnxReference, random_crops, verify_served
from deepfake_client import Connection, DeepfakeClient
from deepfake_client.transport.address import PROTOCOLS, ProtocolName
from deepfake_client.transport.protocol import ServedModel
from deepfake_preprocess.contract.forms import ENGINE_NAMES, ServedForm, cpu_features
from deepfake_preprocess.contract.manifest import Manifest
from deepfake_preprocess.contract.triton_config import ENGINE_PARAMETER, config_parameters
from deepfake_preprocess.support.engines import ONNX_RUNTIME

VERIFIED_CROPS = 16


@dataclass(frozen=True, slots=True)
class Server:
    """A running server with the measured model, as it describes that.

    Attributes:
        arrangement: how it is served, as plain JSON data for results.
        reference: the ONNX file whose answers it must give; None where unknown.
        crops: uint8 ``[VERIFIED_CROPS, H, W, 3]``, of the model's size.
        root: root of its processes; None for a server elsewhere.
        engine: that runs the reference, in the model's precision.
        forms: what else the version was proved for, and this CPU can run; in the folder of the reference.
    """

    connections: Mapping[ProtocolName, Connection]
    model: ServedModel
    arrangement: dict[str, Any]
    reference: Path | None
    crops: Crops
    root: psutil.Process | None
    engine: str = ONNX_RUNTIME
    forms: tuple[ServedForm, ...] = ()

    @property
    def connection(self) -> Connection:
        """The first way to it."""
        return next(iter(self.connections.values()))

    @property
    def identity(self) -> dict[str, Any]:
        """What the model is, as plain JSON data for results."""
        model, spec = self.model, self.model.spec
        return {
            "name": model.name,
            "version": model.version,
            "architecture": spec.architecture,
            "input_size_wh": list(spec.input_size_wh),
            "max_batch_size": model.max_batch_size,
            "checkpoint_sha256": spec.checkpoint_sha256,
            "precision": model.precision,
            **({} if self.reference is None else {"engine": self.engine}),
        }

    @property
    def form(self) -> str:
        """Engine and precision that it runs, for people."""
        return f"{ENGINE_NAMES[self.engine]} in {self.model.precision.upper()}"

    def counters(self) -> Counters:
        """Read what it has counted so far."""
        return read_counters(self.connection, self.model)

    def target(self, protocol: ProtocolName, crops_per_request: int = 1) -> LoadTarget:
        """Return where a load goes."""
        return LoadTarget(self.connections[protocol], self.model, crops_per_request)

    def verify(self, target: LoadTarget) -> float | None:
        """Return the largest difference from the reference's probabilities, see `verify_served`; None without one."""
        reference = self.in_process()
        return None if reference is None else verify_served(target, self.crops, reference)

    def in_process(self, *, threads: int | None = None) -> OnnxReference | None:
        """Return the reference, loaded in the engine and precision that the server runs; None where unknown."""
        if self.reference is None:
            return None
        return OnnxReference(self.reference, threads=threads, engine=self.engine, precision=self.model.precision)


@contextmanager
def embedded_server(
    repository: Path, *, model: str | None = None, instances: int | None = None, threads: int | None = None
) -> Iterator[Server]:
    """Serve a model on a private Triton for as long as the context lasts; options as in `deepfake serve`."""
    from deepfake_serve import EmbeddedTriton  # Triton's wheel: only where it is asked for

    with EmbeddedTriton(repository, models=[model] if model else (), instances=instances, threads=threads) as triton:
        served = triton.models[0]
        connections = {
            protocol: Connection(
                url=triton.http_url if protocol == "http" else triton.grpc_url, protocol=protocol, headers={}
            )
            for protocol in PROTOCOLS
        }
        yield _server(
            connections,
            served.spec.name,
            arrangement={"server": "embedded", **asdict(triton.shares[served.spec.name])},
            reference=served.version_dir / served.config.default_model_filename,
            root=psutil.Process(triton.pid),
            engine=config_parameters(served.config)[ENGINE_PARAMETER],
            forms=runnable_forms(Manifest.read(served.version_dir)),
        )


def runnable_forms(manifest: Manifest) -> tuple[ServedForm, ...]:
    """Return the forms of a version whose figures hold on this CPU."""
    features = cpu_features()
    return tuple(form for form in manifest.served_forms if features.issuperset(form.needs))


def running_server(connection: Connection, *, model: str | None, reference: Path | None) -> Server:
    """Return a server that runs already and offers the model."""
    address, plain_headers = connection.address, dict(connection.headers)  # may be sent to processes
    connections = {address.protocol: replace(connection, headers=plain_headers)}
    return _server(connections, model, arrangement={"server": str(address)}, reference=reference, root=None)


def _server(
    connections: Mapping[ProtocolName, Connection],
    model: str | None,
    *,
    arrangement: dict[str, Any],
    reference: Path | None,
    root: psutil.Process | None,
    engine: str = ONNX_RUNTIME,
    forms: tuple[ServedForm, ...] = (),
) -> Server:
    with DeepfakeClient(next(iter(connections.values())), model=model) as client:
        served = client.model()
    crops = random_crops(VERIFIED_CROPS, served.spec.input_size_wh)
    return Server(connections, served, arrangement, reference, crops, root, engine, forms)
