"""What is at the provider at once, and that nothing that hangs or fails holds up anything else."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import replace

import pytest
from prometheus_client import REGISTRY
from sqlalchemy import delete, insert

from deposit_svc import persistence
from deposit_svc.domain import Applied, ForfeitOrder, Money, RefundOrder, State
from deposit_svc.provider import ChargeOutcome, RefundOutcome
from deposit_svc.usecases import Deposits
from dinemesh.kit.outbox import Outbox
from dinemesh.kit.refusal import Refusal
from tests.deposit.conftest import LIMITS, THIRTY, Clock, Pod, euros, new_id, until
from tests.deposit.fakes import FakeProvider, Gate


class Provider(FakeProvider):
    """Hangs at some keys until they are let go, fails at others as no provider should, and counts."""

    def __init__(self) -> None:
        super().__init__()
        self.hanging: set[str] = set()
        self.broken: set[str] = set()
        self.gate = Gate()
        self.asked: list[str] = []
        self.at_once = self.most = 0

    async def find(self, key: str) -> ChargeOutcome | None:
        await self._ask(key)
        return await super().find(key)

    async def refund(self, key: str, charge_key: str, amount: Money) -> RefundOutcome:
        await self._ask(key)
        return await super().refund(key, charge_key, amount)

    async def _ask(self, key: str) -> None:
        self.asked.append(key)
        self.at_once += 1
        self.most = max(self.most, self.at_once)
        try:
            await asyncio.sleep(0.01)
            if key in self.hanging:
                await self.gate.passed()
            if key in self.broken:
                raise KeyError(key)
        finally:
            self.at_once -= 1


@pytest.fixture
def provider(pod: Pod) -> Provider:
    """Of a pod with eight places."""
    provider = Provider()
    provider.gate.shut()
    pod.provider = provider
    limits = replace(LIMITS, settle_at_once=8, charges_in_flight=100)
    outbox: Outbox = pod.deposits._outbox
    pod.deposits = Deposits(pod.store, outbox, provider, pod.background, limits)
    return provider


async def refunds(pod: Pod, count: int) -> Sequence[str]:
    """Ids of refunds that are ordered, each of a deposit of its own."""
    orders = [RefundOrder(new_id(), (await pod.create()).deposit_id, THIRTY) for _ in range(count)]
    await pod.apply_instructions(*orders)
    return [order.refund_id for order in orders]


def failing() -> float | None:
    return REGISTRY.get_sample_value("dinemesh_reconcile_failing_rows")


async def test_a_refund_that_hangs_holds_up_only_itself(pod: Pod, provider: Provider) -> None:
    slow, *others = await refunds(pod, 20)
    provider.hanging = {slow}
    reconciling = asyncio.ensure_future(pod.reconcile())
    await until(lambda: set(others) <= provider.refunds.keys())
    assert provider.gate.reached.is_set() and not reconciling.done()
    # What is ordered meanwhile goes on as well.
    (later,) = await refunds(pod, 1)
    await until(lambda: later in provider.refunds)
    provider.gate.open()
    await reconciling
    assert slow in provider.refunds
    assert sorted(provider.asked) == sorted([slow, *others, later]), "each was asked for once"


async def test_places_are_bounded_and_charges_that_hang_leave_some_to_refunds(
    pod: Pod, provider: Provider, clock: Clock
) -> None:
    wanted = await refunds(pod, 12)
    clock.pass_by(1)
    provider.loses_replies = True
    undecided = [new_id() for _ in range(10)]
    for deposit_id in undecided:
        with pytest.raises(Refusal, match="DEPOSIT_IN_DOUBT"):
            await pod.create(deposit_id)
    provider.loses_replies = False
    provider.hanging = set(undecided)
    reconciling = asyncio.ensure_future(pod.reconcile())
    await until(lambda: set(wanted) <= provider.refunds.keys())
    await until(lambda: provider.at_once == 6)
    # Three quarters are the most that one kind gets: there is room for a refund.
    (another,) = await refunds(pod, 1)
    await until(lambda: another in provider.refunds)
    assert (provider.most, provider.at_once) == (8, 6)
    provider.gate.open()
    await reconciling
    for deposit_id in undecided:
        assert (await pod.read(deposit_id)).state is State.CAPTURED


async def test_a_refund_that_fails_waits_longer_each_time_and_is_counted(
    pod: Pod, provider: Provider, clock: Clock
) -> None:
    broken, *others = await refunds(pod, 12)
    provider.broken = {broken}
    for pause in (1, 2, 4):
        await pod.reconcile()
        asked = provider.asked.count(broken)
        clock.pass_by(pause - 0.5)
        await pod.reconcile()
        assert provider.asked.count(broken) == asked, "it is asked for again too early"
        assert failing() == 1
        clock.pass_by(0.5)
    assert set(others) <= provider.refunds.keys()
    provider.broken = set()
    await pod.reconcile()
    assert broken in provider.refunds
    assert failing() == 0


async def test_a_waiting_instruction_that_fails_holds_up_no_refund(pod: Pod, clock: Clock) -> None:
    provider = pod.provider
    provider.loses_replies = True
    deposit_id, forfeit_id = new_id(), new_id()
    with pytest.raises(Refusal, match="DEPOSIT_IN_DOUBT"):
        await pod.create(deposit_id)
    provider.loses_replies = False
    await pod.apply_instructions(ForfeitOrder(forfeit_id, deposit_id, euros(10)))
    # Somebody's hand: its id is taken.
    taken = {"forfeit_id": forfeit_id, "deposit_id": deposit_id, "position": 7, "amount_minor": 1}
    await pod.store.write(
        lambda tx: tx.execute(insert(persistence.forfeits).values(**taken, create_time=clock.now))
    )
    other = await pod.create()
    refund_id = new_id()
    await pod.apply_instructions(RefundOrder(refund_id, other.deposit_id, THIRTY))
    await pod.reconcile()
    assert refund_id in provider.refunds
    assert failing() == 1
    await pod.store.write(lambda tx: tx.execute(delete(persistence.forfeits)))
    await pod.reconcile()
    assert (await pod.read(deposit_id)).forfeited == 0
    clock.pass_by(1)
    await pod.reconcile()
    assert (await pod.read(deposit_id)).forfeited == 1000
    assert failing() == 0
    assert Applied.WAITING.value not in await pod.store.read(
        lambda tx: tx.execute(persistence.instructions.select()).scalars().all()
    )
