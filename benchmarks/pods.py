"""How several pods of reservation share one PostgreSQL: `python -m benchmarks.pods`.

A pod is a process with the use case "reserve" over a store of its own; deposit is one that says "captured"
at once, so that the database is what is measured. All of them sell the same twelve slots. A proxy between
them and a PostgreSQL of its own holds back what is on its way there, as a network would. At the end one of
three is stopped for some seconds, and the others counted second by second.
"""

from __future__ import annotations

import argparse
import asyncio
import multiprocessing
import os
import platform
import signal
import socket
import sys
import time
import uuid
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any

import uvloop
from sqlalchemy import create_engine, text
from sqlalchemy.engine import make_url

from benchmarks import databases
from benchmarks.context import open_context
from benchmarks.table import milliseconds, processor, row
from dinemesh.kit import migrate
from dinemesh.kit.refusal import Refusal
from dinemesh.kit.store import Store, StoreUnavailable
from dinemesh.kit.workers import Background
from reservation_svc.domain import (
    Acceptance,
    Captured,
    Charge,
    DepositOutcome,
    Order,
    Policy,
    Restaurant,
    SlotSnapshot,
)
from reservation_svc.persistence import seat_inventory
from reservation_svc.usecases import reserve

PODS = (1, 2, 3, 6)
IN_FLIGHT = 40
SECONDS = 10.0
WARM_UP_SECONDS = 4.0
ROUND_TRIP_MS = 1.25
SLOTS = 12
RESTAURANT = str(uuid.UUID(int=1))
POLICY = Policy(1000, "EUR", 3600, Acceptance.AUTO, 3600, 600, 900, 3600, 7200, 12)


@dataclass(frozen=True)
class Pod:
    """What one has done: reservations by second, seconds of each, of its processor, and refusals."""

    by_second: Counter[int]
    seconds: list[float]
    processor: float
    refused: Counter[str]


class AtOnce:
    """A deposit that is never in the way."""

    async def create(self, charge: Charge, timeout: float) -> DepositOutcome:
        return Captured()

    async def is_healthy(self) -> bool:
        return True


async def _sell(url: str, tables_for: Sequence[datetime], start: float, seconds: float) -> Pod:
    store = Store.open(url)
    ctx = open_context(store, AtOnce(), Background())
    await store.read(lambda tx: tx.now)
    found = Pod(Counter(), [], 0.0, Counter())
    await asyncio.sleep(max(0.0, start - time.time()))
    spent = time.process_time()

    async def customer(number: int) -> None:
        while (now := time.time()) < start + seconds:
            dine_time = tables_for[number % len(tables_for)]
            order = Order(
                str(uuid.uuid4()),
                str(uuid.uuid4()),
                RESTAURANT,
                dine_time,
                2,
                POLICY.etag,
                "",
                "tok",
                uuid.uuid4().hex,
            )
            try:
                await reserve.reserve(ctx, order)
            except Refusal as refusal:
                found.refused[refusal.reason] += 1
                await asyncio.sleep(refusal.retry_after or 0.1)
                continue
            except StoreUnavailable:  # of the pod that was stopped: its session was ended meanwhile
                found.refused["UNAVAILABLE"] += 1
                continue
            found.by_second[int(time.time() - start)] += 1
            found.seconds.append(time.time() - now)

    await asyncio.gather(*(customer(number) for number in range(IN_FLIGHT)))
    return Pod(found.by_second, found.seconds, time.process_time() - spent, found.refused)


def _pod(url: str, tables_for: Sequence[datetime], start: float, seconds: float, found: Any) -> None:
    found.put(uvloop.run(_sell(url, tables_for, start, seconds)))


def sell(url: str, pods: int, seconds: float, *, stopped: tuple[float, float] | None = None) -> list[Pod]:
    """So many pods for so long. `stopped`: from when to when, in seconds, the last one is stopped."""
    context = multiprocessing.get_context("spawn")
    found: Any = context.Queue()
    tables_for = _open(url)
    start = time.time() + WARM_UP_SECONDS + pods
    running = [
        context.Process(target=_pod, args=(url, tables_for, start, seconds, found), daemon=True)
        for _ in range(pods)
    ]
    for one in running:
        one.start()
    if stopped is not None:
        last = running[-1].pid
        assert last is not None
        for moment, number in zip(stopped, (signal.SIGSTOP, signal.SIGCONT), strict=True):
            time.sleep(max(0.0, start + moment - time.time()))
            os.kill(last, number)
    done = [found.get(timeout=seconds + 60) for _ in running]
    for one in running:
        one.join()
    return done


