"""Bad requests: the right status, the field named, nothing reserved, nothing leaked."""

from __future__ import annotations

import base64
import datetime as dt
from collections.abc import Awaitable, Callable, Iterator
from dataclasses import dataclass, field, replace
from typing import Any
from zoneinfo import ZoneInfo

import grpc
import pytest
from google.protobuf.message import Message
from google.type.date_pb2 import Date
from google.type.money_pb2 import Money
from google.type.timeofday_pb2 import TimeOfDay

from dinemesh.deposit.v1 import deposit_service_pb2 as deposit
from dinemesh.history.v1 import history_service_pb2 as history
from dinemesh.reservation.v1 import reservation_service_pb2 as reservation
from dinemesh.restaurant.v1 import restaurant_pb2
from dinemesh.restaurant.v1 import restaurant_service_pb2 as restaurant
from tests.edge.rpcs import RPCS, Rpc
from tests.mesh.conftest import on_both_engines
from tests.mesh.people import (
    City,
    Customer,
    Place,
    Reservation,
    bearer,
    new_id,
    policy,
    timestamp,
    until,
)
from tests.support.leaks import LEAKS
from tests.support.mesh import RunningMesh
from tests.support.refusals import Refused, refusal, refused

INVALID = grpc.StatusCode.INVALID_ARGUMENT
NOT_FOUND = grpc.StatusCode.NOT_FOUND


@dataclass(frozen=True)
class Standing:
    """What there is before the bad request comes: a booking of alice at a restaurant."""

    city: City
    place: Place
    alice: Customer
    booked: Reservation


@dataclass(frozen=True)
class Bad:
    """A bad request: which RPC, who sends it, what in it, and how it must be refused."""

    name: str
    service: str
    rpc: str
    request: Callable[[Standing], Message]
    fields: tuple[str, ...] = ()
    """Fields that the refusal must name."""
    code: grpc.StatusCode = INVALID
    reason: str = "INVALID_ARGUMENT"
    by: str = "customer"
    allowed: tuple[str, ...] = field(default=())
    """Other reasons that are as good."""


def create(
    name: str,
    fields: str,
    *,
    code: grpc.StatusCode = INVALID,
    reason: str = "INVALID_ARGUMENT",
    allowed: tuple[str, ...] = (),
    **change: object,
) -> Bad:
    """A CreateReservation that is right but for `change`; a callable is given what stands."""

    def request(standing: Standing) -> Message:
        wish = standing.alice.wish(standing.place)
        for key, value in change.items():
            wish.ClearField(key)  # type: ignore[arg-type]
            given = value(standing) if callable(value) else value
            if isinstance(given, Message):
                getattr(wish, key).CopyFrom(given)
            elif given is not None:
                setattr(wish, key, given)
        return wish

    named = tuple(fields.split()) if fields else ()
    return Bad(
        f"create: {name}", "reservation", "CreateReservation", request, named, code, reason, allowed=allowed
    )


def modify(name: str, fields: str, **change: object) -> Bad:
    def request(standing: Standing) -> Message:
        wish: dict[str, object] = {
            "reservation_id": standing.booked.reservation_id,
            "request_id": new_id(),
            "etag": standing.booked.etag,
            "party_size": 1,
        }
        return reservation.ModifyReservationRequest(
            **{key: value for key, value in (wish | change).items() if value is not None}  # type: ignore[arg-type]
        )

    return Bad(f"modify: {name}", "reservation", "ModifyReservation", request, tuple(fields.split()))


def read(name: str, service: str, rpc: str, request: Message, fields: str, **more: object) -> Bad:
    return Bad(name, service, rpc, lambda _: request, tuple(fields.split()), **more)  # type: ignore[arg-type]


def nobody(name: str, service: str, rpc: str, request: Message, by: str = "customer") -> Bad:
    return Bad(name, service, rpc, lambda _: request, (), NOT_FOUND, "NOT_FOUND", by)


