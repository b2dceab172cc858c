"""What clients were told: one `Answer` for each call that they made."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from enum import StrEnum


class Call(StrEnum):
    RESERVE = "reserve"
    MODIFY = "modify"
    CANCEL = "cancel"
    READ = "read"
    ACCEPT = "accept"
    DECLINE = "decline"
    SEAT = "seat"
    NO_SHOW = "no-show"
    COMPLETE = "complete"


STAFF = frozenset({Call.ACCEPT, Call.DECLINE, Call.SEAT, Call.NO_SHOW, Call.COMPLETE})


@dataclass(frozen=True)
class Terms:
    restaurant_id: str
    dine_time: datetime
    party_size: int


@dataclass(frozen=True)
class Seen:
    """A reservation as an answer showed it; states and times as the contract names them."""

    reservation_id: str
    customer_id: str
    state: str
    revision: int
    terms: Terms


@dataclass(frozen=True)
class SeenBooking:
    """A booking as an answer to staff showed it."""

    reservation_id: str
    state: str
    revision: int


@dataclass(frozen=True)
class Refusal:
    code: str
    reason: str
    """Empty where there was none, as of a lost connection."""
    retry_after: float | None = None
    state: str = ""
    """In which state the thing is, where the refusal says so."""


UNKNOWN = frozenset(
    {"UNAVAILABLE", "DEADLINE_EXCEEDED", "CANCELLED", "OUTCOME_UNKNOWN", "REQUEST_IN_PROGRESS"}
)
"""Codes without a reason, or reasons, that leave open what happened."""


@dataclass(frozen=True)
class Answer:
    """`begin` and `end` in seconds of one monotonic clock. `request_id` of reserve and modify; `asked`: the
    terms wanted; `card`: the payment token. Amounts in minor units."""

    call: Call
    customer: str
    begin: float
    end: float
    request_id: str = ""
    reservation_id: str = ""
    asked: Terms | None = None
    card: str = ""
    seen: Seen | None = None
    booking: SeenBooking | None = None
    refunded: int = 0
    forfeited: int = 0
    refusal: Refusal | None = None

    @property
    def service(self) -> str:
        """Who was asked."""
        return "restaurant" if self.call in STAFF else "reservation"

    @property
    def good(self) -> bool:
        return self.refusal is None

    @property
    def unknown(self) -> bool:
        """Whether the client cannot know from this answer what happened."""
        return self.refusal is not None and (self.refusal.reason or self.refusal.code) in UNKNOWN

    @property
    def outcome(self) -> str:
        """A word for counting: "ok", or the reason of the refusal, or its code."""
        return "ok" if self.refusal is None else self.refusal.reason or self.refusal.code


@dataclass
class Jump:
    """A time in which a service's clock was `by` ahead, from `begin` to `end` of the clock of the answers;
    `first`: what it showed at the beginning. `alive`: reservations by state just before."""

    service: str
    by: timedelta
    first: datetime
    begin: float
    end: float = math.inf
    alive: Counter[str] = field(default_factory=Counter)

    def touches(self, answer: Answer) -> bool:
        return answer.begin <= self.end and answer.end >= self.begin


@dataclass
class Record:
    """Everything that was answered, in the order in which it ended. Each customer has one wish: one
    request_id to reserve. `given_up`: request ids that their clients did not repeat to the end."""

    answers: list[Answer] = field(default_factory=list)
    given_up: set[str] = field(default_factory=set)
    jumps: list[Jump] = field(default_factory=list)

    def of_request(self, request_id: str) -> Sequence[Answer]:
        return [one for one in self.answers if one.request_id == request_id]
