"""One JSON object a line, with the correlation id of the call."""

from __future__ import annotations

import io
import json
import logging
from collections.abc import Iterator

import pytest

from dinemesh.kit import call, log


@pytest.fixture(autouse=True)
def as_before() -> Iterator[None]:
    root = logging.getLogger()
    handlers, level = root.handlers[:], root.level
    yield
    root.handlers[:] = handlers
    root.setLevel(level)


def test_each_line_is_an_object_with_service_level_time_and_correlation_id() -> None:
    stream = io.StringIO()
    log.setup("deposit", "INFO", stream)
    logging.getLogger("any.library").info("two\nlines %s", 7, extra={"count": 2})
    with call.working_on(call.Call("order-7", causation_id="event-1", method="/x/Y")):
        try:
            raise ValueError("bad")
        except ValueError:
            logging.getLogger("any").exception("failed")
    logging.getLogger("any").debug("not shown")
    first, second = (json.loads(line) for line in stream.getvalue().splitlines())
    assert (first["service"], first["level"], first["logger"]) == ("deposit", "INFO", "any.library")
    assert (first["message"], first["count"]) == ("two\nlines 7", 2)
    assert "time" in first
    assert "correlation_id" not in first
    assert (second["correlation_id"], second["causation_id"], second["method"]) == (
        "order-7",
        "event-1",
        "/x/Y",
    )
    assert "ValueError: bad" in second["exc_info"]
