"""The queue that gateways fill: DBOS on the gateway's own database.

So a job is recorded and queued in one transaction.
"""

from __future__ import annotations

from enum import IntEnum, StrEnum
from typing import Final, Protocol

import sqlalchemy as sa
from dbos import DBOS, DBOSClient

APPLICATION: Final = "deepfake-gateway"
APPLICATION_VERSION: Final = "1"
"""DBOS gives a workflow back only to a worker of the version that began it. Changes with what a job is made of, never
with a release: an upgrade shall take up what was queued before."""


class Job(StrEnum):
    """What a worker does; each kind waits in a queue of its own."""

    ANALYZE = "analyze"
    EXPLAIN = "explain"
    WATCH = "watch"
    GATHER = "gather"


class Priority(IntEnum):
    """Which job comes first; the smallest number does."""

    INTERACTIVE = 1
    BULK = 100


class Queue(Protocol):
    """Where jobs wait for a worker; each has the id of what it brings to its end."""

    def enqueue(self, connection: sa.Connection, job: Job, job_id: str, priority: int) -> None:
        """Queue a job in a transaction of the store's."""
        ...

    def forget(self, *job_ids: str) -> None:
        """Take jobs off their queues, if they are still there, with all that is known of them."""
        ...

    def close(self) -> None:
        """Close all connections."""
        ...


class DurableQueue:
    """The queue of a database, which is made where it is not there yet."""

    def __init__(self, database_url: str) -> None:
        DBOS.migrate(database_url)
        self._client = DBOSClient(system_database_url=database_url)

    def enqueue(self, connection: sa.Connection, job: Job, job_id: str, priority: int) -> None:
        """See `Queue.enqueue`."""
        self._client.enqueue_in_transaction(
            connection,
            {
                "workflow_name": job.value,
                "queue_name": job.value,
                "workflow_id": job_id,
                "priority": priority,
                "app_version": APPLICATION_VERSION,
            },
            job_id,
        )

    def forget(self, *job_ids: str) -> None:
        """See `Queue.forget`: all at once."""
        self._client.delete_workflows(list(job_ids))

    def close(self) -> None:
        """See `Queue.close`."""
        self._client.destroy()
