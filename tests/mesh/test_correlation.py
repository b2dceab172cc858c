"""One id from the request through every log line, event and answer; and what a proxy adds does no harm."""

from __future__ import annotations

import json
from typing import Any

import grpc
import pytest
from google.protobuf.message import DecodeError

from dinemesh.deposit.v1 import deposit_service_pb2
from dinemesh.event.v1 import envelope_pb2
from dinemesh.history.v1 import history_service_pb2
from dinemesh.kit import dead_letters
from dinemesh.reservation.v1 import reservation_service_pb2
from dinemesh.restaurant.v1 import restaurant_service_pb2
from tests.mesh.people import CANCELLED, CONFIRMED, SHORT, City, new_id, until
from tests.mesh.test_events import on_the_bus, whole_log
from tests.support.mesh import RunningMesh
from tests.support.refusals import refused

TRACE = "4bf92f3577b34da6a3ce929d0e0e4736"
PROXY = (
    ("x-request-id", "7b3a1c52-7b0e-9f3e-8f0c-6a8f1f1f6f10"),
    ("x-forwarded-for", "203.0.113.7, 10.0.0.1"),
    ("x-forwarded-proto", "https"),
    ("x-envoy-expected-rq-timeout-ms", "1"),
    ("x-envoy-attempt-count", "3"),
    ("x-envoy-original-path", "/v1/reservations"),
    ("traceparent", f"00-{TRACE}-00f067aa0ba902b7-01"),
    ("tracestate", "vendor=1"),
)


def lines(mesh: RunningMesh, part: str, correlation_id: str) -> list[dict[str, Any]]:
    """What a part logged under an id."""
    said = [json.loads(line) for line in mesh[part].log.read_text().splitlines() if line.startswith("{")]
    return [line for line in said if line.get("correlation_id") == correlation_id]


async def calls(mesh: RunningMesh, part: str, correlation_id: str, count: int) -> list[tuple[str, str]]:
    """Method and code of the calls that a part logged under an id, at least `count` (a line may come a
    moment after the answer)."""

    async def seen() -> list[tuple[str, str]]:
        return [
            (line["method"].rpartition("/")[2], line["code"])
            for line in lines(mesh, part, correlation_id)
            if line["message"] == "call"
        ]

    return await until(seen, lambda found: len(found) >= count)


async def test_a_request_is_followed_by_its_id_through_calls_events_and_the_provider(
    city: City, mesh: RunningMesh
) -> None:
    place, alice = await city.place(), city.customer()
    reserve, cancel = f"reserve-{new_id()}", f"cancel-{new_id()}"
    wish = alice.wish(place)
    asked = city.doors.reservation.CreateReservation(
        wish, metadata=(*alice.metadata, *PROXY, ("x-correlation-id", reserve)), timeout=SHORT
    )
    taken = (await asked).reservation
    assert dict(await asked.trailing_metadata())["x-correlation-id"] == reserve
    await alice.sees(taken, CONFIRMED)
    await city.doors.reservation.CancelReservation(
        reservation_service_pb2.CancelReservationRequest(reservation_id=taken.reservation_id),
        metadata=(*alice.metadata, ("x-correlation-id", cancel)),
        timeout=SHORT,
    )
    await alice.sees(taken, CANCELLED)
    entries = await alice.sees_in_timeline(taken, "BOOKING_WITHDRAWN", "DEPOSIT_REFUNDED")

    assert await calls(mesh, "reservation", reserve, 1) == [("CreateReservation", "OK")]
    assert await calls(mesh, "deposit", reserve, 1) == [("CreateDeposit", "OK")]
    assert await calls(mesh, "sandbox", reserve, 1) == [("CreateCharge", "OK")]
    assert await calls(mesh, "reservation", cancel, 1) == [("CancelReservation", "OK")]
    assert await calls(mesh, "sandbox", cancel, 1) == [("CreateRefund", "OK")]

    async with on_the_bus(mesh) as bus:
        events = map(envelope_pb2.Envelope.FromString, filter(readable, await whole_log(bus)))
        mine = [event for event in events if event.reservation_id == taken.reservation_id]
    told = {(event.source, event.type.rpartition(".")[2]): event for event in mine}
    assert {(event.source, event.correlation_id) for event in mine} == {
        (source, one) for source in ("reservation", "deposit", "restaurant") for one in (reserve, cancel)
    }
    placed = told["reservation", "ReservationPlaced"]
    assert placed.traceparent.split("-")[1] == TRACE
    ids = {event.event_id for event in mine}
    assert {event.causation_id for event in mine} - ids == {""}, "each event names what led to it"
    assert {entry.correlation_id for entry in entries} == {reserve, cancel}


