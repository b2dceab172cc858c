"""What is known of deposits, what a charge came to, and what is ordered about the money."""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import StrEnum


class DepositState(StrEnum):
    """States that deposit_svc tells of a deposit, in its own words; VOIDING, REFUNDING and FORFEITED are
    shown here as soon as they are ordered."""

    PENDING = "PENDING"
    CAPTURED = "CAPTURED"
    DECLINED = "DECLINED"
    VOIDING = "VOIDING"
    VOIDED = "VOIDED"
    REFUNDING = "REFUNDING"
    REFUNDED = "REFUNDED"
    FORFEITED = "FORFEITED"
    REFUND_FAILED = "REFUND_FAILED"


class Kind(StrEnum):
    """What an instruction does: VOID closes the deposit for good, REFUND sends an amount back, FORFEIT lets
    the restaurant keep it."""

    VOID = "VOID"
    REFUND = "REFUND"
    FORFEIT = "FORFEIT"


class Cause(StrEnum):
    """The move that ordered an instruction."""

    FAILED = "FAILED"
    MODIFIED = "MODIFIED"
    MODIFICATION_FAILED = "MODIFICATION_FAILED"
    DECLINED = "DECLINED"
    CANCELLED = "CANCELLED"
    SEATED = "SEATED"
    NO_SHOW = "NO_SHOW"
    COMPLETED = "COMPLETED"


@dataclass(frozen=True, slots=True)
class Captured:
    """The money is with us."""


@dataclass(frozen=True, slots=True)
class Declined:
    """The card was refused; `code` is the provider's word for it, such as insufficient_funds."""

    code: str = ""


@dataclass(frozen=True, slots=True)
class NotCharged:
    """Turned away before anything was written; `retry_after` in seconds if a time was named."""

    retry_after: float | None = None


@dataclass(frozen=True, slots=True)
class Unknown:
    """It may or may not have been charged; `detail` is for the log. `answered`: deposit_svc itself said so,
    which says nothing against deposit_svc."""

    detail: str = ""
    answered: bool = False


@dataclass(frozen=True, slots=True)
class Voided:
    """The deposit is void: it can never be captured and kept."""


@dataclass(frozen=True, slots=True)
class Charge:
    """What is asked of deposit_svc, once per attempt."""

    deposit_id: str
    reservation_id: str
    customer_id: str
    amount: int
    currency: str
    payment_token: str = field(repr=False)


DepositOutcome = Captured | Declined | NotCharged | Voided | Unknown


@dataclass(frozen=True, slots=True)
class DepositSnapshot:
    """A deposit as deposit_svc last described it; `captured` also when it was returned since."""

    deposit_id: str
    state: DepositState
    captured: bool
    decline_code: str = ""


@dataclass(frozen=True, slots=True)
class DepositLine:
    """One deposit of a reservation. `state` is what was last heard or ordered."""

    deposit_id: str
    amount: int
    state: DepositState = DepositState.PENDING
    captured: bool = False


@dataclass(frozen=True, slots=True)
class Instruction:
    """An order to deposit_svc, carried out once by its id. A void has the amount 0: it covers whatever was
    taken."""

    instruction_id: str
    kind: Kind
    deposit_id: str
    amount: int
    cause: Cause
