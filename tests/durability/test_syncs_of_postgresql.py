"""PostgreSQL: each group of changes costs one sync of its log, and no outcome is told without it.

Counted by the server itself, a private one with fsync on; whatever the server, the database or the role say
about synchronous_commit, the store asks for it.
"""

from __future__ import annotations

import shutil
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import psycopg
import pytest
from sqlalchemy import text
from sqlalchemy.engine import make_url

from dinemesh.kit import engines
from dinemesh.kit.store import Store
from tests.durability.committing import GROUPS, ITEMS, Spoil, as_it_is, commit, prepare, without_waiting
from tests.support.postgres import PostgresServer

OTHERS = 3
"""Syncs that the server may do for reasons of its own in the meantime: its background processes have a few
every ten seconds, and a run takes less than one."""


@pytest.fixture(scope="module")
def syncing_server() -> Iterator[PostgresServer]:
    """A server that syncs, and that as a whole, in each database, would rather not wait for it."""
    folder = Path(tempfile.mkdtemp(prefix="dinemesh-pg-"))
    server = PostgresServer(folder / "data")
    try:
        for setting in ("fsync = on", "synchronous_commit = off", "autovacuum = off"):
            server.execute(f"ALTER SYSTEM SET {setting}")
        server.execute("SELECT pg_reload_conf()")
        yield server
    finally:
        server.stop()
        shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture
def url(syncing_server: PostgresServer) -> str:
    url = syncing_server.fresh("")
    name = make_url(url).database
    syncing_server.execute(f"ALTER DATABASE {name} SET synchronous_commit = off")
    assert ask(url, "SHOW fsync") == "on"
    assert ask(url, "SHOW synchronous_commit") == "off"
    return url


def ask(url: str, query: str) -> object:
    plain = make_url(url).set(drivername="postgresql").render_as_string(hide_password=False)
    with psycopg.connect(plain, autocommit=True) as connection:
        row = connection.execute(query.encode()).fetchone()
    assert row is not None
    return row[0]


def syncs(url: str) -> int:
    """Of the log, by all processes of the server. A process tells its numbers when it ends, at the latest."""
    others = "SELECT count(*) FROM pg_stat_activity WHERE backend_type = 'client backend'"
    end = time.monotonic() + 10
    while ask(url, others) != 1:  # the one who asks
        assert time.monotonic() < end, "the store's connections do not end"
        time.sleep(0.02)
    of_18 = "SELECT sum(fsyncs)::bigint FROM pg_stat_io WHERE object = 'wal'"
    version = int(str(ask(url, "SHOW server_version_num")))
    return int(str(ask(url, of_18 if version >= 180_000 else "SELECT wal_sync FROM pg_stat_wal")))


async def counted(url: str, *, group: bool = True, spoil: Spoil = as_it_is) -> tuple[int, int]:
    """Syncs and groups of one run."""
    await prepare(url)
    before = syncs(url)
    committed = await commit(url, group=group, spoil=spoil)
    assert committed.rows == GROUPS * ITEMS
    return syncs(url) - before, committed.groups


async def test_each_group_is_synced_once(url: str) -> None:
    synced, groups = await counted(url)
    assert groups == GROUPS, "void: the changes were not grouped"
    # One more for the row before the groups.
    assert GROUPS + 1 <= synced <= GROUPS + 1 + OTHERS


async def test_changes_that_are_not_grouped_are_synced_one_by_one(url: str) -> None:
    """The control: the count would show it."""
    synced, groups = await counted(url, group=False)
    assert groups == GROUPS * ITEMS
    assert synced >= GROUPS * ITEMS


async def test_a_store_that_did_not_ask_would_be_seen(url: str) -> None:
    """The control."""
    synced, groups = await counted(url, spoil=without_waiting)
    assert groups == GROUPS
    assert synced < GROUPS


async def test_a_store_that_relied_on_the_server_would_be_seen(
    url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The control: this server's own word is off."""
    monkeypatch.setattr(engines, "_COMMIT_IS_DURABLE", "SELECT 1")
    synced, groups = await counted(url)
    assert groups == GROUPS
    assert synced < GROUPS


@pytest.mark.parametrize(
    ("said", "found"),
    [("off", "on"), ("local", "on"), ("remote_write", "on"), ("on", "on"), ("remote_apply", "remote_apply")],
)
async def test_a_database_may_promise_more_and_not_less(
    syncing_server: PostgresServer, url: str, said: str, found: str
) -> None:
    syncing_server.execute(f"ALTER DATABASE {make_url(url).database} SET synchronous_commit = {said}")
    store = Store.open(url)
    query = text("SHOW synchronous_commit")
    assert await store.write(lambda tx: tx.execute(query).scalar_one()) == found
    await store.close()
