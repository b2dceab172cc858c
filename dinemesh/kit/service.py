"""One process of the mesh: its parts by name, started in order, stopped without failing a call."""

from __future__ import annotations

import asyncio
import functools
import gc
import logging
import signal
import sys
from collections.abc import Awaitable, Callable, Coroutine, Mapping, Sequence
from contextlib import suppress
from typing import Any, NoReturn

import grpc
import uvloop
from google.protobuf import descriptor_pool
from sqlalchemy import Table, text
from sqlalchemy.exc import DBAPIError, InterfaceError, OperationalError

from dinemesh.kit import crash, engines, migrate, reflection
from dinemesh.kit import log as logs
from dinemesh.kit.bus import Bus
from dinemesh.kit.canaries import Canaries
from dinemesh.kit.consumer import Consumer
from dinemesh.kit.health import Health
from dinemesh.kit.identity import Verifier
from dinemesh.kit.interceptors import ANYONE, Access, Chain, Limit
from dinemesh.kit.relay import Relay
from dinemesh.kit.retention import PASS_SECONDS, Expiring, Retention
from dinemesh.kit.settings import ServiceSettings
from dinemesh.kit.store import Store, StoreInUse, Transaction
from dinemesh.kit.store_errors import CommitInDoubt, StoreUnavailable
from dinemesh.kit.telemetry import MetricsServer
from dinemesh.kit.watch import Changes, Pace
from dinemesh.kit.workers import Background, Periodic, Worker, cancel, keep_running

__all__ = ["ANYONE", "Access", "Limit", "Service", "main"]

log = logging.getLogger(__name__)

EXIT_SETTINGS = 2
EXIT_TAKEN = 3

# Objects, then rounds, after which cycles are searched for; by itself Python begins at 700 objects.
GC_THRESHOLDS = 20_000, 10, 10

# Work is taken without a broker, by promise: one that is away holds up the start this long and no longer.
BROKER_SECONDS = 3.0
CHECK_SECONDS = 1.0
CHECK_TIMEOUT_SECONDS = 2.0
# One slow answer of the database is not an outage.
CHECKS_UNTIL_NOT_READY = 3
SET_UP_RETRY_SECONDS = 1.0
# Who pings more often is sent away.
PING_INTERVAL_MS = 10_000
DEAD_LETTER_COUNT_SECONDS = 15.0
OUTBOX_COUNT_SECONDS = 5.0

Check = Callable[[], Awaitable[None]]


