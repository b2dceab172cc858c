"""Book a table, change it, cancel it, and see all that happened: a client over the generated Python stubs.

    make up
    TOKEN=$(make token SUB=alice ROLE=customer) .venv/bin/python -m examples.booking

The stubs are in `dinemesh/<service>/v1`, generated from `protos/`, where each field is explained.
"""

from __future__ import annotations

import argparse
import datetime as dt
import os
import time
import uuid
from collections.abc import Callable, Iterator
from decimal import Decimal
from typing import TypeVar
from zoneinfo import ZoneInfo

import grpc
from google.rpc import error_details_pb2
from google.type.money_pb2 import Money
from grpc_status import rpc_status
from iso4217 import Currency

from dinemesh.deposit.v1 import deposit_service_pb2, deposit_service_pb2_grpc
from dinemesh.history.v1 import history_service_pb2, history_service_pb2_grpc
from dinemesh.reservation.v1 import reservation_pb2, reservation_service_pb2, reservation_service_pb2_grpc
from dinemesh.restaurant.v1 import restaurant_pb2, restaurant_service_pb2, restaurant_service_pb2_grpc
from examples import settings

DEADLINE = 5.0
"""Seconds. A call without a deadline may wait forever, and the services plan with the time that they have."""
PATIENCE = 60.0
"""How long we go on when we are told to come back later."""

T = TypeVar("T")


