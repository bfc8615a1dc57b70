"""Deliveries of webhooks: signed, to public addresses only, and tried again until somebody takes them."""

from __future__ import annotations

import asyncio
import logging
from collections import Counter
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
AT_ONCE: Final = 32
"""Messages on their way at once, in each worker."""
_GONE: Final = 410
"""The receiver wants no more, as the specification has it."""


async def deliver_all(webhooks: Webhooks, addresses: Addresses) -> None:
    """Send what is due, now and from now on."""
    messages, is_away = Messages(webhooks, addresses), False
    while True:
        try:
            begun = await messages.begin_due()
            is_away = False
        except SQLAlchemyError as exc:
            if not is_away:
                logger.warning("webhooks cannot be delivered now (%s); it is tried again", first_line(exc))
            begun, is_away = 0, True
        if not begun:
            await messages.some_end(LOOK_EVERY_S)


class Messages:
    """Messages on their way; belongs to one event loop."""

    def __init__(self, webhooks: Webhooks, addresses: Addresses) -> None:
        self._webhooks, self._addresses = webhooks, addresses
        self.under_way: dict[asyncio.Task[None], str] = {}
        """With the ids of their webhooks."""

    async def begin_due(self) -> int:
        """Begin to send what is due, as far as there is room for it; returns how many messages these are."""
        room, counts = AT_ONCE - len(self.under_way), Counter(self.under_way.values())
        claimed = await asyncio.to_thread(self._webhooks.claim, room, counts)
        for webhook, delivery in claimed:
            task = asyncio.create_task(_deliver(self._webhooks, self._addresses, webhook, delivery))
            self.under_way[task] = webhook.id
            task.add_done_callback(self.under_way.pop)
        return len(claimed)

    async def some_end(self, within_s: float) -> None:
        """Return when one of them has ended, at the latest after `within_s` seconds."""
        if self.under_way:
            await asyncio.wait(self.under_way, timeout=within_s, return_when=asyncio.FIRST_COMPLETED)
        else:
            await asyncio.sleep(within_s)


async def _deliver(webhooks: Webhooks, addresses: Addresses, webhook: Webhook, delivery: Delivery) -> None:
    delivered, again = False, True
    try:
        checked_url(webhook.url, ("http", "https"))
        headers = signed(webhook.secret, delivery)
        # A redirect is followed nowhere: a receiver that moved gives its new address.
        async with (
            addresses.session(ANSWER_S) as session,
            session.post(webhook.url, data=delivery.body.encode(), headers=headers, allow_redirects=False) as answer,
        ):
            outcome = f"answered {answer.status}"
            delivered, again = 200 <= answer.status < 300, answer.status != _GONE
    except AddressRefusedError as exc:
        outcome = str(exc)
    except TimeoutError:
        outcome = f"gave no answer within {ANSWER_S:g} s"
    except aiohttp.ClientConnectorError as exc:
        outcome = str(exc.os_error)
    except (aiohttp.ClientError, OSError, ValueError) as exc:  # the last for what is no name
        outcome = f"broke off ({type(exc).__name__})"
    except Exception as exc:  # one message must not keep others from being sent
        logger.exception("the message %s failed", delivery.id)
        outcome = f"the gateway failed ({type(exc).__name__})"
    try:
        await asyncio.to_thread(webhooks.note, delivery, outcome, delivered=delivered, again=again and not delivered)
    except SQLAlchemyError as exc:
        logger.warning("what became of the message %s cannot be stored (%s)", delivery.id, first_line(exc))


def signed(secret: str, delivery: Delivery) -> dict[str, str]:
    """Return the headers of a try, after the Standard Webhooks specification; the id is that of all its tries."""
    now, message_id = datetime.now(UTC), f"msg_{delivery.id}"
    return {
        "Content-Type": "application/json",
        "webhook-id": message_id,
        "webhook-timestamp": str(int(now.timestamp())),
        "webhook-signature": Signer(secret).sign(message_id, now, delivery.body),
    }
