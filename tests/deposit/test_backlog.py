"""What is open is counted and timed, for the metrics that wake an operator."""

from __future__ import annotations

import pytest
from prometheus_client import REGISTRY

from deposit_svc.domain import RefundOrder
from dinemesh.kit.refusal import Refusal
from tests.deposit.conftest import THIRTY, Clock, Desk, new_id


def measured(*names: str) -> list[float | None]:
    return [REGISTRY.get_sample_value(f"dinemesh_{name}") for name in names]


async def test_a_charge_that_nobody_decides_grows_old(desk: Desk, clock: Clock) -> None:
    desk.provider.down = True
    undecided = "charges_undecided", "charges_undecided_longest_seconds"
    with pytest.raises(Refusal, match="DEPOSIT_IN_DOUBT"):
        await desk.create()
    clock.pass_by(400)
    await desk.settle()
    assert measured(*undecided) == [1, 400]
    desk.provider.down = False
    clock.pass_by(100)
    await desk.settle()
    assert measured(*undecided) == [0, 0]


async def test_a_refund_that_is_not_answered_grows_old_and_a_refused_one_is_counted(
    desk: Desk, clock: Clock
) -> None:
    deposit = await desk.create()
    desk.provider.down = True
    await desk.obey(RefundOrder(new_id(), deposit.deposit_id, THIRTY))
    clock.pass_by(50)
    await desk.settle()
    assert measured("refunds_pending", "refunds_pending_longest_seconds", "refunds_failed") == [1, 50, 0]
    desk.provider.down = False
    desk.provider.refuses_refunds = True
    clock.pass_by(100)
    await desk.settle()
    assert measured("refunds_pending", "refunds_pending_longest_seconds", "refunds_failed") == [0, 0, 1]