def slots(name: str, fields: str, by: str = "staff", **change: object) -> Bad:
    def request(standing: Standing) -> Message:
        wish: dict[str, object] = {
            "restaurant_id": standing.place.id,
            "first_date": Date(year=2027, month=5, day=1),
            "last_date": Date(year=2027, month=5, day=2),
            "times": [TimeOfDay(hours=18)],
            "capacity": 10,
        }
        return restaurant.OpenSlotsRequest(
            **{key: value for key, value in (wish | change).items() if value is not None}  # type: ignore[arg-type]
        )

    return Bad(f"slots: {name}", "restaurant", "OpenSlots", request, tuple(fields.split()), by=by)


def closing(name: str, fields: str, **change: object) -> Bad:
    def request(standing: Standing) -> Message:
        wish: dict[str, object] = {
            "restaurant_id": standing.place.id,
            "first_date": Date(year=2027, month=5, day=1),
            "last_date": Date(year=2027, month=5, day=2),
        }
        return restaurant.CloseSlotsRequest(**wish | change)  # type: ignore[arg-type]

    return Bad(f"closing: {name}", "restaurant", "CloseSlots", request, tuple(fields.split()), by="staff")


def found(case: str, fields: str, terms: restaurant_pb2.Policy | None = None, **change: object) -> Bad:
    def request(_: Standing) -> Message:
        wish: dict[str, object] = {
            "request_id": new_id(),
            "name": "Chez Nous",
            "time_zone": "Europe/Berlin",
            "policy": terms or policy(),
        }
        return restaurant.CreateRestaurantRequest(
            **{key: value for key, value in (wish | change).items() if value is not None}  # type: ignore[arg-type]
        )

    named = tuple(fields.split())
    return Bad(f"restaurant: {case}", "restaurant", "CreateRestaurant", request, named, by="operator")


def per_person(money: Money) -> restaurant_pb2.Policy:
    terms = policy()
    terms.deposit_per_person.CopyFrom(money)
    return terms


def off_the_grid(standing: Standing) -> Message:
    return timestamp(standing.place.slots[0] + dt.timedelta(minutes=7))


def with_nanos(standing: Standing) -> Message:
    moment = timestamp(standing.place.slots[0])
    moment.nanos = 1
    return moment


def beyond_nanos(standing: Standing) -> Message:
    moment = timestamp(standing.place.slots[0])
    moment.nanos = -5
    return moment


def years_ahead(_: Standing) -> Message:
    moment = timestamp(dt.datetime.now(dt.UTC))
    moment.seconds = 10**17
    return moment


def spring_forward() -> Date:
    """The next day on which 02:30 does not exist in Berlin (the last Sunday of March)."""
    today = dt.datetime.now(ZoneInfo("Europe/Berlin")).date()
    for year in (today.year, today.year + 1):
        day = max(day for day in range(25, 32) if dt.date(year, 3, day).weekday() == 6)
        if dt.date(year, 3, day) > today:
            return Date(year=year, month=3, day=day)
    raise AssertionError("there is a March in two years")


SQL = "'; DROP TABLE reservations; --"
PATH = "../../../../etc/passwd"
LONG_AGO = timestamp(dt.datetime(2020, 1, 1, 18, tzinfo=dt.UTC))

