"""The restaurant as reservations see it: its policy, its slots, and what can be asked for there."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import asdict, dataclass
from datetime import UTC, date, datetime, time, timedelta
from enum import StrEnum
from functools import lru_cache
from zoneinfo import ZoneInfo

from dinemesh.kit import currency
from dinemesh.kit.digest import digest
from dinemesh.kit.refusal import Refusal, Violation

_DAY = timedelta(days=1)


class Acceptance(StrEnum):
    """AUTO accepts at once; MANUAL asks a person at the restaurant, within the policy's time limit."""

    AUTO = "AUTO"
    MANUAL = "MANUAL"


@dataclass(frozen=True, slots=True)
class Rules:
    """The service's own time limits."""

    attempt: timedelta
    """An attempt older than this is nobody's any more: the reconciling task may take it."""
    hold: timedelta
    """Seats are held this long for a deposit that is neither captured nor refused."""
    unmarked: timedelta
    """A reservation that the restaurant never marked is completed this long after the service ended."""
    horizon: timedelta
    """How far ahead a table can be booked."""
    attempts: int = 4
    """What one customer may have in flight: attempts whose deposit is not decided."""
    held_seats: int = 40
    """Seats that such attempts of one customer may hold together. One attempt alone may hold more."""
    unpaid_free: int = 3
    """So many attempts of a customer may come to nothing before the next one has to wait."""
    unpaid_pause: timedelta = timedelta(seconds=15)
    """How long it has to wait then; twice as long with each further one."""
    unpaid_window: timedelta = timedelta(minutes=10)
    """After which time an attempt that came to nothing is forgotten."""
    priced_modifications: int = 20
    """How often a reservation can be made dearer or cheaper. Each leaves a deposit or refunds, which every
    read, event and instruction about it carries from then on; nobody changes the size of a party more often
    than some few times."""
    changes_of_terms: int = 100
    """How often its terms can be changed in all. A move at the same price leaves no money behind, but the
    restaurant is asked again, and each asking is some five events and entries of the timeline."""

    lapse_share: float = 0.2
    """More than this share of those alive is not ended by the clock at once: it may have jumped,"""
    lapse_floor: int = 100
    """... unless they are no more than this: a small house that closes early."""

    @property
    def deposit_lines(self) -> int:
        """Deposits of a reservation, those counted that deposit_svc turned away by its load: they count as no
        modification, since the customer is asked to come back, and leave a line all the same."""
        return 1 + 3 * self.priced_modifications


@dataclass(frozen=True, slots=True)
class Policy:
    """A restaurant's terms of business, copied onto each reservation and frozen there. Amounts in minor
    units."""

    deposit_per_person: int
    currency: str
    free_cancel_window_seconds: int
    acceptance: Acceptance
    acceptance_limit_seconds: int
    acceptance_lead_seconds: int
    no_show_grace_seconds: int
    slot_interval_seconds: int
    service_duration_seconds: int
    max_party_size: int

    @property
    def etag(self) -> str:
        """Names these terms, as restaurant_svc names them."""
        return _etag(self)

    def price(self, party_size: int) -> int:
        """The deposit of a whole party, in minor units of the policy's currency."""
        return self.deposit_per_person * party_size

    def free_cancel_time(self, dine_time: datetime) -> datetime:
        """When free cancellation of a meal at `dine_time` ends; for a late booking that is past from the
        start."""
        return dine_time - timedelta(seconds=self.free_cancel_window_seconds)

    def accept_deadline(self, dine_time: datetime, asked_time: datetime) -> datetime:
        """When an unanswered booking is declined: a lead before the meal; where a person answers, the
        earlier of that and the time limit."""
        latest = dine_time - timedelta(seconds=self.acceptance_lead_seconds)
        if self.acceptance is Acceptance.AUTO:
            return latest
        return min(latest, asked_time + timedelta(seconds=self.acceptance_limit_seconds))

    def is_on_grid(self, local: time) -> bool:
        """Whether a table can be booked at this time of day at all; the grid is counted from local
        midnight."""
        seconds = local.hour * 3600 + local.minute * 60 + local.second
        return not local.microsecond and seconds % self.slot_interval_seconds == 0


