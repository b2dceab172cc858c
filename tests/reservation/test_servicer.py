"""ReservationService as a client meets it: over gRPC, with tokens, with good and with bad requests."""

from __future__ import annotations

import math
from collections.abc import AsyncIterator, Callable
from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from typing import Any

import grpc
import pytest
from google.protobuf.timestamp_pb2 import Timestamp
from sqlalchemy import select

from dinemesh.kit import wire
from dinemesh.kit.service import Service
from dinemesh.reservation.v1 import reservation_pb2
from dinemesh.reservation.v1 import reservation_service_pb2 as api
from dinemesh.watch.v1 import watch_pb2
from reservation_svc.domain import BookingState
from reservation_svc.persistence import seat_inventory, tables
from tests.reservation.conftest import DINNER, LATER, POLICY, RESTAURANT, Pod, new_id
from tests.reservation.serving import Client, serving
from tests.support.refusals import refused

RESTAURANT_ID = RESTAURANT.restaurant_id
DAY = DINNER.date().isoformat()
Spoil = Callable[[Any], None]


@pytest.fixture
async def served(pod: Pod, tmp_path: Path) -> AsyncIterator[tuple[Client, Service]]:
    async with serving(pod.ctx, tmp_path) as client_and_service:
        yield client_and_service


@pytest.fixture
def client(served: tuple[Client, Service]) -> Client:
    return served[0]


def wish(**changes: Any) -> api.CreateReservationRequest:
    fields: dict[str, Any] = {
        "request_id": new_id(),
        "restaurant_id": RESTAURANT_ID,
        "dine_time": wire.to_timestamp(DINNER),
        "party_size": 2,
        "policy_etag": RESTAURANT.policy.etag,
        "payment_token": "tok_visa",
    }
    return api.CreateReservationRequest(**(fields | changes))


async def reserve(client: Client, **changes: Any) -> reservation_pb2.Reservation:
    answer = await client.call("CreateReservation", wish(**changes))
    made: reservation_pb2.Reservation = answer.reservation
    return made


async def test_a_customer_reserves_reads_lists_modifies_and_cancels(client: Client, pod: Pod) -> None:
    made = await reserve(client, note="window,\nplease")
    assert made.state == reservation_pb2.RESERVATION_STATE_PENDING_ACCEPTANCE
    assert (made.customer_id, made.note, made.revision) == ("alice", "window,\nplease", 1)
    assert (made.deposits[0].held.units, made.deposits[0].held.currency_code) == (20, "EUR")
    assert wire.from_timestamp(made.free_cancel_time, "") == DINNER - timedelta(days=1)
    assert made.policy.deposit_per_person.units == 10

    read = await client.call("GetReservation", api.GetReservationRequest(reservation_id=made.reservation_id))
    assert read.reservation == made
    listed = await client.call("ListReservations", api.ListReservationsRequest())
    assert list(listed.reservations) == [made]

    modify = api.ModifyReservationRequest(
        reservation_id=made.reservation_id,
        request_id=new_id(),
        etag=made.etag,
        party_size=3,
        payment_token="tok_visa",
    )
    modified = (await client.call("ModifyReservation", modify)).reservation
    assert (modified.party_size, modified.revision, len(modified.deposits)) == (3, 2, 2)
    said = await refused(
        client.call(
            "ModifyReservation",
            modify.__class__(
                reservation_id=made.reservation_id, request_id=new_id(), etag=made.etag, party_size=1
            ),
        )
    )
    assert (said.code, said.reason) == (grpc.StatusCode.ABORTED, "ETAG_MISMATCH")

    cancel = api.CancelReservationRequest(reservation_id=made.reservation_id)
    cancelled = await client.call("CancelReservation", cancel)
    assert (cancelled.refunded.units, cancelled.forfeited.units) == (30, 0)
    assert cancelled.reservation.cancelled_by == reservation_pb2.CANCELLED_BY_CUSTOMER
    assert await client.call("CancelReservation", cancel) == cancelled


