"""Who may call what through the edge: every RPC, over HTTP/JSON and over gRPC, by everyone there is.

The table is printed by `python -m pytest -s -k table tests/edge/test_who_may_call.py`.
"""

from __future__ import annotations

import base64
import datetime as dt
import re
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass, field
from typing import Any

import grpc
import httpx
import pytest
from google.protobuf import json_format
from google.protobuf.message import Message
from google.type.date_pb2 import Date
from google.type.timeofday_pb2 import TimeOfDay

from dinemesh.deposit.v1 import deposit_service_pb2 as deposit
from dinemesh.history.v1 import history_service_pb2 as history
from dinemesh.reservation.v1 import reservation_service_pb2 as reservation
from dinemesh.restaurant.v1 import restaurant_pb2
from dinemesh.restaurant.v1 import restaurant_service_pb2 as restaurant
from tests.edge.rpcs import HTTP_STATUS, RPCS, HttpCall, Rpc
from tests.mesh.people import (
    BERLIN,
    CANCELLED,
    MANUAL,
    PATIENCE,
    PENDING_ACCEPTANCE,
    City,
    Customer,
    Place,
    Reservation,
    bearer,
    euros,
    evenings,
    new_id,
    policy,
    soon,
    until,
)
from tests.support.edge import RunningEdge
from tests.support.json_refusals import json_refusal
from tests.support.mesh import RunningMesh

Metadata = tuple[tuple[str, str], ...]

CALLERS = ("nobody", "owner", "other", "staff", "other_staff", "operator", "service")
"""nobody shows no token; owner and other are customers, and what is asked for is the owner's."""

EXPECTED = """
                      nobody  owner  other  staff  other_staff  operator  service
CreateReservation     401     ok     ok     403    403          403       403
GetReservation        401     ok     404    ok     404          403       403
ListReservations      401     ok     ok     403    403          403       403
ModifyReservation     401     ok     404    403    403          403       403
CancelReservation     401     ok     404    ok     404          403       403
WatchReservation      401     ok     404    403    403          403       403
ListAvailableSlots    ok      ok     ok     ok     ok           ok        403
CreateDeposit         none    none   none   none   none         none      none
GetDeposit            401     ok     404    403    403          403       403
ListDeposits          401     ok     ok     403    403          403       403
RetryRefund           none    none   none   none   none         none      none
ListRestaurants       ok      ok     ok     ok     ok           ok        403
GetRestaurant         ok      ok     ok     ok     ok           ok        403
CreateRestaurant      401     403    403    403    403          ok        403
UpdateRestaurant      401     403    403    ok     403          ok        403
OpenSlots             401     403    403    ok     403          ok        403
CloseSlots            401     403    403    ok     403          ok        403
ListBookings          401     403    403    ok     403          403       403
WatchBookings         401     403    403    ok     403          403       403
AcceptBooking         401     403    403    ok     403          403       403
DeclineBooking        401     403    403    ok     403          403       403
MarkSeated            401     403    403    ok     403          403       403
MarkNoShow            401     403    403    ok     403          403       403
CompleteBooking       401     403    403    ok     403          403       403
ListTimelineEntries   401     ok     404    403    403          403       403
WatchTimeline         401     ok     404    403    403          403       403
"""
"""ListReservations and ListDeposits show each customer only their own, so "other" gets an empty list."""

MEANS = {
    "ok": (200, grpc.StatusCode.OK),
    "401": (401, grpc.StatusCode.UNAUTHENTICATED),
    "403": (403, grpc.StatusCode.PERMISSION_DENIED),
    "404": (404, grpc.StatusCode.NOT_FOUND),
    # It does not exist: the answer is the one that a name gets which nobody ever gave.
    "none": (404, grpc.StatusCode.UNIMPLEMENTED),
}
INTERNAL_ONLY = ("CreateDeposit", "RetryRefund")


