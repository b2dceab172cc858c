"""Where faults happen, and what a fault brings back: a witness of itself."""

from __future__ import annotations

import asyncio
import time
from collections import defaultdict
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field

from sqlalchemy import Connection, text
from sqlalchemy.exc import DBAPIError

from dinemesh.kit.bus import Bus
from local_mesh.broker import RunningBroker
from tests.support.broker_cluster import RunningCluster
from tests.support.mesh import RunningMesh
from tests.torture.books import look
from tests.torture.databases import Database
from tests.torture.plan import DATABASES, OUTBOXES, Blow
from tests.torture.town import Town

LEAST_IN_FLIGHT = 3
"""Calls of clients that have to be under way when a fault begins."""
PATIENCE = 60.0
"""How long a fault waits for work, seconds; and how long the mesh may take until it has recovered from it."""


# No client calls deposit or the provider itself, and history and the broker only hear of what is done.
_NEEDED_BY = {
    "reservation": "reservation",
    "deposit": "reservation",
    "sandbox": "reservation",
    "restaurant": "restaurant",
}


class NotWitnessed(Exception):
    """The fault did not happen, or hit nothing: the run is void."""


@dataclass(frozen=True)
class Witness:
    """That a fault happened: `what` was seen, from `begin` to `end` by the monotonic clock."""

    blow: Blow
    what: str
    begin: float
    end: float


@dataclass
class Scene:
    """Where faults happen. `begin_story` lets a story of a crowd begin; `is_over`: there is no more work to
    wait for."""

    town: Town
    mesh: RunningMesh
    broker: RunningBroker | RunningCluster
    bus: Bus
    databases: Mapping[str, Database]
    begin_story: Callable[[Awaitable[object]], None]
    is_over: Callable[[], bool]
    locks: dict[str, asyncio.Lock] = field(default_factory=lambda: defaultdict(asyncio.Lock))

    @asynccontextmanager
    async def alone_with(self, *names: str) -> AsyncIterator[None]:
        """No other fault hits these meanwhile."""
        async with AsyncExitStack() as stack:
            for name in sorted(names):
                await stack.enter_async_context(self.locks[name])
            yield

    @property
    def in_flight(self) -> int:
        return self.town.in_flight.total()

    async def busy(self, target: str) -> str:
        """Waits until enough calls are under way, some of them where they need the target; how many."""
        service = _NEEDED_BY.get(target)
        there = self.town.in_flight

        def enough() -> bool:
            return self.in_flight >= LEAST_IN_FLIGHT and (service is None or there[service] > 0)

        await self.until(enough, f"too few calls were in flight for {target}")
        return f"{self.in_flight} calls in flight" + (f" ({there[service]} at {service})" if service else "")

    async def until(self, happened: Callable[[], bool], otherwise: str, seconds: float = PATIENCE) -> None:
        """Waits for it. Raises NotWitnessed when there is no more time."""
        end = time.monotonic() + seconds
        while not happened():
            if self.is_over() or time.monotonic() > end:
                raise NotWitnessed(otherwise)
            await asyncio.sleep(0.01)

    async def ask(self, service: str, query: Callable[[Connection], int]) -> int:
        """One number out of a service's database; asks again while it cannot be read."""
        end = time.monotonic() + PATIENCE
        while True:
            try:
                return await asyncio.to_thread(look, self.mesh.databases[service], query)
            except DBAPIError:
                if time.monotonic() > end:
                    raise
                await asyncio.sleep(0.1)

    async def unsent(self) -> int:
        """Events that wait for the broker, of all services."""
        return sum([await self.ask(name, _unsent) for name in OUTBOXES])

    async def told(self) -> int:
        """Events that services have committed."""
        return sum([await self.ask(name, _outbox) for name in OUTBOXES])

    async def taken(self) -> int:
        """Events that subscribers have taken."""
        return sum([await self.ask(name, _inbox) for name in DATABASES])


def _unsent(connection: Connection) -> int:
    return int(connection.execute(text("SELECT count(*) FROM outbox WHERE sent_time IS NULL")).scalar_one())


def _outbox(connection: Connection) -> int:
    return int(connection.execute(text("SELECT count(*) FROM outbox")).scalar_one())


def _inbox(connection: Connection) -> int:
    return int(connection.execute(text("SELECT count(*) FROM inbox")).scalar_one())


def see(seen: bool, otherwise: str) -> None:
    """Raises NotWitnessed unless it was seen."""
    if not seen:
        raise NotWitnessed(otherwise)
