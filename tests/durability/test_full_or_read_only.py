"""A mesh whose databases take no changes any more while bookings and refunds are under way.

A disk is full: reservation's, where SQLite is, or deposit's, where the tables of a PostgreSQL are; real file
systems of some megabytes. Or that PostgreSQL turns read-only, and its address still leads to it.
"""

from __future__ import annotations

import asyncio
import shutil
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from dinemesh.kit import migrate
from dinemesh.kit.engines import ROOM_BYTES
from local_mesh.broker import RunningBroker
from tests.durability.crowd import all_is_well, crowd, ready, stays_so, tell
from tests.mesh.people import City
from tests.support import database_faults
from tests.support.cluster import Cluster
from tests.support.mesh import Child, RunningMesh, launch
from tests.support.small_disk import SmallDisk

SQLITE_MEGABYTES = 16
POSTGRESQL_MEGABYTES = 48


@dataclass(frozen=True)
class Disks:
    """By the service whose database is there."""

    reservation: SmallDisk
    deposit: SmallDisk

    def __getitem__(self, service: str) -> SmallDisk:
        found: SmallDisk = getattr(self, service)
        return found


@pytest.fixture(scope="module")
def disks() -> Iterator[Disks]:
    folder = Path(tempfile.mkdtemp(prefix="dinemesh-disks-"))
    try:
        with (
            SmallDisk(folder / "sqlite", SQLITE_MEGABYTES) as sqlite,
            SmallDisk(folder / "postgresql", POSTGRESQL_MEGABYTES) as postgresql,
        ):
            yield Disks(sqlite, postgresql)
    finally:
        shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture(scope="module")
def server(disks: Disks) -> Iterator[Cluster]:
    """Its own data are elsewhere: without room for its log it would not run at all."""
    folder = Path(tempfile.mkdtemp(prefix="dinemesh-full-"))
    server = Cluster(folder, disk=disks.deposit)
    try:
        server.initialise()
        server.start()
        (disks.deposit.outside / "tables").mkdir()
        server.execute(f"CREATE TABLESPACE small LOCATION '{disks.deposit.mount}/tables'")
        server.execute("CREATE DATABASE deposit TABLESPACE small")
        migrate.upgrade(server.url("deposit"), "deposit_svc")
        yield server
    finally:
        if server.running:
            server.kill()
        shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture(scope="module")
def mesh(
    disks: Disks, server: Cluster, broker: RunningBroker, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[RunningMesh]:
    def start(module: str, environment: dict[str, str], log: Path) -> Child:
        there = disks.reservation.launch if module.startswith("reservation") else launch
        return there(module, environment, log)

    databases = {
        "reservation": f"sqlite:///{disks.reservation.mount}/reservation.db",
        "deposit": server.url("deposit"),
    }
    folder = tmp_path_factory.mktemp("full")
    mesh = RunningMesh(folder, broker.fresh_url(), databases=databases, launch=start)
    mesh.start()
    try:
        yield mesh
    finally:
        mesh.stop()


@pytest.mark.parametrize("service", ["reservation", "deposit"])
async def test_a_disk_fills_up_and_has_room_again(
    city: City, mesh: RunningMesh, disks: Disks, service: str
) -> None:
    disk = disks[service]
    async with crowd(city) as people:
        before = len(people.refused)
        try:
            await asyncio.to_thread(disk.fill)
            filled = time.monotonic()
            # What the database has in reserve lasts for some bookings more.
            await ready(mesh, service, wanted=False, seconds=30)
            noticed = time.monotonic() - filled
            assert disk.free_bytes < ROOM_BYTES, "void: there is room"
            await stays_so(mesh, service, 4)
        finally:
            disk.make_room()
        ended = time.monotonic()
        back = await ready(mesh, service, wanted=True, seconds=5)
        booked = await people.back(ended)
    people.were_refused_in_time(before)
    await all_is_well(people, disks.reservation)
    tell(
        f"{service}: not ready {noticed:.1f} s after the disk was full, ready {back:.1f} s and booked"
        f" {booked:.1f} s after there was room; {people.told()}"
    )


async def test_deposit_turns_read_only_while_refunds_are_under_way(
    city: City, mesh: RunningMesh, disks: Disks, server: Cluster
) -> None:
    async with crowd(city) as people:
        with database_faults.read_only(server.execute, "deposit"):
            noticed = await ready(mesh, "deposit", wanted=False, seconds=3)
            waiting = await people.cancel_some()
            # Their events are given back and taken again for longer than twenty deliveries would last.
            await stays_so(mesh, "deposit", 5)
        ended = time.monotonic()
        back = await ready(mesh, "deposit", wanted=True, seconds=5)
        booked = await people.back(ended)
    await all_is_well(people, disks.reservation)
    tell(
        f"not ready after {noticed:.1f} s, ready {back:.1f} s and booked {booked:.1f} s after;"
        f" {waiting} refunds waited; {people.told()}"
    )
