"""Streams through the edge: one JSON object a line, or server-sent events.

Live, and with an end that can be told from a break.
"""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from typing import Any

import httpx
import pytest

from tests.mesh.people import PATIENCE, City, Customer, Reservation
from tests.support.edge import RunningEdge
from tests.support.json_refusals import read_refusal
from tests.support.mesh import RunningMesh

SOON = 5.0
"""Seconds for a change to be told; it is a tenth of one, and the next heartbeat would come after two."""


class Watch:
    """An open stream, message by message."""

    def __init__(self, response: httpx.Response, messages: AsyncIterator[dict[str, Any]]) -> None:
        self.response = response
        self._messages = messages

    async def next(self, seconds: float = PATIENCE) -> dict[str, Any] | None:
        """The next message; None when the stream ends as HTTP knows it."""
        async with asyncio.timeout(seconds):
            return await anext(self._messages, None)

    async def next_news(self, seconds: float = PATIENCE) -> dict[str, Any] | None:
        """The next message that is no heartbeat."""
        async with asyncio.timeout(seconds):
            while True:
                message = await self.next(seconds)
                if message is None or "heartbeat" not in message:
                    return message

    async def rest(self) -> list[dict[str, Any]]:
        """What still comes until the end, however that looks."""
        found: list[dict[str, Any]] = []
        try:
            while (message := await self.next()) is not None:
                found.append(message)
        except httpx.RemoteProtocolError:
            pass  # cut off in the middle
        return found


async def lines(response: httpx.Response) -> AsyncIterator[dict[str, Any]]:
    async for line in response.aiter_lines():
        yield json.loads(line)


async def events(response: httpx.Response) -> AsyncIterator[dict[str, Any]]:
    """Server-sent events, as the HTML standard has them: a blank line ends each."""
    data = ""
    async for line in response.aiter_lines():
        if line.startswith("data:"):
            data += line.removeprefix("data:").strip()
        elif not line and data:
            yield json.loads(data)
            data = ""
        else:
            assert not line, f"this belongs into no event: {line!r}"


KINDS: dict[str, tuple[str, str, Callable[[httpx.Response], AsyncIterator[dict[str, Any]]]]] = {
    "lines": ("*/*", "application/x-ndjson", lines),
    "events": ("text/event-stream", "text/event-stream", events),
}
"""What a client accepts, what it gets, and how that is read."""

both_kinds = pytest.mark.parametrize("kind", KINDS)


@asynccontextmanager
async def watching(
    http: httpx.AsyncClient, mesh: RunningMesh, sub: str, path: str, kind: str, **claims: Any
) -> AsyncIterator[Watch]:
    accept, content_type, read = KINDS[kind]
    role = claims.pop("role", "customer")
    headers = {"authorization": f"Bearer {mesh.keys.token(sub, role, **claims)}", "accept": accept}
    async with http.stream("GET", path, headers=headers) as response:
        assert response.status_code == 200
        assert response.headers["content-type"] == content_type
        assert response.headers["cache-control"] == "no-store"
        yield Watch(response, read(response))


def of(reservation: Reservation) -> str:
    return f"/v1/reservations/{reservation.reservation_id}:watch"


async def cancel(
    http: httpx.AsyncClient, mesh: RunningMesh, alice: Customer, reservation: Reservation
) -> None:
    answer = await http.post(
        f"/v1/reservations/{reservation.reservation_id}:cancel",
        headers={"authorization": f"Bearer {mesh.token(alice.name, 'customer')}"},
    )
    assert answer.status_code == 200, answer.text


@both_kinds
async def test_a_reservation_is_watched_from_its_booking_to_its_end(
    city: City, http: httpx.AsyncClient, mesh: RunningMesh, kind: str
) -> None:
    alice = city.customer()
    booked = await alice.book(await city.place())
    async with watching(http, mesh, alice.name, of(booked), kind) as watch:
        first = await watch.next_news(SOON)
        assert first is not None and first["reservation"]["state"] == "RESERVATION_STATE_CONFIRMED"
        # The first one has come, so nothing on the way waits for more. Now something happens.
        await cancel(http, mesh, alice, booked)
        seen = []
        while (message := await watch.next_news()) is not None:
            seen.append(message)
        states = [one["reservation"]["state"] for one in seen[:-1]]
        assert states and states[-1] == "RESERVATION_STATE_CANCELLED"
        assert seen[-1]["end"] == {"reason": "END_REASON_FINISHED"}


@both_kinds
async def test_a_change_is_told_at_once(
    city: City, http: httpx.AsyncClient, mesh: RunningMesh, kind: str
) -> None:
    alice = city.customer()
    booked = await alice.book(await city.place())
    async with watching(http, mesh, alice.name, of(booked), kind) as watch:
        await watch.next_news(SOON)
        await cancel(http, mesh, alice, booked)
        told = await watch.next_news(SOON)
        assert told is not None and told["reservation"]["state"] == "RESERVATION_STATE_CANCELLED"


@both_kinds
async def test_a_quiet_watch_says_that_it_is_alive(
    city: City, http: httpx.AsyncClient, mesh: RunningMesh, kind: str
) -> None:
    async with watching(http, mesh, city.customer().name, "/v1/timeline:watch", kind) as watch:
        for _ in range(2):
            message = await watch.next()
            assert message is not None
            assert message["heartbeat"]["time"].endswith("Z")


