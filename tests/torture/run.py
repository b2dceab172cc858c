"""One run: clients and faults for some seconds, then healing, then the books.

After the healing (everything runs again, dead letters are sent back first, the provider's refunds work, an
operator has retried what was refused) the mesh must come to rest, and what it then says must be true.
"""

from __future__ import annotations

import asyncio
import json
import os
import sys
import time
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta

import grpc

from dinemesh.deposit.v1 import deposit_service_pb2
from dinemesh.kit.bus import Bus
from dinemesh.sandbox.v1 import sandbox_pb2
from local_mesh.broker import RunningBroker
from local_mesh.settings import service_settings
from operations import events, snapshot
from operations.audit import look as audit_once
from operations.broker import QUEUES
from operations.limits import Limits
from operations.report import Report
from operations.snapshot import Sources
from operations.streams import Unreadable
from tests.mesh.people import City
from tests.support.broker_cluster import RunningCluster
from tests.support.mesh import ROOT, RunningMesh
from tests.support.process import NotHealthy
from tests.torture import books, clocks, plan, tales, truth
from tests.torture.databases import Database, plain
from tests.torture.faults import CHARGES_IN_FLIGHT, NotWitnessed, Scene, Witness, strike
from tests.torture.plan import DATABASE_FAULTS, DISK_FAULTS, PROCESSES, RACES, Blow, Fault, Story
from tests.torture.record import Answer, Call, Record
from tests.torture.town import Town, Visitor, build

CLIENTS = 12
CLOSING_SECONDS = 90.0
"""How long after the healing a client may repeat until its answer is final."""
REST_SECONDS = 120.0
"""How long the mesh may take to come to rest; above every lease and back-off."""
LEAST_STORIES = 20
PUSHES = (0.0, 1.0, 2.0, 4.0, 8.0)
"""Of races of which only one side has won so far: a round each, after the faults, with so many seconds more
of a start. A slow machine needs it; the last is beyond what any side of a race takes."""
ALL_FAULTS_FROM = 240.0
"""A run of so many seconds has to see every kind of fault."""

SETTINGS = {
    "deposit": {"CHARGES_IN_FLIGHT_LIMIT": str(CHARGES_IN_FLIGHT)},
    # A run has few bookings, so few may end at once.
    "reservation": {
        name: str(clocks.LAPSE_FLOOR) for name in ("LAPSE_FLOOR",) if name in service_settings("reservation")
    },
}


@dataclass
class Outcome:
    """What a run did, saw and found. It holds without `violations` and reasons why it is `void`."""

    seed: int
    seconds: float
    engine: str
    choices: str
    faults: str = ""
    """The names of those that it was held to, if it was."""
    record: Record = field(default_factory=Record)
    stories: Counter[str] = field(default_factory=Counter)
    races: dict[str, Counter[str]] = field(default_factory=dict)
    extra_races: int = 0
    """Run after the faults, for a side that had not won."""
    witnesses: list[Witness] = field(default_factory=list)
    void: list[str] = field(default_factory=list)
    violations: list[str] = field(default_factory=list)
    endings: Counter[str] = field(default_factory=Counter)
    refused_while_deposit_was_down: list[float] = field(default_factory=list)
    refused_while_database_was_down: list[float] = field(default_factory=list)
    """By the service whose database it was, with a retry time."""
    redriven: int = 0
    retried_refunds: int = 0
    rest_seconds: float = 0.0
    events: int = 0
    logged_errors: Counter[str] = field(default_factory=Counter)

    @property
    def holds(self) -> bool:
        return not self.violations and not self.void


