"""A bulkhead before deposit_svc: so many charges at once, a bounded queue, and a share for each customer."""

from __future__ import annotations

import asyncio
import time
from collections import Counter, OrderedDict, deque

from dinemesh.kit import telemetry
from dinemesh.kit.refusal import Refusal

# Additive increase, multiplicative decrease, as TCP does it (RFC 5681): fast enough to be back within some
# seconds of full load, slow enough not to run into the same limit with every round.
_GROWTH = 4.0
_SHRINKAGE = 0.8
_RETRY_AFTER_SECONDS = 2.0


class Bulkhead:
    """Hands out places for charges.

    Beyond the places a bounded queue waits. Customers take turns in it, whatever each of them sent, and no
    customer has more than a few attempts inside and in the queue together. When deposit_svc or its proxy
    says "too many", there are fewer places for a while: several pods share what deposit_svc can take.
    """

    def __init__(self, *, places: int, queue_limit: int, per_customer: int) -> None:
        """`places`: charges at once at most; `queue_limit`: attempts that may wait for a place;
        `per_customer`: attempts of one customer, waiting or not."""
        self._most = places
        self._places = float(places)
        self._queue_limit = queue_limit
        self._per_customer = per_customer
        self._inside = 0
        self._of: Counter[str] = Counter()
        self._queue: OrderedDict[str, deque[asyncio.Future[None]]] = OrderedDict()
        self._waiting = 0
        self._shrunk_at = 0.0
        self._inside_gauge = telemetry.gauge("attempts_in_flight", "Attempts to take a deposit under way.")
        self._waiting_gauge = telemetry.gauge("attempts_waiting", "Attempts that wait for a place to charge.")

    @property
    def waiting(self) -> int:
        """Attempts that wait for a place."""
        return self._waiting

    @property
    def is_full(self) -> bool:
        """Whether somebody who comes now has to wait."""
        return self._waiting > 0 or self._inside >= int(self._places)

    async def enter(self, customer_id: str, patience: float) -> Place:
        """A place, after at most `patience` seconds. Raises TRY_AGAIN_LATER if there is none."""
        if self._of[customer_id] >= self._per_customer:
            raise Refusal(
                "TRY_AGAIN_LATER",
                f"{self._per_customer} reservations of yours are being paid at once; nothing was begun.",
                retry_after=_RETRY_AFTER_SECONDS,
            )
        if self.is_full and self._waiting >= self._queue_limit:
            raise _full()
        self._of[customer_id] += 1
        try:
            if self.is_full:
                await self._wait(customer_id, patience)
            else:
                self._inside += 1
        except BaseException:
            self._forget(customer_id)
            raise
        self._show()
        return Place(customer_id, time.monotonic())

    def leave(self, place: Place) -> None:
        """Gives the place to whoever is next."""
        self._inside -= 1
        self._forget(place.customer_id)
        self._hand_out()

    def worked(self) -> None:
        """A charge was taken on: there may be room for more."""
        self._places = min(float(self._most), self._places + _GROWTH / self._places)

    def overflowed(self, place: Place) -> None:
        """A charge was turned away for overload. Those that were sent beside it say nothing new."""
        if place.entered >= self._shrunk_at:
            self._places = max(1.0, self._places * _SHRINKAGE)
            self._shrunk_at = time.monotonic()

    def turn_away(self, refusal: Refusal) -> None:
        """Refuses all who wait."""
        for waiters in self._queue.values():
            for waiter in waiters:
                if not waiter.done():
                    waiter.set_exception(refusal)
        self._queue.clear()
        self._waiting = 0
        self._show()

    async def _wait(self, customer_id: str, patience: float) -> None:
        waiter: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._queue.setdefault(customer_id, deque()).append(waiter)
        self._waiting += 1
        self._show()
        try:
            async with asyncio.timeout(patience):
                await waiter
        except BaseException as error:
            self._give_up(customer_id, waiter)
            if isinstance(error, TimeoutError):
                raise _full() from None
            raise

    def _give_up(self, customer_id: str, waiter: asyncio.Future[None]) -> None:
        if not waiter.cancelled():
            if waiter.exception() is None:  # the place came in the moment in which we gave up
                self._inside -= 1
                self._hand_out()
            return
        waiters = self._queue.get(customer_id, deque())
        if waiter in waiters:  # else it was passed over already
            waiters.remove(waiter)
            self._waiting -= 1
            if not waiters:
                del self._queue[customer_id]

    def _hand_out(self) -> None:
        while self._queue and self._inside < int(self._places):
            customer_id, waiters = self._queue.popitem(last=False)
            waiter = waiters.popleft()
            if waiters:
                self._queue[customer_id] = waiters  # at the end: the others come first
            self._waiting -= 1
            if not waiter.done():  # a timeout cancels it before whoever waits is told
                self._inside += 1
                waiter.set_result(None)
        self._show()

    def _forget(self, customer_id: str) -> None:
        self._of[customer_id] -= 1
        if not self._of[customer_id]:
            del self._of[customer_id]

    def _show(self) -> None:
        self._inside_gauge.set(self._inside)
        self._waiting_gauge.set(self._waiting)


class Place:
    """One attempt on its way to deposit_svc; `entered` is when it came in, by the monotonic clock."""

    __slots__ = ("customer_id", "entered")

    def __init__(self, customer_id: str, entered: float) -> None:
        self.customer_id = customer_id
        self.entered = entered


def _full() -> Refusal:
    return Refusal(
        "TRY_AGAIN_LATER",
        "Too many reservations are being paid at once; nothing was begun.",
        retry_after=_RETRY_AFTER_SECONDS,
    )
