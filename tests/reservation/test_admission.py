"""Who may try to charge: the circuit breaker judges deposit alone, the bulkhead gives everybody a turn, and
no customer holds much that he does not pay for."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import replace

import pytest

from dinemesh.kit.refusal import Refusal
from reservation_svc.domain import State
from reservation_svc.usecases.bulkhead import Bulkhead, Place
from reservation_svc.usecases.circuit_breaker import BreakerState
from tests.reservation.conftest import (
    DINNER,
    LATER,
    RULES,
    Clock,
    OpenPod,
    Pod,
    new_id,
    with_time_left,
)
from tests.reservation.refusals import refused

PEOPLE = ("ann", "ben", "cleo", "dan")


@pytest.mark.parametrize("left", [0.6, 1.3])
async def test_impatient_callers_do_not_open_the_breaker(pod: Pod, left: float) -> None:
    pod.deposits.gate.clear()  # deposit takes its time
    pod.ctx = replace(pod.ctx, limits=replace(pod.ctx.limits, deposit_deadline=1.2))
    for seconds, believed in ((left, False), (30, True)):
        with_time_left(seconds)
        at_once = [refused("TRY_AGAIN_LATER", pod.reserve(customer=name)) for name in PEOPLE]
        await asyncio.gather(*at_once)
        # Who waits as long as we would ourselves is believed.
        assert (pod.admission.refusal() is not None) is believed


async def open_the_breaker(pod: Pod) -> None:
    for name in PEOPLE:
        await refused("TRY_AGAIN_LATER", pod.reserve(card="tok_unknown", customer=name))
    assert pod.admission.state is BreakerState.OPEN


async def test_the_open_breaker_refuses_charges_and_lets_repeats_and_cheap_things_through(pod: Pod) -> None:
    request_id = new_id()
    placed = await pod.reserve(request_id=request_id)
    booked = await pod.book(at=LATER)
    pod.deposits.healthy = False
    await open_the_breaker(pod)
    asked = len(pod.deposits.asked)
    before = len(await pod.mine())
    said = await refused("TRY_AGAIN_LATER", pod.reserve())
    assert said.retry_after is not None and said.retry_after > 0
    await refused("TRY_AGAIN_LATER", pod.modify(booked, party=5))
    assert len(pod.deposits.asked) == asked
    assert len(await pod.mine()) == before
    assert await pod.reserve(request_id=request_id) == placed
    await refused("REQUEST_ID_REUSED", pod.reserve(5, request_id=request_id))
    assert (await pod.modify(booked, party=1)).terms.party_size == 1
    assert (await pod.cancel(placed)).refunded == 2000

    async with probing(pod):
        await asyncio.sleep(0)
        pod.deposits.healthy = True
        async with asyncio.timeout(5):
            while True:
                try:
                    again = await pod.reserve()
                    break
                except Refusal:
                    await asyncio.sleep(0.01)
        assert again.state is State.PENDING_ACCEPTANCE
        assert (await pod.reserve()).state is State.PENDING_ACCEPTANCE


async def test_one_trial_at_a_time_and_a_bad_one_opens_the_breaker_again(pod: Pod) -> None:
    await open_the_breaker(pod)
    async with probing(pod) as probe:
        await half_open(pod)
        pod.deposits.gate.clear()
        pod.deposits.arrived.clear()
        trial = asyncio.create_task(pod.reserve(card="tok_unknown"))
        await pod.deposits.arrived.wait()
        asked = len(pod.deposits.asked)
        await refused("TRY_AGAIN_LATER", pod.reserve())
        assert len(pod.deposits.asked) == asked, "a second one was let in beside the trial"
        probe.cancel()  # a slow machine would see the next half-open state, not the one that the trial leaves
        await asyncio.wait([probe])
        pod.deposits.gate.set()
        await refused("TRY_AGAIN_LATER", trial)
        assert pod.admission.state is BreakerState.OPEN


async def test_a_probe_that_failed_and_is_started_again_still_closes_the_breaker(
    pod: Pod, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def fails() -> bool:
        raise RuntimeError("the question itself failed")

    await open_the_breaker(pod)
    breaker = pod.admission._breaker
    monkeypatch.setattr(breaker, "_is_healthy", fails)
    with pytest.raises(RuntimeError):
        await pod.admission.run()
    monkeypatch.setattr(breaker, "_is_healthy", pod.deposits.is_healthy)
    async with probing(pod):
        await half_open(pod)


@pytest.mark.parametrize("healthy", [True, False])
async def test_what_one_customer_sees_opens_the_breaker_only_if_deposit_is_not_healthy(
    pod: Pod, healthy: bool
) -> None:
    pod.deposits.healthy = healthy
    async with probing(pod):
        for at in (DINNER, LATER, DINNER) if healthy else (DINNER,):
            await refused("TRY_AGAIN_LATER", pod.reserve(card="tok_unknown", at=at))
        async with asyncio.timeout(5):
            while not pod.deposits.questions:  # noqa: ASYNC110  a question tells nobody that it was asked
                await asyncio.sleep(0.005)
        await asyncio.sleep(0)  # the answer arrives
        assert pod.admission.state is (BreakerState.CLOSED if healthy else BreakerState.OPEN)


@pytest.mark.parametrize("card", ["tok_inDoubt", "tok_overloaded", "tok_declined", "tok_voided"])
async def test_what_a_card_or_a_limit_causes_is_never_taken_for_a_sick_deposit(pod: Pod, card: str) -> None:
    for name in (*PEOPLE, *PEOPLE):
        with pytest.raises(Refusal):
            await pod.reserve(card=card, customer=name)
    assert pod.admission.state is BreakerState.CLOSED
    assert not pod.deposits.questions


async def test_failures_that_are_few_beside_the_successes_do_not_open_the_breaker(pod: Pod) -> None:
    for name in PEOPLE:
        await pod.cancel(await pod.reserve(customer=name))
        await pod.reserve(1, customer=name)
        await refused("TRY_AGAIN_LATER", pod.reserve(1, card="tok_unknown", customer=name))
    assert pod.admission.state is BreakerState.CLOSED


async def test_who_comes_when_all_places_are_taken_waits_and_is_served(open_pod: OpenPod, pod: Pod) -> None:
    small = open_pod(places=1)
    small.deposits.gate.clear()
    first = asyncio.create_task(small.reserve(customer="ann"))
    await small.deposits.arrived.wait()
    second = asyncio.create_task(small.reserve(customer="ben"))
    async with asyncio.timeout(5):
        while not small.bulkhead.waiting:
            assert not second.done()
            await asyncio.sleep(0.005)
    small.deposits.gate.set()
    assert (await first).state is (await second).state is State.PENDING_ACCEPTANCE


async def test_who_waits_too_long_for_a_place_is_refused_with_nothing_begun(
    open_pod: OpenPod, pod: Pod
) -> None:
    small = open_pod(places=1)
    small.deposits.gate.clear()
    first = asyncio.create_task(small.reserve(customer="ann"))
    await small.deposits.arrived.wait()
    with_time_left(0.7)
    said = await refused("TRY_AGAIN_LATER", small.reserve(customer="ben"))
    assert said.retry_after is not None
    assert await small.mine("ben") == []
    assert await small.sold() == 2
    small.deposits.gate.set()
    await first
    with_time_left(30)
    await small.reserve(customer="ben")


async def test_a_repetition_gets_its_answer_at_once_where_a_new_attempt_would_wait(
    open_pod: OpenPod, pod: Pod
) -> None:
    small, request_id = open_pod(places=1), new_id()
    placed = await small.reserve(customer="ann", request_id=request_id)
    small.deposits.gate.clear()
    small.deposits.arrived.clear()
    waiting = asyncio.create_task(small.reserve(customer="ben"))
    await small.deposits.arrived.wait()
    assert await small.reserve(customer="ann", request_id=request_id) == placed
    cheaper = await small.modify(placed, party=1)
    assert cheaper.terms.party_size == 1
    small.deposits.gate.set()
    await waiting


async def test_a_customer_has_few_attempts_in_flight_on_all_pods_together(
    open_pod: OpenPod, pod: Pod
) -> None:
    pods = [pod, open_pod()]
    pod.deposits.gate.clear()
    tasks = [asyncio.create_task(pods[n % 2].reserve(1)) for n in range(RULES.attempts)]
    async with asyncio.timeout(5):
        while len(pod.deposits.asked) < RULES.attempts:  # noqa: ASYNC110  a fake tells of its first call only
            await asyncio.sleep(0.005)
    for one in pods:
        await refused("TRY_AGAIN_LATER", one.reserve(1))
    assert len(pod.deposits.asked) == await pod.sold() == RULES.attempts
    other = asyncio.create_task(pod.reserve(1, customer="ben"))
    pod.deposits.gate.set()
    await asyncio.gather(*tasks, other)
    await pod.reserve(1)


async def test_a_customer_holds_few_seats_while_paying(pod: Pod) -> None:
    pod.ctx = replace(pod.ctx, rules=replace(RULES, held_seats=5))
    pod.deposits.gate.clear()
    first = asyncio.create_task(pod.reserve(6))  # one alone may be larger
    await pod.deposits.arrived.wait()
    await refused("TRY_AGAIN_LATER", pod.reserve(1, at=LATER))
    pod.deposits.gate.set()
    await first
    await pod.reserve(1, at=LATER)


@pytest.mark.parametrize("card", ["tok_unknown", "tok_inDoubt", "tok_declined"])
async def test_who_takes_no_deposit_again_and_again_has_to_wait_and_the_others_get_the_seats(
    pod: Pod, clock: Clock, card: str
) -> None:
    for _ in range(RULES.unpaid_free):
        with pytest.raises(Refusal):
            await pod.reserve(10, card=card)
    asked = len(pod.deposits.asked)
    said = await refused("TRY_AGAIN_LATER", pod.reserve(10))
    assert said.retry_after == RULES.unpaid_pause.total_seconds()
    assert (len(pod.deposits.asked), await pod.sold()) == (asked, 0)
    await pod.cancel(await pod.reserve(10, customer="ben"))

    clock.pass_by(seconds=said.retry_after)
    with pytest.raises(Refusal):
        await pod.reserve(10, card=card)
    longer = await refused("TRY_AGAIN_LATER", pod.reserve(10))
    assert longer.retry_after == 2 * RULES.unpaid_pause.total_seconds()

    clock.set(clock.now + RULES.unpaid_window)
    await pod.reserve(10)


async def test_attempts_that_were_turned_away_for_overload_are_not_held_against_the_customer(
    pod: Pod,
) -> None:
    for _ in range(RULES.unpaid_free + 2):
        await refused("TRY_AGAIN_LATER", pod.reserve(card="tok_overloaded"))
    await pod.reserve()


@asynccontextmanager
async def probing(pod: Pod) -> AsyncIterator[asyncio.Task[None]]:
    """The breaker's questions are asked."""
    probe = asyncio.create_task(pod.admission.run())
    try:
        yield probe
    finally:
        probe.cancel()


