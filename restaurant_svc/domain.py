"""What a restaurant is, when its tables are open, and what becomes of a booking.

A change returns a new value or raises a named refusal. Nothing here knows a database, a message or a clock.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from datetime import UTC, date, datetime, time, timedelta
from enum import StrEnum
from typing import NamedTuple
from zoneinfo import ZoneInfo

from dinemesh.kit.currency import is_means_of_payment
from dinemesh.kit.digest import digest
from dinemesh.kit.instants import EPOCH
from dinemesh.kit.refusal import Refusal, Violation, invalid, invalid_all

DAY_SECONDS = 86_400

MAX_NAME = 200

# Before any booking.
EARLIEST = EPOCH

# One call speaks of at most this many slots: a year of evenings, with a table each quarter of an hour.
MAX_SLOTS = 10_000
# A day has at most this many, one a minute, closed ones counted: what a restaurant can make others read and
# keep. Days that had more before there was this limit keep them.
MAX_SLOTS_OF_DAY = 1_440
# Slots that are set in one transaction and told in one event: some milliseconds of the writer.
SLOTS_AT_ONCE = 50
MAX_DAYS = 366
MAX_CAPACITY = 100_000
# The deposit of the largest party, in minor units: beyond it no charge could succeed, nor any booking.
MAX_DEPOSIT = 10**12
# Zone rules change; what lies further ahead would be opened at an hour nobody can promise.
MAX_DAYS_AHEAD = 732

# Guests who come early are seated; a booking of tomorrow is not.
EARLY_SEATING = timedelta(hours=2)
# The reservation completes and refunds by itself a day after the service ends.
UNMARKED_LIMIT = timedelta(hours=24)


# --- restaurants


class Acceptance(StrEnum):
    """AUTO accepts at once; MANUAL asks a person, within the policy's time limit."""

    AUTO = "AUTO"
    MANUAL = "MANUAL"


@dataclass(frozen=True, slots=True)
class Policy:
    """The terms of a restaurant, copied onto each reservation. Money in minor units."""

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
        """Names these terms, as reservation_svc names its copy of them."""
        return digest(asdict(self))


_POLICY_BOUNDS = {
    "free_cancel_window_seconds": (0, 365 * DAY_SECONDS),
    "acceptance_lead_seconds": (0, 30 * DAY_SECONDS),
    "no_show_grace_seconds": (0, DAY_SECONDS),
    "slot_interval_seconds": (1, DAY_SECONDS),
    "service_duration_seconds": (60, DAY_SECONDS),
    "max_party_size": (1, 1000),
}


def check_policy(policy: Policy, field: str = "policy") -> None:
    """Refuses a policy that is out of bounds, naming every field that is."""
    wrong: list[Violation] = []
    if not is_means_of_payment(policy.currency):
        wrong.append(
            Violation(
                f"{field}.deposit_per_person.currency_code",
                "must be a currency of ISO 4217 that is paid with, such as EUR, JPY or KWD",
            )
        )
    if policy.deposit_per_person <= 0:
        wrong.append(Violation(f"{field}.deposit_per_person", "must be greater than zero"))
    elif policy.deposit_per_person * policy.max_party_size > MAX_DEPOSIT:
        wrong.append(
            Violation(
                f"{field}.deposit_per_person",
                f"times max_party_size must be at most {MAX_DEPOSIT} of the currency's smallest unit",
            )
        )
    bounds = dict(_POLICY_BOUNDS)
    # Only a person has a limit, so an automatic restaurant may leave it out.
    bounds["acceptance_limit_seconds"] = (policy.acceptance is Acceptance.MANUAL, 30 * DAY_SECONDS)
    for name, (lowest, highest) in bounds.items():
        if not lowest <= getattr(policy, name) <= highest:
            wrong.append(Violation(f"{field}.{name}", f"must be between {int(lowest)} and {highest}"))
    if wrong:
        raise invalid_all(wrong)