BAD: list[Bad] = [
    # CreateReservation
    create("no request_id", "request_id", request_id=None),
    create("request_id is no uuid", "request_id", request_id="1"),
    create("request_id is SQL", "request_id", request_id=SQL),
    create("no restaurant_id", "restaurant_id", restaurant_id=None),
    create("restaurant_id is a path", "restaurant_id", restaurant_id=PATH),
    create(
        "an unknown restaurant",
        "",
        restaurant_id=lambda _: new_id(),
        code=NOT_FOUND,
        reason="NOT_FOUND",
    ),
    create("no dine_time", "dine_time", dine_time=None),
    create("dine_time past", "dine_time", dine_time=lambda _: LONG_AGO),
    create("dine_time off the grid", "dine_time", dine_time=off_the_grid),
    create("dine_time with a fraction", "dine_time", dine_time=with_nanos),
    create("dine_time with negative nanos", "dine_time", dine_time=beyond_nanos),
    create("dine_time beyond the calendar", "dine_time", dine_time=years_ahead),
    create("no party", "party_size", party_size=None),
    create("a party of minus one", "party_size", party_size=-1),
    create("a party larger than the policy's", "party_size", party_size=101),
    create("a party beyond counting", "party_size", party_size=2**31 - 1),
    create("no policy_etag", "policy_etag", policy_etag=None),
    create("policy_etag too long", "policy_etag", policy_etag="p" * 65),
    create("policy_etag with NUL", "policy_etag", policy_etag="p\0"),
    create(
        "another policy than the one shown",
        "",
        policy_etag="another",
        code=grpc.StatusCode.FAILED_PRECONDITION,
        reason="POLICY_CHANGED",
    ),
    create("no payment_token", "payment_token", payment_token=None),
    create("payment_token too long", "payment_token", payment_token="t" * 129),
    create("payment_token with NUL", "payment_token", payment_token="tok_visa\0"),
    create("note too long", "note", note="n" * 501),
    create("note with NUL", "note", note="hello\0world"),
    create("note with a control character", "note", note="\x1b[31mred"),
    # the other RPCs of reservation
    read(
        "get: no id", "reservation", "GetReservation", reservation.GetReservationRequest(), "reservation_id"
    ),
    read(
        "get: id is SQL",
        "reservation",
        "GetReservation",
        reservation.GetReservationRequest(reservation_id=SQL),
        "reservation_id",
    ),
    nobody(
        "get: unknown",
        "reservation",
        "GetReservation",
        reservation.GetReservationRequest(reservation_id=new_id()),
    ),
    nobody(
        "cancel: unknown",
        "reservation",
        "CancelReservation",
        reservation.CancelReservationRequest(reservation_id=new_id()),
    ),
    read(
        "cancel: id with NUL",
        "reservation",
        "CancelReservation",
        reservation.CancelReservationRequest(reservation_id="a\0b"),
        "reservation_id",
    ),
    nobody(
        "watch: unknown",
        "reservation",
        "WatchReservation",
        reservation.WatchReservationRequest(reservation_id=new_id()),
    ),
    read(
        "list: junk page token",
        "reservation",
        "ListReservations",
        reservation.ListReservationsRequest(page_token="junk!"),
        "page_token",
    ),
    read(
        "list: negative page size",
        "reservation",
        "ListReservations",
        reservation.ListReservationsRequest(page_size=-1),
        "page_size",
    ),
    modify("nothing to change", "", party_size=None),
    modify("no etag", "etag", etag=None),
    modify("no request_id", "request_id", request_id=None),
    modify("a party of none", "party_size", party_size=0),
    modify("a party larger than the policy's", "party_size", party_size=101, payment_token="tok_visa"),
    modify("dearer without a payment_token", "payment_token", party_size=9),
    modify("note too long", "note", note="n" * 501),
    modify("dine_time past", "dine_time", dine_time=LONG_AGO),
    Bad(
        "modify: stale etag",
        "reservation",
        "ModifyReservation",
        lambda standing: reservation.ModifyReservationRequest(
            reservation_id=standing.booked.reservation_id, request_id=new_id(), etag="stale", party_size=1
        ),
        (),
        grpc.StatusCode.ABORTED,
        "ETAG_MISMATCH",
    ),
    Bad(
        "slots: no such day",
        "reservation",
        "ListAvailableSlots",
        lambda standing: reservation.ListAvailableSlotsRequest(
            restaurant_id=standing.place.id, date="2027-02-30", party_size=2
        ),
        ("date",),
        by="anyone",
    ),
    Bad(
        "slots: no party",
        "reservation",
        "ListAvailableSlots",
        lambda standing: reservation.ListAvailableSlotsRequest(
            restaurant_id=standing.place.id, date="2027-02-20"
        ),
        ("party_size",),
        by="anyone",
    ),
    Bad(
        "slots: unknown restaurant",
        "reservation",
        "ListAvailableSlots",
        lambda _: reservation.ListAvailableSlotsRequest(
            restaurant_id=new_id(), date="2027-02-20", party_size=2
        ),
        (),
        NOT_FOUND,
        "NOT_FOUND",
        by="anyone",
    ),
    # deposit
    read("deposit: no id", "deposit", "GetDeposit", deposit.GetDepositRequest(), "deposit_id"),
    nobody("deposit: unknown", "deposit", "GetDeposit", deposit.GetDepositRequest(deposit_id=new_id())),
    read(
        "deposits: reservation_id is SQL",
        "deposit",
        "ListDeposits",
        deposit.ListDepositsRequest(reservation_id=SQL),
        "reservation_id",
    ),
    read(
        "deposits: junk page token",
        "deposit",
        "ListDeposits",
        deposit.ListDepositsRequest(page_token="eyJhIjoxfQ"),
        "page_token",
    ),
    read(
        "refund: no ids",
        "deposit",
        "RetryRefund",
        deposit.RetryRefundRequest(),
        "deposit_id",
        by="operator",
    ),
    nobody(
        "refund: unknown",
        "deposit",
        "RetryRefund",
        deposit.RetryRefundRequest(deposit_id=new_id(), refund_id=new_id()),
        by="operator",
    ),
    # restaurant
    found("no name", "name", name=None),
    found("name too long", "name", name="n" * 201),
    found("no time zone", "time_zone", time_zone=None),
    found("time zone is a path", "time_zone", time_zone=PATH),
    found("no policy", "policy", policy=None),
    found("no acceptance", "policy.acceptance", policy(restaurant_pb2.ACCEPTANCE_MODE_UNSPECIFIED)),
    found("a deposit of nothing", "policy.deposit_per_person", per_person(Money(currency_code="EUR"))),
    found(
        "a deposit finer than a cent",
        "policy.deposit_per_person",
        per_person(Money(currency_code="EUR", units=1, nanos=1)),
    ),
    found(
        "a deposit in no currency",
        "policy.deposit_per_person.currency_code",
        per_person(Money(currency_code="euro", units=1)),
    ),
    found(
        "a deposit in gold",
        "policy.deposit_per_person.currency_code",
        per_person(Money(currency_code="XAU", units=1)),
    ),
    found("no grid", "policy.slot_interval_seconds", policy(interval_seconds=0)),
    Bad(
        "slots: a local time that daylight saving skips",
        "restaurant",
        "OpenSlots",
        lambda standing: restaurant.OpenSlotsRequest(
            restaurant_id=standing.place.id,
            first_date=spring_forward(),
            last_date=spring_forward(),
            times=[TimeOfDay(hours=2, minutes=30)],
            capacity=1,
        ),
        ("times",),
        by="staff",
    ),
    slots("off the grid", "times", times=[TimeOfDay(hours=18, minutes=7)]),
    slots("25 o'clock", "times", times=[TimeOfDay(hours=25)]),
    slots("no times", "times", times=None),
    slots("more times than a day has minutes", "times", times=[TimeOfDay(hours=18)] * 1441),
    closing("neither times nor all of them", "times all_times"),
    closing("times and all of them", "times all_times", times=[TimeOfDay(hours=18)], all_times=True),
    closing("25 o'clock", "times", times=[TimeOfDay(hours=25)]),
    slots("no capacity", "capacity", capacity=None),
    slots("capacity below nothing", "capacity", capacity=-1),
    slots("no first_date", "first_date", first_date=None),
    slots("the 30th of February", "first_date", first_date=Date(year=2027, month=2, day=30)),
    slots("the last day before the first", "last_date", last_date=Date(year=2027, month=4, day=1)),
    slots("ten years", "last_date", last_date=Date(year=2037, month=4, day=1)),
    nobody(
        "restaurant: unknown",
        "restaurant",
        "GetRestaurant",
        restaurant.GetRestaurantRequest(restaurant_id=new_id()),
        by="anyone",
    ),
    Bad(
        "accept: no revision",
        "restaurant",
        "AcceptBooking",
        lambda standing: restaurant.AcceptBookingRequest(
            restaurant_id=standing.place.id, reservation_id=standing.booked.reservation_id
        ),
        ("revision",),
        by="staff",
    ),
    Bad(
        "accept: unknown booking",
        "restaurant",
        "AcceptBooking",
        lambda standing: restaurant.AcceptBookingRequest(
            restaurant_id=standing.place.id, reservation_id=new_id(), revision=1
        ),
        (),
        NOT_FOUND,
        "NOT_FOUND",
        by="staff",
    ),
    Bad(
        "bookings: junk page token",
        "restaurant",
        "ListBookings",
        lambda standing: restaurant.ListBookingsRequest(restaurant_id=standing.place.id, page_token="\u2603"),
        ("page_token",),
        by="staff",
    ),
    # history
    read(
        "timeline: junk page token",
        "history",
        "ListTimelineEntries",
        history.ListTimelineEntriesRequest(page_token="AAAA"),
        "page_token",
    ),
    read(
        "timeline: reservation_id is SQL",
        "history",
        "ListTimelineEntries",
        history.ListTimelineEntriesRequest(reservation_id=SQL),
        "reservation_id",
    ),
    read(
        "timeline: junk resume token",
        "history",
        "WatchTimeline",
        history.WatchTimelineRequest(resume_token="junk!"),
        "resume_token",
    ),
]


