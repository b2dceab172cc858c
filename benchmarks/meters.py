"""What a running mesh has used and done so far, read from outside: the kernel's record of its processes, its
databases, its services' metrics and its broker's own counters."""

from __future__ import annotations

import asyncio
import os
import urllib.request
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from prometheus_client.parser import text_string_to_metric_families
from psycopg import sql
from sqlalchemy import Engine, create_engine, text
from sqlalchemy.pool import NullPool, StaticPool

from benchmarks.databases import PostgreSQL
from local_mesh import broker, machine, parts
from local_mesh.commands import Mesh
from local_mesh.settings import BEHIND_THE_EDGE, PREFIX

PARTS: Mapping[str, str] = {
    "reservation": "reservation",
    "deposit": "deposit",
    "restaurant": "restaurant",
    "history": "history",
    "sandbox": "sandbox",
    "epmd": "RabbitMQ",
    "rabbitmq": "RabbitMQ",
    "policy": "proxy to deposit",
    "edge": "edge",
}
"""How a part of the mesh is called in a table."""
SUPERVISOR, POSTGRESQL, GENERATOR = "supervisor", "PostgreSQL", "load generator"

PENDING = ("PENDING_DEPOSIT", "PENDING_ACCEPTANCE")
CONFIRMED = "CONFIRMED"
SETTLED_SECONDS = 120.0
POLL_SECONDS = 0.02
QUIET_SHARE = 0.25
QUIET_SECONDS = 0.5
"""What all parts of a mesh without work use together, and how long they are looked at."""
DATA = "data"
"""Of the broker, in its folder."""
GROUPS = "dinemesh_store_group_changes_count"


def processor_seconds(pid: int) -> float:
    """User and system time that a process has used so far, with all of its descendants, those included that
    have ended and were waited for."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except FileNotFoundError:
        return 0.0  # it has ended meanwhile, and its parent has its time
    own = sum(int(one) for one in fields[11:15]) / os.sysconf("SC_CLK_TCK")
    return own + sum(processor_seconds(child) for child in machine.children_of(pid))


def own_seconds() -> float:
    """The same of this process alone."""
    times = os.times()
    return times.user + times.system


@dataclass(frozen=True)
class Counts:
    """What a mesh has done so far; of two of them the difference is what it did meanwhile."""

    commits: float
    """Transactions that wrote, of the four services."""
    published: int | None
    """AMQP messages that publishers sent; None if the broker is not the mesh's own."""
    delivered: int | None
    """AMQP messages that were handed to consumers."""
    stored: int
    """Bytes in the four databases, their indices included."""
    logged: int | None
    """Bytes in PostgreSQL's write-ahead log."""
    streamed: int | None
    """Bytes in the log of events, which is a stream of the broker."""


