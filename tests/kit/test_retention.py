"""What is old and not needed goes, in small steps beside everything else; what is needed stays."""

from __future__ import annotations

import asyncio
import signal
import subprocess
import sys
from collections.abc import AsyncIterator, Callable
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from functools import partial

import pytest
from google.protobuf.wrappers_pb2 import StringValue
from prometheus_client import REGISTRY
from sqlalchemy import BigInteger, Table, create_engine, select, text, type_coerce, update

from dinemesh.kit import retention
from dinemesh.kit.inbox import Inbox, Subscription
from dinemesh.kit.outbox import Outbox, mark_unsent
from dinemesh.kit.retention import Expiring, Retention, expiring_inbox, expiring_outbox, gone_before
from dinemesh.kit.store import Store, Transaction
from dinemesh.kit.workers import cancel
from tests.kit.words import (
    QUEUE,
    count,
    heard,
    outbox_rows,
    prepared,
    retention_rows,
    say,
    tables,
    texts,
    until,
    words,
)
from tests.support.logs import logged
from tests.support.plans import enters, plans
from tests.support.postgres import PostgresServer
from tests.support.process import ROOT

DAYS = 30
OUTBOX = expiring_outbox(outbox_rows)


def pruning(store: Store, *expiring: Expiring, step_rows: int = 500) -> Retention:
    return Retention(store, retention_rows, expiring or [OUTBOX], days=DAYS, step_rows=step_rows)


async def make_older(store: Store, table: Table, column: str, days: float, *events: str) -> None:
    """Moves the time of these events, or of all."""
    moved = type_coerce(table.c[column], BigInteger) - int(days * 86_400_000_000)
    change = update(table).values({column: moved})
    if events:
        change = change.where(table.c.event_id.in_(events))
    await store.write(lambda tx: tx.execute(change))


async def mark_sent(store: Store, *events: str) -> None:
    sent = update(outbox_rows).values(sent_time=outbox_rows.c.create_time)
    if events:
        sent = sent.where(outbox_rows.c.event_id.in_(events))
    await store.write(lambda tx: tx.execute(sent))


async def ids(store: Store, table: Table) -> set[str]:
    return await store.read(lambda tx: set(tx.execute(select(table.c.event_id)).scalars()))


@pytest.mark.parametrize(
    ("age_days", "sent", "stays"),
    [
        (DAYS + 0.01, True, False),
        (400, True, False),
        (DAYS - 0.01, True, True),
        (0, True, True),
        (-3, True, True),  # of a clock that was ahead
        (DAYS + 0.01, False, True),
        (400, False, True),
        (0, False, True),
    ],
)
async def test_of_the_outbox_goes_what_was_sent_and_is_old(
    store: Store, outbox: Outbox, age_days: float, sent: bool, stays: bool
) -> None:
    (asked, *others) = await say(store, outbox, "asked", "young", "old")
    await make_older(store, outbox_rows, "create_time", age_days, asked)
    await make_older(store, outbox_rows, "create_time", 500, others[1])
    await mark_sent(store, *others, *([asked] if sent else []))
    await pruning(store).turn()
    assert await ids(store, outbox_rows) == {others[0], *([asked] if stays else [])}


async def take(store: Store, outbox: Outbox, subscription: Subscription, *said: str) -> list[bytes]:
    await say(store, outbox, *said)
    query = select(outbox_rows.c.envelope).order_by(outbox_rows.c.position)
    bodies = await store.read(lambda tx: list(tx.execute(query).scalars()))
    await retake(store, subscription, bodies)
    return bodies


async def retake(store: Store, subscription: Subscription, bodies: list[bytes]) -> list[bool]:
    inbox = Inbox(store, tables, subscription)
    return [await inbox.take(inbox.decode(body)) for body in bodies]


def on_said_once(tx: Transaction, event: object) -> None:
    """An effect that has the version of the event as its key."""
    row = {"position": f"{event.aggregate_version:05}", "text": event.message.value}  # type: ignore[attr-defined]
    tx.execute(tx.insert(heard).values(row).on_conflict_do_nothing())