class Diner:
    """Someone who eats out: has a token, and knows the address of the edge, which serves all of it."""

    def __init__(self, token: str, edge: str) -> None:
        self._me = (("authorization", f"Bearer {token}"),)
        channel = grpc.insecure_channel(edge)
        self._reservations = reservation_service_pb2_grpc.ReservationServiceStub(channel)
        self._deposits = deposit_service_pb2_grpc.DepositServiceStub(channel)
        self._restaurants = restaurant_service_pb2_grpc.RestaurantServiceStub(channel)
        self._history = history_service_pb2_grpc.HistoryServiceStub(channel)

    def restaurants(self) -> Iterator[restaurant_pb2.Restaurant]:
        """All of them, page by page. Anyone may look: no token."""
        token = ""
        while True:
            page = self._restaurants.ListRestaurants(
                restaurant_service_pb2.ListRestaurantsRequest(page_token=token), timeout=DEADLINE
            )
            yield from page.restaurants
            if not (token := page.next_page_token):
                return

    def first_table(
        self, restaurant: restaurant_pb2.Restaurant, party_size: int, days: int = 30
    ) -> tuple[reservation_pb2.AvailableSlot, str] | None:
        """The first slot from tomorrow on that can take the party and can still be changed or cancelled for
        nothing an hour from now, and the etag of the policy that it is offered under; days are the
        restaurant's own."""
        tomorrow = dt.datetime.now(ZoneInfo(restaurant.time_zone)).date() + dt.timedelta(days=1)
        in_an_hour = dt.datetime.now(dt.UTC) + dt.timedelta(hours=1)
        for day in range(days):
            answer = self._reservations.ListAvailableSlots(
                reservation_service_pb2.ListAvailableSlotsRequest(
                    restaurant_id=restaurant.restaurant_id,
                    date=(tomorrow + dt.timedelta(days=day)).isoformat(),
                    party_size=party_size,
                ),
                timeout=DEADLINE,
            )
            for slot in answer.slots:
                if slot.available and slot.free_cancel_time.ToDatetime(tzinfo=dt.UTC) > in_an_hour:
                    return slot, answer.policy_etag
        return None

    def reserve(
        self,
        restaurant: restaurant_pb2.Restaurant,
        slot: reservation_pb2.AvailableSlot,
        policy_etag: str,
        party_size: int,
    ) -> reservation_pb2.Reservation:
        """Pays the deposit and reserves, on the terms that were shown or not at all (POLICY_CHANGED). By its
        request_id a repetition never books or charges twice."""
        request = reservation_service_pb2.CreateReservationRequest(
            request_id=str(uuid.uuid4()),
            restaurant_id=restaurant.restaurant_id,
            dine_time=slot.dine_time,
            party_size=party_size,
            policy_etag=policy_etag,
            payment_token="tok_visa",  # the sandbox's card that always works
            note="a table by the window, please",
        )
        return obeying_retry_info(
            lambda: self._reservations.CreateReservation(request, metadata=self._me, timeout=DEADLINE)
        ).reservation

    def wait_until_confirmed(self, reservation: reservation_pb2.Reservation) -> reservation_pb2.Reservation:
        """Watches the reservation until the restaurant has accepted (raises if it has not)."""
        for message in self._reservations.WatchReservation(
            reservation_service_pb2.WatchReservationRequest(reservation_id=reservation.reservation_id),
            metadata=self._me,
            timeout=PATIENCE,
        ):
            match message.WhichOneof("kind"):
                case "reservation":
                    print(f"  it is {state_of(message.reservation)}")
                    if message.reservation.state == reservation_pb2.RESERVATION_STATE_CONFIRMED:
                        return message.reservation
                case "end":  # FINISHED: it has ended otherwise. Any other reason: watch again.
                    break
                case _:  # a heartbeat
                    continue
        raise SystemExit("the reservation was not confirmed")

    def change_party(
        self, reservation: reservation_pb2.Reservation, party_size: int
    ) -> reservation_pb2.Reservation:
        """Dearer: the difference is charged. Cheaper: it goes back. The etag says what we have seen."""
        request = reservation_service_pb2.ModifyReservationRequest(
            reservation_id=reservation.reservation_id,
            request_id=str(uuid.uuid4()),
            etag=reservation.etag,
            party_size=party_size,
            payment_token="tok_visa",
        )
        return obeying_retry_info(
            lambda: self._reservations.ModifyReservation(request, metadata=self._me, timeout=DEADLINE)
        ).reservation

    def cancel(
        self, reservation: reservation_pb2.Reservation
    ) -> reservation_service_pb2.CancelReservationResponse:
        """Says what goes back and what is forfeited; a repetition gets the same answer."""
        request = reservation_service_pb2.CancelReservationRequest(reservation_id=reservation.reservation_id)
        return obeying_retry_info(
            lambda: self._reservations.CancelReservation(request, metadata=self._me, timeout=DEADLINE)
        )

    def timeline(self, cancelled: reservation_pb2.Reservation) -> list[str]:
        """What happened, in sentences. They are made of events and come a moment later: this watches until
        all deposits are told to have gone back, and then reads the whole list."""
        awaited = {deposit.deposit_id for deposit in cancelled.deposits}
        for message in self._history.WatchTimeline(
            history_service_pb2.WatchTimelineRequest(), metadata=self._me, timeout=PATIENCE
        ):
            if message.WhichOneof("kind") == "entry" and message.entry.state == "REFUNDED":
                awaited.discard(message.entry.deposit_id)
            if not awaited:
                break
        answer = self._history.ListTimelineEntries(
            history_service_pb2.ListTimelineEntriesRequest(reservation_id=cancelled.reservation_id),
            metadata=self._me,
            timeout=DEADLINE,
        )
        return [f"{entry.occur_time.ToDatetime():%H:%M:%S.%f}  {entry.summary}" for entry in answer.entries]

    def deposits(self, reservation: reservation_pb2.Reservation) -> list[str]:
        """Each deposit of a reservation, and how much of it is held and refunded."""
        answer = self._deposits.ListDeposits(
            deposit_service_pb2.ListDepositsRequest(reservation_id=reservation.reservation_id),
            metadata=self._me,
            timeout=DEADLINE,
        )
        return [
            f"captured {in_words(one.captured)}, held {in_words(one.held)}, refunded {in_words(one.refunded)}"
            for one in reversed(answer.deposits)
        ]


