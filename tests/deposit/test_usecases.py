"""The use cases of deposit on both engines, with a provider that fails as real ones do."""

from __future__ import annotations

import asyncio
import time
from contextlib import suppress

import pytest
from sqlalchemy import func, select

from deposit_svc import persistence
from deposit_svc.domain import (
    Account,
    Deposit,
    ForfeitOrder,
    Instruction,
    RefundOrder,
    RefundState,
    Standing,
    State,
    VoidOrder,
)
from dinemesh.kit.call import Call, current
from dinemesh.kit.refusal import Refusal
from dinemesh.kit.store import Store, Transaction
from tests.deposit.conftest import CUSTOMER, LIMITS, RESERVATION, Clock, Desk, euros, new_id, until
from tests.support.logs import logged


async def refused(desk: Desk, deposit_id: str = "", token: str = "tok_visa", minor: int = 30) -> str:
    with pytest.raises(Refusal) as refusal:
        await desk.create(deposit_id, euros(minor), token)
    return refusal.value.reason


async def in_flight(desk: Desk, deposit_id: str) -> asyncio.Task[Deposit]:
    """A charge that has reached the provider."""
    task = asyncio.create_task(desk.create(deposit_id))
    await asyncio.wait_for(desk.provider.arriving.reached.wait(), 5)
    return task


async def answer_of(task: asyncio.Task[Deposit]) -> str:
    try:
        return (await asyncio.wait_for(task, 5)).state.value
    except Refusal as refusal:
        return refusal.reason


# CreateDeposit


async def test_a_charge_is_captured_booked_and_told_once(desk: Desk) -> None:
    deposit = await desk.create()
    assert (deposit.standing, deposit.held) == (Standing.CAPTURED, 3000)
    assert await desk.read(deposit.deposit_id) == deposit
    assert await desk.told(deposit.deposit_id) == ["DepositCaptured"]


async def test_the_same_deposit_again_answers_the_same_and_charges_nothing(desk: Desk) -> None:
    first = await desk.create()
    assert await desk.create(first.deposit_id) == first
    assert desk.provider.charge_calls == 1


async def test_the_same_deposit_id_with_another_body_is_refused(desk: Desk) -> None:
    first = await desk.create()
    assert await refused(desk, first.deposit_id, minor=31) == "DEPOSIT_ID_REUSED"
    assert await refused(desk, first.deposit_id, token="tok_other") == "DEPOSIT_ID_REUSED"
    assert desk.provider.charge_calls == 1


async def test_a_declined_card_is_answered_the_same_each_time(desk: Desk) -> None:
    deposit_id = new_id()
    assert await refused(desk, deposit_id, "tok_chargeDeclined") == "CARD_DECLINED"
    assert await refused(desk, deposit_id, "tok_chargeDeclined") == "CARD_DECLINED"
    assert await desk.told(deposit_id) == ["DepositDeclined"]
    assert desk.provider.charge_calls == 1


async def test_a_repetition_while_the_charge_is_in_flight_is_in_doubt(desk: Desk) -> None:
    desk.provider.arriving.shut()
    deposit_id = new_id()
    task = await in_flight(desk, deposit_id)
    assert await refused(desk, deposit_id) == "DEPOSIT_IN_DOUBT"
    desk.provider.arriving.open()
    assert await answer_of(task) == "CAPTURED"
    assert desk.provider.charge_calls == 1


async def test_thirty_at_once_with_one_id_charge_once(desk: Desk) -> None:
    deposit_id = new_id()
    answers = await asyncio.gather(*(desk.create(deposit_id) for _ in range(30)), return_exceptions=True)
    reasons = {answer.reason if isinstance(answer, Refusal) else "CAPTURED" for answer in answers}
    assert "CAPTURED" in reasons
    assert reasons <= {"CAPTURED", "DEPOSIT_IN_DOUBT"}
    assert desk.provider.charge_calls == 1
    assert (await desk.create(deposit_id)).held == 3000


async def test_a_caller_that_leaves_during_the_charge_does_not_lose_the_outcome(desk: Desk) -> None:
    desk.provider.answering.shut()
    deposit_id = new_id()
    task = await in_flight(desk, deposit_id)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert (await desk.read(deposit_id)).state is State.PENDING
    desk.provider.answering.open()
    await desk.background.drain(5)
    assert (await desk.read(deposit_id)).standing is Standing.CAPTURED
    assert await desk.told(deposit_id) == ["DepositCaptured"]


