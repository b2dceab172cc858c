"""Promises 1 and 3: a modification that fails, and money or guests that come at the wrong moment."""

from __future__ import annotations

from tests.guards.guard import Edit, Guard, Witness

RESERVATIONS = "reservation_svc.domain.reservations"
_DOMAIN = "tests/reservation/test_domain.py::"
_MODIFY = "tests/reservation/test_modify.py::"
_BOOKINGS = "tests/restaurant/test_domain.py::"

GUARDS = (
    Guard(
        "modification-paid-too-late",
        (1,),
        "New terms that are paid when nobody can accept them any more are given up; the old ones stand.",
        (
            Edit(
                RESERVATIONS,
                "case Captured() if now < min(wanted.hold_expire_time, deadline):",
                "case Captured() if now < wanted.hold_expire_time:",
            ),
        ),
        (
            Witness(
                _DOMAIN + "test_what_is_paid_too_late_for_an_answer_leaves_the_booking_as_it_was",
                "assert (after.state, after.terms, after.seats) ==",
            ),
            Witness(
                _MODIFY + "test_a_modification_paid_too_late_for_an_answer_is_given_back[sqlite-the event]",
                'await refused("TRY_AGAIN_LATER", waiting)',
            ),
        ),
        quick=True,
    ),
    Guard(
        "void-of-a-failed-modification",
        (1,),
        "A modification that fails while its charge may have been made orders a void of its deposit.",
        (Edit(RESERVATIONS, "late = late._void(wanted.deposit_id, Cause.MODIFICATION_FAILED)\n", "\n"),),
        (
            Witness(
                _MODIFY + "test_a_modification_that_dies_and_is_not_heard_of_is_voided"
                "_and_the_old_booking_stands[sqlite]",
                "assert orders(after) == [(Kind.VOID, 1, 0)]",
            ),
        ),
    ),
    Guard(
        "void-of-a-modification-at-the-end",
        (1,),
        "Whatever ends a reservation voids the deposit of its open modification.",
        (
            Edit(
                RESERVATIONS,
                "modification=None)._void(wanted.deposit_id, Cause.MODIFICATION_FAILED)",
                "modification=None)",
            ),
        ),
        (
            Witness(
                _MODIFY + "test_cancel_wins_against_a_modification_being_paid[sqlite]",
                "assert sorted(orders(cancelled.reservation)) ==",
            ),
            Witness(
                _MODIFY + "test_a_decline_closes_a_modification_being_paid[sqlite]",
                "assert sorted(orders(after)) ==",
            ),
        ),
    ),
    Guard(
        "capture-that-nobody-awaits",
        (1,),
        "A capture that nobody awaits any more is given back.",
        (
            Edit(
                RESERVATIONS,
                "return Move(stray._void(deposit_id, Cause.FAILED)._moved(now), event)",
                "return Move(stray._moved(now))",
            ),
        ),
        (
            Witness(
                "tests/reservation/test_reserve.py::"
                "test_a_capture_after_not_charged_is_voided_all_the_same[sqlite]",
                "assert [one.kind for one in after.instructions] == [Kind.VOID]",
            ),
        ),
    ),
    Guard(
        "hold-is-the-limit",
        (1, 3),
        "A capture that is told after the hold is given back: the seats may be somebody else's.",
        (Edit(RESERVATIONS, "case Captured() if now < self.hold_expire_time:", "case Captured():"),),
        (
            Witness(
                _DOMAIN + "test_a_capture_after_the_hold_is_not_taken",
                "assert (after.state, after.held_total) == (State.FAILED, 0)",
            ),
        ),
        quick=True,
    ),
    Guard(
        "one-open-modification",
        (1, 2),
        "While a modification is being paid no other one begins.",
        (
            Edit(
                RESERVATIONS,
                'if self.modification is not None:\n            raise Refusal("MODIFICATION_IN_PROGRESS"',
                'if self.modification is self:\n            raise Refusal("MODIFICATION_IN_PROGRESS"',
            ),
        ),
        (
            Witness(
                _MODIFY + "test_a_dearer_modification_charges_the_difference_and_then_swaps[sqlite]",
                'refused("MODIFICATION_IN_PROGRESS"',
            ),
        ),
    ),
    Guard(
        "modifications-have-an-end",
        (9,),
        "A reservation is made dearer or cheaper so often and no more: to read it stays cheap for all.",
        (
            Edit(
                RESERVATIONS,
                "if difference and self.priced_modifications >= limit:",
                "if difference and limit < 0:",
            ),
        ),
        (
            Witness(
                _MODIFY + "test_a_reservation_is_made_dearer_or_cheaper_so_often_and_no_more[sqlite]",
                'await refused("TOO_MANY_MODIFICATIONS", call)',
            ),
        ),
        quick=True,
    ),
    Guard(
        "guests-who-are-here",
        (3, 4),
        "Guests who were seated stay seated in the terms that were on their way meanwhile.",
        (
            Edit(
                "restaurant_svc.domain",
                "if snapshot.terms.revision > booking.terms.revision and _are_here(booking, snapshot.terms):",
                "if snapshot is None:",
            ),
        ),
        (
            Witness(
                _BOOKINGS + "test_guests_who_are_here_stay_here_when_news_of_other_terms_comes",
                "assert (after.state, after.terms.revision, after.confirmed) ==",
            ),
            Witness(
                _BOOKINGS + "test_guests_who_are_here_stay_here_whichever_news_comes_first",
                "assert ends ==",
            ),
        ),
        quick=True,
    ),
    Guard(
        "guests-who-are-here-are-told",
        (3, 4),
        "That they are seated is told again of the new terms: what was told of the old ones is not heard.",
        (
            Edit(
                "restaurant_svc.domain",
                "if before is not None and before.state is after.state:",
                "if before is after:",
            ),
        ),
        (
            Witness(
                _BOOKINGS + "test_guests_who_are_here_stay_here_when_news_of_other_terms_comes",
                "assert (domain.booking_event(before, after), after.accepted_revision) == (told, 2)",
            ),
        ),
        quick=True,
    ),
    Guard(
        "unknown-names-a-time",
        (7, 2),
        "Who is told that the outcome is not known is told when to ask again.",
        (
            Edit(
                "reservation_svc.usecases.context",
                'repeat with the same request_id.",\n            retry_after=self.limits.retry_after,',
                'repeat with the same request_id.",',
            ),
        ),
        (
            Witness(
                "tests/reservation/test_faults.py::"
                "test_an_outcome_that_is_not_known_comes_with_a_time_to_ask_again[sqlite]",
                "assert said.retry_after == pod.ctx.limits.retry_after",
            ),
        ),
        quick=True,
    ),
)
