"""What routes get from the application, as parameters."""

from __future__ import annotations

from typing import Annotated, TypeAlias

from fastapi import Depends, Request

from deepfake_gateway.intake.submission import Desk
from deepfake_gateway.settings import Settings


def _desk(request: Request) -> Desk:
    desk: Desk = request.app.state.desk
    return desk


def _settings(request: Request) -> Settings:
    settings: Settings = request.app.state.settings
    return settings


DeskOf: TypeAlias = Annotated[Desk, Depends(_desk)]
SettingsOf: TypeAlias = Annotated[Settings, Depends(_settings)]
