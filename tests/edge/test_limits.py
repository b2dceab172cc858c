"""How many calls a second the edge takes: of one person, and of all together."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Iterator
from typing import Any

import grpc
import httpx
import pytest

from dinemesh.reservation.v1 import reservation_service_pb2 as reservation
from dinemesh.restaurant.v1 import restaurant_service_pb2 as restaurant
from tests.edge.conftest import CALL_SECONDS, lasting
from tests.edge.rpcs import RPCS
from tests.mesh.people import City, bearer, new_id, until
from tests.support import grpc_web
from tests.support.edge import Config, RunningEdge
from tests.support.json_refusals import JsonRefused, json_refusal
from tests.support.mesh import RunningMesh
from tests.support.refusals import Refused, refused

BURST = 5
A_WHILE = 4 * BURST
"""Calls in a row that are surely too many: far quicker than the bucket fills."""
SLOW: dict[str, Any] = {"customer_rate_per_second": 1, "customer_rate_burst": BURST}
SLOW_FOR_ALL: dict[str, Any] = {"rate_per_second": 1, "rate_burst": BURST}

StartEdge = Callable[..., RunningEdge]
LIST = reservation.ListReservationsRequest()


@pytest.fixture(scope="module")
def lasting_edge(mesh: RunningMesh, tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningEdge]:
    """An edge that takes little of one person; buckets of different people have nothing in common."""
    edge = RunningEdge(mesh, tmp_path_factory.mktemp("lasting-edge"), mutate=lasting, **SLOW)
    edge.start()
    edge.wait_until_healthy()
    yield edge
    edge.stop()


def is_a_limit(said: JsonRefused) -> None:
    assert (said.status, said.reason) == (429, "RATE_LIMITED"), said
    assert said.code == grpc.StatusCode.RESOURCE_EXHAUSTED.value[0]
    assert said.retry_after is not None and 1 <= said.retry_after < 3
    assert int(said.headers["retry-after"]) >= said.retry_after


def is_the_same_limit(said: Refused) -> None:
    assert (said.code, said.reason) == (grpc.StatusCode.RESOURCE_EXHAUSTED, "RATE_LIMITED"), said
    assert said.retry_after is not None and said.retry_after > 0
    assert int(str(said.trailing["retry-after"])) >= said.retry_after
    assert int(str(said.trailing["grpc-retry-pushback-ms"])) >= said.retry_after * 1000


async def exhausted(http: httpx.AsyncClient, path: str, headers: dict[str, str]) -> JsonRefused:
    """Calls at once, more than the burst: so many are let in, the others refused."""
    answers = await asyncio.gather(*(http.get(path, headers=headers) for _ in range(A_WHILE)))
    statuses = [answer.status_code for answer in answers]
    assert BURST <= statuses.count(200) <= 2 * BURST, statuses
    assert set(statuses) == {200, 429}
    refusals = [json_refusal(answer) for answer in answers if answer.status_code == 429]
    # Told the same, they would come again together: ten of them are so once in 8^9.
    assert len({one.retry_after for one in refusals}) > 1
    return refusals[0]


async def test_a_customer_over_the_rate_is_told_when_to_come_again_and_nobody_else_is_touched(
    city: City, own_edge: StartEdge, http: httpx.AsyncClient
) -> None:
    place = await city.place()
    alice, bob = (dict(city.customer().metadata) for _ in range(2))
    edge = own_edge(**SLOW)
    edge.wait_until_healthy()
    slots = f"/v1/restaurants/{place.id}/availableSlots?date=2027-05-01&party_size=2"
    async with httpx.AsyncClient(base_url=edge.url, timeout=CALL_SECONDS) as limited:
        said = await exhausted(limited, "/v1/reservations", alice)
        is_a_limit(said)
        # Somebody else, and who shows no token, come through meanwhile.
        for headers, path in ((bob, "/v1/reservations"), ({}, slots)):
            assert (await limited.get(path, headers=headers)).status_code == 200

        # The time told is enough.
        assert said.retry_after is not None
        await asyncio.sleep(said.retry_after)
        again = await limited.get("/v1/reservations", headers=alice)
        assert again.status_code == 200, again.text
        assert again.json()["reservations"] == []
    # The same number of calls through an edge with another limit: it was this one.
    statuses = [(await http.get("/v1/reservations", headers=alice)).status_code for _ in range(A_WHILE)]
    assert set(statuses) == {200}
    assert edge.stats("limit_of_one")["limit_of_one.http_local_rate_limit.rate_limited"] > 0


async def test_json_and_grpc_of_one_person_draw_on_the_same_limit(
    city: City, mesh: RunningMesh, lasting_edge: RunningEdge
) -> None:
    alice, bob = city.customer(), city.customer()
    list_reservations = RPCS["ListReservations"]
    async with (
        httpx.AsyncClient(base_url=lasting_edge.url, timeout=CALL_SECONDS) as http,
        grpc.aio.insecure_channel(lasting_edge.address) as channel,
    ):
        is_a_limit(await exhausted(http, "/v1/reservations", dict(alice.metadata)))
        is_the_same_limit(await refused(list_reservations.over_grpc(channel, LIST, alice.metadata)))
        # A second token of the same person is the same person.
        second = bearer(mesh.keys.token(alice.name, "customer", seconds=1800))
        assert second != alice.metadata
        is_the_same_limit(await refused(list_reservations.over_grpc(channel, LIST, second)))
        await list_reservations.over_grpc(channel, LIST, bob.metadata)


async def test_a_change_that_the_limit_refuses_is_not_made(city: City, lasting_edge: RunningEdge) -> None:
    place, alice = await city.place(capacity=10), city.customer()
    async with (
        httpx.AsyncClient(base_url=lasting_edge.url, timeout=CALL_SECONDS) as http,
        grpc.aio.insecure_channel(lasting_edge.address) as channel,
    ):
        await exhausted(http, "/v1/reservations", dict(alice.metadata))
        wish = alice.wish(place)
        create = RPCS["CreateReservation"]
        call = create.over_http(wish)
        answer = await http.post(call.path, json=call.body, headers=dict(alice.metadata))
        is_a_limit(json_refusal(answer))
        is_the_same_limit(await refused(create.over_grpc(channel, wish, alice.metadata)))
        assert await alice.reservations() == []
        await place.sees_seats(0, 10)

        # Repeated with the same request_id once it is let in again, it books.
        booked = await until(
            lambda: http.post(call.path, json=call.body, headers=dict(alice.metadata)),
            lambda answer: answer.status_code == 200,
        )
        (mine,) = await alice.reservations()
        assert booked.json()["reservation"]["reservationId"] == mine.reservation_id


async def test_the_limit_of_all_holds_for_everybody_known_or_not(city: City, own_edge: StartEdge) -> None:
    edge = own_edge(mutate=lasting, **SLOW_FOR_ALL)
    edge.wait_until_healthy()
    alice = city.customer()
    async with (
        httpx.AsyncClient(base_url=edge.url, timeout=CALL_SECONDS) as http,
        grpc.aio.insecure_channel(edge.address) as channel,
    ):
        is_a_limit(await exhausted(http, "/v1/restaurants", {}))
        # Junk draws on it too, before anything is made of the token.
        junk = await http.get("/v1/reservations", headers={"authorization": f"Bearer {new_id()}"})
        is_a_limit(json_refusal(junk))
        is_a_limit(json_refusal(await http.get("/v1/reservations", headers=dict(alice.metadata))))
        request = restaurant.ListRestaurantsRequest()
        is_the_same_limit(await refused(RPCS["ListRestaurants"].over_grpc(channel, request)))
        # Whoever looks after the edge is not limited.
        for path in ("/livez", "/healthz", "/healthz/deposit"):
            for _ in range(A_WHILE):
                assert (await http.get(path)).status_code == 200

        await until(lambda: http.get("/v1/restaurants"), lambda answer: answer.status_code == 200)


PLACES = 100
"""Of calls to one service, where there are 4,096 as it is configured."""


def few_places(config: Config) -> None:
    for cluster in config["static_resources"]["clusters"]:
        for threshold in cluster.get("circuit_breakers", {}).get("thresholds", ()):
            threshold["max_requests"] = PLACES


async def answer_without_a_message(edge: RunningEdge, source: str, body: bytes) -> tuple[bytes, float]:
    """What a call in gRPC-Web of anybody is told that ends so, and how many seconds later."""
    begun = time.monotonic()
    reader, writer = await asyncio.open_connection("127.0.0.1", edge.port, local_addr=(source, 0))
    head = (
        f"POST {RPCS['ListRestaurants'].path} HTTP/1.1\r\nhost: edge\r\ngrpc-timeout: 30S\r\n"
        f"content-type: application/grpc-web+proto\r\ncontent-length: {len(body)}\r\n\r\n"
    )
    writer.write(head.encode() + body)
    try:
        return await reader.readuntil(b"\r\n\r\n"), time.monotonic() - begun
    finally:
        writer.close()


async def test_calls_without_a_message_take_no_places_from_others(own_edge: StartEdge) -> None:
    """Two addresses end twice as many calls without one as there are places."""
    edge = own_edge(mutate=few_places)
    edge.wait_until_healthy()
    bodies = (b"", b"\0\0\0", grpc_web.frame(b"x" * 10)[:8])
    attack = []
    async with httpx.AsyncClient(base_url=edge.url, timeout=CALL_SECONDS) as http:
        for number in range(2 * PLACES):
            source = f"127.0.0.{2 + number % 2}"
            call = answer_without_a_message(edge, source, bodies[number % len(bodies)])
            attack.append(asyncio.ensure_future(call))
            if number % 10 == 9:
                answer = await http.get("/v1/restaurants")
                assert answer.status_code == 200, f"another is refused: {answer.text}"
    for said, seconds in await asyncio.gather(*attack):
        assert b"grpc-status: 3\r\n" in said and b"without its message" in said
        assert seconds < 2
