"""A short run with faults, its control without, and the broker killed again and again under load."""

from __future__ import annotations

import pytest

from local_mesh.broker import RunningBroker
from tests.torture.conftest import FreshMesh
from tests.torture.plan import Blow, Fault
from tests.torture.run import describe, torture

SEED = 20


@pytest.mark.timeout(600)
async def test_whatever_fails_nothing_is_lost_and_no_answer_is_a_lie(
    fresh_mesh: FreshMesh, broker_to_kill: RunningBroker
) -> None:
    outcome = await torture(SEED, 12, fresh_mesh("sqlite"), broker_to_kill)
    print(describe(outcome))  # noqa: T201 - shown by `pytest -rP`, and when it fails
    assert (outcome.violations, outcome.void) == ([], [])
    assert len(outcome.witnesses) >= 2


@pytest.mark.timeout(600)
async def test_the_same_run_without_faults_holds(
    fresh_mesh: FreshMesh, broker_to_kill: RunningBroker
) -> None:
    outcome = await torture(SEED, 3, fresh_mesh("sqlite"), broker_to_kill, with_faults=False)
    print(describe(outcome))  # noqa: T201
    assert (outcome.violations, outcome.void) == ([], [])
    assert outcome.witnesses == []


@pytest.mark.timeout(600)
async def test_a_broker_killed_five_times_under_load_loses_no_event_and_none_has_a_second_effect(
    fresh_mesh: FreshMesh, broker_to_kill: RunningBroker
) -> None:
    blows = [Blow(Fault.KILL_BROKER, "rabbitmq", 1.0, 0.5, n) for n in range(5)]
    outcome = await torture(SEED, 600, fresh_mesh("sqlite"), broker_to_kill, blows=blows, clients=6)
    print(describe(outcome))  # noqa: T201
    assert (outcome.violations, outcome.void) == ([], [])
    assert [one.blow.fault for one in outcome.witnesses] == [Fault.KILL_BROKER] * 5
