r"""The running edge, under calls made up from its own OpenAPI document.

The calls come out of a seed. What becomes of them depends on the day too, which is the mesh's own: a fixed
one, and that of the run. Each run tells how to repeat it, for instance

    DINEMESH_FUZZ_SEED=1 DINEMESH_FUZZ_DAY=2026-11-29T12:00:00Z \
        .venv/bin/python -m pytest tests/edge/test_fuzz.py -k made_up

(a day without a time is its noon). DINEMESH_FUZZ_EXAMPLES=300 is a longer run, with a new seed.
"""

from __future__ import annotations

import datetime as dt
import os
import random
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
from schemathesis import GenerationMode

from dinemesh.restaurant.v1.restaurant_pb2 import BOOKING_STATE_RECEIVED as RECEIVED
from local_mesh.broker import RunningBroker
from operations import snapshot
from operations.audit import judge
from operations.limits import Limits
from operations.report import Report
from tests.edge.fuzzing import Fuzz, Json, Person
from tests.mesh.people import (
    MANUAL,
    PENDING_ACCEPTANCE,
    City,
    Customer,
    Place,
    Reservation,
    policy,
    until,
)
from tests.mesh.test_audit import sources
from tests.support.clock import Calendar
from tests.support.edge import RunningEdge
from tests.support.mesh import RunningMesh

EXAMPLES = int(os.environ.get("DINEMESH_FUZZ_EXAMPLES", "0"))
"""How many calls of each kind are made up for each operation in a longer run."""
SEED = int(os.environ.get("DINEMESH_FUZZ_SEED", "0")) or (random.randrange(1, 2**32) if EXAMPLES else 1)
TODAY = "today"
FIXED = dt.datetime(2026, 11, 29, 12, tzinfo=dt.UTC)
"""A day on which something was found."""
DAYS = [day] if (day := os.environ.get("DINEMESH_FUZZ_DAY", "")) else [FIXED.isoformat(), TODAY]
USUAL_EXAMPLES = 16
LEAST_CALLS = 1000
FEWER_WATCHES = 4
"""A watch takes a third of a second, another call a hundredth."""
AUDIT_SECONDS = 60
A_WHILE = dt.timedelta(minutes=5)
"""More than a test takes to begin."""

_POLICY = "(Create|Update)Restaurant: policy"
_SLOTS = "(Open|Close)Slots"
_TERMS = "(Create|Modify)Reservation"
BEYOND_A_SCHEMA = (
    # Tokens are the server's to make.
    r"(List|Watch)\w+: (page_token|resume_token): is not a token of this (list|watch) with this request; .+",
    # Fields that contradict each other, or what there is.
    r"UpdateRestaurant: name: name or policy is required",
    r"ModifyReservation: (dine_time|party_size|note): one of dine_time, party_size and note is required",
    r"ModifyReservation: payment_token: is required, since the deposit gets higher",
    rf"{_TERMS}: party_size: must be between 1 and \d+ at this restaurant",
    rf"{_TERMS}: dine_time: is past; a table can be booked for the future only",
    rf"{_TERMS}: dine_time: must be more than \d+ seconds from now, so that the restaurant can answer",
    rf"{_TERMS}: dine_time: must be at most \d+ days from now",
    rf"{_TERMS}: dine_time: must be a multiple of \d+ seconds from midnight, .+",
    rf"{_TERMS}: dine_time: must be in whole seconds",
    rf"{_SLOTS}: times(\[\d+\])?: must .+",
    r"CloseSlots: all_times: must be true to close all slots of the days, and only if times is empty",
    r"ListBookings: end_time: must be after start_time",
    rf"{_POLICY}\.acceptance_limit_seconds: must be between 1 and \d+",
    # The calendar and the clock.
    rf"{_SLOTS}: (first_date|last_date): is not a day of the calendar",
    rf"{_SLOTS}: first_date: must be yesterday or later, where the restaurant is",
    rf"{_SLOTS}: last_date: must (not be before first_date|(leave )?.*at most \d+ days.*)",
    r'ListAvailableSlots: date: must be a day in the form "YYYY-MM-DD", of the years 1970 to 9998',
    # Money by its currency, currencies and zones by their lists, and a text with nothing to see.
    rf"{_POLICY}\.deposit_per_person\.currency_code: must be a currency of ISO 4217 that is paid with, .+",
    rf"{_POLICY}\.deposit_per_person: (must be greater than zero|is too large)",
    rf"{_POLICY}\.deposit_per_person: is finer than the smallest unit of its currency",
    rf"{_POLICY}\.deposit_per_person: times max_party_size must be at most \d+ of the currency's .+",
    rf"{_POLICY}\.deposit_per_person: units and nanos do not fit together",
    r"CreateRestaurant: time_zone: must be an IANA time zone such as Europe/Berlin",
    r"\w+: (name|etag|policy_etag|payment_token): must not be blank: it has no visible character",
)
"""Of which operation a value that its schema allows can be refused all the same, and why. Anything else means
that the document says less than the services ask for."""


