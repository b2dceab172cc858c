"""What the proxy of one machine does where Istio has Kubernetes: one deposit alone, and who is ready."""

from __future__ import annotations

import logging

import pytest

from tests.policy.backends import CHARGE, Backend
from tests.policy.conftest import Open
from tests.policy.ways import ERRORS_IN_A_ROW, OK, UNAVAILABLE, Way, wait_for

figures = logging.getLogger("figures")

pytestmark = pytest.mark.parametrize("open_way", ["one machine"], indirect=True)


def test_one_that_is_alone_is_never_ejected_and_takes_calls_as_soon_as_it_can(open_way: Open) -> None:
    way = open_way([Backend(ready=True)])
    (alone,) = way.backends
    alone.state = "unavailable"
    assert [way.call(CHARGE) for _ in range(4 * ERRORS_IN_A_ROW)] == [UNAVAILABLE] * 4 * ERRORS_IN_A_ROW
    assert alone.calls[CHARGE] == 4 * ERRORS_IN_A_ROW
    assert way.ejected == 0
    alone.state = "well"
    assert way.call(CHARGE) == OK


def test_an_instance_that_says_it_is_not_ready_gets_nothing_new(way: Way) -> None:
    stopping, other = way.backends
    stopping.ready = False
    noticed = wait_for(5, lambda: way.proxy.stat("membership_healthy") == 1)
    before = stopping.calls[CHARGE]
    assert [way.call(CHARGE) for _ in range(20)] == [OK] * 20
    assert (stopping.calls[CHARGE], other.calls[CHARGE]) == (before, 20)
    figures.info("NOT_SERVING is noticed after %.1f s", noticed)
