"""A body in JSON has the shape of its request, or it is refused by the edge alone; what fits arrives whole.

The transcoder has no strict mode: of what it does not know, nothing arrives.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, cast

import httpx
import pytest
from google.protobuf import json_format
from google.protobuf.descriptor import Descriptor, FieldDescriptor
from google.protobuf.message import Message
from google.type import timeofday_pb2

from dinemesh.reservation.v1 import reservation_service_pb2 as reservation
from dinemesh.restaurant.v1 import restaurant_service_pb2 as restaurant
from protos.openapi.contracts import Method, read
from tests.contracts.test_openapi import message
from tests.edge.stand_in import StandIn
from tests.edge.test_who_may_call import as_written
from tests.support.edge import Config, RunningEdge
from tests.support.json_refusals import JsonRefused, json_refusal

CREATE = "POST /v1/reservations"
MODIFY = "PATCH /v1/reservations/x"
CANCEL = "POST /v1/reservations/x:cancel"
FOUND = "POST /v1/restaurants"
CLOSE = "POST /v1/restaurants/x/slots:close"
OPEN = "POST /v1/restaurants/x/slots:open"
ORIGIN = "http://localhost:3000"


async def sent(alone: httpx.AsyncClient, stand_in: StandIn, line: str, body: object) -> httpx.Response:
    """`body`: text as it is sent, or a value."""
    verb, path = line.split(" ")
    headers = {
        "authorization": f"Bearer {stand_in.keys.token('alice', 'customer')}",
        "content-type": "application/json",
        "origin": ORIGIN,
    }
    text = body if isinstance(body, str) else json.dumps(body)
    stand_in.seen.clear()
    return await alone.request(verb, path, headers=headers, content=text.encode())


async def refused(alone: httpx.AsyncClient, stand_in: StandIn, line: str, body: object) -> JsonRefused:
    said = json_refusal(await sent(alone, stand_in, line, body))
    assert (said.status, said.reason) == (400, "INVALID_ARGUMENT"), said
    assert stand_in.seen == [], "it reached the service"
    return said


MONTH = {"firstDate": {"year": 2027, "month": 5, "day": 1}, "lastDate": {"year": 2027, "month": 5, "day": 31}}
REFUSED: dict[str, tuple[str, object, str, str]] = {
    # The first of these has closed a month.
    "lists in a list": (
        CLOSE,
        MONTH | {"times": [[None, None]]},
        "times[0]",
        "an object with hours, minutes",
    ),
    "an empty list in a list": (CLOSE, MONTH | {"times": [[]]}, "times[0]", "not a list"),
    "null in a list": (CLOSE, MONTH | {"times": [{"hours": 18}, None]}, "times[1]", "not null"),
    "a string in a list of objects": (CLOSE, MONTH | {"times": ["18:00"]}, "times[0]", "not a string"),
    "an object for a list": (CLOSE, MONTH | {"times": {"hours": 18}}, "times", "a list, each entry of it"),
    "a string for a list": (CLOSE, MONTH | {"times": ""}, "times", "not a string"),
    "false for a list": (OPEN, MONTH | {"times": False}, "times", "not false"),
    "a misspelt field": (CREATE, {"notes": "no nuts"}, "notes", "restaurant_id, dine_time, party_size"),
    "a misspelt field inside": (CLOSE, MONTH | {"times": [{"hour": 1}]}, "times[0].hour", "hours, minutes"),
    "another case": (CREATE, {"PartySize": 2}, "PartySize", "is no field"),
    "half camel, half snake": (CREATE, {"party_Size": 2}, "party_Size", "is no field"),
    "an empty name": (CREATE, {"": 2}, "", "is no field"),
    "the name of an inner field": (CLOSE, MONTH | {"hours": 1}, "hours", "is no field"),
    "a name that is a program": (CREATE, {"%REQ(x)%\n<b>": 2}, "?REQ?x???n?b?", "is no field"),
    "a name without an end": (CREATE, {"x" * 60_000: 2}, "x" * 64 + "...", "is no field"),
    "a name in escapes": (CREATE, '{"note\\u0073": "no nuts"}', "notes", "is no field"),
    "what an object has in Lua": (CREATE, {"__index": 1}, "__index", "is no field"),
    "a list for a string": (CREATE, {"note": []}, "note", "a string, not a list"),
    "an object for a string": (MODIFY, {"note": {}}, "note", "a string, not an object"),
    "a number for a string": (CREATE, {"note": 5}, "note", "a string, not a number"),
    "true for a number": (CREATE, {"partySize": True}, "party_size", "a number, not true"),
    "a list for a number": (CREATE, {"partySize": [2]}, "party_size", "a number, not a list"),
    "an object for a time": (CREATE, {"dineTime": {"seconds": 5}}, "dine_time", 'such as "2030-'),
    "a string for an object": (FOUND, {"policy": ""}, "policy", "an object with deposit_per_person"),
    "a list for an object": (FOUND, {"policy": []}, "policy", "not a list"),
    "a list for an enum": (
        FOUND,
        {"policy": {"acceptance": [1]}},
        "policy.acceptance",
        "ACCEPTANCE_MODE_AUTO",
    ),
    "the same name twice": (CREATE, '{"note": "a", "note": "b"}', "note", "is given twice"),
    "the same field twice": (CREATE, {"party_size": 2, "partySize": 2}, "party_size", "is given twice"),
    "the same field twice, once in escapes": (
        CREATE,
        '{"note": "a", "n\\u006fte": "b"}',
        "note",
        "is given twice",
    ),
    "nothing and something": (CREATE, '{"note": null, "note": "b"}', "note", "is given twice"),
    "twice inside": (CLOSE, '{"times": [{"hours": 1, "hours": 2}]}', "times[0].hours", "is given twice"),
    "what the path says": (CANCEL, {"reservationId": "x"}, "reservation_id", "is said by the path"),
    "a field where there is none": (CANCEL, {"why": 1}, "why", "has no fields"),
    "nested without end": (CREATE, '{"note":' + "[" * 20_000, "note", "not a list"),
    "nested without end in objects": (FOUND, '{"policy":' * 5_000, "policy.policy", "is no field"),
}
"""By name: call, body, the field that is named, and what is said about it."""

NO_JSON: dict[str, tuple[str, str, str]] = {
    "null with more behind it": (CANCEL, "null null", "the body must be an object with no fields, not null"),
    "a list": (CREATE, "[]", "the body must be an object with request_id, restaurant_id"),
    "a list of requests": (CREATE, '[{"partySize": 2}]', "not a list"),
    "a string": (CREATE, '"reserve"', "not a string"),
    "a number": (CREATE, "42", "not a number"),
    "space": (CANCEL, " \n", "where the body ends, there should be an object"),
    "words": (CREATE, "party=2", "at byte 1, there should be an object"),
    "a name without quotes": (CREATE, "{note: 1}", "at byte 2, there should be a name in double quotes"),
    "single quotes": (CREATE, "{'note': ''}", "at byte 2, there should be a name in double quotes"),
    "a comma too many": (CREATE, '{"note": "",}', "at byte 13, there should be a name in double quotes"),
    "a comma too many in a list": (OPEN, '{"times": [{},]}', "at byte 15, there should be a value"),
    "no comma": (CREATE, '{"note": "" "etag": ""}', "at byte 13, there should be a comma or }"),
    "no comma in a list": (OPEN, '{"times": [{} {}]}', "at byte 15, there should be a comma or ]"),
    "no colon": (CREATE, '{"note" ""}', "at byte 9, there should be a colon"),
    "broken off": (CREATE, '{"note": "a', "where the body ends, there should be the end of a string"),
    "broken off behind an escape": (CREATE, '{"note": "a\\', "an escape sequence of JSON"),
    "more behind it": (CREATE, '{"note": ""} {"note": ""}', "at byte 14, there should be nothing more"),
    "a control character": (CREATE, '{"note": "a\tb"}', "at byte 12, there should be no control character"),
    "NUL": (CREATE, '{"note": "a\0b"}', "at byte 12, there should be no control character"),
    "an escape of another language": (CREATE, '{"note": "\\x41"}', "an escape sequence of JSON"),
    "half an escape": (CREATE, '{"note": "\\u00"}', "an escape sequence of JSON"),
    "NaN": (CREATE, '{"partySize": NaN}', "at byte 15, there should be a value"),
    "a zero before a number": (CREATE, '{"partySize": 02}', "at byte 16, there should be a comma or }"),
    "a plus before a number": (CREATE, '{"partySize": +2}', "at byte 15, there should be a value"),
    "a minus alone": (CREATE, '{"partySize": -}', "at byte 15, there should be a value"),
    "a point without digits": (CREATE, '{"partySize": 2.}', "at byte 16, there should be a comma or }"),
    "a literal with a tail": (CREATE, '{"note": nullx}', "at byte 14, there should be a comma or }"),
    "a comment": (CREATE, '{/* two */"partySize": 2}', "at byte 2, there should be a name"),
    "a mark of the order of bytes": (CREATE, "\ufeff{}", "at byte 1, there should be an object"),
}
"""By name: call, body, and what is said."""


@pytest.mark.parametrize("kind", REFUSED)
async def test_another_shape_is_refused_by_its_field(
    alone: httpx.AsyncClient, stand_in: StandIn, kind: str
) -> None:
    line, body, field, complaint = REFUSED[kind]
    said = await refused(alone, stand_in, line, body)
    assert said.fields == (field,)
    (violation,) = json.loads(said.text)["details"][1]["fieldViolations"]
    assert complaint in violation["description"]
    assert said.message == f"{field}: {violation['description']}"
    assert len(said.message) < 500


@pytest.mark.parametrize("kind", NO_JSON)
async def test_what_is_no_object_in_json_is_refused_with_the_place(
    alone: httpx.AsyncClient, stand_in: StandIn, kind: str
) -> None:
    """The transcoder would take some of it, each in its own way."""
    line, body, complaint = NO_JSON[kind]
    said = await refused(alone, stand_in, line, body)
    assert said.fields == ()
    assert complaint in said.message


async def test_such_a_refusal_is_like_all_others(alone: httpx.AsyncClient, stand_in: StandIn) -> None:
    said = await refused(alone, stand_in, CREATE, {"notes": "no nuts"})
    assert said.headers["x-correlation-id"]
    assert said.headers["grpc-status"] == "3"
    assert said.headers["access-control-allow-origin"] == ORIGIN
    assert "x-correlation-id" in said.headers["access-control-expose-headers"]
    assert said.headers["cache-control"] == "no-store"


ROUND_ABOUT: dict[str, tuple[str, dict[str, str]]] = {
    "a path with dots": ("/x/../v1/reservations", {}),
    "a path with doubled slashes": ("//v1//reservations", {}),
    "a path in escapes": ("/%76%31/%72eservations", {}),
    "a slash at the end": ("/v1/reservations/", {}),
    "an id like another verb": ("/v1/reservations/x:watch:cancel", {}),
    "no type": ("/v1/reservations", {"content-type": ""}),
    "another case of the type": ("/v1/reservations", {"content-type": "Application/JSON; charset=utf-8"}),
    "events asked for": ("/v1/reservations", {"accept": "text/event-stream"}),
    "events of an id like a watch": ("/v1/reservations/x:watch:cancel", {"accept": "text/event-stream"}),
    "gRPC-Web, as it says": ("/v1/reservations", {"x-grpc-web": "1", "accept": "application/grpc-web"}),
    "another verb, as it says": ("/v1/reservations", {"x-http-method-override": "PATCH"}),
    "JSON to a method of gRPC": ("/dinemesh.reservation.v1.ReservationService/CreateReservation", {}),
    "gRPC to a path of JSON": ("/v1/reservations", {"content-type": "application/grpc"}),
}
"""By name: a path, and headers."""


@pytest.mark.parametrize("kind", ROUND_ABOUT)
async def test_no_way_leads_round_it(alone: httpx.AsyncClient, stand_in: StandIn, kind: str) -> None:
    path, headers = ROUND_ABOUT[kind]
    told = {"authorization": f"Bearer {stand_in.keys.token('alice', 'customer')}"} | headers
    content_type = told.pop("content-type", "application/json")
    stand_in.seen.clear()
    answer = await alone.send(as_written(alone, "POST", path, content_type, told, b'{"notes": "no nuts"}'))
    assert stand_in.seen == []
    assert answer.headers["grpc-status"] in ("3", "12")


TAKEN: dict[str, tuple[str, object, Message]] = {
    "camelCase": (CREATE, {"partySize": 2}, reservation.CreateReservationRequest(party_size=2)),
    "snake_case": (CREATE, {"party_size": 2}, reservation.CreateReservationRequest(party_size=2)),
    "a name in escapes": (
        CREATE,
        '{"\\u0070artySize": 2}',
        reservation.CreateReservationRequest(party_size=2),
    ),
    "a number as a string": (CREATE, {"partySize": "2"}, reservation.CreateReservationRequest(party_size=2)),
    "a number with an exponent": (
        CREATE,
        '{"partySize": 2.0e0}',
        reservation.CreateReservationRequest(party_size=2),
    ),
    "space everywhere": (
        CREATE,
        ' \r\n{ "partySize"\t: 2 , "note" : "a" } \n',
        reservation.CreateReservationRequest(party_size=2, note="a"),
    ),
    "signs of all kinds in a string": (
        CREATE,
        '{"note": "\\"\\\\\\/\\n\\u00e9 \\ud83c\\udf7d é🍽 \x7f{[,:]}"}',
        reservation.CreateReservationRequest(note='"\\/\né 🍽 é🍽 \x7f{[,:]}'),
    ),
    "a time": (
        CREATE,
        {"dineTime": "2030-05-01T18:30:00.5+02:00"},
        json_format.ParseDict(
            {"dineTime": "2030-05-01T16:30:00.500Z"}, reservation.CreateReservationRequest()
        ),
    ),
    "null for what is left out": (
        MODIFY,
        {"note": None, "dineTime": None, "party_size": 3},
        reservation.ModifyReservationRequest(reservation_id="x", party_size=3),
    ),
    "an optional field that is empty": (
        MODIFY,
        {"note": ""},
        reservation.ModifyReservationRequest(reservation_id="x", note=""),
    ),
    "an enum by its name": (
        FOUND,
        {"policy": {"acceptance": "ACCEPTANCE_MODE_MANUAL"}},
        json_format.ParseDict({"policy": {"acceptance": 2}}, restaurant.CreateRestaurantRequest()),
    ),
    "an enum by its number, money with a string of 64 bits": (
        FOUND,
        {
            "policy": {
                "acceptance": 2,
                "depositPerPerson": {"currencyCode": "EUR", "units": "9007199254740993"},
            }
        },
        json_format.ParseDict(
            {
                "policy": {
                    "acceptance": 2,
                    "depositPerPerson": {"currencyCode": "EUR", "units": "9007199254740993"},
                }
            },
            restaurant.CreateRestaurantRequest(),
        ),
    ),
    "money with a number": (
        FOUND,
        {"policy": {"deposit_per_person": {"currency_code": "EUR", "units": 10}}},
        json_format.ParseDict(
            {"policy": {"depositPerPerson": {"currencyCode": "EUR", "units": "10"}}},
            restaurant.CreateRestaurantRequest(),
        ),
    ),
    "a list of objects": (
        OPEN,
        {"times": [{"hours": 18}, {"hours": 19, "minutes": 30}, {}]},
        restaurant.OpenSlotsRequest(
            restaurant_id="x",
            times=[
                timeofday_pb2.TimeOfDay(hours=18),
                timeofday_pb2.TimeOfDay(hours=19, minutes=30),
                timeofday_pb2.TimeOfDay(),
            ],
        ),
    ),
    "an empty list, and null for one": (
        OPEN,
        {"times": [], "firstDate": None},
        restaurant.OpenSlotsRequest(restaurant_id="x"),
    ),
    "no field": (CANCEL, {}, reservation.CancelReservationRequest(reservation_id="x")),
    "no body": (CANCEL, "", reservation.CancelReservationRequest(reservation_id="x")),
    "null for a body": (CANCEL, "null", reservation.CancelReservationRequest(reservation_id="x")),
    "null for a body that is needed": (CREATE, " null\n", reservation.CreateReservationRequest()),
    "a slash at the end": (
        "POST /v1/reservations/",
        {"partySize": 2},
        reservation.CreateReservationRequest(party_size=2),
    ),
    "an id with a colon": (
        "POST /v1/reservations/a:b:cancel",
        {},
        reservation.CancelReservationRequest(reservation_id="a:b"),
    ),
}
"""By name: call, body, and what arrives."""


@pytest.mark.parametrize("kind", TAKEN)
async def test_what_the_json_mapping_of_proto3_allows_arrives(
    alone: httpx.AsyncClient, stand_in: StandIn, kind: str
) -> None:
    line, body, expected = TAKEN[kind]
    answer = await sent(alone, stand_in, line, body)
    assert answer.status_code == 200, answer.text
    (seen,) = stand_in.seen
    assert type(expected).FromString(seen.request) == expected


# --- every field of every request


@dataclass(frozen=True)
class Place:
    """A field of a request."""

    way: tuple[str | int, ...]
    """To it by names in JSON; a number stands for the entry of a list."""
    outside: str
    """The path of what it is in, as refusals have it, with a dot behind it."""
    field: FieldDescriptor

    @property
    def path(self) -> str:
        return self.outside + self.field.name


def places(
    descriptor: Descriptor, without: frozenset[str], way: tuple[str | int, ...] = (), outside: str = ""
) -> Iterator[Place]:
    for field in fields_of(descriptor):
        if field.name in without:
            continue
        place = Place((*way, field.json_name), outside, field)
        yield place
        if inside := inside_of(field):
            entry = (0,) if field.is_repeated else ()
            dot = "[0]." if field.is_repeated else "."
            yield from places(inside, frozenset(), (*place.way, *entry), place.path + dot)


def inside_of(field: FieldDescriptor) -> Descriptor | None:
    """The message that is an object in JSON, if the field has one."""
    if field.message_type is None or field.message_type.full_name == "google.protobuf.Timestamp":
        return None
    return field.message_type


def fields_of(descriptor: Descriptor) -> list[FieldDescriptor]:
    return cast(list[FieldDescriptor], list(descriptor.fields))


def value_of(field: FieldDescriptor) -> Any:
    """One that the field takes."""
    if inside := inside_of(field):
        value: Any = {one.json_name: value_of(one) for one in fields_of(inside)}
    elif field.message_type is not None:
        value = "2030-05-01T18:30:00Z"
    elif field.enum_type is not None:
        value = field.enum_type.values[1].name
    else:
        value = {
            FieldDescriptor.CPPTYPE_STRING: "EUR",
            FieldDescriptor.CPPTYPE_BOOL: True,
        }.get(field.cpp_type, 1)
    return [value] if field.is_repeated else value


def changed(body: Any, way: tuple[str | int, ...], change: Callable[[Any, Any], None]) -> Any:
    """A copy, in which `change` has been at what holds the end of the way."""
    made = json.loads(json.dumps(body))
    holder = made
    for step in way[:-1]:
        holder = holder[step]
    change(holder, way[-1])
    return made


def calls() -> list[Method]:
    return [method for service in read().services for method in service.methods if method.body]


def misspelt(holder: Any, name: Any) -> None:
    holder[f"{name}s"] = holder.pop(name)


def wrong_for(field: FieldDescriptor) -> list[Any]:
    if field.is_repeated:
        return [{}, "x", 1, [[]], [None]]
    return [["x"], "x", 1, True] if inside_of(field) else [[], {}, ["x"], [None]]


@pytest.mark.parametrize("call", calls(), ids=lambda call: call.name)
async def test_no_field_of_a_request_can_be_misspelt_or_have_another_shape(
    alone: httpx.AsyncClient, stand_in: StandIn, call: Method
) -> None:
    """So that the table is of the contracts, and whole."""
    request = message(call.request)
    line = f"{call.verb.upper()} {call.path}"
    of_path = frozenset(one.name for one in request.DESCRIPTOR.fields if f"{{{one.name}}}" in call.path)
    for name in of_path:
        line = line.replace(f"{{{name}}}", "x")
    descriptor = cast(Descriptor, request.DESCRIPTOR)
    body = {one.json_name: value_of(one) for one in fields_of(descriptor) if one.name not in of_path}
    assert (await sent(alone, stand_in, line, body)).status_code == 200
    json_format.ParseDict(body, request)
    for name in of_path:
        setattr(request, name, "x")
    (seen,) = stand_in.seen
    assert type(request).FromString(seen.request) == request

    for place in places(descriptor, of_path):
        wrong = changed(body, place.way, misspelt)
        said = await refused(alone, stand_in, line, wrong)
        assert said.fields == (f"{place.outside}{place.field.json_name}s",)
        for value in wrong_for(place.field):

            def put(holder: Any, name: Any, value: Any = value) -> None:
                holder[name] = value

            said = await refused(alone, stand_in, line, changed(body, place.way, put))
            entry = "[0]" if place.field.is_repeated and isinstance(value, list) else ""
            assert said.fields == (place.path + entry,)
    for name in of_path:
        assert (await refused(alone, stand_in, line, {name: "x"})).fields == (name,)


async def test_a_check_that_breaks_refuses(own_edge: Callable[..., RunningEdge], stand_in: StandIn) -> None:
    """Envoy lets the request pass where a script ends in an error."""

    def broken(config: Config) -> None:
        (listener,) = (one for one in config["static_resources"]["listeners"] if one["name"] == "edge")
        filters = listener["filter_chains"][0]["filters"][0]["typed_config"]["http_filters"]
        (bodies,) = (one for one in filters if one["name"] == "shape of bodies")
        script = bodies["typed_config"]["default_source_code"]
        was = "local function check(text, message)\n"
        assert was in script["inline_string"]
        script["inline_string"] = script["inline_string"].replace(was, f"{was}  local _ = nil .. text\n")

    edge = own_edge(behind=stand_in, mutate=broken)
    async with httpx.AsyncClient(base_url=edge.url) as client:
        said = await refused(client, stand_in, CANCEL, {})
        assert said.message == "the body cannot be read"
    assert "bodies.lua: " in edge.log.read_text()