def test_there_are_forty_bad_requests_and_each_has_a_name_of_its_own() -> None:
    assert len(BAD) >= 40
    assert len({bad.name for bad in BAD}) == len(BAD)


@pytest.fixture
async def standing(city: City) -> Standing:
    place, alice = await city.place(capacity=10), city.customer()
    return Standing(city, place, alice, await alice.book(place, party=2))


async def send(standing: Standing, bad: Bad) -> Refused:
    city = standing.city
    metadata = {
        "customer": standing.alice.metadata,
        "staff": standing.place.metadata,
        "operator": city.operator,
        "anyone": (),
    }[bad.by]

    async def call() -> object:
        made = getattr(getattr(city.doors, bad.service), bad.rpc)(
            bad.request(standing), metadata=metadata, timeout=5
        )
        if hasattr(made, "read"):
            return [message async for message in made]
        return await made

    return await refused(call())


def check_safe(said: Refused) -> None:
    assert said.domain == "dinemesh"
    assert not LEAKS.search(said.everything), said
    assert len(said.message) < 1000


async def nothing_has_changed(standing: Standing) -> None:
    assert await standing.alice.read(standing.booked) == standing.booked
    assert len(await standing.alice.reservations()) == 1
    assert len(await standing.alice.deposits()) == 1
    await standing.place.sees_seats(0, 8)


