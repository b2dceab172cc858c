"""What the contracts say of requests is what gRPC and JSON do: each input of tests/contracts/phrases.py."""

from __future__ import annotations

import json
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, replace
from typing import Any
from urllib.parse import urlencode

import grpc
import httpx
import pytest
from google.protobuf import json_format
from google.protobuf.message import Message

from tests.contracts.phrases import Input, Standing, documented, every_input
from tests.edge.rpcs import RPCS
from tests.edge.test_who_may_call import as_written
from tests.mesh.people import City, Doors, policy
from tests.mesh.test_bad_requests import WELL_FORMED, senders
from tests.support.json_refusals import json_refusal
from tests.support.mesh import RunningMesh
from tests.support.refusals import refusal

LARGEST_PARTY = 1000
SEATS = 100_000
CALL_SECONDS = 10.0


@pytest.fixture
async def standing(city: City) -> Standing:
    place = await city.place(capacity=SEATS, terms=policy(interval_seconds=1, max_party=LARGEST_PARTY))
    coarse = await city.place(capacity=SEATS, terms=policy(max_party=10))
    alice = city.customer()
    return Standing(city, place, alice, await alice.book(place), coarse)


@dataclass(frozen=True)
class Answer:
    """A refusal (reason and fields), or the message that was answered (reason "")."""

    reason: str
    fields: tuple[str, ...] = ()
    said: str = ""
    message: Message | None = None


Metadata = tuple[tuple[str, str], ...]
Door = Callable[[str, Message, Metadata], Awaitable[Answer]]


def over_grpc(doors: Doors, standing: Standing) -> Door:
    """Through the edge; what is not served there, at the service."""

    async def call(name: str, request: Message, metadata: Metadata) -> Answer:
        rpc = RPCS[name]
        channels = doors.channels if rpc.verb else standing.city.doors.channels
        try:
            message = await rpc.over_grpc(channels[rpc.service], request, metadata, CALL_SECONDS)
        except grpc.aio.AioRpcError as error:
            said = refusal(error)
            return Answer(said.reason or said.code.name, said.fields, said.message)
        return Answer("", message=message)

    return call


def over_json(http: httpx.AsyncClient) -> Door:
    async def call(name: str, request: Message, metadata: Metadata) -> Answer:
        rpc = RPCS[name]
        form = rpc.over_http(request)
        query = urlencode(form.query, doseq=True)
        path = f"{form.path}?{query}" if query else form.path
        body = b"" if form.body is None else json.dumps(form.body).encode()
        sent = as_written(http, form.verb, path, "application/json" if body else "", dict(metadata), body)
        if rpc.streams:
            return await first_of_stream(http, sent, rpc.response)
        answer = await http.send(sent)
        if answer.status_code != 200:
            said = json_refusal(answer)
            return Answer(said.reason, said.fields, said.message)
        return Answer("", message=json_format.Parse(answer.text, rpc.response()))

    return call


async def first_of_stream(http: httpx.AsyncClient, sent: httpx.Request, kind: type[Message]) -> Answer:
    answer = await http.send(sent, stream=True)
    try:
        if answer.status_code != 200:
            await answer.aread()
            said = json_refusal(answer)
            return Answer(said.reason, said.fields, said.message)
        async for line in answer.aiter_lines():
            if line:
                return Answer("", message=json_format.Parse(line, kind()))
        return Answer("", said="an empty stream")
    finally:
        await answer.aclose()


async def fresh(standing: Standing, given: Input) -> Standing:
    """What an input needs anew: a customer who has tried nothing yet, a booking that it may change."""
    if given.rpc == "CreateReservation":
        return replace(standing, alice=standing.city.customer())
    if given.rpc == "ModifyReservation" and given.taken:
        alice = standing.city.customer()
        return replace(standing, alice=alice, booked=await alice.reserve(standing.place))
    return standing


async def complaint(door: Door, standing: Standing, mesh: RunningMesh, given: Input) -> str:
    """How the contract and the door differ, or ""."""
    standing = await fresh(standing, given)
    by, well_formed = WELL_FORMED[given.rpc]
    request: Any = well_formed(standing)
    if given.rpc == "ModifyReservation":
        request.payment_token = "tok_visa"  # it may get dearer
    given.change(standing, request)
    who = senders(standing, mesh)
    if by == "staff" and request.restaurant_id == standing.coarse.id:
        who["staff"] = standing.coarse.metadata
    answer = await door(given.rpc, request, who[by])
    if not given.taken:
        if answer.reason != "INVALID_ARGUMENT":
            return f"is to be refused: {answer.reason or 'taken'} {answer.said}"
        named = {field.partition("[")[0] for field in answer.fields}
        # What the edge itself cannot read of a query, it names in words.
        named |= set() if named else {answer.said.partition(":")[0]}
        if not any(one == field or one.startswith(f"{field}.") for one in named for field in given.fields):
            return f"names {answer.fields}, none of {given.fields}: {answer.said}"
    elif answer.reason not in {"", *documented(given.rpc)}:
        return f"is to be taken: {answer.reason} {answer.fields}: {answer.said}"
    elif given.shown is not None and not given.shown(answer.message):
        return f"shows something else: {answer.message}"
    return ""


@pytest.mark.parametrize("rpc", RPCS)
async def test_what_the_contract_promises_and_forbids_is_what_the_doors_do(
    standing: Standing, mesh: RunningMesh, doors: Doors, http: httpx.AsyncClient, rpc: str
) -> None:
    """All that differs is listed together."""
    wrong = []
    ways = {"gRPC": over_grpc(doors, standing)} | ({"JSON": over_json(http)} if RPCS[rpc].verb else {})
    for place, words, given in every_input():
        if given.rpc == rpc:
            for door, call in ways.items():
                if found := await complaint(call, standing, mesh, given):
                    wrong.append(f"{door}: {place}: {words!r}: {given.name!r} {found}")
    assert not wrong, "\n".join(wrong)