async def test_someone_elses_reservation_is_not_found(client: Client) -> None:
    made = await reserve(client)
    requests: dict[str, Any] = {
        "GetReservation": api.GetReservationRequest(reservation_id=made.reservation_id),
        "CancelReservation": api.CancelReservationRequest(reservation_id=made.reservation_id),
        "ModifyReservation": api.ModifyReservationRequest(
            reservation_id=made.reservation_id, request_id=new_id(), etag=made.etag, party_size=1
        ),
    }
    for method, request in requests.items():
        said = await refused(client.call(method, request, sub="mallory"))
        assert (said.code, said.reason) == (grpc.StatusCode.NOT_FOUND, "NOT_FOUND")
        missing = type(request)()
        missing.CopyFrom(request)
        missing.reservation_id = new_id()
        other = await refused(client.call(method, missing))
        assert (other.code, other.message, other.reason) == (said.code, said.message, said.reason)
    for method in ("GetReservation", "CancelReservation"):
        said = await refused(client.call(method, requests[method], role="staff", restaurant=new_id()))
        assert said.reason == "NOT_FOUND"
    assert not (
        await client.call("ListReservations", api.ListReservationsRequest(), sub="mallory")
    ).reservations
    watch = client.stub.WatchReservation(
        api.WatchReservationRequest(reservation_id=made.reservation_id), metadata=client.token("mallory")
    )
    said = await refused(watch.read())
    assert said.reason == "NOT_FOUND"


async def test_staff_read_and_cancel_for_their_restaurant_and_nothing_else(client: Client) -> None:
    made = await reserve(client)
    staff: dict[str, Any] = {"sub": "bob", "role": "staff", "restaurant": RESTAURANT_ID}
    get = api.GetReservationRequest(reservation_id=made.reservation_id)
    assert (await client.call("GetReservation", get, **staff)).reservation == made
    for method, request in {
        "CreateReservation": wish(),
        "ListReservations": api.ListReservationsRequest(),
        "ModifyReservation": api.ModifyReservationRequest(reservation_id=made.reservation_id),
    }.items():
        said = await refused(client.call(method, request, **staff))
        assert said.code == grpc.StatusCode.PERMISSION_DENIED
    cancel = api.CancelReservationRequest(reservation_id=made.reservation_id)
    cancelled = await client.call("CancelReservation", cancel, **staff)
    assert cancelled.reservation.cancelled_by == reservation_pb2.CANCELLED_BY_RESTAURANT


async def test_the_list_is_paged_newest_first(client: Client, pod: Pod) -> None:
    made = []
    for number in range(5):
        pod.clock.pass_by(seconds=number % 2)
        made.append((await reserve(client, party_size=1)).reservation_id)
    token, found = "", []
    for _ in range(3):
        request = api.ListReservationsRequest(page_size=2, page_token=token)
        page = await client.call("ListReservations", request)
        found += [(wire.from_timestamp(one.create_time, ""), one.reservation_id) for one in page.reservations]
        token = page.next_page_token
    assert token == ""
    assert sorted(one for _, one in found) == sorted(made)
    assert found == sorted(found, reverse=True)


async def test_a_watch_shows_each_state_and_ends_with_a_terminal_message(client: Client, pod: Pod) -> None:
    made = await reserve(client)
    watch = client.stub.WatchReservation(
        api.WatchReservationRequest(reservation_id=made.reservation_id), metadata=client.token("alice")
    )
    first = await watch.read()
    assert first.reservation == made
    assert (await watch.read()).WhichOneof("kind") == "heartbeat"
    stands = (await pod.mine())[0]
    await pod.hear_booking(stands, BookingState.ACCEPTED)
    seen = []
    while (message := await watch.read()) is not grpc.aio.EOF:
        if message.HasField("reservation"):
            seen.append(message.reservation.state)
            if len(seen) == 1:
                await pod.cancel(stands)
        last = message
    assert seen == [
        reservation_pb2.RESERVATION_STATE_CONFIRMED,
        reservation_pb2.RESERVATION_STATE_CANCELLED,
    ]
    assert last.end.reason == watch_pb2.END_REASON_FINISHED


