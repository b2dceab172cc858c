"""Every point at which a process may die: it dies there, comes back, and the books agree.

A sample of the cases: every point on SQLite, some on PostgreSQL; `python -m tests.crash --all` runs them all.
"""

from __future__ import annotations

import signal
import uuid
from pathlib import Path

import pytest
from sqlalchemy import create_engine, text

from local_mesh.broker import RunningBroker
from tests.crash.cases import Case, all_points, one_of_each_point
from tests.crash.run import Yard, exercise, run
from tests.crash.stories import Story, a_card_that_declines, reserve
from tests.crash.world import World
from tests.support.forked import forks, with_points
from tests.support.mesh import Child, launch_alone
from tests.support.postgres import PostgresServer

SIDE_BY_SIDE = 4
"""Most of a case is waiting, for a lease or a hold to end: so many meshes share two cores well."""
SEED = 5
"""Says which cases of a point are tried first."""
ON_POSTGRESQL = 12
"""Points of the sample there."""


@pytest.fixture(scope="module")
def known() -> dict[Case, Story]:
    """The cases that a test of this file has discovered. They are the same on both engines."""
    return {}


@pytest.fixture
def on_sqlite(tmp_path: Path, broker: RunningBroker) -> Yard:
    def database(package: str) -> str:
        return f"sqlite:///{tmp_path}/{package}-{uuid.uuid4().hex[:8]}.db"

    return Yard(tmp_path, forks().launch_with_points, broker.fresh_url, database)


@pytest.fixture
def on_postgresql(tmp_path: Path, broker: RunningBroker, postgres: PostgresServer) -> Yard:
    return Yard(tmp_path, forks().launch_with_points, broker.fresh_url, postgres.fresh)


@pytest.mark.timeout(900)
async def test_whoever_dies_anywhere_money_seats_and_events_are_as_if_nobody_had(
    on_sqlite: Yard, known: dict[Case, Story]
) -> None:
    result = await run(
        "sqlite",
        on_sqlite,
        side_by_side=SIDE_BY_SIDE,
        twice=False,
        choose=lambda cases: one_of_each_point(cases, SEED),
    )
    known.update(result.cases)
    print(result)  # noqa: T201 - shown by `pytest -rP`, and when it fails
    assert result.is_good, result
    assert {one.case.point for one in result.outcomes if one.deaths} == set(all_points())


@pytest.mark.timeout(900)
async def test_on_postgresql_too(on_postgresql: Yard, known: dict[Case, Story]) -> None:
    result = await run(
        "postgresql",
        on_postgresql,
        side_by_side=SIDE_BY_SIDE,
        cases=known or None,
        twice=False,
        choose=lambda cases: one_of_each_point(cases, SEED, ON_POSTGRESQL),
    )
    print(result)  # noqa: T201 - shown by `pytest -rP`, and when it fails
    assert result.is_good, result
    assert len([one for one in result.outcomes if one.deaths]) == ON_POSTGRESQL


async def test_a_process_that_nobody_forked_dies_and_comes_back_in_the_same_way(
    tmp_path: Path, broker: RunningBroker
) -> None:
    def start(module: str, environment: dict[str, str], log: Path) -> Child:
        return launch_alone(module, with_points(environment, log), log)

    def database(package: str) -> str:
        return f"sqlite:///{tmp_path}/{package}.db"

    world = await Yard(tmp_path, start, broker.fresh_url, database).world()
    try:
        for service, line in (
            ("reservation", "deposit.call.after CreateReservation Captured"),
            ("deposit", "provider.charge.after CreateDeposit Charged"),
        ):
            outcome = await exercise(world, Case(service, line), reserve)
            assert outcome.deaths == 1 and not outcome.wrong, outcome
        assert not await world.history_differs()
        forge_the_timeline(world)
        assert "not the same" in await world.history_differs()
    finally:
        await world.close()


def forge_the_timeline(world: World) -> None:
    """An entry under somebody else's name: no check of the audit looks at it."""
    engine = create_engine(world.mesh.databases["history"])
    with engine.begin() as connection:
        change = "UPDATE timeline_entries SET customer_id = 'mallory' WHERE position = "
        connection.execute(text(f"{change} (SELECT MIN(position) FROM timeline_entries)"))
    engine.dispose()


async def test_a_death_that_does_not_happen_is_void_and_one_of_another_kind_is_wrong(on_sqlite: Yard) -> None:
    world = await on_sqlite.world()
    try:
        never = Case("reservation", "store.commit.before Nobody")
        outcome = await exercise(world, never, a_card_that_declines, tries=2, later_seconds=0.2)
        assert outcome.is_void and outcome.tries > 1

        async def the_wrong_death(world: World) -> None:
            await a_card_that_declines(world)
            world.disarm("history")
            world.mesh["history"].tell(signal.SIGKILL)

        outcome = await exercise(world, Case("history", "timeline.appended Nobody"), the_wrong_death)
        assert not outcome.deaths and outcome.wrong
    finally:
        await world.close()
