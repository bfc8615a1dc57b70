"""`deepfake models` and `deepfake health`: what a server offers, and whether it is ready."""

from __future__ import annotations

import asyncio
import json
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.table import Table
from rich.text import Text

from deepfake_client.transport import DEFAULT_TIMEOUT_S, DEFAULT_URL, GrpcTransport, ServedModel
from deepfake_preprocess.errors import ModelContractError, ServerUnavailableError

Url = Annotated[str, typer.Option(envvar="DEEPFAKE_URL", metavar="HOST:PORT", help="gRPC address of the server.")]
Timeout = Annotated[float, typer.Option(help="Deadline of each request, in seconds.")]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON.")]


def models(url: Url = DEFAULT_URL, timeout: Timeout = DEFAULT_TIMEOUT_S, as_json: AsJson = False) -> None:
    """Show the detectors that a server offers, with the contract each one publishes.

    Models that do not follow this project's contract are listed with the reason.
    """
    entries = asyncio.run(_describe_all(url, timeout))
    if as_json:
        print(json.dumps([_as_data(name, found) for name, found in entries.items()], indent=2, ensure_ascii=False))
        return
    console = Console(highlight=False)
    if not entries:
        console.print(f"the server at {url} offers no model")
    for name, found in entries.items():
        console.print(Text(name, style="bold"))
        console.print(_contract_table(found) if isinstance(found, ServedModel) else Text(f"  not usable: {found}"))


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
        table.add_row(f"  {heading}", Text(value))
    return table


def health(url: Url = DEFAULT_URL, timeout: Timeout = DEFAULT_TIMEOUT_S, as_json: AsJson = False) -> None:
    """Ask a server whether it is alive and ready; exit code 0 when it is, 4 when not."""
    alive, ready = asyncio.run(_health(url, timeout))
    if as_json:
        print(json.dumps({"url": url, "alive": alive, "ready": ready}))
    else:
        Console(highlight=False).print(
            f"{url}: {'alive' if alive else 'not alive'}, {'ready' if ready else 'not ready'}"
        )
    if not (alive and ready):
        raise typer.Exit(ServerUnavailableError.exit_code)


async def _describe_all(url: str, timeout_s: float) -> dict[str, ServedModel | ModelContractError]:
    transport = GrpcTransport(url, timeout_s=timeout_s)
    found: dict[str, ServedModel | ModelContractError] = {}
    try:
        for name in await transport.list_models():
            try:
                found[name] = await transport.describe(name)
            except ModelContractError as exc:
                found[name] = exc
    finally:
        await transport.close()
    return found


async def _health(url: str, timeout_s: float) -> tuple[bool, bool]:
    transport = GrpcTransport(url, timeout_s=timeout_s)
    try:
        return await transport.health()
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