async def half_open(pod: Pod) -> None:
    async with asyncio.timeout(5):
        while pod.admission.refusal() is not None:  # noqa: ASYNC110  a breaker tells nobody that it closes
            await asyncio.sleep(0.005)


# The bulkhead alone.


async def entered(waiting: Awaitable[Place]) -> Place:
    async with asyncio.timeout(5):
        return await waiting


async def in_queue(bulkhead: Bulkhead, customer: str) -> asyncio.Task[Place]:
    """Somebody who waits for a place."""
    task = asyncio.create_task(bulkhead.enter(customer, 30))
    await asyncio.sleep(0)
    assert not task.done()
    return task


async def test_customers_take_turns_whatever_each_of_them_sent() -> None:
    bulkhead = Bulkhead(places=1, queue_limit=10, per_customer=4)
    place = await bulkhead.enter("ann", 1)
    ann = [await in_queue(bulkhead, "ann") for _ in range(3)]
    ben = await in_queue(bulkhead, "ben")
    order = []
    for task, name in ((ann[0], "ann"), (ben, "ben"), (ann[1], "ann"), (ann[2], "ann")):
        bulkhead.leave(place)
        place = await entered(task)
        order.append((name, place.customer_id))
    assert order == [("ann", "ann"), ("ben", "ben"), ("ann", "ann"), ("ann", "ann")]


