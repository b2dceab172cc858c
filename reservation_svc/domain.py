"""What a reservation is and which moves it allows. Pure values: a move returns a new reservation or None.

A move answers `None` where what was heard has no effect; what a person asks for and cannot have is a Refusal.
"""

from __future__ import annotations

import hashlib
import uuid
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, replace
from datetime import UTC, date, datetime, time, timedelta
from enum import StrEnum
from zoneinfo import ZoneInfo

from dinemesh.kit.refusal import Refusal, Violation, invalid

_INSTRUCTIONS = uuid.UUID(
    "6f3f0f5e-5d0c-4b7e-9a43-1f0f4c7f9b11"
)  # names instruction ids, so that a rerun repeats them
_DAY = timedelta(days=1)


class State(StrEnum):
    PENDING_DEPOSIT = "PENDING_DEPOSIT"
    PENDING_ACCEPTANCE = "PENDING_ACCEPTANCE"
    CONFIRMED = "CONFIRMED"
    SEATED = "SEATED"
    COMPLETED = "COMPLETED"
    NO_SHOW = "NO_SHOW"
    FAILED = "FAILED"
    DECLINED = "DECLINED"
    CANCELLED = "CANCELLED"

    @property
    def spoken(self) -> str:
        return self.lower().replace("_", " ")


BOOKED = frozenset({State.PENDING_ACCEPTANCE, State.CONFIRMED})
# Seats of a meal that was or is being eaten stay sold: nobody else can have had them.
HOLDS_SEATS = frozenset({State.PENDING_DEPOSIT, *BOOKED, State.SEATED, State.COMPLETED, State.NO_SHOW})
FINAL = frozenset({State.COMPLETED, State.NO_SHOW, State.FAILED, State.DECLINED, State.CANCELLED})


class By(StrEnum):
    CUSTOMER = "CUSTOMER"
    RESTAURANT = "RESTAURANT"


class Failure(StrEnum):
    """Why no deposit was captured; kept, since a repeated request id is answered by it."""

    CARD_DECLINED = "CARD_DECLINED"
    DEPOSIT_OVERLOADED = "DEPOSIT_OVERLOADED"
    DEPOSIT_UNKNOWN = "DEPOSIT_UNKNOWN"
    DEPOSIT_VOIDED = "DEPOSIT_VOIDED"


class DeclineCause(StrEnum):
    RESTAURANT = "RESTAURANT"
    DEADLINE = "DEADLINE"


class Acceptance(StrEnum):
    AUTO = "AUTO"
    MANUAL = "MANUAL"


class DepositState(StrEnum):
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
class Rules:
    """The service's own time limits."""

    attempt: timedelta
    """An attempt older than this is nobody's any more: the settling task may take it."""
    hold: timedelta
    """Seats are held this long for a deposit that is neither captured nor refused."""
    unmarked: timedelta
    """A reservation that the restaurant never marked is completed this long after the service ended."""
    horizon: timedelta
    """How far ahead a table can be booked."""


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

    def price(self, party_size: int) -> int:
        return self.deposit_per_person * party_size

    def free_cancel_time(self, dine_time: datetime) -> datetime:
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


@dataclass(frozen=True, slots=True)
class Restaurant:
    """Our copy of what a restaurant said of itself."""

    restaurant_id: str
    time_zone: str
    policy: Policy

    def local_day(self, instant: datetime) -> date:
        return instant.astimezone(ZoneInfo(self.time_zone)).date()

    def day_bounds(self, day: date) -> tuple[datetime, datetime]:
        """The UTC instants at which the restaurant's day begins and the next one begins."""
        zone = ZoneInfo(self.time_zone)
        first = datetime.combine(day, time(), zone).astimezone(UTC)
        return first, datetime.combine(day + _DAY, time(), zone).astimezone(UTC)


@dataclass(frozen=True, slots=True)
class Slot:
    dine_time: datetime
    capacity: int
    sold: int

    def can_take(self, party_size: int) -> bool:
        return self.sold + party_size <= self.capacity


@dataclass(frozen=True, slots=True)
class SlotNews:
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


def check_party(policy: Policy, party_size: int) -> Iterable[Violation]:
    if party_size > policy.max_party_size:
        yield Violation("party_size", f"must be between 1 and {policy.max_party_size} at this restaurant")


