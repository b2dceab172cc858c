"""Bad HTTP requests: right status, one shape, reason and field; nothing leaks and nothing has happened."""

from __future__ import annotations

import asyncio
import gzip
import json
import re
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import httpx
import jwt
import pytest
from cryptography.hazmat.primitives.asymmetric import ec

from tests.edge.stand_in import StandIn
from tests.edge.test_who_may_call import as_written
from tests.mesh.people import CONFIRMED, City, Customer, Place, Reservation, new_id, timestamp, until
from tests.mesh.test_identity import by_another_key, unsigned, with_the_public_key_as_secret
from tests.support.edge import RunningEdge
from tests.support.json_refusals import JsonRefused, json_refusal, read_refusal
from tests.support.leaks import LEAKS
from tests.support.mesh import SERVICES, RunningMesh

INVALID = "INVALID_ARGUMENT"


@dataclass(frozen=True)
class Standing:
    """What there is before the bad request comes: a booking of alice at a restaurant."""

    city: City
    place: Place
    alice: Customer
    booked: Reservation

    @property
    def wish(self) -> dict[str, Any]:
        """A CreateReservation with which nothing is wrong."""
        return {
            "request_id": new_id(),
            "restaurant_id": self.place.id,
            "dine_time": timestamp(self.place.slots[0]).ToJsonString(),
            "party_size": 2,
            "policy_etag": self.place.policy_etag,
            "payment_token": "tok_visa",
        }


Made = Callable[[Standing], Any]


@dataclass(frozen=True)
class Bad:
    """A bad request, and how it must be refused. `{...}` in the path stands for ids of what stands."""

    name: str
    line: str
    """Verb and path."""
    status: int
    reason: str
    fields: tuple[str, ...] = ()
    """Fields that the refusal must name."""
    body: bytes | str | Made | None = None
    """Text as it is sent, or what gives a value that is sent as JSON."""
    headers: dict[str, str] = field(default_factory=dict)
    content_type: str = "application/json"
    by: str = "customer"
    token: Callable[[RunningMesh], str] | None = None
    """What the authorization header is instead."""


def on(line: str, name: str, status: int, reason: str, fields: str = "", **more: Any) -> Bad:
    return Bad(f"{line.split('?')[0]}: {name}", line, status, reason, tuple(fields.split()), **more)


def create(name: str, fields: str = "", status: int = 400, reason: str = INVALID, **change: Any) -> Bad:
    """A CreateReservation that is right but for `change`; None leaves a field out."""

    def body(standing: Standing) -> dict[str, Any]:
        wish = standing.wish | {
            key: value(standing) if callable(value) else value for key, value in change.items()
        }
        return {key: value for key, value in wish.items() if value is not None}

    return Bad(f"create: {name}", "POST /v1/reservations", status, reason, tuple(fields.split()), body)


def text(name: str, body: bytes | str, fields: str = "", **more: Any) -> Bad:
    """A CreateReservation with this body, as it stands."""
    return Bad(f"body: {name}", "POST /v1/reservations", 400, INVALID, tuple(fields.split()), body, **more)


def rewritten(name: str, old: str, new: str, fields: str = "") -> Bad:
    """A CreateReservation that is right but for this piece of its text."""

    def body(standing: Standing) -> str:
        said = json.dumps(standing.wish)
        assert old in said
        return said.replace(old, new)

    return Bad(
        f"body: {name}",
        "POST /v1/reservations",
        400,
        INVALID,
        tuple(fields.split()),
        lambda standing: body(standing).encode("utf-8", "surrogatepass"),
    )


def found(name: str, fields: str = "", /, **change: Any) -> Bad:
    """A CreateRestaurant that is right but for `change`, of the policy where it has such a field."""

    def body(_: Standing) -> dict[str, Any]:
        policy: dict[str, Any] = {
            "deposit_per_person": {"currency_code": "EUR", "units": "10"},
            "free_cancel_window_seconds": 3600,
            "acceptance": "ACCEPTANCE_MODE_AUTO",
            "acceptance_limit_seconds": 3600,
            "slot_interval_seconds": 1800,
            "service_duration_seconds": 7200,
            "max_party_size": 10,
        }
        wish: dict[str, Any] = {"request_id": new_id(), "name": "Chez Nous", "time_zone": "Europe/Berlin"}
        wish["policy"] = policy | {key: value for key, value in change.items() if key in policy}
        return wish | {key: value for key, value in change.items() if key not in policy}

    return Bad(
        f"restaurant: {name}",
        "POST /v1/restaurants",
        400,
        INVALID,
        tuple(fields.split()),
        body,
        by="operator",
    )


def slots(name: str, fields: str = "", **change: Any) -> Bad:
    def body(_: Standing) -> dict[str, Any]:
        wish = {
            "first_date": {"year": 2027, "month": 5, "day": 1},
            "last_date": {"year": 2027, "month": 5, "day": 2},
            "times": [{"hours": 18}],
            "capacity": 10,
        } | change
        return {key: value for key, value in wish.items() if value is not None}

    line = "POST /v1/restaurants/{restaurant}/slots:open"
    return Bad(f"slots: {name}", line, 400, INVALID, tuple(fields.split()), body, by="staff")


def closing(name: str, fields: str, **change: Any) -> Bad:
    """All that there is, were `change` not looked at."""

    def body(standing: Standing) -> dict[str, Any]:
        days = [one.astimezone(standing.place.zone).date() for one in standing.place.slots]
        first, last = ({"year": one.year, "month": one.month, "day": one.day} for one in (days[0], days[-1]))
        return {"first_date": first, "last_date": last} | change

    line = "POST /v1/restaurants/{restaurant}/slots:close"
    return Bad(f"close: {name}", line, 400, INVALID, tuple(fields.split()), body, by="staff")


def claims(**change: Any) -> Callable[[RunningMesh], str]:
    """A well-signed token with other claims; None leaves one out."""

    def made(mesh: RunningMesh) -> str:
        said = jwt.decode(mesh.token("mallory", "customer"), options={"verify_signature": False}) | change
        said = {key: value for key, value in said.items() if value is not None}
        return jwt.encode(said, mesh.keys.private, algorithm="ES256", headers={"kid": mesh.keys.kid})

    return lambda mesh: f"Bearer {made(mesh)}"