def expected() -> dict[str, dict[str, str]]:
    """Words of MEANS by RPC and caller."""
    head, *rows = (line.split() for line in EXPECTED.strip().splitlines())
    assert tuple(head) == CALLERS
    return {name: dict(zip(CALLERS, words, strict=True)) for name, *words in rows}


def test_every_rpc_has_its_row() -> None:
    assert set(expected()) == set(RPCS)


def test_only_what_has_no_http_form_is_missing_at_the_edge() -> None:
    """And nothing that changes something is open to anyone."""
    for name, row in expected().items():
        assert (set(row.values()) == {"none"}) == (not RPCS[name].verb), name
        assert (row["nobody"] == "ok") <= (RPCS[name].verb == "GET"), name
        assert row["service"] in ("403", "none"), name


@dataclass(frozen=True)
class Scene:
    """What there is to call about: bookings of alice (the owner) at a restaurant that asks a person."""

    city: City
    place: Place
    alice: Customer
    bob: Customer
    metadata: dict[str, Metadata]
    booked: dict[str, Reservation]
    """By the RPC that is to change it; "read" for all others."""

    async def request(self, name: str) -> Message:
        """A request that is right in all things but, perhaps, its sender."""
        place, booked = self.place, self.booked["read"]
        read = booked.reservation_id
        own = self.booked.get(name, booked).reservation_id
        step = {"restaurant_id": place.id, "revision": 1}
        day = Date(year=2027, month=5, day=1)
        hours = {"first_date": day, "last_date": day, "times": [TimeOfDay(hours=18)]}
        match name:
            case "CreateReservation":
                return self.alice.wish(place, slot=1, party=1)
            case "GetReservation":
                return reservation.GetReservationRequest(reservation_id=read)
            case "ListReservations":
                return reservation.ListReservationsRequest()
            case "ModifyReservation":
                mine = await self.alice.read(booked)
                return reservation.ModifyReservationRequest(
                    reservation_id=read, request_id=new_id(), etag=mine.etag, note=f"note {new_id()}"
                )
            case "CancelReservation":
                return reservation.CancelReservationRequest(reservation_id=own)
            case "WatchReservation":
                return reservation.WatchReservationRequest(reservation_id=read)
            case "ListAvailableSlots":
                return reservation.ListAvailableSlotsRequest(
                    restaurant_id=place.id, date="2027-05-01", party_size=2
                )
            case "CreateDeposit":
                return deposit.CreateDepositRequest(
                    deposit_id=new_id(),
                    reservation_id=read,
                    customer_id=self.alice.name,
                    amount=euros(10),
                    payment_token="tok_visa",
                )
            case "RetryRefund":
                return deposit.RetryRefundRequest(
                    deposit_id=booked.deposits[0].deposit_id, refund_id=new_id()
                )
            case "GetDeposit":
                return deposit.GetDepositRequest(deposit_id=booked.deposits[0].deposit_id)
            case "ListDeposits":
                return deposit.ListDepositsRequest(reservation_id=read)
            case "ListRestaurants":
                return restaurant.ListRestaurantsRequest()
            case "GetRestaurant":
                return restaurant.GetRestaurantRequest(restaurant_id=place.id)
            case "CreateRestaurant":
                return restaurant.CreateRestaurantRequest(
                    request_id=new_id(), name="Chez Nous", time_zone="Europe/Berlin", policy=policy()
                )
            case "UpdateRestaurant":
                seen = await self.city.doors.restaurant.GetRestaurant(
                    restaurant.GetRestaurantRequest(restaurant_id=place.id), timeout=5
                )
                return restaurant.UpdateRestaurantRequest(
                    restaurant_id=place.id, etag=seen.restaurant.etag, name=f"Chez {new_id()[:8]}"
                )
            case "OpenSlots":
                return restaurant.OpenSlotsRequest(restaurant_id=place.id, capacity=4, **hours)  # type: ignore[arg-type]
            case "CloseSlots":
                return restaurant.CloseSlotsRequest(restaurant_id=place.id, **hours)  # type: ignore[arg-type]
            case "ListBookings":
                return restaurant.ListBookingsRequest(restaurant_id=place.id)
            case "WatchBookings":
                return restaurant.WatchBookingsRequest(restaurant_id=place.id)
            case "AcceptBooking" | "DeclineBooking" | "MarkSeated" | "MarkNoShow" | "CompleteBooking":
                return RPCS[name].request(reservation_id=own, **step)
            case "ListTimelineEntries":
                return history.ListTimelineEntriesRequest(reservation_id=read)
            case "WatchTimeline":
                return history.WatchTimelineRequest(reservation_id=read)
        raise AssertionError(f"no request is known for {name}")