@dataclass(frozen=True, slots=True)
class Restaurant:
    """A restaurant with the policy that it offers now; what is booked keeps the one it was booked under.
    `version` grows with each change."""

    restaurant_id: str
    name: str
    time_zone: str
    policy: Policy
    version: int
    create_time: datetime
    update_time: datetime

    @property
    def etag(self) -> str:
        """The version, which changes with the name as well; `policy.etag` names the terms alone."""
        return str(self.version)

    @property
    def zone(self) -> ZoneInfo:
        """The IANA zone of its calendar: in it its days begin and its slots are counted."""
        return ZoneInfo(self.time_zone)


@dataclass(frozen=True, slots=True)
class RestaurantCreated:
    """A restaurant is there, at version 1."""

    restaurant: Restaurant


@dataclass(frozen=True, slots=True)
class RestaurantUpdated:
    """The name or the policy of a restaurant has changed; what is booked keeps its terms."""

    restaurant: Restaurant


_ZONE_NAME = re.compile(r"[A-Za-z][A-Za-z0-9_+\-]*(/[A-Za-z0-9_+\-]+){0,2}", re.ASCII)
# Files that stand beside the zones, and what depends on the machine.
_NOT_A_ZONE = frozenset({"localtime", "posixrules", "posix", "right", "Factory"})


def time_zone(name: str, field: str) -> ZoneInfo:
    """The IANA time zone of that name."""
    try:
        if not _ZONE_NAME.fullmatch(name) or name.split("/")[0] in _NOT_A_ZONE:
            raise ValueError(name)
        return ZoneInfo(name)
    except (ValueError, OSError, KeyError):  # a folder, a file that is no zone, an unknown key
        raise invalid(field, "must be an IANA time zone such as Europe/Berlin") from None


def updated(restaurant: Restaurant, *, name: str | None, policy: Policy | None, now: datetime) -> Restaurant:
    """The restaurant with a new name or policy (None keeps it); the same value if nothing is different."""
    changed = replace(restaurant, name=name or restaurant.name, policy=policy or restaurant.policy)
    if changed == restaurant:
        return restaurant
    return replace(changed, version=restaurant.version + 1, update_time=now)


# --- slots


@dataclass(frozen=True, slots=True)
class Slot:
    """A dine time and the seats on sale for it (0: closed). `version` grows with each change."""

    dine_time: datetime
    capacity: int
    version: int


@dataclass(frozen=True, slots=True)
class SlotsChanged:
    """The slots of one local day that changed, in order of time. `number` counts the changes of that day from
    1."""

    restaurant_id: str
    local_date: date
    number: int
    slots: tuple[Slot, ...]


def instant(zone: ZoneInfo, day: date, at: time) -> datetime | None:
    """When that local time comes: None if daylight saving skips it, the first if it comes twice."""
    local = datetime.combine(day, at.replace(fold=0), tzinfo=zone)
    moment = local.astimezone(UTC)
    return (
        moment if moment.astimezone(zone).replace(tzinfo=None, fold=0) == local.replace(tzinfo=None) else None
    )


def local_day(zone: ZoneInfo, moment: datetime) -> date:
    """The calendar day on which an aware `moment` falls in that zone."""
    return moment.astimezone(zone).date()


def on_grid(at: time, interval_seconds: int) -> bool:
    """Dine times lie on multiples of the interval, counted on the clock from local midnight."""
    return (at.hour * 3600 + at.minute * 60 + at.second) % interval_seconds == 0


@dataclass(frozen=True, slots=True)
class Span:
    """The local days (both included) and the local times that one call speaks of; `times` None: all of
    them."""

    first_date: date
    last_date: date
    times: tuple[time, ...] | None

    def days(self) -> Iterable[date]:
        """Each local day in order, both ends included; none if `last_date` comes first."""
        for offset in range((self.last_date - self.first_date).days + 1):
            yield self.first_date + timedelta(days=offset)


DineTimes = Mapping[date, Sequence[datetime]]


def check_span(span: Span, today: date) -> None:
    """Refuses what is out of bounds, naming each field. `today` is the restaurant's local day."""
    wrong: list[Violation] = []
    days = (span.last_date - span.first_date).days + 1
    if days < 1:
        wrong.append(Violation("last_date", "must not be before first_date"))
    elif days > MAX_DAYS:
        wrong.append(Violation("last_date", f"must leave at most {MAX_DAYS} days in all"))
    elif days * len(span.times or ()) > MAX_SLOTS:
        wrong.append(Violation("times", f"must make at most {MAX_SLOTS} slots over all days"))
    # Where the caller lives it may still be yesterday.
    if span.first_date < today - timedelta(days=1):
        wrong.append(Violation("first_date", "must be yesterday or later, where the restaurant is"))
    if span.last_date > today + timedelta(days=MAX_DAYS_AHEAD):
        wrong.append(Violation("last_date", f"must be at most {MAX_DAYS_AHEAD} days ahead"))
    if wrong:
        raise invalid_all(wrong)


