"""The store's promises, on both engines with the same bodies."""

from __future__ import annotations

import asyncio
import contextvars
import threading
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, TypeVar

import psycopg
import pytest
from sqlalchemy import (
    CheckConstraint,
    Column,
    Integer,
    MetaData,
    Table,
    Text,
    create_engine,
    event,
    select,
    text,
    update,
)
from sqlalchemy.exc import IntegrityError

from dinemesh.kit import engines, rounds
from dinemesh.kit.refusal import Refusal
from dinemesh.kit.store import CommitInDoubt, Instant, Store, StoreInUse, StoreUnavailable, Transaction
from tests.kit.words import until
from tests.support.postgres import PostgresServer

T = TypeVar("T")

metadata = MetaData()
seats = Table(
    "seats",
    metadata,
    Column("name", Text, primary_key=True),
    Column("sold", Integer, CheckConstraint("sold >= 0"), nullable=False),
    Column("at", Instant),
)


def put(name: str, sold: int = 0, at: datetime | None = None) -> Callable[[Transaction], int]:
    return lambda tx: tx.changed(
        tx.insert(seats).values(name=name, sold=sold, at=at).on_conflict_do_nothing()
    )


def sell(name: str, capacity: int) -> Callable[[Transaction], None]:
    def change(tx: Transaction) -> None:
        guarded = (
            update(seats).where(seats.c.name == name, seats.c.sold < capacity).values(sold=seats.c.sold + 1)
        )
        if tx.changed(guarded) == 0:
            raise Refusal("SLOT_UNAVAILABLE", "sold out")

    return change


def names(tx: Transaction) -> set[str]:
    return set(tx.execute(select(seats.c.name)).scalars())


def sold(tx: Transaction) -> dict[str, int]:
    return {row.name: row.sold for row in tx.execute(select(seats.c.name, seats.c.sold))}


class Gate:
    """Holds the writer, so that what is written meanwhile stands in one group."""

    def __init__(self, store: Store) -> None:
        self._entered, self._open = threading.Event(), threading.Event()
        self._held = asyncio.ensure_future(store.write(self._hold))

    def _hold(self, _: Transaction) -> None:
        self._entered.set()
        assert self._open.wait(10)

    async def closed(self) -> None:
        assert await asyncio.to_thread(self._entered.wait, 10)

    async def open(self) -> None:
        self._open.set()
        await self._held


@pytest.fixture
def url(fresh_database: Callable[[str], str]) -> str:
    url = fresh_database("")
    engine = create_engine(url)
    metadata.create_all(engine)
    engine.dispose()
    return url


@pytest.fixture
async def store(url: str) -> AsyncIterator[Store]:
    store = Store.open(url)
    yield store
    await store.close()


async def grouped(store: Store, *changes: Callable[[Transaction], object]) -> list[object]:
    """The outcomes of `changes`, which waited together."""
    gate = Gate(store)
    await gate.closed()
    waiting = [asyncio.ensure_future(store.write(change)) for change in changes]
    await asyncio.sleep(0)  # each has put itself into the queue
    await gate.open()
    return await asyncio.gather(*waiting, return_exceptions=True)


async def at_last(attempt: Callable[[], Awaitable[T]], seconds: float = 10) -> T:
    """What `attempt` gives once the store works again."""
    end = time.monotonic() + seconds
    while True:
        try:
            return await attempt()
        except StoreUnavailable:
            assert time.monotonic() < end, f"the store did not come back within {seconds} s"
            await asyncio.sleep(0.02)


async def test_what_is_written_can_be_read(store: Store) -> None:
    assert await store.write(put("a")) == 1
    assert await store.write(put("a")) == 0
    assert await store.read(names) == {"a"}


async def test_an_instant_comes_back_to_the_microsecond(store: Store) -> None:
    at = datetime(2031, 3, 30, 1, 2, 3, 456789, tzinfo=UTC)
    await store.write(put("a", at=at))
    assert await store.read(lambda tx: tx.execute(select(seats.c.at)).scalar_one()) == at


async def test_the_clock_is_the_database_and_stands_still_in_a_transaction(store: Store) -> None:
    first, second = await store.write(lambda tx: (tx.now, tx.now))
    assert first == second
    assert abs(first - datetime.now(UTC)) < timedelta(seconds=5)


async def test_a_clock_can_be_given(url: str) -> None:
    noon = datetime(2030, 1, 1, 12, tzinfo=UTC)
    store = Store.open(url, clock=lambda _: noon)
    assert await store.write(lambda tx: tx.now) == noon
    await store.close()