def unknown_kid(mesh: RunningMesh) -> str:
    said = jwt.decode(mesh.token("mallory", "customer"), options={"verify_signature": False})
    return jwt.encode(said, ec.generate_private_key(ec.SECP256R1()), "ES256", headers={"kid": "nobody's"})


def token(
    name: str, made: Callable[[RunningMesh], str], reason: str = "TOKEN_INVALID", status: int = 401
) -> Bad:
    return Bad(f"token: {name}", "GET /v1/reservations", status, reason, token=made)


SQL = "'; DROP TABLE reservations; --"
DEEP = 5_000
SLOTS = "GET /v1/restaurants/{restaurant}/availableSlots"
GOOD_SLOTS = f"{SLOTS}?date=2027-05-01&party_size=2"
ONE = "/v1/reservations/{reservation}"

BAD: list[Bad] = [
    # What the JSON says: found by the service, with its field.
    text("an empty wish", "{}", "request_id restaurant_id dine_time party_size policy_etag payment_token"),
    create("no request_id", "request_id", request_id=None),
    create("request_id is SQL", "request_id", request_id=SQL),
    create("request_id is null", "request_id", request_id=lambda _: None),
    create("restaurant_id is no UUID", "restaurant_id", restaurant_id="the usual one"),
    create("restaurant_id with a digit too many", "restaurant_id", restaurant_id=lambda s: s.place.id + "0"),
    create("an unknown restaurant", "", 404, "NOT_FOUND", restaurant_id=lambda _: new_id()),
    create("no dine_time", "dine_time", dine_time=None),
    create("a time in the past", "dine_time", dine_time="2020-01-01T18:00:00Z"),
    create("a time at the end of the calendar", "dine_time", dine_time="9999-12-31T23:59:59Z"),
    create("a time with nanoseconds", "dine_time", dine_time="2027-01-01T18:00:00.000000001Z"),
    create("a party of minus two", "party_size", party_size=-2),
    create("a party of none", "party_size", party_size=0),
    create("a party as large as a number can be", "party_size", party_size=2**31 - 1),
    create("no policy_etag", "policy_etag", policy_etag=None),
    create("a policy_etag without an end", "policy_etag", policy_etag="p" * 5000),
    create("another policy than the one shown", status=400, reason="POLICY_CHANGED", policy_etag="another"),
    create("no payment_token", "payment_token", payment_token=None),
    create("a payment_token without an end", "payment_token", payment_token="t" * 5000),
    create("a note too long", "note", note="n" * 501),
    create("a note with NUL", "note", note="hello\0world"),
    create("a note with an escape sequence", "note", note="\x1b[31mred"),
    # What is no JSON, or not of the right kind: found by the edge.
    create("a misspelt field", "notes", notes="no nuts"),
    create("a misspelt field that is required", "partysize", party_size=None, partysize=2),
    create("a field of another request", "etag", etag="1"),
    create("a note as a list", "note", note=["no nuts"]),
    create("a note as an object", "note", note={"text": "no nuts"}),
    create("a party beyond 32 bits", party_size=2**31),
    create("a party beyond all numbers", party_size=10**400),
    create("half a guest", party_size=2.5),
    create("a party in words", party_size="two"),
    create("a party that is true", "party_size", party_size=True),
    create("a list of parties", "party_size", party_size=[2]),
    create("a party as an object", "party_size", party_size={"size": 2}),
    create("a request_id as a number", "request_id", request_id=5),
    create("a list of request_ids", "request_id", request_id=["a", "b"]),
    create("a time in words", dine_time="tomorrow at eight"),
    create("a time as a number", "dine_time", dine_time=1_800_000_000),
    create("the 45th of the 13th month", dine_time="2027-13-45T18:00:00Z"),
    create("a time without a zone", dine_time="2027-05-01T18:00:00"),
    create("a time in the year 10000", dine_time="10000-01-01T00:00:00Z"),
    text("broken off", '{"party_size": 2, '),
    text("a comma too many", '{"party_size": 2,}'),
    text("single quotes", "{'party_size': 2}"),
    text("no JSON", "party_size=2"),
    text("XML", "<reservation/>"),
    text("an array", "[]"),
    text("an array of wishes", '[{"party_size": 2}, {"party_size": 3}]'),
    text("a string", '"reserve"'),
    text("a number", "42"),
    text("null", "null", "request_id"),
    text("two objects", '{"party_size": 2} {"party_size": 3}'),
    text("NaN", '{"party_size": NaN}'),
    text("nothing", "", "request_id"),
    text("arrays nested without end", '{"note": ' + "[" * DEEP + "]" * DEEP + "}", "note"),
    text("objects nested without end", '{"x":' * DEEP + "1" + "}" * DEEP, "x"),
    text("invalid UTF-8", b'{"note": "\xff\xfe\xfa"}'),
    text("UTF-16", '{"party_size": 2}'.encode("utf-16")),
    text("compressed", gzip.compress(b'{"party_size": 2}'), headers={"content-encoding": "gzip"}),
    text("a gRPC message", b"\0\0\0\0\x02\x20\x02"),
    rewritten(
        "the same name twice", '"tok_visa"', '"tok_visa", "note": "no nuts", "note": "no fish"', "note"
    ),
    rewritten("the same field in both spellings", '"tok_visa"', '"tok_visa", "partySize": 3', "party_size"),
    rewritten("a comma at the end", '"tok_visa"', '"tok_visa",'),
    rewritten("a lone surrogate", '"tok_visa"', '"tok_visa", "note": "\\ud800"'),
    # Other RPCs that change something.
    on(
        f"PATCH {ONE}",
        "nothing to change",
        400,
        INVALID,
        body=lambda s: {"request_id": new_id(), "etag": s.booked.etag},
    ),
    on(
        f"PATCH {ONE}",
        "no etag",
        400,
        INVALID,
        "etag",
        body=lambda _: {"request_id": new_id(), "party_size": 1},
    ),
    on(
        f"PATCH {ONE}",
        "a stale etag",
        409,
        "ETAG_MISMATCH",
        body=lambda _: {"request_id": new_id(), "etag": "stale", "party_size": 1},
    ),
    on("PATCH /v1/reservations/1", "no UUID", 400, INVALID, "reservation_id", body=lambda _: {"etag": "x"}),
    on(f"POST /v1/reservations/{new_id()}:cancel", "unknown", 404, "NOT_FOUND", body=lambda _: {}),
    found("an enum that is no value", acceptance="MAYBE"),
    found("an enum by an unknown number", "policy.acceptance", acceptance=7),
    found("an enum left open", "policy.acceptance", acceptance="ACCEPTANCE_MODE_UNSPECIFIED"),
    found("a policy in words", "policy", policy="the usual"),
    found("a list of policies", "policy", policy=[]),
    found("an enum as a list", "policy.acceptance", acceptance=["ACCEPTANCE_MODE_AUTO"]),
    found(
        "money with a misspelt field",
        "policy.deposit_per_person.currency",
        deposit_per_person={"currency": "EUR", "units": "10"},
    ),
    found("money in words", deposit_per_person={"currency_code": "EUR", "units": "ten"}),
    found("money beyond 64 bits", deposit_per_person={"currency_code": "EUR", "units": "9" * 30}),
    found(
        "money below nothing",
        "policy.deposit_per_person",
        deposit_per_person={"currency_code": "EUR", "units": "-10"},
    ),
    found(
        "a currency that is none",
        "policy.deposit_per_person.currency_code",
        deposit_per_person={"currency_code": "EUE", "units": "10"},
    ),
    found("a name with nothing to see", "name", name="\u200b\u00a0\u3164"),
    found("an unknown time zone", "time_zone", time_zone="Europe/Atlantis"),
    found("a time zone that is a path", "time_zone", time_zone="../../../../etc/passwd"),
    slots("the 30th of February", "first_date", first_date={"year": 2027, "month": 2, "day": 30}),
    slots("a date in words", "first_date", first_date="tomorrow"),
    slots("a date as a list", "first_date", first_date=[2027, 5, 1]),
    slots("25 o'clock", "times", times=[{"hours": 25}]),
    slots("times that are none", "times[0]", times=["18:00"]),
    slots("a list of times in a list", "times[0]", times=[[{"hours": 18}]]),
    slots("a list of nothing in a list", "times[0]", times=[[None, None]]),
    slots("nothing among the times", "times[1]", times=[{"hours": 18}, None]),
    slots("a time that is no list", "times", times={"hours": 18}),
    slots("a misspelt field of a time", "times[1].hour", times=[{"hours": 18}, {"hour": 19}]),
    closing("neither times nor all of them", "times all_times"),
    closing("times and all of them", "times all_times", times=[{"hours": 18}], all_times=True),
    closing("all of them, said by a misspelt word", "allTime", allTime=True),
    slots("below nothing", "capacity", capacity=-1),
    slots("ten years", "last_date", last_date={"year": 2037, "month": 5, "day": 1}),
    # This one has closed a month.
    closing("lists of nothing in a list", "times[0]", times=[[None, None]]),
    closing("a list of nothing", "times[0]", times=[None]),
    closing("a time that is no list", "times", times={"hours": 18}),
    closing("misspelt times", "time", time=[{"hours": 18}]),
    on(
        "POST /v1/restaurants/{restaurant}/bookings/{reservation}:accept",
        "no revision",
        400,
        INVALID,
        "revision",
        body=lambda _: {},
        by="staff",
    ),
    on(
        "POST /v1/restaurants/{restaurant}/bookings/{reservation}:accept",
        "null",
        400,
        INVALID,
        "revision",
        body="null",
        by="staff",
    ),
    on(f"POST {ONE}:cancel", "a misspelt field", 400, INVALID, "reason", body=lambda _: {"reason": "ill"}),
    # Queries.
    on("GET /v1/reservations?page_size=many", "a word", 400, INVALID),
    on("GET /v1/reservations?page_size=-1", "negative", 400, INVALID, "page_size"),
    on("GET /v1/reservations?page_size=99999999999", "beyond 32 bits", 400, INVALID),
    on("GET /v1/reservations?page_size=", "empty", 400, INVALID),
    on("GET /v1/reservations?page_token=junk!", "junk", 400, INVALID, "page_token"),
    on("GET /v1/reservations?page_token=%00", "NUL", 400, INVALID, "page_token"),
    # {"id":"\ud800","time":0} and {"time":0}, as they once were: half of a pair, and every booking ever.
    on(
        "GET /v1/reservations?page_token=eyJpZCI6Ilx1ZDgwMCIsInRpbWUiOjB9",
        "half of a pair",
        400,
        INVALID,
        "page_token",
    ),
    on(
        "GET /v1/restaurants/{restaurant}/bookings:watch?resume_token=eyJ0aW1lIjowfQ",
        "the beginning of time",
        400,
        INVALID,
        "resume_token",
        by="staff",
    ),
    on("GET /v1/reservations?page_token=%FF%FE", "no UTF-8", 400, INVALID),
    on("GET /v1/reservations?pagesize=5", "misspelt", 400, INVALID),
    on("GET /v1/reservations?customer_id=bob", "unknown", 400, INVALID),
    on("GET /v1/reservations?a.b.c=1", "nested", 400, INVALID),
    on(f"GET {ONE}?access_token=x", "a token in the address", 400, INVALID),
    on(f"{SLOTS}?party_size=2", "no date", 400, INVALID, "date", by="anyone"),
    on(f"{SLOTS}?date=2027-02-30&party_size=2", "no such day", 400, INVALID, "date", by="anyone"),
    on(f"{SLOTS}?date='%20OR%201=1--&party_size=2", "SQL", 400, INVALID, "date", by="anyone"),
    on(f"{SLOTS}?date=2027-05-01", "no party", 400, INVALID, "party_size", by="anyone"),
    on(f"{SLOTS}?date=2027-05-01&party_size=two", "a word", 400, INVALID, by="anyone"),
    on("GET /v1/restaurants/{restaurant}/bookings?states=NOPE", "no such state", 400, INVALID, by="staff"),
    on("GET /v1/timeline?reservation_id=1", "no UUID", 400, INVALID, "reservation_id"),
    on("GET /v1/timeline:watch?resume_token=junk!", "junk", 400, INVALID, "resume_token"),
    # What the path says is not said again, and otherwise, somewhere else.
    on(f"GET {ONE}?reservation_id={new_id()}", "another id in the query", 400, INVALID),
    on(f"GET {ONE}?reservationId={new_id()}", "another id in the query, in the other spelling", 400, INVALID),
    on(f"GET {ONE}:watch?reservation_id={new_id()}", "another id in the query", 400, INVALID),
    on(f"GET /v1/deposits/{new_id()}?x=&deposit_id={new_id()}", "another id in the query", 400, INVALID),
    on(f"{GOOD_SLOTS}&restaurant_id={new_id()}", "another id in the query", 400, INVALID, by="anyone"),
    on(
        f"GET {ONE}?reservation%5fid={new_id()}",
        "another id in the query, its name in disguise",
        400,
        INVALID,
    ),
    on(f"GET {ONE}?%72eservation_id={new_id()}", "the same from its first letter on", 400, INVALID),
    on(f"GET {ONE}?reservationI%64={new_id()}", "the same in the other spelling", 400, INVALID),
    on(f"GET {ONE}:watch?x=1&reservation%5Fid={new_id()}", "the same of a watch", 400, INVALID),
    on(f"GET /v1/deposits/{new_id()}?deposit%5Fid={new_id()}", "the same of a deposit", 400, INVALID),
    on(f"{GOOD_SLOTS}&restaurant%5Fid={new_id()}", "the same of slots", 400, INVALID, by="anyone"),
    on(
        f"GET /v1/restaurants/{{restaurant}}/bookings?restaurant%5Fid={new_id()}",
        "the same of bookings",
        400,
        INVALID,
        by="staff",
    ),
    on(
        f"POST /v1/reservations/{new_id()}:cancel",
        "another id in the body",
        400,
        INVALID,
        body=lambda standing: {"reservation_id": standing.booked.reservation_id},
    ),
    on(
        f"PATCH /v1/reservations/{new_id()}",
        "another id in the body",
        400,
        INVALID,
        body=lambda standing: {
            "reservation_id": standing.booked.reservation_id,
            "request_id": new_id(),
            "etag": standing.booked.etag,
            "party_size": 1,
        },
    ),
    on(
        f"POST /v1/reservations/{new_id()}:cancel",
        "another id in the body, in the other spelling",
        400,
        INVALID,
        "reservation_id",
        body=lambda standing: {"reservationId": standing.booked.reservation_id},
    ),
    on(f"POST {ONE}:cancel?reservation_id={new_id()}", "a query", 400, INVALID, body=lambda _: {}),
    on("POST /v1/reservations?note=hello", "a query", 400, INVALID, body=lambda standing: standing.wish),
    # Paths and verbs.
    on("GET /v1", "nothing here", 404, "NO_SUCH_METHOD"),
    on("POST /", "no such verb", 405, "VERB_NOT_ALLOWED", body=lambda _: {}),
    on("GET /v1/nothing", "unknown", 404, "NO_SUCH_METHOD"),
    on("GET /v2/reservations", "another version", 404, "NO_SUCH_METHOD"),
    on("GET /V1/RESERVATIONS", "shouted", 404, "NO_SUCH_METHOD"),
    on(f"GET {ONE}/deposits", "too deep", 404, "NO_SUCH_METHOD"),
    on(f"GET {ONE}:frobnicate", "an unknown custom verb", 404, "NO_SUCH_METHOD"),
    on(f"POST {ONE}:Cancel", "a custom verb in another case", 404, "NO_SUCH_METHOD", body=lambda _: {}),
    on("GET /v1/reservations/..%2f..%2fetc%2fpasswd", "%2f", 400, INVALID),
    on("GET /v1/reservations/a%2Fb", "%2F", 400, INVALID),
    on("GET /v1/reservations/a%5Cb", "%5C", 400, INVALID),
    on("GET /v1/reservations/%00", "%00", 400, INVALID),
    on("GET /v1/reservations/%zz", "%zz", 400, INVALID),
    on("GET /v1/reservations/%ff", "%ff", 400, INVALID),
    on("GET /v1/reservations/../../etc/passwd", "..", 404, "NO_SUCH_METHOD"),
    on("GET /v1/reservations/%2e%2e/%2e%2e/etc/passwd", "%2e%2e", 404, "NO_SUCH_METHOD"),
    on("GET //v1//nothing", "slashes", 404, "NO_SUCH_METHOD"),
    on("GET /v1/reservations/1", "no UUID", 400, INVALID, "reservation_id"),
    on(f"GET /v1/reservations/{'x' * 8000}", "8 kB of id", 400, INVALID, "reservation_id"),
    on(f"GET /v1/reservations/{'x' * 20_000}", "20 kB of path", 431, "HEADERS_TOO_LARGE"),
    on(f"GET /v1/reservations/{new_id()}", "unknown", 404, "NOT_FOUND"),
    on("PUT /v1/reservations", "no such verb", 405, "VERB_NOT_ALLOWED", body=lambda s: s.wish),
    on(f"DELETE {ONE}", "no such verb", 405, "VERB_NOT_ALLOWED"),
    on(f"POST {ONE}", "no such verb", 405, "VERB_NOT_ALLOWED", body=lambda _: {}),
    on("BREW /v1/reservations", "an unknown method", 400, INVALID),
    on("TRACE /v1/reservations", "TRACE", 405, "VERB_NOT_ALLOWED"),
    on("POST /openapi.json", "no such verb", 405, "VERB_NOT_ALLOWED", body=lambda _: {}),
    on("DELETE /docs", "no such verb", 405, "VERB_NOT_ALLOWED"),
    on("POST /docs/nothing", "unknown", 404, "NO_SUCH_METHOD", body=lambda _: {}),
    on("GET /dinemesh.reservation.v1.ReservationService/ListReservations", "a read", 404, "NO_SUCH_METHOD"),
    on("GET /grpc.health.v1.Health/Check", "a read", 404, "NO_SUCH_METHOD", by="anyone"),
    # A question of no page: browsers say where theirs comes from.
    on(
        "OPTIONS /v1/reservations",
        "without an origin",
        405,
        "VERB_NOT_ALLOWED",
        headers={"access-control-request-method": "GET"},
    ),
    # Sizes.
    on("POST /v1/reservations", "70 kB", 413, "BODY_TOO_LARGE", body=json.dumps({"note": "n" * 70_000})),
    on("POST /v1/reservations", "200 kB", 413, "BODY_TOO_LARGE", body=json.dumps({"note": "n" * 200_000})),
    on("POST /v1/nothing", "200 kB to nobody", 413, "BODY_TOO_LARGE", body=b"n" * 200_000),
    on(
        "GET /v1/reservations",
        "a header of 20 kB",
        431,
        "HEADERS_TOO_LARGE",
        headers={"x-long": "h" * 20_000},
    ),
    on(
        "GET /v1/reservations",
        "a hundred headers",
        431,
        "HEADERS_TOO_LARGE",
        headers={f"x-header-{n}": "h" for n in range(100)},
    ),
    # Headers.
    on(
        "POST /v1/reservations",
        "text/plain",
        415,
        "NOT_JSON",
        body=lambda s: s.wish,
        content_type="text/plain",
    ),
    on(
        "POST /v1/reservations", "XML", 415, "NOT_JSON", body=lambda s: s.wish, content_type="application/xml"
    ),
    on(
        "POST /v1/reservations",
        "a form",
        415,
        "NOT_JSON",
        body=lambda s: s.wish,
        content_type="application/x-www-form-urlencoded",
    ),
    on(
        "POST /v1/reservations",
        "many parts",
        415,
        "NOT_JSON",
        body=lambda s: s.wish,
        content_type="multipart/form-data; boundary=x",
    ),
    on(
        "POST /v1/reservations",
        "nearly JSON",
        415,
        "NOT_JSON",
        body=lambda s: s.wish,
        content_type="application/jsonp",
    ),
    *(
        on(
            "POST /v1/reservations",
            content_type,
            415,
            "NOT_JSON",
            body=lambda s: s.wish,
            content_type=content_type,
        )
        for content_type in (
            "application/json5",
            "application/merge-patch+json",
            "text/json",
            "application/grpcfoo",
            "application/grpc-webfoo",
            "Application/GRPC",
            "text/plain; application/json",
        )
    ),
    on(
        "GET /v1/reservations",
        "a name with an underscore",
        400,
        INVALID,
        headers={"x_forwarded_user": "root"},
    ),
    # Tokens.
    Bad("token: none", "GET /v1/reservations", 401, "TOKEN_MISSING", by="anyone"),
    token("an empty header", lambda _: "", "TOKEN_MISSING"),
    token("another scheme", lambda _: "Basic YWxpY2U6YWxpY2U=", "TOKEN_MISSING"),
    token("no token behind Bearer", lambda _: "Bearer", "TOKEN_MISSING"),
    token("junk behind a scheme in lower case", lambda _: "bearer a.b.c"),
    token("junk", lambda _: "Bearer a.b.c"),
    token("one part", lambda _: "Bearer abc"),
    token("SQL", lambda _: f"Bearer {SQL}"),
    token("10 kB of junk", lambda _: f"Bearer {'j' * 10_000}"),
    token("a good one with a tail", lambda mesh: f"Bearer {mesh.token('alice', 'customer')}x"),
    token("a good one cut off", lambda mesh: f"Bearer {mesh.token('alice', 'customer')[:-4]}"),
    token("alg none", lambda mesh: f"Bearer {unsigned(mesh)}"),
    token("HS256 with the public key", lambda mesh: f"Bearer {with_the_public_key_as_secret(mesh)}"),
    token("another key", lambda mesh: f"Bearer {by_another_key(mesh)}"),
    token("an unknown key id", lambda mesh: f"Bearer {unknown_kid(mesh)}"),
    token(
        "expired",
        lambda mesh: f"Bearer {mesh.keys.token('alice', 'customer', seconds=-120)}",
        "TOKEN_EXPIRED",
    ),
    token("without an end", claims(exp=None)),
    token("not valid yet", claims(nbf=4_000_000_000)),
    token("another issuer", claims(iss="somebody")),
    token("no issuer", claims(iss=None)),
    token("another audience", claims(aud="somebody")),
    token("no audience", claims(aud=None)),
    token("no subject", claims(sub=None)),
    token("an empty subject", claims(sub="")),
    token("a subject that is a list", claims(sub=["alice"])),
    token("an unknown role", claims(role="king"), "PERMISSION_DENIED", 403),
    token("no role", claims(role=None), "PERMISSION_DENIED", 403),
    token("two roles", claims(role=["customer", "operator"]), "PERMISSION_DENIED", 403),
    token("staff of no restaurant", claims(role="staff")),
    token("a service", claims(role="service"), "PERMISSION_DENIED", 403),
    Bad(
        "token: broken, where none is needed",
        GOOD_SLOTS,
        401,
        "TOKEN_INVALID",
        token=lambda _: "Bearer a.b.c",
    ),
]


