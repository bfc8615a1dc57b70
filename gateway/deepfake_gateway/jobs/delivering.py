"""Deliveries of webhooks: signed, to public addresses only, and tried again until somebody takes them."""

from __future__ import annotations

import asyncio
import logging
from datetime import UTC, datetime
from typing import Final

import aiohttp
from sqlalchemy.exc import SQLAlchemyError
from standardwebhooks import Webhook as Signer

from deepfake_gateway.addresses import Addresses, AddressRefusedError, checked_url
from deepfake_gateway.logs import first_line
from deepfake_gateway.store.webhooks import Delivery, Webhook, Webhooks

logger = logging.getLogger(__name__)

LOOK_EVERY_S: Final = 1.0
ANSWER_S: Final = 20.0
_GONE: Final = 410
"""The receiver wants no more, as the specification has it."""


async def deliver_all(webhooks: Webhooks, addresses: Addresses) -> None:
    """Send what is due, now and from now on."""
    is_away = False
    while True:
        try:
            sent = await deliver_due(webhooks, addresses)
            is_away = False
        except SQLAlchemyError as exc:
            if not is_away:
                logger.warning("webhooks cannot be delivered now (%s); it is tried again", first_line(exc))
            sent, is_away = 0, True
        if not sent:
            await asyncio.sleep(LOOK_EVERY_S)


async def deliver_due(webhooks: Webhooks, addresses: Addresses) -> int:
    """Send what is due at once, and note what became of it; returns how many messages these were."""
    claimed = await asyncio.to_thread(webhooks.claim)
    if claimed:
        async with addresses.session(ANSWER_S) as session:
            await asyncio.gather(*(_deliver(webhooks, session, *one) for one in claimed))
    return len(claimed)


async def _deliver(webhooks: Webhooks, session: aiohttp.ClientSession, webhook: Webhook, delivery: Delivery) -> None:
    delivered, again = False, True
    try:
        checked_url(webhook.url, ("http", "https"))
        headers = signed(webhook.secret, delivery)
        # A redirect is followed nowhere: a receiver that moved gives its new address.
        async with session.post(
            webhook.url, data=delivery.body.encode(), headers=headers, allow_redirects=False
        ) as answer:
            outcome = f"answered {answer.status}"
            delivered, again = 200 <= answer.status < 300, answer.status != _GONE
    except AddressRefusedError as exc:
        outcome = str(exc)
    except TimeoutError:
        outcome = f"gave no answer within {ANSWER_S:g} s"
    except aiohttp.ClientConnectorError as exc:
        outcome = str(exc.os_error)
    except (aiohttp.ClientError, OSError) as exc:
        outcome = f"broke off ({type(exc).__name__})"
    await asyncio.to_thread(webhooks.note, delivery, outcome, delivered=delivered, again=again and not delivered)


def signed(secret: str, delivery: Delivery) -> dict[str, str]:
    """Return the headers of a try, after the Standard Webhooks specification; the id is that of all its tries."""
    now, message_id = datetime.now(UTC), f"msg_{delivery.id}"
    return {
        "Content-Type": "application/json",
        "webhook-id": message_id,
        "webhook-timestamp": str(int(now.timestamp())),
        "webhook-signature": Signer(secret).sign(message_id, now, delivery.body),
    }
