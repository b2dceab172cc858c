"""The faults of a run. Each is done to real processes and a real broker, and brings a witness of itself.

A fault that finds too little work in flight, or that nobody can see afterwards, raises `NotWitnessed`: then
the run proves nothing and says so.
"""

from __future__ import annotations

import asyncio
import random
import socket
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from contextlib import asynccontextmanager

from aio_pika import Message
from aio_pika.abc import AbstractIncomingMessage
from sqlalchemy import Connection, bindparam, text

from dinemesh.event.v1 import envelope_pb2 as event_pb2
from dinemesh.kit.bus import BROKER_ERRORS
from local_mesh.broker import answers
from operations import events
from tests.support.broker_cluster import RunningCluster
from tests.support.mesh import state_of
from tests.torture import faults_of_databases, faults_of_topology
from tests.torture.plan import Blow, Fault, Story, Tale
from tests.torture.scene import PATIENCE, NotWitnessed, Scene, Witness, see
from tests.torture.town import Visitor

__all__ = ["CHARGES_IN_FLIGHT", "NotWitnessed", "Scene", "Witness", "strike"]

LEAST_HELD = 3
"""Events that have to be caught to be delayed, reordered or doubled."""
MOST_HELD = 30
MORE_PATIENCE = 150.0
"""How long events are waited for, which may have lost their binding just before; seconds."""
CHARGES_IN_FLIGHT = 6
"""Deposit refuses more charges at once than this."""
BURST = 2 * CHARGES_IN_FLIGHT
BURSTS = 6
REPLAYED_SECONDS = 30.0


async def strike(scene: Scene, blow: Blow) -> Witness:
    """Does it, undoes it, and says what was seen."""
    end = time.monotonic() + PATIENCE
    while True:
        try:
            return await _FAULTS[blow.fault](scene, blow)
        except BROKER_ERRORS as error:
            # Our own way to a broker that was killed just before; what was caught is given back by itself.
            if blow.fault not in _CATCHING:
                raise
            see(time.monotonic() < end and not scene.is_over(), f"the broker stays away: {error!r}")
            await asyncio.sleep(0.5)


async def _kill(scene: Scene, blow: Blow) -> Witness:
    async with scene.alone_with(blow.target):
        part = scene.mesh[blow.target]
        in_flight, old = await scene.busy(blow.target), part.pid
        begin = time.monotonic()
        part.kill()
        see(state_of(old) == "", f"process {old} lives on")
        see(not _is_open(part.port), f"port {part.port} is still open")
        await asyncio.sleep(blow.seconds)
        part.spawn()
        await asyncio.to_thread(part.wait_until_ready)
        see(part.pid != old, "the process is the same one")
        what = f"{in_flight}, pid {old} gone, port closed, pid {part.pid} there"
        return Witness(blow, what, begin, time.monotonic())


async def _pause(scene: Scene, blow: Blow) -> Witness:
    async with scene.alone_with(blow.target):
        part = scene.mesh[blow.target]
        in_flight = await scene.busy(blow.target)
        begin = time.monotonic()
        part.pause()
        try:
            await asyncio.sleep(blow.seconds)
            see(part.hangs, "it did not stand still all the time")
            stood = time.monotonic() - begin
        finally:
            part.resume()
        see(not part.hangs, "it stands still for ever")
        await asyncio.to_thread(part.wait_until_ready)
        what = f"{in_flight}, pid {part.pid} stood still (T) for {stood:.1f} s"
        return Witness(blow, what, begin, time.monotonic())


async def _kill_broker(scene: Scene, blow: Blow) -> Witness:
    """All of it: of three nodes all three, at once."""
    async with scene.alone_with("deliveries", "rabbitmq"):
        nodes = scene.broker.nodes if isinstance(scene.broker, RunningCluster) else [scene.broker]
        in_flight, old = await scene.busy(blow.target), [node.pid for node in nodes]
        begin = time.monotonic()
        for node in nodes:
            node.kill()
        for node, pid in zip(nodes, old, strict=True):
            see(state_of(pid) == "", f"process {pid} lives on")
            see(not answers(node.ports.amqp), "the broker still answers")
        await asyncio.sleep(blow.seconds)
        unsent = await scene.unsent()
        for node in nodes:
            node.spawn()
        for node in nodes:
            await asyncio.to_thread(node.wait_until_ready)
        new = [node.pid for node in nodes]
        see(not set(old) & set(new), "a process is the same one")
        what = f"{in_flight}, pid {_listed(old)} gone, port closed, {unsent} events waited"
        return Witness(blow, f"{what}, pid {_listed(new)} there", begin, time.monotonic())


