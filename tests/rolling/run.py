"""The rolling restart: each service is replaced by a second instance while people use the edge.

All services stand on PostgreSQL, two instances of each behind the edge, whose health checks (one a second,
two until it notices) are as configured. A handover: the second instance starts and takes calls; the first
gets SIGTERM and ends. In the next round they change places.
"""

from __future__ import annotations

import asyncio
import os
import signal
import time
from collections import Counter
from collections.abc import AsyncIterator, Callable, Iterable, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx

from local_mesh.broker import RunningBroker
from operations.audit import audit
from operations.limits import Limits
from tests.mesh.people import AUTO, City, Place, until
from tests.mesh.test_audit import QUIET_SECONDS, sources
from tests.rolling.load import STOPPING, Load, OverGrpc, OverJson, seats_for_all
from tests.support.edge import RunningEdge
from tests.support.mesh import SERVICES, Launch, Part, RunningMesh, launch_alone, state_of
from tests.support.ports import free_ports
from tests.support.postgres import PostgresServer

SETTINGS = {
    # As in production, but for the drain: above two checks of the edge, a second apart, and the time of one.
    "every": {
        "DRAIN_SECONDS": "3.5",
        "STOP_GRACE_SECONDS": "10",
        "HEARTBEAT_SECONDS": "15",
        "WATCH_POLL_MS": "500",
    },
    "reservation": {
        "DEPOSIT_DEADLINE_MS": "4000",
        "ATTEMPT_DEADLINE_SECONDS": "10",
        "HOLD_EXPIRE_SECONDS": "120",
    },
    "deposit": {
        "PROVIDER_TIMEOUT_MS": "2000",
        "CHARGE_TIMEOUT_MS": "7000",
        "PENDING_SETTLE_SECONDS": "12",
        "SETTLE_LEASE_SECONDS": "15",
    },
}
VISITORS, WATCHERS = 2, 2
"""On each way, beside staff and a guest who cannot wait; the watchers watch three things each."""
LEAST_TAKEN = 5
"""Calls that an instance has answered before the other one is told to stop."""
LEAST_CALLS = 50
"""Calls of a handover by all clients together, below which it proves nothing."""
NOTICED_SECONDS = 30.0
LOOK_SECONDS = 0.1
GONE_SECONDS = 25.0
FAULT_SECONDS = 5.0
KILLS = 4
"""At most so many stops of a service, until one has hit a call."""
IN_FLIGHT = 3
"""Calls at a service before one of its instances is killed."""


class Void(AssertionError):
    """The run proves nothing."""


@dataclass(frozen=True)
class Handover:
    """One service: from the start of the new instance to the end of the old one."""

    round: int
    service: str
    old_pid: int
    new_pid: int
    taken_before: int
    """Calls that the new one had answered when the old one was told to stop; of deposit, charges."""
    answered_after: int
    """Calls that the old one still answered then."""
    in_flight: int
    """Calls at this service at that moment, as the clients saw it."""
    calls: int
    """Calls of all clients that were answered from then on to its end."""
    seconds: float
    """From SIGTERM to its end."""

    def __str__(self) -> str:
        return (
            f"round {self.round}, {self.service}: pid {self.old_pid} -> {self.new_pid}, which had answered "
            f"{self.taken_before} calls; of {self.in_flight} in flight and later ones the old one answered "
            f"{self.answered_after}, and was gone after {self.seconds:.1f} s; {self.calls} calls meanwhile"
        )


@dataclass
class Outcome:
    """What the clients saw, and what was done to the services."""

    rounds: int
    handovers: list[Handover] = field(default_factory=list)
    answered: Counter[str] = field(default_factory=Counter)
    failed: list[str] = field(default_factory=list)
    ends: Counter[str] = field(default_factory=Counter)
    broken: list[str] = field(default_factory=list)

    def check(self) -> None:
        """Raises Void if it proves nothing, AssertionError if a call or a watch failed."""
        assert not self.failed and not self.broken, self
        void = [f"{one}: no call in flight" for one in self.handovers if not one.answered_after]
        void += [f"{one}: too few calls" for one in self.handovers if one.calls < LEAST_CALLS]
        void += [f"no call over {way}" for way in ("gRPC", "JSON") if not self.answered[way]]
        watches = ("WatchReservation", "WatchTimeline", "WatchBookings")
        void += [f"no {one} was ended by a stop" for one in watches if not self.ends[f"{one} {STOPPING}"]]
        if len(self.handovers) != self.rounds * len(SERVICES):
            void.append("not each service was replaced")
        if void:
            raise Void("\n".join(["VOID", *void, str(self)]))

    def __str__(self) -> str:
        ways = {way: self.answered[way] for way in ("gRPC", "JSON")}
        calls = sum(ways.values())
        watches = sum(self.ends.values())
        lines = [
            f"rounds {self.rounds}, handovers {len(self.handovers)}",
            f"unary calls {calls + len(self.failed)} ({', '.join(f'{w} {n}' for w, n in ways.items())}), "
            f"failed {len(self.failed)}",
            f"watches ended by their terminal message and begun again {watches} "
            f"({', '.join(f'{name} {count}' for name, count in sorted(self.ends.items()))}), "
            f"broken {len(self.broken)}",
            *(str(one) for one in self.handovers),
            *(f"FAILED {one}" for one in self.failed[:20]),
            *(f"BROKEN {one}" for one in self.broken[:20]),
        ]
        return "\n".join(lines)