async def test_a_caller_without_time_is_refused_before_anything_begins(desk: Desk) -> None:
    current.set(Call(correlation_id="c", deadline=time.monotonic() + 0.05))
    assert await refused(desk) == "DEADLINE_TOO_SHORT"
    assert desk.provider.charge_calls == 0


# Overload


async def test_more_charges_than_allowed_are_shed_before_anything_is_recorded(desk: Desk) -> None:
    desk.provider.arriving.shut()
    inside = [asyncio.create_task(desk.create()) for _ in range(LIMITS.charges_in_flight)]
    await until(lambda: desk.provider.charge_calls >= LIMITS.charges_in_flight)
    shed = new_id()
    with pytest.raises(Refusal) as refusal:
        await asyncio.wait_for(desk.create(shed), 5)
    assert (refusal.value.reason, refusal.value.retry_after) == ("DEPOSIT_OVERLOADED", 1.0)
    with pytest.raises(AssertionError):
        await desk.read(shed)
    desk.provider.arriving.open()
    assert [await answer_of(task) for task in inside] == ["CAPTURED"] * LIMITS.charges_in_flight
    assert (await desk.create(shed)).held == 3000


async def test_overload_is_never_said_of_a_deposit_that_may_be_charged(desk: Desk) -> None:
    earlier = await desk.create()
    desk.provider.arriving.shut()
    desk.provider.arriving.reached.clear()
    ids = [new_id() for _ in range(LIMITS.charges_in_flight)]
    inside = [asyncio.create_task(desk.create(deposit_id)) for deposit_id in ids]
    await until(lambda: desk.provider.charge_calls >= LIMITS.charges_in_flight + 1)
    assert await refused(desk) == "DEPOSIT_OVERLOADED"
    assert await refused(desk, ids[0]) == "DEPOSIT_IN_DOUBT"
    assert await desk.create(earlier.deposit_id) == earlier
    desk.provider.arriving.open()
    assert [await answer_of(task) for task in inside] == ["CAPTURED"] * LIMITS.charges_in_flight


async def test_a_caller_that_left_still_counts_until_its_charge_has_ended(desk: Desk) -> None:
    desk.provider.arriving.shut()
    inside = [asyncio.create_task(desk.create()) for _ in range(LIMITS.charges_in_flight)]
    await until(lambda: desk.provider.charge_calls >= LIMITS.charges_in_flight)
    for task in inside:
        task.cancel()
    await asyncio.gather(*inside, return_exceptions=True)
    assert await refused(desk) == "DEPOSIT_OVERLOADED"
    desk.provider.arriving.open()
    await desk.background.drain(5)
    assert (await desk.create()).held == 3000


# Unknown outcomes and settling


async def test_a_lost_reply_is_in_doubt_and_settling_finds_the_capture(desk: Desk) -> None:
    desk.provider.loses_replies = True
    deposit_id = new_id()
    assert await refused(desk, deposit_id) == "DEPOSIT_IN_DOUBT"
    assert desk.wakes == 1
    assert (await desk.read(deposit_id)).state is State.PENDING
    await desk.settle()
    assert (await desk.read(deposit_id)).held == 3000
    assert await desk.told(deposit_id) == ["DepositCaptured"]
    assert desk.provider.charge_calls == 1


async def test_a_charge_that_never_arrived_is_closed_and_ends_void(desk: Desk) -> None:
    desk.provider.down = True
    deposit_id = new_id()
    assert await refused(desk, deposit_id) == "DEPOSIT_IN_DOUBT"
    desk.provider.down = False
    await desk.settle()
    assert (await desk.read(deposit_id)).state is State.VOIDED
    assert await desk.told(deposit_id) == ["DepositVoided"]
    assert await refused(desk, deposit_id) == "DEPOSIT_VOIDED"


async def test_settling_leaves_a_charge_in_flight_alone_until_it_is_old(desk: Desk) -> None:
    desk.provider.arriving.shut()
    deposit_id = new_id()
    task = await in_flight(desk, deposit_id)
    await desk.settle()
    assert (await desk.read(deposit_id)).state is State.PENDING
    assert deposit_id not in desk.provider.charges
    desk.clock.pass_by(LIMITS.pending_settle_seconds + 1)
    await desk.settle()
    desk.provider.arriving.open()
    assert await answer_of(task) == "DEPOSIT_VOIDED"
    assert desk.provider.charged(deposit_id) == 0


