"""The checker of answers finds each kind of lie, and none where there is none."""

from __future__ import annotations

import datetime as dt
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import pytest

from operations import rows
from operations.rows import Charge, ProviderRefund, Slot
from operations.snapshot import Snapshot
from tests.torture.books import BookingStage, Books, Stage
from tests.torture.record import Answer, Call, Record, Refusal, Seen, SeenBooking, Terms
from tests.torture.truth import check

NOW = dt.datetime(2030, 1, 1, 12, tzinfo=dt.UTC)
ASKED = Terms("place", NOW, 2)
FEWER = Terms("place", NOW, 1)
PRICE = 2000


def reservation(state: str = "CONFIRMED", **other: Any) -> rows.Reservation:
    found = rows.Reservation(
        reservation_id="r1",
        customer_id="alice",
        restaurant_id="place",
        state=state,
        cancelled_by=None,
        dine_time=NOW,
        party_size=2,
        price=PRICE,
        revision=1,
        update_time=NOW,
        hold_expire_time=NOW,
        accept_deadline=None,
    )
    return replace(found, **other)


def deposit(captured: int = PRICE) -> rows.Deposit:
    return rows.Deposit("d1", "alice", "r1", "EUR", "CAPTURED", False, captured, 0, 0, 0, 0, NOW)


def books(
    *reservations: rows.Reservation,
    kept: int = PRICE,
    stages: Sequence[Stage] = (),
    bookings: Sequence[BookingStage] = (BookingStage("RECEIVED", 1), BookingStage("ACCEPTED", 1)),
    **other: Any,
) -> Books:
    """Alice's one reservation r1, paid by d1, of which the provider holds `kept`."""
    back = (ProviderRefund("back", PRICE - kept, True),) if kept < PRICE else ()
    seen = Snapshot(
        NOW,
        reservations={one.reservation_id: one for one in reservations},
        lines={"d1": rows.Line("d1", "r1", PRICE, "CAPTURED", True)},
        deposits={"d1": deposit()},
        charges=(Charge("d1", "CAPTURED", PRICE, "EUR", back),),
    )
    stages = stages or (
        Stage("ReservationPlaced", "PENDING_ACCEPTANCE", 1, ASKED),
        Stage("ReservationConfirmed", "CONFIRMED", 1, ASKED),
    )
    return Books(replace(seen, **other), {("alice", "wish"): "r1"}, {"r1": stages}, {"r1": bookings})


def shown(state: str = "PENDING_ACCEPTANCE", terms: Terms = ASKED, revision: int = 1, of: str = "r1") -> Seen:
    return Seen(of, "alice", state, revision, terms)


def reserved(begin: float = 0.0, seen: Seen | None = None, **other: Any) -> Answer:
    answer = Answer(
        Call.RESERVE,
        "alice",
        begin,
        begin + 1,
        request_id="wish",
        asked=ASKED,
        card="tok_visa",
        seen=seen or shown(),
    )
    return replace(answer, **other)


def refused(
    reason: str, begin: float = 0.0, code: str = "RESOURCE_EXHAUSTED", card: str = "tok_visa"
) -> Answer:
    return replace(reserved(begin, card=card), seen=None, refusal=Refusal(code, reason, 1.0))


def lost(begin: float = 0.0, **other: Any) -> Answer:
    return replace(reserved(begin), seen=None, refusal=Refusal("UNAVAILABLE", ""), **other)


def modified(begin: float = 3.0, **other: Any) -> Answer:
    answer = Answer(
        Call.MODIFY,
        "alice",
        begin,
        begin + 1,
        request_id="change",
        reservation_id="r1",
        asked=FEWER,
        seen=shown(terms=FEWER, revision=2),
    )
    return replace(answer, **other)


def cancelled(begin: float = 3.0, refunded: int = PRICE, forfeited: int = 0, **other: Any) -> Answer:
    answer = Answer(
        Call.CANCEL,
        "alice",
        begin,
        begin + 1,
        reservation_id="r1",
        seen=shown("CANCELLED"),
        refunded=refunded,
        forfeited=forfeited,
    )
    return replace(answer, **other)


def accepted(begin: float = 3.0, state: str = "ACCEPTED", revision: int = 1) -> Answer:
    booking = SeenBooking("r1", state, revision)
    return Answer(Call.ACCEPT, "alice", begin, begin + 1, reservation_id="r1", booking=booking)


PLACED = Stage("ReservationPlaced", "PENDING_ACCEPTANCE", 1, ASKED)
CONFIRMED = Stage("ReservationConfirmed", "CONFIRMED", 1, ASKED)
MODIFIED = Stage("ReservationModified", "PENDING_ACCEPTANCE", 2, FEWER)
ENDED = Stage("ReservationCancelled", "CANCELLED", 1, ASKED)
ALL_BACK: dict[str, Any] = {"kept": 0, "stages": (PLACED, CONFIRMED, ENDED)}


