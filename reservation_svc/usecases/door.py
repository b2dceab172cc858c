"""The door to new charges: a breaker per pod and a limit on attempts in flight. Refuses before anything is
written."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable
from enum import IntEnum
from typing import Self

from dinemesh.kit import telemetry
from dinemesh.kit.refusal import Refusal
from reservation_svc.domain import DepositOutcome, NotCharged, Unknown


class BreakerState(IntEnum):
    """The number is what the metric shows."""

    CLOSED = 0
    HALF_OPEN = 1
    OPEN = 2


class Door:
    """Lets attempts through while deposit_svc is well and not too many are on their way.

    Unknown and overloaded outcomes in a row open the breaker. It rests, asks deposit_svc for its health
    until that is good, and then lets one attempt try; that one's outcome closes or opens it again, each
    time for longer.
    """

    def __init__(
        self,
        *,
        threshold: int,
        limit: int,
        rest_seconds: float,
        longest_rest_seconds: float,
        is_healthy: Callable[[], Awaitable[bool]],
    ) -> None:
        """`threshold`: bad outcomes in a row; `limit`: attempts in flight; `is_healthy` must end by
        itself."""
        self._threshold = threshold
        self._limit = limit
        self._first_rest = rest_seconds
        self._longest_rest = longest_rest_seconds
        self._rest = rest_seconds
        self._is_healthy = is_healthy
        self._state = BreakerState.CLOSED
        self._bad_in_a_row = 0
        self._in_flight = 0
        self._trial: Attempt | None = None
        self._opened = asyncio.Event()
        self._rest_until = 0.0
        self._state_gauge = telemetry.gauge("breaker_state", "0 closed, 1 half-open, 2 open.")
        self._in_flight_gauge = telemetry.gauge("attempts_in_flight", "Attempts to take a deposit under way.")
        self._state_gauge.set(self._state)

    @property
    def state(self) -> BreakerState:
        return self._state

    def knock(self) -> Refusal | None:
        """Why nobody can come in now, if so."""
        if self._state is BreakerState.OPEN or (
            self._state is BreakerState.HALF_OPEN and self._trial is not None
        ):
            return Refusal(
                "TRY_AGAIN_LATER",
                "Deposits cannot be taken at the moment; nothing was reserved or charged.",
                retry_after=max(1.0, self._rest_until - time.monotonic()),
            )
        if self._in_flight >= self._limit:
            return Refusal(
                "TRY_AGAIN_LATER", "Too many reservations are being paid at once.", retry_after=1.0
            )
        return None

    def enter(self) -> Attempt:
        """Raises the refusal of `knock`. Whoever enters has to leave: `with door.enter() as attempt`."""
        refusal = self.knock()
        if refusal is not None:
            raise refusal
        attempt = Attempt(self)
        if self._state is BreakerState.HALF_OPEN:
            self._trial = attempt
        self._in_flight += 1
        self._in_flight_gauge.set(self._in_flight)
        return attempt

    def leave(self, attempt: Attempt) -> None:
        self._in_flight -= 1
        self._in_flight_gauge.set(self._in_flight)
        is_trial = attempt is self._trial
        if is_trial:
            self._trial = None
        if attempt.outcome is None:
            return
        if not isinstance(attempt.outcome, NotCharged | Unknown):
            self._bad_in_a_row = 0
            if is_trial:
                self._rest = self._first_rest
                self._become(BreakerState.CLOSED)
            return
        self._bad_in_a_row += 1
        if is_trial:
            self._rest = min(self._rest * 2, self._longest_rest)
            self._open()
        elif self._state is BreakerState.CLOSED and self._bad_in_a_row >= self._threshold:
            self._open()

    async def run(self) -> None:
        """The probe. A worker: runs until cancelled."""
        while True:
            # First, since a probe that failed is started again and the breaker stands open meanwhile.
            while self._state is BreakerState.OPEN:
                await asyncio.sleep(max(0.0, self._rest_until - time.monotonic()))
                if await self._is_healthy():
                    self._become(BreakerState.HALF_OPEN)
                else:
                    self._rest_until = time.monotonic() + self._rest
            self._opened.clear()
            await self._opened.wait()

    def _open(self) -> None:
        self._rest_until = time.monotonic() + self._rest
        self._become(BreakerState.OPEN)
        self._opened.set()

    def _become(self, state: BreakerState) -> None:
        self._state = state
        self._state_gauge.set(state)
        if state is BreakerState.CLOSED:
            self._bad_in_a_row = 0


class Attempt:
    """Somebody who came in. Sets `outcome` if deposit_svc was asked; leaves by the end of the `with`
    block."""

    def __init__(self, door: Door) -> None:
        self._door = door
        self.outcome: DepositOutcome | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._door.leave(self)
