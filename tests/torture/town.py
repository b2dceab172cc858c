"""The restaurants of a run, and visitors who call the mesh and write down every answer."""

from __future__ import annotations

import asyncio
import datetime as dt
import math
import random
import time
import uuid
from collections import Counter
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeVar

import grpc
from google.type.date_pb2 import Date
from google.type.timeofday_pb2 import TimeOfDay

from dinemesh.reservation.v1 import reservation_service_pb2
from dinemesh.restaurant.v1 import restaurant_service_pb2
from tests.mesh.people import (
    AUTO,
    MANUAL,
    Booking,
    City,
    Place,
    Reservation,
    bearer,
    cents,
    instant,
    policy,
    timestamp,
    until,
)
from tests.support.mesh import RunningMesh
from tests.support.refusals import refusal
from tests.torture.books import booking_state_name, state_name
from tests.torture.plan import Story
from tests.torture.record import Answer, Call, Record, Refusal, Seen, SeenBooking, Terms
from tests.torture.truth import ENDED, FINAL

T = TypeVar("T")

DEADLINE = 5.0
"""What a client gives each call, seconds."""
PAUSE = 0.2
"""Before a client first repeats a call whose outcome it does not know, seconds; then longer each time."""
LONGEST_PAUSE = 1.0
LOOK_EVERY = 0.3
SEATS = 100_000
HURRIED_LIMIT = 3
"""Seconds in which a person has to accept at the hurried restaurant."""
FREE_UNTIL = 3
"""At the near restaurant cancelling is free until so many seconds before the meal."""
NEAR = 7.0
"""How far ahead a table is booked there, seconds."""
EVERY = 2
"""Seconds between its slots."""
TINY_SLOTS = 240


@dataclass
class Places:
    """`easy` accepts by itself, `manual` asks a person, `hurried` asks one who has little time; `near` has
    tables within seconds, `tiny` has slots of three seats."""

    easy: Place
    manual: Place
    hurried: Place
    near: Place
    tiny: Place


@dataclass
class Town:
    """What the clients of a run share. `closing`: when they stop to repeat, by the monotonic clock."""

    city: City
    mesh: RunningMesh
    places: Places
    record: Record = field(default_factory=Record)
    in_flight: Counter[str] = field(default_factory=Counter)
    closing: float | None = None
    visitors: list[Visitor] = field(default_factory=list)

    async def less_hurried(self, seconds: float) -> Place:
        """A restaurant like the hurried one, where a person has so many seconds more."""
        limit = HURRIED_LIMIT + math.ceil(seconds)
        return await self.city.place(capacity=SEATS, terms=policy(MANUAL, limit_seconds=limit))

    @property
    def closed(self) -> bool:
        return self.closing is not None and time.monotonic() > self.closing


async def build(mesh: RunningMesh, city: City, seconds: float) -> Places:
    """The restaurants, with slots for a run of so many seconds."""
    easy, manual, hurried = await asyncio.gather(
        city.place(AUTO, capacity=SEATS),
        city.place(MANUAL, capacity=SEATS),
        city.place(capacity=SEATS, terms=policy(MANUAL, limit_seconds=HURRIED_LIMIT)),
    )
    near = await city.place(
        times=(), terms=policy(AUTO, free_cancel_seconds=FREE_UNTIL, interval_seconds=1), time_zone="Etc/UTC"
    )
    first = dt.datetime.now(dt.UTC).replace(microsecond=0)
    first += dt.timedelta(seconds=first.second % EVERY)
    count = int((seconds + 120) / EVERY)
    await _open(city, near, [first + dt.timedelta(seconds=EVERY * n) for n in range(1, count)], SEATS)
    tiny = await city.place(times=(), terms=policy(AUTO, interval_seconds=60), time_zone="Etc/UTC")
    noon = dt.datetime.combine(first.date() + dt.timedelta(days=7), dt.time(12), dt.UTC)
    await _open(city, tiny, [noon + dt.timedelta(minutes=n) for n in range(TINY_SLOTS)], 3)
    return Places(easy, manual, hurried, near, tiny)


async def _open(city: City, place: Place, times: Sequence[dt.datetime], capacity: int) -> None:
    """Many slots at once, at a restaurant in UTC."""
    for day in sorted({moment.date() for moment in times}):
        mine = [moment for moment in times if moment.date() == day]
        date = Date(year=day.year, month=day.month, day=day.day)
        request = restaurant_service_pb2.OpenSlotsRequest(
            restaurant_id=place.id,
            first_date=date,
            last_date=date,
            times=[TimeOfDay(hours=one.hour, minutes=one.minute, seconds=one.second) for one in mine],
            capacity=capacity,
        )
        await city.doors.restaurant.OpenSlots(request, metadata=place.metadata, timeout=10)
    place.slots.extend(times)
    await until(lambda: place.offered(times[-1]), lambda known: known is not None)


