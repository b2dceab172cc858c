"""Rules that all contracts keep: events, reasons, lists, watches."""

import re
from collections import Counter
from collections.abc import Iterator

import pytest
from google.protobuf.descriptor import Descriptor, FileDescriptor
from google.rpc import code_pb2

from dinemesh.deposit.v1 import deposit_pb2, deposit_service_pb2
from dinemesh.deposit.v1 import events_pb2 as deposit_events
from dinemesh.error.v1 import reason_pb2
from dinemesh.event.v1 import envelope_pb2
from dinemesh.history.v1 import history_pb2, history_service_pb2
from dinemesh.reservation.v1 import events_pb2 as reservation_events
from dinemesh.reservation.v1 import reservation_pb2, reservation_service_pb2
from dinemesh.restaurant.v1 import events_pb2 as restaurant_events
from dinemesh.restaurant.v1 import restaurant_pb2, restaurant_service_pb2
from tests.contracts.contracts import contracts

SERVICES = (
    reservation_service_pb2.DESCRIPTOR,
    deposit_service_pb2.DESCRIPTOR,
    restaurant_service_pb2.DESCRIPTOR,
    history_service_pb2.DESCRIPTOR,
)
RESOURCES = (
    reservation_pb2.DESCRIPTOR,
    deposit_pb2.DESCRIPTOR,
    restaurant_pb2.DESCRIPTOR,
    history_pb2.DESCRIPTOR,
)
EVENT_FILES = {
    "reservation": reservation_events.DESCRIPTOR,
    "deposit": deposit_events.DESCRIPTOR,
    "restaurant": restaurant_events.DESCRIPTOR,
}
SNAPSHOTS = {
    "ReservationSnapshot",
    "DepositSnapshot",
    "BookingSnapshot",
    "RestaurantSnapshot",
    "Slot",
}


def routing_key(message: Descriptor) -> str:
    return message.GetOptions().Extensions[envelope_pb2.routing_key]


def events() -> Iterator[tuple[str, Descriptor]]:
    for source, file in EVENT_FILES.items():
        for message in file.message_types_by_name.values():
            if routing_key(message):
                yield source, message


def reachable(message: Descriptor, seen: set[str]) -> Iterator[Descriptor]:
    if message.full_name in seen:
        return
    seen.add(message.full_name)
    yield message
    for field in message.fields:
        if field.message_type is not None:
            yield from reachable(field.message_type, seen)


def messages(files: tuple[FileDescriptor, ...]) -> Iterator[Descriptor]:
    for file in files:
        yield from file.message_types_by_name.values()


def test_an_event_is_routed_by_its_publisher_and_by_what_happened() -> None:
    keys: Counter[str] = Counter()
    for source, message in events():
        key = routing_key(message)
        assert re.fullmatch(rf"{source}\.v1\.[a-z]+(_[a-z]+)*", key), message.full_name
        keys[key] += 1
    assert len(keys) > 20
    assert max(keys.values()) == 1


def test_an_event_carries_the_whole_state_of_its_aggregate() -> None:
    for _, message in events():
        carried = {field.message_type.name for field in message.fields if field.message_type is not None}
        assert len(carried & SNAPSHOTS) == 1, message.full_name


def test_a_snapshot_of_a_reservation_carries_all_money_instructions() -> None:
    instructions = {
        field.name: field.message_type.name
        for field in reservation_events.ReservationSnapshot.DESCRIPTOR.fields
        if field.message_type is not None and field.message_type.name.endswith("Instruction")
    }
    assert instructions == {
        "voids": "VoidInstruction",
        "refunds": "RefundInstruction",
        "forfeits": "ForfeitInstruction",
    }


def test_no_event_and_no_deposit_carries_a_note_or_a_payment_token() -> None:
    roots = [message for _, message in events()]
    roots += [envelope_pb2.Envelope.DESCRIPTOR, deposit_pb2.Deposit.DESCRIPTOR]
    for root in roots:
        for message in reachable(root, set()):
            assert not {"note", "payment_token"} & set(message.fields_by_name), (
                root.full_name,
                message.full_name,
            )


def test_every_event_about_a_reservation_has_its_place_in_the_timeline() -> None:
    about_restaurants = {"RestaurantCreated", "RestaurantUpdated", "SlotsChanged"}
    expected = {
        "TIMELINE_ENTRY_KIND_" + re.sub(r"(?<!^)(?=[A-Z])", "_", message.name).upper()
        for _, message in events()
        if message.name not in about_restaurants
    }
    known = set(history_pb2.TimelineEntryKind.DESCRIPTOR.values_by_name) - {"TIMELINE_ENTRY_KIND_UNSPECIFIED"}
    assert known == expected


