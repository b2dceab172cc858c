"""What deposit does: charge under a durable intent, apply reservation's instructions, reconcile what is open.

Transactions are opened here; no call to the provider is made inside one.
"""

from __future__ import annotations

import asyncio
import logging
from collections import Counter
from collections.abc import Awaitable, Callable, Coroutine, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from typing import Any, TypeVar

from tenacity import AsyncRetrying, retry_if_exception_type, stop_after_attempt, wait_random_exponential

from deposit_svc import domain, persistence
from deposit_svc.domain import Applied, Deposit, Instruction, Order, State, Step, VoidOrder
from deposit_svc.persistence import Cause, Open, OpenCharge, OpenRefund
from deposit_svc.provider import Charged, ChargeOutcome, Declined, OutcomeUnknown, Provider, Returned
from dinemesh.kit import crash, failing, telemetry
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
# Instructions that waited for a charge, taken at a time.
RECONCILE_BATCH = 32
# Of the places at the provider, what one kind may take: charges that hang leave refunds theirs.
LARGEST_SHARE = 0.75
# So many more are claimed than there are places, so that a place that gets free waits for no statement.
AHEAD_SHARE = 0.25
# Claims wait so long for others, unless many may be made: one statement then makes them all.
REFILL_LINGER_SECONDS = 0.05
REFILL_SHARE = 0.25
# While something is at the provider: how often what has become due by the clock is looked for, and counted.
LOOK_SECONDS = 1.0
# Calls of one reconciling try to the provider; the next comes after a pause of 1 s, doubled up to a minute.
PROVIDER_ATTEMPTS = 3
PROVIDER_RETRY_MAX_SECONDS = 0.5
LONGEST_PAUSE_SECONDS = 60.0