async def test_a_crash_between_charge_and_capture_is_settled_by_the_next_process(
    desk: Desk, store: Store, clock: Clock
) -> None:
    desk.provider.answering.shut()
    deposit_id = new_id()
    await in_flight(desk, deposit_id)
    await desk.background.drain(0)  # the process dies with the charge made and not recorded
    assert desk.provider.charged(deposit_id) == 3000
    assert (await desk.read(deposit_id)).state is State.PENDING

    successor = Desk(store, desk.provider, clock)
    await successor.settle()
    assert (await desk.read(deposit_id)).state is State.PENDING
    clock.pass_by(LIMITS.pending_settle_seconds)
    await successor.settle()
    assert (await desk.read(deposit_id)).held == 3000
    assert await desk.told(deposit_id) == ["DepositCaptured"]


async def test_a_provider_that_stays_down_is_asked_at_growing_intervals(desk: Desk) -> None:
    desk.provider.down = True
    deposit_id = new_id()
    assert await refused(desk, deposit_id) == "DEPOSIT_IN_DOUBT"
    await desk.settle()
    assert (await desk.read(deposit_id)).state is State.PENDING
    desk.provider.down = False
    await desk.settle()
    assert (await desk.read(deposit_id)).state is State.PENDING, "not yet due again"
    desk.clock.pass_by(1)
    await desk.settle()
    assert (await desk.read(deposit_id)).state is State.VOIDED


async def test_two_pods_settle_each_thing_once(desk: Desk, store: Store, clock: Clock) -> None:
    deposits = [await desk.create() for _ in range(10)]
    await desk.obey(*(RefundOrder(new_id(), one.deposit_id, euros(30)) for one in deposits))
    other = Desk(store, desk.provider, clock)
    await asyncio.gather(desk.settle(), other.settle(), desk.settle(), other.settle())
    for one in deposits:
        assert (await desk.read(one.deposit_id)).standing is Standing.REFUNDED
        assert await desk.told(one.deposit_id) == ["DepositCaptured", "DepositRefunded"]


# Voids


async def test_a_void_of_an_unseen_deposit_leaves_a_tombstone_for_the_late_charge(desk: Desk) -> None:
    deposit_id = new_id()
    await desk.obey(VoidOrder(deposit_id))
    assert (await desk.read(deposit_id)).state is State.VOIDED
    assert await desk.told(deposit_id) == ["DepositVoided"]
    assert await refused(desk, deposit_id) == "DEPOSIT_VOIDED"
    assert desk.provider.charge_calls == 0


async def test_a_void_that_reaches_the_provider_before_the_charge_forbids_it(desk: Desk) -> None:
    desk.provider.arriving.shut()
    deposit_id = new_id()
    task = await in_flight(desk, deposit_id)
    await desk.obey(VoidOrder(deposit_id))
    assert desk.wakes == 1
    await desk.settle()
    desk.provider.arriving.open()
    assert await answer_of(task) == "DEPOSIT_VOIDED"
    assert (await desk.read(deposit_id)).state is State.VOIDED
    assert desk.provider.charged(deposit_id) == 0
    assert await desk.told(deposit_id) == ["DepositVoided"]


async def test_a_void_that_reaches_the_provider_after_the_charge_returns_it(desk: Desk) -> None:
    desk.provider.answering.shut()
    deposit_id = new_id()
    task = await in_flight(desk, deposit_id)
    await until(lambda: deposit_id in desk.provider.charges)
    await desk.obey(VoidOrder(deposit_id))
    await desk.settle()
    desk.provider.answering.open()
    assert await answer_of(task) == "DEPOSIT_VOIDED"
    await desk.settle()
    assert (await desk.read(deposit_id)).standing is Standing.REFUNDED
    assert desk.provider.returned(deposit_id) == 3000
    assert await desk.told(deposit_id) == ["DepositCaptured", "DepositRefunded"]


