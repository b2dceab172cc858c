"""The rules of a deposit, without I/O."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime

import pytest
from hypothesis import given
from hypothesis import strategies as st

from deposit_svc import domain
from deposit_svc.domain import (
    POSTINGS,
    Applied,
    Deposit,
    DepositCaptured,
    DepositDeclined,
    DepositRefunded,
    DepositRefundFailed,
    DepositVoided,
    ForfeitOrder,
    Money,
    Movement,
    MovementKind,
    RefundOrder,
    RefundState,
    Standing,
    State,
    Step,
    VoidOrder,
)
from dinemesh.kit.refusal import Refusal
from tests.deposit.conftest import an_order, euros, new_id

NOW = datetime(2030, 1, 1, tzinfo=UTC)


def pending() -> Deposit:
    return an_order().intent(NOW)


def after(step: Step | None) -> Deposit:
    assert step is not None
    return step.deposit


def captured() -> Deposit:
    return after(pending().capture(NOW))


def voiding() -> Deposit:
    return after(pending().void(NOW))


def with_refund(deposit: Deposit, amount: Money) -> tuple[Deposit, str]:
    refund_id = new_id()
    return after(deposit.order_refund(refund_id, amount, NOW)), refund_id


def reason_of(deposit: Deposit) -> str:
    with pytest.raises(Refusal) as refused:
        deposit.answer()
    return refused.value.reason


def test_a_captured_charge_is_held_and_told() -> None:
    step = pending().capture(NOW)
    assert step is not None
    assert (step.deposit.state, step.deposit.held) == (State.CAPTURED, 3000)
    assert step.event == DepositCaptured(step.deposit)
    assert [movement.kind for movement in step.movements] == [MovementKind.CHARGE_CAPTURED]


def test_a_declined_charge_ends_the_deposit_and_keeps_the_code() -> None:
    step = pending().decline("insufficient_funds", NOW)
    assert step is not None
    assert step.event == DepositDeclined(step.deposit)
    assert not step.movements
    assert reason_of(step.deposit) == "CARD_DECLINED"


def test_a_void_in_flight_that_meets_a_capture_gives_everything_back_at_once() -> None:
    step = voiding().capture(NOW)
    assert step is not None
    assert (step.deposit.standing, step.deposit.held, step.deposit.refunding) == (Standing.REFUNDING, 0, 3000)
    assert step.deposit.refunds[0].refund_id == domain.void_refund_id(step.deposit.deposit_id)
    assert step.event == DepositCaptured(step.deposit)
    assert reason_of(step.deposit) == "DEPOSIT_VOIDED"


def test_a_void_in_flight_that_meets_no_capture_ends_void() -> None:
    for step in (voiding().closed(NOW), voiding().decline("card_declined", NOW)):
        assert step is not None
        assert step.deposit.state is State.VOIDED
        assert step.event == DepositVoided(step.deposit)


def test_a_void_of_a_captured_deposit_returns_what_is_still_held() -> None:
    deposit, _ = with_refund(captured(), euros(10))
    voided = after(deposit.void(NOW))
    assert (voided.held, voided.refunding) == (0, 3000)
    assert [refund.amount for refund in voided.refunds] == [euros(10), euros(20)]


def test_a_second_void_changes_nothing() -> None:
    for deposit in (voiding(), after(captured().void(NOW)), after(voiding().closed(NOW))):
        assert deposit.void(NOW) is None


def test_a_void_of_a_declined_deposit_changes_nothing() -> None:
    assert after(pending().decline("card_declined", NOW)).void(NOW) is None


@pytest.mark.parametrize("ended", ["captured", "declined", "voided"])
def test_a_decided_charge_is_not_decided_again(ended: str) -> None:
    deposit = {
        "captured": captured(),
        "declined": after(pending().decline("card_declined", NOW)),
        "voided": after(pending().closed(NOW)),
    }[ended]
    assert deposit.capture(NOW) is None
    assert deposit.decline("card_declined", NOW) is None
    assert deposit.closed(NOW) is None


def test_a_tombstone_answers_that_it_is_void_whatever_the_body() -> None:
    order = an_order()
    stone = domain.tombstone(order.deposit_id, order.customer_id, order.reservation_id, NOW)
    with pytest.raises(Refusal) as refused:
        order.repeated(stone)
    assert refused.value.reason == "DEPOSIT_VOIDED"


def test_the_same_id_with_another_body_is_refused() -> None:
    deposit = captured()
    with pytest.raises(Refusal) as refused:
        an_order(deposit.deposit_id, euros(31)).repeated(deposit)
    assert refused.value.reason == "DEPOSIT_ID_REUSED"


def test_a_pending_deposit_answers_that_it_is_in_doubt() -> None:
    assert reason_of(pending()) == "DEPOSIT_IN_DOUBT"


def test_money_goes_back_in_parts_and_each_part_once() -> None:
    deposit, first = with_refund(captured(), euros(10))
    assert deposit.standing is Standing.CAPTURED
    assert deposit.order_refund(first, euros(10), NOW) is None
    deposit, second = with_refund(deposit, euros(20))
    assert deposit.standing is Standing.REFUNDING
    step = deposit.refund_succeeded(first, 0, NOW)
    assert step is not None
    assert step.event == DepositRefunded(step.deposit, step.deposit.refunds[0])
    assert step.deposit.refund_succeeded(first, 0, NOW) is None
    assert step.deposit.standing is Standing.REFUNDING
    assert after(step.deposit.refund_succeeded(second, 0, NOW)).standing is Standing.REFUNDED


def test_a_refund_or_forfeit_never_takes_more_than_is_held() -> None:
    deposit, _ = with_refund(captured(), euros(25))
    deposit, _ = with_refund(deposit, euros(25))
    assert (deposit.held, deposit.refunding) == (0, 3000)
    assert deposit.forfeit(new_id(), euros(1), NOW) is None
    assert deposit.order_refund(new_id(), euros(1), NOW) is None


def test_another_currency_moves_nothing() -> None:
    assert captured().order_refund(new_id(), Money(100, "CHF"), NOW) is None
    assert captured().forfeit(new_id(), Money(100, "CHF"), NOW) is None


def test_what_is_kept_shows_as_forfeited_even_if_a_part_went_back() -> None:
    deposit, refund_id = with_refund(captured(), euros(10))
    deposit = after(deposit.refund_succeeded(refund_id, 0, NOW))
    deposit = after(deposit.forfeit(new_id(), euros(20), NOW))
    assert deposit.standing is Standing.FORFEITED
    assert [forfeit.amount for forfeit in deposit.forfeits] == [euros(20)]


def test_a_refused_refund_waits_for_an_operator_under_a_new_key() -> None:
    deposit, refund_id = with_refund(captured(), euros(30))
    step = deposit.refund_refused(refund_id, 0, "refund_blocked", NOW)
    assert step is not None
    failed = step.deposit.refunds[0]
    assert step.event == DepositRefundFailed(step.deposit, failed)
    assert (step.deposit.standing, step.deposit.refund_failed) == (Standing.REFUND_FAILED, 3000)
    assert (failed.state, failed.provider_key) == (RefundState.FAILED, refund_id)
    again = step.deposit.retry_refund(refund_id, NOW).deposit
    assert (again.standing, again.refunds[0].provider_key) == (Standing.REFUNDING, f"{refund_id}/1")


def test_only_a_refund_that_failed_can_be_retried() -> None:
    deposit, refund_id = with_refund(captured(), euros(30))
    for known in (deposit, after(deposit.refund_succeeded(refund_id, 0, NOW))):
        with pytest.raises(Refusal) as refused:
            known.retry_refund(refund_id, NOW)
        assert refused.value.reason == "REFUND_NOT_RETRYABLE"
    with pytest.raises(Refusal) as refused:
        deposit.retry_refund(new_id(), NOW)
    assert refused.value.reason == "NOT_FOUND"


def test_the_answer_to_an_earlier_attempt_of_a_refund_has_no_effect() -> None:
    deposit, refund_id = with_refund(captured(), euros(30))
    deposit = after(deposit.refund_refused(refund_id, 0, "refund_blocked", NOW))
    deposit = deposit.retry_refund(refund_id, NOW).deposit
    assert deposit.refund_succeeded(refund_id, 0, NOW) is None
    assert deposit.refund_refused(refund_id, 0, "refund_blocked", NOW) is None
    assert after(deposit.refund_succeeded(refund_id, 1, NOW)).standing is Standing.REFUNDED


def test_a_refund_ordered_before_the_charge_is_decided_waits() -> None:
    for deposit in (None, pending(), voiding()):
        for order in (RefundOrder(new_id(), new_id(), euros(1)), ForfeitOrder(new_id(), new_id(), euros(1))):
            assert domain.apply(order, deposit, NOW) == (Applied.WAITING, None)


def test_an_instruction_about_money_that_never_came_has_no_effect() -> None:
    declined = after(pending().decline("card_declined", NOW))
    for order in (
        RefundOrder(new_id(), declined.deposit_id, euros(1)),
        ForfeitOrder(new_id(), declined.deposit_id, euros(1)),
        VoidOrder(declined.deposit_id),
    ):
        assert domain.apply(order, declined, NOW) == (Applied.NO_EFFECT, None)


def test_a_movement_has_two_sides_that_cancel_out() -> None:
    for kind in MovementKind:
        debit, credit = Movement(kind, new_id(), euros(7)).entries
        assert (debit.account, credit.account) == POSTINGS[kind]
        assert (debit.minor, credit.minor) == (700, -700)
        assert debit.account is not credit.account


def test_a_movement_of_nothing_is_a_mistake() -> None:
    with pytest.raises(ValueError, match="moves something"):
        Movement(MovementKind.REFUND_ORDERED, new_id(), euros(0))


def test_the_payment_token_stands_nowhere_in_a_deposit() -> None:
    order = an_order(token="tok_secret")
    assert "tok_secret" not in repr(order)
    assert "tok_secret" not in repr(order.intent(NOW))


moves = st.lists(
    st.tuples(
        st.sampled_from(
            ["capture", "decline", "closed", "void", "refund", "forfeit", "succeeded", "refused", "retry"]
        ),
        st.integers(1, 4000),
        st.integers(0, 3),
    ),
    max_size=30,
)


@given(moves)
def test_whatever_happens_in_whatever_order_the_amounts_agree_with_the_movements(
    story: list[tuple[str, int, int]],
) -> None:
    deposit = pending()
    balances: dict[str, int] = {}
    for what, minor, which in story:
        step = one_move(deposit, what, minor, which)
        if step is None:
            continue
        assert step.deposit.version == deposit.version + 1
        assert len({(movement.kind, movement.cause) for movement in step.movements}) == len(step.movements)
        for movement in step.movements:
            for entry in movement.entries:
                balances[entry.account.value] = balances.get(entry.account.value, 0) + entry.minor
        deposit = step.deposit
        parts = deposit.refunding, deposit.refunded, deposit.refund_failed, deposit.forfeited
        assert min(deposit.held, *parts) >= 0
        assert deposit.captured == (3000 if deposit.state is State.CAPTURED else 0)
        assert -balances.get("CUSTOMER_DEPOSITS", 0) == deposit.held
        assert -balances.get("REFUNDS_PAYABLE", 0) == deposit.refunding
        assert -balances.get("REFUNDS_FAILED", 0) == deposit.refund_failed
        assert -balances.get("FORFEITURE_INCOME", 0) == deposit.forfeited
        assert balances.get("PROVIDER_CLEARING", 0) == deposit.captured - deposit.refunded
        assert sum(balances.values()) == 0


def one_move(deposit: Deposit, what: str, minor: int, which: int) -> Step | None:
    amount = Money(minor, "EUR")
    refund = deposit.refunds[which % len(deposit.refunds)] if deposit.refunds else None
    simple = {
        "capture": deposit.capture,
        "closed": deposit.closed,
        "void": deposit.void,
    }
    if what in simple:
        return simple[what](NOW)
    if what == "decline":
        return deposit.decline("card_declined", NOW)
    if what == "refund":
        return deposit.order_refund(new_id(), amount, NOW) if deposit.state is State.CAPTURED else None
    if what == "forfeit":
        return deposit.forfeit(new_id(), amount, NOW) if deposit.state is State.CAPTURED else None
    if refund is None:
        return None
    if what == "succeeded":
        return deposit.refund_succeeded(refund.refund_id, refund.attempt, NOW)
    if what == "refused":
        return deposit.refund_refused(refund.refund_id, refund.attempt, "refund_blocked", NOW)
    try:
        return deposit.retry_refund(refund.refund_id, NOW)
    except Refusal:
        return None


def test_a_step_leaves_the_deposit_before_it_untouched() -> None:
    deposit = captured()
    copy = replace(deposit)
    deposit.void(NOW)
    assert deposit == copy
