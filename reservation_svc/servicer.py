"""The RPCs of ReservationService: a message becomes arguments, and what comes back becomes a message."""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from typing import Any, TypeAlias

import grpc

from dinemesh.kit import call, paging, wire
from dinemesh.kit.call import CUSTOMER, STAFF
from dinemesh.kit.form import Form
from dinemesh.kit.interceptors import ANYONE, Access
from dinemesh.kit.watch import Changes, End, Heartbeat, Pace, tail
from dinemesh.reservation.v1 import reservation_service_pb2 as pb
from dinemesh.reservation.v1 import reservation_service_pb2_grpc
from reservation_svc import messages
from reservation_svc.domain import FINAL, Caller, Reservation
from reservation_svc.usecases import cancel, modify, read, reserve
from reservation_svc.usecases.context import ReservationContext

SERVICE_NAME = "dinemesh.reservation.v1.ReservationService"

_CUSTOMER: Access = frozenset({CUSTOMER})
_BOTH: Access = frozenset({CUSTOMER, STAFF})
ACCESS: dict[str, Access] = {
    f"/{SERVICE_NAME}/{method}": access
    for method, access in {
        "CreateReservation": _CUSTOMER,
        "GetReservation": _BOTH,
        "ListReservations": _CUSTOMER,
        "ModifyReservation": _CUSTOMER,
        "CancelReservation": _BOTH,
        "WatchReservation": _CUSTOMER,
        "ListAvailableSlots": ANYONE,
    }.items()
}

PAGE_SIZE = 50
MAX_PAGE_SIZE = 200
SLOT_PAGE_SIZE = 200
MAX_SLOT_PAGE_SIZE = 1000

Context: TypeAlias = grpc.aio.ServicerContext[Any, Any]


class ReservationServicer(reservation_service_pb2_grpc.ReservationServiceServicer):
    """Which role may call what stands in ACCESS; whose reservation it is, the use cases check."""

    def __init__(self, ctx: ReservationContext, changes: Changes, pace: Pace) -> None:
        self._ctx = ctx
        self._changes = changes
        self._pace = pace

    async def CreateReservation(
        self, request: pb.CreateReservationRequest, context: Context
    ) -> pb.CreateReservationResponse:
        order = messages.from_create(request, call.identity().subject)
        made = await reserve.reserve(self._ctx, order)
        return pb.CreateReservationResponse(reservation=messages.to_reservation(made))

    async def GetReservation(
        self, request: pb.GetReservationRequest, context: Context
    ) -> pb.GetReservationResponse:
        reservation_id = wire.uuid_field("reservation_id", request.reservation_id)
        found = await read.get(self._ctx, reservation_id, _caller())
        return pb.GetReservationResponse(reservation=messages.to_reservation(found))

    async def ListReservations(
        self, request: pb.ListReservationsRequest, context: Context
    ) -> pb.ListReservationsResponse:
        size = paging.page_size(request.page_size, PAGE_SIZE, MAX_PAGE_SIZE)
        customer_id = call.identity().subject
        last = messages.PAGES.decode(request.page_token, customer_id)
        found, more = await read.page(self._ctx, customer_id, last, size)
        token = ""
        if more:
            place = messages.Place(found[-1].create_time, found[-1].reservation_id)
            token = messages.PAGES.encode(place, customer_id)
        return pb.ListReservationsResponse(
            reservations=[messages.to_reservation(one) for one in found], next_page_token=token
        )

    async def ModifyReservation(
        self, request: pb.ModifyReservationRequest, context: Context
    ) -> pb.ModifyReservationResponse:
        change = messages.from_modify(request, call.identity().subject)
        modified = await modify.modify(self._ctx, change)
        return pb.ModifyReservationResponse(reservation=messages.to_reservation(modified))

    async def CancelReservation(
        self, request: pb.CancelReservationRequest, context: Context
    ) -> pb.CancelReservationResponse:
        reservation_id = wire.uuid_field("reservation_id", request.reservation_id)
        ended = await cancel.cancel(self._ctx, reservation_id, _caller())
        currency = ended.reservation.policy.currency
        return pb.CancelReservationResponse(
            reservation=messages.to_reservation(ended.reservation),
            refunded=wire.to_money(ended.refunded, currency),
            forfeited=wire.to_money(ended.forfeited, currency),
        )

    async def WatchReservation(
        self, request: pb.WatchReservationRequest, context: Context
    ) -> AsyncIterator[pb.WatchReservationResponse]:
        reservation_id = wire.uuid_field("reservation_id", request.reservation_id)
        who = _caller()
        seen = 0

        async def poll() -> Sequence[Reservation]:
            nonlocal seen
            changed = await read.changed(self._ctx, reservation_id, who, seen)
            if changed is None:
                return ()
            seen = changed.version
            return (changed,)

        def is_final(found: Reservation) -> bool:
            return found.state in FINAL

        async for item in tail(poll, self._changes, reservation_id, self._pace, finished=is_final):
            match item:
                case Heartbeat():
                    yield pb.WatchReservationResponse(heartbeat=item.message())
                case End():
                    yield pb.WatchReservationResponse(end=item.message())
                case _:
                    yield pb.WatchReservationResponse(reservation=messages.to_reservation(item))

    async def ListAvailableSlots(
        self, request: pb.ListAvailableSlotsRequest, context: Context
    ) -> pb.ListAvailableSlotsResponse:
        form = Form()
        restaurant_id = form.read(wire.uuid_field, "restaurant_id", request.restaurant_id)
        day = form.read(messages.day, "date", request.date)
        party_size = form.read(wire.between, "party_size", request.party_size, 1, messages.MAX_PARTY)
        form.close()
        size = paging.page_size(request.page_size, SLOT_PAGE_SIZE, MAX_SLOT_PAGE_SIZE)
        scope = restaurant_id, day.isoformat(), party_size
        place = messages.SLOT_PAGES.decode(request.page_token, *scope)
        last = place.dine_time if place else None
        found = await read.available_slots(self._ctx, restaurant_id, day, party_size, last, size)
        currency = found.restaurant.policy.currency
        token = ""
        if found.has_more:
            token = messages.SLOT_PAGES.encode(messages.SlotPlace(found.offers[-1].dine_time), *scope)
        return pb.ListAvailableSlotsResponse(
            slots=[messages.to_slot(offer, currency) for offer in found.offers],
            next_page_token=token,
            time_zone=found.restaurant.time_zone,
            policy_etag=found.restaurant.policy.etag,
        )


def _caller() -> Caller:
    who = call.identity()
    if who.role == STAFF:
        return Caller(restaurant_id=who.restaurant_id)
    return Caller(customer_id=who.subject)