async def test_a_capture_that_comes_back_after_the_void_is_returned(desk: Desk) -> None:
    desk.provider.answering.shut()
    deposit_id = new_id()
    task = await in_flight(desk, deposit_id)
    await desk.obey(VoidOrder(deposit_id))
    desk.provider.answering.open()
    assert await answer_of(task) == "DEPOSIT_VOIDED"
    await desk.settle()
    assert (await desk.read(deposit_id)).standing is Standing.REFUNDED
    assert desk.provider.returned(deposit_id) == 3000


async def test_voids_and_charges_of_two_pods_that_race_leave_nothing_charged(
    desk: Desk, second_store: Store
) -> None:
    other = Desk(second_store, desk.provider, desk.clock)

    async def charge(deposit_id: str, delay: float) -> None:
        await asyncio.sleep(delay)
        with suppress(Refusal):
            await desk.create(deposit_id)

    async def void(deposit_id: str, delay: float) -> None:
        await asyncio.sleep(delay)
        await other.obey(VoidOrder(deposit_id))

    ids = [new_id() for _ in range(24)]
    for number, deposit_id in enumerate(ids):
        # From a void that is 12 ms ahead to one that is 12 ms behind; a charge takes about 5 ms.
        ahead = (12 - number) / 1000
        await asyncio.gather(charge(deposit_id, max(ahead, 0)), void(deposit_id, max(-ahead, 0)))
    await desk.settle()
    ends = []
    for deposit_id in ids:
        ends.append((await desk.read(deposit_id)).standing)
        assert desk.provider.charged(deposit_id) == desk.provider.returned(deposit_id)
    assert set(ends) == {Standing.VOIDED, Standing.REFUNDED}, "void: only one side ever won"


async def test_a_void_of_a_captured_deposit_returns_it_once_however_often_it_is_told(desk: Desk) -> None:
    deposit = await desk.create()
    for _ in range(3):
        await desk.obey(VoidOrder(deposit.deposit_id))
        await desk.settle()
    assert desk.provider.returned(deposit.deposit_id) == 3000
    assert len(desk.provider.refunds) == 1
    assert await refused(desk, deposit.deposit_id) == "DEPOSIT_VOIDED"


# Refunds and forfeits


async def test_a_refund_told_twice_goes_back_once(desk: Desk) -> None:
    deposit = await desk.create()
    order = RefundOrder(new_id(), deposit.deposit_id, euros(10))
    await desk.obey(order, order)
    await desk.obey(order)
    await desk.settle()
    await desk.obey(order)
    await desk.settle()
    assert desk.provider.returned(deposit.deposit_id) == 1000
    assert (await desk.read(deposit.deposit_id)).held == 2000
    assert await desk.told(deposit.deposit_id) == ["DepositCaptured", "DepositRefunded"]


async def test_a_forfeit_told_twice_is_kept_once(desk: Desk) -> None:
    deposit = await desk.create()
    order = ForfeitOrder(new_id(), deposit.deposit_id, euros(10))
    await desk.obey(order, order)
    await desk.obey(order)
    assert (await desk.read(deposit.deposit_id)).held == 2000
    assert await desk.told(deposit.deposit_id) == ["DepositCaptured", "DepositForfeited"]


async def test_one_deposit_goes_back_in_several_refunds_and_a_forfeit(desk: Desk) -> None:
    deposit = await desk.create()
    await desk.obey(RefundOrder(new_id(), deposit.deposit_id, euros(5)))
    await desk.settle()
    forfeit = ForfeitOrder(new_id(), deposit.deposit_id, euros(15))
    await desk.obey(RefundOrder(new_id(), deposit.deposit_id, euros(10)), forfeit, forfeit)
    await desk.settle()
    deposit = await desk.read(deposit.deposit_id)
    assert (deposit.held, deposit.refunded, deposit.forfeited) == (0, 1500, 1500)
    assert deposit.standing is Standing.FORFEITED
    assert [one.amount for one in deposit.forfeits] == [euros(15)]
    assert await desk.told(deposit.deposit_id) == [
        "DepositCaptured",
        "DepositRefunded",
        "DepositForfeited",
        "DepositRefunded",
    ]