class Meter:
    """Of one running mesh. Close it while the mesh runs."""

    def __init__(self, mesh: Mesh, postgresql: PostgreSQL | None) -> None:
        self._mesh = mesh
        self._postgresql = postgresql
        supervisor = mesh.supervisor
        assert supervisor is not None
        try:
            self._supervisor = supervisor.pid
            self._pids = {name: part.pid for name, part in supervisor.parts().items() if part.pid}
        finally:
            supervisor.close()
        self._files = (
            broker.unpack_broker(broker.project_cache(), lambda _: None) if mesh.settings.own_broker else None
        )
        environments = {part.name: part.environment for part in parts.build(mesh.settings, mesh.places, None)}
        self._urls = {name: environments[name][PREFIX + "DATABASE_URL"] for name in BEHIND_THE_EDGE}
        # One session for all looks while calls are measured.
        self._reservations = create_engine(
            self._urls["reservation"], poolclass=StaticPool, isolation_level="AUTOCOMMIT"
        )

    def close(self) -> None:
        self._reservations.dispose()

    def processor(self) -> dict[str, float]:
        """Seconds of each part, by its name in a table."""
        found = dict.fromkeys((*PARTS.values(), SUPERVISOR), 0.0)
        for name, pid in self._pids.items():
            found[PARTS[name]] += processor_seconds(pid)
        others = set(machine.children_of(self._supervisor)) - set(self._pids.values())
        found[SUPERVISOR] = _alone(self._supervisor) + sum(map(processor_seconds, others))
        if self._postgresql is not None:
            found[POSTGRESQL] = processor_seconds(self._postgresql.pid)
        found[GENERATOR] = own_seconds()
        return found

    def memory(self) -> dict[str, float]:
        """Megabytes of each part; PostgreSQL's, most of which its processes share, is left out."""
        found: Counter[str] = Counter()
        for name, pid in self._pids.items():
            found[PARTS[name]] += machine.memory_megabytes(pid)
        return {part: float(megabytes) for part, megabytes in found.items()}

    async def quiet(self) -> None:
        """Waits until what went before is worked off, in all parts. Raises TimeoutError."""
        async with asyncio.timeout(SETTLED_SECONDS):
            while True:
                before = self._without_generator()
                await asyncio.sleep(QUIET_SECONDS)
                if self._without_generator() - before < QUIET_SHARE * QUIET_SECONDS:
                    return

    async def drained(self) -> None:
        """Waits until no reservation is on its way any more. Raises TimeoutError."""
        async with asyncio.timeout(SETTLED_SECONDS):
            while any(self.reservations()[state] for state in PENDING):  # noqa: ASYNC110  # of other processes
                await asyncio.sleep(POLL_SECONDS)

    def reservations(self) -> Counter[str]:
        """How many there are, by state."""
        with self._reservations.connect() as connection:
            rows = connection.execute(text("SELECT state, count(*) FROM reservations GROUP BY state")).all()
        return Counter({str(state): int(count) for state, count in rows})

    def is_confirmed(self, reservation_id: str) -> bool:
        """One look by its key, which costs the services nothing."""
        with self._reservations.connect() as connection:
            state = connection.scalar(
                text("SELECT state FROM reservations WHERE reservation_id = :id"), {"id": reservation_id}
            )
        return bool(state == CONFIRMED)

    def counts(self) -> Counts:
        """Costs the services some milliseconds: not while something is measured."""
        return Counts(
            commits=sum(self._metric(service, GROUPS) for service in BEHIND_THE_EDGE),
            published=self._broker("messages_received_total"),
            delivered=self._broker("messages_delivered_total"),
            stored=sum(map(bytes_in, self._urls.values())),
            logged=self._written_ahead(),
            streamed=self._streamed(),
        )

    def _without_generator(self) -> float:
        return sum(seconds for part, seconds in self.processor().items() if part != GENERATOR)

    def _metric(self, service: str, name: str) -> float:
        port = self._mesh.settings.services[service]["METRICS_PORT"]
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=10) as answer:
            families = list(text_string_to_metric_families(answer.read().decode()))
        found = [sample.value for family in families for sample in family.samples if sample.name == name]
        if not found:
            raise LookupError(f"{service} has no metric {name}")
        return sum(found)

    def _broker(self, counter: str) -> int | None:
        if self._files is None:
            return None
        settings = self._mesh.settings
        ports = broker.BrokerPorts(settings.rabbitmq_port, settings.rabbitmq_dist_port, settings.epmd_port)
        counters = f"maps:get({counter}, Group, 0) || Group <- maps:values(rabbit_global_counters:overview())"
        said = broker.evaluate(self._files, self._mesh.places.rabbitmq, ports, f"lists:sum([{counters}])")
        return int(said)

    def _streamed(self) -> int | None:
        if self._files is None:
            return None
        segments = self._mesh.places.rabbitmq.glob(f"{DATA}/*/stream/**/*")
        return sum(file.stat().st_size for file in segments if file.is_file())

    def _written_ahead(self) -> int | None:
        if self._postgresql is None:
            return None
        ((logged,),) = self._postgresql.ask(sql.SQL("SELECT pg_wal_lsn_diff(pg_current_wal_lsn(), '0/0')"))
        return int(logged)


def _alone(pid: int) -> float:
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def bytes_in(url: str) -> int:
    """How large a database is, with its indices."""
    engine: Engine = create_engine(url, poolclass=NullPool)
    of = {
        "sqlite": "SELECT page_count * page_size FROM pragma_page_count(), pragma_page_size()",
        "postgresql": "SELECT pg_database_size(current_database())",
    }
    with engine.connect() as connection:
        found = connection.scalar(text(of[engine.dialect.name]))
    engine.dispose()
    return int(found or 0)