@pytest.mark.parametrize(
    ("subscription", "goes"),
    [
        (words(newest_only=True), True),
        (replace(words(), handlers={StringValue: on_said_once}, effect_is_keyed=True), True),
        (
            replace(
                words(newest_only=True),
                handlers={StringValue: on_said_once},
                each_once=frozenset({StringValue}),
                effect_is_keyed=True,
            ),
            True,
        ),
        (words(), False),
        (replace(words(newest_only=True), each_once=frozenset({StringValue})), False),
    ],
    ids=["by versions", "by keys", "each once, by keys", "by nothing else", "each once, by nothing else"],
)
async def test_a_duplicate_that_comes_after_its_row_is_gone_changes_nothing(
    store: Store, outbox: Outbox, subscription: Subscription, goes: bool
) -> None:
    """And where only the row would know it, the row stays."""
    bodies = await take(store, outbox, subscription, "one", "two", "three")
    await make_older(store, tables.inbox, "receive_time", DAYS + 1)
    await pruning(store, *expiring_inbox(tables, subscription)).turn()
    assert await store.read(count(tables.inbox)) == (0 if goes else 3)
    before = await store.read(texts)
    assert await retake(store, subscription, [*bodies[::-1], *bodies]) == [goes] * 3 + [False] * 3
    assert await store.read(texts) == before
    assert before[-1] == "three"


async def test_only_the_rows_of_those_who_can_do_without_go_and_only_the_old_ones(
    store: Store, outbox: Outbox
) -> None:
    mine = replace(words(newest_only=True), handlers={StringValue: on_said_once})
    other = replace(mine, queue="test.others")
    await take(store, outbox, mine, "one", "two")
    await make_older(store, tables.inbox, "receive_time", DAYS + 1)
    await take(store, outbox, other, "three")
    await take(store, outbox, mine)
    await pruning(store, *expiring_inbox(tables, mine)).turn()
    left = select(tables.inbox.c.subscriber)
    rows = await store.read(lambda tx: sorted(tx.execute(left).scalars()))
    assert rows == [other.queue] * 3 + [QUEUE]


async def test_a_walk_goes_on_past_what_has_to_stay(store: Store, outbox: Outbox) -> None:
    """Pages full of what was never sent, then one that goes."""
    said = await say(store, outbox, *map(str, range(12)))
    await make_older(store, outbox_rows, "create_time", DAYS + 1)
    await mark_sent(store, said[1], said[-1])
    await pruning(store, step_rows=3).turn()
    assert await ids(store, outbox_rows) == set(said) - {said[1], said[-1]}


async def test_what_is_in_no_order_is_walked_to_its_end(store: Store, outbox: Outbox) -> None:
    said = await say(store, outbox, *map(str, range(9)))
    await make_older(store, outbox_rows, "create_time", DAYS + 1, said[-1])
    await mark_sent(store)
    await pruning(store, step_rows=2).turn()
    assert len(await ids(store, outbox_rows)) == 9, "the order says that nothing older follows"
    await pruning(store, replace(OUTBOX, what="no order", in_order=False), step_rows=2).turn()
    assert await ids(store, outbox_rows) == set(said[:-1])


async def test_a_clock_that_is_ahead_makes_nothing_old(
    store: Store, outbox: Outbox, monkeypatch: pytest.MonkeyPatch
) -> None:
    await say(store, outbox, "one")
    await mark_sent(store)
    monkeypatch.setattr(store, "_clock", lambda _: datetime.now(UTC) + timedelta(days=400))
    await pruning(store).turn()
    assert await store.read(count(outbox_rows)) == 1