@pytest.fixture
async def standing(city: City) -> Standing:
    place, alice = await city.place(capacity=10), city.customer()
    return Standing(city, place, alice, await alice.book(place))


async def send(http: httpx.AsyncClient, mesh: RunningMesh, standing: Standing, bad: Bad) -> httpx.Response:
    metadata = {
        "customer": standing.alice.metadata,
        "staff": standing.place.metadata,
        "operator": standing.city.operator,
        "anyone": (),
    }[bad.by]
    headers = dict(metadata) | bad.headers
    if bad.token is not None:
        headers["authorization"] = bad.token(mesh)
    verb, path = bad.line.split(" ", 1)
    path = path.replace("{restaurant}", standing.place.id)
    path = path.replace("{reservation}", standing.booked.reservation_id)
    body = bad.body(standing) if callable(bad.body) else bad.body
    if body is not None and not isinstance(body, bytes | str):
        body = json.dumps(body)
    content = body.encode() if isinstance(body, str) else body or b""
    content_type = bad.content_type if bad.body is not None else ""
    return await http.send(as_written(http, verb, path, content_type, headers, content))


def leak(said: JsonRefused) -> str:
    """What a refusal shows and must not, or ""."""
    told = {key: value for key, value in said.headers.items() if key not in ("server", "www-authenticate")}
    if found := LEAKS.search(f"{said.text} {told}"):
        return f"shows {found[0]!r}: {said.text} {told}"
    if len(said.message) > 1000:
        return f"says too much: {said.message}"
    return ""