def dine_times_to_open(restaurant: Restaurant, span: Span) -> DineTimes:
    """The instants of a span, day by day. Refuses times off the grid, and those that are skipped."""
    interval = restaurant.policy.slot_interval_seconds
    wrong = [
        Violation(f"times[{position}]", f"{at} is not a multiple of {interval} seconds after midnight")
        for position, at in enumerate(span.times or ())
        if not on_grid(at, interval)
    ]
    if wrong:
        raise invalid_all(wrong)
    days = dine_times(restaurant, span)
    skipped: dict[str, str] = {}
    for day in (day for day, moments in days.items() if len(moments) < len(set(span.times or ()))):
        for position, at in enumerate(span.times or ()):
            if instant(restaurant.zone, day, at) is None:
                told = f"{at} does not exist on {day} in {restaurant.time_zone}: the clocks go forward"
                skipped.setdefault(f"times[{position}]", told)
    if skipped:
        raise invalid_all(Violation(field, told) for field, told in skipped.items())
    return days


def dine_times(restaurant: Restaurant, span: Span) -> DineTimes:
    """The instants of a span, day by day. Times that daylight saving skips are passed over: nothing can be
    open then."""
    zone = restaurant.zone
    return {
        day: sorted({moment for at in span.times or () if (moment := instant(zone, day, at)) is not None})
        for day in span.days()
    }


def groups(days: DineTimes) -> Iterable[DineTimes]:
    """The same dine times in parts of at most SLOTS_AT_ONCE each, in order."""
    part: dict[date, Sequence[datetime]] = {}
    room = SLOTS_AT_ONCE
    for day, moments in days.items():
        start = 0
        while start < len(moments):
            part[day] = taken = moments[start : start + room]
            start += len(taken)
            room -= len(taken)
            if not room:
                yield part
                part, room = {}, SLOTS_AT_ONCE
    if part:
        yield part


def too_many_slots_of_day(local_date: date) -> Refusal:
    """INVALID_ARGUMENT: the day would have more than MAX_SLOTS_OF_DAY slots, closed ones counted."""
    return invalid(
        "times",
        f"must leave at most {MAX_SLOTS_OF_DAY} slots on {local_date}, closed ones counted;"
        " slots that exist can be opened again",
    )


def too_many_slots() -> Refusal:
    """INVALID_ARGUMENT: the days have more than MAX_SLOTS slots to close in one call."""
    return invalid("last_date", f"must leave at most {MAX_SLOTS} slots over all days; name fewer days")


# --- bookings


class BookingState(StrEnum):
    """RECEIVED waits for an answer. DECLINED is the restaurant's own no, WITHDRAWN an end that the
    reservation told."""

    RECEIVED = "RECEIVED"
    ACCEPTED = "ACCEPTED"
    DECLINED = "DECLINED"
    SEATED = "SEATED"
    COMPLETED = "COMPLETED"
    NO_SHOW = "NO_SHOW"
    WITHDRAWN = "WITHDRAWN"


OPEN_STATES = (BookingState.RECEIVED, BookingState.ACCEPTED, BookingState.SEATED)


class ReservationState(StrEnum):
    """What the reservation says of itself."""

    PENDING_DEPOSIT = "PENDING_DEPOSIT"
    PENDING_ACCEPTANCE = "PENDING_ACCEPTANCE"
    CONFIRMED = "CONFIRMED"
    SEATED = "SEATED"
    COMPLETED = "COMPLETED"
    NO_SHOW = "NO_SHOW"
    FAILED = "FAILED"
    DECLINED = "DECLINED"
    CANCELLED = "CANCELLED"


