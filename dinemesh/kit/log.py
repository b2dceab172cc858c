"""Logs are one JSON object a line, each with the service and, inside a call, its correlation id."""

from __future__ import annotations

import logging
import re
import sys
from typing import Any, TextIO

from pythonjsonlogger.json import JsonFormatter

from dinemesh.kit.call import current

# A line of an error's text, or of its repr.
_DETAIL = re.compile(r"(\n|\\n)DETAIL: .*?(?=\n|\\n|$)")


class _WithCall(logging.Filter):
    """Adds what travels with the call. A filter of the handler, so that other libraries' lines have it."""

    def filter(self, record: logging.LogRecord) -> bool:
        call = current.get()
        if call.correlation_id:
            record.correlation_id = call.correlation_id
        if call.causation_id:
            record.causation_id = call.causation_id
        if call.method:
            record.method = call.method
        return True


class _Formatter(JsonFormatter):
    """Leaves out the detail of a database's error: PostgreSQL tells there the values of the whole row."""

    def process_log_record(self, log_data: dict[str, Any]) -> dict[str, Any]:
        for part in ("message", "exc_info"):
            if isinstance(log_data.get(part), str):
                log_data[part] = _DETAIL.sub("", log_data[part])
        return log_data


class _StandardOutput(logging.StreamHandler[TextIO]):
    """Writes to what sys.stdout is at the time: a test runner exchanges it, and closes what it was."""

    def __init__(self) -> None:
        logging.Handler.__init__(self)

    @property
    def stream(self) -> TextIO:  # type: ignore[override]
        return sys.stdout


def setup(service: str, level: str = "INFO", stream: TextIO | None = None) -> None:
    """Sends all logs of the process to `stream` (standard output unless told) as JSON lines."""
    handler = _StandardOutput() if stream is None else logging.StreamHandler(stream)
    handler.addFilter(_WithCall())
    handler.setFormatter(
        _Formatter(
            "{levelname}{name}{message}",
            style="{",
            timestamp="time",
            static_fields={"service": service},
            rename_fields={"levelname": "level", "name": "logger"},
        )
    )
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(level)
    # Their INFO is a line for every reconnect and every channel, the reason is in our own lines.
    for noisy in ("aiormq", "aio_pika", "alembic.runtime.plugins"):
        logging.getLogger(noisy).setLevel(max(logging.WARNING, root.level))
    # An ERROR for every attempt to reach a broker that is away; the bus says so once in a while.
    logging.getLogger("aiormq.connection").setLevel(logging.CRITICAL)
