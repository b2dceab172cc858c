"""HTTP/JSON and gRPC, on the same port of the edge."""

from __future__ import annotations

import httpx

from dinemesh.reservation.v1 import reservation_service_pb2
from tests.mesh.people import SHORT, City, Doors, bearer, new_id
from tests.support.mesh import RunningMesh


async def test_a_table_is_booked_by_json_and_read_by_grpc_and_the_other_way_round(
    city: City, doors: Doors, http: httpx.AsyncClient, mesh: RunningMesh
) -> None:
    place = await city.place()
    token = mesh.token(name := new_id(), "customer")
    listed = await http.get("/v1/restaurants", params={"page_size": 1000})
    assert listed.status_code == 200
    assert place.id in [one["restaurantId"] for one in listed.json()["restaurants"]]

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
        headers={"authorization": f"Bearer {token}"},
    )
    assert answer.status_code == 200, answer.text
    booked = answer.json()["reservation"]
    read = await doors.reservation.GetReservation(
        reservation_service_pb2.GetReservationRequest(reservation_id=booked["reservationId"]),
        metadata=bearer(token),
        timeout=SHORT,
    )
    assert read.reservation.customer_id == name
    assert (read.reservation.reservation_id, read.reservation.revision, read.reservation.party_size) == (
        booked["reservationId"],
        booked["revision"],
        2,
    )

    made = await doors.reservation.CreateReservation(
        city.customer(name).wish(place, slot=1), metadata=bearer(token), timeout=SHORT
    )
    found = await http.get(
        f"/v1/reservations/{made.reservation.reservation_id}", headers={"authorization": f"Bearer {token}"}
    )
    assert found.status_code == 200, found.text
    assert found.json()["reservation"]["partySize"] == 2


async def test_nobody_books_without_a_token(http: httpx.AsyncClient) -> None:
    answer = await http.post("/v1/reservations", json={"requestId": new_id()})
    assert answer.status_code == 401
