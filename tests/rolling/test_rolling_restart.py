"""A planned restart fails no call: two instances of each service on PostgreSQL, people at the edge."""

from __future__ import annotations

from pathlib import Path

from local_mesh.broker import RunningBroker
from tests.rolling.run import killed, rolling, scene
from tests.support.forked import forks
from tests.support.postgres import PostgresServer


async def test_a_planned_restart_of_every_service_fails_no_call_and_a_crash_does(
    tmp_path: Path, broker: RunningBroker, postgres: PostgresServer
) -> None:
    # Ten starts in a moment; `python -m tests.rolling` starts its processes as one machine does.
    async with scene(tmp_path, broker, postgres, forks().launch_hurried) as mesh:
        outcome = await rolling(mesh, rounds=1, at_once=True)
        print(outcome)  # noqa: T201 - shown by `pytest -rP`, and when it fails
        outcome.check()
        failed = await killed(mesh, "reservation")
        assert failed, "void: not even a crash is noticed"