class Instance(Part):
    """One of the two of a service. `taken` counts calls of `method`, or all."""

    method = ""

    def begin(self) -> None:
        """Starts it, without waiting; what it answers is counted from here on."""
        self._from = self._size()
        self.spawn()

    @property
    def taken(self) -> int:
        """Calls that it has answered since it was started."""
        return self._calls(self._from, f'/{self.method}"' if self.method else "")

    def told_to_stop(self) -> Callable[[], int]:
        """SIGTERM. Says how many calls it has answered since."""
        at = self._size()
        self.tell(signal.SIGTERM)
        return lambda: self._calls(at)

    def _size(self) -> int:
        return self.log.stat().st_size if self.log.exists() else 0

    def _calls(self, offset: int, of: str = "") -> int:
        with self.log.open("rb") as log:
            log.seek(offset)
            said = log.read().decode().splitlines()
        return sum('"message": "call"' in line and of in line for line in said)


class Pair:
    """The two instances of a service, of which between handovers one runs."""

    def __init__(self, mesh: RunningMesh, service: str, launch: Launch) -> None:
        one = mesh[service]
        port, metrics_port = free_ports(2)
        there = one.environment | {"PORT": str(port), "METRICS_PORT": str(metrics_port)}
        module = f"{service}_svc.main"
        folder = mesh.folder
        self.service = service
        logs = [folder / f"{service}-{number}.log" for number in (1, 2)]
        self.running = Instance(service, module, one.port, one.environment, logs[0], launch)
        self.resting = Instance(service, module, port, there, logs[1], launch)
        self.addresses = [self.running.address, self.resting.address]
        if service == "deposit":
            # The edge finds both by itself; that reservation does has to be seen.
            self.running.method = self.resting.method = "CreateDeposit"

    @property
    def both(self) -> tuple[Instance, Instance]:
        return self.running, self.resting

    def swap(self) -> None:
        self.running, self.resting = self.resting, self.running


@dataclass
class Scene:
    """A mesh of pairs behind an edge."""

    mesh: RunningMesh
    edge: RunningEdge
    pairs: dict[str, Pair]
    place: Place
    """With more seats than anybody asks for."""

    async def sees(self, service: str, well: int) -> None:
        """Until the edge finds so many instances of it well."""
        name = f"cluster.{service}.membership_healthy"
        said = ""
        async with asyncio.timeout(NOTICED_SECONDS), httpx.AsyncClient(base_url=self.edge.admin) as admin:
            while said != f"{name}: {well}":
                await asyncio.sleep(LOOK_SECONDS)
                said = (await admin.get("/stats", params={"filter": f"^{name}$"})).text.strip()


@asynccontextmanager
async def scene(
    folder: Path, broker: RunningBroker, postgres: PostgresServer, launch: Launch = launch_alone
) -> AsyncIterator[Scene]:
    """The first instance of each service runs, and the edge knows it."""
    databases = {name: postgres.fresh(f"{name}_svc") for name in SERVICES}
    mesh = RunningMesh(folder, broker.fresh_url(), databases=databases, settings=SETTINGS, launch=launch)
    pairs = {name: Pair(mesh, name, launch) for name in SERVICES}
    for one in pairs["reservation"].both:
        one.environment["DEPOSIT_ADDRESS"] = ",".join(pairs["deposit"].addresses)
    addresses: dict[str, Any] = {name: pair.addresses for name, pair in pairs.items()}
    edge = RunningEdge(mesh, folder / "edge", **addresses)
    async with AsyncExitStack() as stack:
        stack.push_async_callback(asyncio.to_thread, _end, [mesh["sandbox"], *_instances(pairs)])
        mesh["sandbox"].spawn()
        for pair in pairs.values():
            pair.running.begin()
        edge.spawn()
        stack.callback(edge.stop)
        for part in (mesh["sandbox"], *(pair.running for pair in pairs.values())):
            await asyncio.to_thread(part.wait_until_ready)
        await until(lambda: asyncio.to_thread(edge.is_live), bool, NOTICED_SECONDS)
        city = City(mesh)
        stack.push_async_callback(city.close)
        place = await city.place(AUTO, times=seats_for_all(), capacity=100_000)
        found = Scene(mesh, edge, pairs, place)
        for name in SERVICES:
            await found.sees(name, 1)
        yield found


def _instances(pairs: dict[str, Pair]) -> Iterable[Part]:
    for pair in pairs.values():
        yield from pair.both


def _end(parts: Iterable[Part]) -> None:
    """Twice told: without the waiting."""
    running = [part for part in parts if part.running]
    for part in running:
        part.tell(signal.SIGTERM)
        part.tell(signal.SIGTERM)
    for part in running:
        part.stop()