async def complaint(http: httpx.AsyncClient, mesh: RunningMesh, standing: Standing, bad: Bad) -> str:
    """How the refusal is not the right one, or ""."""
    answer = await send(http, mesh, standing, bad)
    if answer.status_code != bad.status:
        return f"{answer.status_code}, not {bad.status}: {answer.text[:300]}"
    try:
        said = json_refusal(answer)
    except (AssertionError, ValueError) as error:
        return f"is not the one shape: {error}"
    if found := leak(said):
        return found
    if not re.fullmatch(r"[0-9a-f-]{36}", said.headers.get("x-correlation-id", "")):
        return f"has no correlation id: {said.headers}"
    if said.reason != bad.reason:
        return f"{said.reason}, not {bad.reason}: {said.message}"
    for name in bad.fields:
        if not any(one == name or one.startswith((f"{name}.", f"{name}[")) for one in said.fields):
            return f"names {said.fields}, not {name}: {said.message}"
    return ""


@dataclass(frozen=True)
class State:
    """What a bad request must not change."""

    pids: dict[str, int]
    charges: int
    reservations: int
    deposits: int
    booked: Reservation
    stats: dict[str, int]


STEADY = (
    r"cluster\.(%s)\.(health_check\.failure|outlier_detection\.ejections_total|membership_(healthy|total))$"
)