CHARGES_UNDER_WAY = telemetry.gauge("charges_under_way", "Charges that wait for the provider's answer.")
CHARGES_UNDECIDED = telemetry.gauge("charges_undecided", "Deposits whose charge is not decided.")
REFUNDS_PENDING = telemetry.gauge("refunds_pending", "Refunds that the provider has not answered.")
REFUNDS_FAILED = telemetry.gauge("refunds_failed", "Refunds refused for good that wait for an operator.")
FAILING = telemetry.gauge("reconcile_failing_rows", "What fails while it is reconciled, and is tried again.")
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
    settle_at_once: int = 200

    @property
    def ahead(self) -> timedelta:
        """Nothing is scheduled for later than this."""
        longest = max(self.pending_settle_seconds, self.settle_lease_seconds, LONGEST_PAUSE_SECONDS)
        return timedelta(seconds=longest)


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
        self._wake: Callable[[], None] = lambda: None
        self._something_new = asyncio.Event()

    def on_open(self, wake: Callable[[], None]) -> None:
        """`wake` is told after a commit that left something for reconciling."""
        self._wake = wake

    def _wake_reconciler(self) -> None:
        self._something_new.set()
        self._wake()

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
                    else self._leave_to_reconciler(tx, intent.deposit_id)
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

    def _leave_to_reconciler(self, tx: Transaction, deposit_id: str) -> None:
        """The attempt has ended, so there is nothing to wait for."""
        persistence.reconcile_now(tx, deposit_id)
        tx.after_commit(self._wake_reconciler)

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

    def apply_instructions(
        self, tx: Transaction, instructions: Sequence[Instruction], customer_id: str, reservation_id: str
    ) -> None:
        """Applies each instruction that is new; the provider is called later, by reconciling."""
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
        """Lets reconciling try a refund again that was refused for good."""

        def change(tx: Transaction) -> Deposit:
            deposit = self._move(tx, deposit_id, lambda known: known.retry_refund(refund_id, tx.now))
            if deposit is None:
                raise domain.deposit_not_found()
            return deposit

        ordered = await self._store.write(change)
        if __debug__:
            crash.point("retry_refund.ordered")
        return ordered

    # Reconciling

    async def reconcile(self) -> None:
        """Brings on all that is due: charges without an outcome, voids, refunds, instructions that waited.

        Up to `settle_at_once` are at the provider at a time; a place that gets free is taken by the next, so
        that a slow or silent one holds up only itself. Ends when nothing is due and nothing at the provider.
        """
        window = _Window(self._limits.settle_at_once, self._something_new.set)
        loop = asyncio.get_running_loop()
        counted: float | None = None
        try:
            while True:
                self._something_new.clear()
                was_idle = (
                    not window.at_work
                )  # else what ends during this look has left something for the next
                if was_idle or counted is None or loop.time() - counted >= LOOK_SECONDS:
                    await self._count()
                    counted = loop.time()
                ready, is_due = await self._store.read(self._open)
                await asyncio.gather(*(self._apply_waiting(*one) for one in ready))
                claimed = await self._claim(window) if is_due and window.free else []
                for one in claimed:
                    window.start(one, self._reconcile_one)
                if was_idle and not claimed and not ready:
                    return
                if window.at_work:
                    await self._until_something_changes(window)
        except Exception:
            await window.wait()
            raise
        finally:
            await window.cancel()

    async def _until_something_changes(self, window: _Window) -> None:
        """A place has got free, something new is open, or it is time to look. What comes together is taken
        together."""
        try:
            async with asyncio.timeout(LOOK_SECONDS):
                await self._something_new.wait()
        except TimeoutError:
            return
        if window.at_work and window.free < self._limits.settle_at_once * REFILL_SHARE:
            await asyncio.sleep(REFILL_LINGER_SECONDS)

    async def _count(self) -> None:
        backlog, failed = await self._store.read(
            lambda tx: (persistence.backlog(tx), failing.count(tx, persistence.failures))
        )
        CHARGES_UNDECIDED.set(backlog.undecided)
        REFUNDS_PENDING.set(backlog.pending)
        REFUNDS_FAILED.set(backlog.failed)
        LONGEST_UNDECIDED.set(backlog.longest_undecided.total_seconds())
        LONGEST_PENDING.set(backlog.longest_pending.total_seconds())
        if failed:
            await self._store.write(persistence.forget_failures)
            failed = await self._store.read(lambda tx: failing.count(tx, persistence.failures))
        FAILING.set(failed)

    def _open(self, tx: Transaction) -> tuple[Sequence[tuple[Instruction, Cause]], bool]:
        return persistence.waiting(tx, RECONCILE_BATCH), persistence.is_due(tx, self._limits.ahead)

    async def _claim(self, window: _Window) -> Sequence[Open]:
        """As many as there are places. The kind of which fewer are at work comes first, and none gets all."""
        lease = timedelta(seconds=self._limits.settle_lease_seconds)
        charges, refunds = window.room(OpenCharge), window.room(OpenRefund)

        def claim(tx: Transaction) -> list[Open]:
            found: list[Open] = []
            for kind in (OpenCharge, OpenRefund) if charges > refunds else (OpenRefund, OpenCharge):
                most = min(charges if kind is OpenCharge else refunds, window.free - len(found))
                if most > 0:
                    found += (
                        persistence.claim_charges(tx, most, lease, self._limits.ahead)
                        if kind is OpenCharge
                        else persistence.claim_refunds(tx, most, lease, self._limits.ahead)
                    )
            return found

        claimed = await self._store.write(claim)
        if __debug__:
            crash.point("reconcile.claimed")
        return claimed

    async def _apply_waiting(self, instruction: Instruction, cause: Cause) -> None:
        """One that fails is looked at again later, and holds up no other."""

        def change(tx: Transaction) -> None:
            if persistence.take_waiting(tx, instruction):
                with _on_behalf_of(cause):
                    self._apply(tx, instruction)

        try:
            await self._store.write(change)
        except (StoreUnavailable, CommitInDoubt):
            raise
        except Exception as error:
            name = persistence.name_of(instruction)
            await self._put_off(name, instruction.deposit_id, error)

    async def _reconcile_one(self, one: Open, place: _Place) -> None:
        """Whatever becomes of it, it stops nothing else; what is not on record comes back with its lease."""
        with _on_behalf_of(one.cause):
            try:
                async with asyncio.timeout(self._limits.settle_lease_seconds):
                    await place.take()
                    if isinstance(one, OpenCharge):
                        await self._reconcile_charge(one, place.give_back)
                    else:
                        await self._reconcile_refund(one, place.give_back)
            except (OutcomeUnknown, TimeoutError) as error:
                pause = timedelta(seconds=min(2.0 ** min(one.tries, 10), LONGEST_PAUSE_SECONDS))
                log.warning(
                    "still open, next try in %s: %r", pause, error, extra={"deposit_id": one.deposit_id}
                )
                await self._come_back(one, pause)
            except (StoreUnavailable, CommitInDoubt) as error:
                log.warning("what was reconciled is not on record yet: %r", error)
            except Exception as error:
                pause = await self._put_off(one.name, one.deposit_id, error)
                await self._come_back(one, pause)

    async def _come_back(self, one: Open, pause: timedelta) -> None:
        try:
            await self._store.write(lambda tx: persistence.postpone(tx, one, pause))
        except (StoreUnavailable, CommitInDoubt) as error:
            log.warning("it comes back when its lease ends: %r", error)

    async def _put_off(self, name: str, deposit_id: str, error: Exception) -> timedelta:
        pause = timedelta(seconds=self._limits.settle_lease_seconds)
        try:
            pause = await self._store.write(lambda tx: failing.put_off(tx, persistence.failures, name, error))
        except (StoreUnavailable, CommitInDoubt) as away:
            log.warning("a failure is not on record: %r", away)
        log.error(
            "%s fails while it is reconciled, next try in %s: %s",
            name,
            pause,
            failing.told(error),
            exc_info=error if pause <= failing.FIRST_PAUSE else None,
            extra={"deposit_id": deposit_id},
        )
        return pause

    async def _reconcile_charge(self, one: OpenCharge, on_answer: Callable[[], None]) -> None:
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
        on_answer()
        decided = outcome
        await self._store.write(lambda tx: self._record_charge(tx, one.deposit_id, decided))

    async def _reconcile_refund(self, one: OpenRefund, on_answer: Callable[[], None]) -> None:
        refund = one.refund
        if __debug__:
            crash.point("provider.refund.before", f"attempt {refund.attempt}")
        outcome = await _patiently(
            lambda: self._provider.refund(refund.provider_key, one.deposit_id, refund.amount)
        )
        if __debug__:
            crash.point("provider.refund.after", f"attempt {refund.attempt} {type(outcome).__name__}")

        on_answer()

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
                    tx.after_commit(self._wake_reconciler)
                return step.deposit
            deposit = persistence.find(tx, deposit_id)
        raise Refusal("TRY_AGAIN_LATER", "The service is busy.", retry_after=1.0)


