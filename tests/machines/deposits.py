"""Deposit alone, told anything by anybody: charges, voids, refunds and forfeits in any order, again and
again, with a provider and a database that fail."""

from __future__ import annotations

import asyncio
import uuid
from collections import defaultdict
from collections.abc import Sequence

from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule
from sqlalchemy import text

from deposit_svc import domain, persistence
from deposit_svc.domain import (
    Deposit,
    ForfeitOrder,
    Instruction,
    Money,
    Order,
    RefundOrder,
    RefundState,
    State,
    VoidOrder,
    body_hash,
)
from dinemesh.kit.refusal import Refusal
from dinemesh.kit.store import Transaction
from tests.machines import books
from tests.machines.database import Fault, database, empty
from tests.machines.process import Time
from tests.machines.provider import DECLINED_CARD, Provider
from tests.machines.services import DepositService

CUSTOMER = "alice"
RESERVATION = "0b0e9a43-6f0d-4c9c-8a55-3c1f0d1e2f00"
# A few, so that what is told meets what was told before. Some are voided before they are ever asked for.
IDS = [str(uuid.UUID(int=number, version=4)) for number in range(1, 7)]
AMOUNT = 3000

ids = st.sampled_from(IDS)
TROUBLES = ("refuses_refunds", "loses_replies")
parts = st.sampled_from((1, 1000, 2000, AMOUNT, 5000))


