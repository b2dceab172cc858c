"""What reservation's Envoy does with the shipped policy when deposit is broken, hangs or has too much."""

from __future__ import annotations

import re
import time
from collections import Counter
from collections.abc import Callable

import grpc
import pytest
import yaml

from tests.istio import shipped
from tests.istio.backends import CHARGE, HEALTH, READ, State
from tests.istio.conftest import Open, Way, code_of
from tests.istio.proxy import DEPOSIT

OK = grpc.StatusCode.OK
UNAVAILABLE = grpc.StatusCode.UNAVAILABLE
FAILED = (UNAVAILABLE, grpc.StatusCode.DEADLINE_EXCEEDED)
"""Of a back end that hangs. Envoy gives it its own time as a deadline, and either may notice first."""
EJECTIONS = "outlier_detection.ejections_active"

ERRORS_IN_A_ROW = 5
EJECTED_SECONDS = 15.0
ROUTE_SECONDS = 3.0
AT_ONCE = 32


Record = Callable[[str, object], None]


def wait_for(seconds: float, satisfied: object) -> float:
    """How long it took until `satisfied()`; fails after `seconds`."""
    assert callable(satisfied)
    begin = time.monotonic()
    while not satisfied():
        assert time.monotonic() - begin < seconds, f"not within {seconds} s"
        time.sleep(0.02)
    return time.monotonic() - begin


def eject(way: Way) -> Counter[grpc.StatusCode]:
    """Charges, one after the other, until an instance is out."""
    said: Counter[grpc.StatusCode] = Counter()
    for _ in range(100):
        said[way.call(CHARGE)] += 1
        if way.proxy.stat(EJECTIONS):
            return said
    raise AssertionError(f"nobody was ejected: {said}")


def test_a_broken_instance_goes_after_five_errors_and_comes_back_after_fifteen_seconds(
    way: Way, record_property: Record
) -> None:
    sick, well = way.backends
    sick.state = "unavailable"
    said = eject(way)
    out = time.monotonic()
    assert said[UNAVAILABLE] == sick.calls[CHARGE] == ERRORS_IN_A_ROW
    assert said[OK] == well.calls[CHARGE]
    # From here on nobody notices.
    assert [way.call(CHARGE) for _ in range(50)] == [OK] * 50
    assert sick.calls[CHARGE] == ERRORS_IN_A_ROW
    sick.state = "well"

    def is_back() -> bool:
        assert way.call(CHARGE) == OK
        return sick.calls[CHARGE] > ERRORS_IN_A_ROW

    wait_for(EJECTED_SECONDS + 5, is_back)
    away = time.monotonic() - out
    assert EJECTED_SECONDS - 1 < away < EJECTED_SECONDS + 3
    record_property(
        "calls", f"{said.total()} until it was out, {said[UNAVAILABLE]} failed, 0 after; {away:.1f} s"
    )
    assert way.proxy.stat(EJECTIONS) == 0


def test_an_instance_that_hangs_is_found_by_the_routes_own_timeout(way: Way, record_property: Record) -> None:
    sick, well = way.backends
    sick.state = "hangs"
    begin = time.monotonic()
    calls = [way.begin(CHARGE) for _ in range(2 * ERRORS_IN_A_ROW)]
    said = Counter(code_of(one) for one in calls)
    waited = time.monotonic() - begin
    # Whoever met the one that hangs was cut off by the route, and nobody else had to wait.
    assert sum(said[one] for one in FAILED) == sick.calls[CHARGE] >= 1
    assert ROUTE_SECONDS - 0.1 < waited < ROUTE_SECONDS + 1
    while not way.proxy.stat(EJECTIONS):
        code_of(way.begin(CHARGE))
        assert sick.calls[CHARGE] <= ERRORS_IN_A_ROW + 1, "it was not ejected"
    before = sick.calls[CHARGE]
    begin = time.monotonic()
    assert [way.call(CHARGE) for _ in range(20)] == [OK] * 20
    assert time.monotonic() - begin < 2
    assert sick.calls[CHARGE] == before
    assert well.calls[CHARGE] > 0
    record_property("calls", f"{before} met it, each for {waited:.1f} s; 0 after")


def test_of_two_sick_instances_one_stays_and_answers_are_fast(way: Way) -> None:
    for one in way.backends:
        one.state = "unavailable"
    eject(way)
    begin = time.monotonic()
    assert [way.call(CHARGE) for _ in range(20)] == [UNAVAILABLE] * 20
    assert time.monotonic() - begin < 2
    assert way.proxy.stat(EJECTIONS) == 1
    # Not the panic of Envoy, which would send to the ejected one too.
    assert way.proxy.stat("lb_healthy_panic") == 0


