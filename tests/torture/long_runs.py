"""Part of `make torture`, too long for `make test`: the broker killed again and again, and the seeds that
once found something."""

from __future__ import annotations

import asyncio

import pytest

from local_mesh.broker import RunningBroker
from tests.torture.conftest import FreshMesh
from tests.torture.plan import Blow, Fault
from tests.torture.run import describe, torture

FOUND = [
    # The restaurant heard so little that nothing could be reordered: void.
    pytest.param(11, 8, "postgresql", id="11"),
]

pytestmark = pytest.mark.timeout(600)


def test_a_broker_killed_five_times_under_load_loses_no_event_and_none_has_a_second_effect(
    fresh_mesh: FreshMesh, broker_to_kill: RunningBroker
) -> None:
    blows = [Blow(Fault.KILL_BROKER, "rabbitmq", 1.0, 0.5, n) for n in range(5)]
    run = torture(20, 600, fresh_mesh("sqlite"), broker_to_kill, blows=[blows], faults=(), clients=6)
    outcome = asyncio.run(run)
    print(describe(outcome))  # noqa: T201 - shown by `pytest -rP`, and when it fails
    assert (outcome.violations, outcome.void) == ([], [])
    assert [one.blow.fault for one in outcome.witnesses] == [Fault.KILL_BROKER] * 5


@pytest.mark.parametrize(("seed", "seconds", "engine"), FOUND)
def test_what_a_seed_once_found_is_gone(
    seed: int, seconds: float, engine: str, fresh_mesh: FreshMesh, broker_to_kill: RunningBroker
) -> None:
    outcome = asyncio.run(torture(seed, seconds, fresh_mesh(engine), broker_to_kill, engine=engine))
    print(describe(outcome))  # noqa: T201
    assert (outcome.violations, outcome.void) == ([], [])
