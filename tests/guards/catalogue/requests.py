"""Promise 2: one request_id, one reservation, one charge, one answer."""

from __future__ import annotations

from tests.guards.guard import Edit, Guard, Witness

RESERVE = "reservation_svc.usecases.reserve"
_RESERVE = "tests/reservation/test_reserve.py::"

GUARDS = (
    Guard(
        "request-look-up",
        (2,),
        "A request_id that was used is looked up before anything is held.",
        (
            Edit(
                RESERVE,
                "if record is not None:\n            if record.reservation_id == ids",
                "if record is not None and not seen:\n            if record.reservation_id == ids",
            ),
        ),
        (
            Witness(
                _RESERVE + "test_a_repeated_request_gets_the_reservation_as_it_stands[sqlite]",
                "assert await pod.reserve(request_id=request_id) == placed",
            ),
        ),
        quick=True,
    ),
    Guard(
        "request-look-up-when-refused",
        (2, 7),
        "A repeated request_id gets its answer even while no new attempt is let in.",
        (
            Edit(
                RESERVE,
                "if known is None:\n        raise refusal",
                "if known is None or refusal:\n        raise refusal",
            ),
        ),
        (
            Witness(
                "tests/reservation/test_admission.py::"
                "test_the_open_breaker_refuses_charges_and_lets_repeats_and_cheap_things_through[sqlite]",
                "assert await pod.reserve(request_id=request_id) == placed",
            ),
        ),
        quick=True,
    ),
    Guard(
        "request-row",
        (2,),
        "The row of a request_id is unique: of two pods with one request, one gives its seats back.",
        (
            Edit(
                "reservation_svc.persistence.requests",
                "return tx.changed(_INSERT[tx.dialect], values) == 1",
                "return tx.changed(_INSERT[tx.dialect], values) < 2",
            ),
        ),
        (
            Witness(
                _RESERVE + "test_a_request_id_is_taken_by_one_pod_only[sqlite]",
                "another pod had not seen the first one",
            ),
        ),
        quick=True,
    ),
    Guard(
        "request-body-hash",
        (2,),
        "The same request_id with another body is refused.",
        (
            Edit(
                "reservation_svc.domain.requests",
                "if record.body_hash != body_hash:",
                "if not record.body_hash:",
            ),
        ),
        (
            Witness(
                _RESERVE + "test_a_repeated_request_gets_the_reservation_as_it_stands[sqlite]",
                'await refused("REQUEST_ID_REUSED", pod.reserve(3, request_id=request_id)',
            ),
        ),
        quick=True,
    ),
    Guard(
        "same-refusal",
        (2,),
        "A declined card is told again to the same request_id, not tried again.",
        (
            Edit(
                "reservation_svc.domain.requests",
                "if failure is Failure.CARD_DECLINED:\n        raise refusal_of(failure, decline_code, 0)",
                "if failure is Failure.CARD_DECLINED:\n        return True",
            ),
        ),
        (
            Witness(
                _RESERVE + "test_a_declined_card_books_nothing_and_is_told_again_to_the_same_request[sqlite]",
                "(failed,) = await pod.mine()",
            ),
        ),
        quick=True,
    ),
    Guard(
        "deposit-once",
        (1, 2),
        "A deposit_id is charged once: whoever finds its intent there does not charge.",
        (
            Edit(
                "deposit_svc.usecases",
                "assert known is not None  # deposits are never deleted\n        return known, False",
                "assert known is not None  # deposits are never deleted\n        return known, True",
            ),
        ),
        (
            Witness(
                "tests/deposit/test_usecases.py::test_thirty_at_once_with_one_id_charge_once[sqlite]",
                "assert pod.provider.charge_calls == 1",
            ),
        ),
        quick=True,
    ),
    Guard(
        "deposit-body-hash",
        (2,),
        "The same deposit_id with another body is refused.",
        (
            Edit(
                "deposit_svc.domain",
                "if known.body_hash and known.body_hash != self.body_hash:",
                "if not known:",
            ),
        ),
        (
            Witness(
                "tests/deposit/test_usecases.py::test_the_same_deposit_id_with_another_body_is_refused[sqlite]",
                "with pytest.raises(Refusal) as refusal:",
            ),
        ),
        quick=True,
    ),
    Guard(
        "restaurant-body-hash",
        (2,),
        "The same request_id for another restaurant is refused.",
        (
            Edit(
                "restaurant_svc.usecases",
                "if first.body_hash != request.body_hash:",
                "if not first.body_hash:",
            ),
        ),
        (
            Witness(
                "tests/restaurant/test_usecases.py::test_a_request_id_with_another_body_is_refused[sqlite]",
                "with pytest.raises(Refusal) as refused:",
            ),
        ),
        quick=True,
    ),
    Guard(
        "commit-in-doubt-is-looked-up",
        (2,),
        "A first step in doubt is written again under the same ids, which finds its own work.",
        (Edit("reservation_svc.usecases.saga", "return await ctx.write_durably(change)", "raise"),),
        (
            Witness(
                "tests/reservation/test_faults.py::test_a_reservation_survives_a_stumbling_database",
                "the outcome of a commit is unknown",
            ),
        ),
    ),
    Guard(
        "request-of-what-can-change",
        (2,),
        "A request id is known for as long as what it led to can change, however old it is.",
        (
            Edit(
                "reservation_svc.persistence.requests",
                "reservations.c.state.in_(_FINAL)",
                "reservations.c.state.in_([*_FINAL, 'CONFIRMED'])",
            ),
        ),
        (
            Witness(
                "tests/reservation/test_retention.py::"
                "test_a_request_goes_when_its_reservation_has_ended_long_ago[sqlite-400-CONFIRMED]",
                "assert sorted(await known(pod)) ==",
            ),
        ),
        quick=True,
    ),
)
