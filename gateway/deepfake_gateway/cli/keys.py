"""`deepfake gateway keys`: makes, lists and revokes the keys of a verdict service."""

from __future__ import annotations

import json
import re
import shlex
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, Any, Final

import typer
from rich.console import Console
from rich.table import Table

from deepfake_gateway.settings import DATABASE_NAME, Settings
from deepfake_gateway.store.keys import SCOPES, Key, Keys, id_of
from deepfake_gateway.store.records import Store
from deepfake_preprocess.cli.console import results_console
from deepfake_preprocess.cli.options import JsonOption
from deepfake_preprocess.errors import OptionError
from deepfake_preprocess.support.text import visible

_UNITS: Final = {"h": 3600, "d": 86_400}

keys = typer.Typer(help="Make, list and revoke the keys of a verdict service.", no_args_is_help=True)

DataDir = Annotated[
    Path | None, typer.Option(metavar="DIR", help="As of `deepfake gateway`.", show_default="gateway-data")
]
Database = Annotated[str | None, typer.Option(metavar="URL", help="As of `deepfake gateway`.")]
SettingsFile = Annotated[Path | None, typer.Option("--settings", metavar="FILE", help="As of `deepfake gateway`.")]


@contextmanager
def opened(
    file: Path | None, data_dir: Path | None, database: str | None, *, is_new: bool = False
) -> Iterator[Store]:
    """Yield the database that a gateway with these settings has; OptionError where it must be there and is not."""
    settings = Settings.of(file, data_dir=data_dir, database=database)
    if is_new:
        settings.make_data_dir()
    elif settings.database is None and not (settings.data_dir / DATABASE_NAME).is_file():
        raise OptionError(
            f"{settings.data_dir} holds no data of a gateway; name its folder with --data-dir, or its database with "
            "--database"
        )
    store = Store(settings.database_url)
    try:
        yield store
    finally:
        store.close()


@keys.command()
def create(
    name: Annotated[str, typer.Option(help="What it is for, as it is listed.")],
    scope: Annotated[
        list[str] | None, typer.Option(metavar="|".join(SCOPES), help="Repeatable.", show_default="analyze")
    ] = None,
    tenant: Annotated[
        str | None,
        typer.Option(metavar="NAME", help="Keys of one tenant see the same results.", show_default="its own"),
    ] = None,
    expires: Annotated[
        str | None, typer.Option(metavar="90d|12h", help="How long it is valid.", show_default="until revoked")
    ] = None,
    seconds_per_day: Annotated[
        float | None, typer.Option(min=0, help="Seconds of video per day; 0 for any.", show_default="the service's")
    ] = None,
    data_dir: DataDir = None,
    database: Database = None,
    settings_file: SettingsFile = None,
    as_json: JsonOption = False,
) -> None:
    """Make a key and print it, once: only its hash is kept.

    read: see one's own results. analyze: also send, explain, cancel and
    delete. metrics: the metrics alone, for Prometheus. admin: all of it, of
    all tenants.

    From the first key on, nobody is served without one.

    [bold]Example[/]

      deepfake gateway keys create --name press --expires 90d
    """
    scopes = scope or ["analyze"]
    if unknown := [one for one in scopes if one not in SCOPES]:
        raise OptionError(f"the scope is {unknown[0]!r}; allowed: {', '.join(SCOPES)}")
    if tenant is not None and not re.fullmatch(r"[\w.-]{1,64}", tenant):
        raise OptionError(f"the tenant is {tenant!r}; allowed: up to 64 letters, digits, dots, dashes, underscores")
    until = None if expires is None else time.time() + _seconds(expires)
    with opened(settings_file, data_dir, database, is_new=True) as store:
        key, text = Keys(store.engine).create(
            name, scopes, tenant=tenant, expires_at=until, seconds_per_day=seconds_per_day
        )
    if as_json:
        print(json.dumps({**_facts(key), "key": text}))
        return
    print(text)
    # The database's address may have a password in it.
    places = {"--data-dir": data_dir, "--database": database and "URL", "--settings": settings_file}
    where = [str(word) for option, place in places.items() if place is not None for word in (option, place)]
    revoke_it = ["deepfake", "gateway", "keys", "revoke", key.id, *where]
    Console(stderr=True, highlight=False, soft_wrap=True).print(
        "Keep it now, it is shown only once. Send it as 'Authorization: Bearer KEY', or sign in with it on the "
        f"page; revoke it with: {shlex.join(revoke_it)}",
        markup=False,
    )


@keys.command("list")
def list_keys(
    data_dir: DataDir = None,
    database: Database = None,
    settings_file: SettingsFile = None,
    as_json: JsonOption = False,
) -> None:
    """List all keys, without their secrets."""
    with opened(settings_file, data_dir, database) as store:
        found = Keys(store.engine).all()
    if as_json:
        print(json.dumps([_facts(key) for key in found]))
        return
    table = Table("key", "name", "tenant", "scopes", "state", "expires")
    for key in found:
        until = "" if key.expires_at is None else _day(key.expires_at)
        table.add_row(f"dfk_{key.id}", visible(key.name), key.tenant, ", ".join(sorted(key.scopes)), key.state, until)
    results_console().print(table if found else "There are no keys.")


@keys.command()
def revoke(
    key: Annotated[str, typer.Argument(help="As `list` shows it, or the key itself.")],
    data_dir: DataDir = None,
    database: Database = None,
    settings_file: SettingsFile = None,
) -> None:
    """End a key and its sessions at once. Its results stay."""
    key_id = id_of(key)
    if key_id is None:
        raise OptionError(
            f"{key[:12]!r} does not name a key; give it as `deepfake gateway keys list` shows it, or all of the key"
        )
    with opened(settings_file, data_dir, database) as store:
        if not Keys(store.engine).revoke(key_id):
            raise OptionError(
                f"there is no valid key dfk_{key_id}; `deepfake gateway keys list` shows which there are"
            )
    print(f"dfk_{key_id} is revoked")


def _facts(key: Key) -> dict[str, Any]:
    times = {name: getattr(key, name) for name in ("created_at", "expires_at", "revoked_at")}
    return {
        "id": key.id, "name": key.name, "tenant": key.tenant, "scopes": sorted(key.scopes), "state": key.state,
        "seconds_per_day": key.seconds_per_day,
        **{name: None if seconds is None else _day(seconds) for name, seconds in times.items()},
    }  # fmt: skip


def _day(seconds: float) -> str:
    return datetime.fromtimestamp(seconds, UTC).isoformat(timespec="seconds")


def _seconds(text: str) -> float:
    found = re.fullmatch(r"(\d{1,5})([hd])", text)
    if found is None or not int(found[1]):
        raise OptionError(f"the time is {text!r}; allowed: hours or days, such as 12h or 90d")
    return float(int(found[1]) * _UNITS[found[2]])
