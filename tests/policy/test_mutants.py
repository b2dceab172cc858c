"""Without a line of the policy, Envoy does what the line is there against."""

from __future__ import annotations

from collections import Counter
from typing import Any

import grpc

from tests.istio.backends import CHARGE, READ
from tests.istio.conftest import Open, code_of
from tests.istio.proxy import DEPOSIT
from tests.istio.test_reservation_to_deposit import (
    AT_ONCE,
    EJECTIONS,
    FAILED,
    OK,
    UNAVAILABLE,
    hang_up,
)

ISTIOS_OWN_RETRIES = {
    "numRetries": 2,
    "retryOn": "connect-failure,refused-stream,unavailable,cancelled,retriable-status-codes",
}
"""What Istio puts where a route says nothing (tests/mesh_truth: "the retries of a charge left out")."""


def cluster(made: Any) -> Any:
    return next(one for one in made["clusters"] if one["name"] == DEPOSIT)


def action(made: Any, name: str) -> Any:
    return next(
        route["route"]
        for config in made["routes"]
        for host in config["virtualHosts"]
        for route in host["routes"]
        if route.get("name") == name
    )


def test_without_the_share_of_ejections_half_of_all_calls_go_on_failing(open_way: Open) -> None:
    way = open_way(lambda made: cluster(made)["outlierDetection"].pop("maxEjectionPercent"))
    way.backends[0].state = "unavailable"
    said = Counter(way.call(CHARGE) for _ in range(40))
    assert said[UNAVAILABLE] > 10
    assert way.proxy.stat(EJECTIONS) == 0


def test_without_its_own_word_on_retries_a_charge_is_made_three_times(open_way: Open) -> None:
    way = open_way(lambda made: action(made, "charge").update(retryPolicy=ISTIOS_OWN_RETRIES))
    for one in way.backends:
        one.state = "unavailable"
    assert way.call(CHARGE) == UNAVAILABLE
    assert way.arrived(CHARGE) == 3


def test_without_the_routes_timeout_an_instance_that_hangs_is_never_found(open_way: Open) -> None:
    def without(made: Any) -> None:
        action(made, "charge").update(timeout="0s", maxGrpcTimeout="0s")

    way = open_way(without)
    for one in way.backends:
        one.state = "hangs"
    # The callers' own deadline, which Envoy takes for their hanging up.
    calls = [way.begin(CHARGE, timeout=1.0) for _ in range(16)]
    assert {code_of(one) for one in calls} == {grpc.StatusCode.DEADLINE_EXCEEDED}
    assert way.proxy.stat(EJECTIONS) == 0


def test_without_the_limit_everything_gets_in(open_way: Open) -> None:
    way = open_way(lambda made: cluster(made)["circuitBreakers"]["thresholds"][0].pop("maxRequests"))
    for one in way.backends:
        one.state = "slow"
    calls = [way.begin(CHARGE) for _ in range(3 * AT_ONCE)]
    assert {code_of(one) for one in calls} == {OK}


def test_with_the_deadlines_of_others_impatience_is_held_against_an_instance(open_way: Open) -> None:
    def without(made: Any) -> None:
        for one in made["listeners"]:
            for chain in one["filterChains"]:
                for each in chain["filters"]:
                    filters = each["typedConfig"].get("httpFilters", [])
                    filters[:] = [found for found in filters if found["name"] != "no deadline of others"]

    ran_out, _ = hang_up(open_way(without))
    assert ran_out > 0


def test_with_unavailable_alone_a_read_that_hangs_is_tried_once(open_way: Open) -> None:
    def without(made: Any) -> None:
        action(made, "reads")["retryPolicy"]["retryOn"] = "connect-failure,refused-stream,unavailable"

    way = open_way(without)
    for one in way.backends:
        one.state = "hangs"
    assert way.call(READ) in FAILED
    assert way.arrived(READ) == 1


def test_with_other_errors_counted_too_calls_to_no_method_eject_a_healthy_instance(open_way: Open) -> None:
    def counted(made: Any) -> None:
        cluster(made)["outlierDetection"].update(consecutive5xx=5, enforcingConsecutive5xx=100)
        for config in made["routes"]:
            for host in config["virtualHosts"]:
                for route in host["routes"]:
                    if route.get("name") == "charge":
                        route["match"] = {"prefix": "/"}

    way = open_way(counted)
    for _ in range(30):
        way.call("/dinemesh.deposit.v1.DepositService/Unknown")
    assert way.proxy.stat(EJECTIONS) == 1
