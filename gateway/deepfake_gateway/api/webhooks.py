"""Routes of webhooks: addresses that are told when an analysis is over."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Annotated, Final

from fastapi import APIRouter, Body
from fastapi.responses import JSONResponse, Response
from pydantic import BaseModel, ConfigDict, Field

from deepfake_gateway.addresses import MAX_URL, Addresses, AddressRefusedError, checked_url
from deepfake_gateway.api.parts import KNOWN_QUERY, DeskOf, JsonRoute, SettingsOf
from deepfake_gateway.intake.problems import OF_BODIES, Problem, responses
from deepfake_gateway.intake.submission import Desk
from deepfake_gateway.store.threads import in_store
from deepfake_gateway.store.webhooks import Webhook

MOST: Final = 10
"""Most webhooks of one tenant."""

router = APIRouter(tags=["webhooks"], route_class=JsonRoute)


class WebhookForm(BaseModel):
    """Where messages go."""

    model_config = ConfigDict(extra="forbid")

    url: str = Field(max_length=MAX_URL, description="http or https, of a public address")


class WebhookDocument(BaseModel):
    """An address that is told."""

    id: str
    url: str
    created_at: datetime
    secret: str | None = Field(description="messages are signed with it; shown only once, when it is made")


class WebhooksDocument(BaseModel):
    """All of a tenant."""

    items: list[WebhookDocument]


class DeliveryDocument(BaseModel):
    """One message, and what became of it."""

    id: str
    created_at: datetime
    state: str = Field(description="``pending``, ``delivered`` or ``failed``")
    attempts: int
    next_try_at: datetime | None
    delivered_at: datetime | None
    outcome: str | None = Field(description="of the last try")


class DeliveriesDocument(BaseModel):
    """The last ones of a webhook, the newest first."""

    items: list[DeliveryDocument]


@router.post(
    "/v1/webhooks",
    status_code=201,
    dependencies=[KNOWN_QUERY],
    responses={201: {"model": WebhookDocument, "description": "It is there."}, **responses(*OF_BODIES, 409)},
)
async def add(desk: DeskOf, settings: SettingsOf, form: Annotated[WebhookForm, Body()]) -> Response:
    """Have an address told when an analysis is over, by a signed POST (Standard Webhooks)."""
    try:
        parts = checked_url(form.url, ("http", "https"))
        # Where a name leads is checked with every delivery.
        Addresses.of(settings.allowed_networks).check_literal(parts.hostname or "")
    except AddressRefusedError as exc:
        raise Problem(422, str(exc)) from None
    if parts.username or parts.password:
        raise Problem(422, "the address holds a password, which would be stored; messages are signed instead")
    known = await in_store(desk.webhooks.all)  # an administrator's are all
    if sum(one.tenant == desk.tenant for one in known) >= MOST:
        raise Problem(409, f"there are {MOST} webhooks, as many as may; delete one")
    webhook = await in_store(desk.webhooks.add, form.url, desk.tenant)
    document = _document(webhook, secret=webhook.secret)
    return JSONResponse(document.model_dump(mode="json"), 201, {"Location": f"/v1/webhooks/{webhook.id}/deliveries"})


@router.get("/v1/webhooks", responses=responses())
async def list_webhooks(desk: DeskOf) -> WebhooksDocument:
    """List the webhooks, without their secrets."""
    return WebhooksDocument(items=[_document(one) for one in await in_store(desk.webhooks.all)])


@router.delete("/v1/webhooks/{webhook_id}", status_code=204, responses=responses(404))
async def delete(webhook_id: str, desk: DeskOf) -> Response:
    """Tell an address no more."""
    await _find(desk, webhook_id)
    await in_store(desk.webhooks.delete, webhook_id)
    return Response(status_code=204)


@router.get("/v1/webhooks/{webhook_id}/deliveries", responses=responses(404))
async def deliveries(webhook_id: str, desk: DeskOf) -> DeliveriesDocument:
    """Show the last 100 messages, and what became of them."""
    await _find(desk, webhook_id)
    found = await in_store(desk.webhooks.deliveries, webhook_id)
    return DeliveriesDocument(
        items=[
            DeliveryDocument(
                id=one.id, created_at=_time(one.created_at), state=one.state, attempts=one.attempts,
                next_try_at=None if one.next_try_at is None else _time(one.next_try_at),
                delivered_at=None if one.delivered_at is None else _time(one.delivered_at), outcome=one.outcome,
            )
            for one in found
        ]
    )  # fmt: skip


async def _find(desk: Desk, webhook_id: str) -> Webhook:
    webhook = await in_store(desk.webhooks.get, webhook_id)
    if webhook is None:
        raise Problem(404, f"there is no webhook {webhook_id[:64]!r}; GET /v1/webhooks lists those there are")
    return webhook


def _document(webhook: Webhook, secret: str | None = None) -> WebhookDocument:
    return WebhookDocument(id=webhook.id, url=webhook.url, created_at=_time(webhook.created_at), secret=secret)


def _time(seconds: float) -> datetime:
    return datetime.fromtimestamp(seconds, UTC)
