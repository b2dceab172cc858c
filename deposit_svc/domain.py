"""The rules of a deposit, without I/O: what may follow what, and where each cent stands.

Every change returns a `Step`: the deposit as it stands afterwards, the movements of money for the ledger,
and the event to tell. Amounts are integers in minor units (cents).
"""

from __future__ import annotations

import hashlib
import json
import uuid
from dataclasses import dataclass, replace
from datetime import datetime
from enum import Enum
from typing import NamedTuple

from dinemesh.kit.refusal import Refusal


class Money(NamedTuple):
    """An amount in minor units of an ISO 4217 currency."""

    minor: int
    currency: str


NOTHING = Money(0, "")


class State(Enum):
    """How far the charge got. What became of captured money is derived: `Deposit.standing`."""

    PENDING = "PENDING"
    CAPTURED = "CAPTURED"
    DECLINED = "DECLINED"
    VOIDING = "VOIDING"
    VOIDED = "VOIDED"


class Standing(Enum):
    """The state that is shown: the stored one, or, for captured money no longer held, where it went."""

    PENDING = "PENDING"
    CAPTURED = "CAPTURED"
    DECLINED = "DECLINED"
    VOIDING = "VOIDING"
    VOIDED = "VOIDED"
    REFUNDING = "REFUNDING"
    REFUNDED = "REFUNDED"
    FORFEITED = "FORFEITED"
    REFUND_FAILED = "REFUND_FAILED"


class RefundState(Enum):
    """PENDING until the provider answers definitely; FAILED was refused for good and waits for an
    operator."""

    PENDING = "PENDING"
    SUCCEEDED = "SUCCEEDED"
    FAILED = "FAILED"


class Account(Enum):
    """The ledger's accounts. An entry above zero is a debit, below zero a credit."""

    PROVIDER_CLEARING = "PROVIDER_CLEARING"  # asset: money the payment provider holds for us
    CUSTOMER_DEPOSITS = "CUSTOMER_DEPOSITS"  # liability: held for live bookings
    REFUNDS_PAYABLE = "REFUNDS_PAYABLE"  # liability: ordered back, not yet confirmed by the provider
    REFUNDS_FAILED = "REFUNDS_FAILED"  # liability: refused by the provider, waits for an operator
    FORFEITURE_INCOME = "FORFEITURE_INCOME"  # income: kept after a no-show or a late cancel


class MovementKind(Enum):
    """A reason for money to move, with the account that is debited and the one that is credited."""

    CHARGE_CAPTURED = "CHARGE_CAPTURED"
    REFUND_ORDERED = "REFUND_ORDERED"
    REFUND_SUCCEEDED = "REFUND_SUCCEEDED"
    REFUND_FAILED = "REFUND_FAILED"
    REFUND_RETRIED = "REFUND_RETRIED"
    DEPOSIT_FORFEITED = "DEPOSIT_FORFEITED"


POSTINGS: dict[MovementKind, tuple[Account, Account]] = {
    MovementKind.CHARGE_CAPTURED: (Account.PROVIDER_CLEARING, Account.CUSTOMER_DEPOSITS),
    MovementKind.REFUND_ORDERED: (Account.CUSTOMER_DEPOSITS, Account.REFUNDS_PAYABLE),
    MovementKind.REFUND_SUCCEEDED: (Account.REFUNDS_PAYABLE, Account.PROVIDER_CLEARING),
    MovementKind.REFUND_FAILED: (Account.REFUNDS_PAYABLE, Account.REFUNDS_FAILED),
    MovementKind.REFUND_RETRIED: (Account.REFUNDS_FAILED, Account.REFUNDS_PAYABLE),
    MovementKind.DEPOSIT_FORFEITED: (Account.CUSTOMER_DEPOSITS, Account.FORFEITURE_INCOME),
}


class Entry(NamedTuple):
    """One line of the ledger: a debit above zero or a credit below zero."""

    account: Account
    minor: int