async def test_eighty_callers_for_the_last_ten_buy_exactly_ten(store: Store) -> None:
    await store.write(put("last"))
    outcomes = await asyncio.gather(
        *(store.write(sell("last", 10)) for _ in range(80)), return_exceptions=True
    )
    assert outcomes.count(None) == 10
    assert sum(isinstance(outcome, Refusal) for outcome in outcomes) == 70


async def test_what_waits_is_committed_together(store: Store) -> None:
    commits = 0

    def count(_: object) -> None:
        nonlocal commits
        commits += 1

    event.listen(store._engines.writer, "commit", count)
    await grouped(store, *(put(f"n{i}") for i in range(20)))
    assert commits == 2  # the gate's own, and one for all twenty
    assert len(await store.read(names)) == 20


async def test_without_groups_each_change_has_its_own_commit(url: str) -> None:
    store = Store.open(url, group=False)
    commits = 0

    def count(_: object) -> None:
        nonlocal commits
        commits += 1

    event.listen(store._engines.writer, "commit", count)
    await grouped(store, *(put(f"n{i}") for i in range(20)))
    await store.close()
    assert commits == 21


async def test_a_refusal_in_a_group_does_not_touch_its_neighbours(store: Store) -> None:
    def refuse(_: Transaction) -> None:
        raise Refusal("NO", "no")

    first, refused, last = await grouped(store, put("a"), refuse, put("b"))
    assert (first, last) == (1, 1)
    assert isinstance(refused, Refusal)
    assert await store.read(names) == {"a", "b"}


async def test_a_refusal_after_a_write_leaves_nothing_of_it_and_all_of_its_neighbours(store: Store) -> None:
    def half_done(tx: Transaction) -> None:
        put("half")(tx)
        raise Refusal("NO", "no")

    outcomes = await grouped(store, put("a"), half_done, put("b"))
    assert [type(outcome) for outcome in outcomes] == [int, Refusal, int]
    assert await store.read(names) == {"a", "b"}


def append(name: str, sold: int = 0) -> Callable[[Transaction], None]:
    return lambda tx: tx.append(_INSERT, {"name": name, "sold": sold})


_INSERT = seats.insert()


async def test_what_is_appended_goes_in_together_at_the_end_and_can_be_seen_before(store: Store) -> None:
    def seen(tx: Transaction) -> set[str]:
        append("c")(tx)
        before = names(tx)
        tx.flush()
        return names(tx) - before

    statements: list[str] = []

    @event.listens_for(store._engines.writer, "before_cursor_execute")
    def _(*told: object) -> None:
        statements.extend(word for word in [str(told[2])] if "INSERT" in word)

    assert await grouped(store, append("a"), append("b"), seen) == [None, None, {"c"}]
    assert await store.read(names) == {"a", "b", "c"}
    assert len(statements) == 2, statements


async def test_what_was_appended_goes_with_its_refusal_and_a_bad_row_is_its_own_items_failure(
    store: Store,
) -> None:
    def refused(tx: Transaction) -> None:
        append("never")(tx)
        raise Refusal("NO", "after all")

    outcomes = await grouped(store, append("a"), refused, append("bad", -1), append("b"))
    assert [type(one) for one in outcomes] == [type(None), Refusal, IntegrityError, type(None)]
    assert await store.read(names) == {"a", "b"}


async def test_a_failure_in_a_group_is_the_failers_alone(store: Store) -> None:
    def below_zero(tx: Transaction) -> None:
        tx.execute(seats.insert(), {"name": "bad", "sold": -1})

    def broken(_: Transaction) -> None:
        raise KeyError("a mistake")

    outcomes = await grouped(store, put("a"), below_zero, broken, put("b"))
    assert [type(outcome).__name__ for outcome in outcomes] == ["int", "IntegrityError", "KeyError", "int"]
    assert await store.read(names) == {"a", "b"}


async def test_outcomes_are_released_after_the_commit_and_in_doubt_when_it_fails(store: Store) -> None:
    runs = 0

    def counted(tx: Transaction) -> int:
        nonlocal runs
        runs += 1
        return put("a")(tx)

    def no_commit(_: object) -> None:
        raise OSError("the disk is gone")

    event.listen(store._engines.writer, "commit", no_commit)
    try:
        with pytest.raises(CommitInDoubt):
            await store.write(counted)
    finally:
        event.remove(store._engines.writer, "commit", no_commit)
    assert runs == 1  # nothing is run again
    assert await store.write(put("b")) == 1  # and the store goes on
    assert await store.read(names) == {"b"}