async def state(standing: Standing, mesh: RunningMesh, edge: RunningEdge) -> State:
    await standing.place.sees_seats(0, 8)
    return State(
        pids={name: part.pid for name, part in mesh.parts.items() if part.running} | {"edge": edge.pid},
        charges=len(await standing.city.provider.charges()),
        reservations=len(await standing.alice.reservations()),
        deposits=len(await standing.alice.deposits()),
        booked=await standing.alice.read(standing.booked),
        stats=await asyncio.to_thread(edge.stats, STEADY % "|".join(SERVICES)),
    )


async def nothing_has_happened(
    before: State, standing: Standing, mesh: RunningMesh, edge: RunningEdge, http: httpx.AsyncClient
) -> None:
    """The books are the same, the processes too, and the edge counts everybody as well."""
    after = await state(standing, mesh, edge)
    assert after == before
    assert len(after.pids) == len(SERVICES) + 2
    for name in SERVICES:
        healthy = after.stats[f"cluster.{name}.membership_healthy"]
        assert healthy == after.stats[f"cluster.{name}.membership_total"] == 1
    assert (await http.get("/healthz")).status_code == 200
    assert after.booked.state == CONFIRMED


async def test_each_bad_request_is_refused_by_name_and_changes_nothing(
    standing: Standing, mesh: RunningMesh, edge: RunningEdge, http: httpx.AsyncClient
) -> None:
    """One table: what was refused wrongly is listed together."""
    assert len(BAD) >= 60
    before = await state(standing, mesh, edge)
    wrong = [f"{bad.name}: {found}" for bad in BAD if (found := await complaint(http, mesh, standing, bad))]
    assert not wrong, "\n".join(wrong)
    await nothing_has_happened(before, standing, mesh, edge, http)


