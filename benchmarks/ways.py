"""The ways to the reservation service that are compared; the outcome of a call is its gRPC status by name."""

from __future__ import annotations

import asyncio
import json
import re
import uuid
from typing import Protocol

import grpc

from benchmarks.loads import OK
from benchmarks.own_mesh import DEADLINE_SECONDS, Customer, Restaurant

BROKEN = "BROKEN"
"""No answer, or one of something else than was asked for."""

_CODES = {code.value[0]: code.name for code in grpc.StatusCode}
_LENGTH = re.compile(rb"\r\ncontent-length: *(\d+)\r\n", re.IGNORECASE)


class Way(Protocol):
    """A client. Each call returns its outcome; a booking also the id of the reservation, if there is one."""

    async def get(self, reservation_id: str) -> str: ...

    async def create(self) -> tuple[str, str]: ...

    async def close(self) -> None: ...


class Grpc:
    """grpc.aio over one connection, as a service in Python would call."""

    def __init__(self, address: str, token: str, restaurant: Restaurant) -> None:
        self._customer = Customer(address, token, restaurant)

    async def get(self, reservation_id: str) -> str:
        try:
            found = await self._customer.read(reservation_id)
        except grpc.aio.AioRpcError as error:
            return error.code().name
        return OK if found.reservation_id == reservation_id else BROKEN

    async def create(self) -> tuple[str, str]:
        try:
            return OK, await self._customer.reserve()
        except grpc.aio.AioRpcError as error:
            return error.code().name, ""

    async def close(self) -> None:
        await self._customer.close()


class Json:
    """HTTP/1.1 by hand, over as many connections as calls are in flight.

    By hand, since the client's own time is part of what it measures one at a time: a call of httpx costs ten
    times as much as one of these. The table says what a call of each client costs.
    """

    def __init__(self, address: str, token: str, restaurant: Restaurant) -> None:
        self._host, _, self._port = address.rpartition(":")
        self._headers = f"host: {address}\r\nauthorization: Bearer {token}\r\n"
        self._restaurant_id = restaurant.restaurant_id
        self._policy_etag = restaurant.policy_etag
        self._dine_times = [one.ToJsonString() for one in restaurant.dine_times]
        self._booked = 0
        self._idle: list[tuple[asyncio.StreamReader, asyncio.StreamWriter]] = []

    async def get(self, reservation_id: str) -> str:
        outcome, found = await self._ask(
            f"GET /v1/reservations/{reservation_id} HTTP/1.1\r\n{self._headers}\r\n"
        )
        return outcome if outcome != OK or found == reservation_id else BROKEN

    async def create(self) -> tuple[str, str]:
        self._booked += 1
        body = json.dumps(
            {
                "requestId": str(uuid.uuid4()),
                "restaurantId": self._restaurant_id,
                "dineTime": self._dine_times[self._booked % len(self._dine_times)],
                "partySize": 2,
                "policyEtag": self._policy_etag,
                "paymentToken": "tok_visa",
            }
        )
        return await self._ask(
            f"POST /v1/reservations HTTP/1.1\r\n{self._headers}"
            f"content-type: application/json\r\ncontent-length: {len(body)}\r\n\r\n{body}"
        )

    async def livez(self) -> str:
        """What Envoy answers by itself: the floor of this way."""
        status, _ = await self._exchange(f"GET /livez HTTP/1.1\r\n{self._headers}\r\n")
        return OK if status == 200 else BROKEN

    async def close(self) -> None:
        for _, writer in self._idle:
            writer.close()
            await writer.wait_closed()

    async def _ask(self, request: str) -> tuple[str, str]:
        try:
            status, body = await self._exchange(request)
            answer = json.loads(body)
            if status == 200:
                return OK, answer["reservation"]["reservationId"]
            return _CODES[answer["code"]], ""
        except (OSError, EOFError, TimeoutError, ValueError, LookupError):
            return BROKEN, ""

    async def _exchange(self, request: str) -> tuple[int, bytes]:
        async with asyncio.timeout(DEADLINE_SECONDS):
            connection = self._rested() or await self._connect()
            reader, writer = connection
            try:
                writer.write(request.encode())
                head = await reader.readuntil(b"\r\n\r\n")
                length = _LENGTH.search(head)
                if length is None:
                    raise ValueError(f"an answer without a length: {head!r}")
                body = await reader.readexactly(int(length[1]))
            except BaseException:
                writer.close()
                raise
            self._idle.append(connection)
        return int(head[9:12]), body

    def _rested(self) -> tuple[asyncio.StreamReader, asyncio.StreamWriter] | None:
        """A connection that is open still: the edge closes those that rest."""
        while self._idle:
            reader, writer = self._idle.pop()
            if not reader.at_eof():
                return reader, writer
            writer.close()
        return None

    async def _connect(self) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        return await asyncio.open_connection(self._host, int(self._port))