# What CreateDeposit came to. Only a reply that says so means "not charged"; everything else is unknown.


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
    """It may or may not have been charged; `detail` is for the log."""

    detail: str = ""


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
class DepositNews:
    """A deposit as deposit_svc last described it; `captured` also when it was returned since."""

    deposit_id: str
    state: DepositState
    captured: bool
    decline_code: str = ""


class BookingState(StrEnum):
    RECEIVED = "RECEIVED"
    ACCEPTED = "ACCEPTED"
    DECLINED = "DECLINED"
    SEATED = "SEATED"
    NO_SHOW = "NO_SHOW"
    COMPLETED = "COMPLETED"
    WITHDRAWN = "WITHDRAWN"


@dataclass(frozen=True, slots=True)
class BookingNews:
    """A booking as the restaurant last described it."""

    state: BookingState
    revision: int
    accepted: bool = False
    """Whether these terms were accepted, even if they were declined afterwards."""


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


@dataclass(frozen=True, slots=True)
class Terms:
    dine_time: datetime
    party_size: int
    price: int
    revision: int = 1


class ModificationState(StrEnum):
    OPEN = "OPEN"
    APPLIED = "APPLIED"
    FAILED = "FAILED"
    CLOSED = "CLOSED"


@dataclass(frozen=True, slots=True)
class Modification:
    """New terms that wait for the difference to be paid; the old ones stand until then."""

    modification_id: str
    terms: Terms
    note: str
    deposit_id: str
    attempt_deadline: datetime
    hold_expire_time: datetime
    state: ModificationState = ModificationState.OPEN
    failure: Failure | None = None
    decline_code: str = ""

    def failed(self, failure: Failure, decline_code: str = "") -> Modification:
        return replace(self, state=ModificationState.FAILED, failure=failure, decline_code=decline_code)


@dataclass(frozen=True, slots=True)
class Wish:
    """What a customer wants changed; None stays as it is."""

    dine_time: datetime | None = None
    party_size: int | None = None
    note: str | None = None


class Happened(StrEnum):
    """The events of a reservation; each carries the whole reservation."""

    PLACED = "ReservationPlaced"
    CONFIRMED = "ReservationConfirmed"
    MODIFIED = "ReservationModified"
    MODIFICATION_FAILED = "ReservationModificationFailed"
    DECLINED = "ReservationDeclined"
    CANCELLED = "ReservationCancelled"
    FAILED = "ReservationFailed"
    SEATED = "ReservationSeated"
    COMPLETED = "ReservationCompleted"
    NO_SHOW_RECORDED = "ReservationNoShowRecorded"


@dataclass(frozen=True, slots=True)
class ReservationEvent:
    """`previous`: the terms before a modification; `failure`: why a modification failed."""

    what: Happened
    reservation: Reservation
    previous: Terms | None = None
    failure: Failure | None = None


@dataclass(frozen=True, slots=True)
class Move:
    """A step of a reservation: what it is afterwards, and the event that tells the others, if it concerns
    them."""

    after: Reservation
    event: Happened | None = None
    closed_modification: Modification | None = None