async def test_steps_are_small_and_others_write_between_them(
    store: Store, outbox: Outbox, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(retention, "LEAST_REST_SECONDS", 0.02)
    await say(store, outbox, *map(str, range(200)))
    await make_older(store, outbox_rows, "create_time", DAYS + 1)
    await mark_sent(store)
    deleted: list[int] = []
    delete = Retention._delete

    def spy(self: Retention, tx: Transaction, **what: object) -> int | None:
        done = delete(self, tx, **what)  # type: ignore[arg-type]
        deleted.append(done or 0)
        return done

    monkeypatch.setattr(Retention, "_delete", spy)
    going = asyncio.create_task(pruning(store, step_rows=20).turn())
    between: set[str] = set()
    while not going.done():
        (event_id,) = await say(store, outbox, "beside", first=1000 + len(between))
        between.add(event_id)
        await asyncio.sleep(0)
    await going
    assert deleted == [20] * 10
    assert len(between) >= 10, "void: nobody wrote beside it"
    assert await ids(store, outbox_rows) == between


async def test_a_pass_is_made_once_in_its_time_however_many_pods_there_are(
    store: Store, outbox: Outbox, monkeypatch: pytest.MonkeyPatch
) -> None:
    await pruning(store).turn()
    await say(store, outbox, "old")
    await make_older(store, outbox_rows, "create_time", DAYS + 1)
    await mark_sent(store)
    for _ in range(2):
        await pruning(store).turn()
    assert await store.read(count(outbox_rows)) == 1, "it was made before there was anything"
    monkeypatch.setattr(retention, "PASS_SECONDS", 0)
    await pruning(store).turn()
    assert await store.read(count(outbox_rows)) == 0


@pytest.mark.parametrize("is_cut_off", [True, False])
async def test_a_long_walk_that_was_cut_off_is_begun_again_soon_and_one_that_was_not_is_not(
    store: Store, outbox: Outbox, monkeypatch: pytest.MonkeyPatch, is_cut_off: bool
) -> None:
    walk = replace(OUTBOX, in_order=False)
    said = await say(store, outbox, *map(str, range(60)))
    await make_older(store, outbox_rows, "create_time", DAYS + 1)
    await mark_sent(store, *said[:-1])
    monkeypatch.setattr(retention, "LEAST_REST_SECONDS", 0.1 if is_cut_off else 0)
    going = asyncio.create_task(pruning(store, walk, step_rows=2).turn())
    if is_cut_off:

        async def has_begun() -> bool:
            return await store.read(count(outbox_rows)) < 60

        await until(has_begun)
        await cancel(going)
        assert await store.read(count(outbox_rows)) > 1, "void: it was done before it was cut off"
    else:
        await going
    monkeypatch.setattr(retention, "LEAST_REST_SECONDS", 0)
    left = await store.read(count(outbox_rows))
    await mark_sent(store)
    await pruning(store, walk).turn()
    assert await store.read(count(outbox_rows)) == left, "so soon it is not begun again"
    hour_ago = update(retention_rows)
    moved = type_coerce(retention_rows.c.pass_time, BigInteger) - 3_600_000_000
    await store.write(lambda tx: tx.execute(hour_ago.values(pass_time=moved)))
    await pruning(store, walk).turn()
    assert await store.read(count(outbox_rows)) == (0 if is_cut_off else left)


@pytest.fixture
async def pods(postgres: PostgresServer) -> AsyncIterator[tuple[Store, Store]]:
    url = prepared(postgres.fresh(""))
    stores = Store.open(url), Store.open(url)
    yield stores
    for store in stores:
        await store.close()


async def test_pods_that_prune_at_once_do_not_wait_for_each_other(
    pods: tuple[Store, Store], outbox: Outbox, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(retention, "PASS_SECONDS", 0)
    one, other = pods
    said = await say(one, outbox, *map(str, range(300)))
    await make_older(one, outbox_rows, "create_time", DAYS + 1)
    await mark_sent(one)
    held = create_engine(one._engines.writer.url)
    with held.connect() as hung:
        # A pod that hangs within a step: it has the row of the pass, and some of those that should go.
        with_rows = "SELECT 1 FROM outbox WHERE event_id = ANY(:mine) FOR UPDATE"
        hung.execute(text(with_rows), {"mine": said[:5]})
        await asyncio.gather(pruning(one, step_rows=7).turn(), pruning(other, step_rows=7).turn())
        assert one.trouble is None and other.trouble is None
        assert await ids(one, outbox_rows) == set(said[:5])
        hung.execute(text("SELECT 1 FROM retention FOR UPDATE"))
        async with asyncio.timeout(1.5):  # less than a lock is waited for
            await pruning(other).turn()
        hung.rollback()
    held.dispose()
    await pruning(other).turn()
    assert await ids(one, outbox_rows) == set()


_PRUNES_SLOWLY = """
import asyncio, sys
from dinemesh.kit import retention
from dinemesh.kit.store import Store
from tests.kit import words

async def prune():
    store = Store.open(sys.argv[1], exclusive=False)
    expiring = [retention.expiring_outbox(words.outbox_rows)]
    await retention.Retention(store, words.retention_rows, expiring, days=30, step_rows=5).turn()

retention.LEAST_REST_SECONDS = 0.1
asyncio.run(prune())
"""


async def test_a_process_that_is_killed_while_it_prunes_leaves_all_that_stays(
    fresh_database: Callable[[str], str], outbox: Outbox, monkeypatch: pytest.MonkeyPatch
) -> None:
    url = prepared(fresh_database(""))
    store = Store.open(url, exclusive=False)
    try:
        old = await say(store, outbox, *map(str, range(400)))
        await make_older(store, outbox_rows, "create_time", DAYS + 1)
        await mark_sent(store, *old[1:])
        young = await say(store, outbox, "young", "unsent", first=1000)
        await mark_sent(store, young[0])
        stays = {old[0], *young}
        command = [sys.executable, "-c", _PRUNES_SLOWLY, url]
        process = await asyncio.create_subprocess_exec(*command, cwd=ROOT, stderr=subprocess.PIPE)

        async def is_at_it() -> bool:
            assert process.returncode is None, await process.communicate()
            return len(await ids(store, outbox_rows)) < 390

        try:
            await until(is_at_it)
        finally:
            process.kill()
            await process.communicate()
        assert process.returncode == -signal.SIGKILL
        left = await ids(store, outbox_rows)
        assert stays < left, "void: it was done before it was killed"
        monkeypatch.setattr(retention, "PASS_SECONDS", 0)
        await pruning(store).turn()
        assert await ids(store, outbox_rows) == stays
    finally:
        await store.close()


async def test_what_was_deleted_and_what_is_left_can_be_seen(store: Store, outbox: Outbox) -> None:
    said = await say(store, outbox, "old", "older", "young")
    await make_older(store, outbox_rows, "create_time", DAYS + 1, *said[:2])
    await make_older(store, outbox_rows, "create_time", 7, said[2])
    await mark_sent(store)
    before = measured("dinemesh_pruned_rows_total", what="outbox")
    assert await store.read(lambda tx: gone_before(tx, "outbox")) is None
    with logged() as seen:
        await pruning(store).turn()
        await store.write(lambda tx: tx.execute(text("ANALYZE")))
        await pruning(store).measure()
    assert [line["message"] for line in seen.lines("outbox: 2 rows from before")]
    gone = await store.read(lambda tx: gone_before(tx, "outbox"))
    assert gone is not None
    assert abs(datetime.now(UTC) - timedelta(days=DAYS) - gone) < timedelta(seconds=30)
    assert measured("dinemesh_pruned_rows_total", what="outbox") == before + 2
    assert measured("dinemesh_kept_rows", table="outbox") == 1
    assert measured("dinemesh_kept_oldest_seconds", what="outbox") == pytest.approx(7 * 86_400, abs=30)


def measured(name: str, **labels: str) -> float:
    return REGISTRY.get_sample_value(name, labels) or 0


async def test_what_is_published_again_is_not_deleted_before_it_is_sent(store: Store, outbox: Outbox) -> None:
    await say(store, outbox, "one")
    await make_older(store, outbox_rows, "create_time", DAYS + 1)
    await mark_sent(store)
    assert await store.write(lambda tx: mark_unsent(tx, outbox_rows)) == 1
    await pruning(store).turn()
    assert await store.read(count(outbox_rows)) == 1


PAGES: dict[str, tuple[Expiring, tuple[object, ...], dict[str, tuple[str, str]]]] = {
    "outbox": (
        OUTBOX,
        (7,),
        {"sqlite": ("INTEGER PRIMARY KEY", "rowid>"), "postgresql": ("outbox_pkey", "position>")},
    ),
    "inbox": (
        expiring_inbox(tables, words(newest_only=True))[0],
        ("0198",),
        {"sqlite": ("autoindex_inbox_1", "event_id>"), "postgresql": ("inbox_pkey", "event_id>")},
    ),
}


@pytest.mark.parametrize("which", PAGES)
async def test_a_page_is_read_by_the_key_from_its_place_on(store: Store, which: str) -> None:
    """Whatever has gone before, and without an index of its own, which each row would have to pay for."""
    one, after, ways = PAGES[which]
    index, place = ways[await store.read(lambda tx: tx.dialect)]
    (plan,) = await plans(store, partial(pruning(store)._page, one=one, after=after))
    assert enters(plan, one.table.name, index, place), plan
