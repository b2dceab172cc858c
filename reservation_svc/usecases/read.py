"""Reading. Goes on whatever becomes of deposit_svc."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import date, datetime, timedelta

from dinemesh.kit.refusal import Refusal
from dinemesh.kit.store import Transaction
from reservation_svc.domain import (
    Caller,
    Offer,
    Reservation,
    Restaurant,
    check_party,
    check_table,
    not_found,
)
from reservation_svc.persistence import reservations, seat_inventory
from reservation_svc.usecases.context import ReservationContext

_MICROSECOND = timedelta(microseconds=1)


async def get(ctx: ReservationContext, reservation_id: str, who: Caller) -> Reservation:
    """A reservation for its customer or the staff of its restaurant. Raises NOT_FOUND for anybody else."""
    return await ctx.store.read(lambda tx: look(tx, reservation_id, who))


def look(tx: Transaction, reservation_id: str, who: Caller) -> Reservation:
    """The same as `get`, inside a transaction."""
    found = reservations.find(tx, reservation_id)
    if found is None or who.side_in(found) is None:
        raise not_found()
    return found


async def changed(ctx: ReservationContext, reservation_id: str, who: Caller, seen: int) -> Reservation | None:
    """The reservation if it has another version than the one seen."""

    def query(tx: Transaction) -> Reservation | None:
        if seen and reservations.version(tx, reservation_id) == seen:
            return None
        return look(tx, reservation_id, who)

    return await ctx.store.read(query)


async def page(
    ctx: ReservationContext, customer_id: str, last: tuple[datetime, str] | None, size: int
) -> tuple[Sequence[Reservation], bool]:
    """Newest first, after the one named by (create_time, reservation_id); and whether there are more."""
    found = await ctx.store.read(lambda tx: reservations.page(tx, customer_id, last, size + 1))
    return found[:size], len(found) > size


@dataclass(frozen=True)
class Offers:
    """A page of offers in order of time, and the restaurant under whose present terms they stand."""

    restaurant: Restaurant
    offers: Sequence[Offer]
    has_more: bool


async def available_slots(
    ctx: ReservationContext, restaurant_id: str, day: date, party_size: int, last: datetime | None, size: int
) -> Offers:
    """The open slots of the restaurant's day that are still to come, after `last`."""

    def query(tx: Transaction) -> Offers:
        restaurant = seat_inventory.restaurant(tx, restaurant_id)
        if restaurant is None:
            raise Refusal("NOT_FOUND", "There is no such restaurant.")
        first, end = restaurant.day_bounds(day)
        after = max(tx.now, last or first - _MICROSECOND, first - _MICROSECOND)
        found = seat_inventory.open_slots(tx, restaurant_id, after, end, size + 1)
        fits = not any(check_party(restaurant.policy, party_size))
        offers = [
            Offer(
                slot.dine_time,
                fits
                and slot.can_take(party_size)
                and not any(check_table(restaurant, slot.dine_time, tx.now, ctx.rules)),
                restaurant.policy.price(party_size),
                restaurant.policy.free_cancel_time(slot.dine_time),
            )
            for slot in found[:size]
        ]
        return Offers(restaurant, offers, len(found) > size)

    return await ctx.store.read(query)
