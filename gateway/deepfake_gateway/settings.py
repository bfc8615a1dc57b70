"""`Settings`: everything that can be set, by a file, by the environment and by the command, in this order."""

from __future__ import annotations

import json
import os
import tomllib
from collections.abc import Mapping
from ipaddress import ip_address
from pathlib import Path
from typing import Any, Final, Literal, Self

from pydantic import Field, ValidationError, field_validator
from pydantic_settings import BaseSettings, SettingsConfigDict, SettingsError
from sqlalchemy import make_url
from sqlalchemy.exc import ArgumentError

from deepfake_client.transport.connection import Connection
from deepfake_gateway.addresses import Addresses
from deepfake_gateway.logs import LogFormat, LogLevel
from deepfake_gateway.origins import check_origin
from deepfake_preprocess.errors import OptionError

PREFIX: Final = "DEEPFAKE_GATEWAY_"
DATABASE_NAME: Final = "gateway.db"
_LIBPQ: Final = ("postgresql", "postgresql+psycopg")
"""Drivers that take `_PATIENCE`."""
_PATIENCE: Final = {
    "connect_timeout": "10",  # seconds, and milliseconds:
    "tcp_user_timeout": "15000",
    "keepalives_idle": "15",
    "keepalives_interval": "5",
    "keepalives_count": "3",
}
"""How long a Postgres that is cut off is waited for: the kernel does so for a quarter of an hour, or for
two hours where a question was taken."""

Role = Literal["all", "web", "worker"]


def wrong_value(name: str, error: Mapping[str, Any]) -> str:
    """Return what is wrong with a value by an error of pydantic's, in one sentence."""
    if error["type"] == "extra_forbidden":
        return f"there is no `{name}`; leave it out, or correct its name"
    if error["type"] == "missing":
        return f"`{name}` is missing; give it"
    message: str = error["msg"].removeprefix("Value error, ")
    return f"`{name}` is {error.get('input')!r:.90}: {message[:1].lower()}{message[1:]}"


