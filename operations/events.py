"""Events that are stuck: dead letters listed and sent back, outboxes published again."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from pathlib import Path

from sqlalchemy import MetaData
from sqlalchemy.engine import make_url
from sqlalchemy.exc import ArgumentError, DBAPIError

from dinemesh.kit.dead_letters import DeadLetter
from dinemesh.kit.outbox import mark_unsent, outbox_table
from dinemesh.kit.retention import gone_before
from dinemesh.kit.store import Store, StoreUnavailable, Transaction
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


@dataclass(frozen=True)
class Replayed:
    """How many events are published again. Of those from before `gone_before` the outbox may have deleted
    some that were sent; None: of none."""

    events: int
    gone_before: datetime | None

    def __str__(self) -> str:
        said = f"{self.events} events are published again by its relay"
        if self.gone_before is None:
            return said
        return (
            f"{said}\n  but none from before {self.gone_before:%Y-%m-%d %H:%M} UTC: what was sent is kept for"
            " DINEMESH_RETENTION_DAYS.\n  Whoever has taken those keeps what they did, and history keeps them"
            " as they came\n  (make rebuild-history); a subscriber that has not cannot get them any more"
        )


async def replay(database_url: str, since_seconds: float | None = None) -> Replayed:
    """Mark what an outbox has sent as unsent; the relay of the running service publishes it within seconds.

    Subscribers have seen most of it, and take nothing twice.
    """
    name = existing(database_url)
    # The service may be running: not exclusive. Each engine orders the two writers.
    store = Store.open(database_url, exclusive=False, readers=1, patient=True)
    since = None if since_seconds is None else datetime.now(UTC) - timedelta(seconds=since_seconds)
    table = outbox_table(MetaData())

    def change(tx: Transaction) -> Replayed:
        return Replayed(mark_unsent(tx, table, since=since), gone_before(tx, table.name))

    try:
        done = await store.write(change)
        is_asked_for = done.gone_before is not None and (since is None or since < done.gone_before)
        return done if is_asked_for else replace(done, gone_before=None)
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