async def test_the_queue_has_an_end_and_a_customer_a_share_of_it() -> None:
    bulkhead = Bulkhead(places=1, queue_limit=2, per_customer=2)
    place = await bulkhead.enter("ann", 1)
    waiting = await in_queue(bulkhead, "ann")
    await refused("TRY_AGAIN_LATER", bulkhead.enter("ann", 1))
    other = await in_queue(bulkhead, "ben")
    await refused("TRY_AGAIN_LATER", bulkhead.enter("cleo", 1))
    bulkhead.leave(place)
    bulkhead.leave(await entered(waiting))
    bulkhead.leave(await entered(other))
    for name in (*PEOPLE, "ann"):  # nothing is kept of those who were refused or have left
        bulkhead.leave(await bulkhead.enter(name, 1))


@pytest.mark.parametrize("first", ["the place comes", "ben gives up"])
async def test_a_place_is_not_lost_with_who_gives_up_in_the_moment_in_which_it_comes(first: str) -> None:
    bulkhead = Bulkhead(places=1, queue_limit=10, per_customer=4)
    place = await bulkhead.enter("ann", 1)
    leaves, stays = await in_queue(bulkhead, "ben"), await in_queue(bulkhead, "cleo")
    steps: list[Callable[[], object]] = [lambda: bulkhead.leave(place), leaves.cancel]
    for step in steps if first == "the place comes" else reversed(steps):
        step()  # nobody else has a turn between the two
    got = await entered(stays)
    assert got.customer_id == "cleo"
    assert leaves.cancelled()
    bulkhead.leave(got)
    assert not bulkhead.is_full and not bulkhead.waiting


