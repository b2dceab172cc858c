"""Deposit stopped or hung, its provider down, a card slow: an answer in time, a retry time, nothing left.

"Nothing left" is read from the provider's own record, from deposit's and from the slots.
"""

from __future__ import annotations

import asyncio
import socket
import statistics
import time
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager

import grpc
import pytest

from dinemesh.deposit.v1 import deposit_pb2
from tests.mesh.people import (
    CANCELLED,
    CONFIRMED,
    City,
    Customer,
    Place,
    cents,
    kept,
    patiently,
    until,
)
from tests.support.mesh import RunningMesh, state_of
from tests.support.refusals import Refused, refusal, refused

DEADLINE = 3.0
"""What a caller gives each attempt, seconds."""
AT_THE_DOOR = 0.1
"""A refusal while deposit is known to be sick comes in less than this, seconds."""
A_FEW = 12
"""After at most so many attempts the mesh must have noticed."""

Fault = Callable[[RunningMesh], AbstractAsyncContextManager[None]]


@asynccontextmanager
async def stopped(mesh: RunningMesh) -> AsyncIterator[None]:
    """The process is gone and its port closed."""
    deposit = mesh["deposit"]
    old = deposit.pid
    await asyncio.to_thread(deposit.stop)
    assert state_of(old) == ""
    with socket.socket() as probe:
        assert probe.connect_ex(("127.0.0.1", deposit.port)) != 0
    try:
        yield
    finally:
        deposit.start()
    assert deposit.pid != old


@asynccontextmanager
async def killed(mesh: RunningMesh) -> AsyncIterator[None]:
    """kill -9."""
    deposit = mesh["deposit"]
    old = deposit.pid
    deposit.kill()
    assert state_of(old) == ""
    try:
        yield
    finally:
        deposit.start()
    assert deposit.pid != old


@asynccontextmanager
async def hung(mesh: RunningMesh) -> AsyncIterator[None]:
    """SIGSTOP: the port is open and nobody answers."""
    deposit = mesh["deposit"]
    deposit.pause()
    assert deposit.hangs
    try:
        yield
        assert deposit.hangs
    finally:
        deposit.resume()
    await asyncio.to_thread(deposit.wait_until_ready)


@asynccontextmanager
async def provider_hung(mesh: RunningMesh) -> AsyncIterator[None]:
    sandbox = mesh["sandbox"]
    sandbox.pause()
    assert sandbox.hangs
    try:
        yield
    finally:
        sandbox.resume()
    await asyncio.to_thread(sandbox.wait_until_ready)


@asynccontextmanager
async def well(mesh: RunningMesh) -> AsyncIterator[None]:
    """Nothing is wrong with the processes: the card does it."""
    yield


async def timed(customer: Customer, place: Place, card: str, request_id: str = "") -> tuple[Refused, float]:
    """One attempt: the refusal, and after how many seconds it came."""
    begin = time.monotonic()
    said = await refused(
        customer.send(customer.wish(place, card=card, request_id=request_id), timeout=DEADLINE)
    )
    return said, time.monotonic() - begin


async def recovered(city: City, place: Place) -> None:
    """Bookings come back by themselves; what was refused on the way named a retry time."""
    visitor = city.customer()
    wish = visitor.wish(place, slot=2)
    booked = await patiently(lambda: visitor.send(wish, timeout=DEADLINE))
    await visitor.sees(booked, CONFIRMED)


FAULTS = [
    pytest.param(stopped, "tok_visa", id="stopped"),
    pytest.param(killed, "tok_visa", id="killed"),
    pytest.param(hung, "tok_visa", id="hung"),
    pytest.param(provider_hung, "tok_visa", id="provider_hung"),
    pytest.param(well, "tok_slow_8000", id="slow"),
    pytest.param(well, "tok_lostReply", id="silent"),
    pytest.param(well, "tok_unavailable", id="provider_down"),
]


