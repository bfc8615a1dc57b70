"""`deepfake gateway webhooks`: sends a message of a verdict service once more."""

from __future__ import annotations

from typing import Annotated

import typer

from deepfake_gateway.cli.keys import Database, DataDir, SettingsFile, opened
from deepfake_gateway.store.webhooks import Webhooks
from deepfake_preprocess.errors import OptionError

webhooks = typer.Typer(help="Send messages of webhooks once more.", no_args_is_help=True)


@webhooks.callback()
def _group() -> None:
    pass


@webhooks.command()
def redeliver(
    delivery: Annotated[str, typer.Argument(help="Its id, as GET /v1/webhooks/ID/deliveries lists it.")],
    data_dir: DataDir = None,
    database: Database = None,
    settings_file: SettingsFile = None,
) -> None:
    """Send a message once more, whether it was delivered, failed or waits."""
    with opened(settings_file, data_dir, database) as store:
        if not Webhooks(store.engine).redeliver(delivery):
            raise OptionError(f"there is no delivery {delivery[:64]!r}; GET /v1/webhooks/ID/deliveries lists them")
    print("it is sent again by the next worker that is free")