def _listed(pids: Sequence[int]) -> str:
    return ", ".join(map(str, pids))


async def _delay(scene: Scene, blow: Blow) -> Witness:
    begin = time.monotonic()
    while True:
        async with _caught(scene, blow.target) as held:
            await asyncio.sleep(blow.seconds)
            late = len(held) - await _taken(scene, blow.target, held)
            for message in held:
                await message.nack(requeue=True)
            if late > 0:
                what = f"{late} of {len(held)} events of {blow.target} were kept from it"
                return Witness(blow, f"{what} for {blow.seconds:.1f} s", begin, time.monotonic())
        # Its subscriber has read them in the log.
        in_time = time.monotonic() < begin + PATIENCE and not scene.is_over()
        see(in_time, "all events were taken before")
        await asyncio.sleep(0.2)


async def _reorder(scene: Scene, blow: Blow) -> Witness:
    begin = time.monotonic()
    while True:
        async with _caught(scene, blow.target, enough=_has_two_of_one) as held:
            order = random.Random(blow.chance).sample(range(len(held)), len(held))
            if not _turned_round(held, order):
                order.sort(key=lambda place: -_version(held[place])[1])
            if turned := _turned_round(held, order):
                for place in order:
                    await _send_again(scene, blow.target, held[place])
                for message in held:
                    await message.ack()
                what = (
                    f"of {len(held)} events of {blow.target} {turned} came after a newer one of its aggregate"
                )
                return Witness(blow, what, begin, time.monotonic())
            # All of different aggregates, as many as we may hold: let some others come.
            for message in held:
                await message.nack(requeue=True)
        in_time = time.monotonic() < begin + PATIENCE and not scene.is_over()
        see(in_time, f"no two events of {blow.target} were of one aggregate")
        await asyncio.sleep(0.2)


def _version(message: AbstractIncomingMessage) -> tuple[str, int]:
    envelope = event_pb2.Envelope.FromString(message.body)
    return envelope.aggregate_id, envelope.aggregate_version


def _has_two_of_one(held: Sequence[AbstractIncomingMessage]) -> bool:
    """Whether there is something whose order could matter: two events of one aggregate."""
    versions = {_version(one) for one in held}
    return len(versions) > len({aggregate for aggregate, _ in versions})


def _turned_round(held: Sequence[AbstractIncomingMessage], order: Sequence[int]) -> int:
    """How many come after a newer one of the same aggregate if they are sent in this order."""
    newest: dict[str, int] = {}
    late = 0
    for place in order:
        aggregate, version = _version(held[place])
        late += version < newest.get(aggregate, 0)
        newest[aggregate] = max(version, newest.get(aggregate, 0))
    return late


async def _duplicate(scene: Scene, blow: Blow) -> Witness:
    begin = time.monotonic()
    async with _caught(scene, blow.target) as held:
        for message in (*held, *held):
            await _send_again(scene, blow.target, message)
        for message in held:
            await message.ack()
    what = f"{len(held)} events of {blow.target} were confirmed by the broker twice"
    return Witness(blow, what, begin, time.monotonic())


async def _replay(scene: Scene, blow: Blow) -> Witness:
    # Not while it stands still: it would hold its database.
    async with scene.alone_with(blow.target):
        begin = time.monotonic()
        count = 0
        while count == 0 and time.monotonic() < begin + PATIENCE and not scene.is_over():
            count = (await events.replay(scene.mesh.databases[blow.target], REPLAYED_SECONDS)).events
            await asyncio.sleep(0.1)
        see(count > 0, f"{blow.target} had sent nothing")
        what = f"{count} events of {blow.target} became unsent again"
        return Witness(blow, what, begin, time.monotonic())


async def _overload(scene: Scene, blow: Blow) -> Witness:
    async with scene.alone_with("deposit", "reservation", "sandbox"):
        begin = time.monotonic()
        before = await _refused_by_deposit(scene)
        for turn in range(BURSTS):
            if scene.is_over():
                break
            for story in _crowd(blow, turn):
                visitor = Visitor(scene.town, story, scene.town.places.easy)
                scene.begin_story(visitor.reserve_at_last(tries=2))
            end = time.monotonic() + 2.0
            while time.monotonic() < end:
                await asyncio.sleep(0.2)
                refused = await _refused_by_deposit(scene) - before
                if refused > 0:
                    what = f"{refused} attempts were refused by deposit itself (DEPOSIT_OVERLOADED)"
                    return Witness(blow, what, begin, time.monotonic())
        raise NotWitnessed(f"{BURSTS} bursts of {BURST}, and deposit refused nobody")


