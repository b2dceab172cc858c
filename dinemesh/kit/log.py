"""Logs are one JSON object a line, each with the service and, inside a call, its correlation id.

A line has at most MAX_LINE bytes, whatever somebody has sent; what is cut says by how much ("...+1234"). Only
a stack trace comes on top of it: that is our own text, and the texts of its errors are cut as well.
"""

from __future__ import annotations

import json
import logging
import re
import sys
import traceback
from collections.abc import Iterator
from types import TracebackType
from typing import Any, TextIO, TypeAlias

from pythonjsonlogger.json import JsonFormatter

from dinemesh.kit.call import current

MAX_LINE = 1024
"""Bytes of a line without its stack trace. A flood of long values would fill the log, and somebody's disk."""
MAX_ERROR = 400
"""Signs of the text of one error in a stack trace. A database's error holds the statement."""
_TRACES = ("exc_info", "stack_info")

ExcInfo: TypeAlias = tuple[type[BaseException], BaseException, TracebackType | None] | tuple[None, None, None]

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
    """Cuts what is too long, and leaves out the detail of a database's error: PostgreSQL tells there the
    values of the whole row."""

    def formatException(self, ei: ExcInfo) -> str:
        if ei[1] is None:
            return ""
        return "".join(_trace(traceback.TracebackException.from_exception(ei[1]))).rstrip("\n")

    def serialize_log_record(self, log_data: dict[str, Any]) -> str:
        line = super().serialize_log_record(log_data)
        if len(line) <= MAX_LINE:  # of ASCII, so that signs are bytes
            return line
        traces = {name: log_data.pop(name) for name in _TRACES if name in log_data}
        whole = {name: value if isinstance(value, str) else repr(value) for name, value in log_data.items()}
        kept = {name: len(text) for name, text in whole.items()}
        while len(super().serialize_log_record(log_data)) > MAX_LINE:
            longest = max(kept, key=lambda name: len(json.dumps(log_data[name], default=str)))
            if not kept[longest]:
                break  # names alone are too long: nobody but ourselves makes those up
            kept[longest] //= 2
            log_data[longest] = cut(whole[longest], kept[longest])
        return super().serialize_log_record(log_data | traces)

    def process_log_record(self, log_data: dict[str, Any]) -> dict[str, Any]:
        for part in ("message", "exc_info"):
            if isinstance(log_data.get(part), str):
                log_data[part] = _DETAIL.sub("", log_data[part])
        return log_data


def cut(text: str, length: int) -> str:
    """At most `length` signs of a text, and how many more it had."""
    return text if len(text) <= length else f"{text[:length]}...+{len(text) - length}"


def _trace(error: traceback.TracebackException) -> Iterator[str]:
    """As Python writes it, but for the texts of errors: those may hold what a client has sent."""
    before = error.__cause__ or (None if error.__suppress_context__ else error.__context__)
    if before is not None:
        yield from _trace(before)
        yield f"\n{'The cause of' if error.__cause__ else 'During its handling came'} this:\n\n"
    yield "Traceback (most recent call last):\n"
    yield from error.stack.format()
    yield cut("".join(error.format_exception_only()).rstrip("\n"), MAX_ERROR) + "\n"
    for one in error.exceptions or ():  # of a group
        yield from _trace(one)


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
