"""A database that is down in more ways than unreachable, and a writer that stands still: nobody waits."""

from __future__ import annotations

import asyncio
import sqlite3
import threading
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import Any

import psycopg
import pytest
from sqlalchemy import create_engine, event, text
from sqlalchemy.exc import DBAPIError, OperationalError

from dinemesh.kit import engines
from dinemesh.kit import store as kit_store
from dinemesh.kit.store import CommitInDoubt, Store, StoreUnavailable, Transaction
from tests.kit.test_store import at_last, metadata, names, put, seats, sell
from tests.support import database_faults
from tests.support.cluster import Cluster
from tests.support.postgres import PostgresServer

DOWN, AGAIN, ITS_OWN = "down", "another try", "its own"

POSTGRESQL = {
    "08006": DOWN,  # connection_failure
    "08001": DOWN,  # no connection to be had
    "25006": DOWN,  # read_only_sql_transaction
    "25P03": DOWN,  # idle_in_transaction_session_timeout
    "28P01": DOWN,  # invalid_password
    "3D000": DOWN,  # no such database
    "42501": DOWN,  # insufficient_privilege
    "53100": DOWN,  # disk_full
    "53200": DOWN,  # out_of_memory
    "53300": DOWN,  # too_many_connections
    "55P03": DOWN,  # lock_not_available, which lock_timeout gives
    "57014": DOWN,  # query_canceled, which statement_timeout gives
    "57P01": DOWN,  # admin_shutdown
    "57P02": DOWN,  # crash_shutdown
    "57P03": DOWN,  # cannot_connect_now
    "57P04": DOWN,  # database_dropped
    "58030": DOWN,  # io_error
    "XX001": DOWN,  # data_corrupted
    "40001": AGAIN,  # serialization_failure
    "40P01": AGAIN,  # deadlock_detected
    "22P02": ITS_OWN,  # invalid_text_representation
    "23505": ITS_OWN,  # unique_violation
    "23514": ITS_OWN,  # check_violation
    "42703": ITS_OWN,  # undefined_column: of one handler, whose event becomes a dead letter
    "54000": ITS_OWN,  # program_limit_exceeded
}
SQLITE = {
    sqlite3.SQLITE_BUSY: DOWN,
    sqlite3.SQLITE_BUSY_RECOVERY: DOWN,
    sqlite3.SQLITE_CANTOPEN: DOWN,
    sqlite3.SQLITE_CORRUPT: DOWN,
    sqlite3.SQLITE_FULL: DOWN,
    sqlite3.SQLITE_INTERRUPT: DOWN,
    sqlite3.SQLITE_IOERR: DOWN,
    sqlite3.SQLITE_IOERR_FSYNC: DOWN,
    sqlite3.SQLITE_NOMEM: DOWN,
    sqlite3.SQLITE_NOTADB: DOWN,
    sqlite3.SQLITE_PERM: DOWN,
    sqlite3.SQLITE_PROTOCOL: DOWN,
    sqlite3.SQLITE_READONLY: DOWN,
    sqlite3.SQLITE_LOCKED: AGAIN,
    sqlite3.SQLITE_CONSTRAINT: ITS_OWN,
    sqlite3.SQLITE_TOOBIG: ITS_OWN,
}


def verdict(error: DBAPIError) -> str:
    down, again = engines.is_down(error), engines.is_contention(error)
    assert not (down and again)
    return DOWN if down else AGAIN if again else ITS_OWN


def raised(orig: Any) -> DBAPIError:
    return DBAPIError("a statement", None, orig)


@pytest.mark.parametrize(("state", "means"), POSTGRESQL.items())
def test_what_a_state_of_postgresql_means(state: str, means: str) -> None:
    orig = psycopg.errors.lookup(state)("no") if state != "08001" else psycopg.OperationalError("no")
    if state == "08001":
        orig.sqlstate = state
    assert verdict(raised(orig)) == means


@pytest.mark.parametrize(("code", "means"), SQLITE.items())
def test_what_a_code_of_sqlite_means(code: int, means: str) -> None:
    orig = sqlite3.OperationalError("no")
    orig.sqlite_errorcode = code
    assert verdict(raised(orig)) == means


