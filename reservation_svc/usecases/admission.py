"""Who may try to charge now: the circuit breaker says whether deposit_svc is well, the bulkhead whether there
is room. Both refuse before anything is written."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Self

from dinemesh.kit.refusal import Refusal
from reservation_svc.domain import DepositOutcome, NotCharged, Unknown
from reservation_svc.usecases.bulkhead import Bulkhead, Place
from reservation_svc.usecases.circuit_breaker import BreakerState, CircuitBreaker, Thresholds, Verdict


class Admission:
    """Lets attempts to charge in, and learns from what comes of them."""

    def __init__(
        self,
        bulkhead: Bulkhead,
        *,
        thresholds: Thresholds,
        rest_seconds: float,
        longest_rest_seconds: float,
        is_healthy: Callable[[], Awaitable[bool]],
    ) -> None:
        """The breaker's times are those of `CircuitBreaker`."""
        self._bulkhead = bulkhead
        self._breaker = CircuitBreaker(
            thresholds=thresholds,
            rest_seconds=rest_seconds,
            longest_rest_seconds=longest_rest_seconds,
            is_healthy=is_healthy,
            on_open=bulkhead.turn_away,
        )

    @property
    def state(self) -> BreakerState:
        """The circuit breaker's."""
        return self._breaker.state

    @property
    def is_full(self) -> bool:
        """Whether an attempt that comes now has to wait."""
        return self._bulkhead.is_full

    def refusal(self) -> Refusal | None:
        """Why no charge is begun now, if so."""
        return self._breaker.refusal()

    async def enter(self, customer_id: str, patience: float) -> Attempt:
        """Lets an attempt in, after at most `patience` seconds. Raises TRY_AGAIN_LATER. Whoever enters has to
        leave: `with await admission.enter(...) as attempt`."""
        place = await self._bulkhead.enter(customer_id, patience)
        refusal = self._breaker.refusal()  # it may have opened meanwhile
        if refusal is not None:
            self._bulkhead.leave(place)
            raise refusal
        attempt = Attempt(self, place)
        self._breaker.begin(attempt)
        return attempt

    def leave(self, attempt: Attempt) -> None:
        """Frees the place of the attempt, and tells bulkhead and breaker what its outcome says of
        deposit_svc."""
        outcome = attempt.outcome
        if isinstance(outcome, NotCharged):
            self._bulkhead.overflowed(attempt.place)
        elif outcome is not None:
            self._bulkhead.worked()
        self._breaker.end(attempt, attempt.place.customer_id, _verdict(outcome))
        self._bulkhead.leave(attempt.place)

    async def run(self) -> None:
        """The breaker's questions. A worker: runs until cancelled."""
        await self._breaker.run()


class Attempt:
    """Somebody who came in. Sets `outcome` if it says something of deposit_svc; leaves by the end of the
    `with` block."""

    def __init__(self, admission: Admission, place: Place) -> None:
        self._admission = admission
        self.place = place
        self.outcome: DepositOutcome | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._admission.leave(self)


def _verdict(outcome: DepositOutcome | None) -> Verdict:
    match outcome:
        case None | NotCharged():
            return Verdict.NOTHING
        case Unknown(answered=answered):
            return Verdict.WELL if answered else Verdict.SICK
        case _:
            return Verdict.WELL