async def now() -> dt.datetime:
    return dt.datetime.now(dt.UTC)


@pytest.fixture
async def scene(city: City, mesh: RunningMesh) -> Scene:
    """One booking, which is asked for in every way."""
    alice, place = city.customer(), await city.place(terms=policy(MANUAL))
    booked = await alice.reserve(place, party=1)
    return await filled(city, mesh, place, alice, {"read": booked})


@pytest.fixture
async def full_scene(city: City, mesh: RunningMesh) -> Scene:
    """A booking for each step that changes one, in the state in which that step is right."""
    alice = city.customer()
    place = await city.place(
        capacity=100,
        times=[soon(1800), evenings(BERLIN)[0]],
        terms=policy(MANUAL, interval_seconds=1, free_cancel_seconds=1),
    )
    booked = {
        name: await alice.reserve(place, slot=slot, party=1)
        for name, slot in {
            "MarkSeated": 0,
            "CompleteBooking": 0,
            "AcceptBooking": 1,
            "DeclineBooking": 1,
            "CancelReservation": 1,
            "read": 1,
        }.items()
    }
    booked["MarkNoShow"] = await missed(place, alice)
    for name in ("AcceptBooking", "DeclineBooking"):
        await place.sees(booked[name], restaurant_pb2.BOOKING_STATE_RECEIVED)
    for name in ("MarkSeated", "CompleteBooking"):
        await accepted(place, booked[name])
    await place.seat(await place.sees(booked["CompleteBooking"], restaurant_pb2.BOOKING_STATE_ACCEPTED))
    return await filled(city, mesh, place, alice, booked)


async def accepted(place: Place, booked: Reservation, seconds: float = PATIENCE) -> None:
    """Accepts it, and waits until the reservation has heard of that."""
    received = await place.sees(booked, restaurant_pb2.BOOKING_STATE_RECEIVED, seconds=seconds)
    await place.accept(received)
    await place.sees(booked, restaurant_pb2.BOOKING_STATE_ACCEPTED, confirmed=True, seconds=seconds)


async def missed(place: Place, alice: Customer) -> Reservation:
    """A confirmed booking whose time has passed; on a busy machine it takes a later time to confirm it."""
    for seconds in (4, 12, 40):
        moment = soon(seconds)
        try:
            await place.open([moment], 10)
            booked = await alice.reserve(place, slot=place.slots.index(moment), party=1)
            await accepted(place, booked, seconds)
        except (AssertionError, grpc.aio.AioRpcError):
            continue
        await until(now, lambda clock, then=moment: clock > then, 2 * seconds)  # type: ignore[misc]
        return booked
    raise AssertionError("no booking could be confirmed in 40 s")


async def filled(
    city: City, mesh: RunningMesh, place: Place, alice: Customer, booked: dict[str, Reservation]
) -> Scene:
    """With everybody else."""
    await alice.sees_in_timeline(booked["read"], "RESERVATION_PLACED")
    bob, other_place = city.customer(), await city.place()
    return Scene(
        city=city,
        place=place,
        alice=alice,
        bob=bob,
        metadata={
            "nobody": (),
            "owner": alice.metadata,
            "other": bob.metadata,
            "staff": place.metadata,
            "other_staff": other_place.metadata,
            "operator": city.operator,
            "service": bearer(mesh.token("reservation", "service")),
        },
        booked=booked,
    )