@pytest.mark.parametrize(("fault", "card"), FAULTS)
async def test_while_deposit_is_sick_all_are_answered_in_time_and_nothing_is_left(
    city: City, mesh: RunningMesh, fault: Fault, card: str
) -> None:
    place, alice, bob = await city.place(capacity=30), city.customer(), city.customer()
    booked = await bob.book(place, slot=1, party=2)
    before = set(await city.provider.charges())
    wish = alice.wish(place, card=card)

    async with fault(mesh):
        # In flight together, as customers come: each is answered within its deadline.
        said = [await timed(alice, place, card, wish.request_id)]
        said += await asyncio.gather(*(timed(alice, place, card) for _ in range(4)))
        for refusal_, seconds in said:
            assert refusal_.code == grpc.StatusCode.RESOURCE_EXHAUSTED, refusal_
            assert refusal_.reason == "TRY_AGAIN_LATER"
            assert refusal_.retry_after is not None and refusal_.retry_after > 0
            assert int(str(refusal_.trailing["retry-after"])) >= 1
            assert int(str(refusal_.trailing["grpc-retry-pushback-ms"])) > 0
            assert seconds < DEADLINE

        # After a few the refusal comes at the door.
        attempts = 0
        while (await timed(alice, place, card))[1] > AT_THE_DOOR:
            attempts += 1
            assert attempts < A_FEW, "deposit is sick, and every customer still waits for it"
        quick = [await timed(alice, place, card) for _ in range(9)]
        assert {one.reason for one, _ in quick} == {"TRY_AGAIN_LATER"}
        assert statistics.median(seconds for _, seconds in quick) < AT_THE_DOOR

        # What one customer's cards cause costs nobody else a booking.
        if fault is well:
            visitor = city.customer()
            await visitor.cancel(await visitor.send(visitor.wish(place, slot=2), timeout=DEADLINE))

        # Reads and cancels go on.
        assert (await bob.read(booked)).state == CONFIRMED
        assert await place.offered(place.slots[0]) is not None
        answer = await bob.cancel(booked)
        assert cents(answer.refunded) == 2000
        assert (await bob.read(booked)).state == CANCELLED

    await recovered(city, place)
    await nothing_left(city, place, alice, before)
    (deposit,) = await bob.sees_deposits(booked, deposit_pb2.DEPOSIT_STATE_REFUNDED)
    assert cents(deposit.refunded) == 2000

    # The wish of the first attempt, repeated: books once, if its card works by now.
    if card == "tok_visa":
        one = await patiently(lambda: alice.send(wish, timeout=DEADLINE))
        again = await alice.send(wish)
        assert one.reservation_id == again.reservation_id
        await alice.sees(one, CONFIRMED)
        await place.sees_seats(0, 28)
        new = {key: charge for key, charge in (await city.provider.charges()).items() if key not in before}
        assert kept(new[one.deposits[0].deposit_id]) == 2000


async def nothing_left(city: City, place: Place, customer: Customer, before: set[str]) -> None:
    """All seats of slot 0 are free; neither deposit nor the provider holds money of the failed attempts."""
    await place.sees_seats(0, 30)
    deposits = await until(
        customer.deposits,
        lambda found: all(
            one.state in (deposit_pb2.DEPOSIT_STATE_VOIDED, deposit_pb2.DEPOSIT_STATE_REFUNDED)
            for one in found
        ),
    )
    assert not any(cents(one.held) for one in deposits)

    async def money() -> list[int]:
        charges = await city.provider.charges()
        return [kept(charge) for key, charge in charges.items() if key not in before and kept(charge)]

    # Of all that was charged since then, one booking stands: the one after the recovery.
    await until(money, lambda found: found == [2000])


async def test_a_sick_deposit_refuses_dearer_modifications_and_lets_the_others_through(
    city: City, mesh: RunningMesh
) -> None:
    place, alice, bob = await city.place(capacity=30), city.customer(), city.customer()
    booked, other = await alice.book(place, party=3), await bob.book(place, party=3)
    async with stopped(mesh):
        said = await refused(alice.modify(booked, party=5, card="tok_visa", timeout=DEADLINE))
        assert (said.code, said.reason) == (grpc.StatusCode.RESOURCE_EXHAUSTED, "TRY_AGAIN_LATER")
        assert said.retry_after is not None
        cheaper = await bob.modify(other, party=2)
        assert cheaper.party_size == 2
    unchanged = await until(lambda: alice.read(booked), lambda seen: seen.state == CONFIRMED)
    assert (unchanged.party_size, unchanged.revision) == (3, 1)
    await place.sees_seats(0, 25)

    async def refunded() -> list[int]:
        (deposit,) = await bob.deposits(other)
        return [
            cents(one.amount) for one in deposit.refunds if one.state == deposit_pb2.REFUND_STATE_SUCCEEDED
        ]

    assert await until(refunded, bool) == [1000]
    await recovered(city, place)
    held = [one for one in await alice.deposits(booked) if cents(one.held)]
    assert [cents(one.held) for one in held] == [3000]


async def test_a_caller_with_hardly_any_time_left_is_told_before_anything_is_begun(city: City) -> None:
    place, alice = await city.place(capacity=10), city.customer()
    try:
        await alice.send(alice.wish(place), timeout=0.03)
    except grpc.aio.AioRpcError as error:
        assert error.code() == grpc.StatusCode.DEADLINE_EXCEEDED, refusal(error)
    else:
        raise AssertionError("30 ms should not be enough to charge a card")
    assert await alice.reservations() == []
    await place.sees_seats(0, 10)


async def test_a_caller_who_hangs_up_books_once_at_most_and_finds_out_by_repeating(city: City) -> None:
    place, alice = await city.place(capacity=10), city.customer()
    wish = alice.wish(place, card="tok_slow_500")
    first = asyncio.create_task(alice.send(wish, timeout=10))
    await until(alice.reservations, lambda found: len(found) == 1)
    first.cancel()
    one = await patiently(lambda: alice.send(wish, timeout=DEADLINE))
    await alice.sees(one, CONFIRMED)
    await place.sees_seats(0, 8)

    async def money() -> int:
        charges = await city.provider.charges()
        return sum(kept(charges[d.deposit_id]) for d in await alice.deposits() if d.deposit_id in charges)

    await until(money, lambda held: held == 2000)