@dataclass(frozen=True)
class Movement:
    """Money that moved once, and why. `cause` is the id that may cause this kind of movement only once."""

    kind: MovementKind
    cause: str
    amount: Money

    def __post_init__(self) -> None:
        if self.amount.minor <= 0:
            raise ValueError(f"a movement moves something, not {self.amount}")

    @property
    def entries(self) -> tuple[Entry, Entry]:
        """The debit and the credit that POSTINGS says, in minor units; they sum to zero."""
        debit, credit = POSTINGS[self.kind]
        return Entry(debit, self.amount.minor), Entry(credit, -self.amount.minor)


@dataclass(frozen=True)
class Refund:
    """Money on its way back. `attempt` counts an operator's retries; each is a new key at the provider."""

    refund_id: str
    amount: Money
    state: RefundState
    create_time: datetime
    update_time: datetime
    attempt: int = 0
    failure_code: str = ""

    @property
    def provider_key(self) -> str:
        """The key by which the provider refunds once: the refund_id, from the first retry on with the
        attempt."""
        return f"{self.refund_id}/{self.attempt}" if self.attempt else self.refund_id


@dataclass(frozen=True)
class Forfeit:
    """Money that the restaurant keeps."""

    forfeit_id: str
    amount: Money
    create_time: datetime


