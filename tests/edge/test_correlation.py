"""One id from the client of the edge through its answer, both kinds of log, the events and the provider."""

from __future__ import annotations

import re
from typing import Any

import httpx
import pytest

from dinemesh.event.v1 import envelope_pb2
from dinemesh.reservation.v1 import reservation_pb2, reservation_service_pb2
from tests.mesh.people import CONFIRMED, SHORT, City, Doors, new_id
from tests.mesh.test_correlation import TRACE, calls, readable
from tests.mesh.test_events import on_the_bus, whole_log
from tests.support.edge import RunningEdge
from tests.support.json_refusals import json_refusal
from tests.support.mesh import RunningMesh

MADE = re.compile(r"[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}")


def authorization(mesh: RunningMesh, sub: str) -> dict[str, str]:
    return {"authorization": f"Bearer {mesh.token(sub, 'customer')}"}


async def test_a_booking_in_json_is_followed_by_the_clients_id_everywhere(
    city: City, edge: RunningEdge, http: httpx.AsyncClient, mesh: RunningMesh
) -> None:
    place, alice = await city.place(), city.customer()
    sent = f"order/{new_id()}"
    answer = await http.post(
        "/v1/reservations",
        json={
            "requestId": new_id(),
            "restaurantId": place.id,
            "dineTime": place.slots[0].isoformat(),
            "partySize": 2,
            "policyEtag": place.policy_etag,
            "paymentToken": "tok_visa",
        },
        headers={
            **authorization(mesh, alice.name),
            "x-correlation-id": sent,
            "traceparent": f"00-{TRACE}-00f067aa0ba902b7-01",
            "x-request-id": "of-the-client",
            "x-forwarded-for": "203.0.113.7",
        },
    )
    assert answer.status_code == 200, answer.text
    assert answer.headers.get_list("x-correlation-id") == [sent]
    reservation_id = answer.json()["reservation"]["reservationId"]
    booked = reservation_pb2.Reservation(reservation_id=reservation_id)
    await alice.sees(booked, CONFIRMED)

    line = edge.logged(correlation_id=sent)
    assert (line["path"], line["http_code"], line["grpc_status"]) == ("/v1/reservations", 200, "OK")
    assert await calls(mesh, "reservation", sent, 1) == [("CreateReservation", "OK")]
    assert await calls(mesh, "deposit", sent, 1) == [("CreateDeposit", "OK")]
    assert await calls(mesh, "sandbox", sent, 1) == [("CreateCharge", "OK")]
    async with on_the_bus(mesh) as bus:
        events = map(envelope_pb2.Envelope.FromString, filter(readable, await whole_log(bus)))
        mine = [event for event in events if event.reservation_id == reservation_id]
    assert {event.source for event in mine} == {"reservation", "deposit", "restaurant"}
    assert {event.correlation_id for event in mine} == {sent}
    assert TRACE in {event.traceparent.split("-")[1] for event in mine}


async def test_the_id_of_a_grpc_client_comes_back_in_its_answer(
    city: City, doors: Doors, edge: RunningEdge, mesh: RunningMesh
) -> None:
    sent = f"native-{new_id()}"
    asked = doors.reservation.ListReservations(
        reservation_service_pb2.ListReservationsRequest(),
        metadata=(*city.customer().metadata, ("x-correlation-id", sent)),
        timeout=SHORT,
    )
    await asked
    told = [*(await asked.initial_metadata()), *(await asked.trailing_metadata())]
    assert {value for key, value in told if key == "x-correlation-id"} == {sent}
    assert edge.logged(correlation_id=sent)["grpc_status"] == "OK"
    assert await calls(mesh, "reservation", sent, 1) == [("ListReservations", "OK")]


@pytest.mark.parametrize(
    "sent",
    [
        [],
        [""],
        ["two words"],
        ["x" * 129],
        ["a,b"],
        ["first", "second"],
        ['"}{"level":"ERROR'],
        ["\u00fcml\u00e4ut"],
    ],
    ids=["none", "empty", "spaces", "long", "list", "twice", "json", "not ASCII"],
)
async def test_where_the_client_gives_no_readable_id_one_is_made_and_is_the_same_everywhere(
    edge: RunningEdge, http: httpx.AsyncClient, mesh: RunningMesh, sent: list[str]
) -> None:
    headers: list[tuple[str, Any]] = [("x-correlation-id", one.encode()) for one in sent]
    headers += [*authorization(mesh, "alice").items(), ("x-request-id", "of-the-client")]
    answer = await http.get("/v1/reservations", headers=headers)
    assert answer.status_code == 200, answer.text
    (made,) = answer.headers.get_list("x-correlation-id")
    assert MADE.fullmatch(made)
    assert edge.logged(correlation_id=made)["http_code"] == 200
    assert await calls(mesh, "reservation", made, 1) == [("ListReservations", "OK")]


@pytest.mark.parametrize(
    ("path", "status"),
    [("/v1/reservations", 401), (f"/v1/reservations/{new_id()}", 404), ("/v1/nothing", 404)],
    ids=["by the edge", "by a service", "no such path"],
)
async def test_a_refusal_carries_the_id(
    edge: RunningEdge, http: httpx.AsyncClient, mesh: RunningMesh, path: str, status: int
) -> None:
    sent = f"refused-{new_id()}"
    headers = {"x-correlation-id": sent} | (authorization(mesh, "alice") if status == 404 else {})
    answer = await http.get(path, headers=headers)
    assert json_refusal(answer).status == status
    assert answer.headers.get_list("x-correlation-id") == [sent]
    assert edge.logged(correlation_id=sent)["http_code"] == status


async def test_no_log_holds_a_token(edge: RunningEdge, http: httpx.AsyncClient, mesh: RunningMesh) -> None:
    token = mesh.token("alice", "customer")
    for headers in ({"authorization": f"Bearer {token}"}, {"authorization": token}, {"x-token": token}):
        sent = f"token-{new_id()}"
        await http.get("/v1/reservations", headers={**headers, "x-correlation-id": sent})
        edge.logged(correlation_id=sent)
    await http.get("/v1/reservations", params={"access_token": token})
    signature = token.rpartition(".")[2]
    for log in (edge.log, *(part.log for part in mesh.parts.values())):
        assert signature not in log.read_text(), log