@dataclass(frozen=True, slots=True)
class Reservation:
    reservation_id: str
    customer_id: str
    restaurant_id: str
    state: State
    terms: Terms
    note: str
    policy: Policy
    create_time: datetime
    update_time: datetime
    attempt_deadline: datetime
    hold_expire_time: datetime
    version: int = 1
    accept_deadline: datetime | None = None
    cancelled_by: By | None = None
    decline_cause: DeclineCause | None = None
    failure: Failure | None = None
    decline_code: str = ""
    deposits: tuple[DepositLine, ...] = ()
    instructions: tuple[Instruction, ...] = ()
    modification: Modification | None = None

    # What it says of itself.

    @property
    def etag(self) -> str:
        """Changes with the terms and the note, so that an acceptance spoils no modification."""
        content = f"{self.reservation_id}/{self.terms.revision}/{self.note}"
        return hashlib.sha256(content.encode()).hexdigest()[:16]

    @property
    def free_cancel_time(self) -> datetime:
        return self.policy.free_cancel_time(self.terms.dine_time)

    @property
    def seats(self) -> Mapping[datetime, int]:
        """The seats it keeps others from, by slot: those of an open modification as well."""
        if self.state not in HOLDS_SEATS:
            return {}
        held = {self.terms.dine_time: self.terms.party_size}
        if self.modification is not None:
            wanted = self.modification.terms
            if wanted.dine_time == self.terms.dine_time:
                held[wanted.dine_time] = max(self.terms.party_size, wanted.party_size)
            else:
                held[wanted.dine_time] = wanted.party_size
        return held

    def line(self, deposit_id: str) -> DepositLine | None:
        return next((line for line in self.deposits if line.deposit_id == deposit_id), None)

    def held(self, line: DepositLine) -> int:
        """What of a deposit is neither given back nor forfeited nor ordered to be."""
        mine = [one for one in self.instructions if one.deposit_id == line.deposit_id]
        if not line.captured or any(one.kind is Kind.VOID for one in mine):
            return 0
        return line.amount - sum(one.amount for one in mine)

    @property
    def held_total(self) -> int:
        return sum(self.held(line) for line in self.deposits)

    def ordered(self, kind: Kind, cause: Cause) -> int:
        """The sum of the instructions of one kind that one move gave."""
        return sum(one.amount for one in self.instructions if one.kind is kind and one.cause is cause)

    def due_time(self, now: datetime, rules: Rules) -> datetime | None:
        """When the clock has something to do with it; None when never again."""
        times: list[datetime] = []
        if self.state is State.PENDING_DEPOSIT:
            times.append(_next(now, self.attempt_deadline, self.hold_expire_time))
        if self.state is State.PENDING_ACCEPTANCE and self.accept_deadline is not None:
            times.append(self.accept_deadline)
        if self.state in (State.CONFIRMED, State.SEATED):
            times.append(self.unmarked_time(rules))
        if self.modification is not None:
            times.append(_next(now, self.modification.attempt_deadline, self.modification.hold_expire_time))
        return min(times, default=None)

    def unmarked_time(self, rules: Rules) -> datetime:
        return self.terms.dine_time + timedelta(seconds=self.policy.service_duration_seconds) + rules.unmarked

    # The deposit: the reply to CreateDeposit and deposit's events end in the same move.

    def conclude(self, deposit_id: str, outcome: DepositOutcome, now: datetime, rules: Rules) -> Move | None:
        """The awaited deposit is known: go on or give up. One that nobody awaits any more is given back."""
        if self.state is State.PENDING_DEPOSIT and self.deposits[-1].deposit_id == deposit_id:
            return self._conclude_attempt(deposit_id, outcome, now, rules)
        if self.modification is not None and self.modification.deposit_id == deposit_id:
            return self._conclude_modification(self.modification, outcome, now, rules)
        line = self.line(deposit_id)
        if line is None or line.captured or not isinstance(outcome, Captured):
            return None
        stray = self._lined(line, captured=True)
        if any(one.kind is Kind.VOID and one.deposit_id == deposit_id for one in self.instructions):
            return Move(stray._moved(now))
        event = _EVENT_OF_END.get(self.state, Happened.MODIFICATION_FAILED)
        return Move(stray._void(deposit_id, Cause.FAILED)._moved(now), event)

    def hear_deposit(self, news: DepositNews, now: datetime, rules: Rules) -> Move | None:
        """What deposit_svc tells. Its state is shown; an outcome that is still awaited is concluded."""
        line = self.line(news.deposit_id)
        if line is None:
            return None
        outcome: DepositOutcome | None = None
        if news.state is DepositState.CAPTURED:
            outcome = Captured()
        elif news.state is DepositState.DECLINED:
            outcome = Declined(news.decline_code)
        elif news.state is not DepositState.PENDING:
            # Being voided or given back already: an attempt that still waits for it cannot have it.
            outcome = Voided() if self._awaits(news.deposit_id) else Captured() if news.captured else None
        move = self.conclude(news.deposit_id, outcome, now, rules) if outcome is not None else None
        heard = move.after if move is not None else self
        line = heard.line(news.deposit_id) or line
        state = news.state
        if state in (DepositState.PENDING, DepositState.CAPTURED) and line.state is not DepositState.PENDING:
            state = line.state  # what was ordered since is further than what is told
        if state is line.state and (line.captured or not news.captured):
            return move
        shown = heard._lined(line, state=state, captured=line.captured or news.captured)
        if move is None:
            return Move(shown._moved(now))
        return replace(move, after=shown)

    def _awaits(self, deposit_id: str) -> bool:
        if self.state is State.PENDING_DEPOSIT:
            return self.deposits[-1].deposit_id == deposit_id
        return self.modification is not None and self.modification.deposit_id == deposit_id

    def _conclude_attempt(
        self, deposit_id: str, outcome: DepositOutcome, now: datetime, rules: Rules
    ) -> Move:
        line = self.deposits[-1]
        match outcome:
            case Captured() if now < self.hold_expire_time:
                paid = self._lined(line, captured=True, state=DepositState.CAPTURED)
                deadline = self.policy.accept_deadline(self.terms.dine_time, now)
                placed = replace(paid, state=State.PENDING_ACCEPTANCE, accept_deadline=deadline)
                return Move(placed._moved(now), Happened.PLACED)
            case Declined(code):
                refused = self._lined(line, state=DepositState.DECLINED)
                refused = replace(
                    refused, state=State.FAILED, failure=Failure.CARD_DECLINED, decline_code=code
                )
                return Move(refused._moved(now), Happened.FAILED)
            case NotCharged():
                # Deposit was told nothing, so there is nothing to tell anybody either.
                shed = replace(self._lined(line, state=DepositState.VOIDED), state=State.FAILED)
                return Move(replace(shed, failure=Failure.DEPOSIT_OVERLOADED)._moved(now))
            case _:
                late = self._lined(line, captured=isinstance(outcome, Captured))
                late = replace(late, state=State.FAILED, failure=_failure(outcome))
                return Move(late._void(deposit_id, Cause.FAILED)._moved(now), Happened.FAILED)

    def _conclude_modification(
        self, wanted: Modification, outcome: DepositOutcome, now: datetime, rules: Rules
    ) -> Move:
        line = self.line(wanted.deposit_id)
        assert line is not None
        match outcome:
            case Captured() if now < wanted.hold_expire_time:
                paid = self._lined(line, captured=True, state=DepositState.CAPTURED)
                applied = replace(paid, modification=None, note=wanted.note)._asked_again(wanted.terms, now)
                closed = replace(wanted, state=ModificationState.APPLIED)
                return Move(applied._moved(now), Happened.MODIFIED, closed)
            case Declined(code):
                refused = replace(self._lined(line, state=DepositState.DECLINED), modification=None)
                closed = wanted.failed(Failure.CARD_DECLINED, code)
                return Move(refused._moved(now), Happened.MODIFICATION_FAILED, closed)
            case NotCharged():
                shed = replace(self._lined(line, state=DepositState.VOIDED), modification=None)
                return Move(shed._moved(now), None, wanted.failed(Failure.DEPOSIT_OVERLOADED))
            case _:
                late = replace(self._lined(line, captured=isinstance(outcome, Captured)), modification=None)
                late = late._void(wanted.deposit_id, Cause.MODIFICATION_FAILED)
                closed = wanted.failed(_failure(outcome))
                return Move(late._moved(now), Happened.MODIFICATION_FAILED, closed)

    # The customer.

    def amend(
        self,
        wish: Wish,
        *,
        etag: str,
        restaurant: Restaurant,
        modification_id: str,
        deposit_id: str,
        can_pay: bool,
        now: datetime,
        rules: Rules,
    ) -> Move | None:
        """New terms. Same price or cheaper: they stand at once. Dearer: an open modification that waits for
        its deposit (`after.modification`). None if nothing would change."""
        self._check_amendable(etag, now)
        terms = Terms(
            dine_time=wish.dine_time or self.terms.dine_time,
            party_size=wish.party_size or self.terms.party_size,
            price=self.policy.price(wish.party_size or self.terms.party_size),
            revision=self.terms.revision + 1,
        )
        note = self.note if wish.note is None else wish.note
        if terms.dine_time != self.terms.dine_time:
            for wrong in check_table(restaurant, terms.dine_time, now, rules):
                raise invalid(wrong.field, wrong.description)
        if terms.party_size != self.terms.party_size:
            for wrong in check_party(self.policy, terms.party_size):
                raise invalid(wrong.field, wrong.description)
        if (terms.dine_time, terms.party_size) == (self.terms.dine_time, self.terms.party_size):
            if note == self.note:
                return None
            return Move(replace(self, note=note)._moved(now))  # the note concerns nobody but the reader
        if self.policy.accept_deadline(terms.dine_time, now) <= now:
            raise Refusal("MODIFICATION_CLOSED", "It is too late for the restaurant to answer to new terms.")
        difference = terms.price - self.held_total
        if difference > 0:
            if not can_pay:
                raise invalid("payment_token", "is required, since the deposit gets higher")
            wanted = Modification(
                modification_id, terms, note, deposit_id, now + rules.attempt, now + rules.hold
            )
            lines = (*self.deposits, DepositLine(deposit_id, difference))
            return Move(replace(self, modification=wanted, deposits=lines)._moved(now))
        amended = replace(self, note=note)._give_back(-difference, Cause.MODIFIED)._asked_again(terms, now)
        return Move(amended._moved(now), Happened.MODIFIED)

    def _check_amendable(self, etag: str, now: datetime) -> None:
        if self.state is State.PENDING_DEPOSIT:
            raise Refusal("RESERVATION_NOT_MODIFIABLE", "The reservation is still being paid.", retry_after=1)
        if self.state not in BOOKED:
            raise Refusal("RESERVATION_NOT_MODIFIABLE", f"The reservation is {self.state.spoken}.")
        if now >= self.free_cancel_time:
            raise Refusal("MODIFICATION_CLOSED", "Free cancellation has ended, and changes with it.")
        if self.modification is not None:
            raise Refusal("MODIFICATION_IN_PROGRESS", "Another modification is being paid.", retry_after=1)
        if etag != self.etag:
            raise Refusal("ETAG_MISMATCH", "The reservation has changed since it was read; read it again.")

    def cancel(self, by: By, now: datetime) -> Move | None:
        """None if it is cancelled already: the first one's answer stands."""
        if self.state is State.CANCELLED:
            return None
        if self.state is State.PENDING_DEPOSIT:
            stopped = self._void(self.deposits[-1].deposit_id, Cause.CANCELLED)
        elif self.state not in BOOKED:
            raise Refusal("RESERVATION_NOT_CANCELLABLE", f"The reservation is {self.state.spoken}.")
        elif by is By.CUSTOMER and self.state is State.CONFIRMED and now >= self.free_cancel_time:
            stopped = self._forfeit(Cause.CANCELLED)
        else:
            stopped = self._give_back(self.held_total, Cause.CANCELLED)
        return replace(stopped, state=State.CANCELLED, cancelled_by=by)._ended(now, Happened.CANCELLED)

    # The restaurant. Whatever it says about other terms than the present ones has no effect.

    def hear_restaurant(self, news: BookingNews, now: datetime) -> list[Move]:
        """The moves that lead to what the restaurant says, whichever of its events came first."""
        if news.revision != self.terms.revision:
            return []
        if news.state is BookingState.DECLINED and self.state is State.PENDING_ACCEPTANCE:
            if news.accepted or self.policy.acceptance is Acceptance.AUTO:
                return [self._call_off(now)]  # it was accepted first, and that news comes later or never
            return [self._decline(DeclineCause.RESTAURANT, now)]
        moves: list[Move] = []
        for step in _STEPS.get(news.state, ()):
            current = moves[-1].after if moves else self
            if current.state is step.before:
                moves.append(step.move(current, now))
            elif current.state in FINAL:
                break
        return moves

    def _accept(self, now: datetime) -> Move:
        if self.accept_deadline is not None and now >= self.accept_deadline:
            return self._decline(DeclineCause.DEADLINE, now)
        return Move(replace(self, state=State.CONFIRMED)._moved(now), Happened.CONFIRMED)

    def _decline(self, cause: DeclineCause, now: datetime) -> Move:
        returned = self._give_back(self.held_total, Cause.DECLINED)
        return replace(returned, state=State.DECLINED, decline_cause=cause)._ended(now, Happened.DECLINED)

    def _call_off(self, now: datetime) -> Move:
        move = self.cancel(By.RESTAURANT, now)
        assert move is not None
        return move

    def _seat(self, now: datetime) -> Move:
        returned = self._give_back(self.held_total, Cause.SEATED)
        return replace(returned, state=State.SEATED)._ended(now, Happened.SEATED)

    def _record_no_show(self, now: datetime) -> Move:
        return replace(self._forfeit(Cause.NO_SHOW), state=State.NO_SHOW)._ended(
            now, Happened.NO_SHOW_RECORDED
        )

    def _complete(self, now: datetime) -> Move:
        returned = self._give_back(self.held_total, Cause.COMPLETED)
        return replace(returned, state=State.COMPLETED)._ended(now, Happened.COMPLETED)

    # The clock.

    def lapse(self, now: datetime, rules: Rules) -> Move | None:
        """What the passing of time does to it."""
        if self.state is State.PENDING_DEPOSIT and now >= self.hold_expire_time:
            return self.conclude(self.deposits[-1].deposit_id, Unknown("the hold expired"), now, rules)
        if self.modification is not None and now >= self.modification.hold_expire_time:
            return self.conclude(self.modification.deposit_id, Unknown("the hold expired"), now, rules)
        if self.state is State.PENDING_ACCEPTANCE and self.accept_deadline and now >= self.accept_deadline:
            return self._decline(DeclineCause.DEADLINE, now)
        if self.state in (State.CONFIRMED, State.SEATED) and now >= self.unmarked_time(rules):
            return self._complete(now)
        return None

    # Parts of moves.

    def _moved(self, now: datetime) -> Reservation:
        return replace(self, version=self.version + 1, update_time=now)

    def _ended(self, now: datetime, event: Happened) -> Move:
        """Leaves the states in which it can be modified: an open modification is closed, its deposit
        voided."""
        wanted = self.modification
        if wanted is None:
            return Move(self._moved(now), event)
        ended = replace(self, modification=None)._void(wanted.deposit_id, Cause.MODIFICATION_FAILED)
        return Move(ended._moved(now), event, replace(wanted, state=ModificationState.CLOSED))

    def _asked_again(self, terms: Terms, now: datetime) -> Reservation:
        deadline = self.policy.accept_deadline(terms.dine_time, now)
        return replace(self, terms=terms, state=State.PENDING_ACCEPTANCE, accept_deadline=deadline)

    def _lined(
        self, line: DepositLine, *, state: DepositState | None = None, captured: bool | None = None
    ) -> Reservation:
        changed = replace(
            line,
            state=line.state if state is None else state,
            captured=line.captured if captured is None else captured,
        )
        lines = tuple(changed if one.deposit_id == line.deposit_id else one for one in self.deposits)
        return replace(self, deposits=lines)

    def _instruct(self, kind: Kind, deposit_id: str, amount: int, cause: Cause) -> Reservation:
        name = f"{self.reservation_id}/{self.version}/{kind}/{deposit_id}"
        order = Instruction(str(uuid.uuid5(_INSTRUCTIONS, name)), kind, deposit_id, amount, cause)
        return replace(self, instructions=(*self.instructions, order))

    def _void(self, deposit_id: str, cause: Cause) -> Reservation:
        line = self.line(deposit_id)
        assert line is not None
        return self._lined(line, state=DepositState.VOIDING)._instruct(Kind.VOID, deposit_id, 0, cause)

    def _give_back(self, amount: int, cause: Cause) -> Reservation:
        """Orders refunds of the amount, newest deposit first."""
        result, left = self, amount
        for line in reversed(self.deposits):
            part = min(left, self.held(line))
            if part > 0:
                result = result._instruct(Kind.REFUND, line.deposit_id, part, cause)
                left -= part
                if result.held(line) == 0:
                    result = result._lined(line, state=DepositState.REFUNDING)
        return result

    def _forfeit(self, cause: Cause) -> Reservation:
        result = self
        for line in reversed(self.deposits):
            if (held := self.held(line)) > 0:
                result = result._instruct(Kind.FORFEIT, line.deposit_id, held, cause)
                result = result._lined(line, state=DepositState.FORFEITED)
        return result


