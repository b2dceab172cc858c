"""Who may see and do what, at each service's own door."""

from __future__ import annotations

import base64
import hmac
import json
import time
from collections.abc import Callable
from typing import Any

import grpc
import jwt
import pytest
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from google.protobuf.message import Message
from jwt.algorithms import ECAlgorithm

from dinemesh.deposit.v1 import deposit_service_pb2 as deposit
from dinemesh.history.v1 import history_service_pb2 as history
from dinemesh.reservation.v1 import reservation_service_pb2 as reservation
from dinemesh.restaurant.v1 import restaurant_service_pb2 as restaurant
from tests.mesh.people import CONFIRMED, City, Place, Reservation, bearer, euros, new_id, until
from tests.support.mesh import RunningMesh
from tests.support.refusals import Refused, refused

Metadata = tuple[tuple[str, str], ...]

GUARDED: dict[str, list[tuple[str, Message]]] = {
    "reservation": [
        ("CreateReservation", reservation.CreateReservationRequest()),
        ("GetReservation", reservation.GetReservationRequest(reservation_id=new_id())),
        ("ListReservations", reservation.ListReservationsRequest()),
        ("ModifyReservation", reservation.ModifyReservationRequest()),
        ("CancelReservation", reservation.CancelReservationRequest(reservation_id=new_id())),
        ("WatchReservation", reservation.WatchReservationRequest(reservation_id=new_id())),
    ],
    "deposit": [
        ("CreateDeposit", deposit.CreateDepositRequest()),
        ("GetDeposit", deposit.GetDepositRequest(deposit_id=new_id())),
        ("ListDeposits", deposit.ListDepositsRequest()),
        ("RetryRefund", deposit.RetryRefundRequest(deposit_id=new_id(), refund_id=new_id())),
    ],
    "restaurant": [
        ("CreateRestaurant", restaurant.CreateRestaurantRequest()),
        ("UpdateRestaurant", restaurant.UpdateRestaurantRequest(restaurant_id=new_id())),
        ("OpenSlots", restaurant.OpenSlotsRequest(restaurant_id=new_id())),
        ("CloseSlots", restaurant.CloseSlotsRequest(restaurant_id=new_id())),
        ("ListBookings", restaurant.ListBookingsRequest(restaurant_id=new_id())),
        ("WatchBookings", restaurant.WatchBookingsRequest(restaurant_id=new_id())),
        ("AcceptBooking", restaurant.AcceptBookingRequest(restaurant_id=new_id())),
        ("DeclineBooking", restaurant.DeclineBookingRequest(restaurant_id=new_id())),
        ("MarkSeated", restaurant.MarkSeatedRequest(restaurant_id=new_id())),
        ("MarkNoShow", restaurant.MarkNoShowRequest(restaurant_id=new_id())),
        ("CompleteBooking", restaurant.CompleteBookingRequest(restaurant_id=new_id())),
    ],
    "history": [
        ("ListTimelineEntries", history.ListTimelineEntriesRequest()),
        ("WatchTimeline", history.WatchTimelineRequest()),
    ],
}
"""Every RPC that needs a token."""

OPEN = {"ListAvailableSlots", "ListRestaurants", "GetRestaurant"}
"""Those that anyone may call."""


def test_each_rpc_is_either_guarded_or_open() -> None:
    for name, module in (
        ("reservation", reservation),
        ("deposit", deposit),
        ("restaurant", restaurant),
        ("history", history),
    ):
        (service,) = module.DESCRIPTOR.services_by_name.values()
        listed = {rpc for rpc, _ in GUARDED[name]}
        assert listed.isdisjoint(OPEN)
        assert {method.name for method in service.methods} <= listed | OPEN


async def knock(city: City, service: str, rpc: str, request: Message, metadata: Metadata) -> Refused:
    """Calls any RPC and returns how it was refused."""

    async def call() -> object:
        made = getattr(getattr(city.doors, service), rpc)(request, metadata=metadata, timeout=5)
        if hasattr(made, "read"):
            async for _ in made:
                return "a message"
            return "an empty stream"
        return await made

    return await refused(call())


