"""A service's database that takes no writes for some seconds, or whose clock is wrong.

Afterwards the service has to write again by itself: one that does not is a violation.
"""

from __future__ import annotations

import asyncio
import datetime as dt
import time
from collections import Counter

from sqlalchemy import Connection, Executable, text

from dinemesh.kit.engines import LOCK_TIMEOUT_SECONDS
from tests.support.mesh import Part
from tests.support.process import NotHealthy
from tests.torture.databases import Database
from tests.torture.plan import OUTBOXES, Blow
from tests.torture.record import Jump
from tests.torture.scene import PATIENCE, Scene, Witness, see

AHEAD = (dt.timedelta(seconds=90), dt.timedelta(hours=3), dt.timedelta(days=12))
"""How far a clock jumps: beyond leases and holds; beyond the time that a restaurant has to accept; beyond the
meals."""
LONGER_SECONDS = 2.0
"""A lock is held so much longer than the service waits for it."""
LEAST_SECONDS = 1.0
"""A database takes no changes for so long, and some seconds more."""
RESTART_SECONDS = 0.5
"""After which what supervises a service starts it again."""


async def read_only(scene: Scene, blow: Blow) -> Witness:
    """PostgreSQL: the address points at a standby. SQLite: the machine comes back with a file system that the
    kernel does not trust any more; open files would keep it writable."""
    database = scene.databases[blow.target]
    async with scene.alone_with(blow.target):
        in_flight = await scene.busy(blow.target)
        begin = time.monotonic()
        if database.on_sqlite:
            seen = await _start_on_a_read_only_disk(scene, database, blow)
        else:
            with database.read_only() as refusal:
                see("25006" in refusal, f"the database takes changes: {refusal}")
                await asyncio.sleep(LEAST_SECONDS + blow.seconds)
                seen = f"a change was refused: {refusal}; {await _noticed(scene, blow, begin)}"
        what = f"{in_flight}, {seen}, {await _recovered(scene, blow)}"
        return Witness(blow, what, begin, time.monotonic())


async def _start_on_a_read_only_disk(scene: Scene, database: Database, blow: Blow) -> str:
    part = scene.mesh[blow.target]
    part.kill()
    starts = 0
    try:
        with database.read_only() as refusal:
            see(refusal == "EROFS", f"the disk takes changes: {refusal}")
            end = time.monotonic() + LEAST_SECONDS + blow.seconds
            while time.monotonic() < end:
                if not part.running:
                    part.spawn()
                    starts += 1
                await asyncio.sleep(RESTART_SECONDS)
            ready = await asyncio.to_thread(part.is_ready)
    finally:
        starts += await _start_until_ready(part)
    said = "said to be ready" if ready else "not ready"
    return f"a change was refused: {refusal}, the service was started {starts} times and was {said}"


async def _start_until_ready(part: Part) -> int:
    """As a supervisor does, each time it ends; how often. Raises NotHealthy."""
    starts = 0
    end = time.monotonic() + PATIENCE
    while not await asyncio.to_thread(part.is_ready):
        if not part.running:
            part.spawn()
            starts += 1
        if time.monotonic() > end:
            raise NotHealthy(f"{part.name} is not ready after {PATIENCE:g} s.\n{part.last_words(20)}")
        await asyncio.sleep(RESTART_SECONDS)
    return starts


async def full_disk(scene: Scene, blow: Blow) -> Witness:
    """Its file system has no byte left, then it has."""
    database = scene.databases[blow.target]
    async with scene.alone_with(blow.target):
        in_flight = await scene.busy(blow.target)
        begin = time.monotonic()
        with database.full() as refusal:
            see("ENOSPC" in refusal or "53100" in refusal, f"the disk has room: {refusal}")
            # PostgreSQL goes on in pages that have room, and lets nobody in who would look.
            written = await _written(scene, blow.target) if database.on_sqlite else 0
            await asyncio.sleep(LEAST_SECONDS + blow.seconds)
            if database.on_sqlite:
                see(await _written(scene, blow.target) == written, "the service went on writing")
            noticed = await _noticed(scene, blow, begin)
        what = f"{in_flight}, a change was refused: {refusal}; {noticed}, {await _recovered(scene, blow)}"
        return Witness(blow, what, begin, time.monotonic())


