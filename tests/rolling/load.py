"""People who use the mesh through the edge all the time, by JSON and by gRPC, and count what fails them.

Nobody repeats anything: one unary call that is not answered as it should is one that failed.
"""

from __future__ import annotations

import asyncio
import datetime as dt
import time
from collections import Counter
from collections.abc import AsyncIterator, Sequence
from contextlib import suppress
from typing import Any, Protocol

import grpc
import httpx
from google.protobuf import json_format
from google.protobuf.message import Message
from google.type.date_pb2 import Date
from google.type.timeofday_pb2 import TimeOfDay

from dinemesh.deposit.v1 import deposit_service_pb2
from dinemesh.history.v1 import history_service_pb2
from dinemesh.reservation.v1 import reservation_service_pb2
from dinemesh.restaurant.v1 import restaurant_service_pb2
from dinemesh.watch.v1 import watch_pb2
from tests.edge.rpcs import RPCS, Rpc
from tests.mesh.people import CONFIRMED, Place, bearer, new_id, timestamp
from tests.support.mesh import RunningMesh

CALL_SECONDS = 10.0
"""What the edge gives a call anyhow."""
CONFIRMED_SECONDS = 45.0
"""Above the lease of an event that an instance had claimed when it was killed."""
PAUSE = 0.01
STOPPING = "SERVER_STOPPING"
# A quick card, and one that has a charge in flight whenever something stops.
CARDS = ("tok_visa", "tok_slow_400")


class NoAnswer(Exception):
    """A call that failed, as its client saw it."""


class Way(Protocol):
    """How a client speaks to the edge."""

    name: str

    async def call(self, rpc: Rpc, request: Message, token: str) -> Any:
        """The answer; raises NoAnswer."""

    def watch(self, rpc: Rpc, request: Message, token: str) -> AsyncIterator[Any]:
        """The messages of a stream to its end; raises NoAnswer."""

    async def close(self) -> None: ...


class OverGrpc:
    """One channel for everybody, as a web application would have it."""

    name = "gRPC"

    def __init__(self, address: str) -> None:
        self._channel = grpc.aio.insecure_channel(address)

    async def call(self, rpc: Rpc, request: Message, token: str) -> Any:
        try:
            return await rpc.over_grpc(self._channel, request, bearer(token), CALL_SECONDS)
        except grpc.aio.AioRpcError as error:
            raise NoAnswer(f"{error.code().name}: {error.details()}") from None

    async def watch(self, rpc: Rpc, request: Message, token: str) -> AsyncIterator[Any]:
        method: Any = self._channel.unary_stream(
            rpc.path,
            request_serializer=rpc.request.SerializeToString,
            response_deserializer=rpc.response.FromString,
        )
        try:
            async for message in method(request, metadata=bearer(token)):
                yield message
        except grpc.aio.AioRpcError as error:
            raise NoAnswer(f"{error.code().name}: {error.details()}") from None

    async def close(self) -> None:
        await self._channel.close()


class OverJson:
    """Connections of HTTP/1.1 that are kept."""

    name = "JSON"

    def __init__(self, url: str) -> None:
        self._http = httpx.AsyncClient(
            base_url=url, timeout=CALL_SECONDS + 5, limits=httpx.Limits(max_connections=100)
        )

    async def call(self, rpc: Rpc, request: Message, token: str) -> Any:
        asked = rpc.over_http(request)
        try:
            said = await self._http.request(
                asked.verb, asked.path, params=asked.query, json=asked.body, headers=_authorized(token)
            )
        except httpx.HTTPError as error:
            raise NoAnswer(repr(error)) from None
        if said.status_code != httpx.codes.OK:
            raise NoAnswer(f"{said.status_code} {said.text.strip()}")
        return json_format.Parse(said.text, rpc.response())

    async def watch(self, rpc: Rpc, request: Message, token: str) -> AsyncIterator[Any]:
        asked = rpc.over_http(request)
        try:
            async with self._http.stream(
                asked.verb, asked.path, params=asked.query, headers=_authorized(token), timeout=60
            ) as said:
                async for line in said.aiter_lines():
                    if said.status_code != httpx.codes.OK:
                        raise NoAnswer(f"{said.status_code} {line}")
                    yield json_format.Parse(line, rpc.response())
        except (httpx.HTTPError, json_format.ParseError) as error:
            raise NoAnswer(repr(error)) from None

    async def close(self) -> None:
        await self._http.aclose()


