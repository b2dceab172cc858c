"""The story of `make demo`, told over gRPC through the edge. A step that goes wrong ends it."""

from __future__ import annotations

import time
import uuid
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from zoneinfo import ZoneInfo

from google.protobuf.timestamp_pb2 import Timestamp
from google.type import money_pb2

from dinemesh.deposit.v1 import deposit_pb2, deposit_service_pb2
from dinemesh.history.v1 import history_pb2, history_service_pb2
from dinemesh.kit import wire
from dinemesh.reservation.v1 import reservation_pb2, reservation_service_pb2
from dinemesh.restaurant.v1 import restaurant_pb2, restaurant_service_pb2
from local_mesh import tokens
from local_mesh.commands import Mesh, say
from local_mesh.dialogue import Refused, Services, ask, money, until
from local_mesh.failure import Failure
from local_mesh.samples import AUTO, MANUAL, SAMPLES
from local_mesh.settings import MeshSettings

Reservation = reservation_pb2.Reservation
Restaurant = restaurant_pb2.Restaurant

CONFIRMED = reservation_pb2.RESERVATION_STATE_CONFIRMED
PENDING_ACCEPTANCE = reservation_pb2.RESERVATION_STATE_PENDING_ACCEPTANCE
DECLINED = reservation_pb2.RESERVATION_STATE_DECLINED
CANCELLED = reservation_pb2.RESERVATION_STATE_CANCELLED
REFUNDED = deposit_pb2.DEPOSIT_STATE_REFUNDED

DAYS_AHEAD = 3
"""Far enough that cancelling is free."""
HEARD_SECONDS = 10.0
"""For reservation to hear of a restaurant and its open days, which were made a moment ago."""


def tell(mesh: Mesh) -> None:
    """Tell the story to the end, or raise Failure at the step that went wrong."""
    with Services(mesh.settings, through_the_edge=True) as services:
        story = Story(mesh, services)
        try:
            story.tell()
        except Refused as refused:
            raise Failure(f"The story ends here: a service refused with {refused}") from refused
    _say_what_to_type_next(mesh.settings)


def _say_what_to_type_next(settings: MeshSettings) -> None:
    address = settings.address("edge")
    say()
    say(f"All of this went through the edge at {address}, and the mesh goes on running. What to type next:")
    say("  make status                          its parts")
    say(f"  curl {address}/v1/restaurants")
    say("  TOKEN=$(make token SUB=alice ROLE=customer)")
    say(f'  curl -H "authorization: Bearer $TOKEN" {address}/v1/reservations')
    say('  grpcurl -plaintext -H "authorization: Bearer $TOKEN" \\')
    say(f"    {address} dinemesh.history.v1.HistoryService/ListTimelineEntries")
    say("  make stop SERVICE=history            take a part away; after `make start` it catches up")
    say("  make audit                           hold the books of all services against each other")
    say("  make down                            stop it; the data stays")
    say(f"Every call, with a form to try it: http://{address}/docs")