class Service:
    """The parts of one process, made in the event loop. `run` starts them in order, stops them in reverse.

    `background` is for work that must finish although its caller left, `changes` and `pace` are for watches,
    `health` is told by `run` when the service is ready.
    """

    def __init__(self, name: str, settings: ServiceSettings) -> None:
        """Exits with 2 if the key file cannot be used."""
        logs.setup(name, settings.log_level)
        self.name = name
        self.settings = settings
        self.background = Background()
        # Of the reader threads, one is left for calls, however many watches read.
        self.changes = Changes(max(1, settings.reader_threads - 1))
        self.pace = Pace.of(settings)
        self.health = Health()
        self.port = 0
        self.metrics_port = 0
        try:
            verifier = Verifier(settings.jwks_file)
        except (OSError, ValueError) as error:
            _give_up(EXIT_SETTINGS, f"{name}: DINEMESH_JWKS_FILE: {error}")
        self._chain = Chain(
            verifier,
            in_flight_limit=settings.in_flight_limit,
            streams_per_subject=settings.streams_per_subject,
        )
        self._chain.open = False
        self._server = grpc.aio.server(interceptors=[self._chain], options=_options(settings))
        self.health.add_to(self._server)
        self._served: list[str] = []
        self._set_up: list[tuple[str, Check]] = []
        self._checks: list[tuple[str, Check]] = []
        self._stores: list[Store] = []
        self._look = asyncio.Event()
        self._workers: list[tuple[str, Worker]] = []
        self._consumers: list[Consumer] = []
        self._bus: Bus | None = None
        self._closers: list[Callable[[], Awaitable[None]]] = []
        self._running: list[asyncio.Task[None]] = []
        self._metrics: MetricsServer | None = None
        self._stop = asyncio.Event()
        self._hurry = asyncio.Event()

    def add_servicer(
        self,
        add_to_server: Callable[[Any, Any], None],
        servicer: object,
        service_name: str,
        access: Mapping[str, Access],
        limits: Mapping[str, Limit] | None = None,
    ) -> None:
        """Serves `service_name`, its full name in the contract. The tables go by full method: `/service/Rpc`.

        Raises ValueError for a method without access, and for one that the contract lacks.
        """
        contract = descriptor_pool.Default().FindServiceByName(service_name)
        methods = {f"/{service_name}/{method.name}" for method in contract.methods}
        if set(access) != methods:
            raise ValueError(f"access and contract differ: {sorted(set(access) ^ methods)}")
        if strange := set(limits or ()) - methods:
            raise ValueError(f"limits for unknown methods: {sorted(strange)}")
        add_to_server(servicer, self._server)
        self._served.append(service_name)
        self._chain.allow(access, limits or {})
        self.health.name(service_name)

    def open_store(self, package: str) -> Store:
        """The service's own database by its settings, with the schema of `package` (see `use_store`)."""
        settings = self.settings
        store = Store.open(
            settings.database_url,
            group=settings.group_commit,
            queue_limit=settings.store_queue_limit,
            readers=settings.reader_threads,
        )
        self.use_store(store, package)
        return store

    def use_store(self, store: Store, package: str) -> None:
        """Brings the store to the schema of `package`, is ready while it answers and takes changes, closes it
        at the end."""
        self._set_up.append(("schema", lambda: self._migrate(package)))
        self._stores.append(store)
        self.add_check("database", lambda: _answers(store))
        self.on_close(store.close)

    def before_work(self, name: str, step: Check) -> None:
        """Runs `step` after the schema, before calls and workers; repeated while the database is away."""
        self._set_up.append((name, step))

    def add_check(self, name: str, check: Check) -> None:
        """The service is ready while `check` raises nothing."""
        self._checks.append((name, check))

    def add_worker(self, worker: Worker, name: str) -> None:
        """Runs a worker from the moment the schema is there. One that fails is started again."""
        if isinstance(worker, Bus):
            self._bus = worker
        self._workers.append((name, worker))

    def add_consumer(self, consumer: Consumer) -> None:
        """Runs a consumer. Readiness waits until it has caught up (BROKER_SECONDS), so add the bus too."""
        queue = consumer.subscription.queue
        self._consumers.append(consumer)
        self.add_worker(consumer, queue)
        self.add_worker(
            Periodic(f"{queue} dead letters", DEAD_LETTER_COUNT_SECONDS, consumer.measure),
            f"{queue} dead letters",
        )

    def add_relay(self, relay: Relay, canaries: Canaries) -> None:
        """Runs a publisher: its relay, the metrics of its outbox, and the canaries of its routing keys."""
        self.add_worker(relay, "relay")
        self.add_worker(Periodic("outbox count", OUTBOX_COUNT_SECONDS, relay.measure), "outbox count")
        self.add_worker(Periodic("canaries", canaries.seconds, canaries.turn), "canaries")

    def add_retention(self, store: Store, table: Table, expiring: Sequence[Expiring]) -> None:
        """Deletes what may go after `retention_days`. `table` is the store's `retention`."""
        retention = Retention(store, table, expiring, days=self.settings.retention_days)
        self.add_worker(Periodic("retention", PASS_SECONDS, retention.turn), "retention")

    def on_close(self, close: Callable[[], Awaitable[None]]) -> None:
        """Closes something after the last call and the last worker; the latest is closed first."""
        self._closers.append(close)

    def stop(self) -> None:
        """Begins the orderly stop; the second time leaves out the waiting."""
        (self._hurry if self._stop.is_set() else self._stop).set()

    async def run(self) -> None:
        """Serves until SIGTERM, SIGINT or `stop()`. Exits with 3 if a port is taken."""
        if self._consumers and self._bus is None:
            raise ValueError("a consumer needs the bus to run: add_worker(bus, ...)")
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, self.stop)
        working: asyncio.Task[None] | None = None
        try:
            reflection.add_to(self._server, self._served)
            self._listen()
            await self._server.start()
            log.info("listening", extra={"port": self.port, "metrics_port": self.metrics_port})
            working = asyncio.create_task(self._work(), name="work")
            stopped = asyncio.create_task(self._stop.wait(), name="stop")
            await asyncio.wait((working, stopped), return_when=asyncio.FIRST_COMPLETED)
            stopped.cancel()
            if working.done():
                working.result()  # it ends only by failing
        finally:
            await self._shut_down(working)

    def _listen(self) -> None:
        host, settings = self.settings.host, self.settings
        try:
            self.port = self._server.add_insecure_port(f"{host}:{settings.port}")
        except RuntimeError:
            _give_up_port(self.name, host, settings.port, "DINEMESH_PORT")
        try:
            self._metrics = MetricsServer(host, settings.metrics_port)
        except OSError:
            _give_up_port(self.name, host, settings.metrics_port, "DINEMESH_METRICS_PORT")
        self.metrics_port = self._metrics.port

    async def _work(self) -> None:
        """Everything between "the port is open" and the stop. Never returns."""
        for name, step in self._set_up:
            await _until_it_works(name, step)
        self._chain.open = True
        for name, worker in self._workers:
            self._running.append(asyncio.create_task(keep_running(worker, name), name=name))
        await self._catch_up()
        for store in self._stores:
            store.on_trouble(functools.partial(_set_from_a_thread, asyncio.get_running_loop(), self._look))
        failures = 0
        while True:
            self._look.clear()
            # A store that says so is down; one that only does not answer may be slow.
            down = next((store.trouble for store in self._stores if store.trouble), None)
            failed = f"the database ({down})" if down else await self._failed_check()
            failures = CHECKS_UNTIL_NOT_READY if down else failures + 1 if failed else 0
            ready = failures == 0 or (self.health.ready and failures < CHECKS_UNTIL_NOT_READY)
            if ready != self.health.ready and not self._stop.is_set():
                if ready:
                    log.info("ready")
                else:
                    log.warning("not ready: %s does not answer", failed)
                self.health.set_ready(ready)
            await _first(self._look, CHECK_SECONDS)

    async def _catch_up(self) -> None:
        missing = [consumer.caught_up for consumer in self._consumers]
        while missing:
            assert self._bus is not None
            if not await self._bus.wait_connected(BROKER_SECONDS):
                log.warning("no broker after %s s: serving without it, events follow later", BROKER_SECONDS)
                return
            try:
                async with asyncio.timeout(BROKER_SECONDS):
                    for event in missing:
                        await event.wait()
            except TimeoutError:
                pass
            missing = [event for event in missing if not event.is_set()]

    async def _failed_check(self) -> str | None:
        for name, check in self._checks:
            try:
                async with asyncio.timeout(CHECK_TIMEOUT_SECONDS):
                    await check()
            except Exception as error:  # whatever it is, the answer is: not ready
                log.debug("the check %s failed: %r", name, error)
                return name
        return None

    async def _migrate(self, package: str) -> None:
        url = self.settings.database_url
        if self.settings.migrate_on_start:
            await asyncio.to_thread(migrate.upgrade, url, package)
        elif not await asyncio.to_thread(migrate.is_current, url, package):
            raise _NotYet("the schema is not up to date, and DINEMESH_MIGRATE_ON_START is off")

    async def _shut_down(self, working: asyncio.Task[None] | None) -> None:
        """Not ready; wait until proxies have noticed; end watches; finish calls; then the rest in reverse."""
        settings = self.settings
        self.health.stop()
        if working is not None:
            log.info("stopping", extra={"drain_seconds": settings.drain_seconds})
            if not working.done():
                # A proxy sends calls until its next check. stop(grace) alone would drop them.
                await _first(self._hurry, settings.drain_seconds)
            if __debug__:
                crash.point("service.drain.calls")
            self.changes.stop()
            self.health.close()
            await self._server.stop(settings.stop_grace_seconds)
            if __debug__:
                crash.point("service.drain.background")
            await self.background.drain(settings.stop_grace_seconds)
            await cancel(working)
        if __debug__:
            crash.point("service.drain.workers")
        # At once, since each of them may wait for a broker that hangs; what they wait with goes last.
        by_worker = list(zip(self._running, self._workers, strict=False))
        buses = [task for task, (_, worker) in by_worker if worker is self._bus]
        await asyncio.gather(*(cancel(task) for task in reversed(self._running) if task not in buses))
        for task in buses:
            await cancel(task)
        for close in reversed(self._closers):
            try:
                await close()
            except Exception:
                log.exception("closing failed")
        if self._metrics is not None:
            await asyncio.to_thread(self._metrics.close)
        log.info("stopped")


