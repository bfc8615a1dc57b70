"""`set_up_logs`: log lines for people or as JSON, each with the id of the request that it is about."""

from __future__ import annotations

import json
import logging
import re
import secrets
import time
from datetime import UTC, datetime
from typing import Any, Final, Literal

from deepfake_client.transport.request_id import REQUEST_ID

LogFormat = Literal["plain", "json"]
LogLevel = Literal["debug", "info", "warning", "error"]

QUIET_S: Final = 30.0
"""Between lines that say the same of the queue's database."""
_AWAY: Final = re.compile(r"\((psycopg|sqlite3)\.|OperationalError|Notification listener|server closed the conn")
_HARMLESS: Final = re.compile(r"[A-Za-z0-9._-]{1,64}")
_OWN: Final = frozenset(vars(logging.makeLogRecord({}))) | {
    "message",
    "asctime",
    "taskName",
    "request_id",
    "color_message",
}
"""What every record has; the rest was given as ``extra``."""


def first_line(error: object) -> str:
    """Return what an error says, as a part of a sentence in a log."""
    return str(error).strip().partition("\n")[0]


def request_id_of(text: str | None) -> str:
    """Return the id that a caller gave its request, if it can stand in headers and logs, or else a new one."""
    return text if text is not None and _HARMLESS.fullmatch(text) else secrets.token_hex(8)


def set_up_logs(log_format: LogFormat, log_level: LogLevel) -> None:
    """Write what this process logs to standard error, all loggers alike."""
    handler = logging.StreamHandler()
    handler.addFilter(_add_request_id)
    handler.setFormatter(JsonLines() if log_format == "json" else Lines())
    root = logging.getLogger()
    root.handlers = [handler]
    root.setLevel(log_level.upper())
    # What a caller sent that is no form is said to the caller.
    logging.getLogger("python_multipart").setLevel(logging.ERROR)
    # Alembic names each start, and DBOS advertises a hosted console; it gives itself a handler where it has none.
    for name in ("alembic", "dbos"):
        logger = logging.getLogger(name)
        logger.handlers, logger.propagate = [handler], False
        logger.filters = []
        logger.setLevel(logging.WARNING)
    logging.getLogger("dbos").addFilter(_Sparing())


class _Sparing(logging.Filter):
    """Lets one line through in a while of the dozens that DBOS writes each second while its database is away.

    What it says of a job that was deleted while it ran is left out: it means no more than that.
    """

    _heard_at = float("-inf")

    def filter(self, record: logging.LogRecord) -> bool:
        """See `logging.Filter.filter`."""
        cause = record.exc_info[1] if record.exc_info else ""
        text = record.getMessage()
        if type(cause).__name__ == "DBOSNonExistentWorkflowError" or "no longer owned by this execution" in text:
            return False
        if not (_AWAY.search(text) or _AWAY.search(str(cause))):
            return True
        if time.monotonic() - self._heard_at < QUIET_S:
            return False
        self._heard_at = time.monotonic()
        record.msg, record.args = "the queue's database is away (%s); it is asked again", (first_line(cause or text),)
        record.exc_info = None
        return True


def logs_in_use() -> tuple[LogFormat, LogLevel]:
    """Return what `set_up_logs` was given, for another process."""
    root = logging.getLogger()
    is_json = any(isinstance(handler.formatter, JsonLines) for handler in root.handlers)
    levels: dict[int, LogLevel] = {10: "debug", 20: "info", 30: "warning"}
    return "json" if is_json else "plain", levels.get(root.level, "error")


def _add_request_id(record: logging.LogRecord) -> bool:
    record.request_id = REQUEST_ID.get()
    return True


class Lines(logging.Formatter):
    """Lines for people."""

    def format(self, record: logging.LogRecord) -> str:
        """See `logging.Formatter.format`."""
        request_id = getattr(record, "request_id", "")
        name = f" [{request_id}]" if request_id else ""
        moment = datetime.fromtimestamp(record.created).isoformat(" ", "seconds")
        return f"{moment} {record.levelname.lower()}{name} {super().format(record)}"


class JsonLines(logging.Formatter):
    """One object in each line, for programs that collect logs."""

    def format(self, record: logging.LogRecord) -> str:
        """See `logging.Formatter.format`."""
        line: dict[str, Any] = {
            "time": datetime.fromtimestamp(record.created, UTC).isoformat(),
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": record.getMessage(),
            "request_id": getattr(record, "request_id", "") or None,
            **{name: value for name, value in vars(record).items() if name not in _OWN},
        }
        if record.exc_info:
            line["exception"] = self.formatException(record.exc_info)
        return json.dumps(line, default=str)
