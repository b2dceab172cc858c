"""An entry of the timeline, and the sentence by which a person reads it.

An entry is made of one event alone. Nothing in it depends on what arrived before, so that a timeline which is
rebuilt from its events, in whatever order, is the same timeline.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime
from enum import Enum
from typing import NamedTuple

from dinemesh.kit import currency
from dinemesh.kit.refusal import Refusal


class Kind(Enum):
    """What happened. UNKNOWN: an event that this version has no words for; it is kept all the same."""

    UNKNOWN = "UNKNOWN"
    RESERVATION_PLACED = "RESERVATION_PLACED"
    RESERVATION_CONFIRMED = "RESERVATION_CONFIRMED"
    RESERVATION_MODIFIED = "RESERVATION_MODIFIED"
    RESERVATION_MODIFICATION_FAILED = "RESERVATION_MODIFICATION_FAILED"
    RESERVATION_DECLINED = "RESERVATION_DECLINED"
    RESERVATION_CANCELLED = "RESERVATION_CANCELLED"
    RESERVATION_FAILED = "RESERVATION_FAILED"
    RESERVATION_SEATED = "RESERVATION_SEATED"
    RESERVATION_COMPLETED = "RESERVATION_COMPLETED"
    RESERVATION_NO_SHOW_RECORDED = "RESERVATION_NO_SHOW_RECORDED"
    DEPOSIT_CAPTURED = "DEPOSIT_CAPTURED"
    DEPOSIT_DECLINED = "DEPOSIT_DECLINED"
    DEPOSIT_VOIDED = "DEPOSIT_VOIDED"
    DEPOSIT_REFUNDED = "DEPOSIT_REFUNDED"
    DEPOSIT_REFUND_FAILED = "DEPOSIT_REFUND_FAILED"
    DEPOSIT_FORFEITED = "DEPOSIT_FORFEITED"
    BOOKING_RECEIVED = "BOOKING_RECEIVED"
    BOOKING_ACCEPTED = "BOOKING_ACCEPTED"
    BOOKING_DECLINED = "BOOKING_DECLINED"
    BOOKING_SEATED = "BOOKING_SEATED"
    BOOKING_NO_SHOW_MARKED = "BOOKING_NO_SHOW_MARKED"
    BOOKING_COMPLETED = "BOOKING_COMPLETED"
    BOOKING_WITHDRAWN = "BOOKING_WITHDRAWN"


class Cause(Enum):
    """Who or what brought it about, where an event says so."""

    CUSTOMER = "CUSTOMER"
    RESTAURANT = "RESTAURANT"
    DEADLINE = "DEADLINE"
    CARD_DECLINED = "CARD_DECLINED"
    DEPOSIT_OVERLOADED = "DEPOSIT_OVERLOADED"
    DEPOSIT_UNKNOWN = "DEPOSIT_UNKNOWN"
    DEPOSIT_VOIDED = "DEPOSIT_VOIDED"


class Money(NamedTuple):
    """An amount in minor units of an ISO 4217 currency."""

    minor: int
    currency: str

    def __str__(self) -> str:
        return currency.text(self.minor, self.currency)


class Terms(NamedTuple):
    """What was booked."""

    dine_time: datetime
    party_size: int

    def __str__(self) -> str:
        # Without strftime's names, which depend on the locale of the process.
        day = f"{_DAYS[self.dine_time.weekday()]} {self.dine_time.day} {_MONTHS[self.dine_time.month - 1]}"
        return f"a table for {self.party_size} on {day} {self.dine_time.year}, {self.dine_time:%H:%M} UTC"


_DAYS = ("Mon", "Tue", "Wed", "Thu", "Fri", "Sat", "Sun")
_MONTHS = ("Jan", "Feb", "Mar", "Apr", "May", "Jun", "Jul", "Aug", "Sep", "Oct", "Nov", "Dec")


@dataclass(frozen=True, slots=True)
class Facts:
    """What an event says, as far as a timeline shows it. Empty where it says nothing."""

    restaurant_id: str = ""
    deposit_id: str = ""
    state: str = ""
    revision: int = 0
    terms: Terms | None = None
    previous: Terms | None = None
    amount: Money | None = None
    refunded: Money | None = None
    forfeited: Money | None = None
    cause: Cause | None = None
    code: str = ""


@dataclass(frozen=True, slots=True)
class Origin:
    """Where an event comes from. The customer is "" for events that concern none."""

    event_id: str
    type: str
    source: str
    aggregate_id: str
    aggregate_version: int
    occur_time: datetime
    customer_id: str
    reservation_id: str
    correlation_id: str
    causation_id: str


@dataclass(frozen=True, slots=True)
class Entry:
    """One line of the timeline: one event, never changed."""

    origin: Origin
    kind: Kind
    facts: Facts
    summary: str


class Archived(NamedTuple):
    """An event as it came, from which an entry can be made anew: `envelope` is its bytes."""

    event_id: str
    envelope: bytes


def entry(origin: Origin, kind: Kind, facts: Facts) -> Entry:
    """The entry that an event makes."""
    sentence = _SENTENCES.get(kind)
    summary = sentence(facts) if sentence else f"Something happened that has no words yet: {origin.type}."
    return Entry(origin, kind, facts, summary)


def unknown(origin: Origin) -> Entry:
    """The entry of an event whose type this version does not know."""
    return entry(origin, Kind.UNKNOWN, Facts())


class Place(NamedTuple):
    """Where an entry stands in the timeline: it is read in this order."""

    occur_time: datetime
    event_id: str


@dataclass(frozen=True, slots=True)
class Past:
    """A watch that still reads what there was when it began: up to the arrival `head`, from a place on."""

    head: int
    after: Place | None = None


@dataclass(frozen=True, slots=True)
class Live:
    """A watch that has read all arrivals up to `position`, and waits for the next one."""

    position: int


Cursor = Past | Live


def reservation_not_found() -> Refusal:
    """No entry of that reservation belongs to the caller: somebody else's, or none that was heard of yet."""
    return Refusal("NOT_FOUND", "there is no timeline of such a reservation")


