"""Promise 3: seats are sold once, and come back."""

from __future__ import annotations

from tests.guards.guard import Edit, Guard, Witness

ALLOTMENT = "reservation_svc.persistence.allotment"
_RESERVE = "tests/reservation/test_reserve.py::"
_ENDS = "tests/reservation/test_ends.py::"

GUARDS = (
    Guard(
        "conditional-sale",
        (3,),
        "Seats are sold by one conditional update: sold + n <= capacity.",
        (
            Edit(
                ALLOTMENT,
                '.where(_AT, slots.c.sold + bindparam("seats") <= slots.c.capacity)',
                ".where(_AT)",
            ),
        ),
        (Witness(_RESERVE + "test_eighty_callers_for_the_last_ten_seats_buy_exactly_ten[postgresql]", ""),),
    ),
    Guard(
        "seats-come-back",
        (3,),
        "A reservation that ends gives its seats back in the transaction that ends it.",
        (
            Edit(
                "reservation_svc.usecases.desk",
                "allotment.release(tx, after.restaurant_id, dine_time, less)",
                "pass",
            ),
        ),
        (
            Witness(_ENDS + "test_a_free_cancel_gives_everything_back_and_says_so_again[sqlite]", ""),
            Witness(
                _RESERVE + "test_an_overloaded_deposit_means_not_charged_and_a_new_attempt_next_time[sqlite]",
                "",
            ),
        ),
        quick=True,
    ),
    Guard(
        "extra-seats-are-held",
        (3,),
        "An open modification holds the seats that it needs besides.",
        (
            Edit(
                "reservation_svc.domain.reservations",
                "if self.modification is not None:\n            wanted = self.modification.terms",
                "if self.modification is not None and not held:\n"
                "            wanted = self.modification.terms",
            ),
        ),
        (
            Witness(
                "tests/reservation/test_modify.py::"
                "test_a_dearer_modification_at_the_same_time_holds_only_the_extra_seats[sqlite]",
                "",
            ),
        ),
        quick=True,
    ),
    Guard(
        "slot-version",
        (3, 4),
        "Capacities are set by version: a stale one has no effect.",
        (
            Edit(
                ALLOTMENT,
                "        where=slots.c.version < insert.excluded.version,\n    )\n\n\n_SET_CAPACITY",
                "    )\n\n\n_SET_CAPACITY",
            ),
        ),
        (Witness(_ENDS + "test_slots_are_set_in_any_order_and_the_newest_version_stands[sqlite]", ""),),
        quick=True,
    ),
    Guard(
        "reservation-guarded-update",
        (1, 3, 4),
        "A reservation moves only from the version and state that it was seen in.",
        (
            Edit(
                "reservation_svc.persistence.reservations",
                '        reservations.c.reservation_id == bindparam("saved_id"),\n'
                '        reservations.c.version == bindparam("version_before"),\n'
                '        reservations.c.state == bindparam("state_before"),\n',
                '        reservations.c.reservation_id == bindparam("saved_id"),\n'
                '        bindparam("version_before") >= 0,\n'
                "        bindparam(\"state_before\") != '',\n",
            ),
        ),
        (Witness(_ENDS + "test_no_show_against_late_cancel_forfeits_once[postgresql]", ""),),
    ),
)
