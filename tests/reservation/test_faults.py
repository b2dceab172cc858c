"""The database stumbles in the middle of a reservation: still one reservation, one charge, one answer."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any, TypeVar, cast

import pytest

from dinemesh.kit.refusal import Refusal
from dinemesh.kit.store import CommitInDoubt, Store, StoreUnavailable, Transaction
from reservation_svc.domain import State
from tests.reservation.conftest import Pod, new_id
from tests.reservation.refusals import refused

T = TypeVar("T")


class StumblingStore:
    """A store whose writes go wrong as told, one after the other; then they go well."""

    def __init__(self, store: Store, *steps: str) -> None:
        self._store = store
        self.steps = list(steps)

    async def write(
        self, change: Callable[[Transaction], T], *, shed: bool = False, on: Sequence[str] = ()
    ) -> T:
        step = self.steps.pop(0) if self.steps else "well"
        if step == "away":
            raise StoreUnavailable("the database cannot be reached")
        if step == "busy":
            raise Refusal("TRY_AGAIN_LATER", "The service is busy.", retry_after=1.0)
        if step == "in doubt, and lost":
            raise CommitInDoubt("the outcome of a commit is unknown")
        answer = await self._store.write(change, shed=shed)
        if step == "in doubt, and done":
            raise CommitInDoubt("the outcome of a commit is unknown")
        return answer

    async def read(self, query: Callable[[Transaction], T]) -> T:
        return await self._store.read(query)


def stumble(pod: Pod, *steps: str, record: float = 5) -> StumblingStore:
    store = StumblingStore(pod.store, *steps)
    limits = replace(pod.ctx.limits, record=record)
    pod.ctx = replace(pod.ctx, store=cast(Any, store), limits=limits)
    return store


IN_DOUBT = ["in doubt, and done", "in doubt, and lost"]
STUMBLES = [
    *[(one,) for one in IN_DOUBT],
    *[("well", one) for one in [*IN_DOUBT, "away", "busy"]],
    *[(first, second) for first in IN_DOUBT for second in IN_DOUBT],
    ("well", "away", "in doubt, and done"),
    ("in doubt, and done", "in doubt, and lost", "busy", "in doubt, and done", "away"),
]


@pytest.mark.parametrize("steps", STUMBLES, ids="+".join)
async def test_a_reservation_survives_a_stumbling_database(pod: Pod, steps: tuple[str, ...]) -> None:
    request_id = new_id()
    store = stumble(pod, *steps)
    made = await pod.reserve(request_id=request_id)
    assert not store.steps, "every fault happened"
    assert made.state is State.PENDING_ACCEPTANCE
    assert await pod.reserve(request_id=request_id) == made
    assert len(pod.deposits.asked) == 1
    assert await pod.mine() == [made]
    assert await pod.sold() == 2
    assert await pod.events(made) == ["Placed"]


@pytest.mark.parametrize("steps", STUMBLES, ids="+".join)
async def test_a_dearer_modification_survives_a_stumbling_database(pod: Pod, steps: tuple[str, ...]) -> None:
    booked, request_id = await pod.book(2), new_id()
    store = stumble(pod, "well", *steps)  # first it is looked whether it costs more at all
    modified = await pod.modify(booked, party=5, request_id=request_id)
    assert not store.steps, "every fault happened"
    assert (modified.terms.party_size, modified.terms.revision, modified.held_total) == (5, 2, 5000)
    assert await pod.modify(booked, party=5, request_id=request_id) == modified
    assert len(pod.deposits.asked) == 2
    assert await pod.sold() == 5


async def test_a_busy_store_refuses_a_new_wish_and_answers_an_old_one(pod: Pod) -> None:
    request_id = new_id()
    made = await pod.reserve(request_id=request_id)
    stumble(pod, "busy", "busy")
    assert await pod.reserve(request_id=request_id) == made
    said = await refused("TRY_AGAIN_LATER", pod.reserve())
    assert said.retry_after == 1
    assert len(pod.deposits.asked) == 1


async def test_a_database_away_for_long_after_the_charge_leaves_it_to_the_event(pod: Pod) -> None:
    request_id = new_id()
    stumble(pod, "well", *["away"] * 1000, record=0.2)
    await refused("OUTCOME_UNKNOWN", pod.reserve(request_id=request_id))
    stumble(pod)
    await refused("REQUEST_IN_PROGRESS", pod.reserve(request_id=request_id))
    (held,) = await pod.mine()
    await pod.on_deposit(held, pod.deposits.news(held.deposits[0].deposit_id))
    assert (await pod.reserve(request_id=request_id)).state is State.PENDING_ACCEPTANCE
    assert len(pod.deposits.asked) == 1


async def test_an_outcome_that_is_not_known_comes_with_a_time_to_ask_again(pod: Pod) -> None:
    booked = await pod.book(2)
    stumble(pod, "well", *["away"] * 1000, record=0.2)
    for call in (pod.reserve(), pod.modify(booked, party=3)):
        said = await refused("OUTCOME_UNKNOWN", call)
        assert said.retry_after == pod.ctx.limits.retry_after
        stumble(pod, "well", "well", *["away"] * 1000, record=0.2)


async def test_nobody_waits_until_an_outcome_can_be_recorded_and_it_is(pod: Pod) -> None:
    store = stumble(pod, "well", *["away"] * 1000, record=20)
    begun = time.monotonic()
    await refused("OUTCOME_UNKNOWN", pod.reserve())
    assert time.monotonic() - begun < 5
    store.steps.clear()  # the database is back
    end = time.monotonic() + 10
    while (await pod.mine())[0].state is not State.PENDING_ACCEPTANCE:
        assert time.monotonic() < end, "the outcome was forgotten"
        await asyncio.sleep(0.02)


async def test_a_database_away_before_anything_begins_charges_nothing(pod: Pod) -> None:
    stumble(pod, "away")
    with pytest.raises(StoreUnavailable):
        await pod.reserve()
    assert pod.deposits.asked == []