async def test_a_stopping_server_says_so_to_its_watchers(served: tuple[Client, Service]) -> None:
    client, service = served
    made = await reserve(client)
    watch = client.stub.WatchReservation(
        api.WatchReservationRequest(reservation_id=made.reservation_id), metadata=client.token("alice")
    )
    await watch.read()
    service.changes.stop()
    messages = []
    while (message := await watch.read()) is not grpc.aio.EOF:
        messages.append(message)
    assert messages[-1].end.reason == watch_pb2.END_REASON_SERVER_STOPPING


async def test_anyone_sees_the_slots_of_a_day_and_whether_they_take_the_party(
    client: Client, pod: Pod
) -> None:
    await reserve(client, party_size=8)
    await pod.open_slots((DINNER - timedelta(hours=1), 0), (DINNER + timedelta(days=1), 5), version=1)

    async def slots(party: int, **changes: Any) -> Any:
        request = api.ListAvailableSlotsRequest(
            restaurant_id=RESTAURANT_ID, date=DAY, party_size=party, **changes
        )
        return await client.stub.ListAvailableSlots(request, timeout=10)

    answer = await slots(3)
    assert (answer.time_zone, answer.policy_etag) == ("Europe/Berlin", POLICY.etag)
    assert [(wire.from_timestamp(one.dine_time, ""), one.available) for one in answer.slots] == [
        (DINNER, False),
        (LATER, True),
    ]
    assert (answer.slots[0].deposit.units, answer.slots[0].deposit.currency_code) == (30, "EUR")
    assert wire.from_timestamp(answer.slots[1].free_cancel_time, "") == LATER - timedelta(days=1)
    assert [one.available for one in (await slots(13)).slots] == [False, False], (
        "larger than the policy allows"
    )

    first = await slots(1, page_size=1)
    second = await slots(1, page_size=1, page_token=first.next_page_token)
    assert [*first.slots, *second.slots] == list((await slots(1)).slots)
    assert second.next_page_token == ""

    pod.clock.set(DINNER)
    assert [wire.from_timestamp(one.dine_time, "") for one in (await slots(1)).slots] == [LATER]
    pod.clock.set(LATER - timedelta(minutes=1))
    assert [one.available for one in (await slots(1)).slots] == [False], (
        "too late for the restaurant to answer"
    )
    empty = api.ListAvailableSlotsRequest(restaurant_id=RESTAURANT_ID, date="2029-05-05", party_size=1)
    assert not (await client.stub.ListAvailableSlots(empty)).slots


async def test_the_etag_of_the_slots_is_that_of_the_policy_that_a_booking_is_held_to(
    client: Client, pod: Pod
) -> None:
    dearer = replace(RESTAURANT, policy=replace(POLICY, deposit_per_person=5000))
    await pod.store.write(lambda tx: seat_inventory.keep_restaurant(tx, dearer))
    asked = wish()
    said = await refused(client.call("CreateReservation", asked))
    assert (said.code, said.reason) == (grpc.StatusCode.FAILED_PRECONDITION, "POLICY_CHANGED")
    slots = api.ListAvailableSlotsRequest(restaurant_id=RESTAURANT_ID, date=DAY, party_size=2)
    shown = await client.stub.ListAvailableSlots(slots, timeout=10)
    assert said.info["policy_etag"] == shown.policy_etag
    asked.policy_etag = shown.policy_etag
    made = (await client.call("CreateReservation", asked)).reservation
    assert made.deposits[0].amount == shown.slots[0].deposit
    assert made.free_cancel_time == shown.slots[0].free_cancel_time


async def test_the_same_request_id_on_other_terms_is_another_request(client: Client, pod: Pod) -> None:
    asked = wish()
    await client.call("CreateReservation", asked)
    dearer = replace(RESTAURANT, policy=replace(POLICY, deposit_per_person=5000))
    await pod.store.write(lambda tx: seat_inventory.keep_restaurant(tx, dearer))
    await client.call("CreateReservation", asked)
    asked.policy_etag = dearer.policy.etag
    assert (await refused(client.call("CreateReservation", asked))).reason == "REQUEST_ID_REUSED"