async def test_after_commit_calls_come_only_after_a_commit(store: Store) -> None:
    told: list[str] = []

    def change(tx: Transaction) -> None:
        put("a")(tx)
        tx.after_commit(lambda: told.append("a"))

    def refused(tx: Transaction) -> None:
        tx.after_commit(lambda: told.append("never"))
        put("b")(tx)
        raise Refusal("NO", "no")

    await grouped(store, change, refused)
    assert told == ["a"]


async def test_a_cancelled_caller_does_not_stop_its_change(store: Store) -> None:
    gate = Gate(store)
    await gate.closed()
    waiting = asyncio.ensure_future(store.write(put("a")))
    await asyncio.sleep(0)
    waiting.cancel()
    await gate.open()
    await store.write(put("b"))  # stands behind it
    assert await store.read(names) == {"a", "b"}


async def test_a_change_runs_in_its_callers_context(store: Store) -> None:
    who: contextvars.ContextVar[str] = contextvars.ContextVar("who", default="nobody")
    who.set("alice")
    assert await store.write(lambda _: who.get()) == "alice"
    assert await store.read(lambda _: who.get()) == "alice"


async def test_a_long_queue_sheds_what_may_be_shed(url: str) -> None:
    store = Store.open(url, queue_limit=2, patient=True)
    gate = Gate(store)
    await gate.closed()
    waiting = [asyncio.ensure_future(store.write(put(name))) for name in ("a", "b", "c")]
    await asyncio.sleep(0)
    with pytest.raises(Refusal) as refused:
        await store.write(put("d"), shed=True)
    assert refused.value.reason == "TRY_AGAIN_LATER"
    assert refused.value.retry_after is not None
    await gate.open()
    assert await asyncio.gather(*waiting) == [1, 1, 1]
    await store.close()


async def test_a_query_cannot_write(store: Store) -> None:
    with pytest.raises(TypeError):
        await store.read(put("a"))


async def test_close_finishes_what_waits(url: str) -> None:
    store = Store.open(url)
    waiting = [asyncio.ensure_future(store.write(put(f"n{i}"))) for i in range(10)]
    await asyncio.sleep(0)
    await store.close()
    assert await asyncio.gather(*waiting) == [1] * 10
    with pytest.raises(StoreUnavailable):
        await store.write(put("late"))


async def test_a_database_that_is_away_is_named_so_and_comes_back(postgres: object) -> None:
    server = postgres
    name = server.create()  # type: ignore[attr-defined]
    url = server.url(name)  # type: ignore[attr-defined]
    store = Store.open(url)
    await store.write(lambda tx: metadata.create_all(tx._connection))
    server.execute(f"ALTER DATABASE {name} ALLOW_CONNECTIONS false")  # type: ignore[attr-defined]
    server.execute(f"SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = '{name}'")  # type: ignore[attr-defined]
    with pytest.raises(StoreUnavailable):
        await store.write(put("a"))
    with pytest.raises(StoreUnavailable):
        await store.read(names)
    server.execute(f"ALTER DATABASE {name} ALLOW_CONNECTIONS true")  # type: ignore[attr-defined]
    assert await at_last(lambda: store.write(put("b"))) == 1
    assert await at_last(lambda: store.read(names)) == {"b"}
    await store.close()


async def test_a_deadlock_victim_runs_again(postgres: object) -> None:
    url = postgres.fresh("")  # type: ignore[attr-defined]
    engine = create_engine(url)
    metadata.create_all(engine)
    one, other = Store.open(url), Store.open(url)
    await one.write(lambda tx: (put("a")(tx), put("b")(tx)))
    both = threading.Barrier(2)

    def cross(first: str, second: str) -> Callable[[Transaction], None]:
        met = False

        def change(tx: Transaction) -> None:
            nonlocal met
            sell(first, 100)(tx)
            if not met:
                met = True
                both.wait(10)
            sell(second, 100)(tx)

        return change

    await asyncio.gather(one.write(cross("a", "b")), other.write(cross("b", "a")))
    assert await one.read(lambda tx: list(tx.execute(select(seats.c.sold)).scalars())) == [2, 2]
    await one.close()
    await other.close()
    engine.dispose()