@dataclass(frozen=True)
class Deposit:
    """A deposit, its refunds and forfeits. `held` is what a live booking can still count on."""

    deposit_id: str
    customer_id: str
    reservation_id: str
    amount: Money
    body_hash: str
    state: State
    create_time: datetime
    update_time: datetime
    version: int = 1
    void_ordered: bool = False
    decline_code: str = ""
    captured: int = 0
    refunding: int = 0
    refunded: int = 0
    refund_failed: int = 0
    forfeited: int = 0
    refunds: tuple[Refund, ...] = ()
    forfeits: tuple[Forfeit, ...] = ()

    @property
    def held(self) -> int:
        """Minor units that were captured and are neither refunded, on their way back, refused as a refund nor
        forfeited."""
        return self.captured - self.refunding - self.refunded - self.refund_failed - self.forfeited

    @property
    def standing(self) -> Standing:
        """`state` while any captured money is held, or none was captured; else where it went, a pending
        refund before a failed one before a forfeit."""
        if self.state is not State.CAPTURED or self.held > 0:
            return Standing[self.state.name]
        if self.refunding:
            return Standing.REFUNDING
        if self.refund_failed:
            return Standing.REFUND_FAILED
        return Standing.FORFEITED if self.forfeited else Standing.REFUNDED

    @property
    def is_open(self) -> bool:
        """Whether the provider still owes an answer about it."""
        return self.state in (State.PENDING, State.VOIDING) or self.refunding > 0

    def refund(self, refund_id: str) -> Refund | None:
        """The refund of that id; None if none was ordered under it."""
        return next((refund for refund in self.refunds if refund.refund_id == refund_id), None)

    # The charge

    def answer(self) -> Deposit:
        """What CreateDeposit answers for this deposit: itself when it was captured, else the refusal."""
        if self.void_ordered or self.state in (State.VOIDING, State.VOIDED):
            raise deposit_voided()
        if self.state is State.PENDING:
            raise in_doubt()
        if self.state is State.DECLINED:
            raise card_declined(self.decline_code)
        return self

    def capture(self, now: datetime) -> Step | None:
        """The provider holds the money. A deposit that was voided meanwhile gives all of it back at once."""
        if self.state is State.PENDING:
            captured = self._changed(now, state=State.CAPTURED, captured=self.amount.minor)
            return Step(captured, (self._charged,), DepositCaptured(captured))
        if self.state is State.VOIDING:
            captured = self._changed(now, state=State.CAPTURED, captured=self.amount.minor)
            returned = captured._ordered_back(void_refund_id(self.deposit_id), self.amount, now)
            returned = replace(returned, version=captured.version)
            ordered = Movement(MovementKind.REFUND_ORDERED, void_refund_id(self.deposit_id), self.amount)
            return Step(returned, (self._charged, ordered), DepositCaptured(returned))
        return None

    def decline(self, code: str, now: datetime) -> Step | None:
        """The provider refused the charge for good."""
        if self.state is State.PENDING:
            declined = self._changed(now, state=State.DECLINED, decline_code=code)
            return Step(declined, (), DepositDeclined(declined))
        return self.closed(now) if self.state is State.VOIDING else None

    def closed(self, now: datetime) -> Step | None:
        """The provider will never charge under this id: nothing was taken, nothing can be."""
        if self.state not in (State.PENDING, State.VOIDING):
            return None
        voided = self._changed(now, state=State.VOIDED)
        return Step(voided, (), DepositVoided(voided))

    # Money instructions

    def void(self, now: datetime) -> Step | None:
        """Take the deposit back, however far it got: close the charge, or return all that is held."""
        if self.state is State.PENDING:
            return Step(self._changed(now, state=State.VOIDING, void_ordered=True))
        if self.state is not State.CAPTURED or self.void_ordered:
            return None
        voided = replace(self, void_ordered=True)
        if not self.held:
            return Step(voided._changed(now))
        refund_id = void_refund_id(self.deposit_id)
        return voided.order_refund(refund_id, Money(self.held, self.amount.currency), now)

    def order_refund(self, refund_id: str, amount: Money, now: datetime) -> Step | None:
        """Give back `amount`, or what is still held of it."""
        amount = self._within_held(amount)
        if not amount.minor or self.refund(refund_id):
            return None
        ordered = self._ordered_back(refund_id, amount, now)
        return Step(ordered, (Movement(MovementKind.REFUND_ORDERED, refund_id, amount),))

    def forfeit(self, forfeit_id: str, amount: Money, now: datetime) -> Step | None:
        """Keep `amount`, or what is still held of it."""
        amount = self._within_held(amount)
        if not amount.minor:
            return None
        forfeit = Forfeit(forfeit_id, amount, now)
        kept = self._changed(now, forfeited=self.forfeited + amount.minor, forfeits=(*self.forfeits, forfeit))
        movement = Movement(MovementKind.DEPOSIT_FORFEITED, forfeit_id, amount)
        return Step(kept, (movement,), DepositForfeited(kept, forfeit))

    # Refunds at the provider

    def refund_succeeded(self, refund_id: str, attempt: int, now: datetime) -> Step | None:
        """The provider returned the money. None if the refund does not wait for this attempt any more."""
        refund = self._pending_refund(refund_id, attempt)
        if refund is None:
            return None
        done = replace(refund, state=RefundState.SUCCEEDED, failure_code="", update_time=now)
        paid = self._changed(
            now,
            refunding=self.refunding - refund.amount.minor,
            refunded=self.refunded + refund.amount.minor,
            refunds=self._with(done),
        )
        movement = Movement(MovementKind.REFUND_SUCCEEDED, refund_id, refund.amount)
        return Step(paid, (movement,), DepositRefunded(paid, done))

    def refund_refused(self, refund_id: str, attempt: int, code: str, now: datetime) -> Step | None:
        """The provider refused for good: the money stays with us, listed, until an operator retries."""
        refund = self._pending_refund(refund_id, attempt)
        if refund is None:
            return None
        failed = replace(refund, state=RefundState.FAILED, failure_code=code, update_time=now)
        owed = self._changed(
            now,
            refunding=self.refunding - refund.amount.minor,
            refund_failed=self.refund_failed + refund.amount.minor,
            refunds=self._with(failed),
        )
        movement = Movement(MovementKind.REFUND_FAILED, refund.provider_key, refund.amount)
        return Step(owed, (movement,), DepositRefundFailed(owed, failed))

    def retry_refund(self, refund_id: str, now: datetime) -> Step:
        """An operator's next try, under a new key: only after a definite refusal, so never twice at once."""
        refund = self.refund(refund_id)
        if refund is None:
            raise refund_not_found()
        if refund.state is not RefundState.FAILED:
            raise refund_not_retryable()
        again = replace(refund, state=RefundState.PENDING, attempt=refund.attempt + 1, update_time=now)
        ordered = self._changed(
            now,
            refunding=self.refunding + refund.amount.minor,
            refund_failed=self.refund_failed - refund.amount.minor,
            refunds=self._with(again),
        )
        return Step(ordered, (Movement(MovementKind.REFUND_RETRIED, again.provider_key, refund.amount),))

    @property
    def _charged(self) -> Movement:
        return Movement(MovementKind.CHARGE_CAPTURED, self.deposit_id, self.amount)

    def _changed(self, now: datetime, **fields: object) -> Deposit:
        return replace(self, version=self.version + 1, update_time=now, **fields)  # type: ignore[arg-type]

    def _with(self, changed: Refund) -> tuple[Refund, ...]:
        return tuple(changed if r.refund_id == changed.refund_id else r for r in self.refunds)

    def _ordered_back(self, refund_id: str, amount: Money, now: datetime) -> Deposit:
        refund = Refund(refund_id, amount, RefundState.PENDING, now, now)
        return self._changed(now, refunding=self.refunding + amount.minor, refunds=(*self.refunds, refund))

    def _within_held(self, amount: Money) -> Money:
        if amount.currency != self.amount.currency or amount.minor <= 0:
            return NOTHING
        return Money(min(amount.minor, self.held), amount.currency)

    def _pending_refund(self, refund_id: str, attempt: int) -> Refund | None:
        refund = self.refund(refund_id)
        if refund is None or refund.state is not RefundState.PENDING or refund.attempt != attempt:
            return None
        return refund