NOT_THERE = Refusal("NOT_FOUND", "NOT_FOUND")


def rules(record: Record, found: Books) -> set[str]:
    return {lie.rule for lie in check(record, found)}


HONEST = [
    pytest.param([reserved()], books(reservation()), id="booked"),
    pytest.param(
        [refused("TRY_AGAIN_LATER"), lost(2.0), reserved(4.0)], books(reservation()), id="booked at last"
    ),
    pytest.param(
        [reserved(), cancelled()], books(reservation("CANCELLED"), **ALL_BACK), id="cancelled and returned"
    ),
    pytest.param(
        [reserved(), cancelled(refunded=0, forfeited=PRICE)],
        books(
            reservation("CANCELLED"),
            stages=(PLACED, CONFIRMED, ENDED),
            forfeits=(rows.Forfeit("f1", "d1", PRICE),),
        ),
        id="cancelled too late",
    ),
    pytest.param(
        [
            refused("CARD_DECLINED", card="tok_chargeDeclined"),
            refused("CARD_DECLINED", 2.0, card="tok_chargeDeclined"),
        ],
        books(reservation("FAILED"), kept=0, stages=(Stage("ReservationFailed", "FAILED", 1, ASKED),)),
        id="declined twice",
    ),
    pytest.param(
        [reserved(), modified()],
        books(reservation(revision=2), stages=(PLACED, CONFIRMED, MODIFIED)),
        id="modified",
    ),
    pytest.param(
        [
            reserved(),
            replace(lost(3.0), call=Call.MODIFY, request_id="change", reservation_id="r1", asked=FEWER),
        ],
        books(reservation(revision=2), stages=(PLACED, CONFIRMED, MODIFIED)),
        id="modified, and the answer was lost",
    ),
    pytest.param([reserved(), accepted()], books(reservation()), id="accepted"),
]


@pytest.mark.parametrize(("answers", "found"), HONEST)
def test_true_answers_are_no_lies(answers: list[Answer], found: Books) -> None:
    given_up = {one.request_id for one in answers if one.call is Call.MODIFY and one.unknown}
    assert check(Record(answers, given_up), found) == []


