"""What either proxy does by the shipped policy when an instance of deposit is broken, hangs or is flooded.

The instances say that they are ready all the time: what is seen here is found by counting.
"""

from __future__ import annotations

import logging
import time
from collections import Counter

import grpc
import pytest

from tests.policy.backends import CHARGE, HEALTH, READ, Backend, State
from tests.policy.conftest import Open
from tests.policy.ways import (
    AT_ONCE,
    EJECTED_SECONDS,
    ERRORS_IN_A_ROW,
    FAILED,
    OK,
    ROUTE_SECONDS,
    UNAVAILABLE,
    Made,
    Way,
    code_of,
    wait_for,
)

figures = logging.getLogger("figures")


def test_a_broken_instance_goes_after_five_errors_and_comes_back_after_fifteen_seconds(way: Way) -> None:
    sick, well = way.backends
    sick.state = "unavailable"
    said = way.eject()
    out = time.monotonic()
    assert said[UNAVAILABLE] == sick.calls[CHARGE] == ERRORS_IN_A_ROW
    assert said[OK] == well.calls[CHARGE]
    # From here on nobody notices, although it goes on saying that it is ready.
    assert [way.call(CHARGE) for _ in range(50)] == [OK] * 50
    assert sick.calls[CHARGE] == ERRORS_IN_A_ROW
    away = time.monotonic() - out + gets_well(way, sick)
    assert EJECTED_SECONDS - 1 < away < EJECTED_SECONDS + 3
    figures.info(
        "UNAVAILABLE of one of two: out after %s calls, %s failed, then 0 of 50, back after %.1f s",
        *(said.total(), said[UNAVAILABLE], away),
    )


def gets_well(way: Way, sick: Backend) -> float:
    """How long it takes until an instance gets calls again; none of them fails."""
    before = sick.calls[CHARGE]
    sick.state = "well"

    def is_back() -> bool:
        assert way.call(CHARGE) == OK
        return sick.calls[CHARGE] > before

    waited = wait_for(EJECTED_SECONDS + 5, is_back)
    assert way.ejected == 0
    return waited


def test_an_instance_that_hangs_is_found_by_the_routes_own_time(way: Way) -> None:
    sick, well = way.backends
    sick.state = "hangs"
    begin = time.monotonic()
    said = Counter(code_of(one) for one in [way.begin(CHARGE) for _ in range(2 * ERRORS_IN_A_ROW)])
    waited = time.monotonic() - begin
    # Whoever met the one that hangs was cut off by the route, and nobody else had to wait.
    assert sum(said[one] for one in FAILED) == sick.calls[CHARGE] >= 1
    assert ROUTE_SECONDS - 0.1 < waited < ROUTE_SECONDS + 1
    while not way.ejected:
        assert way.call(CHARGE) in (OK, *FAILED)
        assert sick.calls[CHARGE] <= ERRORS_IN_A_ROW + 1, "it was not ejected"
    out = begin = time.monotonic()
    failed = sick.calls[CHARGE]
    assert [way.call(CHARGE) for _ in range(20)] == [OK] * 20
    assert time.monotonic() - begin < 2
    assert sick.calls[CHARGE] == failed
    assert well.calls[CHARGE] > 0
    away = time.monotonic() - out + gets_well(way, sick)
    assert EJECTED_SECONDS - 1 < away < EJECTED_SECONDS + 3
    figures.info(
        "one of two hangs: %s calls failed, each after %.2f s, then 0 of 20, back after %.1f s",
        *(failed, waited, away),
    )


def test_of_two_sick_instances_one_stays_and_answers_are_fast(way: Way) -> None:
    for one in way.backends:
        one.state = "unavailable"
    way.eject()
    begin = time.monotonic()
    assert [way.call(CHARGE) for _ in range(20)] == [UNAVAILABLE] * 20
    assert time.monotonic() - begin < 2
    assert way.ejected == 1


def most_may_go(made: Made) -> None:
    """By the shipped policy half of the instances stay, and fewer are never left."""
    made.outlier_detection[made.name("max_ejection_percent")] = 70


def two_of_three_go(way: Way) -> None:
    for one in way.backends[:2]:
        one.state = "unavailable"
    way.eject(2)


def test_those_who_were_ejected_get_nothing_however_few_are_left(open_way: Open) -> None:
    way = open_way([Backend(ready=True) for _ in range(3)], edit=most_may_go)
    two_of_three_go(way)
    # Envoy hands on who is well once a second, so that the second one still gets some.
    wait_for(3, lambda: [way.call(CHARGE) for _ in range(10)] == [OK] * 10)
    assert [way.call(CHARGE) for _ in range(30)] == [OK] * 30
    assert way.proxy.stat("lb_healthy_panic") == 0


@pytest.mark.parametrize("deadline", [0.8, 10.0])
def test_deposit_is_told_the_routes_own_time_whatever_the_caller_has(way: Way, deadline: float) -> None:
    assert way.call(CHARGE, timeout=deadline) == OK
    (told,) = (one.had_left[0] for one in way.backends if one.had_left)
    assert ROUTE_SECONDS - 0.5 < told <= ROUTE_SECONDS


