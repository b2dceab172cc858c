"""The promises of the mesh, and the tests that hold each as a whole, beside those of single mechanisms."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Promise:
    number: int
    text: str
    held_by: tuple[str, ...]


PROMISES = (
    Promise(
        1,
        "Every captured deposit belongs to exactly one live reservation, or is forfeited by policy, or is "
        "refunded exactly once, or stands in a listed pending state: under kill -9 of any process at any "
        "point, broker restart, duplicate and reordered events, and client retries.",
        (
            "tests/crash/test_crash_points.py",
            "tests/torture/test_torture.py::test_whatever_fails_nothing_is_lost_and_no_answer_is_a_lie",
            "tests/mesh/test_audit.py::test_after_all_stories_the_books_agree",
            "tests/machines",
        ),
    ),
    Promise(
        2,
        "One request_id, at most one reservation and one charge that counts, and the same answer again; the "
        "same id with another body is refused.",
        (
            "tests/mesh/test_races.py::test_fifty_repeats_of_one_request_make_one_reservation_and_one_charge",
            "tests/mesh/test_two_pods.py::test_one_request_at_two_pods_makes_one_reservation_and_one_charge",
            "tests/torture/test_torture.py::"
            "test_a_client_that_repeats_its_request_as_it_is_told_ends_with_one_booking_or_a_final_refusal",
            "tests/machines",
        ),
    ),
    Promise(
        3,
        "A slot is never oversold, and not undersold for long.",
        (
            "tests/mesh/test_races.py::test_eighty_callers_for_the_last_ten_seats_buy_exactly_ten",
            "tests/mesh/test_two_pods.py::test_eighty_callers_at_two_pods_buy_exactly_the_last_ten_seats",
            "tests/machines",
            "tests/crash/test_crash_points.py",
        ),
    ),
    Promise(
        4,
        "State and event commit together; a committed event arrives at least once; a duplicate has no second "
        "effect; order does not matter to the result.",
        (
            "tests/mesh/test_events.py",
            "tests/test_any_order.py",
            "tests/torture/long_runs.py::"
            "test_a_broker_killed_five_times_under_load_loses_no_event_and_none_has_a_second_effect",
            "tests/crash/test_crash_points.py",
            "tests/machines",
            "tests/durability",
        ),
    ),
    Promise(
        5,
        "A poison message blocks nothing and is not lost.",
        (
            "tests/mesh/test_events.py::test_an_unreadable_message_blocks_nothing_is_listed_and_can_be_redriven",
            "tests/operations/test_commands.py::test_dead_letters_are_listed_sent_back_and_taken_once",
        ),
    ),
    Promise(
        6,
        "Restaurant, history or the broker down: reservations are still taken, and everybody catches up "
        "(MANUAL restaurants down past their limit: declined and refunded).",
        ("tests/mesh/test_others_are_away.py",),
    ),
    Promise(
        7,
        "Deposit slow, down or overloaded: an answer within the caller's deadline, with a retry time, "
        "nothing reserved and nothing charged in the end; reads and cancels unaffected.",
        (
            "tests/mesh/test_deposit_is_sick.py",
            "tests/edge/test_deposit_is_sick.py",
            "tests/torture/test_torture.py::"
            "test_while_deposit_is_down_a_client_is_refused_soon_and_told_when_to_come_back",
        ),
    ),
    Promise(
        8,
        "A planned restart fails no call (two instances on PostgreSQL). A hung process is restarted by its "
        "liveness probe; a dependency's outage never fails liveness.",
        (
            "tests/rolling/test_rolling_restart.py",
            "tests/edge/test_health_and_drain.py",
            "tests/local_mesh/test_liveness.py",
            "tests/mesh/test_reflection_and_health.py",
        ),
    ),
    Promise(
        9,
        "A customer sees and changes only their own. Errors leak nothing. One client cannot eject a pod.",
        (
            "tests/mesh/test_identity.py",
            "tests/edge/test_who_may_call.py",
            "tests/edge/test_traps.py",
            "tests/mesh/test_bad_requests.py",
        ),
    ),
    Promise(
        10,
        "History converges, and a rebuild equals the live view.",
        (
            "tests/mesh/test_events.py::test_history_dropped_and_rebuilt_equals_the_live_one",
            "tests/history/test_rebuild.py::test_a_rebuilt_view_is_the_live_view",
        ),
    ),
    Promise(
        11,
        "Nobody is charged, or held to, terms that they never saw.",
        (
            "tests/mesh/test_races.py::"
            "test_who_books_while_the_terms_change_is_held_to_those_that_they_were_shown_or_not_at_all",
            "tests/machines",
        ),
    ),
)