@dataclass(frozen=True)
class Fuzzed:
    """A mesh of its own, since its books are audited afterwards, and the edge before it."""

    mesh: RunningMesh
    edge: RunningEdge
    calendar: Calendar
    began: dt.datetime
    """When the mesh was started, by its own calendar."""

    @property
    def repetition(self) -> str:
        """The command that does the same again."""
        longer = f"DINEMESH_FUZZ_EXAMPLES={EXAMPLES} " if EXAMPLES else ""
        day = self.began.strftime("%Y-%m-%dT%H:%M:%SZ")
        made_of = f"{longer}DINEMESH_FUZZ_SEED={SEED} DINEMESH_FUZZ_DAY={day}"
        return f"{made_of} .venv/bin/python -m pytest tests/edge/test_fuzz.py -k made_up"

    async def books(self) -> Report:
        """The audit, by the clock of the mesh."""
        seen = await snapshot.take(sources(self.mesh))
        return judge(replace(seen, now=seen.now + self.calendar.ahead), sources(self.mesh), Limits())


def moment(day: str) -> dt.datetime:
    """`day`: as in DINEMESH_FUZZ_DAY, or TODAY."""
    if day == TODAY:
        return dt.datetime.now(dt.UTC).replace(microsecond=0)
    given = dt.datetime.fromisoformat(day)
    return given if given.tzinfo else dt.datetime.combine(given.date(), dt.time(12), dt.UTC)


@pytest.fixture
def fuzzed(
    request: pytest.FixtureRequest,
    tmp_path: Path,
    broker: RunningBroker,
    record_property: Callable[[str, object], None],
) -> Iterator[Fuzzed]:
    began = moment(request.param)
    calendar = Calendar.at(began)
    mesh = RunningMesh(tmp_path, broker.fresh_url(), launch=calendar.launch)
    mesh.start()
    edge = RunningEdge(mesh, tmp_path / "edge")
    try:
        edge.start()
        edge.wait_until_healthy()
        fuzzed = Fuzzed(mesh, edge, calendar, began)
        record_property("repeat", fuzzed.repetition)
        yield fuzzed
    finally:
        edge.stop()
        mesh.stop()


async def restaurant_with_bookings(
    city: City, alice: Customer, calendar: Calendar
) -> tuple[Place, list[Reservation]]:
    """Bookings that can be accepted, declined, seated, marked as no-shows, modified and cancelled."""
    times = [calendar.soon(30), calendar.soon(1800), calendar.soon(86_400)]
    place = await city.place(
        capacity=100_000,
        times=times,
        # Where no hour comes twice: slots are opened by the clock on the wall.
        time_zone="UTC",
        terms=policy(MANUAL, interval_seconds=1, free_cancel_seconds=7200, max_party=1000),
    )
    reservations = [await alice.reserve(place, slot=number % 3) for number in range(12)]
    for number, one in enumerate(reservations):
        await alice.sees(one, PENDING_ACCEPTANCE)
        booking = await place.sees(one, RECEIVED)
        if number < 8:
            await place.accept(booking)
    return place, reservations


def in_days(place: Place, days: int) -> Json:
    """From its first slot on."""
    day = place.slots[0].date() + dt.timedelta(days=days)
    return {"year": day.year, "month": day.month, "day": day.day}


def what_exists(place: Place, reservations: list[Reservation]) -> dict[str, list[Any]]:
    """Values for the fields of made-up calls, by name."""
    return {
        "restaurant_id": [place.id],
        "reservation_id": [one.reservation_id for one in reservations],
        "deposit_id": [one.deposits[0].deposit_id for one in reservations],
        "request_id": [f"00000000-0000-4000-8000-{number:012}" for number in range(40)],
        "dine_time": [one.isoformat().replace("+00:00", "Z") for one in place.slots],
        "date": [one.date().isoformat() for one in place.slots],
        # Of other days than those bookings are for.
        "first_date": [in_days(place, 40), in_days(place, 41)],
        "last_date": [in_days(place, 41), in_days(place, 43)],
        "etag": ["1", "2"],
        "policy_etag": [place.policy_etag, place.policy_etag, "another"],
        "currency_code": ["EUR", "JPY", "KWD"],
        "payment_token": ["tok_visa", "tok_visa", "tok_chargeDeclined"],
        "time_zone": ["Europe/Rome", "Asia/Tokyo"],
        "revision": [1, 1, 1, 2],
    }