async def held_lock(scene: Scene, blow: Blow) -> Witness:
    """Longer than the service waits for it."""
    database = scene.databases[blow.target]
    async with scene.alone_with(blow.target):
        in_flight = await scene.busy(blow.target)
        begin = time.monotonic()
        waiting = 0
        with database.locked():
            written = await _written(scene, blow.target)
            longer = LOCK_TIMEOUT_SECONDS + LONGER_SECONDS + blow.seconds / 3
            end = time.monotonic() + longer
            while time.monotonic() < end:
                await asyncio.sleep(0.2)
                if database.on_sqlite:
                    continue
                before, waiting = waiting, max(waiting, await asyncio.to_thread(database.waiting))
                # While the broker is away a service may have nothing to write.
                is_early = time.monotonic() < begin + PATIENCE and not scene.is_over()
                if before == 0 and (waiting > 0 or is_early):
                    end = time.monotonic() + longer
            see(await _written(scene, blow.target) == written, "the service went on writing")
            see(database.on_sqlite or waiting > 0, "no session ever waited for the lock")
            noticed = await _noticed(scene, blow, begin)
            held = time.monotonic() - begin
        what = f"{in_flight}, held for {held:.1f} s; {noticed}, {await _recovered(scene, blow)}"
        return Witness(blow, what, begin, time.monotonic())


async def clock_jump(scene: Scene, blow: Blow) -> Witness:
    """Until the service has dated events by it, and some seconds more; then back."""
    database = scene.databases[blow.target]
    by = AHEAD[blow.chance % len(AHEAD)]
    async with scene.alone_with(blow.target):
        in_flight = await scene.busy(blow.target)
        alive = await _alive(scene) if blow.target == "reservation" else Counter()
        begin = time.monotonic()
        with database.ahead(by):
            jump = Jump(blow.target, by, dt.datetime.now(dt.UTC) + by, begin, alive=alive)
            scene.town.record.jumps.append(jump)
            end = begin + PATIENCE
            while not (dated := await _dated_since(scene, blow.target, jump.first)):
                see(not scene.is_over() and time.monotonic() < end, "no event was dated by it")
                await asyncio.sleep(0.1)
            await asyncio.sleep(blow.seconds)
            dated = await _dated_since(scene, blow.target, jump.first)
        jump.end = time.monotonic()
        what = f"{in_flight}, {by} ahead for {jump.end - begin:.1f} s, {dated} events dated by it"
        what += f", {alive.total()} bookings alive" if alive else ""
        return Witness(blow, f"{what}, {await _recovered(scene, blow)}", begin, time.monotonic())


async def _alive(scene: Scene) -> Counter[str]:
    found: Counter[str] = Counter()
    for state in ("PENDING_ACCEPTANCE", "CONFIRMED"):
        query = text("SELECT count(*) FROM reservations WHERE state = :state").bindparams(state=state)
        found[state] = await scene.ask("reservation", lambda connection: _one(connection, query))  # noqa: B023
    return found


def _one(connection: Connection, query: Executable) -> int:
    return int(connection.execute(query).scalar_one())


async def _dated_since(scene: Scene, service: str, first: dt.datetime) -> int:
    query = text("SELECT count(*) FROM outbox WHERE create_time BETWEEN :first AND :last")
    begin = int(first.timestamp() * 1_000_000)
    values = {"first": begin, "last": begin + int(2 * PATIENCE * 1_000_000)}
    return await scene.ask(service, lambda connection: int(connection.execute(query, values).scalar_one()))


async def _written(scene: Scene, service: str) -> int:
    """A number that grows with what the service takes and tells."""
    tables = ("inbox", "outbox") if service in OUTBOXES else ("inbox",)

    def count(connection: Connection) -> int:
        return sum(
            int(connection.execute(text(f"SELECT count(*) FROM {table}")).scalar_one()) for table in tables
        )

    return await scene.ask(service, count)


async def _noticed(scene: Scene, blow: Blow, begin: float) -> str:
    """What could be seen of it from outside, while it lasts."""
    ready = await asyncio.to_thread(scene.mesh[blow.target].is_ready)
    refused = sum(one.begin >= begin and one.refusal is not None for one in scene.town.record.answers)
    return f"{'still ready' if ready else 'not ready'}, {refused} calls refused"


async def _recovered(scene: Scene, blow: Blow) -> str:
    """Waits until the service is ready and writes again. Raises NotHealthy if it does not."""
    begin = time.monotonic()
    part = scene.mesh[blow.target]
    await asyncio.to_thread(part.wait_until_ready)
    written = await _written(scene, blow.target)
    while await _written(scene, blow.target) <= written and not scene.is_over():
        if time.monotonic() > begin + PATIENCE:
            raise NotHealthy(f"{PATIENCE:g} s later {part.name} still writes nothing.\n{part.last_words(20)}")
        await asyncio.sleep(0.1)
    return f"writing again after {time.monotonic() - begin:.1f} s"