class Story:
    """Three guests, two restaurants, and the people who work there."""

    def __init__(self, mesh: Mesh, services: Services) -> None:
        self._mesh = mesh
        self._services = services
        self._shown: dict[str, str] = {}
        """By restaurant, the policy_etag of the slots that were looked at last."""

    def tell(self) -> None:
        """Raises Failure at the first step that ends otherwise, and Refused if a service refuses a call."""
        auto, manual = self._restaurants()
        alice = self._alice_books_and_changes_her_mind(auto)
        self._a_declined_card_books_nothing(auto)
        self._a_person_accepts(manual)
        carol = self._a_person_declines(manual)
        self._alice_cancels(alice, auto)
        self._timeline("alice", alice)
        self._timeline("carol", carol)

    def _restaurants(self) -> tuple[Restaurant, Restaurant]:
        say("\nRestaurants")
        answer = ask(
            self._services.restaurant.ListRestaurants,
            restaurant_service_pb2.ListRestaurantsRequest(page_size=100),
        )
        for restaurant in answer.restaurants:
            how = "accepts by itself" if restaurant.policy.acceptance == AUTO else "a person accepts"
            deposit = money(restaurant.policy.deposit_per_person)
            say(f"  {restaurant.name:<18} {restaurant.time_zone:<18} {deposit} a person, {how}")
        by_name = {restaurant.name: restaurant for restaurant in answer.restaurants}
        found = [
            by_name.get(next(one.name for one in SAMPLES if one.policy.acceptance == mode))
            for mode in (AUTO, MANUAL)
        ]
        if found[0] is None or found[1] is None:
            raise Failure("The story is told at the sample restaurants, which SAMPLES=off has left out.")
        return found[0], found[1]

    def _alice_books_and_changes_her_mind(self, restaurant: Restaurant) -> Reservation:
        say(f"\nAlice books a table at {restaurant.name}")
        times = self._free_times(restaurant, 4)
        say(f"  {len(times)} free times for four on {_local(times[0], restaurant):%A %d %B}")
        booked = self._reserve("alice", restaurant, times[0], 2, "tok_visa")
        booked = self._wait("alice", booked, CONFIRMED)
        price = booked.deposits[0].amount
        self._done(f"{_terms(booked, restaurant)}: {_state(booked)}, {money(price)} held")
        deposit = ask(
            self._services.deposit.GetDeposit,
            deposit_service_pb2.GetDepositRequest(deposit_id=booked.deposits[0].deposit_id),
            self._token("alice"),
        ).deposit
        self._check(
            deposit.state == deposit_pb2.DEPOSIT_STATE_CAPTURED,
            "the deposit service has captured it",
            deposit,
        )

        say("  two friends want to come too (dearer: the difference is charged)")
        dearer = self._modify(booked, party_size=4, payment_token="tok_visa")
        self._check(
            _held(dearer) == 2 * _held(booked), f"{_terms(dearer, restaurant)}: {_held_words(dearer)}", dearer
        )
        say("  one of them cannot (cheaper: the difference goes back)")
        cheaper = self._modify(dearer, party_size=3)
        self._check(
            2 * _held(cheaper) == 3 * _held(booked),
            f"{_terms(cheaper, restaurant)}: {_held_words(cheaper)}",
            cheaper,
        )
        say("  and rather half an hour later (same price: no money moves)")
        later = self._modify(cheaper, dine_time=times[1])
        self._check(
            _held(later) == _held(cheaper), f"{_terms(later, restaurant)}: {_held_words(later)}", later
        )
        return later

    def _a_declined_card_books_nothing(self, restaurant: Restaurant) -> None:
        say("\nBob's card is declined")
        dine_time = self._free_times(restaurant, 2)[0]
        request = self._request(restaurant, dine_time, 2, "tok_chargeDeclined")
        before = self._bookings("bob")
        for attempt in ("no deposit, no booking", "the same request id, the same answer"):
            try:
                ask(self._services.reservation.CreateReservation, request, self._token("bob"))
            except Refused as refused:
                self._check(refused.reason == "CARD_DECLINED", f"{refused.reason}: {attempt}", refused)
            else:
                raise Failure("A booking was taken on a declined card.")
        live = [one for one in self._bookings("bob") if one.state != reservation_pb2.RESERVATION_STATE_FAILED]
        kept = [one for one in before if one.state != reservation_pb2.RESERVATION_STATE_FAILED]
        self._check(len(live) == len(kept), "Bob has no more bookings than before", live)

    def _a_person_accepts(self, restaurant: Restaurant) -> None:
        say(f"\nDave asks for a table at {restaurant.name}, where a person accepts")
        asked = self._reserve("dave", restaurant, self._free_times(restaurant, 2)[0], 2, "tok_visa")
        self._check(
            asked.state == PENDING_ACCEPTANCE, f"{_terms(asked, restaurant)}: {_state(asked)}, paid", asked
        )
        self._booking(restaurant, asked, restaurant_pb2.BOOKING_STATE_RECEIVED)
        self._done("the restaurant's list shows it")
        ask(
            self._services.restaurant.AcceptBooking,
            restaurant_service_pb2.AcceptBookingRequest(
                restaurant_id=restaurant.restaurant_id,
                reservation_id=asked.reservation_id,
                revision=asked.revision,
            ),
            self._staff(restaurant),
        )
        accepted = self._wait("dave", asked, CONFIRMED)
        self._done(f"Maria, who works there, accepts: {_state(accepted)}")

    def _a_person_declines(self, restaurant: Restaurant) -> Reservation:
        say("\nCarol asks too, and the restaurant declines")
        asked = self._reserve("carol", restaurant, self._free_times(restaurant, 2)[0], 2, "tok_visa")
        self._booking(restaurant, asked, restaurant_pb2.BOOKING_STATE_RECEIVED)
        ask(
            self._services.restaurant.DeclineBooking,
            restaurant_service_pb2.DeclineBookingRequest(
                restaurant_id=restaurant.restaurant_id,
                reservation_id=asked.reservation_id,
                revision=asked.revision,
            ),
            self._staff(restaurant),
        )
        declined = self._wait("carol", asked, DECLINED)
        self._refunded("carol", declined)
        self._done(f"{_state(declined)}, and {money(declined.deposits[0].amount)} went back to her card")
        return declined

    def _alice_cancels(self, booked: Reservation, restaurant: Restaurant) -> None:
        say("\nAlice cancels, within the free time")
        answer = ask(
            self._services.reservation.CancelReservation,
            reservation_service_pb2.CancelReservationRequest(reservation_id=booked.reservation_id),
            self._token("alice"),
        )
        self._check(answer.reservation.state == CANCELLED, f"{_state(answer.reservation)}", answer)
        self._check(_minor(answer.refunded) == _held(booked), f"{money(answer.refunded)} goes back", answer)
        self._refunded("alice", answer.reservation)
        self._done("the payment provider has paid it out")
        self._booking(restaurant, booked, restaurant_pb2.BOOKING_STATE_WITHDRAWN)
        self._done("the restaurant's booking is withdrawn, the seats are free again")

    def _timeline(self, customer: str, reservation: Reservation) -> None:
        say(f"\nWhat {customer.capitalize()} sees of reservation {reservation.reservation_id}, in UTC")
        request = history_service_pb2.ListTimelineEntriesRequest(
            reservation_id=reservation.reservation_id, page_size=200
        )
        token = self._token(customer)
        charged, returned = (
            history_pb2.TIMELINE_ENTRY_KIND_DEPOSIT_CAPTURED,
            history_pb2.TIMELINE_ENTRY_KIND_DEPOSIT_REFUNDED,
        )

        def look() -> Sequence[history_pb2.TimelineEntry]:
            return ask(self._services.history.ListTimelineEntries, request, token).entries

        def whole(entries: Sequence[history_pb2.TimelineEntry]) -> bool:
            """Everybody has been heard, and all that was charged has come back."""
            sums = [
                sum(_minor(entry.amount) for entry in entries if entry.kind == kind)
                for kind in (charged, returned)
            ]
            return _END[customer] <= {entry.kind for entry in entries} and 0 < sums[0] == sums[1]

        for entry in until(f"{customer}'s timeline is whole", look, whole):
            when = entry.occur_time.ToDatetime(UTC)
            say(f"  {when:%H:%M:%S.%f}"[:-3] + f"  {entry.summary}")

    def _free_times(self, restaurant: Restaurant, party_size: int) -> list[Timestamp]:
        """Open times on the first day that has two of them, in order. What is asked for there afterwards is
        asked for on the terms of that answer."""
        end = time.monotonic() + HEARD_SECONDS
        while True:
            for day in self._days(restaurant):
                times = self._times(restaurant, day, party_size)
                if len(times) >= 2:
                    return times
            if time.monotonic() > end:
                raise Failure(
                    f"{restaurant.name} has no table for {party_size} left."
                    " Start afresh: make down, rm -r .local"
                )
            time.sleep(0.1)

    @staticmethod
    def _days(restaurant: Restaurant) -> list[str]:
        today = datetime.now(UTC).astimezone(ZoneInfo(restaurant.time_zone)).date()
        return [(today + timedelta(days=days)).isoformat() for days in range(DAYS_AHEAD, DAYS_AHEAD + 25)]

    def _times(self, restaurant: Restaurant, day: str, party_size: int) -> list[Timestamp]:
        request = reservation_service_pb2.ListAvailableSlotsRequest(
            restaurant_id=restaurant.restaurant_id, date=day, party_size=party_size, page_size=100
        )
        try:
            answer = ask(self._services.reservation.ListAvailableSlots, request)
        except Refused as refused:
            if refused.reason == "NOT_FOUND":  # the event that tells of it is on its way
                return []
            raise
        self._shown[restaurant.restaurant_id] = answer.policy_etag
        return [slot.dine_time for slot in answer.slots if slot.available]

    def _request(
        self, restaurant: Restaurant, dine_time: Timestamp, party_size: int, payment_token: str
    ) -> reservation_service_pb2.CreateReservationRequest:
        return reservation_service_pb2.CreateReservationRequest(
            request_id=str(uuid.uuid4()),
            restaurant_id=restaurant.restaurant_id,
            dine_time=dine_time,
            party_size=party_size,
            policy_etag=self._shown[restaurant.restaurant_id],
            payment_token=payment_token,
        )

    def _reserve(
        self, customer: str, restaurant: Restaurant, dine_time: Timestamp, party_size: int, payment_token: str
    ) -> Reservation:
        request = self._request(restaurant, dine_time, party_size, payment_token)
        return ask(self._services.reservation.CreateReservation, request, self._token(customer)).reservation

    def _modify(
        self,
        booked: Reservation,
        *,
        party_size: int | None = None,
        dine_time: Timestamp | None = None,
        payment_token: str = "",
    ) -> Reservation:
        changed = ask(
            self._services.reservation.ModifyReservation,
            reservation_service_pb2.ModifyReservationRequest(
                reservation_id=booked.reservation_id,
                request_id=str(uuid.uuid4()),
                etag=booked.etag,
                party_size=party_size,
                dine_time=dine_time,
                payment_token=payment_token,
            ),
            self._token(booked.customer_id),
        ).reservation
        return self._wait(booked.customer_id, changed, CONFIRMED)

    def _get(self, customer: str, reservation: Reservation) -> Reservation:
        request = reservation_service_pb2.GetReservationRequest(reservation_id=reservation.reservation_id)
        return ask(self._services.reservation.GetReservation, request, self._token(customer)).reservation

    def _wait(
        self, customer: str, reservation: Reservation, state: reservation_pb2.ReservationState.ValueType
    ) -> Reservation:
        name = reservation_pb2.ReservationState.Name(state).removeprefix("RESERVATION_STATE_")
        return until(
            f"the reservation is {name}",
            lambda: self._get(customer, reservation),
            lambda seen: seen.state == state and seen.revision == reservation.revision,
        )

    def _refunded(self, customer: str, reservation: Reservation) -> None:
        request = deposit_service_pb2.ListDepositsRequest(reservation_id=reservation.reservation_id)
        until(
            "all of its deposits are refunded",
            lambda: ask(self._services.deposit.ListDeposits, request, self._token(customer)),
            lambda seen: bool(seen.deposits) and all(one.state == REFUNDED for one in seen.deposits),
        )

    def _bookings(self, customer: str) -> list[Reservation]:
        request = reservation_service_pb2.ListReservationsRequest(page_size=100)
        return list(
            ask(self._services.reservation.ListReservations, request, self._token(customer)).reservations
        )

    def _booking(
        self, restaurant: Restaurant, reservation: Reservation, state: restaurant_pb2.BookingState.ValueType
    ) -> None:
        """Wait until the restaurant has it in this state."""
        start, end = Timestamp(), Timestamp()
        start.FromSeconds(reservation.dine_time.seconds)
        end.FromSeconds(reservation.dine_time.seconds + 1)
        request = restaurant_service_pb2.ListBookingsRequest(
            restaurant_id=restaurant.restaurant_id, start_time=start, end_time=end, page_size=200
        )
        until(
            f"the restaurant's booking is {restaurant_pb2.BookingState.Name(state)}",
            lambda: ask(self._services.restaurant.ListBookings, request, self._staff(restaurant)),
            lambda seen: any(
                one.reservation_id == reservation.reservation_id and one.state == state
                for one in seen.bookings
            ),
        )

    def _token(self, customer: str) -> str:
        return tokens.person(self._mesh.places, customer, "customer")

    def _staff(self, restaurant: Restaurant) -> str:
        return tokens.person(self._mesh.places, "maria", "staff", restaurant.restaurant_id)

    def _done(self, text: str) -> None:
        say(f"  + {text}")

    def _check(self, right: bool, text: str, seen: object) -> None:
        if not right:
            raise Failure(f"The story ends here. Expected: {text}\nSeen instead:\n{seen}")
        self._done(text)