@dataclass(frozen=True, slots=True)
class _Step:
    before: State
    move: Callable[[Reservation, datetime], Move]


_ACCEPT = _Step(State.PENDING_ACCEPTANCE, Reservation._accept)
_SEAT = _Step(State.CONFIRMED, Reservation._seat)
_STEPS: Mapping[BookingState, tuple[_Step, ...]] = {
    BookingState.ACCEPTED: (_ACCEPT,),
    BookingState.DECLINED: (_Step(State.CONFIRMED, Reservation._call_off),),
    BookingState.SEATED: (_ACCEPT, _SEAT),
    BookingState.NO_SHOW: (_ACCEPT, _Step(State.CONFIRMED, Reservation._record_no_show)),
    BookingState.COMPLETED: (_ACCEPT, _SEAT, _Step(State.SEATED, Reservation._complete)),
}
# Tells of an end again, with one more instruction.
_EVENT_OF_END: Mapping[State, Happened] = {
    State.COMPLETED: Happened.COMPLETED,
    State.NO_SHOW: Happened.NO_SHOW_RECORDED,
    State.FAILED: Happened.FAILED,
    State.DECLINED: Happened.DECLINED,
    State.CANCELLED: Happened.CANCELLED,
}


@dataclass(frozen=True, slots=True)
class Order:
    """A customer's request for a table, checked for form only."""

    customer_id: str
    request_id: str
    restaurant_id: str
    dine_time: datetime
    party_size: int
    note: str
    payment_token: str = field(repr=False)
    body_hash: str = ""


