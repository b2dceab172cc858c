"""The longest answers, the longest headers, hundreds at once: what fits arrives, through every layer."""

from __future__ import annotations

import asyncio
import datetime as dt
from collections import Counter

import grpc
import httpx
import pytest

from dinemesh.reservation.v1 import reservation_service_pb2
from tests.mesh.people import City, Doors, new_id, policy
from tests.support.edge import RunningEdge
from tests.support.json_refusals import json_refusal
from tests.support.mesh import RunningMesh
from tests.support.refusals import refused

DAYS, TIMES = 208, 48
"""9,984 slots; a call may open 10,000."""
HEADERS = 11_000
"""With a token, what clients send anyway and what the edge adds: just below the edge's limit of 12 kB."""


async def test_a_season_of_slots_is_opened_by_one_call_and_told_in_json(
    city: City, http: httpx.AsyncClient, mesh: RunningMesh
) -> None:
    place = await city.place(times=[], time_zone="UTC", terms=policy(interval_seconds=1800))
    first = dt.datetime.now(place.zone).date() + dt.timedelta(days=2)
    last = first + dt.timedelta(days=DAYS - 1)
    answer = await http.post(
        f"/v1/restaurants/{place.id}/slots:open",
        json={
            "firstDate": {"year": first.year, "month": first.month, "day": first.day},
            "lastDate": {"year": last.year, "month": last.month, "day": last.day},
            "times": [{"hours": n // 2, "minutes": n % 2 * 30} for n in range(TIMES)],
            "capacity": 100_000,
        },
        headers={"authorization": f"Bearer {mesh.token('olga', 'operator')}"},
    )
    assert answer.status_code == 200, answer.text[:1000]
    assert len(answer.json()["slots"]) == DAYS * TIMES
    assert len(answer.content) > 500_000


async def test_headers_just_below_the_limit_reach_the_service(
    city: City, doors: Doors, http: httpx.AsyncClient, mesh: RunningMesh
) -> None:
    """gRPC counts 32 bytes more for each header than HTTP does, and refuses in its own words."""
    alice = city.customer()
    for count in (1, 40):
        padding = {f"x-padding-{n}": "y" * (HEADERS // count - 16) for n in range(count)}
        read = await http.get(f"/v1/reservations/{new_id()}", headers=dict(alice.metadata) | padding)
        assert json_refusal(read).reason == "NOT_FOUND", f"{count} headers"
        said = await refused(
            doors.reservation.GetReservation(
                reservation_service_pb2.GetReservationRequest(reservation_id=new_id()),
                metadata=(*alice.metadata, *padding.items()),
                timeout=5,
            )
        )
        assert (said.code, said.reason) == (grpc.StatusCode.NOT_FOUND, "NOT_FOUND"), f"{count} headers"


async def test_headers_above_the_limit_are_refused_by_the_edge(http: httpx.AsyncClient) -> None:
    for padding in ({"x-padding": "y" * 13_000}, {f"x-padding-{n}": "y" for n in range(80)}):
        answer = await http.get("/v1/restaurants", headers=padding)
        said = json_refusal(answer)
        assert (said.status, said.reason) == (431, "HEADERS_TOO_LARGE")


@pytest.mark.parametrize("count", [300])
async def test_hundreds_at_once_are_all_answered(
    city: City, doors: Doors, edge: RunningEdge, count: int
) -> None:
    """More than one connection to the edge carries (100), and than one service lets wait for one another."""
    alice = city.customer()
    place = await city.place()
    booked = await alice.reserve(place)

    async def by_json(client: httpx.AsyncClient) -> str:
        answer = await client.get(f"/v1/reservations/{booked.reservation_id}")
        return str(answer.status_code)

    async def by_grpc() -> str:
        try:
            await doors.reservation.GetReservation(
                reservation_service_pb2.GetReservationRequest(reservation_id=booked.reservation_id),
                metadata=alice.metadata,
                timeout=30,
            )
        except grpc.aio.AioRpcError as error:
            return error.code().name
        return "OK"

    limits = httpx.Limits(max_connections=count)
    async with httpx.AsyncClient(
        base_url=edge.url, headers=dict(alice.metadata), timeout=30, limits=limits
    ) as client:
        found = Counter(await asyncio.gather(*(by_json(client) for _ in range(count))))
    assert found == {"200": count}
    assert Counter(await asyncio.gather(*(by_grpc() for _ in range(count)))) == {"OK": count}