def _crowd(blow: Blow, turn: int) -> list[Story]:
    first = 1_000_000 + (blow.chance % 1_000_000) * BURST * BURSTS + turn * BURST
    return [
        Story(first + n, Tale.SLOW_CARD, 1, n % 3, "tok_slow_800", blow.chance + turn * BURST + n, True)
        for n in range(BURST)
    ]


_FAULTS: Mapping[Fault, Callable[[Scene, Blow], Awaitable[Witness]]] = {
    Fault.KILL: _kill,
    Fault.PAUSE: _pause,
    Fault.KILL_BROKER: _kill_broker,
    Fault.DELAY: _delay,
    Fault.REORDER: _reorder,
    Fault.DUPLICATE: _duplicate,
    Fault.REPLAY: _replay,
    Fault.OVERLOAD: _overload,
    Fault.READ_ONLY: faults_of_databases.read_only,
    Fault.FULL_DISK: faults_of_databases.full_disk,
    Fault.HELD_LOCK: faults_of_databases.held_lock,
    Fault.CLOCK_JUMP: faults_of_databases.clock_jump,
    Fault.BINDING_LOST: faults_of_topology.binding_lost,
    Fault.EXCHANGE_LOST: faults_of_topology.exchange_lost,
    Fault.QUEUE_FULL: faults_of_topology.queue_full,
    Fault.KILL_NODE: faults_of_topology.kill_node,
}


_CATCHING = frozenset({Fault.DELAY, Fault.REORDER, Fault.DUPLICATE})


@asynccontextmanager
async def _caught(
    scene: Scene, queue: str, enough: Callable[[Sequence[AbstractIncomingMessage]], bool] = bool
) -> AsyncIterator[list[AbstractIncomingMessage]]:
    """Some events out of the queue, taken from its subscriber by a second consumer beside it."""
    held: list[AbstractIncomingMessage] = []

    async def keep(message: AbstractIncomingMessage) -> None:
        held.append(message)

    async with scene.alone_with("deliveries"), scene.bus.channel(MOST_HELD) as channel:
        caught = await channel.get_queue(queue, ensure=False)
        tag = await caught.consume(keep)
        await scene.until(
            lambda: len(held) >= MOST_HELD or (len(held) >= LEAST_HELD and enough(held)),
            f"too few events came to {queue}",
            MORE_PATIENCE,
        )
        await caught.cancel(tag)
        yield held


async def _send_again(scene: Scene, queue: str, message: AbstractIncomingMessage) -> None:
    """As it is, headers and all: some are marks, and no events."""
    copy = Message(
        message.body,
        headers=message.headers,
        content_type=message.content_type,
        message_id=message.message_id,
        delivery_mode=message.delivery_mode,
    )
    end = time.monotonic() + PATIENCE
    while True:
        try:
            async with scene.bus.channel(1) as channel:
                await channel.default_exchange.publish(copy, queue, mandatory=True, timeout=PATIENCE)
            return
        except BROKER_ERRORS:  # our own way to a broker that was killed just before comes back, too
            if time.monotonic() > end:
                raise
            await asyncio.sleep(0.1)


async def _taken(scene: Scene, queue: str, held: list[AbstractIncomingMessage]) -> int:
    """How many of these events their subscriber has taken by now."""
    query = text("SELECT count(*) FROM inbox WHERE subscriber = :queue AND event_id IN :ids")
    query = query.bindparams(bindparam("ids", expanding=True))
    values = {"queue": queue, "ids": [message.message_id for message in held]}

    def count(connection: Connection) -> int:
        return int(connection.execute(query, values).scalar_one())

    return await scene.ask(queue.partition(".")[0], count)


async def _refused_by_deposit(scene: Scene) -> int:
    query = text("SELECT count(*) FROM reservations WHERE failure = 'DEPOSIT_OVERLOADED'")

    def count(connection: Connection) -> int:
        return int(connection.execute(query).scalar_one())

    return await scene.ask("reservation", count)


def _is_open(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0