@dataclass(frozen=True, slots=True)
class Terms:
    """What was agreed for one revision, with the deadlines and the frozen policy that staff calls need."""

    revision: int
    dine_time: datetime
    party_size: int
    acceptance: Acceptance
    accept_deadline: datetime | None
    no_show_grace: timedelta
    service: timedelta


@dataclass(frozen=True, slots=True)
class ReservationSnapshot:
    """A reservation as one of its events tells it; `version` orders the events of a reservation."""

    reservation_id: str
    restaurant_id: str
    customer_id: str
    version: int
    state: ReservationState
    terms: Terms


@dataclass(frozen=True, slots=True)
class Booking:
    """The restaurant's copy of a reservation. `heard_version` is the newest event that it follows."""

    reservation_id: str
    restaurant_id: str
    customer_id: str
    state: BookingState
    confirmed: bool
    terms: Terms
    version: int
    heard_version: int
    create_time: datetime
    update_time: datetime
    accepted_revision: int = 0
    """The last revision that was accepted, whatever came after; 0 if none was."""

    @property
    def no_show_time(self) -> datetime:
        """From when staff may mark a no-show: the dine time and the policy's grace after it."""
        return self.terms.dine_time + self.terms.no_show_grace


@dataclass(frozen=True, slots=True)
class BookingFilter:
    """Which bookings of a restaurant: `start` <= dine time < `end` where given; no states means all."""

    restaurant_id: str
    start: datetime | None = None
    end: datetime | None = None
    states: Collection[BookingState] = ()


class Cursor(NamedTuple):
    """How far a watch of bookings has come.

    First it shows those that are open, by dine time: `begin_time` is when it began, and `time` the dine time
    of the last one shown. Then each change, by update time: `begin_time` is None, and `time` the update time
    up to which nothing can have been missed. `reservation_id` is the last one shown of that `time`, if any.
    """

    begin_time: datetime | None
    time: datetime
    reservation_id: str | None


@dataclass(frozen=True, slots=True)
class BookingReceived:
    """A booking, or the new terms of one, waits for an answer."""

    booking: Booking


@dataclass(frozen=True, slots=True)
class BookingAccepted:
    """Staff, or the policy AUTO, said yes to these terms; the reservation has not confirmed it yet."""

    booking: Booking


@dataclass(frozen=True, slots=True)
class BookingDeclined:
    """Staff said no; after an acceptance this is the restaurant's cancellation."""

    booking: Booking


@dataclass(frozen=True, slots=True)
class BookingSeated:
    """The guests are here; told again under new terms that came meanwhile."""

    booking: Booking


@dataclass(frozen=True, slots=True)
class BookingNoShowMarked:
    """The guests did not come: for this the reservation forfeits what is held."""

    booking: Booking


@dataclass(frozen=True, slots=True)
class BookingCompleted:
    """The guests have left; told again under new terms that came meanwhile."""

    booking: Booking


@dataclass(frozen=True, slots=True)
class BookingWithdrawn:
    """The reservation ended before the guests were seated; the restaurant only repeats it."""

    booking: Booking


BookingEvent = (
    BookingReceived
    | BookingAccepted
    | BookingDeclined
    | BookingSeated
    | BookingNoShowMarked
    | BookingCompleted
    | BookingWithdrawn
)
Event = RestaurantCreated | RestaurantUpdated | SlotsChanged | BookingEvent


_OVER = {ReservationState.CANCELLED, ReservationState.DECLINED, ReservationState.FAILED}
# What the reservation's state means for a booking, and the states that may follow it there. A restaurant that
# lost its memory learns its own past this way.
_FOLLOWS: Mapping[ReservationState, tuple[BookingState, frozenset[BookingState]]] = {
    ReservationState.CONFIRMED: (BookingState.ACCEPTED, frozenset({BookingState.RECEIVED})),
    ReservationState.SEATED: (BookingState.SEATED, frozenset({BookingState.RECEIVED, BookingState.ACCEPTED})),
    ReservationState.NO_SHOW: (
        BookingState.NO_SHOW,
        frozenset({BookingState.RECEIVED, BookingState.ACCEPTED}),
    ),
    ReservationState.COMPLETED: (
        BookingState.COMPLETED,
        frozenset({BookingState.RECEIVED, BookingState.ACCEPTED, BookingState.SEATED}),
    ),
}
_AGREED = frozenset(
    {BookingState.ACCEPTED, BookingState.SEATED, BookingState.NO_SHOW, BookingState.COMPLETED}
)