def test_more_than_thirty_two_charges_at_once_are_refused_at_once(way: Way) -> None:
    for one in way.backends:
        one.state = "slow"
    assert way.call(CHARGE) == OK  # both connected, or what waits for a connection is let in besides
    begin = time.monotonic()
    calls = [way.begin(CHARGE) for _ in range(200)]
    refused = [one for one in calls if code_of(one) == UNAVAILABLE]
    assert len(calls) - len(refused) == AT_ONCE
    assert time.monotonic() - begin < 5
    for call in refused:
        error = call.exception()
        assert isinstance(error, grpc.Call)
        # By this reservation knows that nothing was charged.
        assert ("x-envoy-overloaded", "true") in [tuple(pair) for pair in error.trailing_metadata() or ()]
    assert way.arrived(CHARGE) == AT_ONCE + 1
    assert way.proxy.stat(EJECTIONS) == 0


@pytest.mark.parametrize("state", ["unavailable", "overloaded", "internal", "hangs"])
def test_a_charge_is_tried_once_however_it_fails(way: Way, state: State) -> None:
    for one in way.backends:
        one.state = state
    assert way.call(CHARGE) != OK
    assert way.arrived(CHARGE) == 1
    assert way.proxy.stat("upstream_rq_retry") == 0


def test_a_charge_whose_connection_is_refused_is_tried_once(way: Way) -> None:
    for one in way.backends:
        one.stop()
    assert way.call(CHARGE) == UNAVAILABLE
    assert way.proxy.stat("upstream_rq_retry") == 0


@pytest.mark.parametrize(("method", "within"), [(READ, 3.6), (HEALTH, 1.0)])
@pytest.mark.parametrize("state", ["unavailable", "hangs"])
def test_a_read_is_tried_three_times(way: Way, method: str, within: float, state: State) -> None:
    for one in way.backends:
        one.state = state
    begin = time.monotonic()
    assert way.call(method) in FAILED
    assert way.arrived(method) == 3
    assert time.monotonic() - begin < within


def test_a_read_that_meets_a_broken_instance_goes_to_the_other(way: Way) -> None:
    way.backends[0].state = "unavailable"
    assert [way.call(READ) for _ in range(20)] == [OK] * 20


def hang_up(way: Way) -> tuple[int, int]:
    """Callers who do not wait long for instances that hang. How often Envoy's own time ran out, and how often
    it held that against an instance."""
    for one in way.backends:
        one.state = "hangs"
    for _ in range(5):
        calls = [way.begin(CHARGE, timeout=0.5) for _ in range(16)]
        assert {code_of(one) for one in calls} <= set(FAILED)
    assert way.arrived(CHARGE) > 2 * ERRORS_IN_A_ROW
    counted = "outlier_detection.ejections_detected_consecutive_gateway_failure"
    return way.proxy.stat("upstream_rq_timeout"), way.proxy.stat(counted)


def test_callers_who_give_up_eject_nobody(way: Way) -> None:
    assert hang_up(way) == (0, 0)


@pytest.mark.parametrize("what", ["Unknown", "Corrupt"])
def test_calls_that_nobody_can_read_eject_nobody(open_way: Open, what: str) -> None:
    # The shipped routes know no such method (the next test); here one of them leads on.
    way = open_way(lambda made: _charge(made).update(match={"prefix": "/"}))
    said = Counter(way.call(f"/dinemesh.deposit.v1.DepositService/{what}") for _ in range(30))
    assert OK not in said and UNAVAILABLE not in said, said
    time.sleep(1.5)  # longer than the interval of the sweep
    assert way.proxy.stat(EJECTIONS) == 0
    assert way.proxy.stat("outlier_detection.ejections_detected_consecutive_gateway_failure") == 0


def test_what_no_route_names_gets_nowhere(way: Way) -> None:
    assert way.call("/dinemesh.deposit.v1.DepositService/RetryRefund") == grpc.StatusCode.UNIMPLEMENTED
    assert way.arrived("/dinemesh.deposit.v1.DepositService/RetryRefund") == 0


def test_the_counters_that_pods_show_are_those_of_ejections_limits_and_repetitions(way: Way) -> None:
    (pods,) = shipped.read(shipped.ROOT / "k8s" / "base" / "every_service.yaml")
    annotation = pods["spec"]["template"]["metadata"]["annotations"]["proxy.istio.io/config"]
    shown = yaml.safe_load(annotation)["proxyStatsMatcher"]["inclusionRegexps"]
    way.backends[0].state = "unavailable"
    eject(way)
    for wanted in (
        "outlier_detection.ejections_active",
        "circuit_breakers.default.rq_open",
        "upstream_rq_retry",
        "upstream_rq_active_overflow",
        "upstream_rq_timeout",
    ):
        names = [one for one in way.proxy.names_of_stats() if DEPOSIT in one and one.endswith(wanted)]
        assert names, f"Envoy has no {wanted}"
        assert any(re.fullmatch(one, name) for one in shown for name in names), wanted


def _charge(made: object) -> dict[str, object]:
    assert isinstance(made, dict)
    (charge,) = (
        route
        for config in made["routes"]
        for host in config["virtualHosts"]
        for route in host["routes"]
        if route.get("name") == "charge"
    )
    assert isinstance(charge, dict)
    return charge
