"""What a use case needs: the store, the outbox, the way to deposit_svc; and how a transition is recorded."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from functools import partial
from typing import Protocol, TypeVar, cast

from tenacity import AsyncRetrying, retry_if_exception, stop_after_delay, wait_exponential

from dinemesh.kit import crash
from dinemesh.kit.outbox import Outbox
from dinemesh.kit.refusal import Refusal
from dinemesh.kit.store import CommitInDoubt, Store, StoreUnavailable, Transaction
from dinemesh.kit.workers import Background
from reservation_svc.domain import (
    Charge,
    DepositOutcome,
    Move,
    Reservation,
    ReservationEvent,
    Restaurant,
    Rules,
    Slot,
)
from reservation_svc.persistence import reservations, seat_inventory
from reservation_svc.usecases.admission import Admission
from reservation_svc.usecases.clock import Clock

T = TypeVar("T")

# Another process got in between this often in a row: then something else is wrong.
_TRIES = 8
# A database that is away for a moment is back by then; nobody is to wait for one that is down.
_RECORD_WAIT_SECONDS = 1.0


class Deposits(Protocol):
    """The way to deposit_svc."""

    async def create(self, charge: Charge, timeout: float) -> DepositOutcome:
        """Asks once. Answers within `timeout` seconds and never raises: what is not known is Unknown."""


@dataclass(frozen=True)
class Limits:
    """Times of one attempt, in seconds."""

    deposit_deadline: float
    """Longest wait for deposit_svc."""
    least: float
    """A caller who has less left than this is refused before anything is begun."""
    margin: float
    """Kept back of the caller's time, to write the outcome down and answer."""
    retry_after: float
    """When to come back after an attempt that failed by overload or unknown outcome."""
    record: float
    """How long the outcome of an attempt is tried to be written down if the database is away."""
    queue: float
    """Longest wait for a place to charge."""


@dataclass(frozen=True)
class ReservationContext:
    """What the use cases of one process share."""

    store: Store
    outbox: Outbox
    deposits: Deposits
    admission: Admission
    background: Background
    rules: Rules
    limits: Limits
    tell: Callable[[str], None]
    """Called with a reservation_id after a commit that changed it: wakes those who watch it here."""
    clock: Clock = field(default_factory=Clock)
    """How far the database's clock is trusted."""

    def apply_move(self, tx: Transaction, before: Reservation, move: Move) -> bool:
        """Seats, reservation and event, all in this transaction. False, and nothing written, if somebody
        else moved the reservation meanwhile. Refuses with SLOT_UNAVAILABLE before anything is written."""
        after = move.after
        had, wants = before.seats, after.seats
        taken: dict[datetime, int] = {}
        for dine_time, seats in wants.items():
            if (more := seats - had.get(dine_time, 0)) > 0:
                if not seat_inventory.hold(tx, after.restaurant_id, dine_time, more):
                    raise no_seats()
                taken[dine_time] = more
        if not reservations.save(tx, before, after, self.rules):
            for dine_time, more in taken.items():
                seat_inventory.release(tx, after.restaurant_id, dine_time, more)
            return False
        for dine_time, seats in had.items():
            if (less := seats - wants.get(dine_time, 0)) > 0:
                seat_inventory.release(tx, after.restaurant_id, dine_time, less)
        if __debug__:
            crash.point("reservation.moved", move.event or after.state)
        closed = move.closed_modification
        if closed is not None:
            reservations.close(tx, closed)
        if move.event is not None:
            failure = closed.failure if closed is not None else None
            self.outbox.add(tx, ReservationEvent(move.event, after, before.terms, failure))
        tx.after_commit(partial(self.tell, after.reservation_id))
        return True

    def transition(
        self,
        tx: Transaction,
        reservation_id: str,
        decide: Callable[[Reservation], Sequence[Move]],
        seen: Reservation | None = None,
    ) -> Reservation | None:
        """Moves a reservation as `decide` says, deciding again when somebody else was faster. `seen` saves
        the first read. Answers with the reservation as it then stands; None if there is none."""
        for _ in range(_TRIES):
            current = seen if seen is not None else reservations.find(tx, reservation_id)
            seen = None
            if current is None:
                return None
            moves = decide(current)
            for move in moves:
                if not self.apply_move(tx, current, move):
                    break
                current = move.after
            else:
                return current
        raise Refusal("TRY_AGAIN_LATER", "The reservation is being changed by many at once.", retry_after=1.0)

    async def write_durably(self, change: Callable[[Transaction], T], *, goes_on: bool = False) -> T:
        """Writes what has happened already and cannot be taken back. `change` must be harmless when it is
        done twice: it runs again after a commit in doubt and while the database is away or busy. A caller
        hears after a second that it is not known; with `goes_on` it is still tried without one, up to
        `limits.record` seconds."""
        try:
            return await self.store.write(change)
        except (CommitInDoubt, StoreUnavailable, Refusal) as error:
            if not _passes(error):
                raise
        again = AsyncRetrying(
            retry=retry_if_exception(_passes),
            wait=wait_exponential(multiplier=0.05, max=1),
            stop=stop_after_delay(self.limits.record),
            reraise=True,
        )

        async def try_again() -> T:
            return cast(T, await again(self.store.write, change))

        trying = self.background.start(try_again(), "what happened to an attempt")
        await asyncio.wait((trying,), timeout=_RECORD_WAIT_SECONDS)
        if not trying.done():
            if not goes_on:
                trying.cancel()
            raise self._not_recorded()
        try:
            return trying.result()
        except (CommitInDoubt, StoreUnavailable, Refusal) as error:
            if not _passes(error):
                raise
            raise self._not_recorded() from error

    def _not_recorded(self) -> Refusal:
        return Refusal(
            "OUTCOME_UNKNOWN",
            "The outcome could not be recorded yet; repeat with the same request_id.",
            retry_after=self.limits.retry_after,
        )


def _passes(error: BaseException) -> bool:
    busy = isinstance(error, Refusal) and error.reason == "TRY_AGAIN_LATER"
    return busy or isinstance(error, CommitInDoubt | StoreUnavailable)


def no_seats() -> Refusal:
    """SLOT_UNAVAILABLE: fewer seats are left than the party needs."""
    return Refusal("SLOT_UNAVAILABLE", "There are not enough seats left at this time.")


def check_slot(
    tx: Transaction, restaurant: Restaurant, slot: Slot | None, dine_time: datetime, more: int
) -> None:
    """Refuses what cannot be sold. The conditional update that follows decides; this one knows the reason."""
    if slot is not None and slot.capacity > 0:
        if not slot.can_take(more):
            raise no_seats()
        return
    first, end = restaurant.day_bounds(restaurant.local_day(dine_time))
    if seat_inventory.is_open_between(tx, restaurant.restaurant_id, first, end):
        raise Refusal("SLOT_UNAVAILABLE", "The restaurant has no table at this time.")
    raise Refusal("RESTAURANT_CLOSED", "The restaurant is closed on that day.")