def main(run: Callable[[], Coroutine[Any, Any, None]]) -> None:
    """Runs a service under uvloop. Exits with 3 if something else holds its port or its database file."""
    # What was imported stays for ever, and what a call leaves is seldom a cycle.
    gc.collect()
    gc.freeze()
    gc.set_threshold(*GC_THRESHOLDS)
    try:
        uvloop.run(run())
    except StoreInUse as error:
        _give_up(EXIT_TAKEN, str(error))


class _NotYet(Exception):
    """Something that a person or another process has to do first."""


def _options(settings: ServiceSettings) -> list[tuple[str, int]]:
    return [
        # Two processes on one port would share the calls, where the second should be refused.
        ("grpc.so_reuseport", 0),
        # The largest request opens slots for a season: some kilobytes.
        ("grpc.max_receive_message_length", 1 << 20),
        # What a client takes unless told otherwise.
        ("grpc.max_send_message_length", 4 << 20),
        ("grpc.max_metadata_size", 16 << 10),
        # Above the limit of calls: what is too much must reach us, to be refused with a retry time; within
        # HTTP/2 it would wait unseen. A proxy sends everything over one connection.
        ("grpc.max_concurrent_streams", 2 * settings.in_flight_limit + 100),
        # Finds watchers that vanished without a word.
        ("grpc.keepalive_time_ms", 60_000),
        ("grpc.keepalive_timeout_ms", 10_000),
        # Our channels ping every 20 s; a server would take that for an attack by default (5 min).
        ("grpc.http2.min_ping_interval_without_data_ms", PING_INTERVAL_MS),
        # A proxy pings a connection that rests, too; by default only one ping in two hours is allowed there.
        ("grpc.keepalive_permit_without_calls", 1),
    ]