@lru_cache(maxsize=1024)
def _etag(policy: Policy) -> str:
    return digest(asdict(policy))


@dataclass(frozen=True, slots=True)
class Restaurant:
    """Our copy of what a restaurant said of itself."""

    restaurant_id: str
    time_zone: str
    policy: Policy

    def local_day(self, instant: datetime) -> date:
        """The calendar day on which an aware `instant` falls where the restaurant is."""
        return instant.astimezone(ZoneInfo(self.time_zone)).date()

    def day_bounds(self, day: date) -> tuple[datetime, datetime]:
        """The UTC instants at which the restaurant's day begins and the next one begins."""
        zone = ZoneInfo(self.time_zone)
        first = datetime.combine(day, time(), zone).astimezone(UTC)
        return first, datetime.combine(day + _DAY, time(), zone).astimezone(UTC)


@dataclass(frozen=True, slots=True)
class Slot:
    """A dine time with its seats: on sale (0: closed) and sold, which is more than `capacity` if that was
    lowered later."""

    dine_time: datetime
    capacity: int
    sold: int

    def can_take(self, party_size: int) -> bool:
        """Whether so many seats are free as it was read; only the conditional update of the hold decides."""
        return self.sold + party_size <= self.capacity


@dataclass(frozen=True, slots=True)
class SlotSnapshot:
    """A slot as the restaurant last set it."""

    dine_time: datetime
    capacity: int
    version: int


@dataclass(frozen=True, slots=True)
class Offer:
    """A slot as it is offered to a party; the deposit in minor units."""

    dine_time: datetime
    is_available: bool
    deposit: int
    free_cancel_time: datetime


def check_table(
    restaurant: Restaurant, dine_time: datetime, now: datetime, rules: Rules
) -> Iterable[Violation]:
    """What is wrong with a dine_time, apart from whether a seat is free."""
    lead = restaurant.policy.acceptance_lead_seconds
    if dine_time <= now:
        yield Violation("dine_time", "is past; a table can be booked for the future only")
    elif dine_time <= now + timedelta(seconds=lead):
        yield Violation(
            "dine_time", f"must be more than {lead} seconds from now, so that the restaurant can answer"
        )
    elif dine_time > now + rules.horizon:
        yield Violation("dine_time", f"must be at most {rules.horizon.days} days from now")
    elif not restaurant.policy.is_on_grid(dine_time.astimezone(ZoneInfo(restaurant.time_zone)).time()):
        interval = restaurant.policy.slot_interval_seconds
        yield Violation(
            "dine_time", f"must be a multiple of {interval} seconds from midnight, {restaurant.time_zone}"
        )


def check_policy(
    restaurant: Restaurant, shown: str, dine_time: datetime, party_size: int, now: datetime, rules: Rules
) -> None:
    """Refuses other terms than those that the customer was shown (`shown`: their etag), and says what holds
    now."""
    policy = restaurant.policy
    if shown == policy.etag or not now < dine_time <= now + rules.horizon:
        return  # nothing is offered at such a time, on whatever terms: that is what is wrong first
    deposit, free_until = policy.price(party_size), policy.free_cancel_time(dine_time)
    local = free_until.astimezone(ZoneInfo(restaurant.time_zone)).strftime("%Y-%m-%d %H:%M")
    until = f"free to cancel until {local} ({restaurant.time_zone})"
    raise Refusal(
        "POLICY_CHANGED",
        "The restaurant's terms are not those that were shown. The deposit for this party is now "
        f"{currency.text(deposit, policy.currency)}, {until if now < free_until else 'not free to cancel'}. "
        "Nothing was reserved or charged: look at the slots again.",
        metadata={
            "policy_etag": policy.etag,
            "deposit": currency.amount(deposit, policy.currency),
            "currency_code": policy.currency,
            "free_cancel_time": free_until.strftime("%Y-%m-%dT%H:%M:%SZ"),
        },
    )


def check_party(policy: Policy, party_size: int) -> Iterable[Violation]:
    """What is wrong with a party: at most that it is larger than the policy allows."""
    if party_size > policy.max_party_size:
        yield Violation("party_size", f"must be between 1 and {policy.max_party_size} at this restaurant")
