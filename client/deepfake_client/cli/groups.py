"""The groups of options that several commands share, each declared once (see `deepfake_preprocess.cli.grouping`).

Commands of other packages use these, too.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Any, ClassVar, Final, Protocol, TypeAlias

import typer

from deepfake_client.client import DeepfakeClient
from deepfake_client.explain.findings import open_explainer
from deepfake_client.explain.types import DEFAULT_SERVICE_URL, Explainer
from deepfake_client.gateway.client import GatewayClient
from deepfake_client.options import AGGREGATIONS, AnalyzeOptions
from deepfake_client.transport.address import DEFAULT_URLS, PROTOCOLS
from deepfake_client.transport.connection import DEFAULT_TIMEOUT_S, Connection
from deepfake_client.transport.retry import Retry
from deepfake_client.transport.tls import Tls
from deepfake_preprocess.cli.grouping import Group, with_groups
from deepfake_preprocess.cli.options import DEFAULT_REPOSITORY, RepositoryOption
from deepfake_preprocess.errors import OptionError
from deepfake_preprocess.media.sampling import SAMPLING_MODES, Sampling
from deepfake_preprocess.support.extras import require_extra

TOKEN_VARIABLE: Final = "DEEPFAKE_TOKEN"
"""Its value is sent as ``authorization: Bearer ...``. No option of its own: ``ps`` would show that to everybody."""
PRIVATE_TIMEOUT_S: Final = 120.0
"""As a deadline of requests to a server that has no other caller and the same cores: it is slow, not away."""
DEFAULT_NUM_FRAMES: Final = 32
ANALYSIS_PANEL: Final = "Analysis"


def _connection(
    url: Annotated[
        str | None,
        typer.Option(
            envvar="DEEPFAKE_URL",
            metavar="ADDRESS",
            help="Server: HOST:PORT or URL (grpc, grpcs, http, https); several with commas.",
            show_default=f"{DEFAULT_URLS['grpc']}; for HTTP {DEFAULT_URLS['http']}",
        ),
    ] = None,
    protocol: Annotated[
        str | None,
        typer.Option(
            metavar="NAME",
            help=f"How to talk to it: {', '.join(PROTOCOLS)} (crops in shared memory, same host).",
            show_default="by the URL, else grpc",
        ),
    ] = None,
    tls: Annotated[bool, typer.Option("--tls", help="Encrypt; trust certificates of public authorities.")] = False,
    tls_ca: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Encrypt; trust these certificates (PEM).")
    ] = None,
    tls_cert: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Encrypt; show this client certificate (PEM).")
    ] = None,
    tls_key: Annotated[Path | None, typer.Option(metavar="FILE", help="Its private key (PEM).")] = None,
    header: Annotated[
        list[str] | None,
        typer.Option(
            metavar="'NAME: VALUE'",
            help=f"Send this header; repeatable. {TOKEN_VARIABLE} (environment) is sent as bearer token.",
        ),
    ] = None,
    timeout: Annotated[
        float,
        typer.Option(
            help="Deadline of each request, in seconds.",
            show_default=f"{DEFAULT_TIMEOUT_S:g}; with --embedded {PRIVATE_TIMEOUT_S:g}",
        ),
    ] = DEFAULT_TIMEOUT_S,
    retry: Annotated[
        float | None,
        typer.Option(
            min=0,
            help="Keep retrying for this many seconds while the server is unavailable or busy (0 = never). "
            "Given explicitly, also for a server that is not there yet.",
            show_default=f"{Retry().total_s:g}",
        ),
    ] = None,
) -> Connection:
    headers = dict(_parse_header(line) for line in header or ())
    if token := os.environ.get(TOKEN_VARIABLE, "").strip():
        headers.setdefault("authorization", f"Bearer {token}")
    secured = Tls(tls_ca, tls_cert, tls_key) if tls or tls_ca or tls_cert or tls_key else None
    patience = Retry() if retry is None else Retry(total_s=retry, from_start=True)
    return Connection(url=url, protocol=protocol, tls=secured, headers=headers, timeout_s=timeout, retry=patience)


def _parse_header(line: str) -> tuple[str, str]:
    name, separator, value = line.partition(":")
    if not separator:
        # The line is not repeated: it may be nothing but a secret.
        raise OptionError("--header needs a name and a value with a colon in between: --header 'name: value'")
    return name.strip().lower(), value.strip()


ConnectionOptions: TypeAlias = Annotated[Connection, Group(_connection, "Server")]
"""How a command reaches a server."""

ModelOption: TypeAlias = Annotated[
    str | None,
    typer.Option(help="Model to use; needed only when the server offers several.", rich_help_panel="Server"),
]


@dataclass(frozen=True, slots=True)
class ServerChoice:
    """The server that a command gets its scores from: one that runs, or a private one for `repository`.

    Of the `connection` to a private server only the protocol and the deadlines count.
    """

    takes_media: ClassVar[bool] = True
    connection: ConnectionOptions
    model: ModelOption = None
    embedded: Annotated[
        bool, typer.Option("--embedded", help="Start a private Triton for this run and stop it at the end.")
    ] = False
    repository: RepositoryOption = DEFAULT_REPOSITORY

    def __post_init__(self) -> None:
        if self.embedded and self.connection.tls:
            raise OptionError("--embedded starts a server of its own, without TLS; leave out the options of TLS")

    @contextmanager
    def client(self, waiting_for: Callable[[str], AbstractContextManager[Any]]) -> Iterator[DeepfakeClient]:
        """Yield a client, and end the private server with it; `waiting_for` shows what is waited for meanwhile."""
        with self.serving(waiting_for) as connection, DeepfakeClient(connection, model=self.model) as client:
            yield client

    @contextmanager
    def serving(self, waiting_for: Callable[[str], AbstractContextManager[Any]]) -> Iterator[Connection]:
        """Yield the connection, for as long as the private server runs where there is one; see `client`."""
        if not self.embedded:
            yield self.connection
            return
        # By name: the client must work where the server's part is not installed.
        server = require_extra("deepfake_serve.server", extra="serve")
        triton = server.EmbeddedTriton(self.repository, models=[self.model] if self.model else [])
        with ExitStack() as stack:
            with waiting_for("starting a private Triton"):
                stack.enter_context(triton)
            url = triton.http_url if self.connection.address.protocol == "http" else triton.grpc_url
            ours = self.connection
            timeout_s = PRIVATE_TIMEOUT_S if ours.timeout_s == DEFAULT_TIMEOUT_S else ours.timeout_s
            # It is there; where it does not answer, it is being started again.
            yield replace(ours, url=url, timeout_s=timeout_s, retry=replace(ours.retry, from_start=True))


ServerOptions: TypeAlias = Annotated[ServerChoice, Group(with_groups(ServerChoice), "Server")]
"""`ConnectionOptions`, the model, and whether a private server is started instead."""


class VerdictSource(Protocol):
    """Who gives a command its verdicts; `takes_media` says whether inputs may be opened `Media`."""

    takes_media: ClassVar[bool]

    def client(
        self, waiting_for: Callable[[str], AbstractContextManager[Any]]
    ) -> AbstractContextManager[DeepfakeClient | GatewayClient]:
        """Yield a client; `waiting_for` shows what is waited for meanwhile."""
        ...


@dataclass(frozen=True, slots=True)
class GatewayChoice:
    """The verdict service that a command gets its verdicts from."""

    takes_media: ClassVar[bool] = False
    connection: Connection
    model: str | None

    @contextmanager
    def client(self, waiting_for: Callable[[str], AbstractContextManager[Any]]) -> Iterator[GatewayClient]:
        """Yield a client."""
        with GatewayClient(self.connection, model=self.model) as client:
            yield client


def _verdicts(
    server: ServerOptions,
    gateway: Annotated[
        str | None,
        typer.Option(
            metavar="URL",
            help=f"Verdict service (`deepfake gateway`) that decodes and judges instead. {TOKEN_VARIABLE} "
            "(environment) holds its key.",
        ),
    ] = None,
) -> VerdictSource:
    if gateway is None:
        return server
    if server.embedded:
        raise OptionError("--gateway asks a service that has a server, --embedded starts one; give one of them")
    address = gateway if "://" in gateway else f"http://{gateway}"
    if not re.fullmatch(r"https?://[^/\s]+(/\S*)?", address):
        raise OptionError(f"--gateway is {gateway!r}; allowed: http://HOST:PORT or https://HOST:PORT")
    return GatewayChoice(replace(server.connection, url=address, protocol=None), server.model)


VerdictOptions: TypeAlias = Annotated[VerdictSource, Group(with_groups(_verdicts), "Server")]
"""`ServerOptions`, or a verdict service."""


def _sampling(
    num_frames: Annotated[
        int | None,
        typer.Option(min=1, help="Frames to take, evenly spaced in time.", show_default=str(DEFAULT_NUM_FRAMES)),
    ] = None,
    fps: Annotated[float | None, typer.Option(help="Take this many frames per second instead.")] = None,
    sampling: Annotated[
        str,
        typer.Option(
            metavar="|".join(SAMPLING_MODES),
            help="uniform: at even times. fast: as many, where decoding is cheap (near keyframes).",
        ),
    ] = "uniform",
) -> Sampling:
    if num_frames is not None and fps is not None:
        raise OptionError("`num_frames` and `fps` exclude each other; give one of them")
    # What is not allowed is refused by `Sampling`, in the words of its field.
    mode: Any = sampling
    return Sampling(num_frames=None if fps is not None else num_frames or DEFAULT_NUM_FRAMES, fps=fps, mode=mode)


SamplingOptions: TypeAlias = Annotated[Sampling, Group(_sampling, ANALYSIS_PANEL)]
"""Which frames of a video are looked at."""

AggregationOption: TypeAlias = Annotated[
    str,
    typer.Option(
        help=f"How a face's frames become its score: {', '.join(AGGREGATIONS)}.", rich_help_panel=ANALYSIS_PANEL
    ),
]
ThresholdOption: TypeAlias = Annotated[
    float | None,
    typer.Option(
        help="FAKE at or above this probability.", show_default="the model's own", rich_help_panel=ANALYSIS_PANEL
    ),
]


MinFacePxOption: TypeAlias = Annotated[
    float, typer.Option(help="Leave out faces with a smaller box, in pixels.", rich_help_panel=ANALYSIS_PANEL)
]
MinFaceShareOption: TypeAlias = Annotated[
    float,
    typer.Option(help="The same as a share of the frame's shorter side (0 to 1).", rich_help_panel=ANALYSIS_PANEL),
]


def _analysis(
    sampling: SamplingOptions,
    aggregation: AggregationOption = "mean",
    until_sure: Annotated[
        bool, typer.Option("--until-sure", help="Stop as soon as the frames looked at suffice.")
    ] = False,
    threshold: ThresholdOption = None,
    min_face_px: MinFacePxOption = 0.0,
    min_face_share: MinFaceShareOption = 0.0,
) -> AnalyzeOptions:
    return AnalyzeOptions(
        sampling=sampling,
        aggregation=aggregation,
        until_sure=until_sure,
        threshold=threshold,
        min_face_px=min_face_px,
        min_face_share=min_face_share,
    )


AnalysisOptions: TypeAlias = Annotated[AnalyzeOptions, Group(with_groups(_analysis), ANALYSIS_PANEL)]
"""How an input is analyzed."""


@dataclass(frozen=True, slots=True)
class ExplainerChoice:
    """Who explains: a service, or with a checkpoint PyTorch in this process; see `open_explainer`."""

    context: typer.Context
    service: Annotated[
        str | None,
        typer.Option(
            envvar="DEEPFAKE_EXPLAIN_URL", metavar="URL", help="Explain service.", show_default=DEFAULT_SERVICE_URL
        ),
    ] = None
    checkpoint: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="Explain in this process, with the served checkpoint (extra 'explain')."),
    ] = None
    spec: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Its spec.", show_default="the .yaml next to the checkpoint")
    ] = None
    device: Annotated[str, typer.Option(help="With --checkpoint: PyTorch's name of the device.")] = "cpu"

    @property
    def named(self) -> list[str]:
        """Those of the options that stand on the command line."""
        return [name for name in ("service", "checkpoint", "spec", "device") if self._origin(name) == "COMMANDLINE"]

    def open(self) -> Explainer:
        """See `open_explainer`."""
        service = self.service
        if self.checkpoint is not None and self._origin("service") == "ENVIRONMENT":
            # The address may stand there for other commands.
            service = None
        return open_explainer(service=service, checkpoint=self.checkpoint, spec=self.spec, device=self.device)

    def _origin(self, name: str) -> str | None:
        source = self.context.get_parameter_source(name)
        return None if source is None else source.name


ExplainerOptions: TypeAlias = Annotated[ExplainerChoice, Group(ExplainerChoice, "Heatmaps")]
"""Who makes the heatmaps."""