def _set(field: str, value: Any) -> Spoil:
    def spoil(request: Any) -> None:
        if isinstance(value, Timestamp):
            getattr(request, field).CopyFrom(value)
        else:
            setattr(request, field, value)

    return spoil


BAD_WISHES = [
    ("request_id", _set("request_id", "")),
    ("request_id", _set("request_id", "1; DROP TABLE reservations")),
    ("request_id", _set("request_id", "{00000000-0000-0000-0000-000000000000}")),
    ("restaurant_id", _set("restaurant_id", "../../etc/passwd")),
    ("restaurant_id", _set("restaurant_id", "\x00")),
    ("dine_time", lambda request: request.ClearField("dine_time")),
    ("dine_time", _set("dine_time", wire.to_timestamp(DINNER - timedelta(days=60)))),
    ("dine_time", _set("dine_time", wire.to_timestamp(DINNER + timedelta(days=600)))),
    ("dine_time", _set("dine_time", wire.to_timestamp(DINNER + timedelta(seconds=1)))),
    ("dine_time", _set("dine_time", Timestamp(seconds=int(DINNER.timestamp()), nanos=1))),
    ("dine_time", _set("dine_time", Timestamp(seconds=10**15))),
    ("dine_time", _set("dine_time", Timestamp(seconds=253402300799))),
    ("dine_time", _set("dine_time", Timestamp(seconds=-62135596800))),
    ("party_size", _set("party_size", 0)),
    ("party_size", _set("party_size", -1)),
    ("party_size", _set("party_size", 13)),
    ("party_size", _set("party_size", 2**31 - 1)),
    ("policy_etag", _set("policy_etag", "")),
    ("policy_etag", _set("policy_etag", "x" * 65)),
    ("policy_etag", _set("policy_etag", "\x00")),
    ("policy_etag", _set("policy_etag", "\u200b")),
    ("payment_token", _set("payment_token", "")),
    ("payment_token", _set("payment_token", "x" * 129)),
    ("payment_token", _set("payment_token", "tok\x00visa")),
    ("note", _set("note", "x" * 501)),
    ("note", _set("note", "bell\x07")),
]


async def test_a_bad_wish_is_refused_with_its_field_and_reserves_nothing(client: Client, pod: Pod) -> None:
    for field, spoil in BAD_WISHES:
        request = wish()
        spoil(request)
        said = await refused(client.call("CreateReservation", request))
        assert said.code == grpc.StatusCode.INVALID_ARGUMENT, (field, said)
        assert said.fields == (field,), said
        assert "sqlite" not in said.everything.lower() and "psycopg" not in said.everything.lower()
    assert await pod.mine() == []
    assert pod.deposits.asked == []
    assert await pod.sold() == 0


async def test_everything_that_is_wrong_is_named_at_once(client: Client) -> None:
    said = await refused(client.call("CreateReservation", api.CreateReservationRequest(note="\x00")))
    expected = (
        "request_id",
        "restaurant_id",
        "dine_time",
        "party_size",
        "policy_etag",
        "payment_token",
        "note",
    )
    assert said.fields == expected


async def test_a_bad_modification_is_refused_with_its_field(client: Client) -> None:
    made = await reserve(client)

    def change(**fields: Any) -> api.ModifyReservationRequest:
        good = {"reservation_id": made.reservation_id, "request_id": new_id(), "etag": made.etag}
        return api.ModifyReservationRequest(**(good | fields))

    for fields, request in [
        (("dine_time", "party_size", "note"), change()),
        (("dine_time", "party_size", "note"), change(payment_token="tok_visa")),
        (("reservation_id",), change(reservation_id="x", party_size=1)),
        (("request_id",), change(request_id="", party_size=1)),
        (("etag",), change(etag="", party_size=1)),
        (("etag",), change(etag="x" * 65, party_size=1)),
        (("party_size",), change(party_size=0)),
        (("party_size",), change(party_size=13)),
        (("payment_token",), change(party_size=5)),
        (("note",), change(note="\x00")),
        (("dine_time",), change(dine_time=wire.to_timestamp(DINNER + timedelta(minutes=7)))),
    ]:
        said = await refused(client.call("ModifyReservation", request))
        assert said.code == grpc.StatusCode.INVALID_ARGUMENT, (fields, said)
        assert said.fields == fields
    get = api.GetReservationRequest(reservation_id=made.reservation_id)
    assert (await client.call("GetReservation", get)).reservation == made


