"""Deposit stopped, hung or overloaded, through the edge: an answer in time, a retry time, nothing left."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from typing import Any

import grpc
import httpx
import pytest

from dinemesh.deposit.v1 import deposit_service_pb2
from tests.edge.rpcs import RPCS
from tests.mesh.people import (
    CANCELLED,
    CONFIRMED,
    City,
    Customer,
    Place,
    bearer,
    cents,
    euros,
    kept,
    new_id,
    until,
)
from tests.mesh.test_deposit_is_sick import hung, stopped
from tests.support.edge import RunningEdge
from tests.support.json_refusals import JsonRefused, json_refusal
from tests.support.mesh import SERVICES, RunningMesh
from tests.support.refusals import Refused, refused

DEADLINE = 3
"""What a caller gives each attempt, whole seconds."""
CREATE = RPCS["CreateReservation"]

Fault = Callable[[RunningMesh, City], AbstractAsyncContextManager[None]]


@asynccontextmanager
async def is_stopped(mesh: RunningMesh, _: City) -> AsyncIterator[None]:
    async with stopped(mesh):
        yield


@asynccontextmanager
async def is_hung(mesh: RunningMesh, _: City) -> AsyncIterator[None]:
    async with hung(mesh):
        yield


ONE_AT_A_TIME = {
    "CHARGES_IN_FLIGHT_LIMIT": "1",
    "CHARGE_TIMEOUT_MS": "60000",
    "PENDING_SETTLE_SECONDS": "90",
}


@asynccontextmanager
async def is_overloaded(mesh: RunningMesh, city: City) -> AsyncIterator[None]:
    """Deposit takes one charge at a time, and a slow card has it all the time."""
    deposit = mesh["deposit"]
    usual = dict(deposit.environment)
    reservation = bearer(mesh.token("reservation", "service"))

    async def charge(card: str) -> Refused:
        request = deposit_service_pb2.CreateDepositRequest(
            deposit_id=new_id(),
            reservation_id=new_id(),
            customer_id="somebody",
            amount=euros(10),
            payment_token=card,
        )
        channel = city.doors.channels["deposit"]
        return await refused(RPCS["CreateDeposit"].over_grpc(channel, request, reservation, timeout=60))

    async def occupy() -> None:
        while True:  # until it is the one that is at work
            await charge("tok_slow_60000")

    await asyncio.to_thread(deposit.stop)
    deposit.environment |= ONE_AT_A_TIME
    deposit.start()
    before = refusals(mesh)
    slow = asyncio.create_task(occupy())
    try:
        # Until somebody else's card is refused for the load, and not by its issuer.
        await until(lambda: charge("tok_chargeDeclined"), lambda said: said.reason == "DEPOSIT_OVERLOADED")
        yield
        assert not slow.done(), slow
    finally:
        slow.cancel()
        deposit.kill()  # asked to end, it would wait for the slow card
        deposit.environment = usual
        deposit.start()
    assert refusals(mesh) > before + 1


def refusals(mesh: RunningMesh) -> int:
    """How often deposit has refused a charge because of its load."""
    return mesh["deposit"].log.read_text().count('"reason": "DEPOSIT_OVERLOADED"')


async def over_json(http: httpx.AsyncClient, customer: Customer, wish: Any) -> tuple[JsonRefused, float]:
    """One attempt by JSON with a deadline: the refusal, and after how many seconds it came."""
    call = CREATE.over_http(wish)
    begin = time.monotonic()
    answer = await http.post(
        call.path,
        json=call.body,
        headers=dict(customer.metadata) | {"grpc-timeout": f"{DEADLINE}S"},
    )
    return json_refusal(answer), time.monotonic() - begin


async def over_grpc(channel: grpc.aio.Channel, customer: Customer, wish: Any) -> tuple[Refused, float]:
    begin = time.monotonic()
    said = await refused(CREATE.over_grpc(channel, wish, customer.metadata, timeout=DEADLINE))
    return said, time.monotonic() - begin


@pytest.mark.parametrize("fault", [is_stopped, is_hung, is_overloaded])
async def test_while_deposit_is_sick_all_are_told_in_time_when_to_come_again_and_nothing_is_left(
    city: City, mesh: RunningMesh, edge: RunningEdge, http: httpx.AsyncClient, fault: Fault
) -> None:
    place, alice, bob = await city.place(capacity=30), city.customer(), city.customer()
    booked = await bob.book(place, slot=1)
    before = set(await city.provider.charges())
    wish = alice.wish(place)
    others = {name: mesh[name].pid for name in SERVICES if name != "deposit"}

    async with fault(mesh, city), grpc.aio.insecure_channel(edge.address) as channel:
        # In flight together, as customers come.
        by_json = await asyncio.gather(
            over_json(http, alice, wish),
            *(over_json(http, alice, alice.wish(place)) for _ in range(3)),
        )
        by_grpc = await asyncio.gather(*(over_grpc(channel, alice, alice.wish(place)) for _ in range(4)))
        for said, seconds in by_json:
            assert (said.status, said.reason) == (429, "TRY_AGAIN_LATER"), said
            assert said.retry_after is not None and said.retry_after > 0
            assert int(said.headers["retry-after"]) >= 1
            assert seconds < DEADLINE
        for told, seconds in by_grpc:
            assert (told.code, told.reason) == (grpc.StatusCode.RESOURCE_EXHAUSTED, "TRY_AGAIN_LATER"), told
            assert told.retry_after is not None and told.retry_after > 0
            assert int(str(told.trailing["retry-after"])) >= 1
            assert int(str(told.trailing["grpc-retry-pushback-ms"])) > 0
            assert seconds < DEADLINE

        # Reads and cancels go on.
        mine = dict(bob.metadata)
        one = f"/v1/reservations/{booked.reservation_id}"
        assert (await http.get(one, headers=mine)).json()["reservation"]["state"].endswith("CONFIRMED")
        assert (await http.get("/v1/timeline", headers=mine)).status_code == 200
        cancelled = await http.post(f"{one}:cancel", headers=mine)
        assert cancelled.json()["refunded"]["units"] == "20"
        for name in others:
            assert (await http.get(f"/healthz/{name}")).status_code == 200
        await deposits_are_told_to_be_away(http, mine, fault)

    await until(lambda: http.get("/healthz"), lambda answer: answer.status_code == 200)
    assert {name: mesh[name].pid for name in others} == others
    assert (await bob.read(booked)).state == CANCELLED
    await nothing_left(city, place, alice, before)

    # The first wish, repeated as it was: it books once, and what is told on the way is when to come again.
    reservation_id = await obeying_retry_after(http, alice, wish)
    assert await obeying_retry_after(http, alice, wish) == reservation_id
    (standing,) = [one for one in await alice.reservations() if one.reservation_id == reservation_id]
    await alice.sees(standing, CONFIRMED)
    await place.sees_seats(0, 28)


async def deposits_are_told_to_be_away(http: httpx.AsyncClient, mine: dict[str, str], fault: Fault) -> None:
    """What only deposit knows cannot be told without it: 503 or 504 in the one shape, with a retry time."""
    if fault is is_overloaded:  # reads of it go on, once the edge knows that it is there again
        await until(lambda: http.get("/v1/deposits", headers=mine), lambda answer: answer.status_code == 200)
        return
    said = json_refusal(await http.get("/v1/deposits", headers=mine | {"grpc-timeout": "1S"}))
    assert (said.status, said.reason) in (
        (503, "UNAVAILABLE"),
        (503, "NO_ANSWER"),
        (504, "DEADLINE_EXCEEDED"),
    )
    assert said.retry_after is not None
    await until(lambda: http.get("/healthz"), lambda answer: answer.status_code == 503)
    assert (await http.get("/healthz/deposit")).status_code == 503
    assert (await http.get("/livez")).status_code == 200
    # By now it is known to be away, and that is told at once.
    begin = time.monotonic()
    said = json_refusal(await http.get(f"/v1/deposits/{new_id()}", headers=mine))
    assert (said.status, said.reason) == (503, "UNAVAILABLE")
    assert time.monotonic() - begin < 1


async def nothing_left(city: City, place: Place, customer: Customer, before: set[str]) -> None:
    """All seats are free, and of what was charged for this customer nothing was kept."""
    await place.sees_seats(0, 30)

    async def holds() -> list[int]:
        deposits = {one.deposit_id: cents(one.held) for one in await customer.deposits()}
        charges = await city.provider.charges()
        with_provider = [kept(charges[key]) for key in deposits if key in charges and key not in before]
        return [amount for amount in (*deposits.values(), *with_provider) if amount]

    await until(holds, lambda held: held == [])
    for reservation in await customer.reservations():
        assert not reservation.deposits or not any(cents(one.held) for one in reservation.deposits)


async def obeying_retry_after(http: httpx.AsyncClient, customer: Customer, wish: Any) -> str:
    """Repeats a booking as `retry-after` says, and gives the reservation's id."""
    call = CREATE.over_http(wish)
    end = time.monotonic() + 30
    while True:
        answer = await http.post(call.path, json=call.body, headers=dict(customer.metadata))
        if answer.status_code == 200:
            return str(json.loads(answer.text)["reservation"]["reservationId"])
        said = json_refusal(answer)
        assert said.reason in ("TRY_AGAIN_LATER", "REQUEST_IN_PROGRESS"), said
        assert said.retry_after is not None and time.monotonic() < end, said
        await asyncio.sleep(said.retry_after)