class Visitor:
    """A customer with one wish, and the staff who get to see it."""

    def __init__(
        self, town: Town, story: Story, place: Place, *, rival: bool = False, push: float = 0.0
    ) -> None:
        self._town = town
        self.push = push
        self._doors = town.city.doors
        self.name = f"{story.customer}{'-rival' if rival else ''}"
        self.chance = random.Random(f"{story.chance} {self.name}")
        self.place = place
        self.party = story.party
        self.card = story.card
        self.dine_time = place.slots[story.slot % len(place.slots)]
        self._metadata = bearer(town.mesh.token(self.name, "customer"))
        self._request_id = self._new_id()
        self.seen: Seen | None = None
        """The reservation as it was shown last."""
        self._etag = ""
        town.visitors.append(self)

    def _new_id(self) -> str:
        return str(uuid.UUID(int=self.chance.getrandbits(128), version=4))

    # The customer.

    async def reserve(self, timeout: float = DEADLINE) -> Answer:
        """One CreateReservation."""
        request = reservation_service_pb2.CreateReservationRequest(
            request_id=self._request_id,
            restaurant_id=self.place.id,
            dine_time=timestamp(self.dine_time),
            party_size=self.party,
            policy_etag=self.place.policy_etag,
            payment_token=self.card,
        )
        return await self._ask(
            Call.RESERVE,
            "reservation",
            lambda: self._doors.reservation.CreateReservation(
                request, metadata=self._metadata, timeout=timeout
            ),
            lambda reply: {"seen": self._saw(reply.reservation)},
            request_id=self._request_id,
            asked=Terms(self.place.id, self.dine_time, self.party),
            card=self.card,
        )

    async def reserve_at_last(self, tries: int | None = None) -> bool:
        """Repeats as it is told to until the answer is final. With `tries` it gives up after so many."""
        answer = await self._repeat(self.reserve, lambda one: one.good or one.outcome in FINAL, tries)
        if not (answer.good or answer.outcome in FINAL) and tries is not None:
            self._town.record.given_up.add(self._request_id)
        return answer.good

    async def read(self) -> Seen | None:
        """One GetReservation; what it showed."""
        assert self.seen is not None
        request = reservation_service_pb2.GetReservationRequest(reservation_id=self.seen.reservation_id)
        answer = await self._ask(
            Call.READ,
            "reservation",
            lambda: self._doors.reservation.GetReservation(
                request, metadata=self._metadata, timeout=DEADLINE
            ),
            lambda reply: {"seen": self._saw(reply.reservation)},
            reservation_id=self.seen.reservation_id,
        )
        return answer.seen

    async def find(self) -> bool:
        """One ListReservations, for somebody whose CreateReservation is not answered yet."""
        request = reservation_service_pb2.ListReservationsRequest()
        answer = await self._ask(
            Call.READ,
            "reservation",
            lambda: self._doors.reservation.ListReservations(
                request, metadata=self._metadata, timeout=DEADLINE
            ),
            lambda reply: {"seen": self._saw(reply.reservations[0]) if reply.reservations else None},
        )
        return answer.seen is not None

    async def sees(self, *states: str, seconds: float = 15.0) -> bool:
        """Reads until the reservation is in one of `states`; not longer than that, and not after its end."""
        end = time.monotonic() + seconds
        while time.monotonic() < end and not self._town.closed:
            seen = await self.read()
            if seen is not None and (seen.state in states or seen.state in ENDED):
                return seen.state in states
            await asyncio.sleep(LOOK_EVERY)
        return False

    async def modify(self, party: int, card: str = "", tries: int | None = None) -> bool:
        """A modification, repeated until its answer is final."""
        assert self.seen is not None
        request_id, seen = self._new_id(), self.seen
        request = reservation_service_pb2.ModifyReservationRequest(
            reservation_id=seen.reservation_id,
            request_id=request_id,
            etag=self._etag,
            party_size=party,
            payment_token=card,
        )

        async def once() -> Answer:
            return await self._ask(
                Call.MODIFY,
                "reservation",
                lambda: self._doors.reservation.ModifyReservation(
                    request, metadata=self._metadata, timeout=DEADLINE
                ),
                lambda reply: {"seen": self._saw(reply.reservation)},
                request_id=request_id,
                reservation_id=seen.reservation_id,
                asked=Terms(seen.terms.restaurant_id, seen.terms.dine_time, party),
                card=card,
            )

        answer = await self._repeat(once, _is_over, tries)
        if not _is_over(answer):
            self._town.record.given_up.add(request_id)
        return answer.good

    async def cancel(self) -> bool:
        """Cancels, repeated until the answer is final."""
        assert self.seen is not None
        reservation_id = self.seen.reservation_id
        request = reservation_service_pb2.CancelReservationRequest(reservation_id=reservation_id)

        async def once() -> Answer:
            return await self._ask(
                Call.CANCEL,
                "reservation",
                lambda: self._doors.reservation.CancelReservation(
                    request, metadata=self._metadata, timeout=DEADLINE
                ),
                lambda reply: {
                    "seen": self._saw(reply.reservation),
                    "refunded": cents(reply.refunded),
                    "forfeited": cents(reply.forfeited),
                },
                reservation_id=reservation_id,
            )

        return (await self._repeat(once, _is_over)).good

    # The restaurant.

    async def arrived(self) -> bool:
        """Waits until the restaurant has heard of the booking: a yes to terms of the far future tells."""
        answer = await self._staff_once(Call.ACCEPT, 1_000_000)
        end = time.monotonic() + 20
        while answer.outcome != "BOOKING_REVISION" and time.monotonic() < end and not self._town.closed:
            await asyncio.sleep(LOOK_EVERY)
            answer = await self._staff_once(Call.ACCEPT, 1_000_000)
        return answer.outcome == "BOOKING_REVISION"

    async def staff(self, call: Call) -> bool:
        """What staff do with the booking as it was shown last; repeated until the answer is final, and while
        the restaurant has not heard of it yet."""
        assert self.seen is not None
        revision = self.seen.revision
        end = time.monotonic() + 20

        def is_over(answer: Answer) -> bool:
            early = answer.outcome in ("NOT_FOUND", "BOOKING_REVISION")
            unconfirmed = answer.refusal is not None and answer.refusal.state == "ACCEPTED"
            if (early or unconfirmed) and time.monotonic() < end:
                return False
            return _is_over(answer)

        return (await self._repeat(lambda: self._staff_once(call, revision), is_over)).good

    async def _staff_once(self, call: Call, revision: int) -> Answer:
        assert self.seen is not None
        rpc, kind = _OF_STAFF[call]
        request = kind(
            restaurant_id=self.place.id, reservation_id=self.seen.reservation_id, revision=revision
        )
        return await self._ask(
            call,
            "restaurant",
            lambda: getattr(self._doors.restaurant, rpc)(
                request, metadata=self.place.metadata, timeout=DEADLINE
            ),
            lambda reply: {"booking": _booking(reply.booking)},
            reservation_id=self.seen.reservation_id,
        )

    # Parts.

    async def _repeat(
        self,
        once: Callable[[], Awaitable[Answer]],
        is_over: Callable[[Answer], bool],
        tries: int | None = None,
    ) -> Answer:
        answer = await once()
        pause = PAUSE
        while not is_over(answer) and not self._town.closed:
            if tries is not None:
                tries -= 1
                if tries <= 0:
                    break
            told = answer.refusal.retry_after if answer.refusal is not None else None
            await asyncio.sleep(pause if told is None else told)
            pause = min(pause * 1.5, LONGEST_PAUSE)
            answer = await once()
        return answer

    def _saw(self, reservation: Reservation) -> Seen:
        seen = Seen(
            reservation.reservation_id,
            reservation.customer_id,
            state_name(reservation.state),
            reservation.revision,
            Terms(reservation.restaurant_id, instant(reservation.dine_time), reservation.party_size),
        )
        self.seen, self._etag = seen, reservation.etag
        return seen

    async def _ask(
        self,
        call: Call,
        service: str,
        send: Callable[[], Awaitable[T]],
        shown: Callable[[T], dict[str, Any]],
        **about: Any,
    ) -> Answer:
        begin = time.monotonic()
        self._town.in_flight[service] += 1
        try:
            about |= shown(await send())
        except grpc.aio.AioRpcError as error:
            said = refusal(error)
            state = said.info.get("state", "")
            about["refusal"] = Refusal(said.code.name, said.reason, said.retry_after, state)
        finally:
            self._town.in_flight[service] -= 1
        answer = Answer(call, self.name, begin, time.monotonic(), **about)
        self._town.record.answers.append(answer)
        return answer


_OF_STAFF: dict[Call, tuple[str, Any]] = {
    Call.ACCEPT: ("AcceptBooking", restaurant_service_pb2.AcceptBookingRequest),
    Call.DECLINE: ("DeclineBooking", restaurant_service_pb2.DeclineBookingRequest),
    Call.SEAT: ("MarkSeated", restaurant_service_pb2.MarkSeatedRequest),
    Call.NO_SHOW: ("MarkNoShow", restaurant_service_pb2.MarkNoShowRequest),
    Call.COMPLETE: ("CompleteBooking", restaurant_service_pb2.CompleteBookingRequest),
}


def _is_over(answer: Answer) -> bool:
    """Whether a client has no reason to repeat a call."""
    if answer.refusal is None:
        return True
    return not answer.unknown and answer.refusal.retry_after is None and answer.outcome != "INTERNAL"


def _booking(booking: Booking) -> SeenBooking:
    return SeenBooking(booking.reservation_id, booking_state_name(booking.state), booking.revision)
