"""The rows that an audit looks at, as values: those columns of the services' tables that it needs, and the
provider's record."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime, timedelta
from functools import lru_cache
from typing import Any

from dinemesh.kit import currency as currencies

HOLDING = frozenset({"PENDING_DEPOSIT", "PENDING_ACCEPTANCE", "CONFIRMED", "SEATED", "COMPLETED", "NO_SHOW"})
"""Seats of a meal that was eaten, or that nobody came to, stay sold: nobody else could have had them."""
ALIVE = frozenset({"PENDING_DEPOSIT", "PENDING_ACCEPTANCE", "CONFIRMED", "SEATED"})
"""The states of a reservation that has not come to its end."""


@dataclass(frozen=True)
class Reservation:
    """A row of reservation's own table; `price` is in minor units of `currency`, times are aware UTC."""

    reservation_id: str
    customer_id: str
    restaurant_id: str
    state: str
    cancelled_by: str | None
    dine_time: datetime
    party_size: int
    price: int
    revision: int
    update_time: datetime
    hold_expire_time: datetime
    accept_deadline: datetime | None
    due_time: datetime | None = None
    """When the clock has something to do with it."""
    policy: str = ""
    """The restaurant's terms when it was made, as JSON."""

    @property
    def currency(self) -> str:
        """Returns the ISO 4217 code in `policy`, or an empty string if the policy cannot be read."""
        return str(self._terms.get("currency", ""))

    @property
    def service_end(self) -> datetime:
        """When the guests leave the table."""
        return self.dine_time + timedelta(seconds=int(self._terms.get("service_duration_seconds", 0)))

    @property
    def _terms(self) -> Mapping[str, Any]:
        return _terms(self.policy)


@lru_cache(maxsize=1000)
def _terms(policy: str) -> Mapping[str, Any]:
    # What nobody can read is listed as failing, and must not hide all else.
    try:
        found = json.loads(policy)
    except ValueError:
        return {}
    return found if isinstance(found, dict) else {}


@dataclass(frozen=True)
class Line:
    """A deposit as reservation knows it."""

    deposit_id: str
    reservation_id: str
    amount: int
    state: str
    captured: bool


@dataclass(frozen=True)
class Instruction:
    """An order of reservation to deposit."""

    instruction_id: str
    reservation_id: str
    kind: str
    deposit_id: str
    amount: int


@dataclass(frozen=True)
class Modification:
    """An open one: it holds seats and waits for its deposit."""

    modification_id: str
    reservation_id: str
    deposit_id: str
    dine_time: datetime
    party_size: int
    attempt_deadline: datetime
    hold_expire_time: datetime


@dataclass(frozen=True)
class Asked:
    """A modification that waited for a deposit, whatever became of it."""

    modification_id: str
    reservation_id: str
    state: str


@dataclass(frozen=True)
class Request:
    """What a request id of a customer has led to."""

    customer_id: str
    request_id: str
    reservation_id: str
    modification_id: str | None


@dataclass(frozen=True)
class Slot:
    """A time at a restaurant in reservation's seat inventory; `capacity` and `sold` count seats."""

    restaurant_id: str
    dine_time: datetime
    capacity: int
    sold: int


@dataclass(frozen=True)
class Holding:
    """The seats of a slot that live reservations and open modifications hold."""

    restaurant_id: str
    dine_time: datetime
    seats: int


@dataclass(frozen=True)
class Deposit:
    """A row of deposit's own table; amounts are in minor units of `currency`."""

    deposit_id: str
    customer_id: str
    reservation_id: str
    currency: str
    state: str
    void_ordered: bool
    captured_minor: int
    refunding_minor: int
    refunded_minor: int
    refund_failed_minor: int
    forfeited_minor: int
    update_time: datetime

    @property
    def held(self) -> int:
        """Returns the captured minor units that are in no refund, not even a pending or failed one, nor
        forfeited."""
        gone = self.refunding_minor + self.refunded_minor + self.refund_failed_minor + self.forfeited_minor
        return self.captured_minor - gone

    def money(self, minor: int) -> str:
        """Renders minor units of this deposit's currency for people: "12.50 EUR"."""
        return currencies.text(minor, self.currency)


@dataclass(frozen=True)
class Refund:
    """Money on its way back: PENDING, SUCCEEDED or FAILED. `attempt` counts an operator's retries."""

    refund_id: str
    deposit_id: str
    amount_minor: int
    state: str
    attempt: int
    failure_code: str
    update_time: datetime


@dataclass(frozen=True)
class Forfeit:
    """What the restaurant keeps of a deposit; `forfeit_id` is the id of the instruction that ordered it."""

    forfeit_id: str
    deposit_id: str
    amount_minor: int


@dataclass(frozen=True)
class Applied:
    """What deposit made of an instruction: WAITING, APPLIED or NO_EFFECT."""

    kind: str
    instruction_id: str
    deposit_id: str
    state: str
    create_time: datetime


@dataclass(frozen=True)
class Entry:
    """One side of a movement in the ledger."""

    movement_id: str
    kind: str
    deposit_id: str
    account: str
    currency: str
    amount_minor: int


@dataclass(frozen=True)
class Booking:
    """The restaurant's copy of a reservation; `confirmed` says whether it has heard of CONFIRMED."""

    reservation_id: str
    restaurant_id: str
    state: str
    confirmed: bool
    revision: int
    dine_time: datetime
    party_size: int
    update_time: datetime


@dataclass(frozen=True)
class Outgoing:
    """A row of an outbox."""

    source: str
    event_id: str
    routing_key: str
    create_time: datetime
    sent: bool
    tries: int = 0
    """How often the broker has refused it."""
    aggregate_id: str = ""
    aggregate_version: int = 0


@dataclass(frozen=True)
class Failing:
    """What fails while a service reconciles it, and is looked at again at `next_time`."""

    service: str
    subject: str
    tries: int
    since_time: datetime
    next_time: datetime
    error: str


@dataclass(frozen=True)
class Held:
    """The clock of a database that is not trusted to end what became due after `trusted_time` (None:
    anything): at `held_time` it would have ended so many bookings of those alive."""

    trusted_time: datetime | None
    held_time: datetime
    held_count: int
    alive_count: int


@dataclass(frozen=True)
class Told:
    """An entry of the timeline."""

    event_id: str
    source: str
    type: str
    occur_time: datetime


@dataclass(frozen=True)
class Version:
    """The highest version of an aggregate that a subscriber has taken."""

    subscriber: str
    aggregate: str
    version: int


@dataclass(frozen=True)
class ProviderRefund:
    """A refund in the provider's record; `key` is deposit's refund id, with /n for the n-th retry."""

    key: str
    minor: int
    succeeded: bool
    currency: str = ""


@dataclass(frozen=True)
class Charge:
    """What the provider has recorded under a key."""

    key: str
    state: str
    minor: int
    currency: str
    refunds: tuple[ProviderRefund, ...]

    @property
    def captured(self) -> bool:
        """Returns True if the card was charged; DECLINED and CLOSED moved no money."""
        return self.state == "CAPTURED"
