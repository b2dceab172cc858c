"""What is open is counted and timed, for the metrics that wake an operator."""

from __future__ import annotations

import pytest
from prometheus_client import REGISTRY

from deposit_svc.domain import RefundOrder
from dinemesh.kit.refusal import Refusal
from tests.deposit.conftest import THIRTY, Clock, Pod, new_id


def measured(*names: str) -> list[float | None]:
    return [REGISTRY.get_sample_value(f"dinemesh_{name}") for name in names]


async def test_a_charge_that_nobody_decides_grows_old(pod: Pod, clock: Clock) -> None:
    pod.provider.down = True
    undecided = "charges_undecided", "charges_undecided_longest_seconds"
    with pytest.raises(Refusal, match="DEPOSIT_IN_DOUBT"):
        await pod.create()
    clock.pass_by(400)
    await pod.reconcile()
    assert measured(*undecided) == [1, 400]
    pod.provider.down = False
    clock.pass_by(100)
    await pod.reconcile()
    assert measured(*undecided) == [0, 0]


async def test_a_refund_that_is_not_answered_grows_old_and_a_refused_one_is_counted(
    pod: Pod, clock: Clock
) -> None:
    deposit = await pod.create()
    pod.provider.down = True
    await pod.apply_instructions(RefundOrder(new_id(), deposit.deposit_id, THIRTY))
    clock.pass_by(50)
    await pod.reconcile()
    assert measured("refunds_pending", "refunds_pending_longest_seconds", "refunds_failed") == [1, 50, 0]
    pod.provider.down = False
    pod.provider.refuses_refunds = True
    clock.pass_by(100)
    await pod.reconcile()
    assert measured("refunds_pending", "refunds_pending_longest_seconds", "refunds_failed") == [0, 0, 1]