@dataclass(frozen=True)
class Seen:
    """What one caller got for one RPC."""

    http: int
    grpc: grpc.StatusCode
    odd: str = field(default="", compare=False)
    """What is wrong with the shape of a refusal."""

    def __str__(self) -> str:
        return f"{self.http} {self.grpc.name}"


Table = dict[str, dict[str, Seen]]


async def over_json(http: httpx.AsyncClient, rpc: Rpc, request: Message, caller: Metadata) -> tuple[int, str]:
    """The HTTP status (of a stream, once its first message is there), and what is odd about a refusal."""
    call = rpc.over_http(request)
    if not rpc.verb:  # the only path that it could have
        call = HttpCall("POST", rpc.path, {}, call.query)
    asked = http.build_request(
        call.verb, call.path, params=call.query, json=call.body, headers=dict(caller), timeout=5
    )
    answer = await http.send(asked, stream=True)
    try:
        if answer.status_code != 200:
            await answer.aread()
            try:
                json_refusal(answer)
            except AssertionError as error:
                return answer.status_code, str(error)
        elif rpc.streams:
            line = await anext(answer.aiter_lines())
            json_format.Parse(line, rpc.response())
        else:
            json_format.Parse(await answer.aread(), rpc.response())
    finally:
        await answer.aclose()
    return answer.status_code, ""


async def over_grpc(
    channel: grpc.aio.Channel, rpc: Rpc, request: Message, caller: Metadata
) -> grpc.StatusCode:
    try:
        await rpc.over_grpc(channel, request, caller)
    except grpc.aio.AioRpcError as error:
        return error.code()
    return grpc.StatusCode.OK


async def observe(scene: Scene, http: httpx.AsyncClient, channel: grpc.aio.Channel) -> Table:
    """Calls everything as everybody, in both ways."""
    table: Table = {}
    for name, rpc in RPCS.items():
        table[name] = {}
        for caller, metadata in scene.metadata.items():
            status, odd = await over_json(http, rpc, await scene.request(name), metadata)
            code = await over_grpc(channel, rpc, await scene.request(name), metadata)
            table[name][caller] = Seen(status, code, odd)
    return table


def printed(table: Table) -> str:
    """The table in Markdown: HTTP status and gRPC status of each cell."""
    rows = [("RPC", *CALLERS), ("---",) * (1 + len(CALLERS))]
    rows += [(name, *(str(row[caller]) for caller in CALLERS)) for name, row in table.items()]
    return "\n".join(f"| {' | '.join(row)} |" for row in rows)


async def test_the_table_of_who_may_call_what(
    full_scene: Scene, http: httpx.AsyncClient, channel: grpc.aio.Channel
) -> None:
    scene = full_scene
    reservations = len(await scene.alice.reservations())
    charges = len(await scene.city.provider.charges())
    table = await observe(scene, http, channel)
    print(f"\n{printed(table)}")  # noqa: T201
    wrong = [
        f"{name} by {caller}: {table[name][caller]}, not {word}"
        for name, row in expected().items()
        for caller, word in row.items()
        if table[name][caller] != Seen(*MEANS[word])
    ]
    wrong += [
        f"{name} by {caller}: {seen.odd}"
        for name, row in table.items()
        for caller, seen in row.items()
        if seen.odd
    ]
    assert not wrong, "\n".join(wrong)
    for row in table.values():
        for seen in row.values():  # the two ways agree, as google.rpc.Code says
            assert seen.http == HTTP_STATUS[seen.grpc] or seen == Seen(*MEANS["none"])
    # Who was let in was served: two reservations of each customer, and nobody else made one.
    assert len(await scene.alice.reservations()) == reservations + 2
    assert len(await scene.bob.reservations()) == 2
    assert len(await scene.city.provider.charges()) == charges + 4
    ends = {name: (await scene.alice.read(one)).state for name, one in scene.booked.items()}
    assert ends["CancelReservation"] == CANCELLED
    assert ends["read"] == PENDING_ACCEPTANCE