CALL = "/dinemesh.reservation.v1.ReservationService/ListReservations"
ASKED_FOR = {"access-control-request-method": "GET"}
NEITHER: dict[str, tuple[str, dict[str, str]]] = {
    "a call by GET": (f"GET {CALL}", {}),
    "a call by PUT": (f"PUT {CALL}", {}),
    "a health check by GET": ("GET /grpc.health.v1.Health/Check", {}),
    "reflection by GET": ("GET /grpc.reflection.v1.ServerReflection/ServerReflectionInfo", {}),
    "a watch as server-sent events": ("GET /v1/reservations/x:watch", {"accept": "text/event-stream"}),
    "a watch": ("GET /v1/reservations/x:watch", {}),
    "a question before a call from no page": (f"OPTIONS {CALL}", ASKED_FOR),
    "a question before a read from no page": ("OPTIONS /v1/reservations", ASKED_FOR),
}
"""Requests that say they are gRPC and cannot be."""


@pytest.mark.parametrize("content_type", ["application/grpc", "application/grpc+proto"])
@pytest.mark.parametrize("kind", NEITHER)
async def test_what_says_it_is_grpc_and_cannot_be_does_not_exist(
    alone: httpx.AsyncClient, stand_in: StandIn, kind: str, content_type: str
) -> None:
    """It is no fault of the service, to which it never gets."""
    line, headers = NEITHER[kind]
    verb, path = line.split(" ")
    told = {"authorization": f"Bearer {stand_in.keys.token('alice', 'customer')}"} | headers
    answer = await alone.send(as_written(alone, verb, path, content_type, told, b"\0\0\0\0\0"))
    assert answer.headers["grpc-status"] == "12", answer.headers  # UNIMPLEMENTED
    assert stand_in.seen == []


@pytest.mark.parametrize(
    "content_type", ["application/json", "Application/JSON", "application/json; charset=utf-8"]
)
async def test_json_is_taken_however_it_is_spelt(
    alone: httpx.AsyncClient, stand_in: StandIn, content_type: str
) -> None:
    told = {"authorization": f"Bearer {stand_in.keys.token('alice', 'customer')}"}
    request = as_written(alone, "POST", "/v1/reservations/x:cancel", content_type, told, b"{}")
    assert (await alone.send(request)).status_code == 200


@pytest.mark.parametrize("length", ["content-length: 0", "transfer-encoding: chunked"])
@pytest.mark.parametrize(
    "content_type", ["application/x-www-form-urlencoded", "application/octet-stream", ""]
)
async def test_a_type_of_nothing_does_not_count(
    edge_alone: RunningEdge, alone: httpx.AsyncClient, stand_in: StandIn, content_type: str, length: str
) -> None:
    """aiohttp, HttpURLConnection and curl name one for a body that they have not."""
    nothing = b"0\r\n\r\n" if "chunked" in length else b""
    sent = raw(CANCEL, HOST, bearer_of(stand_in), f"content-type: {content_type}", length, body=nothing)
    assert (await over_the_wire(edge_alone, sent)).startswith(b"HTTP/1.1 200 ")
    (seen,) = stand_in.seen
    assert seen.method.endswith("/CancelReservation")


@pytest.mark.parametrize("query", ["page_token=a%2Fb", "page_token=%3D&page_size=1", "page_size=%31"])
async def test_values_of_a_query_may_be_percent_encoded(
    alone: httpx.AsyncClient, stand_in: StandIn, query: str
) -> None:
    told = {"authorization": f"Bearer {stand_in.keys.token('alice', 'customer')}"}
    assert (await alone.get(f"/v1/reservations?{query}", headers=told)).status_code == 200


async def test_answers_say_that_they_depend_on_the_page_that_asks(
    alone: httpx.AsyncClient, stand_in: StandIn
) -> None:
    """Else a cache could give one page what was said to another."""
    told = {"authorization": f"Bearer {stand_in.keys.token('alice', 'customer')}"}
    for origin in ({}, {"origin": "http://localhost:3000"}, {"origin": "https://evil.example"}):
        for headers in (told, {}):
            answer = await alone.get("/v1/reservations", headers=headers | origin)
            assert "Origin" in answer.headers.get_list("vary", split_commas=True), answer.headers


