"""A clock that jumped is held against what it ended."""

from __future__ import annotations

import datetime as dt
from collections import Counter

from operations.snapshot import Snapshot
from tests.torture.books import BookingStage, Books, Stage
from tests.torture.clocks import complaints
from tests.torture.record import Jump, Terms
from tests.torture.test_truth import NOW, reservation

AHEAD = dt.timedelta(hours=3)
PLACED = NOW - dt.timedelta(minutes=10)
DURING = NOW + AHEAD + dt.timedelta(seconds=1)
LATER = NOW + dt.timedelta(hours=1)
ALIVE = 20


def jump(by: dt.timedelta = AHEAD) -> Jump:
    return Jump("reservation", by, NOW + by, 0.0, 5.0, Counter({"PENDING_ACCEPTANCE": ALIVE}))


def ended(
    many: int,
    *,
    at: dt.datetime = DURING,
    placed: dt.datetime = PLACED,
    deadline: dt.datetime = LATER,
    by_restaurant: bool = False,
) -> Books:
    """So many bookings that were declined then."""
    names = [f"r{number}" for number in range(many)]
    terms = Terms("place", LATER, 2)
    stages = (
        Stage("ReservationPlaced", "PENDING_ACCEPTANCE", 1, terms, placed),
        Stage("ReservationDeclined", "DECLINED", 1, terms, at),
    )
    found = {name: reservation("DECLINED", reservation_id=name, accept_deadline=deadline) for name in names}
    said = (BookingStage("DECLINED", 1),) if by_restaurant else (BookingStage("WITHDRAWN", 1),)
    return Books(
        Snapshot(NOW, reservations=found),
        stages=dict.fromkeys(names, stages),
        bookings=dict.fromkeys(names, said),
    )


def test_more_than_the_set_share_ended_by_a_wrong_clock_are_complained_of() -> None:
    (said,) = complaints([jump()], ended(10))
    assert "10 of 20" in said


def test_within_the_share_nothing_is() -> None:
    assert not list(complaints([jump()], ended(4)))


def test_what_others_ended_meanwhile_is_not_counted() -> None:
    for books in (
        ended(10, by_restaurant=True),
        ended(10, at=NOW + dt.timedelta(seconds=9)),  # by the right clock
        ended(10, deadline=NOW),  # due by the right clock, too
        ended(10, placed=DURING),  # made by the wrong one
    ):
        assert not list(complaints([jump()], books))


def test_a_clock_that_is_put_right_by_a_little_has_not_jumped() -> None:
    assert not list(
        complaints([jump(dt.timedelta(seconds=30))], ended(10, at=NOW + dt.timedelta(seconds=31)))
    )