async def test_a_customer_lists_only_what_is_their_own(scene: Scene, http: httpx.AsyncClient) -> None:
    for path, params, listed in (
        ("/v1/reservations", {}, "reservations"),
        ("/v1/deposits", {"reservation_id": scene.booked["read"].reservation_id}, "deposits"),
    ):
        theirs = await http.get(path, params=params, headers=dict(scene.alice.metadata))
        assert theirs.json()[listed]
        others = await http.get(path, params=params, headers=dict(scene.bob.metadata))
        assert others.status_code == 200
        assert others.json()[listed] == []


@pytest.fixture
async def channel(edge: RunningEdge) -> AsyncIterator[grpc.aio.Channel]:
    """gRPC to the edge."""
    async with grpc.aio.insecure_channel(edge.address) as channel:
        yield channel


def calls_seen(mesh: RunningMesh, rpc: Rpc) -> int:
    """How many calls of a method its service has logged so far."""
    lines = mesh[rpc.service].log.read_text().splitlines()
    return sum(f'"{rpc.path}"' in line and '"message": "call"' in line for line in lines)


async def reached_only_by(mesh: RunningMesh, rpc: Rpc, before: int, city: City) -> None:
    """Nothing that was tried reached the service: of its calls, the one at its own door is the only one.

    That one comes last, so that whatever came earlier is logged by then.
    """
    with pytest.raises(grpc.aio.AioRpcError):
        await rpc.over_grpc(city.doors.channels[rpc.service], rpc.request())

    async def seen() -> int:
        return calls_seen(mesh, rpc)

    assert await until(seen, lambda count: count > before) == before + 1


CONTENT_TYPES = (
    "",
    "application/json",
    "application/json; charset=utf-8",
    "APPLICATION/JSON",
    "text/plain",
    "application/x-www-form-urlencoded",
    "application/octet-stream",
    "application/x-protobuf",
    "application/grpc",
    "application/grpc+proto",
    "application/grpc+json",
    "application/grpc;charset=utf-8",
    "application/grpc-web",
    "application/grpc-web+proto",
    "application/grpc-web+json",
    "application/grpc-web-text",
    "application/grpc-web-text+proto",
    "application/connect+json",
)


def bodies(content_type: str, request: Message) -> bytes:
    """The request as that content type would have it."""
    if "grpc" not in content_type or "+json" in content_type:
        return json_format.MessageToJson(request).encode()
    raw = request.SerializeToString()
    framed = b"\0" + len(raw).to_bytes(4, "big") + raw
    return base64.b64encode(framed) if "text" in content_type else framed


def was_refused(answer: httpx.Response) -> bool:
    """By HTTP status, or by the gRPC status in its header or in a gRPC-Web trailer frame."""
    if answer.status_code >= 400:
        return True
    if "grpc-status" in answer.headers:
        return answer.headers["grpc-status"] != "0"
    content = answer.content
    if "grpc-web-text" in answer.headers.get("content-type", ""):
        content = base64.b64decode(content)
    found = re.search(rb"grpc-status: ?(\d+)", content)
    return found is not None and found[1] != b"0"