@pytest.fixture
async def pods(postgres: PostgresServer) -> AsyncIterator[tuple[Store, Store]]:
    """Two, with the seats "a" and "b"."""
    url = postgres.fresh("")
    one, other = Store.open(url), Store.open(url)
    await one.write(lambda tx: metadata.create_all(tx._connection))
    await one.write(lambda tx: (put("a")(tx), put("b")(tx)))
    yield one, other
    await one.close()
    await other.close()


async def test_what_another_pod_has_in_hand_waits_for_a_later_group_and_holds_up_nobody(
    pods: tuple[Store, Store],
) -> None:
    one, other = pods
    holds, goes_on = threading.Event(), threading.Event()

    def hold(tx: Transaction) -> None:
        sell("a", 100)(tx)
        holds.set()
        assert goes_on.wait(10)

    holding = asyncio.ensure_future(one.write(hold, on=("a",)))
    await asyncio.to_thread(holds.wait, 10)
    try:
        late = asyncio.ensure_future(other.write(sell("a", 100), on=("a",)))
        await asyncio.wait_for(other.write(sell("b", 100), on=("b",)), 1)
        assert not late.done()
    finally:
        goes_on.set()
    await asyncio.gather(holding, late)
    assert await one.read(sold) == {"a": 2, "b": 1}


