"""What a reservation is and which moves it allows. Pure values: a move returns a new reservation or None.

A move answers `None` where what was heard has no effect; what a person asks for and cannot have is a Refusal.
"""

from __future__ import annotations

import hashlib
import uuid
from collections import defaultdict
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from enum import StrEnum

from dinemesh.kit.refusal import Refusal, invalid
from reservation_svc.domain.deposits import (
    Captured,
    Cause,
    Declined,
    DepositLine,
    DepositOutcome,
    DepositSnapshot,
    DepositState,
    Instruction,
    Kind,
    NotCharged,
    Unknown,
    Voided,
)
from reservation_svc.domain.restaurants import Acceptance, Policy, Restaurant, Rules, check_party, check_table

_INSTRUCTIONS = uuid.UUID(
    "6f3f0f5e-5d0c-4b7e-9a43-1f0f4c7f9b11"
)  # names instruction ids, so that a rerun repeats them


class State(StrEnum):
    """PENDING_DEPOSIT is not paid yet, PENDING_ACCEPTANCE is placed and waits for the restaurant. FAILED was
    never placed, DECLINED was placed and not accepted."""

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
        """As a refusal puts it to a person, such as "pending deposit"."""
        return self.lower().replace("_", " ")


BOOKED = frozenset({State.PENDING_ACCEPTANCE, State.CONFIRMED})


# Seats of a meal that was or is being eaten stay sold: nobody else can have had them.
HOLDS_SEATS = frozenset({State.PENDING_DEPOSIT, *BOOKED, State.SEATED, State.COMPLETED, State.NO_SHOW})


FINAL = frozenset({State.COMPLETED, State.NO_SHOW, State.FAILED, State.DECLINED, State.CANCELLED})


class CancelledBy(StrEnum):
    """The side that cancels; a booking that is declined after its acceptance counts as cancelled by
    RESTAURANT."""

    CUSTOMER = "CUSTOMER"
    RESTAURANT = "RESTAURANT"


class Failure(StrEnum):
    """Why no deposit was captured; kept, since a repeated request id is answered by it."""

    CARD_DECLINED = "CARD_DECLINED"
    DEPOSIT_OVERLOADED = "DEPOSIT_OVERLOADED"
    DEPOSIT_UNKNOWN = "DEPOSIT_UNKNOWN"
    DEPOSIT_VOIDED = "DEPOSIT_VOIDED"


class DeclineCause(StrEnum):
    """Why a booking is declined: the RESTAURANT said no, or had not accepted it by the DEADLINE."""

    RESTAURANT = "RESTAURANT"
    DEADLINE = "DEADLINE"


class BookingState(StrEnum):
    """The restaurant's states of a booking, as its events tell them. WITHDRAWN only repeats that the
    reservation ended here."""

    RECEIVED = "RECEIVED"
    ACCEPTED = "ACCEPTED"
    DECLINED = "DECLINED"
    SEATED = "SEATED"
    NO_SHOW = "NO_SHOW"
    COMPLETED = "COMPLETED"
    WITHDRAWN = "WITHDRAWN"


@dataclass(frozen=True, slots=True)
class BookingSnapshot:
    """A booking as the restaurant last described it."""

    state: BookingState
    revision: int
    accepted: bool = False
    """Whether these terms were accepted, even if they were declined afterwards."""


@dataclass(frozen=True, slots=True)
class Terms:
    """What customer and restaurant agree on. `price` is the whole deposit in minor units; `revision` counts
    the changes of dine time and party size, from 1."""

    dine_time: datetime
    party_size: int
    price: int
    revision: int = 1


class ModificationState(StrEnum):
    """OPEN waits for its deposit. APPLIED took effect, FAILED was not paid or too late, CLOSED ended with its
    reservation."""

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
        """The modification as it ends without effect; `decline_code` is the provider's word if the card was
        declined."""
        return replace(self, state=ModificationState.FAILED, failure=failure, decline_code=decline_code)


