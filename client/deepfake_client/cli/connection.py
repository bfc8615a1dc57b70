"""How commands reach a server: the options that all of them share, and `Connection`, what they say."""

from __future__ import annotations

import functools
import inspect
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Final

import typer

from deepfake_client.transport.address import DEFAULT_URLS, PROTOCOLS, parse_address
from deepfake_client.transport.connect import connect
from deepfake_client.transport.protocol import DEFAULT_TIMEOUT_S, Transport
from deepfake_client.transport.retry import Retry
from deepfake_client.transport.tls import Tls
from deepfake_preprocess.errors import OptionError

TOKEN_VARIABLE: Final = "DEEPFAKE_TOKEN"
"""Its value is sent as ``authorization: Bearer ...``. No option of its own: ``ps`` would show that to everybody."""


@dataclass(frozen=True, slots=True)
class Connection:
    """Which server a command talks to, and how.

    Attributes:
        url: address; the protocol's default when None.
        protocol: name in `deepfake_client.transport.address.PROTOCOLS`; by the URL when None.
        tls: how the connection is secured.
        headers: sent with every request.
        timeout_s: deadline of every request, in seconds.
    """

    url: str | None
    protocol: str | None
    tls: Tls | None
    headers: Mapping[str, str]
    timeout_s: float

    @property
    def is_http(self) -> bool:
        """Whether requests are HTTP and not gRPC."""
        return parse_address(self.url, protocol=self.protocol, tls=self.tls).protocol == "http"

    def options(self) -> dict[str, Any]:
        """Return everything but the address, as keyword arguments of the clients and of `connect`."""
        return {
            "protocol": self.protocol,
            "tls": self.tls,
            "headers": self.headers,
            "timeout_s": self.timeout_s,
        }

    def open(self, *, retry: Retry | None = None) -> Transport:
        """Return a transport to the server; see `deepfake_client.connect`."""
        return connect(self.url, retry=retry, **self.options())


SERVER_PANEL: Final = "Server"
"""Heading of these options in a command's help."""

_SHARED_OPTIONS: Final[Mapping[str, tuple[Any, Any]]] = {
    "url": (
        Annotated[
            str | None,
            typer.Option(
                rich_help_panel=SERVER_PANEL,
                envvar="DEEPFAKE_URL",
                metavar="ADDRESS",
                help="Server: HOST:PORT or URL (grpc, grpcs, http, https).",
                show_default=f"{DEFAULT_URLS['grpc']}; for HTTP {DEFAULT_URLS['http']}",
            ),
        ],
        None,
    ),
    "protocol": (
        Annotated[
            str | None,
            typer.Option(
                rich_help_panel=SERVER_PANEL,
                metavar="NAME",
                help=f"How to talk to it: {', '.join(PROTOCOLS)} (crops in shared memory, same host).",
                show_default="by the URL, else grpc",
            ),
        ],
        None,
    ),
    "tls": (
        Annotated[
            bool,
            typer.Option(
                "--tls", rich_help_panel=SERVER_PANEL, help="Encrypt; trust certificates of public authorities."
            ),
        ],
        False,
    ),
    "tls_ca": (
        Annotated[
            Path | None,
            typer.Option(
                rich_help_panel=SERVER_PANEL, metavar="FILE", help="Encrypt; trust these certificates (PEM)."
            ),
        ],
        None,
    ),
    "tls_cert": (
        Annotated[
            Path | None,
            typer.Option(
                rich_help_panel=SERVER_PANEL, metavar="FILE", help="Encrypt; show this client certificate (PEM)."
            ),
        ],
        None,
    ),
    "tls_key": (
        Annotated[
            Path | None, typer.Option(rich_help_panel=SERVER_PANEL, metavar="FILE", help="Its private key (PEM).")
        ],
        None,
    ),
    "header": (
        Annotated[
            list[str] | None,
            typer.Option(
                rich_help_panel=SERVER_PANEL,
                metavar="'NAME: VALUE'",
                help=f"Send this header; may be repeated. {TOKEN_VARIABLE} (environment) is sent as bearer token.",
            ),
        ],
        None,
    ),
    "timeout": (
        Annotated[float, typer.Option(rich_help_panel=SERVER_PANEL, help="Deadline of each request, in seconds.")],
        DEFAULT_TIMEOUT_S,
    ),
}


def with_connection(command: Callable[..., None]) -> Callable[..., None]:
    """Replace a command's parameter `connection: Connection` by the options that describe one."""

    @functools.wraps(command)
    def run(**given: Any) -> None:
        shared = {name: given.pop(name) for name in _SHARED_OPTIONS}
        command(**given, connection=_connection(**shared))

    signature = inspect.signature(command, eval_str=True)
    parameters = []
    for name, parameter in signature.parameters.items():
        if name == "connection":
            for option, (annotation, default) in _SHARED_OPTIONS.items():
                parameters.append(inspect.Parameter(option, parameter.kind, annotation=annotation, default=default))
        else:
            parameters.append(parameter)
    run.__signature__ = signature.replace(parameters=parameters)  # type: ignore[attr-defined]
    run.__annotations__ = {parameter.name: parameter.annotation for parameter in parameters}
    return run


def _connection(
    *,
    url: str | None,
    protocol: str | None,
    tls: bool,
    tls_ca: Path | None,
    tls_cert: Path | None,
    tls_key: Path | None,
    header: list[str] | None,
    timeout: float,
) -> Connection:
    headers = dict(_parse_header(line) for line in header or ())
    if token := os.environ.get(TOKEN_VARIABLE, "").strip():
        headers.setdefault("authorization", f"Bearer {token}")
    if (tls_cert is None) != (tls_key is None):
        raise OptionError("--tls-cert and --tls-key belong together; give both or none of them")
    secured = Tls(tls_ca, tls_cert, tls_key) if tls or tls_ca or tls_cert else None
    return Connection(url, protocol, secured, headers, timeout)


def _parse_header(line: str) -> tuple[str, str]:
    name, separator, value = line.partition(":")
    if not separator:
        # The line is not repeated: it may be nothing but a secret.
        raise OptionError("--header needs a name and a value with a colon in between: --header 'name: value'")
    return name.strip().lower(), value.strip()