async def test_bad_reads_are_refused_with_their_field(client: Client) -> None:
    slots: dict[str, Any] = {"restaurant_id": RESTAURANT_ID, "date": DAY, "party_size": 2}

    def asked(**changes: Any) -> api.ListAvailableSlotsRequest:
        return api.ListAvailableSlotsRequest(**(slots | changes))

    cases: list[tuple[str, Any, str]] = [
        ("GetReservation", api.GetReservationRequest(reservation_id="'; --"), "reservation_id"),
        ("CancelReservation", api.CancelReservationRequest(), "reservation_id"),
        ("ListReservations", api.ListReservationsRequest(page_size=-1), "page_size"),
        ("ListReservations", api.ListReservationsRequest(page_token="junk"), "page_token"),
        ("ListReservations", api.ListReservationsRequest(page_token="x" * 5000), "page_token"),
        ("ListAvailableSlots", asked(date=""), "date"),
        ("ListAvailableSlots", asked(date="tomorrow"), "date"),
        ("ListAvailableSlots", asked(date="20300110"), "date"),
        ("ListAvailableSlots", asked(date="2030-02-30"), "date"),
        ("ListAvailableSlots", asked(date="0001-01-01"), "date"),
        ("ListAvailableSlots", asked(date="9999-12-31"), "date"),
        ("ListAvailableSlots", asked(party_size=0), "party_size"),
        ("ListAvailableSlots", asked(restaurant_id="x"), "restaurant_id"),
        ("ListAvailableSlots", asked(page_token="bm9uc2Vuc2U"), "page_token"),
    ]
    for method, request, field in cases:
        said = await refused(client.call(method, request))
        assert said.code == grpc.StatusCode.INVALID_ARGUMENT, (method, field, said)
        assert said.fields == (field,), said
    said = await refused(client.call("ListAvailableSlots", asked(restaurant_id=new_id())))
    assert said.reason == "NOT_FOUND"


async def test_bytes_that_are_no_request_are_an_invalid_argument(client: Client) -> None:
    for body in (b"\xff\xff\xff\xff", b"\x0a\x02\xff\xfe"):
        said = await refused(client.call_raw("CreateReservation", body))
        assert said.code == grpc.StatusCode.INVALID_ARGUMENT


async def test_a_refusal_that_makes_sense_to_repeat_says_when(client: Client) -> None:
    request = wish()
    request.payment_token = "tok_overloaded"
    said = await refused(client.call("CreateReservation", request))
    assert (said.code, said.reason) == (grpc.StatusCode.RESOURCE_EXHAUSTED, "TRY_AGAIN_LATER")
    # Up to a quarter later, so that not all come back at once.
    assert said.retry_after is not None and 3 <= said.retry_after <= 3 * 1.25**2
    assert said.trailing["retry-after"] == str(math.ceil(said.retry_after))
    request = wish()
    request.payment_token = "tok_declined"
    said = await refused(client.call("CreateReservation", request))
    assert (said.code, said.reason) == (grpc.StatusCode.FAILED_PRECONDITION, "CARD_DECLINED")
    assert said.info["decline_code"] == "insufficient_funds"
    assert said.retry_after is None


async def test_the_token_and_the_note_enter_no_event(client: Client, pod: Pod) -> None:
    await reserve(client, note="a very secret wish", payment_token="tok_visa")
    rows = await pod.store.read(lambda tx: tx.execute(select(tables.outbox.c.envelope)).scalars().all())
    assert len(rows) == 1
    assert not any(b"secret" in row or b"tok_" in row for row in rows)
