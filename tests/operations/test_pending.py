"""What waits longer than it may is listed, each with its id, since when, its limit, and what to do next."""

from __future__ import annotations

import asyncio
import uuid
from collections.abc import Callable
from datetime import UTC, datetime, timedelta

import pytest

from local_mesh.broker import RunningBroker
from operations import __main__ as commands
from operations import events
from operations.backlog import ABOUT, BacklogItem, everything
from operations.broker import connected
from operations.limits import Limits
from operations.snapshot import Sources, opened, take
from tests.operations.test_audit import modify, small_parts
from tests.operations.test_commands import QUEUE, listening, until
from tests.operations.world import SERVICES, Kept, Record, World, micros
from tests.support.broker import block_publishers
from tests.support.ports import free_ports
from tests.support.postgres import PostgresServer

__all__ = ["small_parts"]


async def waiting(world: World, sources: Sources | None = None) -> list[BacklogItem]:
    """Without the bookings whose meal is years ahead."""
    sources = sources or world.sources
    async with opened(sources) as reader:
        parts = list(reader.parts(ABOUT, waiting=True))
    found = [one for part in parts for one in everything(part, Limits())]
    assert sorted(found, key=repr) == sorted(everything(await take(sources), Limits()), key=repr)
    return [one for one in found if one.until is None or one.until < reader.now + timedelta(days=365)]


def then(world: World) -> int:
    return micros(world.then)


def attempt(world: World, until: int) -> str:
    reservation_id = str(uuid.uuid4())
    world.reservation(reservation_id, "PENDING_DEPOSIT", hold_expire_time=until)
    return reservation_id


def modification(world: World, until: int) -> str:
    return modify(world, until)


def acceptance(world: World, until: int) -> str:
    """At a MANUAL restaurant whose people do not answer."""
    change = "UPDATE reservations SET state = 'PENDING_ACCEPTANCE', accept_deadline = :until"
    world.execute("reservation", f"{change} WHERE state = 'CONFIRMED'", until=until)
    return world.confirmed.reservation_id


def booking_that_nobody_marked(world: World, until: int) -> str:
    change = "UPDATE reservations SET due_time = :until WHERE state = 'CONFIRMED'"
    world.execute("reservation", change, until=until)
    return world.confirmed.reservation_id


def undecided(state: str) -> Callable[[World, int], str]:
    def charge(world: World, until: int) -> str:
        deposit_id = str(uuid.uuid4())
        begin = until - Limits().undecided // timedelta(microseconds=1)
        world.deposit(deposit_id, "r", state, update_time=begin)
        return deposit_id

    return charge


def refund(world: World, until: int) -> str:
    kept = Kept("", world.confirmed.deposit_id, str(uuid.uuid4()))
    world.refund_row(kept, "PENDING", 100)
    begin = until - Limits().undecided // timedelta(microseconds=1)
    world.execute("deposit", "UPDATE refunds SET update_time = :then WHERE state = 'PENDING'", then=begin)
    return kept.return_id


def instruction(world: World, until: int) -> str:
    key = {"kind": "REFUND", "instruction_id": str(uuid.uuid4()), "deposit_id": str(uuid.uuid4())}
    begin = until - Limits().undecided // timedelta(microseconds=1)
    row = {"amount_minor": 100, "currency": "EUR", "state": "WAITING", "create_time": begin}
    world.insert("deposit", "instructions", **key, **row)
    return key["instruction_id"]


def unsent_event(world: World, until: int) -> str:
    return world.event("deposit", sent=False, at=moment(until))


def unheard_event(world: World, until: int) -> str:
    event_id = world.event("restaurant", heard=False, at=moment(until))
    world.hear(event_id, "history.timeline")
    return event_id


def moment(microseconds: int) -> datetime:
    return datetime.fromtimestamp(microseconds / 1e6, UTC)