async def test_staff_watch_the_bookings_of_their_restaurant(
    city: City, http: httpx.AsyncClient, mesh: RunningMesh
) -> None:
    place, alice = await city.place(), city.customer()
    path = f"/v1/restaurants/{place.id}/bookings:watch"
    async with watching(http, mesh, "bob", path, "lines", role="staff", restaurant_id=place.id) as watch:
        booked = await alice.reserve(place)
        message = await watch.next_news()
        assert message is not None
        assert message["booking"]["reservationId"] == booked.reservation_id


@both_kinds
async def test_a_watch_ends_with_its_token(http: httpx.AsyncClient, mesh: RunningMesh, kind: str) -> None:
    async with watching(http, mesh, "carol", "/v1/timeline:watch", kind, seconds=3) as watch:
        assert (await watch.rest())[-1]["end"] == {"reason": "END_REASON_EXPIRED"}


def bring_back(mesh: RunningMesh, edge: RunningEdge) -> None:
    """Starts history again, and waits until the edge has seen it.

    One that has not noticed the end yet says that all is well, and finds history ill a moment later.
    """
    mesh["history"].start()
    checks = "cluster.history.health_check.success"
    enough = edge.stats(checks)[checks] + 2
    end = time.monotonic() + PATIENCE
    while edge.stats(checks)[checks] < enough:
        assert time.monotonic() < end, "the edge does not see that history is back"
        time.sleep(0.05)
    edge.wait_until_healthy()


async def test_a_service_that_stops_says_goodbye(
    http: httpx.AsyncClient, mesh: RunningMesh, edge: RunningEdge
) -> None:
    async with (
        watching(http, mesh, "dave", "/v1/timeline:watch", "lines") as of_lines,
        watching(http, mesh, "dave", "/v1/timeline:watch", "events") as of_events,
    ):
        watches = (of_lines, of_events)
        for watch in watches:
            await watch.next()
        mesh["history"].stop()
        try:
            for watch in watches:
                assert (await watch.rest())[-1]["end"] == {"reason": "END_REASON_SERVER_STOPPING"}
        finally:
            bring_back(mesh, edge)


async def test_a_service_that_dies_does_not(
    http: httpx.AsyncClient, mesh: RunningMesh, edge: RunningEdge
) -> None:
    """A client that has seen no `end` knows that the stream is broken, and asks again."""
    async with (
        watching(http, mesh, "erin", "/v1/timeline:watch", "lines") as of_lines,
        watching(http, mesh, "erin", "/v1/timeline:watch", "events") as of_events,
    ):
        watches = (of_lines, of_events)
        for watch in watches:
            await watch.next()
        pid = mesh["history"].pid
        mesh["history"].kill()
        try:
            for watch in watches:
                assert [one for one in await watch.rest() if "end" in one] == []
        finally:
            bring_back(mesh, edge)
        assert mesh["history"].pid != pid
    for kind in KINDS:
        async with watching(http, mesh, "erin", "/v1/timeline:watch", kind) as again:
            message = await again.next()
            assert message is not None and "heartbeat" in message


@both_kinds
@pytest.mark.parametrize(
    ("role", "path", "status", "reason"),
    [
        (None, "/v1/timeline:watch", 401, "TOKEN_MISSING"),
        ("service", "/v1/timeline:watch", 403, "PERMISSION_DENIED"),
        ("staff", "/v1/timeline:watch", 403, "PERMISSION_DENIED"),
        ("customer", "/v1/reservations/x:watch", 400, "INVALID_ARGUMENT"),
        (
            "customer",
            "/v1/reservations/11111111-1111-4111-8111-111111111111:watch",
            404,
            "NOT_FOUND",
        ),
    ],
)
async def test_a_watch_that_is_refused_is_no_stream(
    http: httpx.AsyncClient,
    mesh: RunningMesh,
    kind: str,
    role: str | None,
    path: str,
    status: int,
    reason: str,
) -> None:
    headers = {"accept": KINDS[kind][0]}
    if role is not None:
        headers["authorization"] = f"Bearer {mesh.token('alice', role, 'somewhere')}"
    answer = await http.get(path, headers=headers)
    assert answer.headers["content-type"] == "application/json"
    said = read_refusal(answer.status_code, dict(answer.headers), answer.text)
    assert (said.status, said.reason) == (status, reason)


async def test_one_customer_holds_only_so_many_watches_and_nobody_else_is_touched(
    http: httpx.AsyncClient, mesh: RunningMesh
) -> None:
    """A rate cannot see to it: each watch is one call, and stays for an hour."""
    path, most = "/v1/timeline:watch", 20
    async with AsyncExitStack() as held:

        async def opened(sub: str) -> Watch:
            return await held.enter_async_context(watching(http, mesh, sub, path, "lines"))

        watches = await asyncio.gather(*(opened("frank") for _ in range(most)))
        for accept, _, _ in KINDS.values():
            headers = {"authorization": f"Bearer {mesh.token('frank', 'customer')}", "accept": accept}
            async with asyncio.timeout(SOON):  # one that is let in would not end
                answer = await http.get(path, headers=headers)
            said = read_refusal(answer.status_code, dict(answer.headers), answer.text)
            assert (said.status, said.reason) == (429, "TRY_AGAIN_LATER")
            assert said.retry_after is not None and said.retry_after > 0

        for watch in (await opened("grace"), *watches):
            message = await watch.next()
            assert message is not None and "heartbeat" in message