@dataclass(frozen=True)
class Order:
    """What CreateDeposit asks for. The payment token is used once and never kept."""

    deposit_id: str
    customer_id: str
    reservation_id: str
    amount: Money
    body_hash: str

    def intent(self, now: datetime) -> Deposit:
        """The durable promise to know what becomes of the charge that follows."""
        return Deposit(
            self.deposit_id,
            self.customer_id,
            self.reservation_id,
            self.amount,
            self.body_hash,
            State.PENDING,
            now,
            now,
        )

    def repeated(self, known: Deposit) -> Deposit:
        """What a repetition of CreateDeposit answers. A tombstone has no body to compare with."""
        if known.body_hash and known.body_hash != self.body_hash:
            raise id_reused()
        return known.answer()


def body_hash(customer_id: str, reservation_id: str, amount: Money, payment_token: str) -> str:
    """Tells a repetition of CreateDeposit from another body under the same id, without keeping the token."""
    body = json.dumps([customer_id, reservation_id, *amount, payment_token])
    return hashlib.sha256(body.encode()).hexdigest()


def tombstone(deposit_id: str, customer_id: str, reservation_id: str, now: datetime) -> Deposit:
    """The void of a deposit that was never seen: a late CreateDeposit runs into it."""
    return Deposit(
        deposit_id, customer_id, reservation_id, NOTHING, "", State.VOIDED, now, now, void_ordered=True
    )


def void_refund_id(deposit_id: str) -> str:
    """The refund that a void of a captured deposit orders: the same one, however often it is told."""
    return str(uuid.uuid5(uuid.UUID(deposit_id), "void"))


# What reservation orders, each applied once by its id


@dataclass(frozen=True)
class VoidOrder:
    """Close the deposit for good, or give back all that is held if it was captured."""

    deposit_id: str

    @property
    def instruction_id(self) -> str:
        """The deposit_id, since a deposit is voided once, whatever the cause."""
        return self.deposit_id


@dataclass(frozen=True)
class RefundOrder:
    """Give back an amount of the deposit, or what is still held of it."""

    refund_id: str
    deposit_id: str
    amount: Money

    @property
    def instruction_id(self) -> str:
        """The refund_id that reservation chose, which is also the first key at the provider."""
        return self.refund_id


@dataclass(frozen=True)
class ForfeitOrder:
    """Let the restaurant keep an amount of the deposit, or what is still held of it."""

    forfeit_id: str
    deposit_id: str
    amount: Money

    @property
    def instruction_id(self) -> str:
        """The forfeit_id that reservation chose; its next events repeat it."""
        return self.forfeit_id


Instruction = VoidOrder | RefundOrder | ForfeitOrder


class Applied(Enum):
    """What became of an instruction."""

    WAITING = "WAITING"  # its deposit is not decided yet
    APPLIED = "APPLIED"
    NO_EFFECT = "NO_EFFECT"  # nothing was held that it could move


