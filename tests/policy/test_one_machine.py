"""What the proxy does with the shipped policy when an instance of deposit is broken, hangs or has too much.

The instances say that they are ready all the time: what is seen here is found by counting, as in Istio.
"""

from __future__ import annotations

import logging
import time
from collections import Counter

import grpc
import pytest

from tests.istio.backends import CHARGE, HEALTH, READ, SLOW_SECONDS, Backend, State
from tests.policy.conftest import EJECTED_SECONDS, Open, ReadyBackend, Way, code_of, wait_for
from tests.support.policy import Config

figures = logging.getLogger("figures")

OK = grpc.StatusCode.OK
UNAVAILABLE = grpc.StatusCode.UNAVAILABLE
FAILED = (UNAVAILABLE, grpc.StatusCode.DEADLINE_EXCEEDED)
ERRORS_IN_A_ROW = 5
ROUTE_SECONDS = 3.0
AT_ONCE = 32


def eject(way: Way) -> Counter[grpc.StatusCode]:
    """Charges, one after the other, until an instance is out."""
    said: Counter[grpc.StatusCode] = Counter()
    while not way.proxy.ejected:
        said[way.call(CHARGE)] += 1
        assert said.total() < 100, f"nobody was ejected: {said}"
    return said


def test_a_broken_instance_goes_after_five_errors_and_comes_back_after_fifteen_seconds(way: Way) -> None:
    sick, well = way.backends
    sick.state = "unavailable"
    said = eject(way)
    out = time.monotonic()
    assert said[UNAVAILABLE] == sick.calls[CHARGE] == ERRORS_IN_A_ROW
    assert said[OK] == well.calls[CHARGE]
    # From here on nobody notices, although it goes on saying that it is ready.
    assert [way.call(CHARGE) for _ in range(50)] == [OK] * 50
    assert sick.calls[CHARGE] == ERRORS_IN_A_ROW
    sick.state = "well"

    def is_back() -> bool:
        assert way.call(CHARGE) == OK
        return sick.calls[CHARGE] > ERRORS_IN_A_ROW

    wait_for(EJECTED_SECONDS + 5, is_back)
    back = time.monotonic() - out
    assert EJECTED_SECONDS - 1 < back < EJECTED_SECONDS + 3
    figures.info(
        "UNAVAILABLE of one of two: out after %s calls, %s failed, back after %.1f s",
        said.total(),
        said[UNAVAILABLE],
        back,
    )


def test_an_instance_that_hangs_is_found_by_the_routes_own_time(way: Way) -> None:
    sick, well = way.backends
    sick.state = "hangs"
    begin = time.monotonic()
    said = Counter(code_of(one) for one in [way.begin(CHARGE) for _ in range(2 * ERRORS_IN_A_ROW)])
    waited = time.monotonic() - begin
    assert sum(said[one] for one in FAILED) == sick.calls[CHARGE] >= 1
    assert ROUTE_SECONDS - 0.1 < waited < ROUTE_SECONDS + 1
    while not way.proxy.ejected:
        assert way.call(CHARGE) in (OK, *FAILED)
        assert sick.calls[CHARGE] <= ERRORS_IN_A_ROW + 1, "it was not ejected"
    failed = sick.calls[CHARGE]
    begin = time.monotonic()
    assert [way.call(CHARGE) for _ in range(20)] == [OK] * 20
    assert time.monotonic() - begin < 2
    assert sick.calls[CHARGE] == failed
    assert well.calls[CHARGE] > 0
    figures.info("one of two hangs: %s calls failed, each after %.2f s, then none", failed, waited)


def test_of_two_sick_instances_one_stays_and_answers_are_fast(way: Way) -> None:
    for one in way.backends:
        one.state = "unavailable"
    eject(way)
    begin = time.monotonic()
    assert [way.call(CHARGE) for _ in range(20)] == [UNAVAILABLE] * 20
    assert time.monotonic() - begin < 2
    assert way.proxy.ejected == 1
    assert way.proxy.stat("lb_healthy_panic") == 0