def _on_behalf_of(cause: Cause) -> AbstractContextManager[Call]:
    """What reconciling does goes by the request that it was left over from."""
    return working_on(
        replace(current.get(), correlation_id=cause.correlation_id, causation_id=cause.causation_id)
    )


class _Place:
    """What one thing that is claimed needs to ask the provider: first come, first served."""

    def __init__(self, places: Sequence[asyncio.Semaphore], on_free: Callable[[], None]) -> None:
        self._places = places
        self._held: list[asyncio.Semaphore] = []
        self._on_free: Callable[[], None] | None = on_free

    async def take(self) -> None:
        for place in self._places:
            await place.acquire()
            self._held.append(place)

    def give_back(self) -> None:
        """The provider has answered; a second time is nothing."""
        while self._held:
            self._held.pop().release()
        if self._on_free is not None:
            self._on_free()
            self._on_free = None


class _Window:
    """What is at the provider: so many at once, and of one kind never all. Some more are claimed, to take the
    next free places. What was answered and is only being written down takes none, but is bounded too."""

    def __init__(self, places: int, on_change: Callable[[], None]) -> None:
        largest, ahead = max(1, int(places * LARGEST_SHARE)), int(places * AHEAD_SHARE)
        self._all = asyncio.Semaphore(places)
        self._of_kind = {kind: asyncio.Semaphore(largest) for kind in (OpenCharge, OpenRefund)}
        self._most, self._most_of_kind = places + ahead, largest + ahead
        self._on_change = on_change
        self._claimed: Counter[type[Open]] = Counter()
        self.at_work: set[asyncio.Task[None]] = set()

    @property
    def free(self) -> int:
        """How many more may be claimed."""
        return self._most - max(self._claimed.total(), len(self.at_work) - self._most)

    def room(self, kind: type[Open]) -> int:
        """... of a kind."""
        return min(self.free, self._most_of_kind - self._claimed[kind])

    def start(self, one: Open, work: Callable[[Open, _Place], Coroutine[Any, Any, None]]) -> None:
        kind = type(one)

        def answered() -> None:
            self._claimed[kind] -= 1
            self._on_change()

        def done(task: asyncio.Task[None]) -> None:
            place.give_back()
            self.at_work.discard(task)
            if not task.cancelled() and (error := task.exception()) is not None:
                log.error("something open failed at the provider", exc_info=error)
            self._on_change()

        self._claimed[kind] += 1
        place = _Place((self._of_kind[kind], self._all), answered)
        task = asyncio.get_running_loop().create_task(work(one, place))
        self.at_work.add(task)
        task.add_done_callback(done)

    async def wait(self) -> None:
        """Until nothing is at work any more."""
        while self.at_work:
            await asyncio.wait(self.at_work)

    async def cancel(self) -> None:
        """Stops what is at work: it comes back with its lease."""
        left = list(self.at_work)
        for task in left:
            task.cancel()
        await asyncio.gather(*left, return_exceptions=True)


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
