"""Settling says how late it is, for the metric that wakes an operator."""

from __future__ import annotations

from prometheus_client import REGISTRY

from reservation_svc.domain import State
from tests.reservation.conftest import Pod


def late_seconds() -> float | None:
    return REGISTRY.get_sample_value("dinemesh_settling_late_seconds")


async def test_a_deadline_that_nobody_looked_after_is_late_until_it_is(pod: Pod) -> None:
    placed = await pod.reserve(2)
    await pod.reconcile()
    assert late_seconds() == 0
    pod.clock.pass_by(seconds=3600 + 90)
    await pod.reconcile()
    assert late_seconds() == 90
    assert (await pod.see(placed)).state is State.DECLINED
    await pod.reconcile()
    assert late_seconds() == 0