@pytest.fixture
def url(postgres: PostgresServer) -> str:
    url = postgres.fresh("")
    engine = create_engine(url)
    metadata.create_all(engine)
    engine.dispose()
    return url


@pytest.fixture
async def store(url: str) -> AsyncIterator[Store]:
    store = Store.open(url)
    await store.write(put("before"))
    yield store
    await store.close()


async def measured(attempt: Awaitable[object]) -> tuple[object, float]:
    """How it ended, and after how many seconds."""
    begun = time.monotonic()
    try:
        outcome: object = await attempt
    except Exception as error:
        outcome = error
    return outcome, time.monotonic() - begun


async def refused_at_once(store: Store, callers: int = 60) -> float:
    """That many changes at once are refused. The longest wait in seconds."""
    async with asyncio.timeout(10):
        ends = await asyncio.gather(*(measured(store.write(put(f"r{n}"))) for n in range(callers)))
    assert {type(outcome) for outcome, _ in ends} == {StoreUnavailable}
    longest = max(seconds for _, seconds in ends)
    assert longest < 0.5
    return longest


async def in_trouble(store: Store, seconds: float) -> float:
    """Waits until the store says that it is; after how long it did."""
    begun = time.monotonic()
    while store.trouble is None:
        assert time.monotonic() - begun < seconds, f"no trouble within {seconds} s"
        await asyncio.sleep(0.01)
    return time.monotonic() - begun


async def test_a_database_that_turns_read_only_refuses_at_once_and_comes_back(
    store: Store, url: str, postgres: PostgresServer
) -> None:
    with database_faults.read_only(postgres.execute, database_faults.name_of(url)):
        for attempt in (store.write(put("a")), store.write(put("b"))):
            with pytest.raises(StoreUnavailable):
                await asyncio.wait_for(attempt, 10)
        assert store.trouble is not None
        longest = await refused_at_once(store)
        assert await at_last(lambda: store.read(names)) == {"before"}  # what can be read is read
        assert store.trouble is not None
    begun = time.monotonic()
    assert await at_last(lambda: store.write(put("c"))) == 1
    print(f"60 refused within {longest * 1000:.0f} ms; back {time.monotonic() - begun:.1f} s after")  # noqa: T201
    assert await store.read(names) == {"before", "c"}