def obeying_retry_info(call: Callable[[], T]) -> T:
    """Repeats a call that was refused with a retry time. Without one, a repetition makes no sense."""
    end = time.monotonic() + PATIENCE
    while True:
        try:
            return call()
        except grpc.RpcError as error:
            reason, retry_after = why(error)
            if retry_after is None or time.monotonic() + retry_after > end:
                raise
            print(f"  refused: {reason}; again in {retry_after:g} s")
            time.sleep(retry_after)


def why(error: grpc.RpcError) -> tuple[str, float | None]:
    """The reason (of dinemesh.error.v1.Reason), and in how many seconds a repetition makes sense, if ever."""
    reason, retry_after = "", None
    status = rpc_status.from_call(error)
    for detail in status.details if status else ():
        info, retry = error_details_pb2.ErrorInfo(), error_details_pb2.RetryInfo()
        if detail.Unpack(info):
            reason = info.reason
        elif detail.Unpack(retry):
            retry_after = retry.retry_delay.ToTimedelta().total_seconds()
    return reason, retry_after


def state_of(reservation: reservation_pb2.Reservation) -> str:
    name = reservation_pb2.ReservationState.Name(reservation.state)
    return name.removeprefix("RESERVATION_STATE_")


def in_words(money: Money) -> str:
    """With as many digits as the currency has: 12.50 EUR, 1250 JPY, 1.250 KWD."""
    if not money.currency_code:
        return "nothing"  # a zero whose currency was never known
    amount = Decimal(money.units) + Decimal(money.nanos).scaleb(-9)
    return f"{amount:.{Currency(money.currency_code).exponent or 0}f} {money.currency_code}"


def main() -> None:
    parser = argparse.ArgumentParser(description="Book a table, change it, cancel it, see all that happened.")
    parser.add_argument("--token", default=os.environ.get("TOKEN"), help="a customer's token (or TOKEN)")
    parser.add_argument("--at", help="name of the restaurant; else the first that accepts by itself")
    parser.add_argument("--edge", default=settings.edge(), help="host:port of the edge (or EDGE)")
    given = parser.parse_args()
    if not given.token:
        parser.error("no token: TOKEN=$(make token SUB=alice ROLE=customer)")

    diner = Diner(given.token, given.edge)
    automatic = restaurant_pb2.ACCEPTANCE_MODE_AUTO
    for restaurant in diner.restaurants():
        if restaurant.name == given.at or (not given.at and restaurant.policy.acceptance == automatic):
            break
    else:
        raise SystemExit("there is no such restaurant")

    found = diner.first_table(restaurant, party_size=4)
    if found is None:
        raise SystemExit(f"{restaurant.name} has no table for four")
    slot, policy_etag = found
    utc = slot.dine_time.ToDatetime(tzinfo=dt.UTC)
    local = utc.astimezone(ZoneInfo(restaurant.time_zone))
    print(f"{restaurant.name}, {local:%A %d %B %H:%M} there ({utc:%H:%M} UTC)")
    print(f"four would cost {in_words(slot.deposit)} of deposit")

    reserved = diner.reserve(restaurant, slot, policy_etag, party_size=2)
    print(f"reserved for two: {reserved.reservation_id}, {state_of(reserved)}")
    confirmed = diner.wait_until_confirmed(reserved)
    print(f"the restaurant has accepted: {state_of(confirmed)}")

    diner.change_party(confirmed, party_size=4)
    four = diner.wait_until_confirmed(confirmed)  # new terms: the restaurant is asked again
    print(f"four people now, in {len(four.deposits)} deposits, {state_of(four)}")

    cancelled = diner.cancel(four)
    print(f"cancelled: {in_words(cancelled.refunded)} go back, {in_words(cancelled.forfeited)} are forfeited")

    print("what happened, in UTC:")
    for line in diner.timeline(cancelled.reservation):
        print(f"  {line}")
    for line in diner.deposits(four):
        print(f"deposit: {line}")


if __name__ == "__main__":
    main()