def test_more_charges_at_once_than_the_limit_are_refused_at_once(way: Way) -> None:
    assert way.call(CHARGE) == OK  # connected, or what waits for a connection is let in besides
    begin = time.monotonic()
    calls = way.begin_held(200)
    wait_for(10, lambda: sum(one.done() for one in calls) >= len(calls) - AT_ONCE)
    waited = time.monotonic() - begin
    wait_for(10, lambda: way.arrived(CHARGE) - 1 >= AT_ONCE)
    way.release()
    refused = [one for one in calls if code_of(one) == UNAVAILABLE]
    assert len(calls) - len(refused) == way.arrived(CHARGE) - 1 == AT_ONCE
    for call in refused:
        error = call.exception()
        assert isinstance(error, grpc.Call)
        # By this reservation knows that nothing was charged.
        assert ("x-envoy-overloaded", "true") in [tuple(pair) for pair in error.trailing_metadata() or ()]
    assert way.proxy.stat("upstream_rq_active_overflow") == len(refused)
    assert way.ejected == 0
    figures.info("200 at once: %s served, %s refused within %.2f s", AT_ONCE, len(refused), waited)


@pytest.mark.parametrize("state", ["unavailable", "overloaded", "internal", "hangs"])
def test_a_charge_is_tried_once_however_it_fails(way: Way, state: State) -> None:
    for one in way.backends:
        one.state = state
    said = way.call(CHARGE)
    assert said != OK
    assert way.arrived(CHARGE) == 1
    assert way.proxy.stat("upstream_rq_retry") == 0
    figures.info("a charge, %s: %s, 1 attempt", state, said.name)


def test_a_charge_is_tried_once_although_its_caller_asks_for_more(way: Way) -> None:
    for one in way.backends:
        one.state = "unavailable"
    wishes = [("x-envoy-retry-grpc-on", "unavailable"), ("x-envoy-max-retries", "3")]
    assert code_of(way.begin(CHARGE, headers=wishes)) == UNAVAILABLE
    assert way.arrived(CHARGE) == 1


def test_a_charge_whose_connection_is_refused_is_tried_once(way: Way) -> None:
    for one in way.backends:
        one.stop()
    assert way.call(CHARGE) == UNAVAILABLE
    assert way.proxy.stat("upstream_rq_retry") == 0


def asks_nobody(made: Made) -> None:
    """No health checks of its own, so that those of a caller can be counted."""
    made.cluster.pop(made.name("health_checks"), None)


@pytest.mark.parametrize(("method", "within"), [(READ, 3.6), (HEALTH, 1.0)], ids=["read", "health"])
@pytest.mark.parametrize("state", ["unavailable", "hangs"])
def test_a_read_is_tried_three_times(open_way: Open, method: str, within: float, state: State) -> None:
    way = open_way([Backend(), Backend()], edit=asks_nobody)
    for one in way.backends:
        one.state = state
    begin = time.monotonic()
    said = way.call(method)
    waited = time.monotonic() - begin
    assert said in FAILED
    assert way.arrived(method) == 3
    assert waited < within
    figures.info("%s, %s: %s, 3 attempts, %.2f s", method, state, said.name, waited)


def test_a_read_that_meets_a_broken_instance_goes_to_the_other(way: Way) -> None:
    way.backends[0].state = "unavailable"
    assert [way.call(READ) for _ in range(20)] == [OK] * 20


@pytest.mark.parametrize("deadline", [0.2, 1.0])
def test_callers_who_give_up_eject_nobody(way: Way, deadline: float) -> None:
    impatient(way, deadline)
    assert way.has_ejected_nobody()
    assert way.proxy.stat("upstream_rq_timeout") == 0


def impatient(way: Way, deadline: float) -> None:
    """Callers in a row who do not wait long for instances that hang."""
    for one in way.backends:
        one.state = "hangs"
    for _ in range(3):
        calls = [way.begin(CHARGE, timeout=deadline) for _ in range(16)]
        assert {code_of(one) for one in calls} <= set(FAILED)
    assert way.arrived(CHARGE) > 2 * ERRORS_IN_A_ROW, "void: they were cut off before they came"


def leads_on(made: Made) -> None:
    """The shipped routes know no other method (last test here); with this one of them lets all through."""
    made.route("charge")["match"] = {"prefix": "/"}


@pytest.mark.parametrize("what", ["Unknown", "Corrupt"])
def test_calls_that_nobody_can_read_eject_nobody(open_way: Open, what: str) -> None:
    way = open_way(edit=leads_on)
    said = Counter(way.call(f"/dinemesh.deposit.v1.DepositService/{what}") for _ in range(30))
    assert not {OK, *FAILED} & set(said), said
    assert way.has_ejected_nobody()
    figures.info("30 calls, %s: %s, nobody ejected", what, [one.name for one in said])


@pytest.mark.parametrize("method", ["RetryRefund", "Unknown"])
def test_what_no_route_names_gets_nowhere(way: Way, method: str) -> None:
    path = f"/dinemesh.deposit.v1.DepositService/{method}"
    assert way.call(path) == grpc.StatusCode.UNIMPLEMENTED
    assert way.arrived(path) == 0
