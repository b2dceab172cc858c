"""Commits groups through a store, and says after each that its outcomes are known:
`python -m tests.durability.committing URL FOLDER`, on SQLite, for whoever counts the syncs of a process.
"""

from __future__ import annotations

import asyncio
import os
import sys
import threading
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from prometheus_client import REGISTRY
from sqlalchemy import Column, Integer, MetaData, Table, event, func, select
from sqlalchemy.engine import Connection

from dinemesh.kit.store import Store, Transaction

GROUPS = 25
ITEMS = 20

metadata = MetaData()
rows = Table("rows", metadata, Column("id", Integer, primary_key=True))

Spoil = Callable[[Store], None]
"""What makes a store less durable than it asks to be."""


def as_it_is(_: Store) -> None:
    """Spoils nothing."""


def without_syncs(store: Store) -> None:
    """As if the store did not ask SQLite for them."""

    @event.listens_for(store._engines.writer, "connect")
    def relax(connection: object, _record: object) -> None:
        connection.execute("PRAGMA synchronous=OFF")  # type: ignore[attr-defined]


def without_waiting(store: Store) -> None:
    """As if the store let PostgreSQL answer a commit before it is safe."""

    @event.listens_for(store._engines.writer, "begin")
    def relax(connection: Connection) -> None:
        connection.exec_driver_sql("SET LOCAL synchronous_commit = off")


@dataclass(frozen=True)
class Committed:
    """What a run has done: `groups` as the store itself counted those that wrote."""

    groups: int
    rows: int


async def commit(
    url: str, *, group: bool = True, spoil: Spoil = as_it_is, tell: Callable[[], None] = lambda: None
) -> Committed:
    """GROUPS times ITEMS changes that wait together. `tell` is called before and after each."""
    store = Store.open(url, group=group)
    spoil(store)
    try:
        await store.write(_insert(-1))  # SQLite begins a new log for it, which has syncs of its own
        tell()
        before = _groups()
        for number in range(GROUPS):
            entered, go_on = threading.Event(), threading.Event()

            def hold(
                _: Transaction, entered: threading.Event = entered, go_on: threading.Event = go_on
            ) -> None:
                entered.set()
                assert go_on.wait(10)

            # It writes nothing, so that its commit needs no sync; what comes meanwhile waits together.
            holding = asyncio.ensure_future(store.write(hold))
            assert await asyncio.to_thread(entered.wait, 10)
            waiting = [
                asyncio.ensure_future(store.write(_insert(number * ITEMS + item))) for item in range(ITEMS)
            ]
            await asyncio.sleep(0)  # each has put itself into the queue
            go_on.set()
            await holding
            assert await asyncio.gather(*waiting) == [1] * ITEMS
            tell()
        holds = GROUPS
        found = await store.read(lambda tx: tx.execute(select(func.count()).select_from(rows)).scalar_one())
        return Committed(groups=_groups() - before - holds, rows=found - 1)
    finally:
        await store.close()


async def prepare(url: str) -> None:
    """Makes the table."""
    store = Store.open(url)
    await store.write(lambda tx: metadata.create_all(tx._connection))
    await store.close()


def _insert(number: int) -> Callable[[Transaction], int]:
    return lambda tx: tx.changed(tx.insert(rows).values(id=number))


def _groups() -> int:
    return int(REGISTRY.get_sample_value("dinemesh_store_group_changes_count") or 0)


SPOILS: dict[str, Spoil] = {"as_it_is": as_it_is, "without_syncs": without_syncs}


def main() -> None:
    """Each time that outcomes are known, a sync of FOLDER/told stands in the trace."""
    url, folder, spoil, group = sys.argv[1:]
    asyncio.run(prepare(url))
    with (Path(folder) / "told").open("w") as told:

        def tell() -> None:
            os.fdatasync(told.fileno())

        committed = asyncio.run(commit(url, group=group == "grouped", spoil=SPOILS[spoil], tell=tell))
    print(committed.groups, committed.rows)  # noqa: T201 - read by the test


if __name__ == "__main__":
    main()