async def test_each_bad_request_is_refused_by_name_and_changes_nothing(standing: Standing) -> None:
    """One table, one restaurant: what was refused wrongly is listed together."""
    charges = len(await standing.city.provider.charges())
    wrong: list[str] = []
    for bad in BAD:
        try:
            said = await send(standing, bad)
            check_safe(said)
        except AssertionError as error:
            wrong.append(f"{bad.name}: {error}")
            continue
        if said.code != bad.code or said.reason not in (bad.reason, *bad.allowed):
            wrong.append(f"{bad.name}: {said.code.name} {said.reason}: {said.message}")
        for name in bad.fields:
            if not any(one == name or one.startswith((f"{name}.", f"{name}[")) for one in said.fields):
                wrong.append(f"{bad.name}: names {said.fields}, not {name}: {said.message}")
        if bad.code == INVALID and not said.fields:
            wrong.append(f"{bad.name}: names no field: {said.message}")
    assert not wrong, "\n".join(wrong)
    assert len(await standing.city.provider.charges()) == charges
    await nothing_has_changed(standing)


METHODS = {
    "reservation": "/dinemesh.reservation.v1.ReservationService/CreateReservation",
    "deposit": "/dinemesh.deposit.v1.DepositService/GetDeposit",
    "restaurant": "/dinemesh.restaurant.v1.RestaurantService/CreateRestaurant",
    "history": "/dinemesh.history.v1.HistoryService/ListTimelineEntries",
}
BYTES = {
    "corrupt": b"\xff\xff\xff\xff\xff",
    "cut off": b"\x0a\x24abc",
    "invalid UTF-8": b"\x0a\x04\xff\xfe\xfd\xfc",
    "a wrong wire type": b"\x0a",
}