async def torture(
    seed: int,
    seconds: float,
    mesh: RunningMesh,
    broker: RunningBroker | RunningCluster,
    *,
    engine: str = "sqlite",
    faults: Collection[Fault] | None = None,
    databases: Mapping[str, Database] | None = None,
    blows: Sequence[Sequence[Blow]] = (),
    clients: int = CLIENTS,
) -> Outcome:
    """Runs it on a mesh that has just been started.

    `faults`: which of them the seed chooses from; by default all that this mesh and its broker can have.
    `databases`: where they have disks and clocks of their own. With `blows`, sequences that happen besides,
    each one blow after the other, the run ends after the last of them.
    """
    databases = databases or plain(mesh.databases)
    chosen = possible(databases, broker) if faults is None else frozenset(faults)
    if impossible := chosen - possible(databases, broker):
        raise ValueError(f"this mesh cannot have: {', '.join(sorted(impossible))}")
    names = "" if faults is None else ",".join(sorted(fault.name.lower() for fault in faults))
    outcome = Outcome(seed, seconds, engine, plan.digest(seed), names)
    city = City(mesh)
    try:
        places = await build(mesh, city, seconds)
        town = Town(city, mesh, places, outcome.record)
        for node in broker.nodes if isinstance(broker, RunningCluster) else [broker]:
            await asyncio.to_thread(node.write_queue_directory)
        async with _on_the_bus(mesh) as bus:
            lanes = plan.lanes(seed, chosen)
            run = _Run(outcome, town, mesh, broker, bus, databases, time.monotonic() + seconds)
            await run.live(plan.stories(seed), lanes, blows, clients)
            await run.rest()
            await run.ask_again()
            await run.judge()
            if (lanes or blows) and not outcome.witnesses:
                outcome.void.append("no fault was witnessed")
            if not blows and seconds >= ALL_FAULTS_FROM:
                outcome.void += _unseen(outcome.witnesses, chosen)
        await run.rebuild_history()
    except (NotHealthy, Unreadable) as error:
        outcome.violations.append(f"the mesh does not come back: {error}")
    finally:
        await city.close()
    outcome.logged_errors = _logged_errors(mesh)
    return outcome


def possible(databases: Mapping[str, Database], broker: RunningBroker | RunningCluster) -> frozenset[Fault]:
    """The faults that there can be: not every database has a disk or a clock of its own, not every broker has
    several nodes."""
    never = set() if isinstance(broker, RunningCluster) else {Fault.KILL_NODE}
    if any(one.disk is None for one in databases.values()):
        never |= {*DISK_FAULTS, Fault.CLOCK_JUMP}
    return frozenset(Fault) - never