async def test_a_refund_whose_reply_is_lost_is_asked_for_again_under_the_same_key(desk: Desk) -> None:
    deposit = await desk.create()
    desk.provider.loses_replies = True
    await desk.obey(RefundOrder(new_id(), deposit.deposit_id, euros(30)))
    await desk.settle()
    assert (await desk.read(deposit.deposit_id)).standing is Standing.REFUNDING
    desk.provider.loses_replies = False
    desk.clock.pass_by(1)
    await desk.settle()
    assert (await desk.read(deposit.deposit_id)).standing is Standing.REFUNDED
    assert len(desk.provider.refunds) == 1


async def test_a_refund_ordered_while_the_charge_is_undecided_is_made_after_the_capture(desk: Desk) -> None:
    desk.provider.loses_replies = True
    deposit_id = new_id()
    assert await refused(desk, deposit_id) == "DEPOSIT_IN_DOUBT"
    desk.provider.loses_replies = False
    await desk.obey(
        RefundOrder(new_id(), deposit_id, euros(10)), ForfeitOrder(new_id(), deposit_id, euros(20))
    )
    await desk.settle()
    deposit = await desk.read(deposit_id)
    assert (deposit.held, deposit.refunded, deposit.forfeited) == (0, 1000, 2000)


async def test_a_refused_refund_is_listed_until_an_operator_retries_it(desk: Desk) -> None:
    deposit = await desk.create()
    refund_id = new_id()
    desk.provider.refuses_refunds = True
    await desk.obey(RefundOrder(refund_id, deposit.deposit_id, euros(30)))
    await desk.settle()
    failed = await desk.read(deposit.deposit_id)
    assert failed.standing is Standing.REFUND_FAILED
    assert failed.refunds[0].failure_code == "refund_blocked"

    desk.provider.refuses_refunds = False
    clicks = await asyncio.gather(
        *(desk.deposits.retry_refund(deposit.deposit_id, refund_id) for _ in range(5)), return_exceptions=True
    )
    assert [type(click) for click in clicks].count(Deposit) == 1
    assert {click.reason for click in clicks if isinstance(click, Refusal)} == {"REFUND_NOT_RETRYABLE"}
    await desk.settle()
    done = await desk.read(deposit.deposit_id)
    assert (done.standing, done.refunds[0].state) == (Standing.REFUNDED, RefundState.SUCCEEDED)
    assert set(desk.provider.refunds) == {refund_id, f"{refund_id}/1"}
    assert await desk.told(deposit.deposit_id) == [
        "DepositCaptured",
        "DepositRefundFailed",
        "DepositRefunded",
    ]


async def test_a_retry_of_what_does_not_exist_is_not_found(desk: Desk) -> None:
    deposit = await desk.create()
    for deposit_id in (deposit.deposit_id, new_id()):
        with pytest.raises(Refusal) as refusal:
            await desk.deposits.retry_refund(deposit_id, new_id())
        assert refusal.value.reason == "NOT_FOUND"


async def test_instructions_in_every_order_end_the_same(desk: Desk) -> None:
    ends = set()
    for turn in range(3):
        deposit = await desk.create()
        orders: list[Instruction] = [
            RefundOrder(new_id(), deposit.deposit_id, euros(10)),
            ForfeitOrder(new_id(), deposit.deposit_id, euros(20)),
            RefundOrder(new_id(), deposit.deposit_id, euros(0)),
        ]
        for order in orders[turn:] + orders[:turn]:
            await desk.obey(order)
        await desk.settle()
        end = await desk.read(deposit.deposit_id)
        ends.add((end.standing, end.refunded, end.forfeited))
    assert ends == {(Standing.FORFEITED, 1000, 2000)}


async def test_what_settling_tells_belongs_to_the_request_that_it_came_from(desk: Desk) -> None:
    current.set(Call(correlation_id="reserve"))
    desk.provider.loses_replies = True
    deposit_id = new_id()
    assert await refused(desk, deposit_id) == "DEPOSIT_IN_DOUBT"
    desk.provider.loses_replies = False
    current.set(Call(correlation_id="modify", causation_id="e1"))
    await desk.obey(ForfeitOrder(new_id(), deposit_id, euros(5)))
    current.set(Call(correlation_id="settling"))
    await desk.settle()
    current.set(Call(correlation_id="cancel", causation_id="e2"))
    await desk.obey(RefundOrder(new_id(), deposit_id, euros(25)))
    current.set(Call(correlation_id="settling"))
    await desk.settle()
    envelopes = await desk.envelopes(deposit_id)
    assert [(one.type.rpartition(".")[2], one.correlation_id, one.causation_id) for one in envelopes] == [
        ("DepositCaptured", "reserve", ""),
        ("DepositForfeited", "modify", "e1"),
        ("DepositRefunded", "cancel", "e2"),
    ]