def test_one_that_is_alone_is_never_ejected_and_takes_calls_as_soon_as_it_can(open_way: Open) -> None:
    way = open_way([ReadyBackend()])
    (alone,) = way.backends
    alone.state = "unavailable"
    assert [way.call(CHARGE) for _ in range(4 * ERRORS_IN_A_ROW)] == [UNAVAILABLE] * 4 * ERRORS_IN_A_ROW
    assert alone.calls[CHARGE] == 4 * ERRORS_IN_A_ROW
    assert way.proxy.ejected == 0
    alone.state = "well"
    assert way.call(CHARGE) == OK


def test_without_a_share_to_eject_nobody_of_two_would_ever_go(open_way: Open) -> None:
    way = open_way(mutate=lambda config: _outlier(config).pop("max_ejection_percent"))
    way.backends[0].state = "unavailable"
    said = Counter(way.call(CHARGE) for _ in range(40))
    assert said[UNAVAILABLE] > 2 * ERRORS_IN_A_ROW
    assert way.proxy.ejected == 0


def test_an_instance_that_says_it_is_not_ready_gets_nothing_new(way: Way) -> None:
    stopping, other = way.backends
    assert isinstance(stopping, ReadyBackend)
    stopping.ready = False
    noticed = wait_for(5, lambda: way.proxy.stat("membership_healthy") == 1)
    before = stopping.calls[CHARGE]
    assert [way.call(CHARGE) for _ in range(20)] == [OK] * 20
    assert (stopping.calls[CHARGE], other.calls[CHARGE]) == (before, 20)
    figures.info("NOT_SERVING is noticed after %.1f s", noticed)


def test_more_than_thirty_two_charges_at_once_are_refused_at_once(way: Way) -> None:
    for one in way.backends:
        one.state = "slow"
    begin = time.monotonic()
    calls = [way.begin(CHARGE) for _ in range(200)]
    refused = [one for one in calls if code_of(one) == UNAVAILABLE]
    assert len(calls) - len(refused) == way.arrived(CHARGE) == AT_ONCE
    assert time.monotonic() - begin < SLOW_SECONDS + 5
    for call in refused:
        error = call.exception()
        assert isinstance(error, grpc.Call)
        # By this reservation knows that nothing was charged.
        assert ("x-envoy-overloaded", "true") in [tuple(pair) for pair in error.trailing_metadata() or ()]
    assert way.proxy.stat("upstream_rq_active_overflow") == len(refused)
    assert way.proxy.ejected == 0


@pytest.mark.parametrize("state", ["unavailable", "overloaded", "internal", "hangs"])
def test_a_charge_is_tried_once_however_it_fails(way: Way, state: State) -> None:
    for one in way.backends:
        one.state = state
    assert way.call(CHARGE) != OK
    assert way.arrived(CHARGE) == 1
    assert way.proxy.stat("upstream_rq_retry") == 0


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


@pytest.mark.parametrize("state", ["unavailable", "hangs"])
def test_a_read_is_tried_three_times(way: Way, state: State) -> None:
    for one in way.backends:
        one.state = state
    begin = time.monotonic()
    assert way.call(READ) in FAILED
    assert way.arrived(READ) == 3
    assert time.monotonic() - begin < 3.6


@pytest.mark.parametrize("state", ["unavailable", "hangs"])
def test_a_question_about_health_is_tried_three_times_within_its_second(open_way: Open, state: State) -> None:
    way = open_way([Backend(), Backend()], mutate=_asks_nobody)
    for one in way.backends:
        one.state = state
    begin = time.monotonic()
    assert way.call(HEALTH) in FAILED
    assert time.monotonic() - begin < 1
    assert way.arrived(HEALTH) == 3


def test_a_read_that_meets_a_broken_instance_goes_to_the_other(way: Way) -> None:
    way.backends[0].state = "unavailable"
    assert [way.call(READ) for _ in range(20)] == [OK] * 20