class _Run:
    def __init__(
        self,
        outcome: Outcome,
        town: Town,
        mesh: RunningMesh,
        broker: RunningBroker | RunningCluster,
        bus: Bus,
        databases: Mapping[str, Database],
        end: float,
    ) -> None:
        self._outcome = outcome
        self._town = town
        self._mesh = mesh
        self._end = end
        self._scene = Scene(town, mesh, broker, bus, databases, self._begin, lambda: self._over)
        self._told: list[Story] = []
        self._crowd: list[asyncio.Future[object]] = []
        self._sources = Sources(
            **{
                f"{name}_db": mesh.databases[name]
                for name in ("reservation", "deposit", "restaurant", "history")
            },
            provider=mesh["sandbox"].address,
            amqp=mesh.operators_amqp_url,
        )

    @property
    def _over(self) -> bool:
        return time.monotonic() > self._end

    async def live(
        self,
        stories: Iterator[Story],
        lanes: Sequence[Iterator[Blow]],
        blows: Sequence[Sequence[Blow]],
        many: int,
    ) -> None:
        """Stories and faults, then the healing; ends when the last story has ended."""
        async with asyncio.TaskGroup() as talking:
            for _ in range(many):
                talking.create_task(self._client(stories))
            async with asyncio.TaskGroup() as striking:
                for lane in lanes:
                    striking.create_task(self._faults(lane))
                if blows:
                    await asyncio.gather(*map(self._faults, blows))
                    self._end = time.monotonic()
            await asyncio.sleep(max(0.0, self._end - time.monotonic()))
            await self._heal()
            self._town.closing = time.monotonic() + CLOSING_SECONDS
        await asyncio.gather(*self._crowd)
        await self._run_races(stories)

    async def _run_races(self, stories: Iterator[Story]) -> None:
        """A short run may not have come to each race twice: the next ones of the sequence, until both sides
        have won."""
        for push in PUSHES:
            self._count_races(await books.read(self._sources))
            missing = {race for race, won in self._outcome.races.items() if len(won) < 2}
            if not missing:
                return
            wanted = {(race, early) for race in missing for early in (True, False)}
            more: list[Story] = []
            while wanted:
                story = next(stories)
                if (story.tale, story.early) in wanted:
                    wanted.remove((story.tale, story.early))
                    more.append(story)
            self._outcome.extra_races += len(more)
            self._town.closing = time.monotonic() + CLOSING_SECONDS
            await asyncio.gather(*(self._tell(story, push) for story in more))

    def _begin(self, story: Awaitable[object]) -> None:
        self._crowd.append(asyncio.ensure_future(story))

    async def _client(self, stories: Iterator[Story]) -> None:
        while not self._over:
            await self._tell(next(stories))

    async def _tell(self, story: Story, push: float = 0.0) -> None:
        self._told.append(story)
        await tales.live(self._town, story, push)
        self._outcome.stories[story.tale] += 1

    async def _faults(self, lane: Iterable[Blow]) -> None:
        for blow in lane:
            await asyncio.sleep(blow.after)
            if self._over:
                return
            self._find_the_dead()
            try:
                self._outcome.witnesses.append(await strike(self._scene, blow))
            except NotWitnessed as error:
                # Work runs out with the time: a fault that came too late for it was none.
                if not self._over:
                    self._outcome.void.append(f"{blow.kind}: {error}")
            except NotHealthy as error:
                self._outcome.violations.append(f"{blow.kind}: {error}")
                self._end = time.monotonic()

    def _find_the_dead(self) -> None:
        for name, part in self._mesh.parts.items():
            if part.died and not self._scene.locks[name].locked():
                self._outcome.violations.append(f"{name} ended by itself.\n{part.last_words(20)}")

    async def _heal(self) -> None:
        """Everything runs again; dead letters go back first."""
        for part in self._mesh.parts.values():
            if part.hangs:
                part.resume()
            if not part.running:
                part.spawn()
        for part in self._mesh.parts.values():
            await asyncio.to_thread(part.wait_until_ready)
        sent = await events.redrive(self._mesh.operators_amqp_url, QUEUES)
        self._outcome.redriven = sum(sent.values())

    async def rest(self) -> None:
        """Waits until nothing is pending and the books agree; refunds that were refused are retried."""
        begin = time.monotonic()
        report: Report | None = None
        while time.monotonic() < begin + REST_SECONDS:
            await self._town.city.doors.sandbox.LiftRefundBlock(
                sandbox_pb2.LiftRefundBlockRequest(all_charges=True), timeout=10
            )
            await self._retry_refunds()
            report = await audit_once(self._sources, Limits(timedelta(0), timedelta(0)))
            if report.clean and not report.pending:
                self._outcome.rest_seconds = time.monotonic() - begin
                return
            await asyncio.sleep(0.5)
        assert report is not None
        self._outcome.violations += [
            f"audit: {one.check} {one.subject}: {one.what}" for one in report.violations
        ]
        self._outcome.violations += [
            f"still pending: {one.state} {one.subject}: {one.what}" for one in report.pending
        ]

    async def _retry_refunds(self) -> None:
        for refund in (await snapshot.take(self._sources)).refunds:
            if refund.state == "FAILED":
                request = deposit_service_pb2.RetryRefundRequest(
                    deposit_id=refund.deposit_id, refund_id=refund.refund_id
                )
                with suppress(grpc.aio.AioRpcError):
                    await self._town.city.doors.deposit.RetryRefund(
                        request, metadata=self._town.city.operator, timeout=10
                    )
                    self._outcome.retried_refunds += 1

    async def ask_again(self) -> None:
        """Every request that was answered for good, once more: the same answer."""
        self._town.closing = None
        last: dict[str, Answer] = {}
        for answer in self._outcome.record.answers:
            if answer.call is Call.RESERVE:
                last[answer.customer] = answer
        limit = asyncio.Semaphore(CLIENTS)

        async def again(visitor: Visitor) -> None:
            async with limit:
                await visitor.reserve()

        await asyncio.gather(
            *(
                again(visitor)
                for visitor in self._town.visitors
                if visitor.name in last and last[visitor.name].outcome in ("ok", "CARD_DECLINED")
            )
        )

    async def judge(self) -> None:
        outcome = self._outcome
        found = await books.read(self._sources)
        outcome.violations += [f"lie: {lie}" for lie in truth.check(outcome.record, found)]
        outcome.events = len(found.snapshot.outgoing)
        outcome.violations += [
            f"lost: {queue} never took {event_id} ({key})" for queue, key, event_id in books.missing(found)
        ]
        outcome.violations += clocks.complaints(outcome.record.jumps, found)
        for slot in found.snapshot.slots:
            if slot.sold > slot.capacity:
                outcome.violations.append(f"oversold: {slot.sold} of {slot.capacity} at {slot.dine_time}")
        self._find_the_dead()
        self._count_endings()
        self._count_races(found)
        for race, won_by in outcome.races.items():
            if len(won_by) < 2:
                outcome.void.append(f"race {race}: only one side ever won: {dict(won_by)}")
        self._measure_refusals()
        told = sum(outcome.stories.values())
        if told < LEAST_STORIES:
            outcome.void.append(f"only {told} stories were told")

    def _count_endings(self) -> None:
        record = self._outcome.record
        tries: dict[str, list[Answer]] = {}
        for answer in record.answers:
            if answer.call is Call.RESERVE:
                tries.setdefault(answer.request_id, []).append(answer)
        for request_id, mine in tries.items():
            best = next((one for one in mine if one.good), mine[-1])
            if request_id in record.given_up and not best.good:
                self._outcome.endings["given up by the client"] += 1
            else:
                self._outcome.endings["booked" if best.good else best.outcome] += 1
            self._outcome.endings["  of them repeated"] += len(mine) > 2

    def _count_races(self, found: books.Books) -> None:
        outcome = self._outcome
        outcome.races = {race: Counter() for race in RACES}
        for story in self._told:
            won = tales.outcome(story, found) if story.tale in RACES else None
            if won is not None:
                outcome.races[story.tale][won] += 1

    def _measure_refusals(self) -> None:
        down = [
            (one.begin, one.end)
            for one in self._outcome.witnesses
            if one.blow.target == "deposit" and one.blow.fault in (Fault.KILL, Fault.PAUSE)
        ]
        self._outcome.refused_while_deposit_was_down = sorted(
            answer.end - answer.begin
            for answer in self._outcome.record.answers
            if answer.call is Call.RESERVE
            and answer.outcome == "TRY_AGAIN_LATER"
            and any(begin <= answer.begin <= end for begin, end in down)
        )
        self._outcome.refused_while_database_was_down = sorted(
            answer.end - answer.begin
            for one in self._outcome.witnesses
            if one.blow.fault in DATABASE_FAULTS - {Fault.CLOCK_JUMP}
            for answer in self._outcome.record.answers
            if answer.service == one.blow.target
            and one.begin <= answer.begin <= one.end
            and answer.refusal is not None
            and answer.refusal.retry_after is not None
        )

    async def rebuild_history(self) -> None:
        """History dropped and read from the log again equals the live one."""
        part = self._mesh["history"]
        await asyncio.to_thread(part.stop)
        kept = {key: value for key, value in os.environ.items() if not key.startswith("DINEMESH_")}
        process = await asyncio.create_subprocess_exec(
            "setpriv",
            "--pdeathsig",
            "KILL",
            "--",
            sys.executable,
            "-m",
            "history_svc.main",
            "rebuild",
            env=kept | {f"DINEMESH_{key}": value for key, value in part.environment.items()},
            cwd=ROOT,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.STDOUT,
        )
        said = (await asyncio.wait_for(process.communicate(), 120))[0].decode()
        if process.returncode != 0 or not said.endswith("the same as before\n") or "not the same" in said:
            self._outcome.violations.append(f"history differs from its rebuild: {said.strip()}")