@pytest.mark.parametrize("kind", BYTES)
@pytest.mark.parametrize("service", METHODS)
async def test_bytes_that_are_no_request_are_an_invalid_argument(
    standing: Standing, mesh: RunningMesh, service: str, kind: str
) -> None:
    role = "operator" if service == "restaurant" else "customer"
    call: Callable[..., Awaitable[bytes]] = standing.city.doors.channels[service].unary_unary(
        METHODS[service]
    )
    said = await refused(
        call(
            BYTES[kind],
            metadata=(("authorization", f"Bearer {mesh.token('alice', role)}"),),
            timeout=5,
        )
    )
    assert (said.code, said.reason) == (INVALID, "INVALID_ARGUMENT"), said
    check_safe(said)


async def test_an_unknown_method_is_unimplemented_and_tells_nothing(standing: Standing) -> None:
    call: Callable[..., Awaitable[bytes]] = standing.city.doors.channels["reservation"].unary_unary(
        "/dinemesh.reservation.v1.ReservationService/DropEverything"
    )
    said = await refused(call(b"", metadata=standing.alice.metadata, timeout=5))
    assert said.code == grpc.StatusCode.UNIMPLEMENTED
    assert not LEAKS.search(said.everything)


async def test_a_huge_request_is_refused(standing: Standing) -> None:
    wish = standing.alice.wish(standing.place, note="x" * 5_000_000)
    said = await refused(standing.alice.send(wish, timeout=20))
    assert said.code in (grpc.StatusCode.RESOURCE_EXHAUSTED, INVALID)
    await nothing_has_changed(standing)


async def test_words_in_any_script_arrive_as_they_were_sent(standing: Standing) -> None:
    words = "Ein Tisch am Fenster, s'il vous plaît 🥂 \u4f60\u597d Robert'); DROP TABLE"
    noted = await standing.alice.modify(standing.booked, note=words)
    assert (await standing.alice.read(noted)).note == words


async def test_a_page_is_followed_by_the_next_one(standing: Standing) -> None:
    alice, place = standing.alice, standing.place
    for _ in range(4):
        await alice.reserve(place, party=1)
    seen: list[str] = []
    token = ""
    while True:
        page = await standing.city.doors.reservation.ListReservations(
            reservation.ListReservationsRequest(page_size=2, page_token=token),
            metadata=alice.metadata,
            timeout=5,
        )
        assert len(page.reservations) <= 2
        seen += [one.reservation_id for one in page.reservations]
        if not (token := page.next_page_token):
            break
    assert len(seen) == len(set(seen)) == 5
    assert seen[-1] == standing.booked.reservation_id
    await until(alice.timeline, bool)


# --- every string that a client can send