async def test_of_a_parameter_that_is_given_twice_the_last_one_counts(
    standing: Standing, mesh: RunningMesh, http: httpx.AsyncClient
) -> None:
    await standing.alice.reserve(standing.place)
    bad = Bad("twice", "GET /v1/reservations?page_size=5&page_size=1", 200, "")
    assert len((await send(http, mesh, standing, bad)).json()["reservations"]) == 1


@pytest.mark.parametrize("given", ["soon", "-1S", "5", "1H1H", "9" * 30 + "S", ""])
async def test_a_deadline_that_cannot_be_read_is_the_usual_one(
    standing: Standing, mesh: RunningMesh, edge: RunningEdge, http: httpx.AsyncClient, given: str
) -> None:
    known = new_id()
    bad = Bad(given, f"GET {ONE}", 200, "", headers={"grpc-timeout": given, "x-correlation-id": known})
    assert (await send(http, mesh, standing, bad)).status_code == 200

    async def line() -> dict[str, Any] | None:
        lines = mesh["reservation"].log.read_text().splitlines()
        return next((json.loads(one) for one in lines if known in one and '"message": "call"' in one), None)

    seen = await until(line, bool)
    assert seen is not None
    usual = edge.values.default_deadline_seconds * 1000
    assert 0.5 * usual < seen["deadline_ms"] <= 1.1 * usual


def raw(*lines: str, body: bytes = b"") -> bytes:
    """A request as it goes over the wire."""
    return "\r\n".join((*lines, "", "")).encode("latin-1") + body


HOST = "host: dinemesh"
CHUNKED = (
    "POST /v1/reservations HTTP/1.1",
    HOST,
    "authorization: Bearer {token}",
    "content-type: application/json",
    "transfer-encoding: chunked",
)

WIRE: dict[str, tuple[bytes, int]] = {
    "no HTTP": (b"HELO dinemesh\r\n\r\n", 400),
    "binary": (bytes(range(256)) * 4, 400),
    "TLS": (b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + b"\0" * 500, 400),
    "no host": (raw("GET /v1/restaurants HTTP/1.1"), 400),
    "a space in the path": (raw("GET /v1/rest aurants HTTP/1.1", HOST), 400),
    "NUL in the path": (raw("GET /v1/rest\0aurants HTTP/1.1", HOST), 400),
    "bytes above ASCII in the path": (raw("GET /v1/rest\xff\xfe HTTP/1.1", HOST), 400),
    "a verb with a space before it": (raw(" GET /v1/restaurants HTTP/1.1", HOST), 400),
    "a header without a colon": (raw("GET /v1/restaurants HTTP/1.1", HOST, "junk"), 400),
    "a header without a name": (raw("GET /v1/restaurants HTTP/1.1", HOST, ": junk"), 400),
    "a space before the colon": (raw("GET /v1/restaurants HTTP/1.1", HOST, "x-y : z"), 400),
    "NUL in a header": (raw("GET /v1/restaurants HTTP/1.1", HOST, "x-y: a\0b"), 400),
    "a length below nothing": (raw("POST /v1/reservations HTTP/1.1", HOST, "content-length: -1"), 400),
    "a length in words": (raw("POST /v1/reservations HTTP/1.1", HOST, "content-length: ten"), 400),
    "two lengths": (
        raw("POST /v1/reservations HTTP/1.1", HOST, "content-length: 2", "content-length: 3", body=b"{} "),
        400,
    ),
    "a length and chunks": (raw(*CHUNKED, "content-length: 2", body=b"2\r\n{}\r\n0\r\n\r\n"), 400),
    "another request hidden behind a length": (
        raw(
            *CHUNKED,
            "content-length: 4",
            body=b"0\r\n\r\n" + raw("GET /v1/restaurants HTTP/1.1", HOST),
        ),
        400,
    ),
    "an unknown transfer coding": (
        raw("POST /v1/reservations HTTP/1.1", HOST, "transfer-encoding: gzip, chunked"),
        400,
    ),
    "a chunk of a nonsensical size": (raw(*CHUNKED, body=b"zz\r\n{}\r\n0\r\n\r\n"), 400),
    "a chunk of a size beyond 64 bits": (raw(*CHUNKED, body=b"f" * 20 + b"\r\n{}\r\n0\r\n\r\n"), 400),
    "a chunk longer than it says": (raw(*CHUNKED, body=b"1\r\n{}{}{}\r\n0\r\n\r\n"), 400),
    "OPTIONS *": (raw("OPTIONS * HTTP/1.1", HOST), 404),
}
"""Bytes, and the HTTP status of the one answer to them."""


LIST = "GET /v1/reservations HTTP/1.1"
CANCEL = "POST /v1/reservations/x:cancel HTTP/1.1"
EMPTY = ("content-type: application/json", "content-length: 2")

UNUSUAL: dict[str, tuple[str, ...]] = {
    "HTTP/1.0": ("GET /v1/reservations HTTP/1.0", HOST),
    "HTTP/1.0 without a host": ("GET /v1/reservations HTTP/1.0",),
    # nginx, as it is by default.
    "HTTP/1.0, to be closed": ("GET /v1/reservations HTTP/1.0", HOST, "connection: close"),
    # ab -k.
    "HTTP/1.0, to be kept": ("GET /v1/reservations HTTP/1.0", HOST, "connection: Keep-Alive"),
    # To Envoy, whatever is not 1.1 is 1.0, and it says so.
    "HTTP/9.9": ("GET /v1/reservations HTTP/9.9", HOST),
    "a change by HTTP/1.0": ("POST /v1/reservations/x:cancel HTTP/1.0", HOST, "connection: close", *EMPTY),
    "a watch by HTTP/1.0": ("GET /v1/reservations/x:watch HTTP/1.0", HOST),
    "a body announced": (CANCEL, HOST, "expect: 100-continue", *EMPTY),
    # Apache's HttpClient.
    "TLS offered": (LIST, HOST, "connection: Upgrade", "upgrade: TLS/1.2"),
    "TLS offered with a change": (CANCEL, HOST, "connection: Upgrade", "upgrade: TLS/1.2", *EMPTY),
    # Java's HttpClient.
    "h2c offered": (
        LIST,
        HOST,
        "connection: Upgrade, HTTP2-Settings",
        "upgrade: h2c",
        "http2-settings: AAEAAEAAAAIAAAABAAMAAABkAAQBAAAAAAUAAEAA",
    ),
    "h2c offered with a change": (
        CANCEL,
        HOST,
        "connection: Upgrade, HTTP2-Settings",
        "upgrade: h2c",
        "http2-settings: AAEAAEAAAAIAAAABAAMAAABkAAQBAAAAAAUAAEAA",
        *EMPTY,
    ),
    "a WebSocket asked for": (LIST, HOST, "connection: Upgrade", "upgrade: websocket"),
    "the whole address": ("GET http://dinemesh/v1/reservations HTTP/1.1", HOST),
    "JSON without a type": (CANCEL, HOST, "content-length: 2"),
    "JSON with an empty type": (CANCEL, HOST, "content-type:", "content-length: 2"),
    "JSON with parameters": (
        CANCEL,
        HOST,
        'Content-Type: application/json ; charset="UTF-8"; v=1',
        "content-length: 2",
    ),
    "codings of answers": (LIST, HOST, "te: deflate;q=0.5, trailers", "connection: TE"),
    "an old proxy": (LIST, HOST, "proxy-connection: keep-alive", "keep-alive: timeout=5", "via: 1.0 old"),
    "conditions and a range": (LIST, HOST, "if-none-match: *", "range: bytes=0-5", "accept: text/html"),
    "an empty line before it": ("", LIST, HOST),
}
"""Requests as clients and proxies send them by default; where a length is said, `{}` follows."""