_END = {
    "alice": {
        history_pb2.TIMELINE_ENTRY_KIND_RESERVATION_CANCELLED,
        history_pb2.TIMELINE_ENTRY_KIND_BOOKING_WITHDRAWN,
    },
    "carol": {
        history_pb2.TIMELINE_ENTRY_KIND_RESERVATION_DECLINED,
        history_pb2.TIMELINE_ENTRY_KIND_BOOKING_DECLINED,
    },
}
"""What each one's timeline must hold in the end."""


def _local(dine_time: Timestamp, restaurant: Restaurant) -> datetime:
    return dine_time.ToDatetime(UTC).astimezone(ZoneInfo(restaurant.time_zone))


def _terms(reservation: Reservation, restaurant: Restaurant) -> str:
    when = _local(reservation.dine_time, restaurant)
    utc = reservation.dine_time.ToDatetime(UTC)
    return (
        f"{reservation.party_size} persons, {when:%a %d %b %H:%M} in {restaurant.time_zone} ({utc:%H:%M} UTC)"
    )


def _state(reservation: Reservation) -> str:
    return reservation_pb2.ReservationState.Name(reservation.state).removeprefix("RESERVATION_STATE_")


def _minor(amount: money_pb2.Money) -> int:
    """In the smallest unit of its currency."""
    return wire.from_money(amount, "amount")[0]


def _held(reservation: Reservation) -> int:
    return sum(_minor(deposit.held) for deposit in reservation.deposits)


def _held_words(reservation: Reservation) -> str:
    parts = [deposit.held for deposit in reservation.deposits if _minor(deposit.held)]
    total = wire.to_money(_held(reservation), parts[0].currency_code)
    spelled = f" ({' + '.join(money(part) for part in parts)})" if len(parts) > 1 else ""
    return f"{_state(reservation)}, {money(total)} held{spelled}"
