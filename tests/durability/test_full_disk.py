"""A mesh whose disks fill up while bookings and refunds are under way: reservation's, where SQLite is, or
deposit's, where the tables of a PostgreSQL are. Real file systems of some megabytes.
"""

from __future__ import annotations

import asyncio
import shutil
import tempfile
import time
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from dinemesh.kit import migrate
from local_mesh.broker import RunningBroker
from tests.durability.crowd import all_is_well, crowd, ready, stays_so, tell
from tests.mesh.people import City
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
def deposit_url(disks: Disks) -> Iterator[str]:
    """The data of the server are elsewhere: without room for its log it would not run at all."""
    folder = Path(tempfile.mkdtemp(prefix="dinemesh-full-"))
    server = Cluster(folder, disk=disks.deposit)
    try:
        server.initialise()
        server.start()
        (disks.deposit.outside / "tables").mkdir()
        server.execute(f"CREATE TABLESPACE small LOCATION '{disks.deposit.mount}/tables'")
        server.execute("CREATE DATABASE deposit TABLESPACE small")
        migrate.upgrade(server.url("deposit"), "deposit_svc")
        yield server.url("deposit")
    finally:
        if server.running:
            server.kill()
        shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture(scope="module")
def mesh(
    disks: Disks, deposit_url: str, broker: RunningBroker, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[RunningMesh]:
    def start(module: str, environment: dict[str, str], log: Path) -> Child:
        there = disks.reservation.launch if module.startswith("reservation") else launch
        return there(module, environment, log)

    databases = {
        "reservation": f"sqlite:///{disks.reservation.mount}/reservation.db",
        "deposit": deposit_url,
    }
    folder = tmp_path_factory.mktemp("full")
    mesh = RunningMesh(folder, broker.fresh_url(), databases=databases, launch=start)
    mesh.start()
    try:
        yield mesh
    finally:
        mesh.stop()


@pytest.fixture
async def city(mesh: RunningMesh) -> AsyncIterator[City]:
    pids = {name: part.pid for name, part in mesh.parts.items()}
    city = City(mesh)
    yield city
    await city.close()
    assert pids == {name: part.pid for name, part in mesh.parts.items() if part.running}, "restarted by hand"


@pytest.mark.parametrize("service", ["reservation", "deposit"])
async def test_a_disk_fills_up_and_has_room_again(
    city: City, mesh: RunningMesh, disks: Disks, service: str
) -> None:
    disk = disks[service]
    async with crowd(city) as people:
        before = len(people.refused)
        began = time.monotonic()
        await asyncio.to_thread(disk.fill)
        filled = time.monotonic()
        # What the database has in reserve lasts for some bookings more.
        await ready(mesh, service, wanted=False, seconds=30)
        noticed = time.monotonic() - filled
        assert disk.free_bytes < 1 << 16
        await stays_so(mesh, service, 4)
        disk.make_room()
        ended = time.monotonic()
        back = await ready(mesh, service, wanted=True, seconds=5)
        booked = await people.back(ended)
    assert began < filled
    people.were_refused_in_time(before)
    await all_is_well(people, disks.reservation)
    tell(
        f"{service}: not ready {noticed:.1f} s after the disk was full, ready {back:.1f} s and booked"
        f" {booked:.1f} s after there was room; {people.told()}"
    )