def on_reservation(booking: Booking | None, snapshot: ReservationSnapshot, now: datetime) -> Booking | None:
    """The booking after an event of its reservation, whichever came before; the same value if it is no news.

    By policy AUTO a booking is ACCEPTED at once; `confirmed` is the reservation's to say.
    """
    if booking is None:
        if snapshot.state in (ReservationState.PENDING_DEPOSIT, ReservationState.FAILED):
            return None  # it was never offered to the restaurant
        return _told(_from_first_snapshot(snapshot, now), snapshot, now, may_accept=True)
    if snapshot.version <= booking.heard_version:
        return booking
    if booking.state is BookingState.WITHDRAWN:
        return booking
    fresh = replace(booking, heard_version=snapshot.version, update_time=now, version=booking.version + 1)
    may_accept = False
    if snapshot.terms.revision > booking.terms.revision and _are_here(booking, snapshot.terms):
        # Whoever sits at the table sits there, whatever the customer changed meanwhile.
        fresh = replace(fresh, confirmed=False, accepted_revision=snapshot.terms.revision)
    elif snapshot.terms.revision > booking.terms.revision:
        # New terms are asked anew, and what staff said of the old ones has no effect on them. Where a person
        # had said no (or more than yes), the machine does not answer in their place.
        may_accept = booking.state in (BookingState.RECEIVED, BookingState.ACCEPTED)
        fresh = replace(fresh, state=BookingState.RECEIVED, confirmed=False)
    told = _told(replace(fresh, terms=snapshot.terms), snapshot, now, may_accept=may_accept)
    if _without_bookkeeping(told) == _without_bookkeeping(booking):
        return replace(booking, heard_version=snapshot.version)
    return told


def _are_here(booking: Booking, terms: Terms) -> bool:
    """Whether the guests came when they could have come by these terms as well."""
    has_come = booking.state in (BookingState.SEATED, BookingState.COMPLETED)
    return has_come and booking.update_time >= terms.dine_time - EARLY_SEATING


def _from_first_snapshot(snapshot: ReservationSnapshot, now: datetime) -> Booking:
    return Booking(
        reservation_id=snapshot.reservation_id,
        restaurant_id=snapshot.restaurant_id,
        customer_id=snapshot.customer_id,
        state=BookingState.RECEIVED,
        confirmed=False,
        terms=snapshot.terms,
        version=1,
        heard_version=snapshot.version,
        create_time=now,
        update_time=now,
    )


def _told(booking: Booking, snapshot: ReservationSnapshot, now: datetime, *, may_accept: bool) -> Booking:
    if snapshot.state in _OVER:
        if booking.state in (BookingState.RECEIVED, BookingState.ACCEPTED):
            # Nothing of the past is kept: the withdrawal may just as well have been the first thing heard.
            return replace(booking, state=BookingState.WITHDRAWN, confirmed=False, accepted_revision=0)
        return booking
    if snapshot.state is ReservationState.PENDING_ACCEPTANCE:
        if may_accept and booking.terms.acceptance is Acceptance.AUTO and not _too_late(booking, now):
            return _agreed(booking, BookingState.ACCEPTED)
        return booking
    if snapshot.state in _FOLLOWS:
        target, before = _FOLLOWS[snapshot.state]
        state = target if booking.state in before else booking.state
        if state in _AGREED:
            return replace(_agreed(booking, state), confirmed=True)
        return replace(booking, confirmed=False)
    return booking


def _without_bookkeeping(booking: Booking) -> Booking:
    return replace(booking, version=0, heard_version=0, update_time=booking.create_time)


def _too_late(booking: Booking, now: datetime) -> bool:
    deadline = booking.terms.accept_deadline
    return deadline is not None and now >= deadline


