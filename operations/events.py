"""Events that are stuck: dead letters listed and sent back, outboxes published again."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path

from sqlalchemy import MetaData
from sqlalchemy.engine import make_url
from sqlalchemy.exc import ArgumentError, DBAPIError

from dinemesh.kit.dead_letters import DeadLetter
from dinemesh.kit.outbox import mark_unsent, outbox_table
from dinemesh.kit.store import Store, StoreUnavailable
from operations.broker import check_exists, connected, dead_letters_of, redriven

_COLUMNS = ("QUEUE", "TYPE", "EVENT", "CORRELATION", "REASON", "COUNT", "SINCE (UTC)")


class Unwritable(Exception):
    """An outbox cannot be replayed."""


async def dead_letters(amqp_url: str, queues: Sequence[str]) -> list[DeadLetter]:
    """What could not be taken, by queue, oldest first. Changes nothing. Raises NoQueue."""
    async with connected(amqp_url) as bus:
        return [letter for queue in queues for letter in await dead_letters_of(bus, queue)]


async def redrive(amqp_url: str, queues: Sequence[str]) -> dict[str, int]:
    """Send the dead letters of each queue back to it, once; how many. What dies again stays dead.
    Raises NoQueue for one that does not exist, before anything is sent."""
    sent: dict[str, int] = {}
    async with connected(amqp_url) as bus:
        for queue in queues:
            await check_exists(bus, queue)
        for queue in queues:
            sent[queue] = await redriven(bus, queue)
    return sent


async def replay(database_url: str, since_seconds: float | None = None) -> int:
    """Mark what an outbox has sent as unsent; the relay of the running service publishes it within seconds.

    Subscribers have seen most of it: their inboxes let nothing in twice.
    """
    name = existing(database_url)
    # The service may be running: not exclusive. Each engine orders the two writers.
    store = Store.open(database_url, exclusive=False, readers=1, patient=True)
    since = None if since_seconds is None else datetime.now(UTC) - timedelta(seconds=since_seconds)
    table = outbox_table(MetaData())
    try:
        return await store.write(lambda tx: mark_unsent(tx, table, since=since))
    except (DBAPIError, StoreUnavailable) as error:
        raise Unwritable(f"{name}: {getattr(error, 'orig', error)}") from error
    finally:
        await store.close()


def existing(database_url: str) -> str:
    """The URL as it may be shown. A SQLite file that is not there must not be made by looking for it."""
    try:
        url = make_url(database_url)
    except ArgumentError:
        raise Unwritable(
            "the address of the database is no URL; one looks like sqlite:////path/deposit.db or"
            " postgresql+psycopg://user@host/deposit"
        ) from None
    name = url.render_as_string(hide_password=True)
    if url.get_backend_name() == "sqlite" and not Path(url.database or "").is_file():
        raise Unwritable(f"{name}: there is no such file")
    return name


def table(letters: Sequence[DeadLetter]) -> str:
    """A line for each dead letter, to be read by a person."""
    if not letters:
        return "no dead letters"
    rows = [_COLUMNS, *map(_row, letters)]
    widths = [max(len(row[column]) for row in rows) for column in range(len(_COLUMNS))]
    lines = ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)) for row in rows]
    return "\n".join(line.rstrip() for line in (*lines, "", f"{len(letters)} dead letters"))


def _row(letter: DeadLetter) -> tuple[str, ...]:
    since = f"{letter.since:%Y-%m-%d %H:%M:%S}" if letter.since else "-"
    kind = letter.type or f"unreadable, {letter.size_bytes} bytes"
    ids = letter.event_id or "-", letter.correlation_id or "-"
    return letter.queue, kind, *ids, letter.reason, str(letter.count), since