def bearer_of(stand_in: StandIn) -> str:
    return f"authorization: Bearer {stand_in.keys.token('alice', 'customer')}"


@pytest.mark.parametrize("kind", UNUSUAL)
async def test_what_http_allows_is_answered(
    edge_alone: RunningEdge, alone: httpx.AsyncClient, stand_in: StandIn, kind: str
) -> None:
    lines = UNUSUAL[kind]
    body = b"{}" if "content-length: 2" in lines else b""
    answer = await over_the_wire(edge_alone, raw(*lines, bearer_of(stand_in), body=body))
    _, told, answer = answer.rpartition(b"HTTP/1.1 100 Continue\r\n\r\n")
    assert not told or "expect: 100-continue" in lines
    version = b"HTTP/1.1" if any("HTTP/1.1" in one for one in lines) else b"HTTP/1.0"
    assert answer.startswith(version + b" 200 OK\r\n"), answer
    assert len(stand_in.seen) == 1


async def test_a_body_that_is_announced_is_asked_for(edge_alone: RunningEdge, stand_in: StandIn) -> None:
    head = raw(CANCEL, HOST, bearer_of(stand_in), "expect: 100-continue", *EMPTY)
    assert await over_the_wire(edge_alone, head) == b"HTTP/1.1 100 Continue\r\n\r\n"


@pytest.mark.parametrize("headers", [{}, {"te": "deflate"}], ids=["no te", "another te"])
@pytest.mark.parametrize("content_type", ["application/grpc", "application/grpc+proto"])
async def test_grpc_without_trailers_is_told_what_it_lacks(
    alone: httpx.AsyncClient, stand_in: StandIn, content_type: str, headers: dict[str, str]
) -> None:
    """It would be so again: there is no time after which to come back."""
    told = {"authorization": f"Bearer {stand_in.keys.token('alice', 'customer')}"} | headers
    answer = await alone.send(as_written(alone, "POST", CALL, content_type, told, b"\0\0\0\0\0"))
    assert answer.headers["grpc-status"] == "3"  # INVALID_ARGUMENT
    assert "te: trailers" in answer.headers["grpc-message"]
    assert not {"retry-after", "grpc-retry-pushback-ms"} & set(answer.headers)
    assert stand_in.seen == []


@pytest.mark.parametrize(("sent", "kept"), [("order/5", True), ("<b> 5", False), ("x" * 129, False)])
async def test_what_envoy_refuses_at_once_has_the_clients_id_if_it_is_one(
    edge_alone: RunningEdge, sent: str, kept: bool
) -> None:
    """Without a host, before any filter has seen it."""
    answer = await over_the_wire(edge_alone, raw(LIST, f"x-correlation-id: {sent}"))
    assert answer.startswith(b"HTTP/1.1 400 ")
    (told,) = re.findall(rb"\r\nx-correlation-id: (.*)\r\n", answer)
    assert (told == sent.encode()) == kept
    assert kept or re.fullmatch(rb"[0-9a-f-]{36}", told)


async def over_the_wire(edge: RunningEdge, sent: bytes) -> bytes:
    """All that comes back, until the edge closes or is silent."""
    reader, writer = await asyncio.open_connection("127.0.0.1", edge.port)
    try:
        writer.write(sent)
        await writer.drain()
        answer = b""
        try:
            while piece := await asyncio.wait_for(reader.read(65536), 0.3 if answer else 3):
                answer += piece
        except (TimeoutError, ConnectionResetError):
            pass
        return answer
    finally:
        writer.close()


async def test_bytes_that_are_no_good_request_get_one_refusal_and_change_nothing(
    standing: Standing, mesh: RunningMesh, edge: RunningEdge, http: httpx.AsyncClient
) -> None:
    before = await state(standing, mesh, edge)
    wrong = []
    token = dict(standing.alice.metadata)["authorization"].removeprefix("Bearer ").encode()
    answers = await asyncio.gather(
        *(over_the_wire(edge, sent.replace(b"{token}", token)) for sent, _ in WIRE.values())
    )
    for (name, (_, status)), answer in zip(WIRE.items(), answers, strict=True):
        head, _, body = answer.partition(b"\r\n\r\n")
        first, *lines = head.decode("latin-1").split("\r\n")
        if not first.startswith(f"HTTP/1.1 {status} "):
            wrong.append(f"{name}: {answer[:400]!r}")
            continue
        headers = {key.lower(): value.strip() for key, _, value in (one.partition(":") for one in lines)}
        if not re.fullmatch(r"[0-9a-f-]{36}", headers.get("x-correlation-id", "")):
            wrong.append(f"{name}: has no correlation id: {headers}")
        try:
            found = leak(read_refusal(status, headers, body.decode()))
        except (AssertionError, ValueError) as error:
            found = f"is not the one shape: {error}"
        if found:
            wrong.append(f"{name}: {found}")
    assert not wrong, "\n".join(wrong)
    await nothing_has_happened(before, standing, mesh, edge, http)