@pytest.mark.parametrize(
    "name", sorted(set(reason_pb2.Reason.DESCRIPTOR.values_by_name) - {"REASON_UNSPECIFIED"})
)
def test_a_reason_says_with_which_code_it_is_answered(name: str) -> None:
    options = reason_pb2.Reason.DESCRIPTOR.values_by_name[name].GetOptions()
    assert options.HasExtension(reason_pb2.code)
    assert options.Extensions[reason_pb2.code] not in {code_pb2.OK, code_pb2.UNKNOWN}


@pytest.mark.parametrize(
    ("reason", "code"),
    [
        ("TRY_AGAIN_LATER", code_pb2.RESOURCE_EXHAUSTED),
        ("DEPOSIT_OVERLOADED", code_pb2.RESOURCE_EXHAUSTED),
        ("DEPOSIT_IN_DOUBT", code_pb2.ABORTED),
        ("REQUEST_IN_PROGRESS", code_pb2.ABORTED),
        ("DEADLINE_TOO_SHORT", code_pb2.DEADLINE_EXCEEDED),
        ("NOT_FOUND", code_pb2.NOT_FOUND),
        ("TOKEN_EXPIRED", code_pb2.UNAUTHENTICATED),
        ("PERMISSION_DENIED", code_pb2.PERMISSION_DENIED),
        ("INVALID_ARGUMENT", code_pb2.INVALID_ARGUMENT),
    ],
)
def test_the_codes_that_clients_and_the_mesh_lean_on(reason: str, code: int) -> None:
    value = reason_pb2.Reason.DESCRIPTOR.values_by_name[f"REASON_{reason}"]
    assert value.GetOptions().Extensions[reason_pb2.code] == code


def test_only_a_broken_instance_answers_with_what_the_mesh_ejects_for() -> None:
    """A planned refusal ejects nobody and is not retried by the mesh."""
    codes = {
        name: value.GetOptions().Extensions[reason_pb2.code]
        for name, value in reason_pb2.Reason.DESCRIPTOR.values_by_name.items()
    }
    of_the_edge = {"REASON_NO_ANSWER"}  # said about a service, by no service
    unavailable = {name for name, code in codes.items() if code == code_pb2.UNAVAILABLE}
    assert unavailable - of_the_edge == {"REASON_UNAVAILABLE"}
    assert [name for name, code in codes.items() if code == code_pb2.INTERNAL] == ["REASON_INTERNAL"]


def test_every_list_is_paged() -> None:
    lists = [message for message in messages(SERVICES) if message.name.startswith("List")]
    assert len(lists) == 12
    for message in lists:
        wanted = {"page_size", "page_token"} if message.name.endswith("Request") else {"next_page_token"}
        assert wanted <= set(message.fields_by_name), message.full_name


def test_every_watch_answers_with_an_item_a_heartbeat_or_the_end() -> None:
    watches = [m for m in messages(SERVICES) if re.fullmatch(r"Watch\w+Response", m.name)]
    assert len(watches) == 3
    for message in watches:
        kinds = {
            field.name: field.message_type.full_name
            for field in message.oneofs_by_name["kind"].fields
            if field.message_type is not None
        }
        assert len(kinds) == 3
        assert kinds["heartbeat"] == "dinemesh.watch.v1.Heartbeat"
        assert kinds["end"] == "dinemesh.watch.v1.End"


def test_what_can_change_by_the_clients_hand_has_an_etag() -> None:
    for message in (reservation_pb2.Reservation, restaurant_pb2.Restaurant):
        assert "etag" in message.DESCRIPTOR.fields_by_name
    for name in ("ModifyReservationRequest", "UpdateRestaurantRequest"):
        assert any(
            message.name == name and "etag" in message.fields_by_name for message in messages(SERVICES)
        )


def test_times_and_amounts_have_the_types_of_their_names() -> None:
    for message in messages((*SERVICES, *RESOURCES, *EVENT_FILES.values())):
        for field in message.fields:
            kind = field.message_type.full_name if field.message_type is not None else ""
            if field.name.endswith("_time"):
                assert kind == "google.protobuf.Timestamp", field.full_name
            if field.name.endswith("_seconds"):
                assert field.type == field.TYPE_INT32, field.full_name
            if field.name in {"amount", "held", "refunded", "forfeited", "price", "captured"}:
                assert kind == "google.type.Money", field.full_name
            assert field.type not in {field.TYPE_FLOAT, field.TYPE_DOUBLE}, field.full_name


def test_every_request_and_response_belongs_to_one_rpc() -> None:
    used: Counter[str] = Counter()
    for file in contracts():
        for service in file.service:
            for method in service.method:
                assert method.input_type.endswith(f".{method.name}Request")
                assert method.output_type.endswith(f".{method.name}Response")
                used.update((method.input_type, method.output_type))
    assert max(used.values()) == 1