async def test_what_settling_logs_belongs_to_the_request_that_it_came_from(desk: Desk) -> None:
    current.set(Call(correlation_id="reserve"))
    desk.provider.down = True
    assert await refused(desk) == "DEPOSIT_IN_DOUBT"
    with logged() as log:
        current.set(Call(correlation_id="settling"))
        await desk.settle()
    assert [line["correlation_id"] for line in log.lines("still open")] == ["reserve"]
    desk.provider.down = False


async def test_a_step_and_its_event_are_one_transaction(desk: Desk) -> None:
    deposit = await desk.create()
    order = ForfeitOrder(new_id(), deposit.deposit_id, euros(30))

    def forfeited_and_rolled_back(tx: Transaction) -> None:
        desk.deposits.obey(tx, [order], CUSTOMER, RESERVATION)
        tx.flush()
        assert tx.execute(select(func.count()).select_from(persistence.outbox)).scalar_one() == 2
        raise Refusal("NO", "this transaction is not committed")

    with pytest.raises(Refusal):
        await desk.store.write(forfeited_and_rolled_back)
    assert await desk.read(deposit.deposit_id) == deposit
    assert await desk.told(deposit.deposit_id) == ["DepositCaptured"]


# Reading


async def test_a_customer_reads_only_their_own(desk: Desk) -> None:
    deposit = await desk.create()
    assert await desk.deposits.get(deposit.deposit_id, CUSTOMER) == deposit
    for deposit_id, customer in ((deposit.deposit_id, "mallory"), (new_id(), CUSTOMER)):
        with pytest.raises(Refusal) as refusal:
            await desk.deposits.get(deposit_id, customer)
        assert refusal.value.reason == "NOT_FOUND"
    assert await desk.deposits.list(CUSTOMER, RESERVATION, None, 10) == [deposit]
    assert await desk.deposits.list(CUSTOMER, new_id(), None, 10) == []
    assert await desk.deposits.list("mallory", RESERVATION, None, 10) == []


# The store fails


async def test_a_database_that_goes_away_after_the_charge_is_in_doubt_and_settled(
    desk: Desk, second_store: Store
) -> None:
    unlucky = Desk(second_store, desk.provider, desk.clock)
    desk.provider.answering.shut()
    deposit_id = new_id()
    task = await in_flight(unlucky, deposit_id)
    await second_store.close()
    desk.provider.answering.open()
    assert await answer_of(task) == "DEPOSIT_IN_DOUBT"
    assert (await desk.read(deposit_id)).state is State.PENDING
    desk.clock.pass_by(LIMITS.pending_settle_seconds)
    await desk.settle()
    assert (await desk.read(deposit_id)).held == 3000


async def test_a_store_that_is_too_busy_sheds_the_charge_before_the_intent(
    database_url: str, clock: Clock, desk: Desk
) -> None:
    full = Store.open(database_url, clock=lambda _: clock.now, exclusive=False, queue_limit=0)
    try:
        busy = Desk(full, desk.provider, desk.clock)
        known = await desk.create()
        assert await refused(busy) == "DEPOSIT_OVERLOADED"
        assert await refused(busy, known.deposit_id) == "DEPOSIT_IN_DOUBT"
    finally:
        await full.close()


async def test_the_ledger_shows_where_each_cent_is(desk: Desk) -> None:
    kept, returned = await desk.create(), await desk.create()
    await desk.obey(ForfeitOrder(new_id(), kept.deposit_id, euros(12)))
    await desk.obey(RefundOrder(new_id(), returned.deposit_id, euros(30)))
    await desk.settle()
    assert await desk.store.read(persistence.ledger_balances) == {
        Account.PROVIDER_CLEARING: 3000,
        Account.CUSTOMER_DEPOSITS: -1800,
        Account.REFUNDS_PAYABLE: 0,
        Account.REFUNDS_FAILED: 0,
        Account.FORFEITURE_INCOME: -1200,
    }