def disguises(path: str) -> Iterator[str]:
    """Ways to write a gRPC path that a lenient server takes for the same one."""
    service, method = path[1:].split("/")
    yield path
    yield f"/{path}"
    yield f"{path}/"
    yield f"{path}?"
    yield f"{path};x=1"
    yield f"{path}%20"
    yield f"{path}%00"
    yield f"{path}#x"
    yield f"/{service}//{method}"
    yield f"/{service}%2F{method}"
    yield f"/{service}%2f{method}"
    yield f"/{service}%5C{method}"
    yield f"/{service}\\{method}"
    yield f"/./{service}/{method}"
    yield f"/x/../{service}/{method}"
    yield f"/x/%2e%2e/{service}/{method}"
    yield f"/{service}/{method.lower()}"
    yield f"/{service}/{method}:create"
    yield f"/{service.lower()}/{method}"
    yield f"/{service.upper()}/{method.upper()}"
    yield f"/%64{service[1:]}/{method}"
    yield f"/{service}/%43{method[1:]}" if method.startswith("C") else f"/{service}/%52{method[1:]}"
    yield f"/dinemesh.reservation.v1.ReservationService/{method}"
    yield f"/grpc.health.v1.Health/../{service}/{method}"
    yield f"/grpc.reflection.v1.ServerReflection/../{service}/{method}"


def guesses(scene: Scene) -> Iterator[str]:
    """HTTP forms that somebody might expect."""
    deposit_id, refund_id = scene.booked["read"].deposits[0].deposit_id, new_id()
    yield "/v1/deposits"
    yield "/v1/deposits/"
    yield "/v1//deposits"
    yield "/V1/deposits"
    yield "/v1/deposits:create"
    yield "/v1/deposits:charge"
    yield f"/v1/deposits/{deposit_id}"
    yield f"/v1/deposits/{deposit_id}:create"
    yield f"/v1/deposits/{deposit_id}:retryRefund"
    yield f"/v1/deposits/{deposit_id}:retry"
    yield f"/v1/deposits/{deposit_id}/refunds/{refund_id}:retry"
    yield f"/v1/deposits/{deposit_id}/refunds/{refund_id}"
    yield f"/v1/deposits/{deposit_id}%2Frefunds"
    yield "/v1/reservations/../deposits"
    yield "/v1/refunds"


GRPC_TYPES = ("application/grpc", "application/grpc-web+proto", "application/grpc-web-text")
NO_TOKENS: tuple[dict[str, str], ...] = (
    {},
    {"authorization": ""},
    {"authorization": "Bearer"},
    {"authorization": "Bearer null"},
    {
        "x-envoy-internal": "true",
        "x-forwarded-for": "127.0.0.1",
        "x-jwt-payload": "eyJyb2xlIjoib3BlcmF0b3IifQ",
    },
)
"""What is no token, and what some other edge would trust."""


def as_written(
    http: httpx.AsyncClient, verb: str, path: str, content_type: str, headers: dict[str, str], body: bytes
) -> httpx.Request:
    """A request whose path goes out as it stands here: the client must not tidy it up."""
    told = dict(headers) | ({"content-type": content_type} if content_type else {})
    without_body = verb in ("GET", "HEAD", "OPTIONS")
    return httpx.Request(
        verb,
        http.base_url,
        headers=told,
        content=None if without_body else body,
        extensions={"target": path.encode()},
    )


VERBS = ("GET", "POST", "PUT", "PATCH", "DELETE", "HEAD", "OPTIONS", "FOO")
SMUGGLED = (
    {"x-http-method-override": "POST"},
    {"x-original-url": "{path}", "x-rewrite-url": "{path}"},
    {"x-envoy-original-path": "{path}"},
    {"x-forwarded-uri": "{path}"},
    {"te": "trailers"},
)
"""Headers by which some proxies are told another method or path."""


async def test_a_call_in_another_dress_is_seen_to_get_through_where_it_may(
    scene: Scene, http: httpx.AsyncClient
) -> None:
    """So that "refused" below means something."""
    rpc = RPCS["GetDeposit"]
    request = await scene.request(rpc.name)
    for content_type in ("application/grpc-web", "application/grpc-web+proto", "application/grpc-web-text"):
        for who, refused in (("owner", False), ("other", True)):
            told, body = dict(scene.metadata[who]), bodies(content_type, request)
            answer = await http.send(as_written(http, "POST", rpc.path, content_type, told, body))
            assert was_refused(answer) == refused, (who, content_type, answer.headers, answer.content)