WELL_FORMED: dict[str, tuple[str, Callable[[Standing], Message]]] = {
    "CreateReservation": ("customer", lambda standing: standing.alice.wish(standing.place)),
    "GetReservation": ("customer", lambda _: reservation.GetReservationRequest(reservation_id=new_id())),
    "ListReservations": ("customer", lambda _: reservation.ListReservationsRequest(page_size=1)),
    "ModifyReservation": (
        "customer",
        lambda standing: reservation.ModifyReservationRequest(
            reservation_id=standing.booked.reservation_id,
            request_id=new_id(),
            etag=standing.booked.etag,
            party_size=2,
            note="",
        ),
    ),
    "CancelReservation": (
        "customer",
        lambda _: reservation.CancelReservationRequest(reservation_id=new_id()),
    ),
    "WatchReservation": ("customer", lambda _: reservation.WatchReservationRequest(reservation_id=new_id())),
    "ListAvailableSlots": (
        "anyone",
        lambda standing: reservation.ListAvailableSlotsRequest(
            restaurant_id=standing.place.id, date="2027-02-20", party_size=2
        ),
    ),
    "CreateDeposit": (
        "reservation",
        lambda standing: deposit.CreateDepositRequest(
            deposit_id=new_id(),
            reservation_id=new_id(),
            customer_id=standing.alice.name,
            amount=Money(currency_code="EUR", units=10),
            payment_token="tok_chargeDeclined",
        ),
    ),
    "GetDeposit": ("customer", lambda _: deposit.GetDepositRequest(deposit_id=new_id())),
    "ListDeposits": ("customer", lambda _: deposit.ListDepositsRequest(page_size=1)),
    "RetryRefund": (
        "operator",
        lambda _: deposit.RetryRefundRequest(deposit_id=new_id(), refund_id=new_id()),
    ),
    "ListRestaurants": ("anyone", lambda _: restaurant.ListRestaurantsRequest(page_size=1)),
    "GetRestaurant": ("anyone", lambda _: restaurant.GetRestaurantRequest(restaurant_id=new_id())),
    "CreateRestaurant": (
        "operator",
        lambda _: restaurant.CreateRestaurantRequest(
            request_id=new_id(), name="Chez Nous", time_zone="Europe/Berlin", policy=policy()
        ),
    ),
    "UpdateRestaurant": (
        "staff",
        lambda standing: restaurant.UpdateRestaurantRequest(
            restaurant_id=standing.place.id, etag="stale", name="Chez Nous", policy=policy()
        ),
    ),
    "OpenSlots": (
        "staff",
        lambda standing: restaurant.OpenSlotsRequest(
            restaurant_id=standing.place.id, times=[TimeOfDay(hours=18)], capacity=1, **A_DAY
        ),
    ),
    "CloseSlots": (
        "staff",
        lambda standing: restaurant.CloseSlotsRequest(
            restaurant_id=standing.place.id, times=[TimeOfDay(hours=18)], **A_DAY
        ),
    ),
    "ListBookings": (
        "staff",
        lambda standing: restaurant.ListBookingsRequest(restaurant_id=standing.place.id, page_size=1),
    ),
    "WatchBookings": (
        "staff",
        lambda standing: restaurant.WatchBookingsRequest(restaurant_id=standing.place.id),
    ),
    **{
        name: (
            "staff",
            lambda standing, name=name: RPCS[name].request(  # type: ignore[misc]
                restaurant_id=standing.place.id, reservation_id=new_id(), revision=1
            ),
        )
        for name in ("AcceptBooking", "DeclineBooking", "MarkSeated", "MarkNoShow", "CompleteBooking")
    },
    "ListTimelineEntries": ("customer", lambda _: history.ListTimelineEntriesRequest(page_size=1)),
    "WatchTimeline": ("customer", lambda _: history.WatchTimelineRequest()),
}
"""For each RPC who may call it, and a request in which nothing is misspelt."""

A_DAY: Any = {"first_date": Date(year=2027, month=5, day=1), "last_date": Date(year=2027, month=5, day=1)}


def packed(text: str) -> str:
    return base64.urlsafe_b64encode(text.encode("utf-8", "surrogatepass")).decode().rstrip("=")


MISSPELT = {
    "NUL": "\0",
    "NUL among letters": "a\0b",
    "a control character of Latin-1": "\x85",
    "another": "a\x9f",
    "DEL": "\x7f",
    "a megabyte": "x" * 1_000_000,
    "a megabyte of NUL": "\0" * 1_000_000,
}
"""Texts that no field of any request takes. (Halves of surrogate pairs cannot be sent: they are no UTF-8.)"""

NONCHARACTERS = "\ufdd0\ufffe\uffff\U0010ffff"
"""Valid UTF-8; refused, or kept as it came."""

MADE_UP = {
    "of the version before, the beginning of time": packed('{"time":0}'),
    "of the version before, half of a pair": packed('{"id":"\\ud800","name":"\\ud800"}'),
    "half of a pair": packed('["0123456789ab",0,"\\ud800"]'),
    "half of a pair, raw": packed('["0123456789ab",0,"\ud800"]'),
    "no number": packed('["0123456789ab",NaN]'),
    "a number of 1,400 digits": packed('["0123456789ab",' + "9" * 1400 + "]"),
    "deep": packed("[" * 1500),
    "a megabyte": "A" * 1_000_000,
}
"""Tokens that a client might make up."""


def strings(message: Message, path: str = "") -> Iterator[str]:
    """The path of every string field of a request. Messages in it are entered where they are set."""
    for described in message.DESCRIPTOR.fields:
        where = f"{path}{described.name}"
        if described.type == described.TYPE_STRING:
            assert not described.is_repeated, "a list of strings needs a row of its own"
            yield where
        elif described.message_type and not described.is_repeated and message.HasField(described.name):
            yield from strings(getattr(message, described.name), f"{where}.")


def _set(request: Message, path: str, value: str) -> None:
    *parents, name = path.split(".")
    for parent in parents:
        request = getattr(request, parent)
    setattr(request, name, value)


