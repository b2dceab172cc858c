"""A planned restart fails no call: two instances of each service on PostgreSQL, people at the edge."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from local_mesh.broker import RunningBroker
from tests.rolling.run import killed, rolling, scene
from tests.support.forked import ForkServer
from tests.support.mesh import Launch
from tests.support.postgres import PostgresServer


@pytest.fixture
def launch(tmp_path: Path) -> Iterator[Launch]:
    """Ten starts in a moment; `python -m tests.rolling` starts its processes as one machine does."""
    forks = ForkServer(tmp_path / "forks.log")

    yield forks.launch_hurried
    forks.close()


async def test_a_planned_restart_of_every_service_fails_no_call_and_a_crash_does(
    tmp_path: Path, broker: RunningBroker, postgres: PostgresServer, launch: Launch
) -> None:
    async with scene(tmp_path, broker, postgres, launch) as mesh:
        outcome = await rolling(mesh, rounds=1, at_once=True)
        print(outcome)  # noqa: T201 - shown by `pytest -rP`, and when it fails
        outcome.check()
        failed = await killed(mesh, "reservation")
        assert failed, "void: not even a crash is noticed"
