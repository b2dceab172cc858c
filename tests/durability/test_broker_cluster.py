"""Three nodes of RabbitMQ, told what prod is told: whichever goes, no event is lost and bookings go on.

`pytest -rP` shows the latencies of bookings, and how long it took until everything was caught up.
"""

from __future__ import annotations

import asyncio
import itertools
import statistics
import time
from collections import Counter
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path

import pytest

from local_mesh.broker import answers
from operations.audit import audit
from operations.broker import QUEUES
from tests.mesh.people import CONFIRMED, SHORT, City, Customer, Place, Reservation, patiently, until
from tests.mesh.test_audit import sources
from tests.support.broker_cluster import NODES, RunningCluster
from tests.support.mesh import RunningMesh

CLIENTS = 4
PAUSE_SECONDS = 0.2
"""Between two bookings of a client: some 15 a second in all, which two cores carry beside three brokers."""
AWAY_SECONDS = 5.0
"""A node is away for so long at least: longer than an election takes."""
LEAST_BOOKINGS = 3
"""While a node is away; fewer say nothing."""
SETTLED_SECONDS = 2.5
"""RabbitMQ forgets a queue that was declared less than this before its node is killed."""
CAUGHT_UP_SECONDS = 60.0


class Load:
    """Bookings, one after the other by each client, as long as it lasts."""

    def __init__(self, city: City, place: Place) -> None:
        self._city, self._place = city, place
        self.taken: list[tuple[Customer, Reservation]] = []
        self.latencies: list[float] = []

    async def client(self) -> None:
        for turn in itertools.count():
            customer = self._city.customer()
            wish = customer.wish(self._place, slot=turn % 2, party=1)
            begin = time.monotonic()
            taken = await patiently(partial(customer.send, wish), SHORT)
            self.latencies.append(time.monotonic() - begin)
            self.taken.append((customer, taken))
            await asyncio.sleep(PAUSE_SECONDS)

    @asynccontextmanager
    async def going_on(self) -> AsyncIterator[None]:
        clients = [asyncio.create_task(self.client()) for _ in range(CLIENTS)]
        try:
            yield
        finally:
            for one in clients:
                one.cancel()
            ended = await asyncio.gather(*clients, return_exceptions=True)
        assert all(isinstance(one, asyncio.CancelledError) for one in ended), ended


class Story:
    """What happens to the nodes, and what clients notice of it."""

    def __init__(self, cluster: RunningCluster, url: str, load: Load) -> None:
        self._cluster, self._url, self._load = cluster, url, load

    async def _leads(self) -> int:
        """The node that leads most of the mesh's queues, the log among them if it can be."""
        leaders = await asyncio.to_thread(self._cluster.leaders, self._url)
        assert set(QUEUES) <= leaders.keys(), f"void: nobody leads some of them: {leaders}"
        return Counter(leaders[queue] for queue in (*QUEUES, "dinemesh.log")).most_common(1)[0][0]

    async def away(self, what: str, go: Callable[[int], object], back: Callable[[int], object]) -> None:
        """The node that leads goes, stays away while bookings go on, and comes back."""
        place = await self._leads()
        port = self._cluster.nodes[place].ports.amqp
        before = len(self._load.latencies)
        await asyncio.to_thread(go, place)
        begin = time.monotonic()
        await until(lambda: asyncio.to_thread(answers, port), lambda there: not there)
        others = [one for one in range(NODES) if one != place]
        await until(lambda: asyncio.to_thread(self._cluster.running), lambda found: found == others)
        await asyncio.sleep(max(0.0, AWAY_SECONDS - (time.monotonic() - begin)))
        during = self._load.latencies[before:]
        await asyncio.to_thread(back, place)
        await asyncio.to_thread(self._cluster.wait_until_whole)
        told(f"{what} (node {place}, {AWAY_SECONDS:g} s)", during)
        told("until it was back", self._load.latencies[before + len(during) :])


def told(what: str, latencies: list[float]) -> None:
    assert len(latencies) >= LEAST_BOOKINGS, f"void: {len(latencies)} bookings while {what}"
    median, longest = statistics.median(latencies), max(latencies)
    said = f"{median * 1e3:.0f} ms median, {longest * 1e3:.0f} ms longest"
    print(f"{what}: {len(latencies)} bookings, {said}")  # noqa: T201 - shown by `pytest -rP`


@pytest.fixture
def mesh(broker_cluster: RunningCluster, tmp_path: Path) -> Iterator[RunningMesh]:
    running = RunningMesh(tmp_path, broker_cluster.fresh_url())
    running.start()
    yield running
    running.stop()


@pytest.mark.timeout(240)
async def test_no_event_is_lost_whichever_node_goes_and_bookings_go_on(
    broker_cluster: RunningCluster, mesh: RunningMesh
) -> None:
    city = City(mesh)
    place = await city.place(capacity=5000)
    load = Load(city, place)
    story = Story(broker_cluster, mesh.amqp_url, load)
    await asyncio.sleep(SETTLED_SECONDS)  # no state to ask for: see SETTLED_SECONDS
    async with load.going_on():
        await until(lambda: _now(len(load.latencies)), lambda found: found >= LEAST_BOOKINGS)
        told("all nodes there", list(load.latencies))
        kill, start = broker_cluster.kill, broker_cluster.start_again
        await story.away("the leader of the queues killed", kill, start)
        await story.away("then the leader that followed", kill, start)
        cut, back = broker_cluster.cut_off, broker_cluster.let_back
        await story.away("a leader cut off from the others", cut, back)
    begin = time.monotonic()
    kinds = ("RESERVATION_CONFIRMED", "DEPOSIT_CAPTURED")
    for customer, taken in load.taken:
        await customer.sees(taken, CONFIRMED, CAUGHT_UP_SECONDS)
        await customer.sees_in_timeline(taken, *kinds, seconds=CAUGHT_UP_SECONDS)
    report = await until(
        lambda: audit(sources(mesh), patience_seconds=0.5), lambda found: found.clean, CAUGHT_UP_SECONDS
    )
    seconds = time.monotonic() - begin
    print(f"{len(load.taken)} bookings, no event lost; read all of it in {seconds:.1f} s")  # noqa: T201
    print(report)  # noqa: T201
    assert not report.skipped
    await city.close()


async def _now(value: int) -> int:
    return value
