"""A short run with faults, what its clients saw of it, and the control run without."""

from __future__ import annotations

import asyncio

import pytest

from local_mesh.broker import RunningBroker
from tests.torture.conftest import FreshMesh
from tests.torture.plan import Blow, Fault
from tests.torture.run import Outcome, describe, percentile, torture
from tests.torture.town import DEADLINE
from tests.torture.truth import FINAL

SEED = 147
"""Its events meet a broker that is killed, and then each other in another order."""
AMONG_EVENTS = {Fault.KILL_BROKER, Fault.DELAY, Fault.REORDER, Fault.DUPLICATE, Fault.REPLAY, Fault.OVERLOAD}
OUTAGES = (
    Blow(Fault.KILL, "deposit", 0.5, 2.0, 0),
    Blow(Fault.PAUSE, "deposit", 0.5, 2.0, 1),
    Blow(Fault.KILL, "reservation", 0.5, 0.5, 2),
)
BESIDES = (
    Blow(Fault.HELD_LOCK, "restaurant", 0.5, 0.5, 3),
    Blow(Fault.QUEUE_FULL, "torture.subscriber", 0.5, 0.2, 4),
)
LEAST_REFUSALS = 15

pytestmark = pytest.mark.timeout(600)


@pytest.fixture(scope="module")
def outcome(fresh_mesh: FreshMesh, broker_to_kill: RunningBroker) -> Outcome:
    """Of the run with faults."""
    mesh = fresh_mesh("sqlite")
    blows = [OUTAGES, BESIDES]
    outcome = asyncio.run(torture(SEED, 600, mesh, broker_to_kill, blows=blows, faults=AMONG_EVENTS))
    print(describe(outcome))  # noqa: T201 - shown by `pytest -rP`, and when a test fails
    return outcome


def test_whatever_fails_nothing_is_lost_and_no_answer_is_a_lie(outcome: Outcome) -> None:
    assert (outcome.violations, outcome.void) == ([], [])
    witnessed = [one.blow for one in outcome.witnesses]
    for blows in (OUTAGES, BESIDES):
        assert [blow for blow in witnessed if blow in blows] == list(blows)
    assert Fault.KILL_BROKER in {blow.fault for blow in witnessed}


def test_a_client_that_repeats_its_request_as_it_is_told_ends_with_one_booking_or_a_final_refusal(
    outcome: Outcome,
) -> None:
    # Two bookings of one request, or a last word that is none, would be among the violations.
    assert outcome.violations == []
    given_up = "given up by the client"  # a card that never works is not tried for ever
    assert outcome.endings.keys() <= {"booked", *FINAL, given_up, "  of them repeated"}
    assert outcome.endings["booked"] and outcome.endings["  of them repeated"]


def test_while_deposit_is_down_a_client_is_refused_soon_and_told_when_to_come_back(outcome: Outcome) -> None:
    refused = outcome.refused_while_deposit_was_down
    print(f"{len(refused)} refusals, p99 {percentile(refused, 0.99) * 1000:.0f} ms")  # noqa: T201
    assert len(refused) >= LEAST_REFUSALS, "void: hardly anybody asked meanwhile"
    assert percentile(refused, 0.99) < DEADLINE
    # That one of them named no time would be among the violations.
    assert outcome.violations == []


def test_the_same_run_without_faults_holds(fresh_mesh: FreshMesh, broker_to_kill: RunningBroker) -> None:
    outcome = asyncio.run(torture(SEED, 3, fresh_mesh("sqlite"), broker_to_kill, faults=()))
    print(describe(outcome))  # noqa: T201
    assert (outcome.violations, outcome.void) == ([], [])
    assert outcome.witnesses == []