def encoded(part: dict[str, Any]) -> str:
    """A part of a token."""
    return base64.urlsafe_b64encode(json.dumps(part).encode()).rstrip(b"=").decode()


def unsigned(mesh: RunningMesh) -> str:
    """`alg: none`, with the claims of a good token."""
    claims = jwt.decode(mesh.token("mallory", "customer"), options={"verify_signature": False})
    return f"{encoded({'alg': 'none', 'typ': 'JWT', 'kid': mesh.keys.kid})}.{encoded(claims)}."


def by_another_key(mesh: RunningMesh) -> str:
    claims = jwt.decode(mesh.token("mallory", "customer"), options={"verify_signature": False})
    return jwt.encode(
        claims, ec.generate_private_key(ec.SECP256R1()), algorithm="ES256", headers={"kid": mesh.keys.kid}
    )


def with_the_public_key_as_secret(mesh: RunningMesh) -> str:
    """HS256 with what everybody knows."""
    claims = jwt.decode(mesh.token("mallory", "customer"), options={"verify_signature": False})
    # By hand: a library for honest people refuses to sign with it.
    header = encoded({"alg": "HS256", "typ": "JWT", "kid": mesh.keys.kid})
    signed = f"{header}.{encoded(claims)}"
    key = mesh.keys.private.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)
    signature = hmac.new(key, signed.encode(), "sha256").digest()
    return f"{signed}.{base64.urlsafe_b64encode(signature).rstrip(b'=').decode()}"


BAD_TOKENS: dict[str, tuple[Callable[[RunningMesh], Metadata], str]] = {
    "none": (lambda mesh: (), "TOKEN_MISSING"),
    "empty": (lambda mesh: bearer(""), "TOKEN_"),
    "another scheme": (lambda mesh: (("authorization", "Basic YWxpY2U6YWxpY2U="),), "TOKEN_"),
    "not a token": (lambda mesh: bearer("a.b.c"), "TOKEN_INVALID"),
    "expired": (lambda mesh: bearer(mesh.keys.token("alice", "customer", seconds=-120)), "TOKEN_EXPIRED"),
    "another key": (lambda mesh: bearer(by_another_key(mesh)), "TOKEN_INVALID"),
    "alg none": (lambda mesh: bearer(unsigned(mesh)), "TOKEN_INVALID"),
    "HS256": (lambda mesh: bearer(with_the_public_key_as_secret(mesh)), "TOKEN_INVALID"),
    "another issuer": (lambda mesh: bearer(mesh.keys.token("alice", "customer", iss="x")), "TOKEN_INVALID"),
    "another audience": (lambda mesh: bearer(mesh.keys.token("alice", "customer", aud="x")), "TOKEN_INVALID"),
    "no subject": (lambda mesh: bearer(mesh.keys.token("", "customer")), "TOKEN_INVALID"),
    "unknown role": (lambda mesh: bearer(mesh.keys.token("alice", "king")), ""),
}


@pytest.mark.parametrize("kind", BAD_TOKENS)
async def test_a_bad_token_is_refused_at_every_rpc_of_every_service(
    city: City, mesh: RunningMesh, kind: str
) -> None:
    make, reason = BAD_TOKENS[kind]
    metadata = make(mesh)
    for service, rpcs in GUARDED.items():
        for rpc, request in rpcs:
            said = await knock(city, service, rpc, request, metadata)
            if kind == "unknown role" and said.code == grpc.StatusCode.PERMISSION_DENIED:
                continue
            assert said.code == grpc.StatusCode.UNAUTHENTICATED, (rpc, said)
            assert said.reason.startswith(reason or "TOKEN_INVALID"), (rpc, said)
            for _, value in metadata:
                token = value.removeprefix("Bearer ")
                assert not token or token not in said.everything


async def test_what_anyone_may_read_needs_no_token(city: City) -> None:
    place = await city.place()
    listed = await city.doors.restaurant.ListRestaurants(
        restaurant.ListRestaurantsRequest(page_size=200), timeout=5
    )
    assert listed.restaurants
    await city.doors.restaurant.GetRestaurant(
        restaurant.GetRestaurantRequest(restaurant_id=place.id), timeout=5
    )
    assert await place.has_seats(0, 1)


