"""Who uses the mesh: customers, a restaurant's staff, the operator, and the payment provider's bookkeeper.

They know addresses, tokens and the contracts, nothing else. Whatever arrives by an event is waited for by
polling.
"""

from __future__ import annotations

import asyncio
import datetime as dt
import time
import uuid
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable
from typing import TypeVar
from zoneinfo import ZoneInfo

import grpc
from google.protobuf.timestamp_pb2 import Timestamp
from google.type.date_pb2 import Date
from google.type.money_pb2 import Money
from google.type.timeofday_pb2 import TimeOfDay

from dinemesh.deposit.v1 import deposit_pb2, deposit_service_pb2, deposit_service_pb2_grpc
from dinemesh.history.v1 import history_pb2, history_service_pb2, history_service_pb2_grpc
from dinemesh.reservation.v1 import reservation_pb2, reservation_service_pb2, reservation_service_pb2_grpc
from dinemesh.restaurant.v1 import restaurant_pb2, restaurant_service_pb2, restaurant_service_pb2_grpc
from dinemesh.sandbox.v1 import sandbox_pb2, sandbox_pb2_grpc
from tests.support.mesh import SERVICES, RunningMesh
from tests.support.refusals import Refused, refusal

AUTO = restaurant_pb2.ACCEPTANCE_MODE_AUTO
MANUAL = restaurant_pb2.ACCEPTANCE_MODE_MANUAL

PENDING_DEPOSIT = reservation_pb2.RESERVATION_STATE_PENDING_DEPOSIT
PENDING_ACCEPTANCE = reservation_pb2.RESERVATION_STATE_PENDING_ACCEPTANCE
CONFIRMED = reservation_pb2.RESERVATION_STATE_CONFIRMED
SEATED = reservation_pb2.RESERVATION_STATE_SEATED
COMPLETED = reservation_pb2.RESERVATION_STATE_COMPLETED
NO_SHOW = reservation_pb2.RESERVATION_STATE_NO_SHOW
FAILED = reservation_pb2.RESERVATION_STATE_FAILED
DECLINED = reservation_pb2.RESERVATION_STATE_DECLINED
CANCELLED = reservation_pb2.RESERVATION_STATE_CANCELLED

Reservation = reservation_pb2.Reservation
Booking = restaurant_pb2.Booking
Deposit = deposit_pb2.Deposit

PER_PERSON = 10
"""Euros of deposit for one person, at every restaurant of these tests."""
BERLIN = ZoneInfo("Europe/Berlin")
SHORT = 10.0
"""Deadline of a call that should be answered at once, with room for a busy machine."""
PATIENCE = 30.0
"""How long anything that travels by events may take; far above what it takes."""

T = TypeVar("T")


async def until(
    ask: Callable[[], Awaitable[T]], satisfied: Callable[[T], object], seconds: float = PATIENCE
) -> T:
    """Asks again and again until the answer satisfies; fails with the last answer."""
    end = time.monotonic() + seconds
    while True:
        answer = await ask()
        if satisfied(answer):
            return answer
        if time.monotonic() > end:
            raise AssertionError(f"not within {seconds} s; the last answer was:\n{answer}")
        await asyncio.sleep(0.02)


async def patiently(
    attempt: Callable[[], Awaitable[T]], seconds: float = PATIENCE, refusals: list[Refused] | None = None
) -> T:
    """Repeats `attempt` as RetryInfo says, as a well-behaved client does; a refusal without one is raised."""
    end = time.monotonic() + seconds
    while True:
        try:
            return await attempt()
        except grpc.aio.AioRpcError as error:
            said = refusal(error)
            if refusals is not None:
                refusals.append(said)
            if said.retry_after is None or time.monotonic() + said.retry_after > end:
                raise
            await asyncio.sleep(said.retry_after)