def _open(url: str) -> list[datetime]:
    """Slots that never fill up."""
    hour = datetime.now(UTC).replace(minute=0, second=0, microsecond=0) + timedelta(days=2)
    times = [hour + timedelta(hours=number) for number in range(SLOTS)]

    async def open_() -> None:
        store = Store.open(url)
        await store.write(
            lambda tx: seat_inventory.keep_restaurant(tx, Restaurant(RESTAURANT, "UTC", POLICY))
        )
        slots = [SlotSnapshot(moment, 10**6, 1) for moment in times]
        await store.write(lambda tx: seat_inventory.set_capacities(tx, RESTAURANT, slots))
        await store.close()

    asyncio.run(open_())
    return times


# PostgreSQL, and the way there.


@contextmanager
def postgresql() -> Iterator[str]:
    """The URL of a migrated database, on a server of its own."""
    with databases.postgresql() as server:
        url = server.create("bench")
        migrate.upgrade(url, "reservation_svc")
        yield url


@contextmanager
def far_away(url: str, milliseconds_: float) -> Iterator[str]:
    """The same database behind a proxy that holds back each packet to it for so long."""
    target = make_url(url)
    folder = str(target.query["host"])
    context = multiprocessing.get_context("spawn")
    ports: Any = context.Queue()
    proxy = context.Process(target=_proxy, args=(folder, milliseconds_ / 1000, ports), daemon=True)
    proxy.start()
    try:
        port = ports.get(timeout=30)
        near = target.set(host="127.0.0.1", port=port).difference_update_query(["host"])
        yield near.render_as_string(hide_password=False)
    finally:
        proxy.kill()
        proxy.join()


def _proxy(folder: str, delay: float, ports: Any) -> None:
    async def pump(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, delay: float) -> None:
        loop = asyncio.get_running_loop()
        while data := await reader.read(1 << 16):
            if delay:
                loop.call_later(delay, writer.write, data)
            else:
                writer.write(data)
        loop.call_later(delay, writer.close)

    async def connected(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        there, back = await asyncio.open_unix_connection(f"{folder}/.s.PGSQL.5432")
        writer.get_extra_info("socket").setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        await asyncio.gather(pump(reader, back, delay), pump(there, writer, 0))

    async def serve() -> None:
        server = await asyncio.start_server(connected, "127.0.0.1", 0)
        ports.put(server.sockets[0].getsockname()[1])
        await server.serve_forever()

    uvloop.run(serve())


def _deadlocks(url: str) -> int:
    engine = create_engine(url)
    with engine.connect() as connection:
        counted = text("SELECT deadlocks FROM pg_stat_database WHERE datname = current_database()")
        found = int(connection.execute(counted).scalar_one())
    engine.dispose()
    return found


def main() -> None:
    arguments = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    arguments.add_argument("--pods", type=int, nargs="+", default=PODS)
    arguments.add_argument("--seconds", type=float, default=SECONDS)
    arguments.add_argument("--round-trip-ms", type=float, default=ROUND_TRIP_MS)
    given = arguments.parse_args()
    print(f"{processor()}, Python {platform.python_version()}, PostgreSQL and pods on one machine,")
    print(f"{given.round_trip_ms:g} ms a round trip, {IN_FLIGHT} in flight at each pod, {SLOTS} slots\n")
    with postgresql() as url, far_away(url, given.round_trip_ms) as there:
        row("pods", "reservations/s", "p50", "p99", "processor, each", "refused")
        for pods in given.pods:
            done = sell(there, pods, given.seconds)
            took = [one for pod in done for one in pod.seconds]
            refused = sum((pod.refused for pod in done), Counter[str]())
            row(
                str(pods),
                f"{len(took) / given.seconds:.0f}",
                milliseconds(took, 0.5),
                milliseconds(took, 0.99),
                f"{sum(pod.processor for pod in done) / pods / given.seconds:.0%}",
                str(dict(refused) or "none"),
            )
            sys.stdout.flush()
        begin, end = given.seconds / 3, 2 * given.seconds / 3
        done = sell(there, 3, given.seconds, stopped=(begin, end))
        others = sum(
            (pod.by_second for pod in sorted(done, key=lambda pod: -len(pod.seconds))[:2]), Counter()
        )
        print(f"\none of three stopped from {begin:.0f} to {end:.0f} s; the other two, second by second:")
        print(" ".join(str(others[second]) for second in range(int(given.seconds))))
        print(f"deadlocks in all of it, as PostgreSQL counts them: {_deadlocks(url)}")


if __name__ == "__main__":
    main()