def may(*roles: str) -> frozenset[str]:
    return frozenset(roles)


WHO: dict[str, frozenset[str]] = {
    "CreateReservation": may("customer"),
    "GetReservation": may("customer", "staff"),
    "ListReservations": may("customer"),
    "ModifyReservation": may("customer"),
    "CancelReservation": may("customer", "staff"),
    "WatchReservation": may("customer"),
    "CreateDeposit": may("service"),
    "GetDeposit": may("customer"),
    "ListDeposits": may("customer"),
    "RetryRefund": may("operator"),
    "CreateRestaurant": may("operator"),
    "UpdateRestaurant": may("operator", "staff"),
    "OpenSlots": may("operator", "staff"),
    "CloseSlots": may("operator", "staff"),
    "ListBookings": may("staff"),
    "WatchBookings": may("staff"),
    "AcceptBooking": may("staff"),
    "DeclineBooking": may("staff"),
    "MarkSeated": may("staff"),
    "MarkNoShow": may("staff"),
    "CompleteBooking": may("staff"),
    "ListTimelineEntries": may("customer"),
    "WatchTimeline": may("customer"),
}
"""The column "who" of the contract."""


@pytest.mark.parametrize("role", ["customer", "staff", "operator", "service"])
async def test_a_role_is_refused_where_it_has_no_business(city: City, mesh: RunningMesh, role: str) -> None:
    place = await city.place()
    token = mesh.token("somebody", role, place.id if role == "staff" else None)
    refused_at = []
    for service, rpcs in GUARDED.items():
        for rpc, request in rpcs:
            if role not in WHO[rpc]:
                said = await knock(city, service, rpc, request, bearer(token))
                assert (said.code, said.reason) == (
                    grpc.StatusCode.PERMISSION_DENIED,
                    "PERMISSION_DENIED",
                ), (rpc, said)
                refused_at.append(rpc)
    assert "RetryRefund" in refused_at or role == "operator"
    assert "CreateDeposit" in refused_at or role == "service"


async def test_only_reservation_itself_creates_deposits(city: City, mesh: RunningMesh) -> None:
    request = deposit.CreateDepositRequest(
        deposit_id=new_id(),
        reservation_id=new_id(),
        customer_id="alice",
        amount=euros(10),
        payment_token="tok_visa",
    )
    for sub, role in (("history", "service"), ("reservation", "customer"), ("reservation", "operator")):
        said = await knock(city, "deposit", "CreateDeposit", request, bearer(mesh.token(sub, role)))
        assert said.reason == "PERMISSION_DENIED", (sub, role)
    assert await city.provider.charge(request.deposit_id) is None


@pytest.fixture
async def booked(city: City) -> tuple[Place, Reservation]:
    place, alice = await city.place(capacity=10), city.customer()
    return place, await alice.book(place)


async def test_someone_elses_reservation_is_not_found(city: City, booked: tuple[Place, Reservation]) -> None:
    place, theirs = booked
    mallory = city.customer()
    unknown = reservation.GetReservationRequest(reservation_id=new_id())
    nothing = await knock(city, "reservation", "GetReservation", unknown, mallory.metadata)
    for rpc, request in (
        ("GetReservation", reservation.GetReservationRequest(reservation_id=theirs.reservation_id)),
        ("WatchReservation", reservation.WatchReservationRequest(reservation_id=theirs.reservation_id)),
        ("CancelReservation", reservation.CancelReservationRequest(reservation_id=theirs.reservation_id)),
        (
            "ModifyReservation",
            reservation.ModifyReservationRequest(
                reservation_id=theirs.reservation_id, request_id=new_id(), etag=theirs.etag, party_size=1
            ),
        ),
    ):
        said = await knock(city, "reservation", rpc, request, mallory.metadata)
        assert (said.code, said.reason) == (grpc.StatusCode.NOT_FOUND, "NOT_FOUND"), rpc
        # Nothing tells it from a reservation that is not there.
        assert said.message.replace(theirs.reservation_id, "") == nothing.message.replace(
            unknown.reservation_id, ""
        )
    assert await mallory.reservations() == []
    await place.sees_seats(0, 8)


