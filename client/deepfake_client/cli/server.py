"""`deepfake models` and `deepfake health`: what a server offers, and whether it is ready."""

from __future__ import annotations

import asyncio
from dataclasses import asdict
from typing import Any

import typer
from rich.console import Console
from rich.table import Table
from rich.text import Text

from deepfake_client.cli.groups import ConnectionOptions
from deepfake_client.cli.option_names import with_options
from deepfake_client.cli.terminal import json_text
from deepfake_client.transport.connect import connect
from deepfake_client.transport.connection import Connection
from deepfake_client.transport.protocol import Health, ServedModel
from deepfake_preprocess.cli.console import results_console
from deepfake_preprocess.cli.grouping import with_groups
from deepfake_preprocess.cli.options import JsonOption
from deepfake_preprocess.errors import ModelContractError, ServerUnavailableError
from deepfake_preprocess.support.text import visible


@with_groups
def models(connection: ConnectionOptions, as_json: JsonOption = False) -> None:
    """Show the detectors that a server offers, with the contract each one publishes.

    Models that do not follow this project's contract are listed with the reason.
    """
    url, entries = asyncio.run(_describe_all(connection))
    if as_json:
        print(json_text([_as_data(name, found) for name, found in entries.items()], indent=2))
        return
    console = results_console()
    if not entries:
        console.print(f"the server at {url} offers no model")
    for name, found in entries.items():
        console.print(Text(visible(name), style="bold"))
        if isinstance(found, ServedModel):
            console.print(_contract_table(found))
        else:
            console.print(Text(f"  not usable: {visible(with_options(str(found)))}"))


def _contract_table(model: ServedModel) -> Table:
    spec = model.spec
    table = Table.grid(padding=(0, 2))
    for heading, value in (
        ("version", str(model.version)),
        ("architecture", spec.architecture),
        ("input", f"{spec.input_width_px}x{spec.input_height_px} px, margin {spec.crop.margin:g}"),
        ("threshold", f"{spec.threshold:g}"),
        ("max batch", str(model.max_batch_size)),
        ("checkpoint", spec.checkpoint_sha256 or "unknown"),
        ("trained on", spec.training_data or "not stated"),
    ):
        table.add_row(f"  {heading}", Text(visible(value)))
    return table


@with_groups
def health(connection: ConnectionOptions, as_json: JsonOption = False) -> None:
    """Have each model of a server score a crop; exit code 0 when all do, 4 when the server is not ready."""
    url, found = asyncio.run(_health(connection))
    if as_json:
        print(json_text({"url": url, **{key: value for key, value in asdict(found).items() if value != ""}}))
    else:
        state = f"{'alive' if found.alive else 'not alive'}, {'ready' if found.ready else 'not ready'}"
        reason = f": {visible(with_options(found.reason))}" if found.reason else ""
        Console(highlight=False, soft_wrap=True, markup=False).print(f"{url}: {state}{reason}")
    if not (found.alive and found.ready):
        raise typer.Exit(ServerUnavailableError.exit_code)


async def _describe_all(connection: Connection) -> tuple[str, dict[str, ServedModel | ModelContractError]]:
    transport = connect(connection)
    found: dict[str, ServedModel | ModelContractError] = {}
    try:
        for name in await transport.list_models():
            try:
                found[name] = await transport.describe(name)
            except ModelContractError as exc:
                found[name] = exc
    finally:
        await transport.close()
    return transport.url, found


async def _health(connection: Connection) -> tuple[str, Health]:
    transport = connect(connection)
    try:
        return transport.url, await transport.health()
    finally:
        await transport.close()


def _as_data(name: str, found: ServedModel | ModelContractError) -> dict[str, Any]:
    if isinstance(found, ModelContractError):
        return {"name": name, "error": str(found)}
    return {
        "name": name,
        "version": found.version,
        "max_batch_size": found.max_batch_size,
        "spec": found.spec.to_dict(),
    }
