"""The restaurant service as a process, over gRPC and a real broker, on both engines."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Iterator
from datetime import UTC, date, datetime, timedelta
from pathlib import Path
from typing import Any

import grpc
import pytest
from google.protobuf.timestamp_pb2 import Timestamp
from google.type.date_pb2 import Date
from google.type.money_pb2 import Money
from google.type.timeofday_pb2 import TimeOfDay

from dinemesh.event.v1 import envelope_pb2
from dinemesh.kit.bus import Bus
from dinemesh.reservation.v1 import events_pb2 as reservation_events_pb2
from dinemesh.reservation.v1 import reservation_pb2
from dinemesh.restaurant.v1 import events_pb2, restaurant_pb2
from dinemesh.restaurant.v1 import restaurant_service_pb2 as pb
from dinemesh.restaurant.v1 import restaurant_service_pb2_grpc as pb_grpc
from dinemesh.watch.v1 import watch_pb2
from local_mesh.broker import RunningBroker
from restaurant_svc.servicer import ACCESS
from tests.restaurant.fixtures import in_days, new_id
from tests.support.mesh import FAST, Keys, Part
from tests.support.ports import free_ports
from tests.support.postgres import FreshDatabase, PostgresServer
from tests.support.refusals import Refused, refusal, refused

AUTO, MANUAL = restaurant_pb2.ACCEPTANCE_MODE_AUTO, restaurant_pb2.ACCEPTANCE_MODE_MANUAL
PLACED = reservation_pb2.RESERVATION_STATE_PENDING_ACCEPTANCE
CONFIRMED = reservation_pb2.RESERVATION_STATE_CONFIRMED
CANCELLED = reservation_pb2.RESERVATION_STATE_CANCELLED
SEVEN = TimeOfDay(hours=19)
PATIENCE = 30.0
"""What an answer, or what travels by events, may take on a busy machine, seconds; far above what it takes."""


class Running:
    """The process, and how to speak to it: `call(name, request, who)`."""

    def __init__(self, part: Part, keys: Keys, amqp_url: str) -> None:
        self.part = part
        self.keys = keys
        self.amqp_url = amqp_url


class Client:
    def __init__(self, running: Running, stub: pb_grpc.RestaurantServiceAsyncStub, bus: Bus) -> None:
        self._running = running
        self._stub = stub
        self._bus = bus

    def stream(self, request: pb.WatchBookingsRequest, token: str, seconds: float = 20) -> Any:
        return self._stub.WatchBookings(request, metadata=_bearer(token), timeout=seconds)

    async def call(self, name: str, request: Any, token: str = "") -> Any:
        return await getattr(self._stub, name)(request, metadata=_bearer(token), timeout=PATIENCE)

    async def refused(self, name: str, request: Any, token: str = "") -> Refused:
        return await refused(self.call(name, request, token))

    def operator(self) -> str:
        return self._running.keys.token("root", "operator")

    def staff(self, restaurant_id: str) -> str:
        return self._running.keys.token("sam", "staff", restaurant_id)

    def customer(self) -> str:
        return self._running.keys.token("alice", "customer")

    async def restaurant(self, **changes: Any) -> restaurant_pb2.Restaurant:
        answer = await self.call("CreateRestaurant", creation(**changes), self.operator())
        created: restaurant_pb2.Restaurant = answer.restaurant
        return created

    async def tell(
        self, restaurant_id: str, reservation_id: str, version: int, state: Any, **more: Any
    ) -> None:
        """Publishes an event of a reservation, as the reservation service does."""
        envelope = event(restaurant_id, reservation_id, version, state, **more)
        await self._bus.publish(
            envelope.SerializeToString(), "reservation.v1.placed", event_id=envelope.event_id
        )

    async def published(self, reservation_id: str, count: int) -> list[envelope_pb2.Envelope]:
        """What the restaurant has said of a reservation, as soon as it is that much."""
        said: list[envelope_pb2.Envelope] = []
        async with asyncio.timeout(PATIENCE):
            while len(said) < count:
                mark = new_id()
                await self._bus.mark_log(mark)
                events = [envelope_pb2.Envelope.FromString(one) async for one in self._bus.read_log(mark)]
                here = ("restaurant", reservation_id)
                said = [one for one in events if (one.source, one.reservation_id) == here]
        return said

    async def booking(
        self, restaurant_id: str, until: Callable[[restaurant_pb2.Booking], bool] = lambda _: True
    ) -> restaurant_pb2.Booking:
        """The one booking of a restaurant, as soon as it is as asked."""
        async with asyncio.timeout(PATIENCE):
            while True:
                request = pb.ListBookingsRequest(restaurant_id=restaurant_id)
                found = (await self.call("ListBookings", request, self.staff(restaurant_id))).bookings
                if len(found) == 1 and until(found[0]):
                    return found[0]  # type: ignore[no-any-return]
                await asyncio.sleep(0.02)


def _bearer(token: str) -> tuple[tuple[str, str], ...]:
    return (("authorization", f"Bearer {token}"),) if token else ()


def policy(**changes: Any) -> restaurant_pb2.Policy:
    values: dict[str, Any] = {
        "deposit_per_person": euros(10, nanos=500_000_000),
        "free_cancel_window_seconds": 86_400,
        "acceptance": AUTO,
        "acceptance_limit_seconds": 3600,
        "acceptance_lead_seconds": 0,
        "no_show_grace_seconds": 900,
        "slot_interval_seconds": 900,
        "service_duration_seconds": 7200,
        "max_party_size": 12,
    }
    return restaurant_pb2.Policy(**values | changes)


def creation(**changes: Any) -> pb.CreateRestaurantRequest:
    values: dict[str, Any] = {
        "request_id": new_id(),
        "name": "Zum Anker",
        "time_zone": "Europe/Berlin",
        "policy": policy(),
    }
    return pb.CreateRestaurantRequest(**values | changes)


def euros(units: int, nanos: int = 0) -> Money:
    return Money(currency_code="EUR", units=units, nanos=nanos)


def money(currency: str, nanos: int = 0) -> Money:
    return Money(currency_code=currency, units=10, nanos=nanos)


def day(value: date) -> Date:
    return Date(year=value.year, month=value.month, day=value.day)


def closing(key: str, **changes: Any) -> pb.CloseSlotsRequest:
    """All slots of two days if nothing else is said."""
    days = {"first_date": day(in_days(2)), "last_date": day(in_days(3)), "restaurant_id": key}
    which = {} if "times" in changes else {"all_times": True}
    return pb.CloseSlotsRequest(**days | which | changes)  # type: ignore[arg-type]


def opening(key: str, **changes: Any) -> pb.OpenSlotsRequest:
    values: dict[str, Any] = {
        "restaurant_id": key,
        "first_date": day(in_days(2)),
        "last_date": day(in_days(3)),
        "times": [SEVEN],
        "capacity": 20,
    }
    return pb.OpenSlotsRequest(**values | changes)


def event(
    restaurant_id: str,
    reservation_id: str,
    version: int,
    state: Any,
    *,
    revision: int = 1,
    acceptance: Any = AUTO,
    dine_in: timedelta = timedelta(hours=1),
) -> envelope_pb2.Envelope:
    now = datetime.now(UTC)
    snapshot = reservation_events_pb2.ReservationSnapshot(
        reservation_id=reservation_id,
        customer_id="alice",
        restaurant_id=restaurant_id,
        party_size=2,
        revision=revision,
        state=state,
        policy=policy(acceptance=acceptance),
    )
    snapshot.dine_time.FromDatetime(now + dine_in)
    snapshot.accept_deadline.FromDatetime(now + timedelta(minutes=30))
    message = reservation_events_pb2.ReservationPlaced(reservation=snapshot)
    envelope = envelope_pb2.Envelope(
        event_id=new_id(),
        type=message.DESCRIPTOR.full_name,
        source="reservation",
        aggregate_id=reservation_id,
        aggregate_version=version,
        customer_id="alice",
        reservation_id=reservation_id,
        correlation_id="c-1",
        payload=message.SerializeToString(),
    )
    envelope.occur_time.FromDatetime(now)
    return envelope


@pytest.fixture(scope="module", params=["sqlite", "postgresql"])
def running(
    request: pytest.FixtureRequest,
    tmp_path_factory: pytest.TempPathFactory,
    broker: RunningBroker,
    sqlite_templates: FreshDatabase,
) -> Iterator[Running]:
    folder: Path = tmp_path_factory.mktemp("restaurant")
    keys = Keys(folder)
    if request.param == "sqlite":
        url = sqlite_templates("")
    else:
        server: PostgresServer = request.getfixturevalue("postgres")
        url = server.fresh("")
    port, metrics_port = free_ports(2)
    amqp_url = broker.fresh_url()
    environment = {
        "PORT": str(port),
        "METRICS_PORT": str(metrics_port),
        "DATABASE_URL": url,
        "AMQP_URL": amqp_url,
        "JWKS_FILE": str(keys.jwks_file),
        **FAST["every"],
    }
    part = Part("restaurant", "restaurant_svc.main", port, environment, folder / "restaurant.log")
    try:
        part.start()
        yield Running(part, keys, amqp_url)
    finally:
        part.stop()


@pytest.fixture
async def client(running: Running) -> AsyncIterator[Client]:
    bus = Bus(running.amqp_url, "test")
    running_bus = asyncio.create_task(bus.run())
    assert await bus.wait_connected(10)
    async with grpc.aio.insecure_channel(running.part.address) as channel:
        yield Client(running, pb_grpc.RestaurantServiceStub(channel), bus)
    running_bus.cancel()
    await asyncio.gather(running_bus, return_exceptions=True)


# --- restaurants


async def test_an_operator_creates_a_restaurant_and_anyone_reads_it(client: Client) -> None:
    request = creation(name="Bei Käthe & Söhne")
    first = await client.call("CreateRestaurant", request, client.operator())
    again = await client.call("CreateRestaurant", request, client.operator())
    assert first == again
    read = await client.call(
        "GetRestaurant", pb.GetRestaurantRequest(restaurant_id=first.restaurant.restaurant_id)
    )
    assert read.restaurant == first.restaurant
    assert read.restaurant.policy == request.policy
    request.name = "Another"
    told = await client.refused("CreateRestaurant", request, client.operator())
    assert (told.code, told.reason) == (grpc.StatusCode.ALREADY_EXISTS, "REQUEST_ID_REUSED")


async def test_restaurants_are_paged(client: Client) -> None:
    names = [
        *(f"page {n}" for n in range(5)),
        *(f'page "\\{n}' + "\U0001f942" * 192 for n in range(2)),  # as long as a name can be, in any script
        "page \ufdd0\uffff\u2028",
    ]
    made = {(await client.restaurant(name=name)).restaurant_id for name in names}
    listed: list[restaurant_pb2.Restaurant] = []
    request = pb.ListRestaurantsRequest(page_size=1)
    while True:
        answer = await client.call("ListRestaurants", request)
        assert len(answer.restaurants) <= 1
        listed += answer.restaurants
        if not answer.next_page_token:
            break
        request.page_token = answer.next_page_token
    assert made <= {one.restaurant_id for one in listed}
    assert len({one.restaurant_id for one in listed}) == len(listed)
    assert [one.name for one in listed] == sorted(one.name for one in listed)


async def test_staff_update_their_own_restaurant_with_its_etag(client: Client) -> None:
    made = await client.restaurant()
    key = made.restaurant_id
    request = pb.UpdateRestaurantRequest(restaurant_id=key, etag=made.etag, name="Anker")
    changed = (await client.call("UpdateRestaurant", request, client.staff(key))).restaurant
    assert (changed.name, changed.policy) == ("Anker", made.policy)
    told = await client.refused("UpdateRestaurant", request, client.staff(key))
    assert (told.code, told.reason) == (grpc.StatusCode.ABORTED, "ETAG_MISMATCH")
    request = pb.UpdateRestaurantRequest(
        restaurant_id=key, etag=changed.etag, policy=policy(acceptance=MANUAL, max_party_size=4)
    )
    changed = (await client.call("UpdateRestaurant", request, client.operator())).restaurant
    assert (changed.name, changed.policy.max_party_size) == ("Anker", 4)


async def test_the_policy_etag_changes_with_the_policy_and_with_nothing_else(client: Client) -> None:
    made = await client.restaurant()
    key, staff = made.restaurant_id, client.staff(made.restaurant_id)
    request = pb.UpdateRestaurantRequest(restaurant_id=key, etag=made.etag, name="Anker")
    named = (await client.call("UpdateRestaurant", request, staff)).restaurant
    assert (named.etag != made.etag, named.policy_etag) == (True, made.policy_etag)
    request = pb.UpdateRestaurantRequest(restaurant_id=key, etag=named.etag, policy=policy(max_party_size=3))
    changed = (await client.call("UpdateRestaurant", request, staff)).restaurant
    assert changed.policy_etag not in ("", made.policy_etag)
    read = (await client.call("GetRestaurant", pb.GetRestaurantRequest(restaurant_id=key))).restaurant
    (listed,) = [
        one
        for one in (
            await client.call("ListRestaurants", pb.ListRestaurantsRequest(page_size=200))
        ).restaurants
        if one.restaurant_id == key
    ]
    assert read.policy_etag == listed.policy_etag == changed.policy_etag


# --- slots


async def test_slots_are_opened_and_closed_for_local_times(client: Client) -> None:
    key = (await client.restaurant(time_zone="Asia/Tokyo")).restaurant_id
    request = opening(key, times=[SEVEN, TimeOfDay(hours=18)])
    slots = (await client.call("OpenSlots", request, client.staff(key))).slots
    assert [one.dine_time.ToDatetime().hour for one in slots] == [9, 10, 9, 10]
    assert {(one.capacity, one.version) for one in slots} == {(20, 1)}
    assert (await client.call("OpenSlots", request, client.operator())).slots == slots
    close = closing(key, first_date=request.first_date, last_date=request.first_date, times=[SEVEN])
    closed = (await client.call("CloseSlots", close, client.staff(key))).slots
    assert [(one.capacity, one.version) for one in closed] == [(0, 2)]
    close = closing(key, first_date=request.first_date, last_date=request.first_date)
    closed = (await client.call("CloseSlots", close, client.staff(key))).slots
    assert [(one.capacity, one.version) for one in closed] == [(0, 2), (0, 2)]


async def test_a_list_of_times_that_is_empty_closes_nothing(client: Client) -> None:
    """Whatever became of it on the way: "all" is said by a word of its own, and by that alone."""
    key = (await client.restaurant()).restaurant_id
    slots = (await client.call("OpenSlots", opening(key), client.staff(key))).slots
    for changes in ({"all_times": False}, {"all_times": True, "times": [SEVEN]}):
        told = await client.refused("CloseSlots", closing(key, **changes), client.staff(key))
        assert told.code is grpc.StatusCode.INVALID_ARGUMENT
        assert told.fields == ("times", "all_times")
        assert "unless all_times is true" in told.message
    assert (await client.call("OpenSlots", opening(key), client.staff(key))).slots == slots


async def test_staff_who_change_slots_without_end_are_told_when_to_come_back(client: Client) -> None:
    key, other = [(await client.restaurant()).restaurant_id for _ in range(2)]
    told: Refused | None = None
    for seats in range(1, 1000):
        try:
            await client.call("OpenSlots", opening(key, capacity=seats), client.staff(key))
        except grpc.aio.AioRpcError as error:
            told = refusal(error)
            break
    assert told is not None and (told.code, told.reason) == (
        grpc.StatusCode.RESOURCE_EXHAUSTED,
        "TRY_AGAIN_LATER",
    )
    assert told.retry_after is not None and told.retry_after > 0
    assert (await client.refused("OpenSlots", opening(key), client.operator())).reason == "TRY_AGAIN_LATER"
    await client.call("OpenSlots", opening(other), client.staff(other))


async def test_a_year_of_evenings_is_opened_at_once(client: Client) -> None:
    key = (await client.restaurant()).restaurant_id
    evenings = [TimeOfDay(hours=17 + n // 4, minutes=n % 4 * 15) for n in range(27)]
    request = opening(key, first_date=day(in_days(1)), last_date=day(in_days(366)), times=evenings)
    slots = (await client.call("OpenSlots", request, client.operator())).slots
    assert len(slots) == 27 * 366


def next_spring_forward() -> date:
    """The next last Sunday of March, when clocks in Berlin go from 2:00 to 3:00."""
    today = datetime.now(UTC).date()
    for year in (today.year, today.year + 1):
        last = date(year, 3, 31)
        sunday = last - timedelta(days=(last.weekday() + 1) % 7)
        if sunday > today:
            return sunday
    raise AssertionError


async def test_a_time_that_daylight_saving_skips_is_refused_by_field(client: Client) -> None:
    key = (await client.restaurant()).restaurant_id
    skipped = day(next_spring_forward())
    times = [TimeOfDay(hours=1), TimeOfDay(hours=2, minutes=30)]
    request = opening(key, first_date=skipped, last_date=skipped, times=times)
    told = await client.refused("OpenSlots", request, client.staff(key))
    assert (told.code, told.fields) == (grpc.StatusCode.INVALID_ARGUMENT, ("times[1]",))


# --- bookings


async def test_an_automatic_restaurant_accepts_over_the_broker(client: Client) -> None:
    key, reservation_id = (await client.restaurant()).restaurant_id, new_id()
    await client.tell(key, reservation_id, 1, PLACED)
    booking = await client.booking(key)
    assert (booking.state, booking.confirmed) == (restaurant_pb2.BOOKING_STATE_ACCEPTED, False)
    await client.tell(key, reservation_id, 2, CONFIRMED)
    booking = await client.booking(key, lambda one: one.confirmed)
    assert booking.no_show_time.ToDatetime() - booking.dine_time.ToDatetime() == timedelta(minutes=15)
    await client.tell(key, reservation_id, 3, CANCELLED)
    booking = await client.booking(key, lambda one: one.state == restaurant_pb2.BOOKING_STATE_WITHDRAWN)
    assert not booking.confirmed


async def test_staff_accept_seat_and_complete(client: Client) -> None:
    key, reservation_id = (await client.restaurant()).restaurant_id, new_id()
    staff = client.staff(key)
    await client.tell(key, reservation_id, 1, PLACED, acceptance=MANUAL)
    assert (await client.booking(key)).state == restaurant_pb2.BOOKING_STATE_RECEIVED
    which = {"restaurant_id": key, "reservation_id": reservation_id}
    told = await client.refused("AcceptBooking", pb.AcceptBookingRequest(**which, revision=2), staff)
    assert (told.reason, told.info) == ("BOOKING_REVISION", {"revision": "1"})
    for _ in range(2):
        answer = await client.call("AcceptBooking", pb.AcceptBookingRequest(**which, revision=1), staff)
        assert answer.booking.state == restaurant_pb2.BOOKING_STATE_ACCEPTED
    told = await client.refused("MarkSeated", pb.MarkSeatedRequest(**which, revision=1), staff)
    assert (told.code, told.reason) == (grpc.StatusCode.FAILED_PRECONDITION, "BOOKING_STATE")
    await client.tell(key, reservation_id, 2, CONFIRMED, acceptance=MANUAL)
    await client.booking(key, lambda one: one.confirmed)
    told = await client.refused("MarkNoShow", pb.MarkNoShowRequest(**which, revision=1), staff)
    assert told.reason == "TOO_EARLY"
    assert told.retry_after is not None and 4000 < told.retry_after <= 4505
    await client.call("MarkSeated", pb.MarkSeatedRequest(**which, revision=1), staff)
    answer = await client.call("CompleteBooking", pb.CompleteBookingRequest(**which, revision=1), staff)
    assert answer.booking.state == restaurant_pb2.BOOKING_STATE_COMPLETED
    told = await client.refused("DeclineBooking", pb.DeclineBookingRequest(**which, revision=1), staff)
    assert (told.reason, told.info) == ("BOOKING_STATE", {"state": "COMPLETED"})


async def test_a_decline_is_published(client: Client) -> None:
    key, reservation_id = (await client.restaurant()).restaurant_id, new_id()
    await client.tell(key, reservation_id, 1, PLACED)
    await client.booking(key)
    request = pb.DeclineBookingRequest(restaurant_id=key, reservation_id=reservation_id, revision=1)
    answer = await client.call("DeclineBooking", request, client.staff(key))
    assert answer.booking.state == restaurant_pb2.BOOKING_STATE_DECLINED
    said = await client.published(reservation_id, 2)
    assert [one.type.rpartition(".")[2] for one in said] == ["BookingAccepted", "BookingDeclined"]
    assert [one.aggregate_version for one in said] == [1, 2]
    assert {(one.source, one.customer_id, one.aggregate_id) for one in said} == {
        ("restaurant", "alice", reservation_id)
    }
    declined = events_pb2.BookingDeclined.FromString(said[-1].payload)
    assert (declined.booking.revision, declined.booking.party_size) == (1, 2)
    # What follows from an event says so.
    assert said[0].correlation_id == "c-1"
    assert said[0].causation_id


async def test_bookings_are_listed_by_time_state_and_page(client: Client) -> None:
    key = (await client.restaurant()).restaurant_id
    staff = client.staff(key)
    for hours in range(1, 6):
        await client.tell(key, new_id(), 1, PLACED, dine_in=timedelta(hours=hours), acceptance=MANUAL)
    listed: list[restaurant_pb2.Booking] = []
    async with asyncio.timeout(PATIENCE):
        while len(listed) < 5:
            answer = await client.call("ListBookings", pb.ListBookingsRequest(restaurant_id=key), staff)
            listed = list(answer.bookings)
    request = pb.ListBookingsRequest(restaurant_id=key, page_size=2)
    paged: list[restaurant_pb2.Booking] = []
    while True:
        answer = await client.call("ListBookings", request, staff)
        paged += answer.bookings
        if not answer.next_page_token:
            break
        request.page_token = answer.next_page_token
    assert paged == listed == sorted(listed, key=lambda one: one.dine_time.ToNanoseconds())
    request = pb.ListBookingsRequest(
        restaurant_id=key, start_time=listed[1].dine_time, end_time=listed[3].dine_time
    )
    assert list((await client.call("ListBookings", request, staff)).bookings) == listed[1:3]
    for state, count in (
        (restaurant_pb2.BOOKING_STATE_RECEIVED, 5),
        (restaurant_pb2.BOOKING_STATE_SEATED, 0),
    ):
        request = pb.ListBookingsRequest(restaurant_id=key, states=[state])
        assert len((await client.call("ListBookings", request, staff)).bookings) == count


async def test_a_watch_shows_what_is_open_then_each_change_and_says_how_it_ends(client: Client) -> None:
    key, first, second = (await client.restaurant()).restaurant_id, new_id(), new_id()
    staff = client.staff(key)
    await client.tell(key, first, 1, PLACED)
    await client.booking(key)
    watch = client.stream(pb.WatchBookingsRequest(restaurant_id=key), staff, seconds=4)
    shown = await watch.read()
    assert shown.booking.reservation_id == first
    token = shown.resume_token
    await client.tell(key, second, 1, PLACED)
    shown = await watch.read()
    assert (shown.booking.reservation_id, bool(shown.resume_token)) == (second, True)
    assert (await watch.read()).WhichOneof("kind") == "heartbeat"
    assert (await watch.read()).end.reason == watch_pb2.END_REASON_EXPIRED
    assert await watch.read() is grpc.aio.EOF
    again = client.stream(pb.WatchBookingsRequest(restaurant_id=key, resume_token=token), staff, seconds=1)
    messages = [message async for message in again]
    assert {one.booking.reservation_id for one in messages[:-1]} == {first, second}
    assert messages[-1].end.reason == watch_pb2.END_REASON_EXPIRED


# --- who may do what

STAFF_CALLS: dict[str, Any] = {
    "AcceptBooking": pb.AcceptBookingRequest,
    "DeclineBooking": pb.DeclineBookingRequest,
    "MarkSeated": pb.MarkSeatedRequest,
    "MarkNoShow": pb.MarkNoShowRequest,
    "CompleteBooking": pb.CompleteBookingRequest,
}
FOR_STAFF_ONLY = {*STAFF_CALLS, "ListBookings"}
METHODS = ("CreateRestaurant", "UpdateRestaurant", "OpenSlots", "CloseSlots", "ListBookings", *STAFF_CALLS)


def valid_request(method: str, restaurant_id: str) -> Any:
    """A request with which only the caller can be wrong."""
    if method in STAFF_CALLS:
        return STAFF_CALLS[method](restaurant_id=restaurant_id, reservation_id=new_id(), revision=1)
    requests: dict[str, Any] = {
        "CreateRestaurant": creation(),
        "UpdateRestaurant": pb.UpdateRestaurantRequest(restaurant_id=restaurant_id, etag="1", name="Mine"),
        "OpenSlots": opening(restaurant_id),
        "CloseSlots": closing(restaurant_id),
        "ListBookings": pb.ListBookingsRequest(restaurant_id=restaurant_id),
    }
    return requests[method]


def test_every_method_that_needs_a_token_is_tried_below() -> None:
    methods = {name.rpartition("/")[2] for name in ACCESS}
    assert methods - set(METHODS) == {"ListRestaurants", "GetRestaurant", "WatchBookings"}


@pytest.mark.parametrize("name", METHODS)
async def test_nobody_acts_for_a_restaurant_that_is_not_theirs(client: Client, name: str) -> None:
    key = (await client.restaurant()).restaurant_id
    request = valid_request(name, key)
    assert (await client.refused(name, request)).reason == "TOKEN_MISSING"
    assert (await client.refused(name, request, "nonsense")).reason == "TOKEN_INVALID"
    for token in (client.customer(), client.staff(new_id())):
        told = await client.refused(name, request, token)
        assert (told.code, told.reason) == (grpc.StatusCode.PERMISSION_DENIED, "PERMISSION_DENIED")
    if name in FOR_STAFF_ONLY:
        assert (await client.refused(name, request, client.operator())).reason == "PERMISSION_DENIED"


async def test_a_watch_is_for_staff_of_that_restaurant(client: Client) -> None:
    key = (await client.restaurant()).restaurant_id
    for token in (client.customer(), client.operator(), client.staff(new_id())):
        with pytest.raises(grpc.aio.AioRpcError) as error:
            await client.stream(pb.WatchBookingsRequest(restaurant_id=key), token).read()
        assert refusal(error.value).reason == "PERMISSION_DENIED"


async def test_a_booking_of_another_restaurant_is_not_found(client: Client) -> None:
    mine, other = (await client.restaurant()).restaurant_id, (await client.restaurant()).restaurant_id
    reservation_id = new_id()
    await client.tell(other, reservation_id, 1, PLACED)
    await client.booking(other)
    request = pb.DeclineBookingRequest(restaurant_id=mine, reservation_id=reservation_id, revision=1)
    told = await client.refused("DeclineBooking", request, client.staff(mine))
    unknown = pb.DeclineBookingRequest(restaurant_id=mine, reservation_id=new_id(), revision=1)
    same = await client.refused("DeclineBooking", unknown, client.staff(mine))
    assert (told.code, told.reason, told.message) == (same.code, same.reason, same.message)
    assert told.code == grpc.StatusCode.NOT_FOUND


async def test_an_unknown_restaurant_is_not_found(client: Client) -> None:
    unknown = new_id()
    for name, request, token in [
        ("GetRestaurant", pb.GetRestaurantRequest(restaurant_id=unknown), ""),
        ("UpdateRestaurant", valid_request("UpdateRestaurant", unknown), client.operator()),
        ("OpenSlots", opening(unknown), client.operator()),
        ("CloseSlots", valid_request("CloseSlots", unknown), client.operator()),
        ("ListBookings", valid_request("ListBookings", unknown), client.staff(unknown)),
    ]:
        told = await client.refused(name, request, token)
        assert (told.code, told.reason) == (grpc.StatusCode.NOT_FOUND, "NOT_FOUND"), name


# --- bad requests

LONG = "x" * 201
BAD_CREATIONS: list[tuple[str, dict[str, Any]]] = [
    ("request_id", {"request_id": ""}),
    ("request_id", {"request_id": "1"}),
    ("request_id", {"request_id": "'; DROP TABLE restaurants; --"}),
    ("name", {"name": ""}),
    ("name", {"name": "   "}),
    ("name", {"name": "\u200b\u2060\ufeff"}),
    ("name", {"name": "\u3164 \u2800"}),
    ("name", {"name": LONG}),
    ("name", {"name": "a\0b"}),
    ("time_zone", {"time_zone": ""}),
    ("time_zone", {"time_zone": "Europe/Atlantis"}),
    ("time_zone", {"time_zone": "../../../etc/passwd"}),
    ("time_zone", {"time_zone": "localtime"}),
    ("policy", {"policy": None}),
    ("policy.deposit_per_person", {"policy": policy(deposit_per_person=None)}),
    ("policy.deposit_per_person", {"policy": policy(deposit_per_person=euros(0))}),
    ("policy.deposit_per_person", {"policy": policy(deposit_per_person=euros(-1))}),
    ("policy.deposit_per_person", {"policy": policy(deposit_per_person=euros(1, nanos=1))}),
    ("policy.deposit_per_person", {"policy": policy(deposit_per_person=euros(2**62))}),
    ("policy.deposit_per_person.currency_code", {"policy": policy(deposit_per_person=Money(units=1))}),
    *(
        ("policy.deposit_per_person.currency_code", {"policy": policy(deposit_per_person=money(code))})
        for code in ("EUE", "XXX", "XTS", "XAU", "CLF", "USN", "DEM", "eur")
    ),
    ("policy.deposit_per_person", {"policy": policy(deposit_per_person=money("JPY", nanos=500_000_000))}),
    ("policy.deposit_per_person", {"policy": policy(deposit_per_person=money("KWD", nanos=500_000))}),
    ("policy.acceptance", {"policy": policy(acceptance=0)}),
    ("policy.acceptance", {"policy": policy(acceptance=7)}),
    ("policy.acceptance_limit_seconds", {"policy": policy(acceptance=MANUAL, acceptance_limit_seconds=0)}),
    ("policy.free_cancel_window_seconds", {"policy": policy(free_cancel_window_seconds=-1)}),
    ("policy.slot_interval_seconds", {"policy": policy(slot_interval_seconds=0)}),
    ("policy.no_show_grace_seconds", {"policy": policy(no_show_grace_seconds=2**31 - 1)}),
    ("policy.service_duration_seconds", {"policy": policy(service_duration_seconds=0)}),
    ("policy.max_party_size", {"policy": policy(max_party_size=0)}),
]
BAD_OPENINGS: list[tuple[str, dict[str, Any]]] = [
    ("restaurant_id", {"restaurant_id": ""}),
    ("restaurant_id", {"restaurant_id": "../x"}),
    ("first_date", {"first_date": None}),
    ("first_date", {"first_date": Date(year=2027, month=2, day=29)}),
    ("first_date", {"first_date": Date(year=-1, month=1, day=1)}),
    ("first_date", {"first_date": day(in_days(-5))}),
    ("last_date", {"last_date": None}),
    ("last_date", {"last_date": day(in_days(1))}),
    ("last_date", {"last_date": day(in_days(400))}),
    (
        "last_date",
        {"first_date": day(date.max), "last_date": day(date.max)},
    ),
    ("times", {"times": []}),
    ("times", {"times": [TimeOfDay(hours=n // 60, minutes=n % 60) for n in range(1440)] * 7}),
    ("times", {"times": [TimeOfDay(hours=n // 4, minutes=n % 4 * 15) for n in range(96)] * 16}),
    ("times[0]", {"times": [TimeOfDay(hours=24)]}),
    ("times[1]", {"times": [SEVEN, TimeOfDay(hours=-1)]}),
    ("times[1]", {"times": [SEVEN, TimeOfDay(hours=19, minutes=1)]}),
    ("times[0]", {"times": [TimeOfDay(hours=19, nanos=1)]}),
    ("capacity", {"capacity": 0}),
    ("capacity", {"capacity": -1}),
    ("capacity", {"capacity": 100_001}),
]


async def test_a_restaurant_with_a_bad_field_is_refused_by_that_field(client: Client) -> None:
    for field, changes in BAD_CREATIONS:
        told = await client.refused("CreateRestaurant", creation(**changes), client.operator())
        assert (told.code, told.reason) == (grpc.StatusCode.INVALID_ARGUMENT, "INVALID_ARGUMENT"), changes
        assert field in told.fields, (changes, told)
        for leak in ("Traceback", "sqlalchemy", "psycopg", "sqlite"):
            assert leak not in told.everything


async def test_slots_with_a_bad_field_are_refused_by_that_field(client: Client) -> None:
    key = (await client.restaurant()).restaurant_id
    for field, changes in BAD_OPENINGS:
        told = await client.refused("OpenSlots", opening(key, **changes), client.operator())
        assert (told.code, told.reason) == (grpc.StatusCode.INVALID_ARGUMENT, "INVALID_ARGUMENT"), changes
        assert field in told.fields, (changes, told)


async def test_other_bad_requests_are_refused_by_field(client: Client) -> None:
    key = (await client.restaurant()).restaurant_id
    staff, reservation_id = client.staff(key), new_id()
    cases: list[tuple[str, str, Any]] = [
        ("page_size", "ListRestaurants", pb.ListRestaurantsRequest(page_size=-1)),
        ("page_token", "ListRestaurants", pb.ListRestaurantsRequest(page_token="junk")),
        ("page_token", "ListRestaurants", pb.ListRestaurantsRequest(page_token="eyJhIjoxfQ")),
        ("restaurant_id", "GetRestaurant", pb.GetRestaurantRequest()),
        ("restaurant_id", "GetRestaurant", pb.GetRestaurantRequest(restaurant_id="1; SELECT 1")),
        ("etag", "UpdateRestaurant", pb.UpdateRestaurantRequest(restaurant_id=key, name="A")),
        ("name", "UpdateRestaurant", pb.UpdateRestaurantRequest(restaurant_id=key, etag="1")),
        ("name", "UpdateRestaurant", pb.UpdateRestaurantRequest(restaurant_id=key, etag="1", name="")),
        ("page_token", "ListBookings", pb.ListBookingsRequest(restaurant_id=key, page_token="junk")),
        ("states[0]", "ListBookings", pb.ListBookingsRequest(restaurant_id=key, states=[0])),  # type: ignore[list-item]
        ("states[0]", "ListBookings", pb.ListBookingsRequest(restaurant_id=key, states=[99])),  # type: ignore[list-item]
        (
            "start_time",
            "ListBookings",
            pb.ListBookingsRequest(restaurant_id=key, start_time=Timestamp(seconds=2**60)),
        ),
        (
            "end_time",
            "ListBookings",
            pb.ListBookingsRequest(
                restaurant_id=key, start_time=Timestamp(seconds=2), end_time=Timestamp(seconds=1)
            ),
        ),
        (
            "revision",
            "AcceptBooking",
            pb.AcceptBookingRequest(restaurant_id=key, reservation_id=reservation_id),
        ),
        ("reservation_id", "MarkSeated", pb.MarkSeatedRequest(restaurant_id=key, revision=1)),
        (
            "reservation_id",
            "MarkNoShow",
            pb.MarkNoShowRequest(restaurant_id=key, reservation_id="x\0", revision=1),
        ),
        # All that is wrong is told at once.
        ("reservation_id revision", "AcceptBooking", pb.AcceptBookingRequest(restaurant_id=key)),
        ("etag name", "UpdateRestaurant", pb.UpdateRestaurantRequest(restaurant_id=key)),
        ("first_date last_date times capacity", "OpenSlots", pb.OpenSlotsRequest(restaurant_id=key)),
        ("first_date last_date times all_times", "CloseSlots", pb.CloseSlotsRequest(restaurant_id=key)),
        (
            "states[0] page_size",
            "ListBookings",
            pb.ListBookingsRequest(restaurant_id=key, states=[0], page_size=-1),  # type: ignore[list-item]
        ),
    ]
    for fields, name, request in cases:
        told = await client.refused(name, request, staff)
        wanted = grpc.StatusCode.INVALID_ARGUMENT, tuple(fields.split())
        assert (told.code, told.fields) == wanted, (name, request)
    told = await client.refused("CreateRestaurant", pb.CreateRestaurantRequest(), client.operator())
    assert told.fields == ("request_id", "name", "time_zone", "policy")


async def test_a_junk_resume_token_is_refused_by_field(client: Client) -> None:
    key = (await client.restaurant()).restaurant_id
    # The last one is {"time":0}, of the version before: every booking ever.
    for junk in ("junk", "eyJhIjoxfQ", "eyJ0aW1lIjo5OTk5OTk5OTk5OTk5OTk5OTk5OTk5fQ", "eyJ0aW1lIjowfQ"):
        with pytest.raises(grpc.aio.AioRpcError) as error:
            await client.stream(
                pb.WatchBookingsRequest(restaurant_id=key, resume_token=junk), client.staff(key)
            ).read()
        assert refusal(error.value).fields == ("resume_token",)
