"""The RPCs of RestaurantService: a message becomes arguments, and what comes back becomes a message."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import aclosing
from datetime import datetime
from typing import Any, TypeAlias

import grpc
from google.protobuf.timestamp_pb2 import Timestamp

from dinemesh.kit import call, paging, wire
from dinemesh.kit.call import OPERATOR, STAFF
from dinemesh.kit.form import Form
from dinemesh.kit.interceptors import ANYONE, Access
from dinemesh.kit.refusal import Refusal, invalid
from dinemesh.kit.watch import Changes, End, Heartbeat, Pace, tail
from dinemesh.restaurant.v1 import restaurant_service_pb2 as pb
from dinemesh.restaurant.v1 import restaurant_service_pb2_grpc
from restaurant_svc import domain, messages
from restaurant_svc.domain import Booking, BookingFilter, Cursor
from restaurant_svc.usecases import Restaurants

SERVICE_NAME = "dinemesh.restaurant.v1.RestaurantService"

_STAFF: Access = frozenset({STAFF})
_OPERATOR: Access = frozenset({OPERATOR})
ACCESS: dict[str, Access] = {
    f"/{SERVICE_NAME}/{method}": access
    for method, access in {
        "ListRestaurants": ANYONE,
        "GetRestaurant": ANYONE,
        "CreateRestaurant": _OPERATOR,
        "UpdateRestaurant": _STAFF | _OPERATOR,
        "OpenSlots": _STAFF | _OPERATOR,
        "CloseSlots": _STAFF | _OPERATOR,
        "ListBookings": _STAFF,
        "WatchBookings": _STAFF,
        "AcceptBooking": _STAFF,
        "DeclineBooking": _STAFF,
        "MarkSeated": _STAFF,
        "MarkNoShow": _STAFF,
        "CompleteBooking": _STAFF,
    }.items()
}

PAGE_SIZE = 50
MAX_PAGE_SIZE = 200
MAX_NAME = domain.MAX_NAME
MAX_STATES = 20
MAX_ETAG = 64

Context: TypeAlias = grpc.aio.ServicerContext[Any, Any]
_StaffRequest: TypeAlias = (
    pb.AcceptBookingRequest
    | pb.DeclineBookingRequest
    | pb.MarkSeatedRequest
    | pb.MarkNoShowRequest
    | pb.CompleteBookingRequest
)


class RestaurantServicer(restaurant_service_pb2_grpc.RestaurantServiceServicer):
    """Who may call what, by role, stands in ACCESS; staff are bound to their restaurant here."""

    def __init__(self, restaurants: Restaurants, changes: Changes, pace: Pace) -> None:
        self._restaurants = restaurants
        self._changes = changes
        self._pace = pace

    async def ListRestaurants(
        self, request: pb.ListRestaurantsRequest, context: Context
    ) -> pb.ListRestaurantsResponse:
        size = paging.page_size(request.page_size, PAGE_SIZE, MAX_PAGE_SIZE)
        after = messages.RESTAURANT_PAGES.decode(request.page_token)
        found = await self._restaurants.list_restaurants(after, size + 1)
        token = ""
        if len(found) > size:
            last = found[size - 1]
            token = messages.RESTAURANT_PAGES.encode(messages.RestaurantPlace(last.name, last.restaurant_id))
        return pb.ListRestaurantsResponse(
            restaurants=[messages.to_restaurant(one) for one in found[:size]], next_page_token=token
        )

    async def GetRestaurant(
        self, request: pb.GetRestaurantRequest, context: Context
    ) -> pb.GetRestaurantResponse:
        restaurant_id = wire.uuid_field("restaurant_id", request.restaurant_id)
        restaurant = await self._restaurants.get(restaurant_id)
        return pb.GetRestaurantResponse(restaurant=messages.to_restaurant(restaurant))

    async def CreateRestaurant(
        self, request: pb.CreateRestaurantRequest, context: Context
    ) -> pb.CreateRestaurantResponse:
        form = Form()
        request_id = form.read(wire.uuid_field, "request_id", request.request_id)
        name = form.read(wire.text, "name", request.name, MAX_NAME)
        time_zone = form.read(wire.required, "time_zone", request.time_zone)
        policy = form.read(_policy, request)
        form.close()
        restaurant = await self._restaurants.create(
            call.identity().subject, request_id, name, time_zone, policy
        )
        return pb.CreateRestaurantResponse(restaurant=messages.to_restaurant(restaurant))

    async def UpdateRestaurant(
        self, request: pb.UpdateRestaurantRequest, context: Context
    ) -> pb.UpdateRestaurantResponse:
        restaurant_id = _own_restaurant(request.restaurant_id)
        form = Form()
        etag = form.read(wire.text, "etag", request.etag, MAX_ETAG)
        name = form.read(wire.text, "name", request.name, MAX_NAME) if request.HasField("name") else None
        policy = form.read(_policy, request) if request.HasField("policy") else None
        if not request.HasField("name") and not request.HasField("policy"):
            form.wrong("name", "name or policy is required")
        form.close()
        restaurant = await self._restaurants.update(restaurant_id, etag, name, policy)
        return pb.UpdateRestaurantResponse(restaurant=messages.to_restaurant(restaurant))

    async def OpenSlots(self, request: pb.OpenSlotsRequest, context: Context) -> pb.OpenSlotsResponse:
        restaurant_id = _own_restaurant(request.restaurant_id)
        form = Form()
        span = form.read(messages.from_opening, request)
        capacity = form.read(wire.between, "capacity", request.capacity, 1, domain.MAX_CAPACITY)
        form.close()
        slots = await self._restaurants.open_slots(restaurant_id, span, capacity)
        return pb.OpenSlotsResponse(slots=[messages.to_slot(one) for one in slots])

    async def CloseSlots(self, request: pb.CloseSlotsRequest, context: Context) -> pb.CloseSlotsResponse:
        restaurant_id = _own_restaurant(request.restaurant_id)
        slots = await self._restaurants.close_slots(restaurant_id, messages.from_closing(request))
        return pb.CloseSlotsResponse(slots=[messages.to_slot(one) for one in slots])

    async def ListBookings(
        self, request: pb.ListBookingsRequest, context: Context
    ) -> pb.ListBookingsResponse:
        restaurant_id = _own_restaurant(request.restaurant_id)
        form = Form()
        start, end = form.read(_time, request, "start_time"), form.read(_time, request, "end_time")
        states = form.read(_states, request)
        size = form.read(paging.page_size, request.page_size, PAGE_SIZE, MAX_PAGE_SIZE)
        if start is not None and end is not None and end <= start:
            form.wrong("end_time", "must be after start_time")
        form.close()
        which = BookingFilter(restaurant_id, start, end, states)
        scope = messages.scope_of(which)
        after = messages.BOOKING_PAGES.decode(request.page_token, *scope)
        found = await self._restaurants.list_bookings(which, after, size + 1)
        token = ""
        if len(found) > size:
            last = found[size - 1]
            place = messages.BookingPlace(last.terms.dine_time, last.reservation_id)
            token = messages.BOOKING_PAGES.encode(place, *scope)
        return pb.ListBookingsResponse(
            bookings=[messages.to_booking(one) for one in found[:size]], next_page_token=token
        )

    async def WatchBookings(
        self, request: pb.WatchBookingsRequest, context: Context
    ) -> AsyncIterator[pb.WatchBookingsResponse]:
        restaurant_id = _own_restaurant(request.restaurant_id)
        cursor = messages.WATCH.decode(request.resume_token, restaurant_id)
        feed = await self._restaurants.watch(restaurant_id, cursor)
        async with aclosing(tail(feed.poll, self._changes, restaurant_id, self._pace)) as items:
            async for item in items:
                yield _watched(item, restaurant_id)

    async def AcceptBooking(
        self, request: pb.AcceptBookingRequest, context: Context
    ) -> pb.AcceptBookingResponse:
        booking = await self._restaurants.accept(*_staff_call(request))
        return pb.AcceptBookingResponse(booking=messages.to_booking(booking))

    async def DeclineBooking(
        self, request: pb.DeclineBookingRequest, context: Context
    ) -> pb.DeclineBookingResponse:
        booking = await self._restaurants.decline(*_staff_call(request))
        return pb.DeclineBookingResponse(booking=messages.to_booking(booking))

    async def MarkSeated(self, request: pb.MarkSeatedRequest, context: Context) -> pb.MarkSeatedResponse:
        booking = await self._restaurants.seat(*_staff_call(request))
        return pb.MarkSeatedResponse(booking=messages.to_booking(booking))

    async def MarkNoShow(self, request: pb.MarkNoShowRequest, context: Context) -> pb.MarkNoShowResponse:
        booking = await self._restaurants.mark_no_show(*_staff_call(request))
        return pb.MarkNoShowResponse(booking=messages.to_booking(booking))

    async def CompleteBooking(
        self, request: pb.CompleteBookingRequest, context: Context
    ) -> pb.CompleteBookingResponse:
        booking = await self._restaurants.complete(*_staff_call(request))
        return pb.CompleteBookingResponse(booking=messages.to_booking(booking))


def _watched(item: tuple[Booking, Cursor] | Heartbeat | End, restaurant_id: str) -> pb.WatchBookingsResponse:
    match item:
        case Heartbeat():
            return pb.WatchBookingsResponse(heartbeat=item.message())
        case End():
            return pb.WatchBookingsResponse(end=item.message())
        case (booking, cursor):
            token = messages.WATCH.encode(cursor, restaurant_id)
            return pb.WatchBookingsResponse(booking=messages.to_booking(booking), resume_token=token)


def _own_restaurant(value: str) -> str:
    """The restaurant that a call speaks of; staff may speak of theirs only."""
    restaurant_id = wire.uuid_field("restaurant_id", value)
    caller = call.identity()
    if caller.role == STAFF and caller.restaurant_id != restaurant_id:
        raise Refusal("PERMISSION_DENIED", "The token is for staff of another restaurant.")
    return restaurant_id


def _staff_call(request: _StaffRequest) -> tuple[str, str, int]:
    """(restaurant_id, reservation_id, revision)"""
    restaurant_id = _own_restaurant(request.restaurant_id)
    form = Form()
    reservation_id = form.read(wire.uuid_field, "reservation_id", request.reservation_id)
    if request.revision < 1:
        form.wrong("revision", "must be 1 or more")
    form.close()
    return restaurant_id, reservation_id, request.revision


def _states(request: pb.ListBookingsRequest) -> frozenset[domain.BookingState]:
    if len(request.states) > MAX_STATES:
        raise invalid("states", f"must have at most {MAX_STATES} entries")
    form = Form()
    states = frozenset(
        form.read(messages.from_booking_state, state, f"states[{number}]")
        for number, state in enumerate(request.states)
    )
    form.close()
    return states


def _policy(request: pb.CreateRestaurantRequest | pb.UpdateRestaurantRequest) -> domain.Policy:
    wire.present(request, "policy")
    return messages.from_policy(request.policy, "policy")


def _time(request: pb.ListBookingsRequest, field: str) -> datetime | None:
    value: Timestamp = getattr(request, field)
    return wire.from_timestamp(value, field) if request.HasField(field) else None  # type: ignore[arg-type]