def test_every_rpc_has_a_well_formed_request() -> None:
    assert WELL_FORMED.keys() == RPCS.keys()


@on_both_engines
async def test_no_string_of_any_request_reaches_a_database_that_cannot_take_it(
    standing: Standing, mesh: RunningMesh
) -> None:
    """Every string field of every RPC. What was answered wrongly is listed together."""
    wrong: list[str] = []
    sent = 0
    who = senders(standing, mesh)
    for name, (by, well_formed) in WELL_FORMED.items():
        for path in strings(well_formed(standing)):
            values = MISSPELT | {"noncharacters": NONCHARACTERS}
            if path.endswith("_token") and path != "payment_token":
                values |= MADE_UP
            for what, value in values.items():
                request = well_formed(standing)
                _set(request, path, value)
                sent += 1
                try:
                    await RPCS[name].over_grpc(
                        standing.city.doors.channels[RPCS[name].service], request, who[by], timeout=10
                    )
                except grpc.aio.AioRpcError as error:
                    said = refusal(error)
                    check_safe(said)
                    if what == "noncharacters" and said.code in REFUSALS:
                        continue
                    if said.code == INVALID and said.fields == (path,):
                        continue
                    wrong.append(
                        f"{name}.{path}: {what}: {said.code.name} {said.fields}: {said.message[:200]}"
                    )
                else:
                    if what != "noncharacters":
                        wrong.append(f"{name}.{path}: {what}: is taken")
    assert not wrong, "\n".join(wrong)
    assert sent >= 300


REFUSALS = {
    INVALID,
    NOT_FOUND,
    grpc.StatusCode.ABORTED,
    grpc.StatusCode.FAILED_PRECONDITION,
}
"""Answers to a request that was understood."""


def senders(standing: Standing, mesh: RunningMesh) -> dict[str, tuple[tuple[str, str], ...]]:
    return {
        "customer": standing.alice.metadata,
        "staff": standing.place.metadata,
        "operator": standing.city.operator,
        "reservation": bearer(mesh.token("reservation", "service")),
        "anyone": (),
    }


@on_both_engines
async def test_a_token_of_another_list_customer_or_restaurant_is_refused(
    standing: Standing, mesh: RunningMesh
) -> None:
    """Each token that was really made is sent to each list and watch, and taken only where it was made."""
    alice, place, city = standing.alice, standing.place, standing.city
    for _ in range(2):
        await alice.book(place, party=1)
    bob, there = city.customer(), await city.place(capacity=10)
    await until(alice.timeline, lambda entries: len(entries) >= 4)
    mine = {"customer": alice.metadata, "staff": place.metadata}
    theirs = {"customer": bob.metadata, "staff": there.metadata}
    lists = {name for name, rpc in RPCS.items() if {"page_token", "resume_token"} & set(fields(rpc))}
    lists -= {"ListAvailableSlots", "ListRestaurants"}  # anyone's
    assert len(lists) == 6

    async def ask(name: str, who: dict[str, Any], where: Place, token: str = "") -> Message:
        by, well_formed = WELL_FORMED[name]
        request: Any = well_formed(replace(standing, place=where))
        field = "page_token" if hasattr(request, "page_token") else "resume_token"
        setattr(request, field, token)
        return await RPCS[name].over_grpc(
            city.doors.channels[RPCS[name].service], request, who[by], timeout=10
        )

    made: dict[str, str] = {}
    for name in lists:
        answer: Any = await ask(name, mine, place)
        made[name] = answer.next_page_token if name.startswith("List") else answer.resume_token
        assert made[name], f"void: {name} gave no token"
    for name in lists:
        assert await ask(name, mine, place, made[name])
        for of, token in made.items():
            askers = [(theirs, there)] if of == name else [(mine, place), (theirs, there)]
            for who, where in askers:
                said = await refused(ask(name, who, where, token))
                assert (said.code, len(said.fields)) == (INVALID, 1), (name, of, said)
                assert said.fields[0] in ("page_token", "resume_token")


def fields(rpc: Rpc) -> list[str]:
    return [described.name for described in rpc.request.DESCRIPTOR.fields]