@pytest.mark.parametrize("name", INTERNAL_ONLY)
async def test_what_is_internal_cannot_be_reached_by_any_trick(
    scene: Scene, http: httpx.AsyncClient, channel: grpc.aio.Channel, mesh: RunningMesh, name: str
) -> None:
    rpc = RPCS[name]
    request = await scene.request(name)
    before, charges = calls_seen(mesh, rpc), set(await scene.city.provider.charges())
    tried, through = 0, []

    async def knock(verb: str, path: str, content_type: str, who: str, **more: str) -> None:
        nonlocal tried
        tried += 1
        headers = dict(scene.metadata[who]) | more
        answer = await http.send(
            as_written(http, verb, path, content_type, headers, bodies(content_type, request))
        )
        if not was_refused(answer):
            through.append(f"{verb} {path} as {content_type!r} by {who}: {answer.status_code} {answer.text}")

    for path in disguises(rpc.path):
        for content_type in CONTENT_TYPES:
            await knock("POST", path, content_type, "operator")
        for who in ("nobody", "owner", "service"):
            await knock("POST", path, "application/grpc-web+proto", who)
            await knock("POST", path, "application/json", who)
    for path in (rpc.path, *guesses(scene)):
        for verb in VERBS:
            await knock(verb, path, "application/json", "operator")
    for headers in SMUGGLED:
        told = {key: value.format(path=rpc.path) for key, value in headers.items()}
        for path in (rpc.path, "/v1/deposits", "/v1/reservations/x:cancel"):
            await knock("POST", path, "application/json", "operator", **told)
            await knock("POST", path, "application/grpc", "operator", **told)
    for path in disguises(rpc.path):
        if path.isascii() and path.isprintable() and not path.startswith("//"):
            for who in CALLERS:
                method: Any = channel.unary_unary(path)
                with pytest.raises(grpc.aio.AioRpcError):
                    await method(request.SerializeToString(), metadata=scene.metadata[who], timeout=5)
                tried += 1
    assert not through, "\n".join(through)
    assert tried > 500

    await reached_only_by(mesh, rpc, before, scene.city)
    assert set(await scene.city.provider.charges()) == charges


REFUSED = (grpc.StatusCode.UNAUTHENTICATED, grpc.StatusCode.UNIMPLEMENTED)
CHANGES = [rpc for rpc in RPCS.values() if rpc.verb != "GET"]


async def test_nothing_that_changes_something_gets_past_the_edge_without_a_token(
    scene: Scene, http: httpx.AsyncClient, channel: grpc.aio.Channel, mesh: RunningMesh
) -> None:
    """In no dress: the services never hear of it."""
    through = []
    requests = {rpc.name: await scene.request(rpc.name) for rpc in CHANGES}
    before = {rpc.name: calls_seen(mesh, rpc) for rpc in CHANGES}
    for rpc in CHANGES:
        request = requests[rpc.name]
        form = rpc.over_http(request)
        own = form.verb or "POST", form.path or rpc.path
        asks = [(*own, one, NO_TOKENS[0]) for one in CONTENT_TYPES]
        asks += [("POST", path, one, NO_TOKENS[0]) for path in disguises(rpc.path) for one in GRPC_TYPES]
        asks += [(*own, "application/json", one) for one in NO_TOKENS]
        asks += [("POST", rpc.path, "application/grpc", one) for one in NO_TOKENS]
        for verb, path, content_type, headers in asks:
            answer = await http.send(
                as_written(http, verb, path, content_type, headers, bodies(content_type, request))
            )
            if not was_refused(answer):
                through.append(f"{verb} {path} as {content_type!r} with {headers}: {answer.text}")
        assert await over_grpc(channel, rpc, request, ()) in REFUSED
    assert not through, "\n".join(through)
    for rpc in CHANGES:
        await reached_only_by(mesh, rpc, before[rpc.name], scene.city)
