"""No deposit, no booking: a declined card holds no seat, captures nothing, and stays declined."""

from __future__ import annotations

import asyncio

import grpc
import pytest

from dinemesh.deposit.v1 import deposit_pb2
from dinemesh.sandbox.v1 import sandbox_pb2
from tests.mesh.conftest import on_both_engines
from tests.mesh.people import City, until
from tests.support.refusals import refused


@on_both_engines
@pytest.mark.parametrize(
    ("card", "decline_code"),
    [
        ("tok_chargeDeclined", "card_declined"),
        ("tok_chargeDeclinedInsufficientFunds", "insufficient_funds"),
    ],
)
async def test_a_declined_card_books_nothing_and_the_same_request_gets_the_same_answer(
    city: City, card: str, decline_code: str
) -> None:
    place, alice = await city.place(capacity=10), city.customer()
    wish = alice.wish(place, party=4, card=card)
    before = set(await city.provider.charges())

    first = await refused(alice.send(wish))
    assert (first.code, first.reason) == (grpc.StatusCode.FAILED_PRECONDITION, "CARD_DECLINED")
    assert first.domain == "dinemesh"
    assert first.info["decline_code"] == decline_code
    assert first.retry_after is None, "a repetition makes no sense"
    assert card not in first.everything

    again = await refused(alice.send(wish))
    assert (again.code, again.reason, again.info) == (first.code, first.reason, first.info)

    await place.sees_seats(0, 10)
    (charge,) = [one for key, one in (await city.provider.charges()).items() if key not in before]
    assert charge.state == sandbox_pb2.CHARGE_STATE_DECLINED

    async def standing() -> list[deposit_pb2.Deposit]:
        return await alice.deposits()

    (deposit,) = await until(
        standing,
        lambda found: [one.state for one in found] == [deposit_pb2.DEPOSIT_STATE_DECLINED],
    )
    assert (deposit.captured.units, deposit.held.units, deposit.decline_code) == (0, 0, decline_code)
    assert await place.bookings() == []


async def test_another_card_under_a_new_request_id_books(city: City) -> None:
    place, alice = await city.place(), city.customer()
    await refused(alice.reserve(place, card="tok_chargeDeclined"))
    await alice.book(place)


async def test_another_card_under_the_same_request_id_is_refused(city: City) -> None:
    place, alice = await city.place(), city.customer()
    wish = alice.wish(place, card="tok_chargeDeclined")
    await refused(alice.send(wish))
    wish.payment_token = "tok_visa"
    said = await refused(alice.send(wish))
    assert (said.reason, said.code) == ("REQUEST_ID_REUSED", grpc.StatusCode.ALREADY_EXISTS)


async def test_declined_cards_do_not_make_deposit_look_sick(city: City) -> None:
    place, people = await city.place(), [city.customer() for _ in range(10)]
    declined = await asyncio.gather(
        *(refused(one.reserve(place, card="tok_chargeDeclined")) for one in people)
    )
    assert {said.reason for said in declined} == {"CARD_DECLINED"}
    await people[0].book(place)
