"""Whether every answer that a client was given is true against the books. Pure: a record and books in, lies
out."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime

from operations.rows import Reservation
from tests.torture.books import Books
from tests.torture.record import STAFF, Answer, Call, Record, Seen, Terms

LIVE = frozenset({"PENDING_DEPOSIT", "PENDING_ACCEPTANCE", "CONFIRMED", "SEATED"})
ENDED = frozenset({"COMPLETED", "NO_SHOW", "FAILED", "DECLINED", "CANCELLED"})
_BOOKED = frozenset({"PENDING_ACCEPTANCE", "CONFIRMED"})
# Refusals after which a client may not come back with the same request, and the one that stores nothing.
FINAL = frozenset(
    {
        "CARD_DECLINED",
        "SLOT_UNAVAILABLE",
        "RESTAURANT_CLOSED",
        "INVALID_ARGUMENT",
        "NOT_FOUND",
        "TOO_MANY_MODIFICATIONS",
    }
)
_NOTHING_STAYS = FINAL | {"TRY_AGAIN_LATER", "DEADLINE_TOO_SHORT"}
_NAMES_A_TIME = frozenset(
    {
        "TRY_AGAIN_LATER",
        "UNAVAILABLE",  # said by a service whose database is down; a lost connection has no reason
        "REQUEST_IN_PROGRESS",
        "OUTCOME_UNKNOWN",
        "MODIFICATION_IN_PROGRESS",
        "TOO_EARLY",
    }
)
_FAULTS = frozenset({"INTERNAL", "UNKNOWN", "DATA_LOSS", "UNIMPLEMENTED", "UNAUTHENTICATED"})
_NOT_CANCELLABLE = frozenset({"SEATED", "COMPLETED", "NO_SHOW", "FAILED", "DECLINED"})
# What follows which on the restaurant's side: a repeated yes is answered by what came of the booking since.
_SAID_BY_STAFF = {
    Call.ACCEPT: frozenset({"ACCEPTED", "SEATED", "NO_SHOW", "COMPLETED"}),
    Call.DECLINE: frozenset({"DECLINED"}),
    Call.SEAT: frozenset({"SEATED", "COMPLETED"}),
    Call.NO_SHOW: frozenset({"NO_SHOW"}),
    Call.COMPLETE: frozenset({"COMPLETED"}),
}


@dataclass(frozen=True)
class Lie:
    """`rule`: which one it breaks; `subject`: the customer or the reservation."""

    rule: str
    subject: str
    what: str

    def __str__(self) -> str:
        return f"{self.rule}: {self.subject}: {self.what}"


def check(record: Record, books: Books) -> list[Lie]:
    """All lies of the record, none if every answer is true."""
    lies: list[Lie] = []
    attempts: dict[str, list[Reservation]] = defaultdict(list)
    for reservation in books.snapshot.reservations.values():
        attempts[reservation.customer_id].append(reservation)
    by_customer: dict[str, list[Answer]] = defaultdict(list)
    for answer in record.answers:
        by_customer[answer.customer].append(answer)
        lies += _form(answer)
    money = _kept(books)
    lies += _seats(record, books)
    for customer, answers in by_customer.items():
        answers.sort(key=lambda one: one.end)
        mine = attempts.get(customer, [])
        lies += _one_booking(customer, mine)
        lies += _shown(customer, answers, books)
        lies += _requests(customer, answers, mine, record, books)
        lies += _known_to_be_there(answers, books)
        lies += _cancels(answers, books)
        lies += _modifications(answers, books)
        lies += _staff(answers, books)
        lies += _money(customer, answers, mine, money[customer])
    return lies


def _form(answer: Answer) -> Iterator[Lie]:
    """A refusal says what the contract lets it say."""
    refusal = answer.refusal
    if refusal is None:
        return
    if refusal.code in _FAULTS:
        yield Lie("form", answer.customer, f"{answer.call} was answered {refusal.code} {refusal.reason}")
    if refusal.reason in _NAMES_A_TIME and not refusal.retry_after:
        yield Lie(
            "form", answer.customer, f"{answer.call} was answered {refusal.reason} without a retry time"
        )
    if refusal.reason == "CARD_DECLINED" and not answer.card.startswith("tok_chargeDeclined"):
        yield Lie("form", answer.customer, f"the card {answer.card} is good, and was said to be declined")


def _one_booking(customer: str, attempts: Sequence[Reservation]) -> Iterator[Lie]:
    """Each attempt is a reservation of its own; at most one of them became a booking."""
    booked = [one.reservation_id for one in attempts if one.state != "FAILED"]
    if len(booked) > 1:
        yield Lie("one booking", customer, f"one request_id, and the bookings {', '.join(sorted(booked))}")


def _shown(customer: str, answers: Sequence[Answer], books: Books) -> Iterator[Lie]:
    """What an answer shows was so, at some time, and never goes backwards."""
    newest: dict[str, list[tuple[float, int, Seen]]] = defaultdict(list)
    for answer in answers:
        seen = answer.seen
        if seen is None:
            continue
        known = books.snapshot.reservations.get(seen.reservation_id)
        if known is None or known.customer_id != customer or seen.customer_id != customer:
            yield Lie(
                "shown", customer, f"was shown {seen.reservation_id}, which is not theirs, or is nothing"
            )
            continue
        place = _stage(seen, books)
        if place is None:
            yield Lie("shown", seen.reservation_id, f"was shown {_told(seen)}, and was never so")
            continue
        for end, before, earlier in newest[seen.reservation_id]:
            if end <= answer.begin and place < before:
                yield Lie("shown", seen.reservation_id, f"was shown {_told(seen)} after {_told(earlier)}")
                break
        newest[seen.reservation_id].append((answer.end, place, seen))
        if seen.state in ENDED and known.state != seen.state:
            yield Lie(
                "shown", seen.reservation_id, f"was said to have ended {seen.state}, and is {known.state}"
            )


def _stage(seen: Seen, books: Books) -> int | None:
    """Which stage of the reservation an answer shows; None if it never was so."""
    if seen.state == "PENDING_DEPOSIT":
        return -1
    for place, stage in enumerate(books.stages.get(seen.reservation_id, ())):
        if (stage.state, stage.revision, stage.terms) == (seen.state, seen.revision, seen.terms):
            return place
    # An attempt that deposit refused by load is told to nobody.
    return len(books.stages.get(seen.reservation_id, ())) if seen.state == "FAILED" else None


def _told(seen: Seen) -> str:
    return (
        f"{seen.state} (revision {seen.revision}, {seen.terms.party_size} at {seen.terms.dine_time:%H:%M:%S})"
    )


def _requests(
    customer: str, answers: Sequence[Answer], attempts: Sequence[Reservation], record: Record, books: Books
) -> Iterator[Lie]:
    """A request id has one answer, is true to its last word, and comes to an end if it is repeated."""
    tries = [one for one in answers if one.call is Call.RESERVE]
    if not tries:
        return
    request_id = tries[0].request_id
    good = [one for one in tries if one.seen is not None]
    ids = {one.seen.reservation_id for one in good if one.seen is not None}
    if len(ids) > 1:
        yield Lie("same answer", customer, f"one request_id was answered with {', '.join(sorted(ids))}")
    for one in good:
        yield from _as_asked(one, books)
    yield from _after_its_answer(customer, tries, good)
    booked = [one for one in attempts if one.state != "FAILED"]
    if booked and not ids and request_id not in record.given_up:
        yield Lie("end", customer, f"{booked[0].reservation_id} is {booked[0].state}, and nobody was told so")
    if len(booked) == 1 and (found := books.requests.get((customer, request_id))) != booked[0].reservation_id:
        yield Lie("end", customer, f"{request_id} led to {booked[0].reservation_id}, and is kept as {found}")
    last = tries[-1]
    word = last.outcome
    if not last.good and word not in FINAL and request_id not in record.given_up:
        yield Lie("end", customer, f"{request_id} was repeated as told, and the last answer is {word}")
    definite = [one for one in tries if not one.unknown]
    if not definite or definite[-1].good or not booked:
        return
    closing = definite[-1]
    others = [one for one in tries if one is not closing]
    # A call whose outcome nobody knows may have booked: meanwhile, or before a refusal that speaks of itself.
    own = closing.outcome == "TRY_AGAIN_LATER"
    may_have = any(one.unknown and (own or one.end > closing.begin) for one in others)
    if closing.outcome in _NOTHING_STAYS and not may_have:
        yield Lie("nothing stays", customer, f"was told {closing.outcome}, and has {booked[0].state}")


def _as_asked(answer: Answer, books: Books) -> Iterator[Lie]:
    seen, asked = answer.seen, answer.asked
    assert seen is not None
    if seen.state in ("PENDING_DEPOSIT", "FAILED"):
        yield Lie("same answer", seen.reservation_id, f"was answered as booked, and shown {seen.state}")
    if asked is not None and seen.revision == 1 and seen.terms != asked:
        yield Lie("same answer", seen.reservation_id, f"was asked for {asked}, and made for {seen.terms}")
    lines = books.snapshot.lines_of(seen.reservation_id)
    paid = [
        one
        for one in lines
        if (known := books.snapshot.deposits.get(one.deposit_id)) and known.captured_minor
    ]
    if seen.state != "CANCELLED" and not paid:
        yield Lie("same answer", seen.reservation_id, "was answered as booked, and no deposit was captured")


def _after_its_answer(customer: str, tries: Sequence[Answer], good: Sequence[Answer]) -> Iterator[Lie]:
    """Once it was answered for good, a repetition gets the same answer."""
    booked_at = min((one.end for one in good), default=None)
    declined_at = min((one.end for one in tries if one.outcome == "CARD_DECLINED"), default=None)
    for one in tries:
        # TRY_AGAIN_LATER speaks of its own call: a service that is starting knows of no other.
        refused = one.outcome in _NOTHING_STAYS and one.outcome != "TRY_AGAIN_LATER"
        if booked_at is not None and one.begin >= booked_at and refused:
            yield Lie("same answer", customer, f"was told {one.outcome} after it was told of the booking")
        after_declined = declined_at is not None and one.begin >= declined_at and not one.unknown
        if after_declined and one.outcome not in ("CARD_DECLINED", "TRY_AGAIN_LATER"):
            yield Lie("same answer", customer, f"was told {one.outcome} after CARD_DECLINED")


def _seats(record: Record, books: Books) -> Iterator[Lie]:
    """Seats are refused only where all that was ever asked for would not have fitted."""
    asked: dict[tuple[str, datetime], dict[tuple[str, str], int]] = defaultdict(dict)
    for one in record.answers:
        if one.asked is not None:
            slot = asked[one.asked.restaurant_id, one.asked.dine_time]
            slot[one.customer, one.request_id] = one.asked.party_size
    room = {(slot.restaurant_id, slot.dine_time): slot.capacity for slot in books.snapshot.slots}
    for one in record.answers:
        if one.outcome == "SLOT_UNAVAILABLE" and one.asked is not None:
            key = one.asked.restaurant_id, one.asked.dine_time
            wanted = sum(asked[key].values())
            if wanted <= room.get(key, 0):
                what = f"was refused seats, and all that was asked for is {wanted} of {room[key]}"
                yield Lie("seats", one.customer, what)


def _known_to_be_there(answers: Iterable[Answer], books: Books) -> Iterator[Lie]:
    """A customer finds what is theirs, and may change what stands."""
    for one in answers:
        known = books.snapshot.reservations.get(one.reservation_id)
        if known is None or one.call not in (Call.READ, Call.MODIFY):
            continue
        if one.outcome == "NOT_FOUND":
            yield Lie("found", one.reservation_id, f"{one.call}: was not found by its own customer")
        if one.outcome == "RESERVATION_NOT_MODIFIABLE" and known.state in _BOOKED:
            yield Lie("found", one.reservation_id, f"was said not to be modifiable, and is {known.state}")


def _cancels(answers: Iterable[Answer], books: Books) -> Iterator[Lie]:
    cancels = [one for one in answers if one.call is Call.CANCEL]
    amounts: dict[str, tuple[int, int]] = {}
    for one in cancels:
        known = books.snapshot.reservations.get(one.reservation_id)
        if known is None:
            continue
        if one.good:
            said = (one.refunded, one.forfeited)
            first = amounts.setdefault(one.reservation_id, said)
            if said != first:
                yield Lie("cancel", one.reservation_id, f"two cancels were answered {first} and {said}")
            yield from _returned(one, known, books)
        elif one.outcome == "RESERVATION_NOT_CANCELLABLE" and known.state not in _NOT_CANCELLABLE:
            yield Lie("cancel", one.reservation_id, f"was said not to be cancellable, and is {known.state}")
        elif one.outcome == "NOT_FOUND":
            yield Lie("cancel", one.reservation_id, "was not found by its own customer")


def _returned(answer: Answer, known: Reservation, books: Books) -> Iterator[Lie]:
    """What a cancel says it gives back was ordered, and was given back; what it keeps was kept."""
    if known.state != "CANCELLED":
        yield Lie("cancel", known.reservation_id, f"was answered as cancelled, and is {known.state}")
        return
    mine = [line.deposit_id for line in books.snapshot.lines_of(known.reservation_id)]
    forfeited = sum(books.forfeited.get(deposit_id, 0) for deposit_id in mine)
    if forfeited != answer.forfeited:
        what = f"was told that {answer.forfeited} are forfeited, and {forfeited} were"
        yield Lie("cancel", known.reservation_id, what)
    back = sum(books.returned.get(deposit_id, 0) for deposit_id in mine)
    if back < answer.refunded:
        what = f"was told that {answer.refunded} go back, and {back} did"
        yield Lie("cancel", known.reservation_id, what)


def _modifications(answers: Iterable[Answer], books: Books) -> Iterator[Lie]:
    """Each request to modify changed the terms once if it was answered, not at all if it was refused."""
    tries: dict[tuple[str, str], list[Answer]] = defaultdict(list)
    for one in answers:
        if one.call is Call.MODIFY:
            tries[one.reservation_id, one.request_id].append(one)
    asked: Counter[tuple[str, Terms | None]] = Counter()
    sure: Counter[tuple[str, Terms | None]] = Counter()
    maybe: Counter[tuple[str, Terms | None]] = Counter()
    for (reservation_id, _), mine in tries.items():
        key = reservation_id, mine[0].asked
        asked[key] += 1
        if any(one.good and not _overtaken(one) for one in mine):
            sure[key] += 1
        elif any(one.good for one in mine) or _may_have_changed(mine):
            maybe[key] += 1
    for key in asked:
        reservation_id, terms = key
        changed = sum(
            stage.happened == "ReservationModified" and stage.terms == terms
            for stage in books.stages.get(reservation_id, ())
        )
        if not sure[key] <= changed <= sure[key] + maybe[key]:
            expected = f"{sure[key]} to {sure[key] + maybe[key]}"
            yield Lie("modify", reservation_id, f"changed {changed} times to {terms}; told of {expected}")


def _overtaken(answer: Answer) -> bool:
    """A modification that a cancel closed is answered with the reservation as it then stands."""
    seen = answer.seen
    return seen is not None and seen.state in ENDED and seen.terms != answer.asked


def _may_have_changed(tries: Sequence[Answer]) -> bool:
    """Whether a request that was never answered may have been carried out: its last word is open, or a call
    of it was still under way when the last definite one was answered."""
    definite = [one for one in tries if not one.unknown]
    if not definite:
        return True
    closing = definite[-1]
    return any(one is not closing and one.end > closing.begin for one in tries)


def _staff(answers: Iterable[Answer], books: Books) -> Iterator[Lie]:
    """What staff were told of a booking, the restaurant said to all."""
    for one in answers:
        if one.call not in STAFF or one.booking is None:
            continue
        booking = one.booking
        if booking.state not in _SAID_BY_STAFF[one.call]:
            yield Lie("staff", booking.reservation_id, f"{one.call} was answered with {booking.state}")
        told = {(stage.state, stage.revision) for stage in books.bookings.get(booking.reservation_id, ())}
        stands = books.snapshot.bookings.get(booking.reservation_id)
        if stands is not None:
            told.add((stands.state, stands.revision))
        if (booking.state, booking.revision) not in told:
            what = f"staff were shown {booking.state} of revision {booking.revision}, which was never said"
            yield Lie("staff", booking.reservation_id, what)


def _kept(books: Books) -> Mapping[str, int]:
    """What the provider holds of each customer's money."""
    kept: Counter[str] = Counter()
    for charge in books.snapshot.charges:
        deposit = books.snapshot.deposits.get(charge.key)
        if deposit is not None and charge.captured:
            kept[deposit.customer_id] += charge.minor - books.returned[charge.key]
    return kept


def _money(
    customer: str, answers: Sequence[Answer], attempts: Sequence[Reservation], kept: int
) -> Iterator[Lie]:
    """What stays charged is what the customer was told of: the booking's price, what was forfeited, else
    nothing."""
    booked = [one for one in attempts if one.state != "FAILED"]
    expected = 0
    for one in booked:
        if one.state in _BOOKED or one.state == "NO_SHOW":
            expected += one.price
        elif one.state == "CANCELLED":
            said = {answer.forfeited for answer in answers if answer.call is Call.CANCEL and answer.good}
            if not said:
                return  # nobody heard the answer; the audit holds it against the orders
            expected += min(said)
    if kept != expected:
        states = ", ".join(one.state for one in attempts) or "no reservation"
        yield Lie("money", customer, f"{kept} minor units stay charged and should be {expected}: {states}")