def apply(instruction: Instruction, deposit: Deposit | None, now: datetime) -> tuple[Applied, Step | None]:
    """What an instruction does to the deposit as it stands. All but a void wait for the charge's outcome."""
    if isinstance(instruction, VoidOrder):
        step = deposit.void(now) if deposit else None
    elif deposit is None or deposit.state in (State.PENDING, State.VOIDING):
        return Applied.WAITING, None
    elif isinstance(instruction, RefundOrder):
        step = deposit.order_refund(instruction.refund_id, instruction.amount, now)
    else:
        step = deposit.forfeit(instruction.forfeit_id, instruction.amount, now)
    return (Applied.APPLIED if step else Applied.NO_EFFECT), step


# What is told. Each event carries the whole deposit.


@dataclass(frozen=True)
class DepositCaptured:
    """The provider holds the money; if the deposit was voided meanwhile, all of it is already ordered
    back."""

    deposit: Deposit


@dataclass(frozen=True)
class DepositDeclined:
    """The provider refused the charge for good; the deposit's `decline_code` says why."""

    deposit: Deposit


@dataclass(frozen=True)
class DepositVoided:
    """The deposit is closed for good and nothing was charged; it may be one that was never seen before."""

    deposit: Deposit


@dataclass(frozen=True)
class DepositRefunded:
    """The provider returned the money of one refund to the customer."""

    deposit: Deposit
    refund: Refund


@dataclass(frozen=True)
class DepositRefundFailed:
    """The provider refused one refund for good: its money stays with us until an operator retries."""

    deposit: Deposit
    refund: Refund


@dataclass(frozen=True)
class DepositForfeited:
    """The restaurant keeps the money of one forfeit."""

    deposit: Deposit
    forfeit: Forfeit


Event = (
    DepositCaptured
    | DepositDeclined
    | DepositVoided
    | DepositRefunded
    | DepositRefundFailed
    | DepositForfeited
)


@dataclass(frozen=True)
class Step:
    """One change: the deposit afterwards, the money that moved, the event to tell."""

    deposit: Deposit
    movements: tuple[Movement, ...] = ()
    event: Event | None = None


# Refusals


def in_doubt() -> Refusal:
    """DEPOSIT_IN_DOUBT: the card may or may not have been charged, and neither may be assumed."""
    return Refusal("DEPOSIT_IN_DOUBT", "whether the card was charged is not known yet", retry_after=1.0)


def deposit_voided() -> Refusal:
    """DEPOSIT_VOIDED: a void was ordered, maybe before the charge came; what is held goes back."""
    return Refusal("DEPOSIT_VOIDED", "this deposit was taken back and will not be charged")


def card_declined(code: str) -> Refusal:
    """CARD_DECLINED: nothing was charged; `code` is the provider's word for why."""
    return Refusal("CARD_DECLINED", "the card was declined", metadata={"decline_code": code})


def overloaded() -> Refusal:
    """DEPOSIT_OVERLOADED: turned away before anything was written, for an id that nobody knows."""
    return Refusal(
        "DEPOSIT_OVERLOADED", "too many charges are under way; nothing was charged", retry_after=1.0
    )


def id_reused() -> Refusal:
    """DEPOSIT_ID_REUSED: the id is known with another `body_hash`."""
    return Refusal("DEPOSIT_ID_REUSED", "this deposit_id was used for a different deposit")


def deadline_too_short() -> Refusal:
    """DEADLINE_TOO_SHORT: the caller has less time left than even a quick charge takes."""
    return Refusal("DEADLINE_TOO_SHORT", "too little time is left for a charge; nothing was begun")


def refund_not_retryable() -> Refusal:
    """REFUND_NOT_RETRYABLE: the refund is not FAILED, and a second key could refund it twice."""
    return Refusal("REFUND_NOT_RETRYABLE", "only a refund that failed for good can be tried again")


def deposit_not_found() -> Refusal:
    """NOT_FOUND, also for somebody else's deposit: the two cannot be told apart."""
    return Refusal("NOT_FOUND", "no such deposit")


def refund_not_found() -> Refusal:
    """NOT_FOUND: the deposit has no refund of that id."""
    return Refusal("NOT_FOUND", "no such refund")
