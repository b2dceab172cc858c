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
from tests.deposit.conftest import CUSTOMER, LIMITS, RESERVATION, Clock, Pod, euros, new_id, until
from tests.support.logs import logged


async def refused(pod: Pod, deposit_id: str = "", token: str = "tok_visa", minor: int = 30) -> str:
    with pytest.raises(Refusal) as refusal:
        await pod.create(deposit_id, euros(minor), token)
    return refusal.value.reason


async def in_flight(pod: Pod, deposit_id: str) -> asyncio.Task[Deposit]:
    """A charge that has reached the provider."""
    task = asyncio.create_task(pod.create(deposit_id))
    await asyncio.wait_for(pod.provider.arriving.reached.wait(), 5)
    return task


async def answer_of(task: asyncio.Task[Deposit]) -> str:
    try:
        return (await asyncio.wait_for(task, 5)).state.value
    except Refusal as refusal:
        return refusal.reason


# CreateDeposit


async def test_a_charge_is_captured_booked_and_told_once(pod: Pod) -> None:
    deposit = await pod.create()
    assert (deposit.standing, deposit.held) == (Standing.CAPTURED, 3000)
    assert await pod.read(deposit.deposit_id) == deposit
    assert await pod.told(deposit.deposit_id) == ["DepositCaptured"]


async def test_the_same_deposit_again_answers_the_same_and_charges_nothing(pod: Pod) -> None:
    first = await pod.create()
    assert await pod.create(first.deposit_id) == first
    assert pod.provider.charge_calls == 1


async def test_the_same_deposit_id_with_another_body_is_refused(pod: Pod) -> None:
    first = await pod.create()
    assert await refused(pod, first.deposit_id, minor=31) == "DEPOSIT_ID_REUSED"
    assert await refused(pod, first.deposit_id, token="tok_other") == "DEPOSIT_ID_REUSED"
    assert pod.provider.charge_calls == 1


async def test_a_declined_card_is_answered_the_same_each_time(pod: Pod) -> None:
    deposit_id = new_id()
    assert await refused(pod, deposit_id, "tok_chargeDeclined") == "CARD_DECLINED"
    assert await refused(pod, deposit_id, "tok_chargeDeclined") == "CARD_DECLINED"
    assert await pod.told(deposit_id) == ["DepositDeclined"]
    assert pod.provider.charge_calls == 1


async def test_a_repetition_while_the_charge_is_in_flight_is_in_doubt(pod: Pod) -> None:
    pod.provider.arriving.shut()
    deposit_id = new_id()
    task = await in_flight(pod, deposit_id)
    assert await refused(pod, deposit_id) == "DEPOSIT_IN_DOUBT"
    pod.provider.arriving.open()
    assert await answer_of(task) == "CAPTURED"
    assert pod.provider.charge_calls == 1


async def test_thirty_at_once_with_one_id_charge_once(pod: Pod) -> None:
    deposit_id = new_id()
    answers = await asyncio.gather(*(pod.create(deposit_id) for _ in range(30)), return_exceptions=True)
    reasons = {answer.reason if isinstance(answer, Refusal) else "CAPTURED" for answer in answers}
    assert "CAPTURED" in reasons
    assert reasons <= {"CAPTURED", "DEPOSIT_IN_DOUBT"}
    assert pod.provider.charge_calls == 1
    assert (await pod.create(deposit_id)).held == 3000


async def test_a_caller_that_leaves_during_the_charge_does_not_lose_the_outcome(pod: Pod) -> None:
    pod.provider.answering.shut()
    deposit_id = new_id()
    task = await in_flight(pod, deposit_id)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert (await pod.read(deposit_id)).state is State.PENDING
    pod.provider.answering.open()
    await pod.background.drain(5)
    assert (await pod.read(deposit_id)).standing is Standing.CAPTURED
    assert await pod.told(deposit_id) == ["DepositCaptured"]


async def test_a_caller_without_time_is_refused_before_anything_begins(pod: Pod) -> None:
    current.set(Call(correlation_id="c", deadline=time.monotonic() + 0.05))
    assert await refused(pod) == "DEADLINE_TOO_SHORT"
    assert pod.provider.charge_calls == 0


# Overload


