"""Without a line of the policy, either proxy does what the line is there against."""

from __future__ import annotations

from collections import Counter

import grpc

from tests.policy.backends import CHARGE, READ, Backend
from tests.policy.conftest import Open
from tests.policy.test_reservation_to_deposit import impatient, leads_on, most_may_go, two_of_three_go
from tests.policy.ways import (
    AT_ONCE,
    DETECTED,
    ERRORS_IN_A_ROW,
    FAILED,
    OK,
    ROUTE_SECONDS,
    UNAVAILABLE,
    Made,
    code_of,
    wait_for,
)

ISTIOS_OWN_RETRIES = {
    "num_retries": 2,
    "retry_on": "connect-failure,refused-stream,unavailable,cancelled,retriable-status-codes",
}
"""What Istio puts where a route says nothing (tests/mesh_truth: "the retries of a charge left out")."""


def test_without_the_share_of_ejections_half_of_all_calls_go_on_failing(open_way: Open) -> None:
    def without(made: Made) -> None:
        del made.outlier_detection[made.name("max_ejection_percent")]

    way = open_way(edit=without)
    way.backends[0].state = "unavailable"
    said = Counter(way.call(CHARGE) for _ in range(40))
    assert said[UNAVAILABLE] > 2 * ERRORS_IN_A_ROW
    assert way.ejected == 0


def test_without_the_panic_threshold_calls_go_to_those_who_were_ejected(open_way: Open) -> None:
    def without(made: Made) -> None:
        most_may_go(made)
        del made.cluster[made.name("common_lb_config")][made.name("healthy_panic_threshold")]

    way = open_way([Backend(ready=True) for _ in range(3)], edit=without)
    two_of_three_go(way)

    def panics() -> bool:
        way.call(CHARGE)
        return way.proxy.stat("lb_healthy_panic") > 0

    wait_for(3, panics)
    said = Counter(way.call(CHARGE) for _ in range(30))
    assert said[UNAVAILABLE] > 0


def test_without_its_own_word_on_retries_a_charge_is_made_three_times(open_way: Open) -> None:
    def repeats(made: Made) -> None:
        again = made.fields(ISTIOS_OWN_RETRIES)
        made.route("charge")["route"][made.name("retry_policy")] = again

    way = open_way(edit=repeats)
    for one in way.backends:
        one.state = "unavailable"
    assert way.call(CHARGE) == UNAVAILABLE
    assert way.arrived(CHARGE) == 3


def test_without_the_routes_time_an_instance_that_hangs_is_never_found(open_way: Open) -> None:
    def without(made: Made) -> None:
        made.route("charge")["route"].update(made.fields({"timeout": "0s", "max_grpc_timeout": "0s"}))

    way = open_way(edit=without)
    impatient(way, 1.0)
    assert way.proxy.stat(DETECTED) == 0


def test_without_the_limit_everything_gets_in(open_way: Open) -> None:
    def without(made: Made) -> None:
        (limits,) = made.cluster[made.name("circuit_breakers")]["thresholds"]
        del limits[made.name("max_requests")]

    way = open_way(edit=without)
    calls = way.begin_held(AT_ONCE + 40)
    wait_for(10, lambda: way.arrived(CHARGE) == len(calls))
    way.release()
    assert {code_of(one) for one in calls} == {OK}


def test_with_the_deadlines_of_others_impatience_is_held_against_an_instance(open_way: Open) -> None:
    def without(made: Made) -> None:
        kept = [one for one in made.filters if one["name"] != "no deadline of others"]
        assert len(kept) == len(made.filters) - 1
        made.filters[:] = kept

    way = open_way(edit=without)
    # Whose time runs out first, the caller's or Envoy's, is a race: some of them are enough.
    for _ in range(10):
        impatient(way, 0.5)
        if way.proxy.stat(DETECTED) > 0:
            break
    assert way.proxy.stat(DETECTED) > 0
    assert way.proxy.stat("upstream_rq_timeout") > 0


def test_without_the_routes_own_time_handed_on_deposit_would_take_as_long_as_it_likes(open_way: Open) -> None:
    def without(made: Made) -> None:
        del made.route("charge")["route"][made.name("max_grpc_timeout")]

    way = open_way(edit=without)
    assert way.call(CHARGE) == OK
    (told,) = (one.had_left[0] for one in way.backends if one.had_left)
    assert told > 2 * ROUTE_SECONDS


def test_with_unavailable_alone_a_read_that_hangs_is_tried_once(open_way: Open) -> None:
    def without(made: Made) -> None:
        again = made.route("reads")["route"][made.name("retry_policy")]
        again[made.name("retry_on")] = "connect-failure,refused-stream,unavailable"

    way = open_way(edit=without)
    for one in way.backends:
        one.state = "hangs"
    assert way.call(READ) in FAILED
    assert way.arrived(READ) == 1


def test_with_other_errors_counted_too_calls_to_no_method_eject_a_healthy_instance(open_way: Open) -> None:
    def counted(made: Made) -> None:
        leads_on(made)
        fields = {"consecutive_5xx": 5, "enforcing_consecutive_5xx": 100}
        known = set(made.outlier_detection)
        made.outlier_detection.update(made.fields(fields))
        assert set(made.outlier_detection) == known, "void: spelt as no field of the policy"

    way = open_way(edit=counted)
    said = {way.call("/dinemesh.deposit.v1.DepositService/Unknown") for _ in range(30)}
    assert grpc.StatusCode.UNIMPLEMENTED in said
    wait_for(5, lambda: way.ejected == 1)