def _authorized(token: str) -> dict[str, str]:
    return dict(bearer(token))


class Load:
    """Visitors and watchers on each way. `answered` and `failed` grow until it leaves."""

    def __init__(self, mesh: RunningMesh, place: Place, ways: Sequence[Way]) -> None:
        self._mesh = mesh
        self._place = place
        self._ways = ways
        self.answered: Counter[str] = Counter()
        """Unary calls by way and by RPC."""
        self.in_flight: Counter[str] = Counter()
        """Unary calls by service."""
        self.failed: list[str] = []
        self.ends: Counter[str] = Counter()
        """How watches ended, by `RPC reason`."""
        self.broken: list[str] = []
        """Watches that ended in another way than by their terminal message."""
        self._leaving = asyncio.Event()
        self._visitors: list[asyncio.Task[None]] = []
        self._watchers: list[asyncio.Task[None]] = []
        self._began = time.monotonic()

    @property
    def calls(self) -> int:
        """Unary calls that were answered."""
        return sum(self.answered[way.name] for way in self._ways)

    async def begin(self, visitors: int, watchers: int) -> None:
        """So many of each on each way; returns when every watch has said something."""
        heard: list[asyncio.Event] = []
        for way in self._ways:
            for number in range(visitors):
                visiting = self._visit(way, f"{way.name}-visitor-{number}", CARDS[number % len(CARDS)])
                self._visitors.append(asyncio.create_task(visiting))
            self._visitors.append(asyncio.create_task(self._serve(way)))
            guest = self._mesh.token(f"{way.name}-watcher-0", "customer")
            self._visitors.append(asyncio.create_task(self._look(way, guest)))
            for number in range(watchers):
                token = self._mesh.token(f"{way.name}-watcher-{number}", "customer")
                booked = await self._book(way, token, CARDS[0])
                watched = reservation_service_pb2.WatchReservationRequest(reservation_id=booked)
                bookings = restaurant_service_pb2.WatchBookingsRequest(restaurant_id=self._place.id)
                for name, request, bearer_of in (
                    ("WatchReservation", watched, token),
                    ("WatchTimeline", history_service_pb2.WatchTimelineRequest(), token),
                    ("WatchBookings", bookings, self._staff),
                ):
                    event = asyncio.Event()
                    heard.append(event)
                    watching = self._watch(way, name, request, bearer_of, event)
                    self._watchers.append(asyncio.create_task(watching))
        async with asyncio.timeout(CALL_SECONDS):
            for event in heard:
                await event.wait()

    async def leave(self) -> None:
        """Everybody finishes what they are at; watches are hung up."""
        self._leaving.set()
        try:
            await asyncio.gather(*self._visitors)
        finally:
            for one in (*self._visitors, *self._watchers):
                one.cancel()
            await asyncio.gather(*self._visitors, *self._watchers, return_exceptions=True)

    async def call(self, way: Way, name: str, request: Message, token: str) -> Any:
        """One unary call, counted; raises NoAnswer if it failed."""
        rpc = RPCS[name]
        self.in_flight[rpc.service] += 1
        try:
            answer = await way.call(rpc, request, token)
        except NoAnswer as error:
            self.failed.append(f"after {time.monotonic() - self._began:.2f} s: {way.name} {name}: {error}")
            raise
        finally:
            self.in_flight[rpc.service] -= 1
        self.answered[way.name] += 1
        self.answered[name] += 1
        return answer

    @property
    def _staff(self) -> str:
        return self._mesh.token(f"staff of {self._place.id}", "staff", self._place.id)

    async def _visit(self, way: Way, who: str, card: str) -> None:
        token = self._mesh.token(who, "customer")
        while not self._leaving.is_set():
            try:
                await self._one_visit(way, token, card)
            except NoAnswer:
                await asyncio.sleep(PAUSE)  # it is counted; the next visit begins anew

    async def _one_visit(self, way: Way, token: str, card: str) -> None:
        """A table is looked for, booked, changed and cancelled, and everything is looked at."""
        day = self._place.slots[0].astimezone(self._place.zone).date().isoformat()
        slots = reservation_service_pb2.ListAvailableSlotsRequest(
            restaurant_id=self._place.id, date=day, party_size=2
        )
        await self.call(way, "ListAvailableSlots", slots, token)
        booked = await self._book(way, token, card)
        read = reservation_service_pb2.GetReservationRequest(reservation_id=booked)
        async with asyncio.timeout(CONFIRMED_SECONDS):
            while True:
                seen = (await self.call(way, "GetReservation", read, token)).reservation
                if seen.state == CONFIRMED:
                    break
                await asyncio.sleep(PAUSE)
        deposits = deposit_service_pb2.ListDepositsRequest(reservation_id=booked)
        listed = await self.call(way, "ListDeposits", deposits, token)
        one = deposit_service_pb2.GetDepositRequest(deposit_id=listed.deposits[0].deposit_id)
        await self.call(way, "GetDeposit", one, token)
        timeline = history_service_pb2.ListTimelineEntriesRequest(page_size=20)
        await self.call(way, "ListTimelineEntries", timeline, token)
        smaller = reservation_service_pb2.ModifyReservationRequest(
            reservation_id=booked, request_id=new_id(), etag=seen.etag, party_size=1
        )
        await self.call(way, "ModifyReservation", smaller, token)
        mine = reservation_service_pb2.ListReservationsRequest(page_size=5)
        await self.call(way, "ListReservations", mine, token)
        cancel = reservation_service_pb2.CancelReservationRequest(reservation_id=booked)
        await self.call(way, "CancelReservation", cancel, token)

    async def _book(self, way: Way, token: str, card: str) -> str:
        wish = reservation_service_pb2.CreateReservationRequest(
            request_id=new_id(),
            restaurant_id=self._place.id,
            dine_time=timestamp(self._place.slots[0]),
            party_size=2,
            policy_etag=self._place.policy_etag,
            payment_token=card,
        )
        answer = await self.call(way, "CreateReservation", wish, token)
        return str(answer.reservation.reservation_id)

    async def _serve(self, way: Way) -> None:
        """The restaurant's staff: look at it and its bookings, and open slots that are open, as often as one
        restaurant may."""
        local = self._place.slots[-1].astimezone(self._place.zone)
        day = Date(year=local.year, month=local.month, day=local.day)
        opening = restaurant_service_pb2.OpenSlotsRequest(
            restaurant_id=self._place.id,
            first_date=day,
            last_date=day,
            times=[TimeOfDay(hours=local.hour, minutes=local.minute)],
            capacity=1000,
        )
        looks: list[tuple[str, Message]] = [
            ("GetRestaurant", restaurant_service_pb2.GetRestaurantRequest(restaurant_id=self._place.id)),
            ("ListRestaurants", restaurant_service_pb2.ListRestaurantsRequest(page_size=5)),
            (
                "ListBookings",
                restaurant_service_pb2.ListBookingsRequest(restaurant_id=self._place.id, page_size=20),
            ),
        ]
        await self._repeat(way, [*looks * 5, ("OpenSlots", opening)], self._staff)

    async def _look(self, way: Way, token: str) -> None:
        """A guest who cannot wait: looks at deposits and timeline again and again."""
        calls: list[tuple[str, Message]] = [
            ("ListDeposits", deposit_service_pb2.ListDepositsRequest(page_size=5)),
            ("ListTimelineEntries", history_service_pb2.ListTimelineEntriesRequest(page_size=5)),
        ]
        await self._repeat(way, calls, token)

    async def _repeat(self, way: Way, calls: Sequence[tuple[str, Message]], token: str) -> None:
        while not self._leaving.is_set():
            for name, request in calls:
                with suppress(NoAnswer):  # it is counted
                    await self.call(way, name, request, token)
                await asyncio.sleep(PAUSE)

    async def _watch(self, way: Way, name: str, request: Message, token: str, heard: asyncio.Event) -> None:
        """Watches without end: a stream that was ended properly is begun again at once."""
        while True:
            end: str | None = None
            try:
                async for message in way.watch(RPCS[name], request, token):
                    heard.set()
                    if message.WhichOneof("kind") == "end":
                        reason = watch_pb2.EndReason.Name(message.end.reason)
                        end = reason.removeprefix("END_REASON_")
            except NoAnswer as error:
                self.broken.append(f"{way.name} {name}: {error}")
                await asyncio.sleep(PAUSE)
                continue
            if end is None:
                self.broken.append(f"{way.name} {name}: ended without a terminal message")
                await asyncio.sleep(PAUSE)
                continue
            self.ends[f"{name} {end}"] += 1
            heard.set()


def seats_for_all(days: int = 7) -> list[dt.datetime]:
    """One slot that never fills up."""
    noon = dt.datetime.now(dt.UTC).replace(hour=12, minute=0, second=0, microsecond=0)
    return [noon + dt.timedelta(days=days)]
