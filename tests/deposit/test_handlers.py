"""Events of reservation as they come off the wire: each money instruction takes effect once."""

from __future__ import annotations

import itertools
import uuid

import pytest
from google.protobuf.message import Message

from deposit_svc import handlers, persistence
from deposit_svc.domain import Standing, State
from dinemesh.event.v1 import envelope_pb2
from dinemesh.kit import wire
from dinemesh.kit.inbox import Inbox
from dinemesh.kit.refusal import Refusal
from dinemesh.reservation.v1 import events_pb2 as pb
from tests.deposit.conftest import CUSTOMER, RESERVATION, Pod, new_id


def void(deposit_id: str) -> pb.VoidInstruction:
    return pb.VoidInstruction(deposit_id=deposit_id)


def refund(refund_id: str, deposit_id: str, euros: int) -> pb.RefundInstruction:
    return pb.RefundInstruction(
        refund_id=refund_id, deposit_id=deposit_id, amount=wire.to_money(euros * 100, "EUR")
    )


def forfeit(forfeit_id: str, deposit_id: str, euros: int) -> pb.ForfeitInstruction:
    return pb.ForfeitInstruction(
        forfeit_id=forfeit_id, deposit_id=deposit_id, amount=wire.to_money(euros * 100, "EUR")
    )


def snapshot(
    *instructions: pb.VoidInstruction | pb.RefundInstruction | pb.ForfeitInstruction,
) -> pb.ReservationSnapshot:
    made = pb.ReservationSnapshot(reservation_id=RESERVATION, customer_id=CUSTOMER)
    for one in instructions:
        if isinstance(one, pb.VoidInstruction):
            made.voids.append(one)
        elif isinstance(one, pb.RefundInstruction):
            made.refunds.append(one)
        else:
            made.forfeits.append(one)
    return made


def envelope(message: Message, version: int, event_id: str = "") -> bytes:
    return envelope_pb2.Envelope(
        event_id=event_id or str(uuid.uuid4()),
        type=message.DESCRIPTOR.full_name,
        source="reservation",
        aggregate_id=RESERVATION,
        aggregate_version=version,
        customer_id=CUSTOMER,
        reservation_id=RESERVATION,
        correlation_id="c",
        payload=message.SerializeToString(),
    ).SerializeToString()


@pytest.fixture
def inbox(pod: Pod) -> Inbox:
    return Inbox(pod.store, persistence.inbox, handlers.subscription(pod.deposits))


async def test_a_failed_reservation_voids_a_deposit_that_was_never_seen(pod: Pod, inbox: Inbox) -> None:
    deposit_id = new_id()
    failed = pb.ReservationFailed(reservation=snapshot(void(deposit_id)))
    assert await inbox.take(inbox.decode(envelope(failed, 1)))
    stone = await pod.read(deposit_id)
    assert (stone.state, stone.customer_id, stone.reservation_id) == (State.VOIDED, CUSTOMER, RESERVATION)
    with pytest.raises(Refusal) as refusal:
        await pod.create(deposit_id)
    assert refusal.value.reason == "DEPOSIT_VOIDED"


async def test_a_duplicate_and_a_later_event_with_the_same_instruction_change_nothing(
    pod: Pod, inbox: Inbox
) -> None:
    deposit = await pod.create()
    back = refund(new_id(), deposit.deposit_id, 10)
    modified = envelope(pb.ReservationModified(reservation=snapshot(back)), 3)
    assert await inbox.take(inbox.decode(modified))
    assert not await inbox.take(inbox.decode(modified))
    later = envelope(pb.ReservationConfirmed(reservation=snapshot(back)), 4)
    assert await inbox.take(inbox.decode(later))
    await pod.reconcile()
    assert (await pod.read(deposit.deposit_id)).held == 2000
    assert pod.provider.returned(deposit.deposit_id) == 1000


async def test_every_order_of_the_events_ends_the_same(pod: Pod, inbox: Inbox) -> None:
    for order in itertools.permutations(range(3)):
        deposit = await pod.create()
        first = refund(new_id(), deposit.deposit_id, 10)
        rest = refund(new_id(), deposit.deposit_id, 20)
        aggregate = new_id()
        events = [
            pb.ReservationPlaced(reservation=snapshot()),
            pb.ReservationModified(reservation=snapshot(first)),
            pb.ReservationCancelled(reservation=snapshot(first, rest)),
        ]
        for version in order:
            raw = envelope_pb2.Envelope.FromString(envelope(events[version], version + 1))
            raw.aggregate_id = aggregate
            await inbox.take(inbox.decode(raw.SerializeToString()))
        await pod.reconcile()
        ended = await pod.read(deposit.deposit_id)
        assert (ended.standing, ended.refunded) == (Standing.REFUNDED, 3000)
        assert {refund.amount.minor for refund in ended.refunds} == {1000, 2000}


async def test_a_no_show_forfeits_what_is_held(pod: Pod, inbox: Inbox) -> None:
    deposit = await pod.create()
    kept = forfeit(new_id(), deposit.deposit_id, 30)
    event = pb.ReservationNoShowRecorded(reservation=snapshot(kept))
    await inbox.take(inbox.decode(envelope(event, 5)))
    assert (await pod.read(deposit.deposit_id)).standing is Standing.FORFEITED
    assert await pod.told(deposit.deposit_id) == ["DepositCaptured", "DepositForfeited"]


def test_every_event_of_reservation_is_handled(pod: Pod) -> None:
    handled = {kind.DESCRIPTOR.full_name for kind in handlers.subscription(pod.deposits).handlers}
    published = {
        message.full_name
        for message in pb.DESCRIPTOR.message_types_by_name.values()
        if message.GetOptions().Extensions[envelope_pb2.routing_key]
    }
    assert handled == published
