"""One JSON object a line, with the correlation id of the call."""

from __future__ import annotations

import io
import json
import logging
from collections.abc import Iterator

import pytest

from dinemesh.kit import call, log
from dinemesh.kit.log import MAX_ERROR, MAX_LINE


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


LONG = {
    "plain": "x" * 5_000,
    "quotes": '"' * 5_000,
    "control signs": "\x00" * 5_000,
    "another alphabet": "\u6f22" * 5_000,
    "beyond the plane": "\U0001f600" * 5_000,
    "half a sign": "\ud800" * 5_000,
}


def written(stream: io.StringIO) -> list[str]:
    return stream.getvalue().splitlines()


@pytest.mark.parametrize("text", LONG.values(), ids=LONG.keys())
def test_a_line_is_short_whatever_is_in_it(text: str) -> None:
    stream = io.StringIO()
    log.setup("deposit", "INFO", stream)
    logger = logging.getLogger("any")
    with call.working_on(call.Call(text, causation_id=text, method=text)):
        logger.info("call %s", text, extra={"reason": text, "many": [text, text], "named": {text: text}})
    logger.warning(text)
    with_call, alone = written(stream)
    for line in (with_call, alone):
        assert len(line.encode()) <= MAX_LINE
    assert json.loads(with_call)["reason"].startswith(text[:1])
    said = json.loads(alone)["message"]
    kept, _, more = said.partition("...+")
    assert kept == text[: len(kept)] and len(kept) + int(more) == len(text)


def test_what_fits_is_not_cut() -> None:
    stream = io.StringIO()
    log.setup("deposit", "INFO", stream)
    logging.getLogger("any").info("x" * 800, extra={"count": 2})
    (line,) = written(stream)
    assert (json.loads(line)["message"], json.loads(line)["count"]) == ("x" * 800, 2)


def test_a_stack_trace_is_whole_but_for_the_texts_of_its_errors() -> None:
    stream = io.StringIO()
    log.setup("deposit", "INFO", stream)
    sent = "y" * 5_000

    def deep(levels: int) -> None:
        if levels:
            deep(levels - 1)
            return
        try:
            raise KeyError(sent)
        except KeyError as error:
            raise ExceptionGroup(sent, [ValueError(sent), RuntimeError(sent)]) from error

    try:
        deep(2)
    except ExceptionGroup:
        logging.getLogger("any").exception("failed: %s", sent)
    (line,) = written(stream)
    said = json.loads(line)
    trace = said.pop("exc_info")
    assert len(json.dumps(said)) <= MAX_LINE
    assert all(f"{kind}: " in trace for kind in ("KeyError", "ExceptionGroup", "ValueError", "RuntimeError"))
    assert trace.count("in deep") == 4
    assert 4 * MAX_ERROR > trace.count("y") > 2 * MAX_ERROR
    assert "y" * (MAX_ERROR + 1) not in trace and "...+" in trace