async def test_someone_elses_deposit_and_timeline_are_not_found(
    city: City, booked: tuple[Place, Reservation]
) -> None:
    _, theirs = booked
    mallory = city.customer()
    said = await knock(
        city,
        "deposit",
        "GetDeposit",
        deposit.GetDepositRequest(deposit_id=theirs.deposits[0].deposit_id),
        mallory.metadata,
    )
    assert (said.code, said.reason) == (grpc.StatusCode.NOT_FOUND, "NOT_FOUND")
    assert await mallory.deposits(theirs) == []
    for rpc, request in (
        ("ListTimelineEntries", history.ListTimelineEntriesRequest(reservation_id=theirs.reservation_id)),
        ("WatchTimeline", history.WatchTimelineRequest(reservation_id=theirs.reservation_id)),
    ):
        said = await knock(city, "history", rpc, request, mallory.metadata)
        assert (said.code, said.reason) == (grpc.StatusCode.NOT_FOUND, "NOT_FOUND"), rpc
    assert await mallory.timeline() == []


async def test_staff_see_and_change_only_their_own_restaurant(
    city: City, mesh: RunningMesh, booked: tuple[Place, Reservation]
) -> None:
    place, theirs = booked
    other = await city.place()
    assert (await place.read(theirs)).state == CONFIRMED
    said = await knock(
        city,
        "reservation",
        "GetReservation",
        reservation.GetReservationRequest(reservation_id=theirs.reservation_id),
        other.metadata,
    )
    assert said.code == grpc.StatusCode.NOT_FOUND
    said = await refused(other.cancel(theirs))
    assert said.code == grpc.StatusCode.NOT_FOUND
    for rpc, request in (
        ("ListBookings", restaurant.ListBookingsRequest(restaurant_id=place.id)),
        ("WatchBookings", restaurant.WatchBookingsRequest(restaurant_id=place.id)),
        (
            "DeclineBooking",
            restaurant.DeclineBookingRequest(
                restaurant_id=place.id, reservation_id=theirs.reservation_id, revision=1
            ),
        ),
        ("UpdateRestaurant", restaurant.UpdateRestaurantRequest(restaurant_id=place.id, etag="1", name="x")),
    ):
        said = await knock(city, "restaurant", rpc, request, other.metadata)
        assert said.code in (grpc.StatusCode.PERMISSION_DENIED, grpc.StatusCode.NOT_FOUND), (rpc, said)
    nobody = bearer(mesh.keys.token("staff of none", "staff"))
    said = await knock(
        city,
        "restaurant",
        "ListBookings",
        restaurant.ListBookingsRequest(restaurant_id=place.id),
        nobody,
    )
    assert said.code in (grpc.StatusCode.PERMISSION_DENIED, grpc.StatusCode.UNAUTHENTICATED)


async def test_a_key_that_is_added_later_is_known_without_a_restart(mesh: RunningMesh, city: City) -> None:
    """The public keys are re-read when their file changes."""
    new = ec.generate_private_key(ec.SECP256R1())
    token = jwt.encode(
        {
            "iss": "dinemesh",
            "aud": "dinemesh",
            "sub": "alice",
            "role": "customer",
            "iat": int(time.time()),
            "exp": int(time.time()) + 600,
        },
        new,
        algorithm="ES256",
        headers={"kid": "new"},
    )
    request = reservation.ListReservationsRequest()
    said = await knock(city, "reservation", "ListReservations", request, bearer(token))
    assert said.reason == "TOKEN_INVALID"
    keys = json.loads(mesh.keys.jwks_file.read_text())
    public = ECAlgorithm.to_jwk(new.public_key(), as_dict=True)
    keys["keys"].append(public | {"kid": "new", "alg": "ES256", "use": "sig"})
    mesh.keys.jwks_file.write_text(json.dumps(keys))

    async def accepted() -> bool:
        try:
            await city.doors.reservation.ListReservations(request, metadata=bearer(token), timeout=5)
        except grpc.aio.AioRpcError:
            return False
        return True

    await until(accepted, bool, 15)
