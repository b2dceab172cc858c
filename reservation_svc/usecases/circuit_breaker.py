"""A circuit breaker for deposit_svc, one a pod. It judges deposit_svc alone: not a card, a caller or our own
limits."""

from __future__ import annotations

import asyncio
import time
from collections import Counter, deque
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from enum import Enum, IntEnum, auto

from dinemesh.kit import telemetry
from dinemesh.kit.refusal import Refusal


class BreakerState(IntEnum):
    """The number is what the metric shows."""

    CLOSED = 0
    HALF_OPEN = 1
    OPEN = 2


class Verdict(Enum):
    """What the end of an attempt says of deposit_svc."""

    WELL = auto()
    """It answered for itself, whatever it answered."""
    SICK = auto()
    """It could not be reached, was silent for its whole deadline, or failed by its own word."""
    NOTHING = auto()
    """The caller, the card or a limit decided."""


@dataclass(frozen=True)
class Thresholds:
    """When the breaker opens: at a failure, if deposit_svc's own health agrees; without it, at `failures` or
    more, seen by `customers` or more, and a `share` or more of what was heard of deposit_svc: the latest
    `window_calls` answers of the last `window_seconds`. What one customer sees, he alone may have caused."""

    window_seconds: float = 30.0
    window_calls: int = 20
    failures: int = 5
    customers: int = 3
    share: float = 0.5


class CircuitBreaker:
    """Closed, it lets all through and watches a window. Open, it rests, asks deposit_svc for its health until
    that is good, and then lets one attempt try; that one's verdict closes or opens it again, each time for
    longer."""

    def __init__(
        self,
        *,
        thresholds: Thresholds,
        rest_seconds: float,
        longest_rest_seconds: float,
        is_healthy: Callable[[], Awaitable[bool]],
        on_open: Callable[[Refusal], None],
    ) -> None:
        """`is_healthy` must end by itself; `on_open` is told how those are refused who wait."""
        self._thresholds = thresholds
        self._first_rest = rest_seconds
        self._longest_rest = longest_rest_seconds
        self._rest = rest_seconds
        self._is_healthy = is_healthy
        self._on_open = on_open
        self._state = BreakerState.CLOSED
        self._heard: deque[tuple[float, str, bool]] = deque()
        self._failures_of: Counter[str] = Counter()
        self._trial: object | None = None
        self._needed = asyncio.Event()
        self._rest_until = 0.0
        self._gauge = telemetry.gauge("breaker_state", "0 closed, 1 half-open, 2 open.")
        self._gauge.set(self._state)

    @property
    def state(self) -> BreakerState:
        """As the metric `breaker_state` shows it; half-open, one attempt gets through."""
        return self._state

    def refusal(self) -> Refusal | None:
        """Why nobody gets through now, if so."""
        if self._state is BreakerState.OPEN or (
            self._state is BreakerState.HALF_OPEN and self._trial is not None
        ):
            return Refusal(
                "TRY_AGAIN_LATER",
                "Deposits cannot be taken at the moment; nothing was reserved or charged.",
                retry_after=max(1.0, self._rest_until - time.monotonic()),
            )
        return None

    def begin(self, attempt: object) -> None:
        """An attempt gets through. Half-open, it is the trial."""
        if self._state is BreakerState.HALF_OPEN:
            self._trial = attempt

    def end(self, attempt: object, customer_id: str, verdict: Verdict) -> None:
        """What came of it. Every attempt that began ends."""
        was_trial = attempt is self._trial
        if was_trial:
            self._trial = None
        if verdict is Verdict.NOTHING:
            return
        if was_trial:
            if verdict is Verdict.WELL:
                self._rest = self._first_rest
                self._become(BreakerState.CLOSED)
            else:
                self._rest = min(self._rest * 2, self._longest_rest)
                self._open()
        elif self._state is BreakerState.CLOSED:
            self._hear(customer_id, failed=verdict is Verdict.SICK)

    async def run(self) -> None:
        """Asks deposit_svc for its health. A worker: runs until cancelled."""
        while True:
            # First, since a probe that failed is started again and the breaker stands open meanwhile.
            while self._state is BreakerState.OPEN:
                await asyncio.sleep(max(0.0, self._rest_until - time.monotonic()))
                if await self._is_healthy():
                    self._become(BreakerState.HALF_OPEN)
                else:
                    self._rest_until = time.monotonic() + self._rest
            await self._needed.wait()
            self._needed.clear()
            if self._state is BreakerState.CLOSED and not await self._is_healthy():
                self._open()

    def _hear(self, customer_id: str, *, failed: bool) -> None:
        now = time.monotonic()
        self._heard.append((now, customer_id, failed))
        if failed:
            self._failures_of[customer_id] += 1
        begin, most = now - self._thresholds.window_seconds, self._thresholds.window_calls
        while self._heard[0][0] < begin or len(self._heard) > most:
            _, earlier, had_failed = self._heard.popleft()
            if had_failed:
                self._failures_of[earlier] -= 1
                if not self._failures_of[earlier]:
                    del self._failures_of[earlier]
        if not failed:
            return
        failures = self._failures_of.total()
        if (
            failures >= self._thresholds.failures
            and len(self._failures_of) >= self._thresholds.customers
            and failures >= self._thresholds.share * len(self._heard)
        ):
            self._open()
        else:
            self._needed.set()

    def _open(self) -> None:
        self._rest_until = time.monotonic() + self._rest
        self._become(BreakerState.OPEN)
        self._needed.set()
        refusal = self.refusal()
        assert refusal is not None
        self._on_open(refusal)

    def _become(self, state: BreakerState) -> None:
        self._state = state
        self._gauge.set(state)
        self._heard.clear()
        self._failures_of.clear()