async def test_more_charges_than_allowed_are_shed_before_anything_is_recorded(pod: Pod) -> None:
    pod.provider.arriving.shut()
    inside = [asyncio.create_task(pod.create()) for _ in range(LIMITS.charges_in_flight)]
    await until(lambda: pod.provider.charge_calls >= LIMITS.charges_in_flight)
    shed = new_id()
    with pytest.raises(Refusal) as refusal:
        await asyncio.wait_for(pod.create(shed), 5)
    assert (refusal.value.reason, refusal.value.retry_after) == ("DEPOSIT_OVERLOADED", 1.0)
    with pytest.raises(AssertionError):
        await pod.read(shed)
    pod.provider.arriving.open()
    assert [await answer_of(task) for task in inside] == ["CAPTURED"] * LIMITS.charges_in_flight
    assert (await pod.create(shed)).held == 3000


async def test_overload_is_never_said_of_a_deposit_that_may_be_charged(pod: Pod) -> None:
    earlier = await pod.create()
    pod.provider.arriving.shut()
    pod.provider.arriving.reached.clear()
    ids = [new_id() for _ in range(LIMITS.charges_in_flight)]
    inside = [asyncio.create_task(pod.create(deposit_id)) for deposit_id in ids]
    await until(lambda: pod.provider.charge_calls >= LIMITS.charges_in_flight + 1)
    assert await refused(pod) == "DEPOSIT_OVERLOADED"
    assert await refused(pod, ids[0]) == "DEPOSIT_IN_DOUBT"
    assert await pod.create(earlier.deposit_id) == earlier
    pod.provider.arriving.open()
    assert [await answer_of(task) for task in inside] == ["CAPTURED"] * LIMITS.charges_in_flight


async def test_a_caller_that_left_still_counts_until_its_charge_has_ended(pod: Pod) -> None:
    pod.provider.arriving.shut()
    inside = [asyncio.create_task(pod.create()) for _ in range(LIMITS.charges_in_flight)]
    await until(lambda: pod.provider.charge_calls >= LIMITS.charges_in_flight)
    for task in inside:
        task.cancel()
    await asyncio.gather(*inside, return_exceptions=True)
    assert await refused(pod) == "DEPOSIT_OVERLOADED"
    pod.provider.arriving.open()
    await pod.background.drain(5)
    assert (await pod.create()).held == 3000


# Unknown outcomes and reconciling


async def test_a_lost_reply_is_in_doubt_and_reconciling_finds_the_capture(pod: Pod) -> None:
    pod.provider.loses_replies = True
    deposit_id = new_id()
    assert await refused(pod, deposit_id) == "DEPOSIT_IN_DOUBT"
    assert pod.wakes == 1
    assert (await pod.read(deposit_id)).state is State.PENDING
    await pod.reconcile()
    assert (await pod.read(deposit_id)).held == 3000
    assert await pod.told(deposit_id) == ["DepositCaptured"]
    assert pod.provider.charge_calls == 1


async def test_a_charge_that_never_arrived_is_closed_and_ends_void(pod: Pod) -> None:
    pod.provider.down = True
    deposit_id = new_id()
    assert await refused(pod, deposit_id) == "DEPOSIT_IN_DOUBT"
    pod.provider.down = False
    await pod.reconcile()
    assert (await pod.read(deposit_id)).state is State.VOIDED
    assert await pod.told(deposit_id) == ["DepositVoided"]
    assert await refused(pod, deposit_id) == "DEPOSIT_VOIDED"


async def test_reconciling_leaves_a_charge_in_flight_alone_until_it_is_old(pod: Pod) -> None:
    pod.provider.arriving.shut()
    deposit_id = new_id()
    task = await in_flight(pod, deposit_id)
    await pod.reconcile()
    assert (await pod.read(deposit_id)).state is State.PENDING
    assert deposit_id not in pod.provider.charges
    pod.clock.pass_by(LIMITS.pending_settle_seconds + 1)
    await pod.reconcile()
    pod.provider.arriving.open()
    assert await answer_of(task) == "DEPOSIT_VOIDED"
    assert pod.provider.charged(deposit_id) == 0