@dataclass(frozen=True, slots=True)
class RequestedChange:
    """What a customer wants changed; None stays as it is."""

    dine_time: datetime | None = None
    party_size: int | None = None
    note: str | None = None


class EventType(StrEnum):
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

    what: EventType
    reservation: Reservation
    previous: Terms | None = None
    failure: Failure | None = None


@dataclass(frozen=True, slots=True)
class Move:
    """A step of a reservation: what it is afterwards, and the event that tells the others, if it concerns
    them."""

    after: Reservation
    event: EventType | None = None
    closed_modification: Modification | None = None


@dataclass(frozen=True, slots=True)
class Reservation:
    """A reservation with its deposits, its instructions (only ever added to) and the modification that is
    being paid. Times are aware UTC."""

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
    cancelled_by: CancelledBy | None = None
    decline_cause: DeclineCause | None = None
    failure: Failure | None = None
    decline_code: str = ""
    deposits: tuple[DepositLine, ...] = ()
    instructions: tuple[Instruction, ...] = ()
    modification: Modification | None = None
    priced_modifications: int = 0
    """How many modifications with another price were begun, those counted that failed; not those that were
    turned away by load."""

    # What it says of itself.

    @property
    def etag(self) -> str:
        """Changes with the terms and the note, so that an acceptance spoils no modification."""
        content = f"{self.reservation_id}/{self.terms.revision}/{self.note}"
        return hashlib.sha256(content.encode()).hexdigest()[:16]

    @property
    def free_cancel_time(self) -> datetime:
        """From when a customer who cancels a confirmed reservation forfeits the deposit, and nothing can be
        modified; by the frozen policy."""
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
        """The line of that deposit; None if the deposit is not one of this reservation."""
        return next((line for line in self.deposits if line.deposit_id == deposit_id), None)

    @property
    def held(self) -> Mapping[str, int]:
        """By deposit_id: what of each deposit is neither given back nor forfeited nor ordered to be. One pass
        over the instructions for all deposits: take it once, not for each."""
        voided: set[str] = set()
        gone: defaultdict[str, int] = defaultdict(int)
        for one in self.instructions:
            gone[one.deposit_id] += one.amount
            if one.kind is Kind.VOID:
                voided.add(one.deposit_id)
        return {
            line.deposit_id: line.amount - gone[line.deposit_id]
            if line.captured and line.deposit_id not in voided
            else 0
            for line in self.deposits
        }

    @property
    def held_total(self) -> int:
        """The sum of `held` over all deposits, in minor units: what an end gives back or forfeits."""
        return sum(self.held.values())

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
        """When it completes by itself if the restaurant never marks it: `rules.unmarked` after the service
        ended."""
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
        event = _EVENT_OF_END.get(self.state, EventType.MODIFICATION_FAILED)
        return Move(stray._void(deposit_id, Cause.FAILED)._moved(now), event)

    def on_deposit(self, snapshot: DepositSnapshot, now: datetime, rules: Rules) -> Move | None:
        """What deposit_svc tells. Its state is shown; an outcome that is still awaited is concluded."""
        line = self.line(snapshot.deposit_id)
        if line is None:
            return None
        outcome: DepositOutcome | None = None
        if snapshot.state is DepositState.CAPTURED:
            outcome = Captured()
        elif snapshot.state is DepositState.DECLINED:
            outcome = Declined(snapshot.decline_code)
        elif snapshot.state is not DepositState.PENDING:
            # Being voided or given back already: an attempt that still waits for it cannot have it.
            outcome = (
                Voided() if self._awaits(snapshot.deposit_id) else Captured() if snapshot.captured else None
            )
        move = self.conclude(snapshot.deposit_id, outcome, now, rules) if outcome is not None else None
        heard = move.after if move is not None else self
        line = heard.line(snapshot.deposit_id) or line
        state = snapshot.state
        if state in (DepositState.PENDING, DepositState.CAPTURED) and line.state is not DepositState.PENDING:
            state = line.state  # what was ordered since is further than what is told
        if state is line.state and (line.captured or not snapshot.captured):
            return move
        shown = heard._lined(line, state=state, captured=line.captured or snapshot.captured)
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
                return Move(placed._moved(now), EventType.PLACED)
            case Declined(code):
                refused = self._lined(line, state=DepositState.DECLINED)
                refused = replace(
                    refused, state=State.FAILED, failure=Failure.CARD_DECLINED, decline_code=code
                )
                return Move(refused._moved(now), EventType.FAILED)
            case NotCharged():
                # Deposit was told nothing, so there is nothing to tell anybody either.
                shed = replace(self._lined(line, state=DepositState.VOIDED), state=State.FAILED)
                return Move(replace(shed, failure=Failure.DEPOSIT_OVERLOADED)._moved(now))
            case _:
                late = self._lined(line, captured=isinstance(outcome, Captured))
                late = replace(late, state=State.FAILED, failure=_failure(outcome))
                return Move(late._void(deposit_id, Cause.FAILED)._moved(now), EventType.FAILED)

    def _conclude_modification(
        self, wanted: Modification, outcome: DepositOutcome, now: datetime, rules: Rules
    ) -> Move:
        line = self.line(wanted.deposit_id)
        assert line is not None
        # New terms that nobody could accept any more would only take the place of good ones, and then lapse.
        deadline = self.policy.accept_deadline(wanted.terms.dine_time, now)
        match outcome:
            case Captured() if now < min(wanted.hold_expire_time, deadline):
                paid = self._lined(line, captured=True, state=DepositState.CAPTURED)
                applied = replace(paid, modification=None, note=wanted.note)._asked_again(wanted.terms, now)
                closed = replace(wanted, state=ModificationState.APPLIED)
                return Move(applied._moved(now), EventType.MODIFIED, closed)
            case Declined(code):
                refused = replace(self._lined(line, state=DepositState.DECLINED), modification=None)
                closed = wanted.failed(Failure.CARD_DECLINED, code)
                return Move(refused._moved(now), EventType.MODIFICATION_FAILED, closed)
            case NotCharged():
                shed = replace(self._lined(line, state=DepositState.VOIDED), modification=None)
                shed = replace(shed, priced_modifications=max(0, self.priced_modifications - 1))
                return Move(shed._moved(now), None, wanted.failed(Failure.DEPOSIT_OVERLOADED))
            case _:
                late = replace(self._lined(line, captured=isinstance(outcome, Captured)), modification=None)
                late = late._void(wanted.deposit_id, Cause.MODIFICATION_FAILED)
                closed = wanted.failed(_failure(outcome))
                return Move(late._moved(now), EventType.MODIFICATION_FAILED, closed)

    # The customer.

    def amend(
        self,
        requested: RequestedChange,
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
            dine_time=requested.dine_time or self.terms.dine_time,
            party_size=requested.party_size or self.terms.party_size,
            price=self.policy.price(requested.party_size or self.terms.party_size),
            revision=self.terms.revision + 1,
        )
        note = self.note if requested.note is None else requested.note
        if terms.dine_time != self.terms.dine_time:
            # By the frozen policy, as everything about a modification: what the restaurant's says now, this
            # customer was never shown.
            agreed = replace(restaurant, policy=self.policy)
            for wrong in check_table(agreed, terms.dine_time, now, rules):
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
        priced = self._count_change(difference, rules)
        if difference > 0:
            if not can_pay:
                raise invalid("payment_token", "is required, since the deposit gets higher")
            wanted = Modification(
                modification_id, terms, note, deposit_id, now + rules.attempt, now + rules.hold
            )
            lines = (*self.deposits, DepositLine(deposit_id, difference))
            begun = replace(self, modification=wanted, deposits=lines, priced_modifications=priced)
            return Move(begun._moved(now))
        amended = (
            replace(self, note=note, priced_modifications=priced)
            ._give_back(-difference, Cause.MODIFIED)
            ._asked_again(terms, now)
        )
        return Move(amended._moved(now), EventType.MODIFIED)

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

    def _count_change(self, difference: int, rules: Rules) -> int:
        """How many priced modifications there are with this one. Refuses one too many of any kind."""
        limit = rules.priced_modifications
        if difference and self.priced_modifications >= limit:
            raise _too_many(
                f"A reservation can be made dearer or cheaper {limit} times, and has been.", limit
            )
        if difference > 0 and len(self.deposits) >= rules.deposit_lines:
            raise _too_many("This reservation was to be made dearer too often.", rules.deposit_lines - 1)
        if self.terms.revision > rules.changes_of_terms:
            most = rules.changes_of_terms
            raise _too_many(f"The terms of a reservation can be changed {most} times, and have been.", most)
        return self.priced_modifications + bool(difference)

    def cancel(self, by: CancelledBy, now: datetime) -> Move | None:
        """None if it is cancelled already: the first one's answer stands."""
        if self.state is State.CANCELLED:
            return None
        if self.state is State.PENDING_DEPOSIT:
            stopped = self._void(self.deposits[-1].deposit_id, Cause.CANCELLED)
        elif self.state not in BOOKED:
            raise Refusal("RESERVATION_NOT_CANCELLABLE", f"The reservation is {self.state.spoken}.")
        elif by is CancelledBy.CUSTOMER and self.state is State.CONFIRMED and now >= self.free_cancel_time:
            stopped = self._forfeit(Cause.CANCELLED)
        else:
            stopped = self._give_back(self.held_total, Cause.CANCELLED)
        return replace(stopped, state=State.CANCELLED, cancelled_by=by)._ended(now, EventType.CANCELLED)

    # The restaurant. Whatever it says about other terms than the present ones has no effect.

    def on_booking(
        self, snapshot: BookingSnapshot, now: datetime, by_deadline: datetime | None = None
    ) -> list[Move]:
        """The moves that lead to what the restaurant says, whichever of its events came first. `by_deadline`:
        the time that decides whether an acceptance is late, if the clock is not trusted."""
        if snapshot.revision != self.terms.revision:
            return []
        if snapshot.state is BookingState.DECLINED and self.state is State.PENDING_ACCEPTANCE:
            if snapshot.accepted or self.policy.acceptance is Acceptance.AUTO:
                return [self._call_off(now)]  # it was accepted first, and that snapshot comes later or never
            return [self._decline(DeclineCause.RESTAURANT, now)]
        moves: list[Move] = []
        for step in _STEPS.get(snapshot.state, ()):
            current = moves[-1].after if moves else self
            if current.state is step.before:
                late = step is _ACCEPT and current._is_late(by_deadline or now)
                move = current._decline(DeclineCause.DEADLINE, now) if late else step.move(current, now)
                moves.append(move)
            elif current.state in FINAL:
                break
        return moves

    def _is_late(self, now: datetime) -> bool:
        return self.accept_deadline is not None and now >= self.accept_deadline

    def _accept(self, now: datetime) -> Move:
        return Move(replace(self, state=State.CONFIRMED)._moved(now), EventType.CONFIRMED)

    def _decline(self, cause: DeclineCause, now: datetime) -> Move:
        returned = self._give_back(self.held_total, Cause.DECLINED)
        return replace(returned, state=State.DECLINED, decline_cause=cause)._ended(now, EventType.DECLINED)

    def _call_off(self, now: datetime) -> Move:
        move = self.cancel(CancelledBy.RESTAURANT, now)
        assert move is not None
        return move

    def _seat(self, now: datetime) -> Move:
        returned = self._give_back(self.held_total, Cause.SEATED)
        return replace(returned, state=State.SEATED)._ended(now, EventType.SEATED)

    def _record_no_show(self, now: datetime) -> Move:
        return replace(self._forfeit(Cause.NO_SHOW), state=State.NO_SHOW)._ended(
            now, EventType.NO_SHOW_RECORDED
        )

    def _complete(self, now: datetime) -> Move:
        returned = self._give_back(self.held_total, Cause.COMPLETED)
        return replace(returned, state=State.COMPLETED)._ended(now, EventType.COMPLETED)

    # The clock.

    def lapse(self, now: datetime, rules: Rules) -> Move | None:
        """What the passing of time does to it."""
        if self.state is State.PENDING_DEPOSIT and now >= self.hold_expire_time:
            return self.conclude(self.deposits[-1].deposit_id, Unknown("the hold expired"), now, rules)
        if self.modification is not None and now >= self.modification.hold_expire_time:
            return self.conclude(self.modification.deposit_id, Unknown("the hold expired"), now, rules)
        if self.state is State.PENDING_ACCEPTANCE and self._is_late(now):
            return self._decline(DeclineCause.DEADLINE, now)
        if self.state in (State.CONFIRMED, State.SEATED) and now >= self.unmarked_time(rules):
            return self._complete(now)
        return None

    # Parts of moves.

    def _moved(self, now: datetime) -> Reservation:
        return replace(self, version=self.version + 1, update_time=now)

    def _ended(self, now: datetime, event: EventType) -> Move:
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

    def _instruction(self, kind: Kind, deposit_id: str, amount: int, cause: Cause) -> Instruction:
        name = f"{self.reservation_id}/{self.version}/{kind}/{deposit_id}"
        return Instruction(str(uuid.uuid5(_INSTRUCTIONS, name)), kind, deposit_id, amount, cause)

    def _void(self, deposit_id: str, cause: Cause) -> Reservation:
        line = self.line(deposit_id)
        assert line is not None
        order = self._instruction(Kind.VOID, deposit_id, 0, cause)
        voided = self._lined(line, state=DepositState.VOIDING)
        return replace(voided, instructions=(*self.instructions, order))

    def _give_back(self, amount: int, cause: Cause) -> Reservation:
        """Orders refunds of the amount, newest deposit first."""
        return self._take(amount, Kind.REFUND, DepositState.REFUNDING, cause)

    def _forfeit(self, cause: Cause) -> Reservation:
        """Orders that all that is held is kept."""
        return self._take(self.held_total, Kind.FORFEIT, DepositState.FORFEITED, cause)

    def _take(self, amount: int, kind: Kind, emptied: DepositState, cause: Cause) -> Reservation:
        """Orders the amount out of the deposits, newest first; one of which nothing is left is `emptied`."""
        held, left = self.held, amount
        lines = list(self.deposits)
        orders: list[Instruction] = []
        for place in range(len(lines) - 1, -1, -1):
            line = lines[place]
            part = min(left, held[line.deposit_id])
            if part > 0:
                orders.append(self._instruction(kind, line.deposit_id, part, cause))
                left -= part
                if part == held[line.deposit_id]:
                    lines[place] = replace(line, state=emptied)
        return replace(self, deposits=tuple(lines), instructions=(*self.instructions, *orders))


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
_EVENT_OF_END: Mapping[State, EventType] = {
    State.COMPLETED: EventType.COMPLETED,
    State.NO_SHOW: EventType.NO_SHOW_RECORDED,
    State.FAILED: EventType.FAILED,
    State.DECLINED: EventType.DECLINED,
    State.CANCELLED: EventType.CANCELLED,
}


def _next(now: datetime, *times: datetime) -> datetime:
    """The first of the times that is still to come, else the last one."""
    return next((one for one in times if one > now), times[-1])


def _too_many(message: str, limit: int) -> Refusal:
    return Refusal(
        "TOO_MANY_MODIFICATIONS",
        f"{message} It stands as it is, and can be cancelled.",
        metadata={"limit": str(limit)},
    )


def _failure(outcome: DepositOutcome) -> Failure:
    return Failure.DEPOSIT_VOIDED if isinstance(outcome, Voided) else Failure.DEPOSIT_UNKNOWN