class Settings(BaseSettings):
    """What a gateway is set to; the environment has the names in capitals after ``DEEPFAKE_GATEWAY_``.

    Raises OptionError by `of`, in one sentence, for what does not fit.
    """

    model_config = SettingsConfigDict(env_prefix=PREFIX, extra="forbid", frozen=True, use_attribute_docstrings=True)

    host: str = "127.0.0.1"
    """Address to listen on."""
    port: int = Field(8080, ge=0, le=65535)
    """Port to listen on; 0 takes a free one."""
    allow_open: bool = False
    """Serve addresses other than this machine's own, although there are no keys."""
    data_dir: Path = Path("gateway-data")
    """Folder of media and, by default, of the database."""
    database: str | None = None
    """SQLAlchemy URL of the database, such as ``postgresql+psycopg://...``; SQLite in `data_dir` by default."""
    blobs: str | None = None
    """Where media and what is made of them are kept, such as ``s3://bucket/prefix``; in `data_dir` by default."""
    url: str | None = None
    """Triton, as HOST:PORT or URL; its standard port on this machine by default."""
    model: str | None = None
    """Model to use; needed only when the server offers several."""
    explain_url: str | None = None
    """The explain service (`deepfake explain-serve`), which draws heatmaps; there are none without one."""
    checkpoint: Path | None = None
    """Checkpoint of the served model: where this command starts Triton, it starts an explain service of it, too."""
    role: Role = "all"
    """What this command runs: ``web``, ``worker``, or both."""
    worker_name: str = "worker"
    """Name of the worker, its own on the database: it takes up again what it was working on when it died."""
    concurrency: int = Field(2, ge=1, le=64)
    """Analyses under way at once, in each worker."""

    log_format: LogFormat = "plain"
    """Log lines for people, or ``json``: one object in each line, with the id of the request."""
    log_level: LogLevel = "warning"
    """Least level of log lines; ``info`` has a line for each request and each end of a job."""

    max_upload_bytes: int = Field(2**30, ge=1)
    """Largest upload, in bytes."""
    max_duration_s: float = Field(7200.0, gt=0)
    """Longest video, in seconds."""
    max_pixels: int = Field(2**26, ge=1)
    """Most pixels of a picture or of a video's frame: twice those of 8K by default."""
    max_frames: int = Field(10_000, ge=1)
    """Most frames of a video that one analysis may look at."""
    url_intake: bool = False
    """Whether files and live sources may be named by their address, which this service then opens."""
    url_timeout_s: float = Field(60.0, gt=0)
    """Longest time that fetching one file may take, in seconds."""
    allowed_networks: tuple[str, ...] = ()
    """Networks such as ``192.168.1.0/24`` that may be reached although they are not public: by fetched files,
    webhooks and live sources."""
    allowed_origins: tuple[str, ...] = ()
    """Origins such as ``https://app.example`` whose pages may ask this service from a browser, with a key."""
    watch_max_s: float = Field(3600.0, ge=1)
    """Longest time that a live source is watched, in seconds."""
    watches_of_key: int = Field(2, ge=1)
    """Live sources that each key may have watched at once."""
    watches_in_all: int = Field(4, ge=1)
    """Live sources that are watched at once for all together."""
    media_hours: float = Field(24.0, ge=0)
    """How long a file and what was made of it stay after the verdict; 0 removes them with it."""
    results_days: float = Field(30.0, gt=0)
    """How long results stay."""
    requests_per_minute: int = Field(600, ge=0)
    """Requests that each key may send in a minute, or each address where there are no keys; 0 for any number."""
    uploads_at_once: int = Field(8, ge=1)
    """Uploads of one key that may be on their way at once."""
    uploads_in_all: int = Field(64, ge=1)
    """Uploads of all together that may be on their way at once; more are refused."""
    seconds_per_day: float = Field(0.0, ge=0)
    """Seconds of video that each key may send in a day (UTC), unless it has a bound of its own; 0 for any number."""
    max_queued: int = Field(1000, ge=1)
    """Analyses that may wait; more are refused."""
    job_timeout_s: float = Field(1800.0, gt=0)
    """Longest time that one analysis may take, in seconds."""
    memory_bytes: int = Field(4 * 2**30, ge=2**28)
    """Memory that opening a medium may take beyond what an idle process has, in bytes of address space."""
    cpu_s: int = Field(3600, ge=1)
    """CPU time that one analysis may take, in seconds."""
    server_wait_s: float = Field(300.0, ge=0)
    """How long analyses wait for a server that is away, in seconds."""

    @field_validator("allowed_networks")
    @classmethod
    def _networks(cls, networks: tuple[str, ...]) -> tuple[str, ...]:
        Addresses.of(networks)
        return networks

    @field_validator("allowed_origins")
    @classmethod
    def _origins(cls, origins: tuple[str, ...]) -> tuple[str, ...]:
        for origin in origins:
            check_origin(origin)
        return origins

    @classmethod
    def of(cls, file: Path | None = None, **given: Any) -> Self:
        """Return the settings of a TOML file, the environment, and what is `given` and not None.

        Raises:
            OptionError: the file cannot be read, or a value does not fit.
        """
        try:
            from_file = {} if file is None else tomllib.loads(file.read_text(encoding="utf-8"))
        except (OSError, ValueError) as exc:
            raise OptionError(f"the settings file {file} cannot be read: {exc}") from exc
        # Pydantic lets what a constructor is given win over the environment, which shall win over the file.
        values = {name: value for name, value in from_file.items() if PREFIX + name.upper() not in os.environ}
        values |= {name: value for name, value in given.items() if value is not None}
        try:
            return cls(**values)
        except SettingsError as exc:
            raise OptionError(f"the environment has a setting that is not JSON ({exc}); quote it as JSON") from None
        except ValidationError as exc:
            error = exc.errors()[0]
            name = ".".join(map(str, error["loc"]))
            if error["type"] == "extra_forbidden":
                raise OptionError(f"there is no setting `{name}`; docs/gateway.md lists all") from None
            raise OptionError(wrong_value(name, error)) from None

    def make_data_dir(self) -> None:
        """Make the folder of the data, unless it is there; OptionError where that cannot be."""
        try:
            self.data_dir.mkdir(parents=True, exist_ok=True)
        except OSError as exc:
            raise OptionError(
                f"`data_dir` {self.data_dir} cannot be made ({exc.strerror}); name another, which can be written to"
            ) from exc

    def check_open(self, *, has_keys: bool) -> None:
        """Raise OptionError where other machines reach a service that asks for no key, and nobody said so."""
        if not (self.is_local or self.allow_open or has_keys):
            raise OptionError(
                f"`host` is {self.host}, which other machines reach, and there are no keys; make one with `deepfake "
                "gateway keys create`, or set `allow_open` if everybody who reaches it may use it"
            )

    @property
    def is_local(self) -> bool:
        """Whether only this machine reaches `host`."""
        try:
            return self.host == "localhost" or ip_address(self.host).is_loopback
        except ValueError:
            return False

    @property
    def database_url(self) -> str:
        """The SQLAlchemy URL in use; one of Postgres says how long it is waited for."""
        if self.database is None:
            return f"sqlite:///{(self.data_dir / DATABASE_NAME).absolute()}"
        try:
            url = make_url(self.database)
        except ArgumentError:
            return self.database  # who opens it says so
        if url.drivername not in _LIBPQ:
            return self.database
        return url.set(query={**_PATIENCE, **url.query}).render_as_string(hide_password=False)

    @property
    def results_s(self) -> float:
        """How long results are kept, in seconds."""
        return 86_400 * self.results_days

    def result_until(self, finished_at: float | None) -> float | None:
        """When the result of an analysis that ended then is removed; None where it has not ended."""
        return None if finished_at is None else finished_at + self.results_s

    def media_until(self, finished_at: float | None) -> float | None:
        """When its file is removed, with what was made of it: with the result at the latest."""
        return None if finished_at is None else finished_at + min(3600 * self.media_hours, self.results_s)

    @property
    def connection(self) -> Connection:
        """How Triton is reached."""
        return Connection(url=self.url)

    def as_environment(self) -> dict[str, str]:
        """Return environment variables that give another process the same settings."""
        values = self.model_dump(mode="json", exclude_none=True)
        return {
            PREFIX + name.upper(): value if isinstance(value, str) else json.dumps(value)
            for name, value in values.items()
        }