async def test_a_crash_between_charge_and_capture_is_settled_by_the_next_process(
    pod: Pod, store: Store, clock: Clock
) -> None:
    pod.provider.answering.shut()
    deposit_id = new_id()
    await in_flight(pod, deposit_id)
    await pod.background.drain(0)  # the process dies with the charge made and not recorded
    assert pod.provider.charged(deposit_id) == 3000
    assert (await pod.read(deposit_id)).state is State.PENDING

    successor = Pod(store, pod.provider, clock)
    await successor.reconcile()
    assert (await pod.read(deposit_id)).state is State.PENDING
    clock.pass_by(LIMITS.pending_settle_seconds)
    await successor.reconcile()
    assert (await pod.read(deposit_id)).held == 3000
    assert await pod.told(deposit_id) == ["DepositCaptured"]


async def test_a_provider_that_stays_down_is_asked_at_growing_intervals(pod: Pod) -> None:
    pod.provider.down = True
    deposit_id = new_id()
    assert await refused(pod, deposit_id) == "DEPOSIT_IN_DOUBT"
    await pod.reconcile()
    assert (await pod.read(deposit_id)).state is State.PENDING
    pod.provider.down = False
    await pod.reconcile()
    assert (await pod.read(deposit_id)).state is State.PENDING, "not yet due again"
    pod.clock.pass_by(1)
    await pod.reconcile()
    assert (await pod.read(deposit_id)).state is State.VOIDED


async def test_two_pods_settle_each_thing_once(pod: Pod, store: Store, clock: Clock) -> None:
    deposits = [await pod.create() for _ in range(10)]
    await pod.apply_instructions(*(RefundOrder(new_id(), one.deposit_id, euros(30)) for one in deposits))
    other = Pod(store, pod.provider, clock)
    await asyncio.gather(pod.reconcile(), other.reconcile(), pod.reconcile(), other.reconcile())
    for one in deposits:
        assert (await pod.read(one.deposit_id)).standing is Standing.REFUNDED
        assert await pod.told(one.deposit_id) == ["DepositCaptured", "DepositRefunded"]


# Voids


async def test_a_void_of_an_unseen_deposit_leaves_a_tombstone_for_the_late_charge(pod: Pod) -> None:
    deposit_id = new_id()
    await pod.apply_instructions(VoidOrder(deposit_id))
    assert (await pod.read(deposit_id)).state is State.VOIDED
    assert await pod.told(deposit_id) == ["DepositVoided"]
    assert await refused(pod, deposit_id) == "DEPOSIT_VOIDED"
    assert pod.provider.charge_calls == 0


async def test_a_void_that_reaches_the_provider_before_the_charge_forbids_it(pod: Pod) -> None:
    pod.provider.arriving.shut()
    deposit_id = new_id()
    task = await in_flight(pod, deposit_id)
    await pod.apply_instructions(VoidOrder(deposit_id))
    assert pod.wakes == 1
    await pod.reconcile()
    pod.provider.arriving.open()
    assert await answer_of(task) == "DEPOSIT_VOIDED"
    assert (await pod.read(deposit_id)).state is State.VOIDED
    assert pod.provider.charged(deposit_id) == 0
    assert await pod.told(deposit_id) == ["DepositVoided"]


async def test_a_void_that_reaches_the_provider_after_the_charge_returns_it(pod: Pod) -> None:
    pod.provider.answering.shut()
    deposit_id = new_id()
    task = await in_flight(pod, deposit_id)
    await until(lambda: deposit_id in pod.provider.charges)
    await pod.apply_instructions(VoidOrder(deposit_id))
    await pod.reconcile()
    pod.provider.answering.open()
    assert await answer_of(task) == "DEPOSIT_VOIDED"
    await pod.reconcile()
    assert (await pod.read(deposit_id)).standing is Standing.REFUNDED
    assert pod.provider.returned(deposit_id) == 3000
    assert await pod.told(deposit_id) == ["DepositCaptured", "DepositRefunded"]


async def test_a_capture_that_comes_back_after_the_void_is_returned(pod: Pod) -> None:
    pod.provider.answering.shut()
    deposit_id = new_id()
    task = await in_flight(pod, deposit_id)
    await pod.apply_instructions(VoidOrder(deposit_id))
    pod.provider.answering.open()
    assert await answer_of(task) == "DEPOSIT_VOIDED"
    await pod.reconcile()
    assert (await pod.read(deposit_id)).standing is Standing.REFUNDED
    assert pod.provider.returned(deposit_id) == 3000


