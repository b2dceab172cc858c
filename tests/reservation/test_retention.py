"""A request id is known for as long as what it led to can change, and for the retention after that."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from sqlalchemy import select, update

from dinemesh.kit.retention import Retention
from reservation_svc.domain import FINAL, HOLDS_SEATS, State
from reservation_svc.persistence import tables
from reservation_svc.persistence.requests import EXPIRING
from tests.reservation.conftest import DINNER, Pod, new_id

DAYS = 30
PARTY = 1
_WITH: dict[State, dict[str, Any]] = {
    State.FAILED: {"failure": "CARD_DECLINED"},
    State.DECLINED: {"decline_cause": "RESTAURANT"},
    State.CANCELLED: {"cancelled_by": "CUSTOMER"},
}
"""What a reservation in that state has besides."""


async def known(pod: Pod) -> list[str]:
    query = select(tables.requests.c.request_id)
    return await pod.store.read(lambda tx: list(tx.execute(query).scalars()))


async def prune(pod: Pod) -> None:
    await Retention(pod.store, tables.retention, [EXPIRING], days=DAYS).turn()


async def make(pod: Pod, state: State, age_days: float, *reservation_ids: str) -> None:
    """Lets reservations be in that state for so long."""
    since = datetime.now(UTC) - timedelta(days=age_days)
    values = {"state": state.value, "update_time": since, "modification_id": None} | _WITH.get(state, {})
    rows = update(tables.reservations).where(tables.reservations.c.reservation_id.in_(reservation_ids))
    assert await pod.store.write(lambda tx: tx.changed(rows.values(values))) == len(reservation_ids)
    if state not in HOLDS_SEATS:
        freed = update(tables.slots).where(tables.slots.c.dine_time == DINNER)
        freed = freed.values(sold=tables.slots.c.sold - PARTY * len(reservation_ids))
        await pod.store.write(lambda tx: tx.execute(freed))


@pytest.mark.parametrize("state", State)
@pytest.mark.parametrize("age_days", [0, DAYS - 0.01, DAYS + 0.01, 400])
async def test_a_request_goes_when_its_reservation_has_ended_long_ago(
    pod: Pod, state: State, age_days: float
) -> None:
    placed = await pod.reserve(PARTY, request_id="asked")
    await pod.modify(placed, request_id="changed", note="by the window")
    await make(pod, state, age_days, placed.reservation_id)
    await prune(pod)
    goes = state in FINAL and age_days > DAYS
    assert sorted(await known(pod)) == ([] if goes else ["asked", "changed"])


async def test_a_request_that_is_still_known_gets_its_answer_and_one_that_is_not_makes_a_new_attempt(
    pod: Pod,
) -> None:
    alive, ended = new_id(), new_id()
    first, second = await pod.reserve(PARTY, request_id=alive), await pod.reserve(PARTY, request_id=ended)
    await make(pod, State.CONFIRMED, 400, first.reservation_id)
    await make(pod, State.COMPLETED, 400, second.reservation_id)
    await prune(pod)
    assert (await pod.reserve(PARTY, request_id=alive)).reservation_id == first.reservation_id
    assert (await pod.reserve(PARTY, request_id=ended)).reservation_id != second.reservation_id
    assert await pod.sold(DINNER) == 3, "seats of a meal that was eaten stay sold"


async def test_pages_pass_over_what_stays(pod: Pod) -> None:
    placed = [
        await pod.reserve(PARTY, request_id=f"{number}", customer=f"c-{number % 3}") for number in range(9)
    ]
    await make(pod, State.DECLINED, 31, *(one.reservation_id for one in placed[::4]))
    await Retention(pod.store, tables.retention, [EXPIRING], days=DAYS, step_rows=2).turn()
    assert sorted(await known(pod)) == [f"{number}" for number in range(9) if number % 4]