async def _answers(store: Store) -> None:
    def ask(tx: Transaction) -> None:
        tx.execute(text("SELECT 1"))

    await store.read(ask)
    await store.ask_writer()


def _set_from_a_thread(loop: asyncio.AbstractEventLoop, event: asyncio.Event) -> None:
    with suppress(RuntimeError):  # the loop is closed: nobody looks any more
        loop.call_soon_threadsafe(event.set)


async def _until_it_works(name: str, step: Check) -> None:
    told = ""
    while True:
        try:
            await step()
            return
        except (DBAPIError, StoreUnavailable, CommitInDoubt, OSError, _NotYet) as error:
            if isinstance(error, DBAPIError) and not _may_pass(error):
                raise
            why = str(error.orig if isinstance(error, DBAPIError) else error)
            if why != told:
                log.warning("waiting for %s: %s", name, why)
                told = why
        await asyncio.sleep(SET_UP_RETRY_SECONDS)


def _may_pass(error: DBAPIError) -> bool:
    return isinstance(error, OperationalError | InterfaceError) or engines.is_down(error)


async def _first(event: asyncio.Event, seconds: float) -> None:
    try:
        async with asyncio.timeout(seconds):
            await event.wait()
    except TimeoutError:
        pass


def _give_up_port(service: str, host: str, port: int, variable: str) -> NoReturn:
    _give_up(
        EXIT_TAKEN,
        f"{service}: cannot listen on {host}:{port}; another program has the port. "
        f"Stop it, or set {variable} to a free one.",
    )


def _give_up(code: int, message: str) -> NoReturn:
    log.error(message)
    sys.stderr.write(f"{message}\n")
    raise SystemExit(code)