async def test_voids_and_charges_of_two_pods_that_race_leave_nothing_charged(
    pod: Pod, second_store: Store
) -> None:
    other = Pod(second_store, pod.provider, pod.clock)

    async def charge(deposit_id: str, delay: float) -> None:
        await asyncio.sleep(delay)
        with suppress(Refusal):
            await pod.create(deposit_id)

    async def void(deposit_id: str, delay: float) -> None:
        await asyncio.sleep(delay)
        await other.apply_instructions(VoidOrder(deposit_id))

    ids = [new_id() for _ in range(24)]
    for number, deposit_id in enumerate(ids):
        # From a void that is 12 ms ahead to one that is 12 ms behind; a charge takes about 5 ms.
        ahead = (12 - number) / 1000
        await asyncio.gather(charge(deposit_id, max(ahead, 0)), void(deposit_id, max(-ahead, 0)))
    await pod.reconcile()
    ends = []
    for deposit_id in ids:
        ends.append((await pod.read(deposit_id)).standing)
        assert pod.provider.charged(deposit_id) == pod.provider.returned(deposit_id)
    assert set(ends) == {Standing.VOIDED, Standing.REFUNDED}, "void: only one side ever won"


async def test_a_void_of_a_captured_deposit_returns_it_once_however_often_it_is_told(pod: Pod) -> None:
    deposit = await pod.create()
    for _ in range(3):
        await pod.apply_instructions(VoidOrder(deposit.deposit_id))
        await pod.reconcile()
    assert pod.provider.returned(deposit.deposit_id) == 3000
    assert len(pod.provider.refunds) == 1
    assert await refused(pod, deposit.deposit_id) == "DEPOSIT_VOIDED"


# Refunds and forfeits


async def test_a_refund_told_twice_goes_back_once(pod: Pod) -> None:
    deposit = await pod.create()
    order = RefundOrder(new_id(), deposit.deposit_id, euros(10))
    await pod.apply_instructions(order, order)
    await pod.apply_instructions(order)
    await pod.reconcile()
    await pod.apply_instructions(order)
    await pod.reconcile()
    assert pod.provider.returned(deposit.deposit_id) == 1000
    assert (await pod.read(deposit.deposit_id)).held == 2000
    assert await pod.told(deposit.deposit_id) == ["DepositCaptured", "DepositRefunded"]


async def test_a_forfeit_told_twice_is_kept_once(pod: Pod) -> None:
    deposit = await pod.create()
    order = ForfeitOrder(new_id(), deposit.deposit_id, euros(10))
    await pod.apply_instructions(order, order)
    await pod.apply_instructions(order)
    assert (await pod.read(deposit.deposit_id)).held == 2000
    assert await pod.told(deposit.deposit_id) == ["DepositCaptured", "DepositForfeited"]


async def test_one_deposit_goes_back_in_several_refunds_and_a_forfeit(pod: Pod) -> None:
    deposit = await pod.create()
    await pod.apply_instructions(RefundOrder(new_id(), deposit.deposit_id, euros(5)))
    await pod.reconcile()
    forfeit = ForfeitOrder(new_id(), deposit.deposit_id, euros(15))
    await pod.apply_instructions(RefundOrder(new_id(), deposit.deposit_id, euros(10)), forfeit, forfeit)
    await pod.reconcile()
    deposit = await pod.read(deposit.deposit_id)
    assert (deposit.held, deposit.refunded, deposit.forfeited) == (0, 1500, 1500)
    assert deposit.standing is Standing.FORFEITED
    assert [one.amount for one in deposit.forfeits] == [euros(15)]
    assert await pod.told(deposit.deposit_id) == [
        "DepositCaptured",
        "DepositRefunded",
        "DepositForfeited",
        "DepositRefunded",
    ]


async def test_a_refund_whose_reply_is_lost_is_asked_for_again_under_the_same_key(pod: Pod) -> None:
    deposit = await pod.create()
    pod.provider.loses_replies = True
    await pod.apply_instructions(RefundOrder(new_id(), deposit.deposit_id, euros(30)))
    await pod.reconcile()
    assert (await pod.read(deposit.deposit_id)).standing is Standing.REFUNDING
    pod.provider.loses_replies = False
    pod.clock.pass_by(1)
    await pod.reconcile()
    assert (await pod.read(deposit.deposit_id)).standing is Standing.REFUNDED
    assert len(pod.provider.refunds) == 1