async def test_who_gives_up_when_the_breaker_opens_disturbs_nobody() -> None:
    bulkhead = Bulkhead(places=1, queue_limit=10, per_customer=4)
    place = await bulkhead.enter("ann", 1)
    leaves, stays = await in_queue(bulkhead, "ben"), await in_queue(bulkhead, "cleo")
    leaves.cancel()
    bulkhead.turn_away(Refusal("TRY_AGAIN_LATER", "deposit is sick"))
    await refused("TRY_AGAIN_LATER", stays)
    bulkhead.leave(place)
    assert not bulkhead.is_full and not bulkhead.waiting


async def test_who_waits_when_the_breaker_opens_is_refused_at_once() -> None:
    bulkhead = Bulkhead(places=1, queue_limit=10, per_customer=4)
    place = await bulkhead.enter("ann", 1)
    waiting = await in_queue(bulkhead, "ben")
    bulkhead.turn_away(Refusal("TRY_AGAIN_LATER", "deposit is sick"))
    assert str(await refused("TRY_AGAIN_LATER", waiting)) == "TRY_AGAIN_LATER: deposit is sick"
    bulkhead.leave(place)
    bulkhead.leave(await bulkhead.enter("ben", 1))


async def test_where_deposit_takes_less_there_are_fewer_places_and_soon_more_again() -> None:
    bulkhead = Bulkhead(places=10, queue_limit=0, per_customer=100)

    async def room() -> int:
        inside: list[Place] = []
        try:
            while True:
                inside.append(await bulkhead.enter("ann", 1))
        except Refusal:
            return len(inside)
        finally:
            for place in inside:
                bulkhead.leave(place)

    assert await room() == 10
    sent_together = [await bulkhead.enter("ann", 1) for _ in range(3)]
    for place in sent_together:
        bulkhead.overflowed(place)
        bulkhead.leave(place)
    assert await room() == 8, "three refusals of one moment are one piece of news"
    for _ in range(10):
        bulkhead.worked()
    assert await room() == 10
    for _ in range(100):
        place = await bulkhead.enter("ann", 1)
        bulkhead.overflowed(place)
        bulkhead.leave(place)
    assert await room() == 1, "somebody has to find out whether it is better"