KINDS = [
    ("PENDING_DEPOSIT", attempt, "make stop SERVICE=reservation"),
    ("MODIFYING", modification, "make stop SERVICE=reservation"),
    ("PENDING_ACCEPTANCE", acceptance, "make stop SERVICE=reservation"),
    ("CONFIRMED", booking_that_nobody_marked, "make stop SERVICE=reservation"),
    ("DEPOSIT PENDING", undecided("PENDING"), "make logs SERVICE=deposit"),
    ("DEPOSIT VOIDING", undecided("VOIDING"), "make logs SERVICE=deposit"),
    ("REFUND PENDING", refund, "make logs SERVICE=deposit"),
    ("INSTRUCTION", instruction, "make stop SERVICE=deposit"),
    ("EVENT UNSENT", unsent_event, "make stop SERVICE=deposit"),
    ("EVENT UNHEARD", unheard_event, "make replay SERVICE=restaurant"),
]


@pytest.mark.parametrize(("kind", "wait", "command"), KINDS, ids=[kind for kind, _, _ in KINDS])
async def test_what_is_past_its_limit_is_late_with_what_to_do_and_not_before(
    world: World, kind: str, wait: Callable[[World, int], str], command: str
) -> None:
    assert await waiting(world) == []
    subject = wait(world, then(world))
    (late,) = await waiting(world)
    assert (late.kind, late.subject) == (kind, subject)
    now = datetime.now(UTC)
    assert late.is_late(now)
    assert late.until is not None and abs(late.until - world.then) < timedelta(minutes=2)
    assert command in late.remedy
    assert not late.is_late(late.until)


async def test_an_event_that_lies_dead_is_not_listed_twice(
    world: World, broker: RunningBroker, sqlite_templates: Callable[[str], str]
) -> None:
    event_id = world.event("reservation", heard=False)
    world.hear(event_id, "restaurant.bookings")
    world.hear(event_id, "history.timeline")
    (unheard,) = await waiting(world)
    assert (unheard.kind, unheard.subject) == ("EVENT UNHEARD", event_id)
    amqp_url = broker.fresh_url()
    async with listening(amqp_url, sqlite_templates("")), connected(amqp_url) as bus:
        await bus.publish(b"\xff\xff", "deposit.v1.said", event_id=event_id)

        async def kinds() -> list[str]:
            sources = Sources(**{f"{name}_db": world.urls[name] for name in SERVICES}, amqp=amqp_url)
            return [one.kind for one in await waiting(world, sources)]

        async def dead() -> bool:
            return await kinds() == ["DEAD LETTER"]

        await until(dead)


async def test_what_history_has_in_its_timeline_it_has_taken(world: World) -> None:
    event_id = world.event("reservation", heard=False)
    world.hear(event_id, "deposit.instructions")
    world.hear(event_id, "restaurant.bookings")
    assert await waiting(world) == []
    world.execute("history", "DELETE FROM timeline_entries WHERE event_id = :id", id=event_id)
    (late,) = await waiting(world)
    assert late.subject == event_id


def arguments(world: World, amqp_url: str) -> list[str]:
    databases = [f"--{name}-db={world.urls[name]}" for name in SERVICES]
    return ["pending", *databases, "--amqp", amqp_url]


async def run(*words: str) -> int:
    return await asyncio.to_thread(commands.main, words)