async def test_what_another_pod_does_not_let_go_of_is_refused_after_a_while(
    pods: tuple[Store, Store], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("dinemesh.kit.store.PUT_OFF_SECONDS", 0.2)
    one, other = pods
    holds, goes_on = threading.Event(), threading.Event()

    def hold(_: Transaction) -> None:
        holds.set()
        assert goes_on.wait(10)

    holding = asyncio.ensure_future(one.write(hold, on=("a",)))
    await asyncio.to_thread(holds.wait, 10)
    try:
        with pytest.raises(Refusal, match="busy"):
            await asyncio.wait_for(other.write(sell("a", 100), on=("a",)), 5)
        assert other.trouble is None
    finally:
        goes_on.set()
    await holding


async def test_who_waits_for_another_pod_is_not_forgotten_when_the_session_ends_meanwhile(
    pods: tuple[Store, Store], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(engines, "IDLE_IN_TRANSACTION_SECONDS", 0)
    one, other = pods
    holds, goes_on = threading.Event(), threading.Event()
    ended: list[str] = []

    def end(connection: Any) -> None:
        monkeypatch.undo()
        ended.append("us")
        connection.exec_driver_sql("SELECT pg_terminate_backend(pg_backend_pid())")

    def hold(_: Transaction) -> None:
        holds.set()
        assert goes_on.wait(10)

    monkeypatch.setattr(engines, "end_hung", end)
    holding = asyncio.ensure_future(one.write(hold, on=("a",)))
    await asyncio.to_thread(holds.wait, 10)
    late = asyncio.ensure_future(other.write(sell("a", 100), on=("a",)))
    await until(lambda: ended)
    goes_on.set()
    await asyncio.wait_for(asyncio.gather(holding, late), 5)
    assert await one.read(sold) == {"a": 1, "b": 0}


async def test_nobody_waits_for_ever_for_a_change_that_came_to_no_end(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(store, "_run", lambda *_: None)
    with pytest.raises(CommitInDoubt):
        await asyncio.wait_for(store.write(put("a")), 5)


async def test_a_group_on_postgresql_takes_as_many_round_trips_as_its_longest_change(
    pods: tuple[Store, Store], monkeypatch: pytest.MonkeyPatch
) -> None:
    statements: list[int] = []
    give = rounds._round

    def counted(session: Any, of_round: Sequence[rounds.Statement]) -> Exception | None:
        statements.append(len(of_round))
        return give(session, of_round)

    monkeypatch.setattr(rounds, "_round", counted)
    store, _ = pods

    def three(tx: Transaction) -> None:
        for _ in range(3):
            sell("a", 100)(tx)

    outcomes = await grouped(store, three, three, sell("b", 100), sell("b", 0), three)
    assert [type(one) for one in outcomes] == [type(None)] * 3 + [Refusal, type(None)]
    assert statements == [5, 3, 3]
    assert await store.read(sold) == {"a": 9, "b": 1}


async def test_what_a_pod_that_hangs_has_locked_is_free_again(postgres: object) -> None:
    url = postgres.fresh("")  # type: ignore[attr-defined]
    hung, other = Store.open(url), Store.open(url)
    await hung.write(lambda tx: metadata.create_all(tx._connection))
    await hung.write(put("a"))
    holds, goes_on = threading.Event(), threading.Event()

    runs = 0

    def hang(tx: Transaction) -> None:
        nonlocal runs
        runs += 1
        sell("a", 100)(tx)
        holds.set()
        goes_on.wait(10)
        sell("a", 100)(tx)

    def read_slowly(tx: Transaction) -> set[str]:
        names(tx)
        goes_on.wait(10)
        return names(tx)

    hanging = asyncio.ensure_future(hung.write(hang))
    reading = asyncio.ensure_future(hung.read(read_slowly))  # locks nothing, and may take its time
    await asyncio.to_thread(holds.wait, 10)
    try:
        await asyncio.wait_for(other.write(sell("a", 100)), 2)
    finally:
        goes_on.set()
    await hanging  # its session was ended, so nothing of it was done, and it ran again
    assert runs == 2
    assert await reading == {"a"}
    assert await hung.read(sold) == {"a": 3}
    await hung.close()
    await other.close()


@pytest.mark.parametrize("company", [0, 3])
async def test_a_change_whose_session_ends_runs_again_once(
    pods: tuple[Store, Store], postgres: PostgresServer, company: int
) -> None:
    store, other = pods
    ended = 0

    def end(tx: Transaction) -> None:
        nonlocal ended
        sell("a", 100)(tx)
        if ended < ends:
            ended += 1
            pid = tx.execute(text("SELECT pg_backend_pid()")).scalar_one()
            postgres.execute(f"SELECT pg_terminate_backend({pid})")
        sell("a", 100)(tx)

    ends = 1
    outcomes = await grouped(store, end, *[sell("b", 100)] * company)
    assert outcomes == [None] * (1 + company) and ended == 1
    assert await other.read(sold) == {"a": 2, "b": company}
    ended, ends = 0, 2
    with pytest.raises(StoreUnavailable):
        await store.write(end)
    assert store.trouble is None and ended == 2
    assert await other.read(sold) == {"a": 2, "b": company}


async def test_a_commit_that_comes_after_its_session_was_ended_for_its_rest_has_changed_nothing(
    pods: tuple[Store, Store],
) -> None:
    store, other = pods
    rests = threading.Event()

    def lives(pid: int) -> bool:
        with other._engines.reader.connect() as connection:
            lives = text("SELECT count(*) FROM pg_stat_activity WHERE pid = :pid")
            return bool(connection.execute(lives, {"pid": pid}).scalar_one())

    def rest(connection: Any) -> None:
        if rests.is_set():
            return
        rests.set()
        pid = connection.exec_driver_sql("SELECT pg_backend_pid()").scalar_one()
        end = time.monotonic() + 10
        while lives(pid):
            assert time.monotonic() < end, "void: the session lives"

    event.listen(store._engines.writer, "commit", rest)
    with pytest.raises(StoreUnavailable):
        await store.write(sell("a", 100))
    assert store.trouble is None
    await store.write(sell("b", 100))
    assert await other.read(sold) == {"a": 0, "b": 1}


async def test_what_a_pod_has_in_hand_that_was_stopped_while_it_sent_is_free_again(postgres: object) -> None:
    url = postgres.fresh("")  # type: ignore[attr-defined]
    store = Store.open(url)
    await store.write(lambda tx: metadata.create_all(tx._connection))
    await store.write(put("a"))
    (number,) = engines.numbers_of(["a"])
    held = text("SELECT count(*) FROM pg_locks WHERE locktype = 'advisory' AND granted")
    with (
        pytest.raises(psycopg.OperationalError),
        psycopg.connect(url.replace("+psycopg", "")) as hung,
        hung.pipeline(),
    ):
        # The end of the round trip is not sent.
        hung.execute("SELECT pg_advisory_xact_lock(%s)", [number])
        await until(lambda: store.read(lambda tx: tx.execute(held).scalar_one()))
        await asyncio.wait_for(store.write(sell("a", 100), on=("a",)), 2)
        hung.execute("SELECT 1").fetchone()
    await store.close()


async def test_a_second_process_is_told_that_the_file_is_in_use(tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path}/a.db"
    store = Store.open(url)
    with pytest.raises(StoreInUse, match="in use by another process"):
        Store.open(url)
    await store.close()
    await Store.open(url).close()


async def test_durability_is_asked_for(store: Store, engine_name: str) -> None:
    asked = {"sqlite": ("PRAGMA synchronous", 2), "postgresql": ("SHOW synchronous_commit", "on")}
    query, durable = asked[engine_name]
    assert await store.write(lambda tx: tx.execute(text(query)).scalar_one()) == durable