async def test_a_store_that_rests_finds_out_by_a_question_that_its_database_is_read_only(
    store: Store, url: str, postgres: PostgresServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(kit_store, "QUIET_SECONDS", 0)
    await store.ask_writer()
    name = database_faults.name_of(url)
    # The session lives on, as after a failover that ends none.
    await store.write(lambda tx: tx.execute(text("SET default_transaction_read_only = on")))
    with pytest.raises(StoreUnavailable):
        await store.ask_writer()
    assert await at_last(lambda: store.write(put("a"))) == 1, f"{name} takes changes from a new session"


async def test_a_lock_that_is_not_given_back_is_noticed_and_refused_until_it_is(
    store: Store, url: str
) -> None:
    with database_faults.locked(url, "seats"):
        waiting = [asyncio.ensure_future(measured(store.write(put(f"w{n}")))) for n in range(60)]
        noticed = await in_trouble(store, 3)
        longest = await refused_at_once(store)
        ends = await asyncio.gather(*waiting)
        assert {type(outcome) for outcome, _ in ends} == {StoreUnavailable}
        slowest = max(seconds for _, seconds in ends)
        assert slowest < 4
        assert await store.read(names) == {"before"}
        # It stays so for as long as the lock is held, and does not open and close.
        end = time.monotonic() + 3
        while time.monotonic() < end:
            assert store.trouble is not None
            await asyncio.sleep(0.02)
    begun = time.monotonic()
    assert await at_last(lambda: store.write(put("after"))) == 1
    print(  # noqa: T201
        f"noticed in {noticed:.1f} s; of 60 the slowest ended in {slowest:.1f} s, 60 later ones in"
        f" {longest * 1000:.0f} ms; back {time.monotonic() - begun:.1f} s after"
    )
    assert await store.read(names) == {"before", "after"}


async def test_a_statement_that_hangs_is_ended(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    def hang(tx: Transaction) -> None:
        put("never")(tx)
        tx.execute(text("SELECT pg_sleep(60)"))

    outcome, seconds = await measured(store.write(hang))
    assert isinstance(outcome, StoreUnavailable)
    assert seconds < 6
    monkeypatch.setattr(kit_store, "REHEARSAL_SECONDS", 0)  # it would hang again, each time
    assert await at_last(lambda: store.write(put("after")), 20) == 1
    assert await store.read(names) == {"before", "after"}


async def test_one_change_that_fails_for_itself_does_not_keep_the_others_out_for_ever(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(kit_store, "REHEARSAL_SECONDS", 1)
    monkeypatch.setattr(engines, "STATEMENT_TIMEOUT_SECONDS", 0.2)
    await store.write(lambda tx: tx.execute(text("SET statement_timeout = '200ms'")))
    with pytest.raises(StoreUnavailable):
        await store.write(lambda tx: tx.execute(text("SELECT pg_sleep(60)")))
    assert await at_last(lambda: store.write(put("after"))) == 1


async def test_a_session_that_is_cut_in_a_statement_has_changed_nothing(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A server that answers nothing any more, not even that the statement took too long."""
    monkeypatch.setattr(kit_store, "LOOK_SECONDS", 0.02)

    def hang(tx: Transaction) -> None:
        put("never")(tx)
        tx.execute(text("SET LOCAL statement_timeout = 0"))
        tx.execute(text("SELECT pg_sleep(60)"))

    outcome, seconds = await measured(store.write(hang))
    assert isinstance(outcome, StoreUnavailable)
    monkeypatch.setattr(kit_store, "REHEARSAL_SECONDS", 0)
    assert await at_last(lambda: store.write(put("after"))) == 1
    assert seconds < 5
    assert await store.read(names) == {"before", "after"}


async def test_a_commit_that_does_not_end_is_in_doubt_and_the_store_goes_on(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(kit_store, "LOOK_SECONDS", 0.02)
    hangs = threading.Event()

    def no_answer(connection: Any) -> None:
        if not hangs.is_set():
            hangs.set()
            connection.exec_driver_sql("SET LOCAL statement_timeout = 0")
            connection.exec_driver_sql("SELECT pg_sleep(60)")

    event.listen(store._engines.writer, "commit", no_answer)
    first = asyncio.ensure_future(measured(store.write(put("doubtful"))))
    assert await asyncio.to_thread(hangs.wait, 10)
    behind = asyncio.ensure_future(measured(store.write(put("behind"))))
    async with asyncio.timeout(10):
        (outcome, seconds), (refused, soon) = await asyncio.gather(first, behind)
    assert isinstance(outcome, CommitInDoubt)
    assert isinstance(refused, StoreUnavailable)
    assert soon < 0.75 * seconds, "who has not begun does not wait for the one who has"
    assert await at_last(lambda: store.write(put("after"))) == 1
    assert "behind" not in await store.read(names)


async def test_what_was_told_not_to_have_happened_is_not_committed_later(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An item that itself stands still: no session can be cut under it."""
    monkeypatch.setattr(kit_store, "LOOK_SECONDS", 0.02)
    goes_on = threading.Event()

    def rest(tx: Transaction) -> None:
        put("never")(tx)
        assert goes_on.wait(10)

    monkeypatch.setattr(engines.Writer, "cut", lambda _: None)
    with pytest.raises(StoreUnavailable):
        await store.write(rest)
    goes_on.set()
    assert await at_last(lambda: store.write(put("after"))) == 1
    assert await store.read(names) == {"before", "after"}


async def test_groups_of_two_pods_go_on_after_a_lock(store: Store, url: str) -> None:
    other = Store.open(url)
    with database_faults.locked(url, "seats"):
        await asyncio.gather(
            *(measured(one.write(sell("before", 9))) for one in (store, other, store, other))
        )
        assert store.trouble is not None and other.trouble is not None
    await at_last(lambda: store.write(sell("before", 9)))
    await at_last(lambda: other.write(sell("before", 9)))
    await other.close()


async def test_an_operator_has_all_the_time_that_a_statement_needs(
    url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(engines, "STATEMENT_TIMEOUT_SECONDS", 0.1)
    monkeypatch.setattr(engines, "READ_TIMEOUT_SECONDS", 0.1)
    slow = text("SELECT 1 FROM pg_sleep(0.3)")
    hurried, patient = Store.open(url), Store.open(url, patient=True)
    with pytest.raises(StoreUnavailable):
        await hurried.read(lambda tx: tx.execute(slow).scalar_one())
    with pytest.raises(StoreUnavailable):
        await hurried.write(lambda tx: tx.execute(slow).scalar_one())
    assert await patient.write(lambda tx: tx.execute(slow).scalar_one()) == 1
    assert await patient.read(lambda tx: tx.execute(slow).scalar_one()) == 1
    await hurried.close()
    await patient.close()


async def test_a_full_sqlite_changes_nothing_says_so_at_once_and_comes_back(
    tmp_path: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    url = f"sqlite:///{tmp_path}/full.db"
    store = Store.open(url)
    await store.write(lambda tx: metadata.create_all(tx._connection))
    await store.write(put("before"))
    full = True

    def limit(connection: Any) -> None:
        # What SQLite says of a full disk, without one.
        used = connection.exec_driver_sql("PRAGMA page_count").scalar_one()
        connection.exec_driver_sql(f"PRAGMA max_page_count = {used if full else 1_000_000}")

    event.listen(store._engines.writer, "begin", limit)
    large = "x" * 100_000
    outcome, seconds = await measured(store.write(put(large)))
    assert isinstance(outcome, StoreUnavailable)
    assert seconds < 1
    await refused_at_once(store)
    assert await store.read(names) == {"before"}
    await asyncio.sleep(3 * kit_store.TRY_SECONDS)  # what failed is tried again meanwhile
    assert store.trouble is not None
    full = False
    assert await at_last(lambda: store.write(put("after"))) == 1
    assert await store.read(names) == {"before", "after"}
    await store.close()


async def test_a_commit_for_which_sqlite_had_no_room_has_changed_nothing(tmp_path: Any) -> None:
    store = Store.open(f"sqlite:///{tmp_path}/full.db")
    await store.write(lambda tx: metadata.create_all(tx._connection))
    full = sqlite3.OperationalError("database or disk is full")
    full.sqlite_errorcode = sqlite3.SQLITE_FULL

    def no_room(_: object) -> None:
        event.remove(store._engines.writer, "commit", no_room)
        raise OperationalError("COMMIT", None, full)

    event.listen(store._engines.writer, "commit", no_room)
    with pytest.raises(StoreUnavailable):
        await store.write(put("never"))
    assert await at_last(lambda: store.write(put("after"))) == 1
    assert await store.read(names) == {"after"}
    await store.close()


async def test_a_commit_whose_wait_for_a_standby_is_ended_is_in_doubt(tmp_path: Path) -> None:
    """The server answers it as if all were well, with a warning that nobody reads."""
    server = Cluster(tmp_path)
    server.initialise("synchronous_standby_names = 'nobody'")
    server.start()
    try:
        server.execute("SET synchronous_commit = local; CREATE TABLE seats (name text, sold int, at bigint)")
        store = Store.open(server.url("postgres"))
        waiting = asyncio.ensure_future(store.write(insert("doubtful")))
        ends = "SELECT pg_cancel_backend(pid) FROM pg_stat_activity WHERE wait_event = 'SyncRep'"
        end = time.monotonic() + 10
        while not await asyncio.to_thread(server.execute, ends):
            assert time.monotonic() < end, "void: no commit waits for a standby"
            await asyncio.sleep(0.05)
        with pytest.raises(CommitInDoubt):
            await waiting
        with pytest.raises(StoreUnavailable):
            await store.write(insert("refused"))
        await store.close()
    finally:
        server.kill()


def insert(name: str) -> Callable[[Transaction], None]:
    def change(tx: Transaction) -> None:
        tx.execute(seats.insert(), {"name": name, "sold": 0})

    return change


async def test_a_store_that_is_down_closes(url: str, postgres: PostgresServer) -> None:
    store = Store.open(url)
    with database_faults.read_only(postgres.execute, database_faults.name_of(url)):
        with pytest.raises(StoreUnavailable):
            await store.write(lambda tx: engines.look(tx._connection))
        await asyncio.wait_for(store.close(), 5)