async def test_the_command_lists_what_is_late_and_ends_with_one(
    world: World,
    broker: RunningBroker,
    sqlite_templates: Callable[[str], str],
    capsys: pytest.CaptureFixture[str],
) -> None:
    amqp_url = broker.fresh_url()
    soon = micros(datetime.now(UTC) + timedelta(minutes=1))
    attempt(world, soon)
    assert await run(*arguments(world, amqp_url)) == 0
    assert capsys.readouterr().out == "pending: late: nothing; 2 wait within their time\n"

    kept = world.refuse_refund()
    charge = undecided("VOIDING")(world, then(world))
    for _ in range(3):
        unsent_event(world, then(world))
    async with listening(amqp_url, sqlite_templates("")), connected(amqp_url) as bus:
        await bus.publish(b"\xff\xff", "deposit.v1.said", event_id="junk")

        async def dead() -> bool:
            return bool(await events.dead_letters(amqp_url, [QUEUE]))

        await until(dead)
    assert await run(*arguments(world, amqp_url), "--most", "2") == 1
    said = capsys.readouterr().out
    since = f"since {world.then:%Y-%m-%d %H:%M:%S} UTC"
    assert f"REFUND FAILED  {kept.return_id}  {since}, limit 0 s" in said
    assert f"make retry-refund DEPOSIT={kept.deposit_id}" in said
    assert f"DEPOSIT VOIDING  {charge}" in said and "limit 300 s" in said
    assert f"make redrive QUEUE={QUEUE}" in said
    assert said.count("EVENT UNSENT  ") == 3 and "EVENT UNSENT  and 1 more" in said
    assert said.endswith(
        "pending: late: 1 DEAD LETTER, 1 DEPOSIT VOIDING, 3 EVENT UNSENT, 1 REFUND FAILED;"
        " 1 wait within their time\n"
    )


async def test_an_event_that_a_queue_refuses_is_told_apart_from_a_relay_that_is_stuck(world: World) -> None:
    event_id = unsent_event(world, then(world))
    world.execute("deposit", "UPDATE outbox SET tries = 7 WHERE event_id = :id", id=event_id)
    (late,) = await waiting(world)
    assert (late.kind, late.subject) == ("EVENT UNSENT", event_id)
    assert "refused 7 times" in late.what
    assert "is full" in late.remedy and "make stop" not in late.remedy


async def test_a_broker_that_takes_no_messages_is_listed(
    world: World, broker: RunningBroker, capsys: pytest.CaptureFixture[str]
) -> None:
    words = arguments(world, broker.fresh_url())
    with block_publishers(broker):
        assert await run(*words) == 1
    said = capsys.readouterr().out
    assert "BROKER BLOCKS  rabbitmq" in said and "make logs SERVICE=rabbitmq" in said
    assert await run(*words) == 0
    assert "BROKER BLOCKS" not in capsys.readouterr().out


async def test_a_broker_that_is_away_is_part_of_the_answer(
    world: World, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("operations.broker.CONNECT_SECONDS", 0.5)
    (nowhere,) = free_ports(1)
    unsent_event(world, then(world))
    assert await run(*arguments(world, f"amqp://guest:guest@127.0.0.1:{nowhere}/")) == 1
    said = capsys.readouterr().out
    assert "NOT READ  the broker was not reached" in said
    assert "1 EVENT UNSENT" in said


async def test_a_database_that_is_away_hides_neither_itself_nor_the_others(
    world: World, broker: RunningBroker, capsys: pytest.CaptureFixture[str]
) -> None:
    """What its subscribers have taken is not known then, and not listed as if it were late."""
    kept = world.refuse_refund()
    words = arguments(world, broker.fresh_url())
    words = ["--history-db=sqlite:////nowhere/h.db" if "history" in word else word for word in words]
    assert await run(*words) == 1
    said = capsys.readouterr().out
    assert "NOT READ  sqlite:////nowhere/h.db: there is no such file" in said
    assert kept.return_id in said
    assert said.endswith("pending: late: 1 REFUND FAILED; 0 wait within their time\n")


async def test_both_engines_list_the_same(
    postgres: PostgresServer, sqlite_templates: Callable[[str], str], provider: Record
) -> None:
    worlds = [
        World({name: fresh(f"{name}_svc") for name in SERVICES}, provider)
        for fresh in (sqlite_templates, postgres.fresh)
    ]
    try:
        found: list[list[tuple[str, timedelta]]] = []
        for world in worlds:
            until = then(world)
            for kind, wait, _ in KINDS:
                if kind != "CONFIRMED":  # another state of the same reservation
                    wait(world, until)
            world.refuse_refund()
            found.append(sorted((one.kind, one.limit) for one in await waiting(world)))
        assert found[0] == found[1]
        assert {kind for kind, _ in found[0]} >= {"DEPOSIT VOIDING", "EVENT UNHEARD", "REFUND FAILED"}
    finally:
        for world in worlds:
            world.close()
