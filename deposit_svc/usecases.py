"""What deposit does: charge under a durable intent, obey reservation's instructions, settle what is open.

Transactions are opened here; no call to the provider is made inside one.
"""

from __future__ import annotations

import asyncio
import logging
from collections import Counter
from collections.abc import Awaitable, Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from typing import TypeVar

from tenacity import AsyncRetrying, retry_if_exception_type, stop_after_attempt, wait_random_exponential

from deposit_svc import domain, persistence
from deposit_svc.domain import Applied, Deposit, Instruction, Order, State, Step, VoidOrder
from deposit_svc.persistence import Backlog, Cause, Open, OpenCharge, OpenRefund
from deposit_svc.provider import Charged, ChargeOutcome, Declined, OutcomeUnknown, Provider, Returned
from dinemesh.kit import crash, telemetry
from dinemesh.kit.call import Call, current, time_left, working_on
from dinemesh.kit.outbox import Outbox
from dinemesh.kit.refusal import Refusal
from dinemesh.kit.store import CommitInDoubt, Store, StoreUnavailable, Transaction
from dinemesh.kit.workers import Background

log = logging.getLogger(__name__)

T = TypeVar("T")

# Less than this, and not even a quick charge between two commits would be answered in time.
SHORTEST_CHARGE_SECONDS = 0.1
# Kept from the caller's time for the answer DEPOSIT_IN_DOUBT, which says more than a deadline that passed.
ANSWER_MARGIN_SECONDS = 0.1
# A guarded update that lost to others so often gives up; on SQLite it cannot lose at all.
MOVE_ATTEMPTS = 5
# One batch of settling: all of it is at the provider at once, so that a silent one costs one time limit.
SETTLE_BATCH = 32
# Calls of one settling try to the provider; the next comes after a pause of 1 s, doubled up to a minute.
PROVIDER_ATTEMPTS = 3
PROVIDER_RETRY_MAX_SECONDS = 0.5
LONGEST_PAUSE_SECONDS = 60.0

CHARGES_UNDER_WAY = telemetry.gauge("charges_under_way", "Charges that wait for the provider's answer.")
CHARGES_UNDECIDED = telemetry.gauge("charges_undecided", "Deposits whose charge is not decided.")
REFUNDS_PENDING = telemetry.gauge("refunds_pending", "Refunds that the provider has not answered.")
REFUNDS_FAILED = telemetry.gauge("refunds_failed", "Refunds refused for good that wait for an operator.")
LONGEST_UNDECIDED = telemetry.gauge(
    "charges_undecided_longest_seconds", "How long the oldest undecided charge has stood as it does."
)
LONGEST_PENDING = telemetry.gauge(
    "refunds_pending_longest_seconds", "How long the oldest pending refund has stood as it does."
)


@dataclass(frozen=True)
class Limits:
    """The numbers of deposit; their reasons stand at the settings of the same names."""

    charges_in_flight: int
    charge_timeout_seconds: float
    pending_settle_seconds: float
    settle_lease_seconds: float