@pytest.mark.timeout(7200 if EXAMPLES else 600)
@pytest.mark.parametrize("fuzzed", DAYS, indirect=True)
async def test_no_made_up_call_breaks_the_edge_the_mesh_or_the_word_of_the_document(fuzzed: Fuzzed) -> None:
    mesh, edge, city = fuzzed.mesh, fuzzed.edge, City(fuzzed.mesh)
    place, reservations = await restaurant_with_bookings(city, city.customer("alice"), fuzzed.calendar)
    made = reservations[0].create_time.ToDatetime(dt.UTC)
    assert abs(made - fuzzed.calendar.now()) < A_WHILE, "the mesh has another day"
    others = await city.customer("bob").reserve(place)
    people = [
        Person("customer", mesh.token("alice", "customer")),
        Person("staff", mesh.token("sam", "staff", place.id)),
        Person("operator", mesh.token("olga", "operator")),
        Person("service", mesh.token("reservation", "service")),
        Person("nobody"),
        Person("stranger", "eyJhbGciOiJub25lIn0.e30."),
    ]
    pids = {part.name: part.pid for part in mesh.parts.values()}
    fuzz = Fuzz(edge, people, what_exists(place, [*reservations, others]), seed=SEED)
    for operation in fuzz.operations():
        examples = (EXAMPLES or USUAL_EXAMPLES) // (FEWER_WATCHES if operation.path.endswith(":watch") else 1)
        fuzz.boundaries(operation, most=examples)
        fuzz.values(operation, GenerationMode.POSITIVE, examples)
        fuzz.values(operation, GenerationMode.NEGATIVE, examples)
    fuzz.close()
    await city.close()
    found = fuzz.found
    print(f"{fuzzed.repetition}\n{found}")  # noqa: T201 - the figures of a longer run

    assert found.faults == [], "\n\n".join(found.faults[:20])
    assert found.total >= LEAST_CALLS
    assert all(status < 500 for status in found.statuses)
    beyond = re.compile("|".join(BEYOND_A_SCHEMA))
    assert [what for what in found.violations if not beyond.fullmatch(what)] == []
    # What was tried was worth trying: most operations have also done something.
    assert len(found.taken) >= 16, found.taken

    assert {part.name: part.pid for part in mesh.parts.values() if part.running} == pids
    assert edge.running
    report = await until(fuzzed.books, lambda one: one.clean, AUDIT_SECONDS)
    assert not report.skipped


def knows_no_next_page(document: Json) -> None:
    page = document["components"]["schemas"]["ListRestaurantsResponse"]
    del page["properties"]["nextPageToken"]
    page["required"].remove("nextPageToken")


def wants_a_field_that_there_is_not(document: Json) -> None:
    document["components"]["schemas"]["ListRestaurantsResponse"]["required"].append("total")


def forbids_what_is_allowed(document: Json) -> None:
    (size, _) = document["paths"]["/v1/restaurants"]["get"]["parameters"]
    size["schema"]["minimum"] = 2**30


def knows_no_bad_request(document: Json) -> None:
    del document["paths"]["/v1/restaurants"]["get"]["responses"]["400"]


def knows_another_reason(document: Json) -> None:
    bad = document["components"]["responses"]["BadRequest"]["content"]["application/json"]
    bad["examples"] = {"CARD_DECLINED": bad["examples"]["INVALID_ARGUMENT"]}
    document["paths"]["/v1/restaurants"]["get"]["responses"]["400"] = document["components"]["responses"][
        "BadRequest"
    ]


def needs_a_token(document: Json) -> None:
    document["paths"]["/v1/restaurants"]["get"]["security"] = [{"token": []}]


@pytest.mark.parametrize(
    ("spoil", "complaint"),
    [
        (knows_no_next_page, "Additional properties are not allowed"),
        (wants_a_field_that_there_is_not, "'total' is a required property"),
        (forbids_what_is_allowed, "is less than the minimum"),
        (knows_no_bad_request, "Undocumented status code|400 INVALID_ARGUMENT is not documented"),
        (knows_another_reason, "INVALID_ARGUMENT is not documented"),
        (needs_a_token, "taken without a token that may"),
    ],
)
def test_a_document_that_says_something_else_is_found_by_the_same_calls(
    edge: RunningEdge, spoil: Callable[[Json], None], complaint: str
) -> None:
    """And the document as it is, is not: the test above."""
    fuzz = Fuzz(edge, [Person("nobody")], {}, seed=1, change=spoil)
    operation = next(one for one in fuzz.operations() if one.label == "GET /v1/restaurants")
    fuzz.boundaries(operation, most=100)
    fuzz.close()
    assert any(re.search(complaint, fault) for fault in fuzz.found.faults), fuzz.found