def booking_event(before: Booking | None, after: Booking) -> BookingEvent | None:
    """What the restaurant has to say after it heard its reservation. What it only repeats is no news."""
    if before is not None and (before.state, before.terms.revision) == (after.state, after.terms.revision):
        return None
    if before is not None and before.state is after.state:  # what staff said of old terms holds for the new
        if after.state is BookingState.SEATED:
            return BookingSeated(after)
        if after.state is BookingState.COMPLETED:
            return BookingCompleted(after)
    if after.state is BookingState.RECEIVED:
        return BookingReceived(after)
    if after.state is BookingState.ACCEPTED and not after.confirmed:
        return BookingAccepted(after)
    if after.state is BookingState.WITHDRAWN:
        return BookingWithdrawn(after)
    return None


def accept(booking: Booking, revision: int, now: datetime) -> Booking:
    """Staff say yes. Repeated, it changes nothing; after the deadline it is refused."""
    _same_revision(booking, revision)
    if booking.state in _AGREED:
        return booking
    if booking.state is not BookingState.RECEIVED:
        raise _not_possible(booking, "be accepted")
    if _too_late(booking, now):
        raise Refusal("ACCEPTANCE_EXPIRED", "The time to accept this booking has passed.")
    return _agreed(_moved(booking, BookingState.ACCEPTED, now), BookingState.ACCEPTED)


def decline(booking: Booking, revision: int, now: datetime) -> Booking:
    """Staff say no; after an acceptance this is the restaurant's cancellation."""
    _same_revision(booking, revision)
    if booking.state is BookingState.DECLINED:
        return booking
    if booking.state not in (BookingState.RECEIVED, BookingState.ACCEPTED):
        raise _not_possible(booking, "be declined")
    return replace(_moved(booking, BookingState.DECLINED, now), confirmed=False)


def seat(booking: Booking, revision: int, now: datetime) -> Booking:
    """The guests are here: from two hours before the dine time until the reservation completes by itself."""
    _same_revision(booking, revision)
    if booking.state in (BookingState.SEATED, BookingState.COMPLETED):
        return booking
    _must_be_confirmed(booking, "be seated")
    terms = booking.terms
    if now >= terms.dine_time + terms.service + UNMARKED_LIMIT:
        raise _not_possible(booking, "be seated a day after its time")
    _not_before(
        terms.dine_time - EARLY_SEATING, now, "Guests are seated from two hours before the dine time on."
    )
    return _moved(booking, BookingState.SEATED, now)


def mark_no_show(booking: Booking, revision: int, now: datetime) -> Booking:
    """The guests did not come: only after the dine time and the policy's grace."""
    _same_revision(booking, revision)
    if booking.state is BookingState.NO_SHOW:
        return booking
    _must_be_confirmed(booking, "be a no-show")
    _not_before(
        booking.no_show_time, now, "A no-show can be recorded after the dine time and the policy's grace."
    )
    return _moved(booking, BookingState.NO_SHOW, now)


def complete(booking: Booking, revision: int, now: datetime) -> Booking:
    """The guests have left."""
    _same_revision(booking, revision)
    if booking.state is BookingState.COMPLETED:
        return booking
    if booking.state is not BookingState.SEATED:
        raise _not_possible(booking, "be completed")
    return _moved(booking, BookingState.COMPLETED, now)


def _agreed(booking: Booking, state: BookingState) -> Booking:
    return replace(booking, state=state, accepted_revision=booking.terms.revision)


def _moved(booking: Booking, state: BookingState, now: datetime) -> Booking:
    return replace(booking, state=state, version=booking.version + 1, update_time=now)


def _same_revision(booking: Booking, revision: int) -> None:
    if revision != booking.terms.revision:
        raise Refusal(
            "BOOKING_REVISION",
            f"The booking is now at revision {booking.terms.revision}: read it again.",
            metadata={"revision": str(booking.terms.revision)},
        )


def _must_be_confirmed(booking: Booking, what: str) -> None:
    if booking.state is not BookingState.ACCEPTED or not booking.confirmed:
        raise _not_possible(booking, what)


def _not_possible(booking: Booking, what: str) -> Refusal:
    state = str(booking.state)
    if booking.state is BookingState.ACCEPTED and not booking.confirmed:
        state += " and not confirmed"
    return Refusal(
        "BOOKING_STATE", f"A booking that is {state} cannot {what}.", metadata={"state": str(booking.state)}
    )


def _not_before(start: datetime, now: datetime, message: str) -> None:
    if now < start:
        raise Refusal("TOO_EARLY", message, retry_after=(start - now).total_seconds())