class Deposits:
    """The use cases of deposit."""

    def __init__(
        self,
        store: Store,
        outbox: Outbox,
        provider: Provider,
        background: Background,
        limits: Limits,
    ) -> None:
        self._store = store
        self._outbox = outbox
        self._provider = provider
        self._background = background
        self._limits = limits
        self._under_way: Counter[str] = Counter()
        self._wake_settling: Callable[[], None] = lambda: None

    def on_open(self, wake: Callable[[], None]) -> None:
        """`wake` is told after a commit that left something for settling."""
        self._wake_settling = wake

    # CreateDeposit

    async def create(self, order: Order, payment_token: str) -> Deposit:
        """Charges once under the deposit's id. Whatever cannot be known at the end is DEPOSIT_IN_DOUBT.

        Two transactions: the intent before the charge, its outcome after it. A caller that goes away before
        the charge is not charged; afterwards the outcome is recorded without it.
        """
        left = time_left()
        if left is not None and left < SHORTEST_CHARGE_SECONDS:
            raise domain.deadline_too_short()
        if self._under_way.total() >= self._limits.charges_in_flight:
            await self._shed(order.deposit_id)
        self._begin(order.deposit_id)
        try:
            deposit, is_new = await self._intend(order)
        except BaseException:
            self._end(order.deposit_id)
            raise
        if not is_new:
            self._end(order.deposit_id)
            return order.repeated(deposit)
        if __debug__:
            crash.point("charge.intended")
        return await self._background.finish(self._charge(deposit, payment_token), "charge")

    async def _shed(self, deposit_id: str, own_calls: int = 0) -> None:
        """DEPOSIT_OVERLOADED says that nothing was charged, so it is said only of an id that nobody knows."""
        known = self._under_way[deposit_id] > own_calls or await self._store.read(
            lambda tx: persistence.known(tx, deposit_id)
        )
        if not known:
            if __debug__:
                crash.point("charge.shed")
            raise domain.overloaded()

    async def _intend(self, order: Order) -> tuple[Deposit, bool]:
        try:
            return await self._store.write(lambda tx: self._record_intent(tx, order), shed=True)
        except Refusal as refusal:  # the store's own: too much waits for the writer, nothing was written
            await self._shed(order.deposit_id, own_calls=1)
            raise domain.in_doubt() from refusal
        except CommitInDoubt as error:
            raise domain.in_doubt() from error

    def _record_intent(self, tx: Transaction, order: Order) -> tuple[Deposit, bool]:
        intent = order.intent(tx.now)
        settle_time = tx.now + timedelta(seconds=self._limits.pending_settle_seconds)
        if persistence.add(tx, intent, settle_time):
            return intent, True
        known = persistence.find(tx, order.deposit_id)
        assert known is not None  # deposits are never deleted
        return known, False

    async def _charge(self, intent: Deposit, payment_token: str) -> Deposit:
        """The one charge of this deposit, and its outcome on record."""
        deposit: Deposit | None = None
        try:
            outcome = await self._ask(intent, payment_token)
            deposit = await self._store.write(
                lambda tx: (
                    self._record_charge(tx, intent.deposit_id, outcome, intent)
                    if outcome
                    else self._leave_to_settling(tx, intent.deposit_id)
                )
            )
        except (CommitInDoubt, StoreUnavailable, Refusal) as error:
            log.error("a charge is not on record yet: %r", error, extra={"deposit_id": intent.deposit_id})
        finally:
            self._end(intent.deposit_id)
        if __debug__:
            crash.point("charge.recorded", deposit.state.value if deposit else "IN_DOUBT")
        if deposit is None:
            raise domain.in_doubt()
        return deposit.answer()

    async def _ask(self, intent: Deposit, payment_token: str) -> ChargeOutcome | None:
        left = time_left()
        timeout = self._limits.charge_timeout_seconds
        if left is not None:
            timeout = min(timeout, max(left - ANSWER_MARGIN_SECONDS, 0.0))
        if __debug__:
            crash.point("provider.charge.before")
        try:
            outcome = await self._provider.charge(intent.deposit_id, intent.amount, payment_token, timeout)
        except OutcomeUnknown as error:
            log.warning("a charge is in doubt: %s", error, extra={"deposit_id": intent.deposit_id})
            return None
        if __debug__:
            crash.point("provider.charge.after", type(outcome).__name__)
        return outcome

    def _leave_to_settling(self, tx: Transaction, deposit_id: str) -> None:
        """The attempt has ended, so there is nothing to wait for."""
        persistence.settle_now(tx, deposit_id)
        tx.after_commit(self._wake_settling)

    def _begin(self, deposit_id: str) -> None:
        self._under_way[deposit_id] += 1
        CHARGES_UNDER_WAY.set(self._under_way.total())

    def _end(self, deposit_id: str) -> None:
        self._under_way[deposit_id] -= 1
        if not self._under_way[deposit_id]:
            del self._under_way[deposit_id]
        CHARGES_UNDER_WAY.set(self._under_way.total())

    # Reading

    async def get(self, deposit_id: str, customer_id: str) -> Deposit:
        """The customer's own deposit; someone else's is not found."""
        deposit = await self._store.read(lambda tx: persistence.find(tx, deposit_id))
        if deposit is None or deposit.customer_id != customer_id:
            raise domain.deposit_not_found()
        return deposit

    async def list(
        self, customer_id: str, reservation_id: str, before: tuple[datetime, str] | None, limit: int
    ) -> Sequence[Deposit]:
        """The customer's own deposits, newest first."""
        return await self._store.read(
            lambda tx: persistence.of_customer(tx, customer_id, reservation_id, before, limit)
        )

    # Money instructions, in the transaction of the event that brought them

    def obey(
        self, tx: Transaction, instructions: Sequence[Instruction], customer_id: str, reservation_id: str
    ) -> None:
        """Applies each instruction that was not heard before; the provider is called later, by settling."""
        for instruction in instructions:
            if not persistence.record(tx, instruction):
                continue
            if isinstance(instruction, VoidOrder):
                unseen = domain.tombstone(instruction.deposit_id, customer_id, reservation_id, tx.now)
                if persistence.add(tx, unseen, settle_time=None):
                    if __debug__:
                        crash.point("void.unseen")
                    persistence.note(tx, instruction, Applied.APPLIED)
                    self._outbox.add(tx, domain.DepositVoided(unseen))
                    continue
            self._apply(tx, instruction)

    def _apply(self, tx: Transaction, instruction: Instruction) -> None:
        applied = Applied.WAITING

        def decide(deposit: Deposit) -> Step | None:
            nonlocal applied
            applied, step = domain.apply(instruction, deposit, tx.now)
            return step

        self._move(tx, instruction.deposit_id, decide)
        persistence.note(tx, instruction, applied)
        if __debug__:
            crash.point("instruction.noted", f"{type(instruction).__name__} {applied.value}")
        if applied is not Applied.APPLIED:
            log.info(
                "a money instruction moved nothing",
                extra={
                    "instruction": type(instruction).__name__,
                    "instruction_id": instruction.instruction_id,
                    "deposit_id": instruction.deposit_id,
                    "became": applied.value,
                },
            )

    # RetryRefund

    async def retry_refund(self, deposit_id: str, refund_id: str) -> Deposit:
        """Lets settling try a refund again that was refused for good."""

        def change(tx: Transaction) -> Deposit:
            deposit = self._move(tx, deposit_id, lambda known: known.retry_refund(refund_id, tx.now))
            if deposit is None:
                raise domain.deposit_not_found()
            return deposit

        ordered = await self._store.write(change)
        if __debug__:
            crash.point("retry_refund.ordered")
        return ordered

    # Settling

    async def settle(self) -> None:
        """Brings on all that is due: charges without an outcome, voids, refunds, instructions that waited."""
        while True:
            ready, due, backlog = await self._store.read(_open)
            CHARGES_UNDECIDED.set(backlog.undecided)
            REFUNDS_PENDING.set(backlog.pending)
            REFUNDS_FAILED.set(backlog.failed)
            LONGEST_UNDECIDED.set(backlog.longest_undecided.total_seconds())
            LONGEST_PENDING.set(backlog.longest_pending.total_seconds())
            if not ready and not due:
                return
            await self._settle_batch(ready, due)

    async def _settle_batch(self, ready: Sequence[tuple[Instruction, Cause]], due: Sequence[Open]) -> None:
        lease = timedelta(seconds=self._limits.settle_lease_seconds)

        def claim(tx: Transaction) -> list[Open]:
            for instruction, cause in ready:
                if persistence.take_waiting(tx, instruction):
                    with _on_behalf_of(cause):
                        self._apply(tx, instruction)
            return [one for one in due if persistence.claim(tx, one, lease)]

        claimed = await self._store.write(claim)
        if __debug__:
            crash.point("settle.claimed")
        results = await asyncio.gather(*map(self._settle_one, claimed), return_exceptions=True)
        for result in results:
            if isinstance(result, BaseException):
                raise result

    async def _settle_one(self, one: Open) -> None:
        with _on_behalf_of(one.cause):
            try:
                if isinstance(one, OpenCharge):
                    await self._settle_charge(one)
                else:
                    await self._settle_refund(one)
            except OutcomeUnknown as error:
                pause = timedelta(seconds=min(2.0 ** min(one.tries, 10), LONGEST_PAUSE_SECONDS))
                log.warning(
                    "still open, next try in %s: %s", pause, error, extra={"deposit_id": one.deposit_id}
                )
                await self._store.write(lambda tx: persistence.postpone(tx, one, pause))

    async def _settle_charge(self, one: OpenCharge) -> None:
        """A charge that may still come is looked for first; one that must not come is closed at once."""
        outcome: ChargeOutcome | None = None
        if one.state is State.PENDING:
            if __debug__:
                crash.point("provider.find.before")
            outcome = await _patiently(lambda: self._provider.find(one.deposit_id))
            if __debug__:
                crash.point("provider.find.after", type(outcome).__name__)
        if outcome is None:
            if __debug__:
                crash.point("provider.close.before")
            outcome = await _patiently(lambda: self._provider.close(one.deposit_id))
            if __debug__:
                crash.point("provider.close.after", type(outcome).__name__)
        settled = outcome
        await self._store.write(lambda tx: self._record_charge(tx, one.deposit_id, settled))

    async def _settle_refund(self, one: OpenRefund) -> None:
        refund = one.refund
        if __debug__:
            crash.point("provider.refund.before", f"attempt {refund.attempt}")
        outcome = await _patiently(
            lambda: self._provider.refund(refund.provider_key, one.deposit_id, refund.amount)
        )
        if __debug__:
            crash.point("provider.refund.after", f"attempt {refund.attempt} {type(outcome).__name__}")

        def decide(tx: Transaction, deposit: Deposit) -> Step | None:
            if isinstance(outcome, Returned):
                return deposit.refund_succeeded(refund.refund_id, refund.attempt, tx.now)
            return deposit.refund_refused(refund.refund_id, refund.attempt, outcome.code, tx.now)

        await self._store.write(lambda tx: self._move(tx, one.deposit_id, lambda known: decide(tx, known)))
        if not isinstance(outcome, Returned):
            log.error(
                "a refund was refused for good and waits for an operator (RetryRefund)",
                extra={
                    "deposit_id": one.deposit_id,
                    "refund_id": refund.refund_id,
                    "failure_code": outcome.code,
                },
            )

    # Inside a transaction

    def _record_charge(
        self, tx: Transaction, deposit_id: str, outcome: ChargeOutcome, known: Deposit | None = None
    ) -> Deposit:
        def decide(deposit: Deposit) -> Step | None:
            if isinstance(outcome, Charged):
                return deposit.capture(tx.now)
            if isinstance(outcome, Declined):
                return deposit.decline(outcome.code, tx.now)
            return deposit.closed(tx.now)

        deposit = self._move(tx, deposit_id, decide, known)
        assert deposit is not None  # deposits are never deleted
        if isinstance(outcome, Charged) != (deposit.state is State.CAPTURED):
            log.error(
                "the provider contradicts itself: %s after %s",
                outcome,
                deposit.state,
                extra={"deposit_id": deposit_id},
            )
        return deposit

    def _move(
        self,
        tx: Transaction,
        deposit_id: str,
        decide: Callable[[Deposit], Step | None],
        known: Deposit | None = None,
    ) -> Deposit | None:
        """One step of a deposit, by a guarded update; lost to somebody else: read again and decide."""
        deposit = known or persistence.find(tx, deposit_id)
        for _ in range(MOVE_ATTEMPTS):
            if deposit is None:
                return None
            step = decide(deposit)
            if step is None:
                return deposit
            if persistence.save(tx, deposit, step):
                if __debug__:
                    crash.point("deposit.moved", step.deposit.standing.value)
                if step.event is not None:
                    self._outbox.add(tx, step.event)
                if step.deposit.is_open:
                    tx.after_commit(self._wake_settling)
                return step.deposit
            deposit = persistence.find(tx, deposit_id)
        raise Refusal("TRY_AGAIN_LATER", "The service is busy.", retry_after=1.0)


def _on_behalf_of(cause: Cause) -> AbstractContextManager[Call]:
    """What settling does goes by the request that it was left over from."""
    return working_on(
        replace(current.get(), correlation_id=cause.correlation_id, causation_id=cause.causation_id)
    )


def _open(tx: Transaction) -> tuple[list[tuple[Instruction, Cause]], list[Open], Backlog]:
    return (
        persistence.waiting(tx, SETTLE_BATCH),
        persistence.due(tx, SETTLE_BATCH),
        persistence.backlog(tx),
    )


async def _patiently(call: Callable[[], Awaitable[T]]) -> T:
    """Repeats a call that has a key while its outcome is unknown, a few times."""
    async for attempt in AsyncRetrying(
        retry=retry_if_exception_type(OutcomeUnknown),
        wait=wait_random_exponential(multiplier=0.1, max=PROVIDER_RETRY_MAX_SECONDS),
        stop=stop_after_attempt(PROVIDER_ATTEMPTS),
        reraise=True,
    ):
        with attempt:
            return await call()
    raise AssertionError("the last attempt returns or raises")
