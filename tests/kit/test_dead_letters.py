"""Dead letters: looking at them changes nothing for whoever comes next."""

from __future__ import annotations

from dinemesh.kit import dead_letters
from dinemesh.kit.bus import Bus, dead_letter_queue
from local_mesh.broker import RunningBroker
from tests.kit.words import running

QUEUE = "words.heard"


async def test_what_was_listed_is_there_for_the_next_question(broker: RunningBroker) -> None:
    """The broker gives back what a look had held after it has said that the look is over."""
    bus = Bus(broker.fresh_url(), "test")
    async with running(bus):
        assert await bus.wait_connected(30)
        async with bus.channel(0) as channel:
            await bus.declare_subscriber(channel, QUEUE, ["words.v1.*"])
        for n in range(30):
            await bus.publish_to_queue(b"word", dead_letter_queue(QUEUE), event_id=f"word-{n}")
            (listed,) = await dead_letters.list_dead(bus, QUEUE)
            assert listed.event_id == f"word-{n}"
            assert await dead_letters.redrive(bus, QUEUE) == 1, f"round {n}"


async def test_letters_keep_their_order_however_often_they_are_listed(broker: RunningBroker) -> None:
    bus = Bus(broker.fresh_url(), "test")
    async with running(bus):
        assert await bus.wait_connected(30)
        async with bus.channel(0) as channel:
            await bus.declare_subscriber(channel, QUEUE, ["words.v1.*"])
        names = [f"word-{n}" for n in range(5)]
        for name in names:
            await bus.publish_to_queue(b"word", dead_letter_queue(QUEUE), event_id=name)
        for _ in range(25):
            assert [one.event_id for one in await dead_letters.list_dead(bus, QUEUE)] == names