class Deposits(RuleBasedStateMachine):
    """Promises 1, 2 and 4, as far as they are deposit's."""

    def __init__(self) -> None:
        super().__init__()
        database("deposit_svc").load(empty("deposit_svc"))
        self.time = Time()
        self.provider = Provider()
        self.service = DepositService(self.time, self.provider)
        self.backwards = False
        self.calls: list[tuple[str, str, asyncio.Task[Deposit]]] = []
        self.answers: defaultdict[str, set[str]] = defaultdict(set)
        self.bodies: dict[str, str] = {}
        self.instructions: dict[tuple[type, str], Instruction] = {}

    @initialize(backwards=st.booleans())
    def begin(self, backwards: bool) -> None:
        self.backwards = backwards

    # Reservation.

    @rule(deposit_id=ids, token=st.sampled_from(("tok_visa", "tok_visa", "tok_visa", DECLINED_CARD)))
    def create(self, deposit_id: str, token: str) -> None:
        amount = Money(AMOUNT, "EUR")
        body = body_hash(CUSTOMER, RESERVATION, amount, token)
        order = Order(deposit_id, CUSTOMER, RESERVATION, amount, body)
        self.calls.append((deposit_id, body, self.service.begin(self.service.deposits.create(order, token))))

    @rule(deposit_id=ids)
    def create_and_charge(self, deposit_id: str) -> None:
        self.create(deposit_id, "tok_visa")
        if self.provider.on_the_way:
            self.charge_arrives(0, True)

    @rule(deposit_id=ids, charged_before=st.sampled_from((True, True, True, False)))
    def void(self, deposit_id: str, charged_before: bool) -> None:
        """Mostly of a deposit that was made: one that comes first leaves nothing to see."""
        if charged_before:
            self.create_and_charge(deposit_id)
        self._tell(VoidOrder(deposit_id))

    @rule(deposit_id=ids, minor=parts, which=st.integers(1, 3))
    def refund(self, deposit_id: str, minor: int, which: int) -> None:
        self._tell(RefundOrder(f"{deposit_id}/refund/{which}", deposit_id, Money(minor, "EUR")))

    @rule(deposit_id=ids, minor=parts, which=st.integers(1, 3))
    def forfeit(self, deposit_id: str, minor: int, which: int) -> None:
        self._tell(ForfeitOrder(f"{deposit_id}/forfeit/{which}", deposit_id, Money(minor, "EUR")))

    def _tell(self, instruction: Instruction) -> None:
        """One id has one content; a reservation that ordered something repeats it in every later event."""
        key = (type(instruction), instruction.instruction_id)
        self._hear([self.instructions.setdefault(key, instruction)])

    @precondition(lambda self: self.instructions)
    @rule()
    def tell_all_again(self) -> None:
        every = list(self.instructions.values())
        self._hear(every[::-1] if self.backwards else every)

    def _hear(self, every: Sequence[Instruction]) -> None:
        service = self.service
        service.begin(
            service.store.write(
                lambda tx: service.deposits.apply_instructions(tx, every, CUSTOMER, RESERVATION)
            )
        )

    @precondition(lambda self: self.calls)
    @rule()
    def caller_hangs_up(self) -> None:
        self.calls[-1][2].cancel()
        self.time.loop.run()

    # The provider and the operator.

    @precondition(lambda self: self.provider.on_the_way)
    @rule(which=st.integers(0, 5), answered=st.booleans())
    def charge_arrives(self, which: int, answered: bool) -> None:
        on_the_way = self.provider.on_the_way
        self.provider.arrives(on_the_way[-1 - which % len(on_the_way)], answered=answered)
        self.time.loop.run()

    @rule(what=st.sampled_from(("down", "loses_replies", "refuses_refunds")), value=st.booleans())
    def provider_is_unwell(self, what: str, value: bool) -> None:
        setattr(self.provider, what, value)

    @rule(deposit_id=ids, minor=parts, which=st.integers(1, 3), trouble=st.sampled_from(TROUBLES))
    def a_refund_goes_wrong(self, deposit_id: str, minor: int, which: int, trouble: str) -> None:
        self.provider.down = self.provider.loses_replies = False
        self.create_and_charge(deposit_id)
        self.refund(deposit_id, minor, which)
        setattr(self.provider, trouble, True)
        if not self.service.is_dead:
            self.service.reconcile()
        setattr(self.provider, trouble, False)

    @precondition(lambda self: any(self._failed_refunds()))
    @rule()
    def operator_retries_twice(self) -> None:
        for deposit_id, refund_id in self._failed_refunds():
            for _ in range(2):
                self.service.begin(self.service.deposits.retry_refund(deposit_id, refund_id))

    def _failed_refunds(self) -> Sequence[tuple[str, str]]:
        return [
            (deposit.deposit_id, refund.refund_id)
            for deposit in self._deposits()
            for refund in deposit.refunds
            if refund.state is RefundState.FAILED
        ]

    # Time, and what goes wrong.

    @rule(seconds=st.sampled_from((1, 4, 13, 100)))
    def time_passes(self, seconds: int) -> None:
        self.time.loop.run(seconds)

    @rule()
    def reconcile(self) -> None:
        self.service.reconcile()

    @rule(fault=st.sampled_from(Fault))
    def fail_next_commit(self, fault: Fault) -> None:
        self.service.fail_next(fault)

    @rule()
    def die(self) -> None:
        self.service.die()

    # What holds.

    @invariant()
    def the_books_are_right(self) -> None:
        self.time.loop.run()
        self.service.check()
        if self.service.is_dead:
            self.service = DepositService(self.time, self.provider)
        self._hear_answers()
        books.check_ledger(self.service.store, self._deposits(), self.provider)

    def _hear_answers(self) -> None:
        known = {one.deposit_id: one for one in self._deposits()}
        for deposit_id, body, call in [one for one in self.calls if one[2].done()]:
            self.calls.remove((deposit_id, body, call))
            if call.cancelled():
                continue
            error = call.exception()
            reason = error.reason if isinstance(error, Refusal) else "" if error is None else "ERROR"
            if reason == "":
                assert known[deposit_id].body_hash == body, "the answer of another deposit"
            if reason in ("", "CARD_DECLINED"):
                self.answers[deposit_id].add(reason)
            if reason == "DEPOSIT_OVERLOADED":
                mine = known.get(deposit_id)
                assert mine is None or mine.body_hash == "", "overloaded, of an id that is known"
            assert len(self.answers[deposit_id]) <= 1, "captured and declined"

    def _deposits(self) -> Sequence[Deposit]:
        def query(tx: Transaction) -> list[Deposit]:
            found = tx.execute(text("SELECT deposit_id FROM deposits ORDER BY rowid")).scalars().all()
            return [one for key in found if (one := persistence.find(tx, key)) is not None]

        return self.service.store.look(query)

    def teardown(self) -> None:
        try:
            self._come_to_rest()
        finally:
            self.time.close()

    def _come_to_rest(self) -> None:
        self.provider.is_well_again()
        self.service.store.faults.clear()
        self.the_books_are_right()
        self.tell_all_again()
        self.time.loop.run(100)
        self.service.reconcile()
        for deposit_id, refund_id in self._failed_refunds():
            self.service.do(self.service.deposits.retry_refund(deposit_id, refund_id))
        self.service.reconcile()
        self.the_books_are_right()
        every = self._deposits()
        books.check_all_is_settled(every, self.provider)
        for deposit in every:
            self._was_obeyed(deposit)
        self.tell_all_again()
        assert self._deposits() == every, "told twice, done twice"

    def _was_obeyed(self, deposit: Deposit) -> None:
        mine = [one for one in self.instructions.values() if one.deposit_id == deposit.deposit_id]
        if any(isinstance(one, VoidOrder) for one in mine):
            assert deposit.held == 0 and deposit.state is not State.PENDING
        elif deposit.captured:
            ordered = sum(one.amount.minor for one in mine if not isinstance(one, VoidOrder))
            assert deposit.held == max(0, deposit.captured - ordered), "not what was ordered"
        kept = sum(one.amount.minor for one in mine if isinstance(one, ForfeitOrder))
        assert deposit.forfeited <= kept
        own = domain.void_refund_id(deposit.deposit_id)
        known = {one.refund_id for one in mine if isinstance(one, RefundOrder)} | {own}
        assert {refund.refund_id for refund in deposit.refunds} <= known
