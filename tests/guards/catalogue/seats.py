"""Promise 3: seats are sold once, and come back."""

from __future__ import annotations

from tests.guards.guard import Edit, Guard, Witness

ALLOTMENT = "reservation_svc.persistence.seat_inventory"
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
        (
            Witness(
                _RESERVE + "test_a_sale_beyond_the_capacity_changes_nothing[sqlite]",
                "for seats in (8, 3, 2, 1)] == [True, False, True, False]",
            ),
        ),
        quick=True,
    ),
    Guard(
        "seats-come-back",
        (3,),
        "A reservation that ends gives its seats back in the transaction that ends it.",
        (
            Edit(
                "reservation_svc.usecases.context",
                "seat_inventory.release(tx, after.restaurant_id, dine_time, less)",
                "pass",
            ),
        ),
        (
            Witness(
                _ENDS + "test_a_free_cancel_gives_everything_back_and_says_so_again[sqlite]",
                "assert await pod.sold() == 0",
            ),
            Witness(
                _RESERVE + "test_an_overloaded_deposit_means_not_charged_and_a_new_attempt_next_time[sqlite]",
                "assert await pod.sold() == 0",
            ),
        ),
        quick=True,
    ),
    Guard(
        "money-whatever-the-seats",
        (1, 3),
        "A seat counter that is too low stops no refund: seats come back as far as there are any.",
        (
            Edit(
                ALLOTMENT,
                '.where(_AT, slots.c.sold >= bindparam("seats"))',
                ".where(_AT)",
            ),
        ),
        (
            Witness(
                "tests/reservation/test_reconcile.py::"
                "test_money_goes_back_whatever_the_seat_counter_says_and_the_audit_mends_it[sqlite-cancelled]",
                "await pod.cancel(booked)",
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
                "tests/reservation/test_domain.py::"
                "test_an_open_modification_holds_what_it_needs_besides_and_no_more",
                "assert opened(RequestedChange(party_size=6)).seats == {DINNER: 6}",
            ),
            Witness(
                "tests/reservation/test_modify.py::"
                "test_a_dearer_modification_charges_the_difference_and_then_swaps[sqlite]",
                "assert (await pod.sold(DINNER), await pod.sold(LATER)) == (2, 5)",
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
        (
            Witness(
                _ENDS + "test_slots_are_set_in_any_order_and_the_newest_version_stands[sqlite]",
                "assert slot is not None and slot.capacity == 7",
            ),
        ),
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
        (
            Witness(
                _ENDS + "test_of_two_pods_that_saw_the_same_the_later_one_decides_anew[postgresql]",
                "assert (after.state, returned(after)) == (State.CANCELLED,",
            ),
            Witness(
                _ENDS + "test_what_was_seen_before_another_pod_moved_it_is_decided_anew[sqlite]",
                "assert (after.state, returned(after)) == (State.CANCELLED,",
            ),
        ),
    ),
    Guard(
        "slots-one-by-one",
        (3, 4),
        "An event about some slots of a day takes effect whatever was heard of the others.",
        (
            Edit(
                "reservation_svc.handlers",
                "each_once=frozenset({restaurant_events.SlotsChanged}),",
                "each_once=frozenset(),",
            ),
        ),
        (
            Witness(
                _ENDS + "test_each_event_about_slots_counts_for_the_slots_that_it_names_in_any_order[sqlite]",
                "assert now == [7, 4, 5]",
            ),
        ),
        quick=True,
    ),
)
