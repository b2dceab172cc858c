"""A mesh on a PostgreSQL with a synchronous standby, while bookings and refunds are under way.

The database is locked by somebody else's session, loses its standby, or is lost: nothing that was
acknowledged is, no event becomes a dead letter, and all comes back without a hand.
"""

from __future__ import annotations

import asyncio
import shutil
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from dinemesh.kit import migrate
from local_mesh.broker import RunningBroker
from tests.durability.crowd import all_is_well, crowd, ready, stays_so, tell
from tests.mesh.people import City
from tests.support import database_faults
from tests.support.cluster import Cluster
from tests.support.mesh import RunningMesh

HERE = ("reservation", "deposit")
"""The services that stand on the PostgreSQL of these tests; it has a database by the name of each."""


class Pair:
    """A primary and its synchronous standby; `primary` is whichever takes changes."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self.primary = Cluster(folder / "first")
        self.primary.initialise()
        self.primary.start()
        for name in HERE:
            self.primary.execute(f"CREATE DATABASE {name}")
            migrate.upgrade(self.primary.url(name), f"{name}_svc")
        self.standby = self.primary.standby(folder / "second")
        self.urls = {name: self.primary.url(name, self.standby) for name in HERE}

    def fail_over(self) -> None:
        """The primary is killed, and the standby takes its place."""
        self.primary.kill()
        self.standby.promote()

    def mend(self) -> None:
        """What was the standby is the primary, and gets a new standby where the other one was."""
        lost = self.primary
        shutil.rmtree(lost.folder)
        self.primary = self.standby
        self.standby = self.primary.standby(lost.folder, port=lost.port)

    def stop(self) -> None:
        for one in (self.primary, self.standby):
            if one.running:
                one.kill()


@pytest.fixture(scope="module")
def pair() -> Iterator[Pair]:
    folder = Path(tempfile.mkdtemp(prefix="dinemesh-pair-"))
    pair = Pair(folder)
    try:
        yield pair
    finally:
        pair.stop()
        shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture(scope="module")
def mesh(
    pair: Pair, broker: RunningBroker, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[RunningMesh]:
    mesh = RunningMesh(tmp_path_factory.mktemp("failing"), broker.fresh_url(), databases=pair.urls)
    mesh.start()
    try:
        yield mesh
    finally:
        mesh.stop()


async def test_somebody_else_holds_a_lock(city: City, mesh: RunningMesh, pair: Pair) -> None:
    async with crowd(city) as people:
        before = len(people.refused)
        with database_faults.locked(pair.primary.url("reservation"), "reservations"):
            noticed = await ready(mesh, "reservation", wanted=False, seconds=3.5)
            await stays_so(mesh, "reservation", 4)
        ended = time.monotonic()
        back = await ready(mesh, "reservation", wanted=True, seconds=5)
        booked = await people.back(ended)
    people.were_refused_in_time(before)
    await all_is_well(people)
    tell(
        f"not ready after {noticed:.1f} s, ready {back:.1f} s and booked {booked:.1f} s after;"
        f" {people.told()}"
    )


async def test_the_standby_is_away_and_no_commit_ends(city: City, mesh: RunningMesh, pair: Pair) -> None:
    """No timeout of the server covers that."""
    async with crowd(city) as people:
        before = len(people.refused)
        pair.standby.kill()
        noticed = await ready(mesh, "reservation", wanted=False, seconds=3.5)
        await stays_so(mesh, "reservation", 9)
        sessions = pair.primary.execute(
            "SELECT count(*) FROM pg_stat_activity WHERE wait_event = 'SyncRep' AND datname = 'reservation'"
        )
        pair.standby.start()
        ended = time.monotonic()
        back = await ready(mesh, "reservation", wanted=True, seconds=10)
        booked = await people.back(ended)
        await asyncio.to_thread(pair.primary.wait_for_standby)
    ((stuck,),) = sessions
    assert isinstance(stuck, int) and 0 < stuck <= 2, "each try would leave one more behind"
    people.were_refused_in_time(before, longest=8)
    await all_is_well(people)
    tell(
        f"not ready after {noticed:.1f} s, ready {back:.1f} s and booked {booked:.1f} s after;"
        f" {stuck} sessions left behind; {people.told()}"
    )


async def test_the_primary_is_lost_and_the_standby_takes_its_place(
    city: City, mesh: RunningMesh, pair: Pair
) -> None:
    async with crowd(city) as people:
        lost = pair.primary
        began = time.monotonic()
        pair.fail_over()
        assert not lost.running, "void: the primary lives"
        promoted = time.monotonic()
        booked = await people.back(promoted)
        for name in HERE:
            await ready(mesh, name, wanted=True, seconds=10)
        well = time.monotonic() - began
    await all_is_well(people)
    tell(
        f"promoted after {promoted - began:.1f} s, booked {booked:.1f} s later, all ready after {well:.1f} s;"
        f" {people.told()}"
    )
    pair.mend()