async def test_a_refund_ordered_while_the_charge_is_undecided_is_made_after_the_capture(pod: Pod) -> None:
    pod.provider.loses_replies = True
    deposit_id = new_id()
    assert await refused(pod, deposit_id) == "DEPOSIT_IN_DOUBT"
    pod.provider.loses_replies = False
    await pod.apply_instructions(
        RefundOrder(new_id(), deposit_id, euros(10)), ForfeitOrder(new_id(), deposit_id, euros(20))
    )
    await pod.reconcile()
    deposit = await pod.read(deposit_id)
    assert (deposit.held, deposit.refunded, deposit.forfeited) == (0, 1000, 2000)


async def test_a_refused_refund_is_listed_until_an_operator_retries_it(pod: Pod) -> None:
    deposit = await pod.create()
    refund_id = new_id()
    pod.provider.refuses_refunds = True
    await pod.apply_instructions(RefundOrder(refund_id, deposit.deposit_id, euros(30)))
    await pod.reconcile()
    failed = await pod.read(deposit.deposit_id)
    assert failed.standing is Standing.REFUND_FAILED
    assert failed.refunds[0].failure_code == "refund_blocked"

    pod.provider.refuses_refunds = False
    clicks = await asyncio.gather(
        *(pod.deposits.retry_refund(deposit.deposit_id, refund_id) for _ in range(5)), return_exceptions=True
    )
    assert [type(click) for click in clicks].count(Deposit) == 1
    assert {click.reason for click in clicks if isinstance(click, Refusal)} == {"REFUND_NOT_RETRYABLE"}
    await pod.reconcile()
    done = await pod.read(deposit.deposit_id)
    assert (done.standing, done.refunds[0].state) == (Standing.REFUNDED, RefundState.SUCCEEDED)
    assert set(pod.provider.refunds) == {refund_id, f"{refund_id}/1"}
    assert await pod.told(deposit.deposit_id) == [
        "DepositCaptured",
        "DepositRefundFailed",
        "DepositRefunded",
    ]


async def test_a_retry_of_what_does_not_exist_is_not_found(pod: Pod) -> None:
    deposit = await pod.create()
    for deposit_id in (deposit.deposit_id, new_id()):
        with pytest.raises(Refusal) as refusal:
            await pod.deposits.retry_refund(deposit_id, new_id())
        assert refusal.value.reason == "NOT_FOUND"


async def test_instructions_in_every_order_end_the_same(pod: Pod) -> None:
    ends = set()
    for turn in range(3):
        deposit = await pod.create()
        orders: list[Instruction] = [
            RefundOrder(new_id(), deposit.deposit_id, euros(10)),
            ForfeitOrder(new_id(), deposit.deposit_id, euros(20)),
            RefundOrder(new_id(), deposit.deposit_id, euros(0)),
        ]
        for order in orders[turn:] + orders[:turn]:
            await pod.apply_instructions(order)
        await pod.reconcile()
        end = await pod.read(deposit.deposit_id)
        ends.add((end.standing, end.refunded, end.forfeited))
    assert ends == {(Standing.FORFEITED, 1000, 2000)}


async def test_what_reconciling_tells_belongs_to_the_request_that_it_came_from(pod: Pod) -> None:
    current.set(Call(correlation_id="reserve"))
    pod.provider.loses_replies = True
    deposit_id = new_id()
    assert await refused(pod, deposit_id) == "DEPOSIT_IN_DOUBT"
    pod.provider.loses_replies = False
    current.set(Call(correlation_id="modify", causation_id="e1"))
    await pod.apply_instructions(ForfeitOrder(new_id(), deposit_id, euros(5)))
    current.set(Call(correlation_id="reconciling"))
    await pod.reconcile()
    current.set(Call(correlation_id="cancel", causation_id="e2"))
    await pod.apply_instructions(RefundOrder(new_id(), deposit_id, euros(25)))
    current.set(Call(correlation_id="reconciling"))
    await pod.reconcile()
    envelopes = await pod.envelopes(deposit_id)
    assert [(one.type.rpartition(".")[2], one.correlation_id, one.causation_id) for one in envelopes] == [
        ("DepositCaptured", "reserve", ""),
        ("DepositForfeited", "modify", "e1"),
        ("DepositRefunded", "cancel", "e2"),
    ]