def _unseen(witnesses: Sequence[Witness], chosen: frozenset[Fault]) -> list[str]:
    seen = {one.blow.fault for one in witnesses}
    killed = {one.blow.target for one in witnesses if one.blow.fault is Fault.KILL}
    missing = [f"never happened: {fault}" for fault in Fault if fault in chosen - seen]
    if Fault.KILL in chosen:
        missing += [f"never killed: {name}" for name in PROCESSES if name not in killed]
    return missing


@asynccontextmanager
async def _on_the_bus(mesh: RunningMesh) -> AsyncIterator[Bus]:
    bus = Bus(mesh.amqp_url, "torture")
    running = asyncio.create_task(bus.run())
    assert await bus.wait_connected(15)
    try:
        yield bus
    finally:
        running.cancel()
        await asyncio.gather(running, return_exceptions=True)


def _logged_errors(mesh: RunningMesh) -> Counter[str]:
    """What the services themselves logged as errors, by service and the beginning of the message."""
    found: Counter[str] = Counter()
    for name, part in mesh.parts.items():
        for line in part.log.read_text(errors="replace").splitlines():
            with suppress(ValueError):
                said = json.loads(line)
                if isinstance(said, dict) and said.get("level") in ("ERROR", "CRITICAL"):
                    message = " ".join(str(said.get("message")).split()[:8])
                    last = str(said.get("exc_info", "")).strip().rpartition("\n")[2][:120]
                    found[f"{name}: {message} {last}".strip()] += 1
    return found


