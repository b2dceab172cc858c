"""What a reservation costs: `make bench` starts meshes of its own, with and without group commit.

Everything runs on one machine, the load generator included: the figures are good for comparing, and a floor
of what the services can do.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import platform
import shutil
import statistics
import subprocess
import sys
import time
import uuid
from collections import Counter
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path

import grpc
import uvloop
from google.protobuf import timestamp_pb2
from google.type import date_pb2, money_pb2, timeofday_pb2

from benchmarks.floor import Floor, processor_seconds
from benchmarks.floor import measure as measure_floor
from dinemesh.reservation.v1 import reservation_pb2, reservation_service_pb2, reservation_service_pb2_grpc
from dinemesh.restaurant.v1 import restaurant_pb2, restaurant_service_pb2, restaurant_service_pb2_grpc
from local_mesh import machine, tokens
from local_mesh.commands import Mesh

ROOT = Path(__file__).resolve().parent.parent
STATE_DIR = ROOT / ".local-bench"
# Beside a mesh that runs on the default ports.
PORTS = {
    "EDGE_PORT": "18080",
    "EDGE_ADMIN_PORT": "18090",
    "RESERVATION_PORT": "18081",
    "DEPOSIT_PORT": "18082",
    "HISTORY_PORT": "18083",
    "RESTAURANT_PORT": "18084",
    "SANDBOX_PORT": "18085",
    "RESERVATION_METRICS_PORT": "19081",
    "DEPOSIT_METRICS_PORT": "19082",
    "HISTORY_METRICS_PORT": "19083",
    "RESTAURANT_METRICS_PORT": "19084",
    "SANDBOX_METRICS_PORT": "19085",
    "RABBITMQ_PORT": "15673",
    "RABBITMQ_DIST_PORT": "35673",
    "EPMD_PORT": "14370",
}
IDLE_CALLS = 200
IN_FLIGHT = 100
LOAD_SECONDS = 15
SEATS = 100_000
SLOT_HOURS = range(10, 22)
DEADLINE_SECONDS = 10.0
SETTLED_SECONDS = 60.0

CONFIRMED = reservation_pb2.ReservationState.RESERVATION_STATE_CONFIRMED


@dataclass
class Figures:
    """One mesh, measured. Times in seconds."""

    healthy: float = 0.0
    idle_reserve: list[float] = field(default_factory=list)
    idle_confirmed: list[float] = field(default_factory=list)
    load_reserve: list[float] = field(default_factory=list)
    per_second: float = 0.0
    outcomes: Counter[str] = field(default_factory=Counter)
    memory: dict[str, int] = field(default_factory=dict)
    processor: dict[str, float] = field(default_factory=dict)
    """Milliseconds of processor time per booked table, by part."""


def local_mesh(command: str, settings: dict[str, str]) -> float:
    """Run a make target's command on the benchmark's own mesh; returns how long it took."""
    environment = os.environ | {f"DINEMESH_{name}": value for name, value in settings.items()}
    start = time.perf_counter()
    subprocess.run(
        [sys.executable, "-m", "local_mesh", command],
        env=environment,
        cwd=ROOT,
        check=True,
        stdout=subprocess.DEVNULL,
    )
    return time.perf_counter() - start


class Driver:
    """Books tables as customers do."""

    def __init__(self, mesh: Mesh) -> None:
        self._mesh = mesh
        self._channel = grpc.aio.insecure_channel(mesh.settings.address("reservation"))
        self._reservations = reservation_service_pb2_grpc.ReservationServiceStub(self._channel)
        self._metadata = [("authorization", f"Bearer {tokens.person(mesh.places, 'bench', 'customer')}")]
        self._restaurant_id = ""
        self._dine_times: list[timestamp_pb2.Timestamp] = []
        self._booked = 0

    async def open_restaurant(self) -> None:
        """A restaurant that accepts by itself, with more seats than will be asked for."""
        token = tokens.person(self._mesh.places, "bench", "operator")
        metadata = [("authorization", f"Bearer {token}")]
        async with grpc.aio.insecure_channel(self._mesh.settings.address("restaurant")) as channel:
            restaurants = restaurant_service_pb2_grpc.RestaurantServiceStub(channel)
            made = await restaurants.CreateRestaurant(
                restaurant_service_pb2.CreateRestaurantRequest(
                    request_id=str(uuid.uuid4()),
                    name="Benchmark",
                    time_zone="UTC",
                    policy=restaurant_pb2.Policy(
                        deposit_per_person=money_pb2.Money(currency_code="EUR", units=20),
                        free_cancel_window_seconds=3600,
                        acceptance=restaurant_pb2.AcceptanceMode.ACCEPTANCE_MODE_AUTO,
                        acceptance_limit_seconds=3600,
                        acceptance_lead_seconds=600,
                        no_show_grace_seconds=900,
                        slot_interval_seconds=3600,
                        service_duration_seconds=7200,
                        max_party_size=12,
                    ),
                ),
                metadata=metadata,
                timeout=DEADLINE_SECONDS,
            )
            self._restaurant_id = made.restaurant.restaurant_id
            day = datetime.now(UTC).date() + timedelta(days=2)
            date = date_pb2.Date(year=day.year, month=day.month, day=day.day)
            opened = await restaurants.OpenSlots(
                restaurant_service_pb2.OpenSlotsRequest(
                    restaurant_id=self._restaurant_id,
                    first_date=date,
                    last_date=date,
                    times=[timeofday_pb2.TimeOfDay(hours=hour) for hour in SLOT_HOURS],
                    capacity=SEATS,
                ),
                metadata=metadata,
                timeout=DEADLINE_SECONDS,
            )
            self._dine_times = [slot.dine_time for slot in opened.slots]
        async with asyncio.timeout(SETTLED_SECONDS):
            while True:
                try:
                    await self.reserve()
                except grpc.aio.AioRpcError:
                    await asyncio.sleep(0.05)
                else:
                    return

    async def reserve(self) -> str:
        """Book for two; returns the id once the deposit is captured."""
        self._booked += 1
        answer = await self._reservations.CreateReservation(
            reservation_service_pb2.CreateReservationRequest(
                request_id=str(uuid.uuid4()),
                restaurant_id=self._restaurant_id,
                dine_time=self._dine_times[self._booked % len(self._dine_times)],
                party_size=2,
                payment_token="tok_visa",
            ),
            metadata=self._metadata,
            timeout=DEADLINE_SECONDS,
        )
        return str(answer.reservation.reservation_id)

    async def confirmed(self, reservation_id: str) -> None:
        """Wait, by looking every millisecond, until the restaurant has accepted."""
        request = reservation_service_pb2.GetReservationRequest(reservation_id=reservation_id)
        async with asyncio.timeout(SETTLED_SECONDS):
            while True:
                seen = await self._reservations.GetReservation(
                    request, metadata=self._metadata, timeout=DEADLINE_SECONDS
                )
                if seen.reservation.state == CONFIRMED:
                    return
                await asyncio.sleep(0.001)

    async def idle(self, figures: Figures) -> None:
        """One customer at a time."""
        for _ in range(IDLE_CALLS):
            start = time.perf_counter()
            reservation_id = await self.reserve()
            figures.idle_reserve.append(time.perf_counter() - start)
            await self.confirmed(reservation_id)
            figures.idle_confirmed.append(time.perf_counter() - start)

    async def load(self, figures: Figures) -> None:
        """IN_FLIGHT customers, each booking again as soon as it has an answer. Complete means confirmed."""
        start = time.perf_counter()
        booked: list[str] = []

        async def customer() -> None:
            while time.perf_counter() - start < LOAD_SECONDS:
                begun = time.perf_counter()
                try:
                    booked.append(await self.reserve())
                    figures.outcomes["OK"] += 1
                    figures.load_reserve.append(time.perf_counter() - begun)
                except grpc.aio.AioRpcError as error:
                    figures.outcomes[error.code().name] += 1
                    await asyncio.sleep(0.1)

        await asyncio.gather(*(customer() for _ in range(IN_FLIGHT)))
        # The last one stands for all: events are taken in order, and the rest is checked below.
        for reservation_id in booked[-IN_FLIGHT:]:
            await self.confirmed(reservation_id)
        figures.per_second = len(booked) / (time.perf_counter() - start)
        for reservation_id in booked[:: max(1, len(booked) // 200)]:
            await self.confirmed(reservation_id)

    async def close(self) -> None:
        await self._channel.close()


async def drive(mesh: Mesh, figures: Figures, pids: dict[str, int]) -> None:
    driver = Driver(mesh)
    await driver.open_restaurant()
    await driver.idle(figures)
    before = {name: processor_seconds(pid) for name, pid in pids.items()}
    await driver.load(figures)
    for name, pid in pids.items():
        spent = processor_seconds(pid) - before[name]
        figures.processor[name] = 1000 * spent / max(1, figures.outcomes["OK"])
    await driver.close()


def measure(*, group_commit: bool) -> Figures:
    """A fresh mesh, started twice: the second start, unpacked and migrated, is the warm one."""
    shutil.rmtree(STATE_DIR, ignore_errors=True)
    settings = PORTS | {"STATE_DIR": str(STATE_DIR), "SAMPLES": "off"}
    if not group_commit:
        settings |= {
            f"{service}_GROUP_COMMIT": "false"
            for service in ("RESERVATION", "DEPOSIT", "RESTAURANT", "HISTORY")
        }
    figures = Figures()
    try:
        local_mesh("up", settings)
        local_mesh("down", settings)
        figures.healthy = local_mesh("up", settings)
        mesh = Mesh(settings)
        supervisor = mesh.supervisor
        assert supervisor is not None
        pids = {name: part.pid for name, part in supervisor.parts().items() if part.pid}
        supervisor.close()
        uvloop.run(drive(mesh, figures, pids | {"load generator": os.getpid()}))
        figures.memory = {name: machine.memory_megabytes(pid) for name, pid in pids.items()}
    finally:
        local_mesh("down", settings)
        shutil.rmtree(STATE_DIR, ignore_errors=True)
    return figures


def milliseconds(values: list[float], share: float) -> str:
    ordered = sorted(values)
    return f"{ordered[min(len(ordered) - 1, int(share * len(ordered)))] * 1000:.1f} ms"


def row(what: str, *cells: str) -> None:
    print(f"{what:<42}" + "".join(f"{cell:>16}" for cell in cells))


def processor() -> str:
    lines = Path("/proc/cpuinfo").read_text().splitlines() if Path("/proc/cpuinfo").exists() else []
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return f"{os.cpu_count()} x {names[0] if names else platform.machine()}"


def main() -> None:
    arguments = argparse.ArgumentParser(description=__doc__)
    arguments.add_argument("--rounds", type=int, default=1, help="meshes of each kind, in turn")
    rounds = arguments.parse_args().rounds
    measured: dict[bool, list[Figures]] = {True: [], False: []}
    floors: list[Floor] = [measure_floor()]
    for number in range(rounds):
        for group_commit in (True, False):
            said = "with" if group_commit else "without"
            print(f"round {number + 1} of {rounds}: {said} group commit", file=sys.stderr, flush=True)
            measured[group_commit].append(measure(group_commit=group_commit))
            floors.append(measure_floor())
    print(f"\n{processor()}, Python {platform.python_version()}, SQLite, load generator included\n")
    print(
        f"a plain echo between two processes, {IN_FLIGHT} in flight:"
        f" {statistics.median(floor.per_second for floor in floors):.0f} calls/s,"
        f" {statistics.median(floor.microseconds for floor in floors):.0f} us of processor each (server)"
    )
    print()
    row("", "group commit", "one by one")
    columns = [measured[True], measured[False]]

    def line(what: str, *, of: str, share: float = 0.5) -> None:
        cells = [
            milliseconds([one for figures in column for one in getattr(figures, of)], share)
            for column in columns
        ]
        row(what, *cells)

    line("reserve, idle, p50", of="idle_reserve")
    line("reserve, idle, p99", of="idle_reserve", share=0.99)
    line("reserved to confirmed, idle, p50", of="idle_confirmed")
    line(f"reserve, {IN_FLIGHT} in flight, p50", of="load_reserve")
    line(f"reserve, {IN_FLIGHT} in flight, p99", of="load_reserve", share=0.99)
    row(
        f"confirmed reservations/s, {IN_FLIGHT} in flight",
        *(f"{statistics.median(figures.per_second for figures in column):.0f}" for column in columns),
    )
    row(
        "warm start until healthy",
        *(f"{statistics.median(figures.healthy for figures in column):.1f} s" for column in columns),
    )
    for part in columns[0][0].memory:
        row(
            f"memory of {part} after the load",
            *(
                f"{statistics.median(figures.memory[part] for figures in column):.0f} MB"
                for column in columns
            ),
        )
    for part in columns[0][0].processor:
        cells = [statistics.median(figures.processor[part] for figures in column) for column in columns]
        row(f"processor time of {part} per table", *(f"{cell:.2f} ms" for cell in cells))
    for name, column in zip(("group commit", "one by one"), columns, strict=True):
        outcomes = sum((figures.outcomes for figures in column), Counter[str]())
        print(f"answers under load, {name}: {dict(outcomes)}")


if __name__ == "__main__":
    main()