async def test_what_reconciling_logs_belongs_to_the_request_that_it_came_from(pod: Pod) -> None:
    current.set(Call(correlation_id="reserve"))
    pod.provider.down = True
    assert await refused(pod) == "DEPOSIT_IN_DOUBT"
    with logged() as log:
        current.set(Call(correlation_id="reconciling"))
        await pod.reconcile()
    assert [line["correlation_id"] for line in log.lines("still open")] == ["reserve"]
    pod.provider.down = False


async def test_a_step_and_its_event_are_one_transaction(pod: Pod) -> None:
    deposit = await pod.create()
    order = ForfeitOrder(new_id(), deposit.deposit_id, euros(30))

    def forfeited_and_rolled_back(tx: Transaction) -> None:
        pod.deposits.apply_instructions(tx, [order], CUSTOMER, RESERVATION)
        tx.flush()
        assert tx.execute(select(func.count()).select_from(persistence.outbox)).scalar_one() == 2
        raise Refusal("NO", "this transaction is not committed")

    with pytest.raises(Refusal):
        await pod.store.write(forfeited_and_rolled_back)
    assert await pod.read(deposit.deposit_id) == deposit
    assert await pod.told(deposit.deposit_id) == ["DepositCaptured"]


# Reading


async def test_a_customer_reads_only_their_own(pod: Pod) -> None:
    deposit = await pod.create()
    assert await pod.deposits.get(deposit.deposit_id, CUSTOMER) == deposit
    for deposit_id, customer in ((deposit.deposit_id, "mallory"), (new_id(), CUSTOMER)):
        with pytest.raises(Refusal) as refusal:
            await pod.deposits.get(deposit_id, customer)
        assert refusal.value.reason == "NOT_FOUND"
    assert await pod.deposits.list(CUSTOMER, RESERVATION, None, 10) == [deposit]
    assert await pod.deposits.list(CUSTOMER, new_id(), None, 10) == []
    assert await pod.deposits.list("mallory", RESERVATION, None, 10) == []


# The store fails


async def test_a_database_that_goes_away_after_the_charge_is_in_doubt_and_settled(
    pod: Pod, second_store: Store
) -> None:
    unlucky = Pod(second_store, pod.provider, pod.clock)
    pod.provider.answering.shut()
    deposit_id = new_id()
    task = await in_flight(unlucky, deposit_id)
    await second_store.close()
    pod.provider.answering.open()
    assert await answer_of(task) == "DEPOSIT_IN_DOUBT"
    assert (await pod.read(deposit_id)).state is State.PENDING
    pod.clock.pass_by(LIMITS.pending_settle_seconds)
    await pod.reconcile()
    assert (await pod.read(deposit_id)).held == 3000


async def test_a_store_that_is_too_busy_sheds_the_charge_before_the_intent(
    database_url: str, clock: Clock, pod: Pod
) -> None:
    full = Store.open(database_url, clock=lambda _: clock.now, exclusive=False, queue_limit=0)
    try:
        busy = Pod(full, pod.provider, pod.clock)
        known = await pod.create()
        assert await refused(busy) == "DEPOSIT_OVERLOADED"
        assert await refused(busy, known.deposit_id) == "DEPOSIT_IN_DOUBT"
    finally:
        await full.close()


async def test_the_ledger_shows_where_each_cent_is(pod: Pod) -> None:
    kept, returned = await pod.create(), await pod.create()
    await pod.apply_instructions(ForfeitOrder(new_id(), kept.deposit_id, euros(12)))
    await pod.apply_instructions(RefundOrder(new_id(), returned.deposit_id, euros(30)))
    await pod.reconcile()
    assert await pod.store.read(persistence.ledger_balances) == {
        Account.PROVIDER_CLEARING: 3000,
        Account.CUSTOMER_DEPOSITS: -1800,
        Account.REFUNDS_PAYABLE: 0,
        Account.REFUNDS_FAILED: 0,
        Account.FORFEITURE_INCOME: -1200,
    }