@pytest.mark.parametrize("what", ["Unknown", "Corrupt"])
def test_calls_that_nobody_can_read_eject_nobody(open_way: Open, what: str) -> None:
    # The shipped routes know no such method (below); here one of them leads on.
    way = open_way(mutate=lambda config: _routes(config)[0].update(match={"prefix": "/"}))
    said = Counter(way.call(f"/dinemesh.deposit.v1.DepositService/{what}") for _ in range(30))
    assert OK not in said and UNAVAILABLE not in said, said
    time.sleep(1.5)  # longer than the interval of the sweep
    assert way.proxy.ejected == 0
    assert way.proxy.stat("outlier_detection.ejections_detected_consecutive_gateway_failure") == 0


def test_with_errors_of_any_kind_counted_they_would(open_way: Open) -> None:
    def mutate(config: Config) -> None:
        _routes(config)[0].update(match={"prefix": "/"})
        _outlier(config).update(consecutive_5xx=5, enforcing_consecutive_5xx=100)

    way = open_way(mutate=mutate)
    calls = (way.call("/dinemesh.deposit.v1.DepositService/Unknown") for _ in range(30))
    assert grpc.StatusCode.UNIMPLEMENTED in list(calls)
    wait_for(5, lambda: way.proxy.ejected == 1)


def test_with_repetitions_a_charge_would_arrive_three_times(open_way: Open) -> None:
    again = {"retry_on": "unavailable", "num_retries": 2}
    way = open_way(mutate=lambda config: _routes(config)[0]["route"].update(retry_policy=again))
    for one in way.backends:
        one.state = "unavailable"
    assert way.call(CHARGE) == UNAVAILABLE
    assert way.arrived(CHARGE) == 3


@pytest.mark.parametrize("deadline", [0.2, 1.0])
def test_callers_who_give_up_eject_nobody(way: Way, deadline: float) -> None:
    seen = impatient(way, deadline)
    assert seen == 0


def test_with_their_own_deadlines_handed_on_they_would(open_way: Open) -> None:
    way = open_way(mutate=_hands_deadlines_on)
    assert impatient(way, 1.0) > 0, "void: what the filter is for does not happen without it"


def impatient(way: Way, deadline: float) -> int:
    """Callers in a row who give up; how often they were taken for five errors of an instance."""
    for one in way.backends:
        one.state = "hangs"
    for _ in range(3):
        calls = [way.begin(CHARGE, timeout=deadline) for _ in range(AT_ONCE // 2)]
        assert OK not in map(code_of, calls)
    time.sleep(1.5)  # longer than the interval of the sweep
    return way.proxy.stat("outlier_detection.ejections_detected_consecutive_gateway_failure")


@pytest.mark.parametrize("method", ["RetryRefund", "Unknown"])
def test_what_no_route_names_gets_nowhere(way: Way, method: str) -> None:
    path = f"/dinemesh.deposit.v1.DepositService/{method}"
    assert way.call(path) == grpc.StatusCode.UNIMPLEMENTED
    assert way.arrived(path) == 0


def _manager(config: Config) -> Config:
    (listener,) = config["static_resources"]["listeners"]
    found: Config = listener["filter_chains"][0]["filters"][0]["typed_config"]
    return found


def _routes(config: Config) -> list[Config]:
    found: list[Config] = _manager(config)["route_config"]["virtual_hosts"][0]["routes"]
    return found


def _hands_deadlines_on(config: Config) -> None:
    filters = _manager(config)["http_filters"]
    filters[:] = [one for one in filters if one["name"] != "deadlines"]


def _cluster(config: Config) -> Config:
    (found,) = config["static_resources"]["clusters"]
    assert isinstance(found, dict)
    return found


def _outlier(config: Config) -> Config:
    found: Config = _cluster(config)["outlier_detection"]
    return found


def _asks_nobody(config: Config) -> None:
    """No health checks of its own: those of a caller are counted then."""
    del _cluster(config)["health_checks"]
