"""The running edge, under calls made up from its own OpenAPI document.

A longer run with a new seed, which it prints: DINEMESH_FUZZ_EXAMPLES=300, and pytest -rP for the figures.
"""

from __future__ import annotations

import os
import random
import re
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from schemathesis import GenerationMode

from dinemesh.restaurant.v1.restaurant_pb2 import BOOKING_STATE_RECEIVED as RECEIVED
from local_mesh.broker import RunningBroker
from operations.audit import audit
from tests.edge.fuzzing import Fuzz, Json, Person
from tests.mesh.people import (
    MANUAL,
    PENDING_ACCEPTANCE,
    City,
    Customer,
    Place,
    Reservation,
    policy,
    soon,
    until,
)
from tests.mesh.test_audit import sources
from tests.support.edge import RunningEdge
from tests.support.mesh import RunningMesh

EXAMPLES = int(os.environ.get("DINEMESH_FUZZ_EXAMPLES", "0"))
"""How many calls of each kind are made up for each operation in a longer run."""
SEED = int(os.environ.get("DINEMESH_FUZZ_SEED", "0")) or (random.randrange(1, 2**32) if EXAMPLES else 1)
USUAL_EXAMPLES = 16
LEAST_CALLS = 1000
FEWER_WATCHES = 4
"""A watch takes a third of a second, another call a hundredth."""
AUDIT_SECONDS = 60

_POLICY = "(Create|Update)Restaurant: policy"
_SLOTS = "(Open|Close)Slots"
_TERMS = "(Create|Modify)Reservation"
BEYOND_A_SCHEMA = (
    # Tokens are the server's to make.
    r"(List|Watch)\w+: (page_token|resume_token): is not a token of this (list|call|service)",
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
    rf"{_SLOTS}: first_date: must not be in the past",
    rf"{_SLOTS}: last_date: must (not be before first_date|(leave )?.*at most \d+ days.*)",
    r'ListAvailableSlots: date: must be a day in the form "YYYY-MM-DD"',
    # Money by its currency, zones by their list, and a name of nothing but spaces.
    rf"{_POLICY}\.deposit_per_person: (must be greater than zero|is too large)",
    rf"{_POLICY}\.deposit_per_person: is finer than the smallest unit of its currency",
    rf"{_POLICY}\.deposit_per_person: times max_party_size must be at most \d+ of the currency's .+",
    rf"{_POLICY}\.deposit_per_person: units and nanos do not fit together",
    r"CreateRestaurant: time_zone: must be an IANA time zone such as Europe/Berlin",
    r"(Create|Update)Restaurant: name: must not be blank",
)
"""Of which operation a value that its schema allows can be refused all the same, and why. Anything else means
that the document says less than the services ask for."""


@pytest.fixture(scope="module")
def mesh(tmp_path_factory: pytest.TempPathFactory, broker: RunningBroker) -> Iterator[RunningMesh]:
    """Its own, since its books are audited afterwards."""
    mesh = RunningMesh(tmp_path_factory.mktemp("fuzzed-mesh"), broker.fresh_url())
    mesh.start()
    yield mesh
    mesh.stop()


@pytest.fixture(scope="module")
def edge(tmp_path_factory: pytest.TempPathFactory, mesh: RunningMesh) -> Iterator[RunningEdge]:
    edge = RunningEdge(mesh, tmp_path_factory.mktemp("fuzzed-edge"))
    edge.start()
    edge.wait_until_healthy()
    yield edge
    edge.stop()


async def restaurant_with_bookings(city: City, alice: Customer) -> tuple[Place, list[Reservation]]:
    """Bookings that can be accepted, declined, seated, marked as no-shows, modified and cancelled."""
    times = [soon(30), soon(1800), soon(86_400)]
    place = await city.place(
        capacity=100_000,
        times=times,
        terms=policy(MANUAL, interval_seconds=1, free_cancel_seconds=7200, max_party=1000),
    )
    reservations = [await alice.reserve(place, slot=number % 3) for number in range(12)]
    for number, one in enumerate(reservations):
        await alice.sees(one, PENDING_ACCEPTANCE)
        booking = await place.sees(one, RECEIVED)
        if number < 8:
            await place.accept(booking)
    return place, reservations


def what_exists(place: Place, reservations: list[Reservation]) -> dict[str, list[Any]]:
    """Values for the fields of made-up calls, by name."""
    return {
        "restaurant_id": [place.id],
        "reservation_id": [one.reservation_id for one in reservations],
        "deposit_id": [one.deposits[0].deposit_id for one in reservations],
        "request_id": [f"00000000-0000-4000-8000-{number:012}" for number in range(40)],
        "dine_time": [one.isoformat().replace("+00:00", "Z") for one in place.slots],
        "date": [one.date().isoformat() for one in place.slots],
        "etag": ["1", "2"],
        "payment_token": ["tok_visa", "tok_visa", "tok_chargeDeclined"],
        "time_zone": ["Europe/Rome", "Asia/Tokyo"],
        "revision": [1, 1, 1, 2],
    }


@pytest.mark.timeout(7200 if EXAMPLES else 600)
async def test_no_made_up_call_breaks_the_edge_the_mesh_or_the_word_of_the_document(
    mesh: RunningMesh, edge: RunningEdge, city: City
) -> None:
    place, reservations = await restaurant_with_bookings(city, city.customer("alice"))
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
    found = fuzz.found
    print(f"seed {SEED}: {found}")  # noqa: T201 - the figures of a longer run

    assert found.faults == [], "\n\n".join(found.faults[:20])
    assert found.total >= LEAST_CALLS
    assert all(status < 500 for status in found.statuses)
    beyond = re.compile("|".join(BEYOND_A_SCHEMA))
    assert [what for what in found.violations if not beyond.fullmatch(what)] == []
    # What was tried was worth trying: most operations have also done something.
    assert len(found.taken) >= 16, found.taken

    assert {part.name: part.pid for part in mesh.parts.values() if part.running} == pids
    assert edge.running
    report = await until(
        lambda: audit(sources(mesh), patience_seconds=0.5), lambda one: one.clean, AUDIT_SECONDS
    )
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