TWO = (reservation(), reservation(reservation_id="r2"))
LIES = [
    ("form", [refused("", code="INTERNAL"), reserved(2.0)], books(reservation())),
    (
        "form",
        [
            replace(refused("TRY_AGAIN_LATER"), refusal=Refusal("RESOURCE_EXHAUSTED", "TRY_AGAIN_LATER")),
            reserved(2.0),
        ],
        books(reservation()),
    ),
    ("form", [refused("CARD_DECLINED")], books(reservation("FAILED"), kept=0)),
    ("one booking", [reserved()], books(*TWO)),
    ("same answer", [reserved(), reserved(2.0, shown(of="r2"))], books(*TWO)),
    ("same answer", [reserved(), refused("SLOT_UNAVAILABLE", 2.0), reserved(4.0)], books(reservation())),
    (
        "same answer",
        [refused("CARD_DECLINED", card="tok_chargeDeclined"), reserved(2.0)],
        books(reservation()),
    ),
    ("same answer", [reserved(asked=FEWER)], books(reservation())),
    ("same answer", [reserved()], books(reservation(), deposits={"d1": deposit(captured=0)})),
    ("same answer", [reserved(seen=shown("FAILED"))], books(reservation("FAILED"), kept=0)),
    ("shown", [reserved(seen=shown(of="nobody's"))], books(reservation())),
    ("shown", [reserved(seen=replace(shown(), customer_id="bob"))], books(reservation())),
    ("shown", [reserved(seen=shown("SEATED"))], books(reservation())),
    ("shown", [reserved(seen=shown(revision=2))], books(reservation())),
    ("shown", [reserved(seen=shown("CONFIRMED")), reserved(2.0)], books(reservation())),
    ("shown", [reserved(seen=shown("CANCELLED"))], books(reservation(), stages=(PLACED, CONFIRMED, ENDED))),
    ("end", [refused("TRY_AGAIN_LATER")], books(kept=0)),
    ("end", [lost()], books(reservation())),
    ("end", [reserved()], replace(books(reservation()), requests={("alice", "wish"): "r0"})),
    ("nothing stays", [refused("TRY_AGAIN_LATER")], books(reservation())),
    ("nothing stays", [refused("SLOT_UNAVAILABLE")], books(reservation())),
    ("cancel", [reserved(), cancelled()], books(reservation())),
    ("cancel", [reserved(), cancelled()], books(reservation("CANCELLED"), stages=(PLACED, CONFIRMED, ENDED))),
    (
        "cancel",
        [reserved(), cancelled(), cancelled(5.0, refunded=0)],
        books(reservation("CANCELLED"), **ALL_BACK),
    ),
    (
        "cancel",
        [reserved(), cancelled(refunded=0, forfeited=PRICE)],
        books(reservation("CANCELLED"), **ALL_BACK),
    ),
    (
        "cancel",
        [
            reserved(),
            cancelled(seen=None, refusal=Refusal("FAILED_PRECONDITION", "RESERVATION_NOT_CANCELLABLE")),
        ],
        books(reservation()),
    ),
    (
        "cancel",
        [reserved(), cancelled(seen=None, refusal=Refusal("NOT_FOUND", "NOT_FOUND"))],
        books(reservation()),
    ),
    ("form", [replace(refused("OUTCOME_UNKNOWN"), refusal=Refusal("ABORTED", "OUTCOME_UNKNOWN"))], books()),
    ("seats", [refused("SLOT_UNAVAILABLE")], books(slots=(Slot("place", NOW, 2, 0),))),
    (
        "found",
        [reserved(), replace(modified(), call=Call.READ, seen=None, refusal=NOT_THERE)],
        books(reservation()),
    ),
    ("found", [reserved(), modified(seen=None, refusal=NOT_THERE)], books(reservation())),
    (
        "found",
        [
            reserved(),
            modified(seen=None, refusal=Refusal("FAILED_PRECONDITION", "RESERVATION_NOT_MODIFIABLE")),
        ],
        books(reservation()),
    ),
    ("modify", [reserved(), modified()], books(reservation())),
    (
        "modify",
        [reserved(), modified()],
        books(reservation(revision=3), stages=(PLACED, MODIFIED, replace(MODIFIED, revision=3))),
    ),
    (
        "modify",
        [
            reserved(),
            modified(
                seen=None, refusal=Refusal("FAILED_PRECONDITION", "CARD_DECLINED"), card="tok_chargeDeclined"
            ),
        ],
        books(reservation(revision=2), stages=(PLACED, MODIFIED)),
    ),
    ("staff", [reserved(), accepted(state="DECLINED")], books(reservation())),
    ("staff", [reserved(), accepted(revision=2)], books(reservation())),
    ("money", [reserved()], books(reservation(), kept=0)),
    ("money", [reserved()], books(reservation("SEATED"), stages=(PLACED, Stage("", "SEATED", 1, ASKED)))),
    ("money", [refused("SLOT_UNAVAILABLE")], books(reservation("FAILED"))),
]


@pytest.mark.parametrize(
    ("rule", "answers", "found"), [pytest.param(*one, id=f"{one[0]}-{n}") for n, one in enumerate(LIES)]
)
def test_each_kind_of_lie_is_found(rule: str, answers: list[Answer], found: Books) -> None:
    assert rule in rules(Record(answers), found)


def test_seats_that_others_asked_for_too_may_be_refused() -> None:
    others = [replace(reserved(), customer=name, request_id=name) for name in ("bob", "carol")]
    room = books(slots=(Slot("place", NOW, 5, 4),))
    found = {lie.rule for lie in check(Record([*others, refused("SLOT_UNAVAILABLE", 2.0)]), room)}
    assert "seats" not in found


def test_a_client_that_gives_up_leaves_its_end_open() -> None:
    record = Record([refused("TRY_AGAIN_LATER")], given_up={"wish"})
    assert check(record, books(reservation("FAILED"), kept=0)) == []
    # But not a booking behind its back.
    assert rules(record, books(reservation())) == {"nothing stays"}


def test_a_refusal_to_try_again_later_speaks_of_its_own_call() -> None:
    found = books(reservation())
    assert check(Record([lost(), refused("TRY_AGAIN_LATER", 2.0)], given_up={"wish"}), found) == []
    told = [reserved(), refused("TRY_AGAIN_LATER", 2.0), reserved(4.0)]
    assert check(Record(told), found) == []
    # Any other refusal knows what the request id led to.
    at_rest = Record([lost(), refused("SLOT_UNAVAILABLE", 2.0)], given_up={"wish"})
    assert rules(at_rest, found) == {"nothing stays"}


def test_a_call_still_under_way_may_have_booked_after_a_refusal() -> None:
    slow = replace(lost(0.0), end=5.0)
    record = Record([refused("TRY_AGAIN_LATER", 1.0), slow], given_up={"wish"})
    assert check(record, books(reservation())) == []
