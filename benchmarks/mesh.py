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
import sys
import time
from collections import Counter
from dataclasses import dataclass, field

import grpc
import uvloop

from benchmarks.floor import Floor, processor_seconds
from benchmarks.floor import measure as measure_floor
from benchmarks.own_mesh import (
    NO_LIMIT,
    SETTINGS,
    Customer,
    local_mesh,
    open_restaurant,
    pids_of,
    token_of_customer,
)
from benchmarks.table import milliseconds, processor, row
from local_mesh import machine
from local_mesh.commands import Mesh

IDLE_CALLS = 200
IN_FLIGHT = 100
LOAD_SECONDS = 15


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


async def idle(customer: Customer, figures: Figures) -> None:
    """One customer at a time."""
    for _ in range(IDLE_CALLS):
        start = time.perf_counter()
        reservation_id = await customer.reserve()
        figures.idle_reserve.append(time.perf_counter() - start)
        await customer.confirmed(reservation_id)
        figures.idle_confirmed.append(time.perf_counter() - start)


async def load(customer: Customer, figures: Figures) -> None:
    """IN_FLIGHT customers, each booking again as soon as it has an answer. Complete means confirmed."""
    start = time.perf_counter()
    booked: list[str] = []

    async def book() -> None:
        while time.perf_counter() - start < LOAD_SECONDS:
            begun = time.perf_counter()
            try:
                booked.append(await customer.reserve())
                figures.outcomes["OK"] += 1
                figures.load_reserve.append(time.perf_counter() - begun)
            except grpc.aio.AioRpcError as error:
                figures.outcomes[error.code().name] += 1
                await asyncio.sleep(0.1)

    await asyncio.gather(*(book() for _ in range(IN_FLIGHT)))
    # The last one stands for all: events are taken in order, and the rest is checked below.
    for reservation_id in booked[-IN_FLIGHT:]:
        await customer.confirmed(reservation_id)
    figures.per_second = len(booked) / (time.perf_counter() - start)
    for reservation_id in booked[:: max(1, len(booked) // 200)]:
        await customer.confirmed(reservation_id)


async def drive(mesh: Mesh, figures: Figures, pids: dict[str, int]) -> None:
    restaurant = await open_restaurant(mesh)
    customer = Customer(mesh.settings.address("reservation"), token_of_customer(mesh), restaurant)
    await idle(customer, figures)
    before = {name: processor_seconds(pid) for name, pid in pids.items()}
    await load(customer, figures)
    for name, pid in pids.items():
        spent = processor_seconds(pid) - before[name]
        figures.processor[name] = 1000 * spent / max(1, figures.outcomes["OK"])
    await customer.close()


def measure(*, group_commit: bool) -> Figures:
    """A fresh mesh, started twice: the second start, unpacked and migrated, is the warm one."""
    settings = {**SETTINGS, **NO_LIMIT}
    shutil.rmtree(settings["STATE_DIR"], ignore_errors=True)
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
        pids = pids_of(mesh)
        uvloop.run(drive(mesh, figures, pids | {"load generator": os.getpid()}))
        figures.memory = {name: machine.memory_megabytes(pid) for name, pid in pids.items()}
    finally:
        local_mesh("down", settings)
        shutil.rmtree(settings["STATE_DIR"], ignore_errors=True)
    return figures


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