def _next(now: datetime, *times: datetime) -> datetime:
    """The first of the times that is still to come, else the last one."""
    return next((one for one in times if one > now), times[-1])


def _failure(outcome: DepositOutcome) -> Failure:
    return Failure.DEPOSIT_VOIDED if isinstance(outcome, Voided) else Failure.DEPOSIT_UNKNOWN


@dataclass(frozen=True, slots=True)
class Change:
    """A customer's request for other terms, checked for form only."""

    customer_id: str
    request_id: str
    reservation_id: str
    etag: str
    wish: Wish
    payment_token: str = field(repr=False)
    body_hash: str = ""


@dataclass(frozen=True, slots=True)
class Person:
    """Who asks: a customer, or the staff of a restaurant."""

    customer_id: str | None = None
    restaurant_id: str | None = None

    def side_in(self, reservation: Reservation) -> By | None:
        """On which side of the reservation, if on any."""
        if self.customer_id is not None and self.customer_id == reservation.customer_id:
            return By.CUSTOMER
        if self.restaurant_id is not None and self.restaurant_id == reservation.restaurant_id:
            return By.RESTAURANT
        return None


def not_found() -> Refusal:
    """Also for somebody else's reservation: the two cannot be told apart."""
    return Refusal("NOT_FOUND", "There is no such reservation.")