def euros(amount: float) -> Money:
    cents = round(amount * 100)
    return Money(currency_code="EUR", units=cents // 100, nanos=cents % 100 * 10_000_000)


def cents(money: Money) -> int:
    assert money.currency_code in ("EUR", ""), money
    return money.units * 100 + money.nanos // 10_000_000


def instant(value: Timestamp) -> dt.datetime:
    return value.ToDatetime(tzinfo=dt.UTC)


def timestamp(value: dt.datetime) -> Timestamp:
    stamp = Timestamp()
    stamp.FromDatetime(value)
    return stamp


def new_id() -> str:
    return str(uuid.uuid4())


def bearer(token: str) -> tuple[tuple[str, str], ...]:
    return (("authorization", f"Bearer {token}"),)


def policy(
    accepts: restaurant_pb2.AcceptanceMode.ValueType = AUTO,
    *,
    per_person: float = PER_PERSON,
    free_cancel_seconds: int = 3600,
    limit_seconds: int = 3600,
    lead_seconds: int = 0,
    grace_seconds: int = 0,
    interval_seconds: int = 1800,
    service_seconds: int = 7200,
    max_party: int = 100,
) -> restaurant_pb2.Policy:
    """A restaurant's conditions; by default 10 EUR a person, free until an hour before."""
    return restaurant_pb2.Policy(
        deposit_per_person=euros(per_person),
        free_cancel_window_seconds=free_cancel_seconds,
        acceptance=accepts,
        acceptance_limit_seconds=limit_seconds,
        acceptance_lead_seconds=lead_seconds,
        no_show_grace_seconds=grace_seconds,
        slot_interval_seconds=interval_seconds,
        service_duration_seconds=service_seconds,
        max_party_size=max_party,
    )


class Doors:
    """Stubs of all services over one set of channels."""

    def __init__(self, mesh: RunningMesh, **elsewhere: str) -> None:
        """`elsewhere`: addresses of services that are not the mesh's own, by name."""
        self.channels = {
            name: grpc.aio.insecure_channel(
                elsewhere.get(name, mesh[name].address),
                # A service that a test stopped is found again at once.
                options=[("grpc.initial_reconnect_backoff_ms", 50), ("grpc.max_reconnect_backoff_ms", 200)],
            )
            for name in (*SERVICES, "sandbox")
        }
        self.reservation = reservation_service_pb2_grpc.ReservationServiceStub(self.channels["reservation"])
        self.deposit = deposit_service_pb2_grpc.DepositServiceStub(self.channels["deposit"])
        self.restaurant = restaurant_service_pb2_grpc.RestaurantServiceStub(self.channels["restaurant"])
        self.history = history_service_pb2_grpc.HistoryServiceStub(self.channels["history"])
        self.sandbox = sandbox_pb2_grpc.SandboxServiceStub(self.channels["sandbox"])

    async def close(self) -> None:
        for channel in self.channels.values():
            await channel.close()


class Customer:
    """Someone with a token of the role customer."""

    def __init__(self, doors: Doors, mesh: RunningMesh, name: str) -> None:
        self._doors = doors
        self.name = name
        self.metadata = bearer(mesh.token(name, "customer"))

    def wish(
        self,
        place: Place,
        *,
        slot: int = 0,
        party: int = 2,
        card: str = "tok_visa",
        request_id: str = "",
        note: str = "",
    ) -> reservation_service_pb2.CreateReservationRequest:
        return reservation_service_pb2.CreateReservationRequest(
            request_id=request_id or new_id(),
            restaurant_id=place.id,
            dine_time=timestamp(place.slots[slot]),
            party_size=party,
            policy_etag=place.policy_etag,
            payment_token=card,
            note=note,
        )

    async def send(
        self, wish: reservation_service_pb2.CreateReservationRequest, timeout: float = SHORT
    ) -> Reservation:
        """One CreateReservation, once."""
        answer = await self._doors.reservation.CreateReservation(
            wish, metadata=self.metadata, timeout=timeout
        )
        return answer.reservation

    async def reserve(
        self, place: Place, *, slot: int = 0, party: int = 2, card: str = "tok_visa", note: str = ""
    ) -> Reservation:
        return await self.send(self.wish(place, slot=slot, party=party, card=card, note=note))

    async def book(self, place: Place, *, slot: int = 0, party: int = 2) -> Reservation:
        """Reserve and wait for CONFIRMED, at a restaurant that accepts by itself."""
        reservation = await self.reserve(place, slot=slot, party=party)
        return await self.sees(reservation, CONFIRMED)

    async def read(self, reservation: Reservation) -> Reservation:
        answer = await self._doors.reservation.GetReservation(
            reservation_service_pb2.GetReservationRequest(reservation_id=reservation.reservation_id),
            metadata=self.metadata,
            timeout=SHORT,
        )
        return answer.reservation

    async def sees(
        self,
        reservation: Reservation,
        state: reservation_pb2.ReservationState.ValueType,
        seconds: float = PATIENCE,
    ) -> Reservation:
        return await until(lambda: self.read(reservation), lambda seen: seen.state == state, seconds)

    async def reservations(self) -> list[Reservation]:
        found: list[Reservation] = []
        token = ""
        while True:
            page = await self._doors.reservation.ListReservations(
                reservation_service_pb2.ListReservationsRequest(page_size=200, page_token=token),
                metadata=self.metadata,
                timeout=SHORT,
            )
            found += page.reservations
            if not (token := page.next_page_token):
                return found

    async def modify(
        self,
        reservation: Reservation,
        *,
        party: int | None = None,
        dine_time: dt.datetime | None = None,
        note: str | None = None,
        card: str = "",
        request_id: str = "",
        timeout: float = SHORT,
    ) -> Reservation:
        """One ModifyReservation, with the etag that `reservation` shows."""
        answer = await self._doors.reservation.ModifyReservation(
            reservation_service_pb2.ModifyReservationRequest(
                reservation_id=reservation.reservation_id,
                request_id=request_id or new_id(),
                etag=reservation.etag,
                dine_time=None if dine_time is None else timestamp(dine_time),
                party_size=party,
                note=note,
                payment_token=card,
            ),
            metadata=self.metadata,
            timeout=timeout,
        )
        return answer.reservation

    async def cancel(self, reservation: Reservation) -> reservation_service_pb2.CancelReservationResponse:
        return await self._doors.reservation.CancelReservation(
            reservation_service_pb2.CancelReservationRequest(reservation_id=reservation.reservation_id),
            metadata=self.metadata,
            timeout=SHORT,
        )

    async def deposit(self, deposit_id: str) -> Deposit:
        answer = await self._doors.deposit.GetDeposit(
            deposit_service_pb2.GetDepositRequest(deposit_id=deposit_id),
            metadata=self.metadata,
            timeout=SHORT,
        )
        return answer.deposit

    async def deposits(self, reservation: Reservation | None = None) -> list[Deposit]:
        """Oldest first; of all reservations if none is given."""
        answer = await self._doors.deposit.ListDeposits(
            deposit_service_pb2.ListDepositsRequest(
                reservation_id=reservation.reservation_id if reservation is not None else "", page_size=200
            ),
            metadata=self.metadata,
            timeout=SHORT,
        )
        return list(reversed(answer.deposits))

    async def sees_deposits(
        self, reservation: Reservation, *states: deposit_pb2.DepositState.ValueType, seconds: float = PATIENCE
    ) -> list[Deposit]:
        """Waits until the deposits of a reservation stand so, oldest first."""
        return await until(
            lambda: self.deposits(reservation),
            lambda found: [deposit.state for deposit in found] == list(states),
            seconds,
        )

    async def timeline(self, reservation: Reservation | None = None) -> list[history_pb2.TimelineEntry]:
        found: list[history_pb2.TimelineEntry] = []
        token = ""
        while True:
            page = await self._doors.history.ListTimelineEntries(
                history_service_pb2.ListTimelineEntriesRequest(
                    reservation_id=reservation.reservation_id if reservation is not None else "",
                    page_size=200,
                    page_token=token,
                ),
                metadata=self.metadata,
                timeout=SHORT,
            )
            found += page.entries
            if not (token := page.next_page_token):
                return found

    async def sees_in_timeline(
        self, reservation: Reservation, *kinds: str, seconds: float = PATIENCE
    ) -> list[history_pb2.TimelineEntry]:
        """Waits until each of `kinds` (without their prefix) stands in the timeline, as often as named."""

        async def so_far() -> list[history_pb2.TimelineEntry]:
            try:
                return await self.timeline(reservation)
            except grpc.aio.AioRpcError as error:
                if error.code() != grpc.StatusCode.NOT_FOUND:
                    raise
                return []  # history has not heard of it yet

        def complete(entries: list[history_pb2.TimelineEntry]) -> bool:
            seen = kinds_of(entries)
            return all(seen.count(kind) >= kinds.count(kind) for kind in kinds)

        return await until(so_far, complete, seconds)

    async def watch(
        self, reservation: Reservation
    ) -> AsyncIterator[reservation_service_pb2.WatchReservationResponse]:
        """The stream, to its end."""
        async for message in self._doors.reservation.WatchReservation(
            reservation_service_pb2.WatchReservationRequest(reservation_id=reservation.reservation_id),
            metadata=self.metadata,
            timeout=PATIENCE,
        ):
            yield message


def kinds_of(entries: Iterable[history_pb2.TimelineEntry]) -> list[str]:
    """ "DEPOSIT_CAPTURED" and so on, in the order of the timeline."""
    return [
        history_pb2.TimelineEntryKind.Name(entry.kind).removeprefix("TIMELINE_ENTRY_KIND_")
        for entry in entries
    ]


class Place:
    """A restaurant with its staff. `slots`: the dine times that were opened, in order."""

    def __init__(self, doors: Doors, mesh: RunningMesh, restaurant: restaurant_pb2.Restaurant) -> None:
        self._doors = doors
        self.id = restaurant.restaurant_id
        self.name = restaurant.name
        self.zone = ZoneInfo(restaurant.time_zone)
        self.policy = restaurant.policy
        self.policy_etag = restaurant.policy_etag
        self.slots: list[dt.datetime] = []
        self.metadata = bearer(mesh.token(f"staff of {self.id}", "staff", self.id))

    def price(self, party: int) -> Money:
        return euros(cents(self.policy.deposit_per_person) / 100 * party)

    async def change_policy(self, terms: restaurant_pb2.Policy) -> None:
        """From now on GetRestaurant shows these terms; reservation hears of them a moment later."""
        now = restaurant_service_pb2.GetRestaurantRequest(restaurant_id=self.id)
        found = (await self._doors.restaurant.GetRestaurant(now, timeout=SHORT)).restaurant
        request = restaurant_service_pb2.UpdateRestaurantRequest(
            restaurant_id=self.id, etag=found.etag, policy=terms
        )
        answer = await self._doors.restaurant.UpdateRestaurant(request, metadata=self.metadata, timeout=SHORT)
        self.policy, self.policy_etag = answer.restaurant.policy, answer.restaurant.policy_etag

    async def open(self, times: Iterable[dt.datetime], capacity: int) -> None:
        """Opens slots, and waits until they can be reserved."""
        for moment in times:
            local = moment.astimezone(self.zone)
            day = Date(year=local.year, month=local.month, day=local.day)
            answer = await self._doors.restaurant.OpenSlots(
                restaurant_service_pb2.OpenSlotsRequest(
                    restaurant_id=self.id,
                    first_date=day,
                    last_date=day,
                    times=[TimeOfDay(hours=local.hour, minutes=local.minute, seconds=local.second)],
                    capacity=capacity,
                ),
                metadata=self.metadata,
                timeout=SHORT,
            )
            assert [instant(slot.dine_time) for slot in answer.slots] == [moment]
            if moment not in self.slots:
                self.slots.append(moment)
        for moment in times:
            await until(lambda moment=moment: self.offered(moment), lambda known: known is not None)  # type: ignore[misc]

    async def set_capacity(self, slot: int, capacity: int) -> None:
        await self.open([self.slots[slot]], capacity)

    async def offered(self, moment: dt.datetime, party: int = 1) -> reservation_pb2.AvailableSlot | None:
        """The slot as anyone sees it, or None while reservation has not heard of it."""
        try:
            answer = await self._doors.reservation.ListAvailableSlots(
                reservation_service_pb2.ListAvailableSlotsRequest(
                    restaurant_id=self.id,
                    date=moment.astimezone(self.zone).date().isoformat(),
                    party_size=party,
                    page_size=1000,
                ),
                timeout=SHORT,
            )
        except grpc.aio.AioRpcError as error:
            if error.code() != grpc.StatusCode.NOT_FOUND:
                raise
            return None
        return next((slot for slot in answer.slots if instant(slot.dine_time) == moment), None)

    async def terms_of_slots(self) -> str:
        """The policy_etag that reservation shows with its slots."""
        answer = await self._doors.reservation.ListAvailableSlots(
            reservation_service_pb2.ListAvailableSlotsRequest(
                restaurant_id=self.id, date="2027-05-01", party_size=1
            ),
            timeout=SHORT,
        )
        return answer.policy_etag

    async def has_seats(self, slot: int, party: int) -> bool:
        found = await self.offered(self.slots[slot], party)
        return found is not None and found.available

    async def sees_seats(self, slot: int, exactly: int, seconds: float = PATIENCE) -> None:
        """Waits until exactly so many seats can be sold."""

        async def free() -> bool:
            enough = exactly == 0 or await self.has_seats(slot, exactly)
            return enough and not await self.has_seats(slot, exactly + 1)

        await until(free, bool, seconds)

    async def bookings(self) -> list[Booking]:
        found: list[Booking] = []
        token = ""
        while True:
            page = await self._doors.restaurant.ListBookings(
                restaurant_service_pb2.ListBookingsRequest(
                    restaurant_id=self.id, page_size=200, page_token=token
                ),
                metadata=self.metadata,
                timeout=SHORT,
            )
            found += page.bookings
            if not (token := page.next_page_token):
                return found

    async def booking(self, reservation: Reservation) -> Booking | None:
        found = [one for one in await self.bookings() if one.reservation_id == reservation.reservation_id]
        return found[0] if found else None

    async def sees(
        self,
        reservation: Reservation,
        state: restaurant_pb2.BookingState.ValueType,
        *,
        revision: int | None = None,
        confirmed: bool | None = None,
        seconds: float = PATIENCE,
    ) -> Booking:
        """Waits until the restaurant's copy stands so."""

        def as_wanted(booking: Booking | None) -> bool:
            return (
                booking is not None
                and booking.state == state
                and revision in (None, booking.revision)
                and confirmed in (None, booking.confirmed)
            )

        booking = await until(lambda: self.booking(reservation), as_wanted, seconds)
        assert booking is not None
        return booking

    async def accept(self, booking: Booking) -> Booking:
        return await self._say("AcceptBooking", booking)

    async def decline(self, booking: Booking) -> Booking:
        return await self._say("DeclineBooking", booking)

    async def seat(self, booking: Booking) -> Booking:
        return await self._say("MarkSeated", booking)

    async def mark_no_show(self, booking: Booking) -> Booking:
        return await self._say("MarkNoShow", booking)

    async def complete(self, booking: Booking) -> Booking:
        return await self._say("CompleteBooking", booking)

    async def _say(self, rpc: str, booking: Booking) -> Booking:
        request_type = getattr(restaurant_service_pb2, f"{rpc}Request")
        answer = await getattr(self._doors.restaurant, rpc)(
            request_type(
                restaurant_id=self.id, reservation_id=booking.reservation_id, revision=booking.revision
            ),
            metadata=self.metadata,
            timeout=SHORT,
        )
        found: Booking = answer.booking
        return found

    async def read(self, reservation: Reservation) -> Reservation:
        """The reservation, as staff may see it."""
        answer = await self._doors.reservation.GetReservation(
            reservation_service_pb2.GetReservationRequest(reservation_id=reservation.reservation_id),
            metadata=self.metadata,
            timeout=SHORT,
        )
        return answer.reservation

    async def cancel(self, reservation: Reservation) -> reservation_service_pb2.CancelReservationResponse:
        return await self._doors.reservation.CancelReservation(
            reservation_service_pb2.CancelReservationRequest(reservation_id=reservation.reservation_id),
            metadata=self.metadata,
            timeout=SHORT,
        )


class Bookkeeper:
    """Reads the provider's own record."""

    def __init__(self, doors: Doors) -> None:
        self._doors = doors

    async def charges(self) -> dict[str, sandbox_pb2.Charge]:
        """All keys ever seen, by key."""
        found: dict[str, sandbox_pb2.Charge] = {}
        token = ""
        while True:
            page = await self._doors.sandbox.ListCharges(
                sandbox_pb2.ListChargesRequest(page_size=1000, page_token=token), timeout=SHORT
            )
            found |= {charge.key: charge for charge in page.charges}
            if not (token := page.next_page_token):
                return found

    async def charge(self, key: str) -> sandbox_pb2.Charge | None:
        return (await self.charges()).get(key)


def kept(charge: sandbox_pb2.Charge) -> int:
    """Cents of a charge that did not go back."""
    if charge.state != sandbox_pb2.CHARGE_STATE_CAPTURED:
        return 0
    back = [one for one in charge.refunds if one.state == sandbox_pb2.REFUND_STATE_SUCCEEDED]
    return cents(charge.amount) - sum(cents(one.amount) for one in back)


class City:
    """A running mesh and the people around it."""

    def __init__(self, mesh: RunningMesh) -> None:
        self.mesh = mesh
        self.doors = Doors(mesh)
        self.provider = Bookkeeper(self.doors)
        self.operator = bearer(mesh.token("olga", "operator"))

    def customer(self, name: str = "") -> Customer:
        """A new customer, whom nobody else's test knows."""
        return Customer(self.doors, self.mesh, name or f"customer-{uuid.uuid4().hex[:12]}")

    async def place(
        self,
        accepts: restaurant_pb2.AcceptanceMode.ValueType = AUTO,
        *,
        capacity: int = 20,
        times: Iterable[dt.datetime] | None = None,
        time_zone: str = "Europe/Berlin",
        terms: restaurant_pb2.Policy | None = None,
    ) -> Place:
        """A new restaurant; its slots, if no `times` are given: three of an evening in a week."""
        answer = await self.doors.restaurant.CreateRestaurant(
            restaurant_service_pb2.CreateRestaurantRequest(
                request_id=new_id(),
                name=f"Chez {uuid.uuid4().hex[:8]}",
                time_zone=time_zone,
                policy=terms or policy(accepts),
            ),
            metadata=self.operator,
            timeout=SHORT,
        )
        place = Place(self.doors, self.mesh, answer.restaurant)
        await place.open(times if times is not None else evenings(place.zone), capacity)
        return place

    async def come_to_rest(self) -> None:
        """Leaves the mesh as the next story expects it: all parts up, charges let in, also many at once."""
        for part in self.mesh.parts.values():
            if part.hangs:
                part.resume()
            if not part.running:
                await asyncio.to_thread(part.start)
        if await asyncio.to_thread(self.mesh.measured, "reservation", "dinemesh_breaker_state"):
            place, visitor = await self.place(), self.customer()
            wish = visitor.wish(place)
            await patiently(lambda: visitor.send(wish))

    async def close(self) -> None:
        await self.doors.close()


def evenings(zone: ZoneInfo) -> list[dt.datetime]:
    """18:00, 18:30 and 19:00 in a week, UTC."""
    day = dt.datetime.now(zone).date() + dt.timedelta(days=7)
    six = dt.datetime.combine(day, dt.time(18), zone).astimezone(dt.UTC)
    return [six + dt.timedelta(minutes=30 * n) for n in range(3)]


def soon(seconds: float) -> dt.datetime:
    """A whole second not less than so many seconds from now."""
    return (dt.datetime.now(dt.UTC) + dt.timedelta(seconds=seconds + 1)).replace(microsecond=0)
