"""Words that are said: the smallest events there are, with their tables, a handler, and what waits for
them."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

from google.protobuf.wrappers_pb2 import StringValue
from sqlalchemy import Column, MetaData, Table, Text, create_engine, func, select

from dinemesh.kit.inbox import Received, Subscription, inbox_tables
from dinemesh.kit.outbox import Outbox, OutgoingEvent, backlog, outbox_table
from dinemesh.kit.retention import retention_table
from dinemesh.kit.store import Store, Transaction
from dinemesh.kit.workers import cancel

metadata = MetaData()
outbox_rows = outbox_table(metadata)
tables = inbox_tables(metadata)
retention_rows = retention_table(metadata)
heard = Table("heard", metadata, Column("position", Text, primary_key=True), Column("text", Text))

QUEUE = "test.words"


def encode(event: tuple[str, int]) -> OutgoingEvent:
    text, version = event
    return OutgoingEvent(StringValue(value=text), "words.v1.said", "word-1", version, "alice", "r-1")


def on_said(tx: Transaction, event: Received[StringValue]) -> None:
    if event.message.value == "poison":
        raise KeyError("cannot swallow this")
    tx.execute(heard.insert(), {"position": f"{event.aggregate_version:05}", "text": event.message.value})


def words(newest_only: bool = False, queue: str = QUEUE) -> Subscription:
    return Subscription(queue, ["words.v1.*"], {StringValue: on_said}, newest_only=newest_only)


def texts(tx: Transaction) -> list[str]:
    return list(tx.execute(select(heard.c.text).order_by(heard.c.position)).scalars())


def count(table: Table) -> Callable[[Transaction], int]:
    return lambda tx: tx.execute(select(func.count()).select_from(table)).scalar_one()


async def until(condition: Callable[[], object], seconds: float = 30) -> None:
    """Polls until `condition` (sync or async) is true."""
    async with asyncio.timeout(seconds):
        while True:
            result = condition()
            if asyncio.iscoroutine(result):
                result = await result
            if result:
                return
            await asyncio.sleep(0.02)


def prepared(url: str) -> str:
    """The URL of an empty database, which has the tables of words now."""
    engine = create_engine(url)
    metadata.create_all(engine)
    engine.dispose()
    return url


@asynccontextmanager
async def opened(url: str) -> AsyncIterator[Store]:
    """A store over an empty database."""
    store = Store.open(prepared(url))
    yield store
    await store.close()


@asynccontextmanager
async def running(*workers: object) -> AsyncIterator[None]:
    tasks = [asyncio.ensure_future(worker.run()) for worker in workers]  # type: ignore[attr-defined]
    try:
        yield
    finally:
        for task in tasks:
            await cancel(task)


async def say(store: Store, outbox: Outbox, *said: str, first: int = 1) -> list[str]:
    def change(tx: Transaction) -> list[str]:
        return [outbox.add(tx, (text, first + n)) for n, text in enumerate(said)]

    return await store.write(change)


def unsent(store: Store) -> Callable[[], object]:
    async def none_left() -> bool:
        return (await store.read(lambda tx: backlog(tx, outbox_rows)))[0] == 0

    return none_left


def hears(store: Store, *expected: str) -> Callable[[], object]:
    async def check() -> bool:
        return await store.read(texts) == list(expected)

    return check