# The sentences


def _placed(facts: Facts) -> str:
    return f"You asked for {_table(facts)}; the deposit of {_money(facts.amount)} is paid."


def _confirmed(facts: Facts) -> str:
    return f"Your reservation is confirmed: {_table(facts)}."


def _modified(facts: Facts) -> str:
    before = f" from {facts.previous}" if facts.previous else ""
    return f"You changed your reservation{before} to {_table(facts)}; the restaurant is asked again."


def _modification_failed(facts: Facts) -> str:
    return f"Your change was not made: {_why(facts)}. You still have {_table(facts)}."


def _declined(facts: Facts) -> str:
    what = "did not answer in time for" if facts.cause is Cause.DEADLINE else "declined"
    return f"The restaurant {what} {_table(facts)}; your deposit goes back to you."


def _cancelled(facts: Facts) -> str:
    who = "The restaurant" if facts.cause is Cause.RESTAURANT else "You"
    return f"{who} cancelled {_table(facts)}{_outcome(facts)}."


def _failed(facts: Facts) -> str:
    return f"Your request for {_table(facts)} did not become a reservation: {_why(facts)}."


def _seated(_facts: Facts) -> str:
    return "You are seated; your deposit goes back to you."


def _completed(_facts: Facts) -> str:
    return "Your visit is completed."


def _no_show(facts: Facts) -> str:
    return f"Nobody came for {_table(facts)}{_outcome(facts)}."


def _charged(facts: Facts) -> str:
    return f"A deposit of {_money(facts.amount)} was charged to your card."


def _charge_declined(facts: Facts) -> str:
    code = f" ({facts.code})" if facts.code else ""
    return f"Your card was declined{code}; nothing was charged."


def _voided(_facts: Facts) -> str:
    return "A deposit was called off; nothing was charged."


def _refunded(facts: Facts) -> str:
    return f"{_money(facts.amount)} went back to your card."


def _refund_failed(facts: Facts) -> str:
    return f"{_money(facts.amount)} could not be returned to your card yet; it is being looked into."


def _forfeited(facts: Facts) -> str:
    return f"{_money(facts.amount)} of your deposit is kept by the restaurant."


def _received(facts: Facts) -> str:
    return f"The restaurant received your request for {_table(facts)}."


def _accepted(facts: Facts) -> str:
    return f"The restaurant accepted {_table(facts)}."


def _booking_declined(facts: Facts) -> str:
    return f"The restaurant said no to {_table(facts)}."


def _booking_seated(_facts: Facts) -> str:
    return "The restaurant has seated you."


def _marked(_facts: Facts) -> str:
    return "The restaurant noted that nobody came."


def _left(_facts: Facts) -> str:
    return "The restaurant noted the end of your visit."


def _withdrawn(_facts: Facts) -> str:
    return "The restaurant knows that your reservation has ended."


_SENTENCES: dict[Kind, Callable[[Facts], str]] = {
    Kind.RESERVATION_PLACED: _placed,
    Kind.RESERVATION_CONFIRMED: _confirmed,
    Kind.RESERVATION_MODIFIED: _modified,
    Kind.RESERVATION_MODIFICATION_FAILED: _modification_failed,
    Kind.RESERVATION_DECLINED: _declined,
    Kind.RESERVATION_CANCELLED: _cancelled,
    Kind.RESERVATION_FAILED: _failed,
    Kind.RESERVATION_SEATED: _seated,
    Kind.RESERVATION_COMPLETED: _completed,
    Kind.RESERVATION_NO_SHOW_RECORDED: _no_show,
    Kind.DEPOSIT_CAPTURED: _charged,
    Kind.DEPOSIT_DECLINED: _charge_declined,
    Kind.DEPOSIT_VOIDED: _voided,
    Kind.DEPOSIT_REFUNDED: _refunded,
    Kind.DEPOSIT_REFUND_FAILED: _refund_failed,
    Kind.DEPOSIT_FORFEITED: _forfeited,
    Kind.BOOKING_RECEIVED: _received,
    Kind.BOOKING_ACCEPTED: _accepted,
    Kind.BOOKING_DECLINED: _booking_declined,
    Kind.BOOKING_SEATED: _booking_seated,
    Kind.BOOKING_NO_SHOW_MARKED: _marked,
    Kind.BOOKING_COMPLETED: _left,
    Kind.BOOKING_WITHDRAWN: _withdrawn,
}

_WHY: dict[Cause | None, str] = {
    Cause.CARD_DECLINED: "the card was declined",
    Cause.DEPOSIT_OVERLOADED: "the deposit could not be charged at that moment, and nothing was",
    Cause.DEPOSIT_UNKNOWN: "the payment gave no answer in time; if the card was charged, it all goes back",
    Cause.DEPOSIT_VOIDED: "the deposit had been called off",
}


def _table(facts: Facts) -> str:
    return str(facts.terms) if facts.terms else "a table"


def _money(amount: Money | None) -> str:
    return str(amount) if amount else "an unknown amount"


def _why(facts: Facts) -> str:
    return _WHY.get(facts.cause, "the payment did not succeed")


def _outcome(facts: Facts) -> str:
    parts = []
    if facts.refunded and facts.refunded.minor:
        parts.append(f"{facts.refunded} goes back to you")
    if facts.forfeited and facts.forfeited.minor:
        parts.append(f"{facts.forfeited} is kept by the restaurant")
    return f"; {', '.join(parts)}" if parts else ""