def percentile(values: list[float], part: float) -> float:
    """Of sorted values; 0 if there are none."""
    return values[min(len(values) - 1, int(len(values) * part))] if values else 0.0


def describe(outcome: Outcome) -> str:
    """For a person, with the command that replays the same choices."""
    lines = [f"seed {outcome.seed}, {outcome.seconds:g} s on {outcome.engine}, choices {outcome.choices}"]
    actions: dict[str, Counter[str]] = {}
    for answer in outcome.record.answers:
        actions.setdefault(answer.call, Counter())[answer.outcome] += 1
    total = len(outcome.record.answers)
    lines.append(f"{sum(outcome.stories.values())} stories, {total} calls:")
    lines += [f"  {call:<9} {_counted(counts)}" for call, counts in sorted(actions.items())]
    lines.append(f"requests to reserve: {_counted(outcome.endings)}")
    lines.append(f"races ({outcome.extra_races} of them after the faults, for a side that had not won):")
    lines += [f"  {race}: {_counted(won)}" for race, won in outcome.races.items()]
    by_kind: dict[str, list[Witness]] = {}
    for one in outcome.witnesses:
        by_kind.setdefault(one.blow.kind, []).append(one)
    lines.append(f"{len(outcome.witnesses)} faults, each with its witness:")
    lines += [f"  {len(seen):3} {kind}; the last: {seen[-1].what}" for kind, seen in sorted(by_kind.items())]
    refused = outcome.refused_while_deposit_was_down
    lines.append(
        f"{len(refused)} refusals while deposit was down: p50 {percentile(refused, 0.5) * 1000:.0f} ms, "
        f"p99 {percentile(refused, 0.99) * 1000:.0f} ms; each named a retry time"
    )
    refused = outcome.refused_while_database_was_down
    lines.append(
        f"{len(refused)} refusals with a retry time by a service whose database was down: "
        f"p50 {percentile(refused, 0.5) * 1000:.0f} ms, p99 {percentile(refused, 0.99) * 1000:.0f} ms"
    )
    lines.append(
        f"healed: {outcome.redriven} dead letters sent back, {outcome.retried_refunds} refunds retried, "
        f"at rest after {outcome.rest_seconds:.1f} s, {outcome.events} events taken by all their subscribers"
    )
    if outcome.logged_errors:
        lines.append("logged as errors by the services:")
        lines += [f"  {count:3} {what}" for what, count in outcome.logged_errors.most_common(20)]
    lines += [f"VOID: {reason}" for reason in outcome.void]
    if outcome.violations:
        lines.append("the faults by the clock of the logs:")
        lines += [f"  {_clock(one.begin)} to {_clock(one.end)} {one.blow.kind}" for one in _by_time(outcome)]
    lines.append(f"{len(outcome.violations)} violations")
    lines += [f"VIOLATION: {one}" for one in outcome.violations]
    if not outcome.holds:
        engine = f" --engine {outcome.engine}" if outcome.engine != "sqlite" else ""
        faults = f" --faults {outcome.faults}" if outcome.faults else ""
        command = (
            f"python -m tests.torture --seconds {outcome.seconds:g} --seed {outcome.seed}{engine}{faults}"
        )
        lines.append(f"to replay the same choices: {command}")
    return "\n".join(lines)


def _by_time(outcome: Outcome) -> list[Witness]:
    return sorted(outcome.witnesses, key=lambda one: one.begin)


def _clock(monotonic: float) -> str:
    moment = datetime.fromtimestamp(time.time() - time.monotonic() + monotonic, UTC)
    return f"{moment:%H:%M:%S}"


def _counted(counts: Counter[str]) -> str:
    return ", ".join(f"{what} {count}" for what, count in counts.most_common()) or "none"