def hold_table(
    order: Order, restaurant: Restaurant, *, reservation_id: str, deposit_id: str, now: datetime, rules: Rules
) -> Reservation:
    """A new attempt: the seats are held, the deposit is about to be asked for."""
    price = restaurant.policy.price(order.party_size)
    return Reservation(
        reservation_id=reservation_id,
        customer_id=order.customer_id,
        restaurant_id=order.restaurant_id,
        state=State.PENDING_DEPOSIT,
        terms=Terms(order.dine_time, order.party_size, price),
        note=order.note,
        policy=restaurant.policy,
        create_time=now,
        update_time=now,
        attempt_deadline=now + rules.attempt,
        hold_expire_time=now + rules.hold,
        deposits=(DepositLine(deposit_id, price),),
    )


def refusal_of(failure: Failure, decline_code: str, retry_after: float) -> Refusal:
    """What the client is told of an attempt that failed."""
    if failure is Failure.CARD_DECLINED:
        return Refusal(
            "CARD_DECLINED",
            "The card was declined; nothing was charged.",
            metadata={"decline_code": decline_code},
        )
    return Refusal(
        "TRY_AGAIN_LATER", "The deposit could not be taken; nothing stays charged.", retry_after=retry_after
    )


@dataclass(frozen=True, slots=True)
class RequestRecord:
    """A request id that was used: for which contents, and what it led to last."""

    body_hash: str
    reservation_id: str
    modification_id: str | None = None


def check_same(record: RequestRecord, body_hash: str) -> None:
    if record.body_hash != body_hash:
        raise Refusal("REQUEST_ID_REUSED", "This request_id was used with different contents.")


def must_try_again(
    *, waiting: bool, attempt_deadline: datetime, failure: Failure | None, decline_code: str, now: datetime
) -> bool:
    """A repeated request id: True asks for a new attempt, False for the reservation as it stands."""
    if waiting:
        # After its deadline an attempt has lost its process; events or the settling task will end it.
        raise Refusal(
            "REQUEST_IN_PROGRESS",
            "The first call with this request_id is still at work.",
            retry_after=1 if now < attempt_deadline else 5,
        )
    if failure is Failure.CARD_DECLINED:
        raise refusal_of(failure, decline_code, 0)
    return failure is not None