async def test_a_refusal_has_the_id_in_its_answer_and_in_the_log(city: City, mesh: RunningMesh) -> None:
    alice = city.customer()
    correlation_id = f"refused-{new_id()}"
    metadata = (*alice.metadata, ("x-correlation-id", correlation_id))
    asked: dict[str, Any] = {
        "reservation": city.doors.reservation.GetReservation(
            reservation_service_pb2.GetReservationRequest(reservation_id=new_id()),
            metadata=metadata,
            timeout=SHORT,
        ),
        "deposit": city.doors.deposit.GetDeposit(
            deposit_service_pb2.GetDepositRequest(deposit_id=new_id()), metadata=metadata, timeout=SHORT
        ),
        "restaurant": city.doors.restaurant.GetRestaurant(
            restaurant_service_pb2.GetRestaurantRequest(restaurant_id=new_id()),
            metadata=metadata,
            timeout=SHORT,
        ),
        "history": city.doors.history.ListTimelineEntries(
            history_service_pb2.ListTimelineEntriesRequest(page_size=-1), metadata=metadata, timeout=SHORT
        ),
    }
    for service, running in asked.items():
        said = await refused(running)
        assert said.trailing["x-correlation-id"] == correlation_id
        ((_, code),) = await calls(mesh, service, correlation_id, 1)
        assert code == said.code.name


async def test_a_dead_letter_keeps_the_id_of_its_request(city: City, mesh: RunningMesh) -> None:
    """Its payload cannot be read; its envelope can."""
    queue, correlation_id = "history.timeline", f"dead-{new_id()}"
    envelope = envelope_pb2.Envelope(
        event_id=new_id(),
        type="dinemesh.reservation.v1.ReservationPlaced",
        source="reservation",
        aggregate_id=new_id(),
        aggregate_version=1,
        correlation_id=correlation_id,
        payload=b"\xff\xff",
    )
    async with on_the_bus(mesh) as bus:
        try:
            await bus.publish_to_queue(envelope.SerializeToString(), queue, event_id=envelope.event_id)

            async def letters() -> list[dead_letters.DeadLetter]:
                return await dead_letters.list_dead(bus, queue)

            (letter,) = await until(letters, bool)
            assert (letter.event_id, letter.correlation_id) == (envelope.event_id, correlation_id)
            (line,) = lines(mesh, "history", correlation_id)
            assert line["message"].startswith("an event cannot be read")
            assert envelope.event_id in line["message"]
        finally:
            async with bus.channel(1) as channel:
                dead = await channel.declare_queue(f"{queue}.dead", passive=True)
                await dead.purge()


@pytest.mark.parametrize("sent", [(), (("x-correlation-id", "two words"),)])
async def test_without_areadable_id_one_is_made_and_told(
    city: City, mesh: RunningMesh, sent: tuple[tuple[str, str], ...]
) -> None:
    alice = city.customer()
    asked = city.doors.reservation.ListReservations(
        reservation_service_pb2.ListReservationsRequest(),
        metadata=(*alice.metadata, *PROXY, *sent),
        timeout=SHORT,
    )
    await asked
    made = str(dict(await asked.trailing_metadata())["x-correlation-id"])
    assert len(made) == 36
    assert await calls(mesh, "reservation", made, 1) == [("ListReservations", "OK")]


async def test_nobody_becomes_somebody_by_the_header_of_a_proxy(city: City) -> None:
    """The token alone says who asks."""
    claimed = (
        ("x-forwarded-client-cert", "By=spiffe://mesh/edge;URI=spiffe://mesh/reservation"),
        ("x-user", "olga"),
        ("x-role", "operator"),
        ("x-jwt-payload", "eyJzdWIiOiJvbGdhIiwicm9sZSI6Im9wZXJhdG9yIn0"),
    )
    said = await refused(
        city.doors.reservation.ListReservations(
            reservation_service_pb2.ListReservationsRequest(), metadata=(*PROXY, *claimed), timeout=SHORT
        )
    )
    assert (said.code, said.reason) == (grpc.StatusCode.UNAUTHENTICATED, "TOKEN_MISSING")


def readable(body: bytes) -> bool:
    """Whether it is an event; other tests leave junk in the log."""
    try:
        envelope_pb2.Envelope.FromString(body)
    except DecodeError:
        return False
    return True