@asynccontextmanager
async def load(scene: Scene) -> AsyncIterator[Load]:
    """People at the edge, who have all begun."""
    ways = (OverGrpc(scene.edge.address), OverJson(scene.edge.url))
    try:
        people = Load(scene.mesh, scene.place, ways)
        try:
            await people.begin(VISITORS, WATCHERS)
            yield people
        finally:
            await people.leave()
    finally:
        for way in ways:
            await way.close()


async def rolling(scene: Scene, rounds: int, *, at_once: bool) -> Outcome:
    """Replaces each service `rounds` times, all of them `at_once` or one after the other; then looks at the
    books."""
    outcome = Outcome(rounds)
    async with load(scene) as people:
        for number in range(1, rounds + 1):
            groups: Sequence[Sequence[str]] = [SERVICES] if at_once else [[one] for one in SERVICES]
            for group in groups:
                outcome.handovers += await asyncio.gather(
                    *(_hand_over(scene, people, name, number) for name in group)
                )
    outcome.answered, outcome.failed = people.answered, people.failed
    outcome.ends, outcome.broken = people.ends, people.broken
    await books_agree(scene)
    return outcome


async def _hand_over(scene: Scene, people: Load, service: str, number: int) -> Handover:
    """Done again if by chance no call was at the one that was told to stop."""
    for _ in range(KILLS):
        handover = await _hand_over_once(scene, people, service, number)
        if handover.answered_after:
            break
    return handover


async def _hand_over_once(scene: Scene, people: Load, service: str, number: int) -> Handover:
    pair = scene.pairs[service]
    old, new = pair.running, pair.resting
    await _join(scene, pair)
    if service == "deposit":
        # The edge goes on to call who stops until it notices; reservation knows at once.
        await _busy(people, service)
    taken, in_flight, calls = new.taken, people.in_flight[service], people.calls
    old_pid, told = old.pid, time.monotonic()
    answered_since = old.told_to_stop()
    code = await asyncio.to_thread(old.wait_for_exit, GONE_SECONDS)
    if code != 0 or state_of(old_pid):
        raise Void(f"VOID: {service} (pid {old_pid}) ended with {code}, and not as it was asked to")
    handover = Handover(
        number,
        service,
        old_pid,
        new.pid,
        taken,
        answered_since(),
        in_flight,
        people.calls - calls,
        time.monotonic() - told,
    )
    pair.swap()
    await scene.sees(service, 1)
    return handover


async def _join(scene: Scene, pair: Pair) -> None:
    """The second instance starts, is found well and takes its share."""
    new = pair.resting
    new.begin()
    await asyncio.to_thread(new.wait_until_ready)
    await scene.sees(pair.service, 2)
    async with asyncio.timeout(NOTICED_SECONDS):
        while new.taken < LEAST_TAKEN:  # noqa: ASYNC110  a log has no event
            await asyncio.sleep(LOOK_SECONDS)


async def killed(scene: Scene, service: str) -> list[str]:
    """The control: one of two instances is killed in the middle of calls. What failed for it; done several
    times if nothing did, since all calls may by chance have been at the other one."""
    pair = scene.pairs[service]
    async with load(scene) as people:
        for _ in range(KILLS):
            await _join(scene, pair)
            pid = pair.running.pid
            await _busy(people, service)
            os.kill(pid, signal.SIGKILL)
            await asyncio.to_thread(pair.running.wait_for_exit)
            if state_of(pid):
                raise Void(f"VOID: {service} (pid {pid}) was killed and lives")
            pair.swap()
            end = time.monotonic() + FAULT_SECONDS
            while not people.failed and time.monotonic() < end:  # noqa: ASYNC110  a list has no event
                await asyncio.sleep(LOOK_SECONDS)
            if people.failed:
                break
    return people.failed


async def undrained(scene: Scene, service: str) -> list[str]:
    """What fails if one of two instances is stopped by SIGTERM, but closes its door at once."""
    pair = scene.pairs[service]
    hasty = pair.resting
    usual = dict(hasty.environment)
    hasty.environment["DRAIN_SECONDS"] = "0"
    try:
        async with load(scene) as people:
            for _ in range(KILLS):
                await _join(scene, pair)
                await _busy(people, service)
                hasty.tell(signal.SIGTERM)
                await asyncio.to_thread(hasty.wait_for_exit, GONE_SECONDS)
    finally:
        hasty.environment = usual
    return people.failed


async def _busy(people: Load, service: str) -> None:
    """Until enough calls are at a service that some of them are at either instance."""
    async with asyncio.timeout(NOTICED_SECONDS):
        while people.in_flight[service] < IN_FLIGHT:  # noqa: ASYNC110  a counter has no event
            await asyncio.sleep(0)


async def books_agree(scene: Scene, limits: Limits | None = None) -> None:
    """Money, seats, bookings and events, once everything has come to rest."""
    report = await until(
        lambda: audit(sources(scene.mesh), limits, patience_seconds=0.5),
        lambda found: found.clean and not found.pending,
        QUIET_SECONDS,
    )
    assert not report.skipped
