"""The broker is killed under load: no committed event is lost, and none has a second effect."""

from __future__ import annotations

import asyncio
import time
from pathlib import Path

from sqlalchemy import func, select

from dinemesh.kit.bus import Bus
from dinemesh.kit.consumer import Consumer
from dinemesh.kit.outbox import Outbox
from dinemesh.kit.relay import Relay
from dinemesh.kit.store import Store
from local_mesh.broker import RunningBroker
from tests.kit.words import (
    encode,
    heard,
    outbox_rows,
    prepared,
    running,
    say,
    tables,
    unsent,
    until,
    words,
)


async def test_a_broker_killed_under_load_loses_and_doubles_nothing(
    tmp_path: Path, own_broker: RunningBroker
) -> None:
    store = Store.open(prepared(f"sqlite:///{tmp_path}/words.db"))
    outbox = Outbox(outbox_rows, encode, "words")
    bus = Bus(own_broker.url, "test")
    consumer = Consumer(store, bus, tables, words())
    said = 0
    speaking = True

    async def speak() -> None:
        nonlocal said
        while speaking:
            await say(store, outbox, f"w{said}", first=said)
            said += 1
            await asyncio.sleep(0.002)

    async def heard_by_now() -> int:
        query = select(func.count()).select_from(heard)
        return await store.read(lambda tx: tx.execute(query).scalar_one())

    async with running(bus, Relay(store, outbox, bus, sweep_seconds=0.1), consumer):
        await asyncio.wait_for(consumer.caught_up.wait(), 30)
        speaker = asyncio.ensure_future(speak())
        # RabbitMQ 3.10 writes down that a stream exists within a second of its making (measured: killed after
        # 0.5 s it is gone, after 2 s and more never); a broker that young is not what is tested here.
        born = time.monotonic()
        await until(lambda: said > 300 and time.monotonic() - born > 4)

        old = own_broker.pid
        await asyncio.to_thread(own_broker.kill)
        await until(lambda: not bus.can_publish)  # the fault was seen
        at_fault = said
        await until(lambda: said > at_fault + 100)  # work goes on without a broker
        await asyncio.to_thread(own_broker.start)
        assert own_broker.pid != old

        at_return = said
        await until(lambda: said > at_return + 100)
        speaking = False
        await speaker
        await until(unsent(store), 60)

        async def all_heard() -> bool:
            return await heard_by_now() == said

        await until(all_heard, 60)  # `heard` has a primary key: a second effect would have failed
    await store.close()
