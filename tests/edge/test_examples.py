"""The examples through the edge, as a person runs them on one machine."""

from __future__ import annotations

import asyncio
import datetime as dt
import os
import re
import sys
from pathlib import Path

from local_mesh.broker import project_cache
from tests.mesh.people import City, Place, evenings, policy
from tests.mesh.test_examples import ended_well, run
from tests.support.curl import folder_with_curl, unpacked
from tests.support.edge import RunningEdge
from tests.support.grpcurl import folder_with_grpcurl
from tests.support.mesh import RunningMesh


def story(edge: RunningEdge, mesh: RunningMesh, customer: str, place: Place) -> dict[str, str]:
    """Where, who, at which restaurant and on which day."""
    return {
        "EDGE": edge.address,
        "TOKEN": mesh.token(customer, "customer"),
        "RESTAURANT": place.id,
        "DATE": place.slots[0].astimezone(place.zone).date().isoformat(),
    }


async def test_the_story_over_curl(city: City, edge: RunningEdge, mesh: RunningMesh, tmp_path: Path) -> None:
    place, alice = await city.place(), city.customer()
    told = await run(
        "bash",
        "examples/curl.sh",
        env=story(edge, mesh, alice.name, place)
        | {"PATH": f"{folder_with_curl(tmp_path)}:{os.environ['PATH']}"},
    )
    # The watches told what happened while it happened, one JSON object a line or as events.
    assert '{"reservation":{' in told
    assert 'data: {"reservation":{' in told
    assert told.count('"state":"RESERVATION_STATE_CONFIRMED"') >= 2
    assert '{"end":{"reason":"END_REASON_FINISHED"}}' in told
    # The refusal named its fields.
    assert "HTTP/1.1 400 Bad Request" in told
    assert '"reason":"INVALID_ARGUMENT"' in told
    for field in ("request_id", "party_size", "payment_token"):
        assert f'"field":"{field}"' in told
    # Four guests at 10 EUR each, in two deposits; all of it came back.
    assert '"partySize": 4' in told
    assert '"refunded": {\n    "currencyCode": "EUR",\n    "units": "40"' in told
    assert "TIMELINE_ENTRY_KIND_DEPOSIT_REFUNDED" in told
    (reservation,) = await alice.reservations()
    assert reservation.party_size == 4
    assert len(reservation.deposits) == 2
    await ended_well(alice, place)


async def test_the_story_over_curl_without_curl_says_how_to_get_it(tmp_path: Path) -> None:
    for tool in ("bash", "python3"):
        (tmp_path / tool).symlink_to(f"/bin/{tool}" if tool == "bash" else sys.executable)
    try:
        await run("/bin/bash", "examples/curl.sh", env={"PATH": str(tmp_path), "TOKEN": "x"})
    except AssertionError as failed:
        assert "curl is missing: sudo apt-get install curl" in str(failed)
    else:
        raise AssertionError("there was a curl")


async def test_a_machine_without_curl_gets_the_one_of_its_distribution(tmp_path: Path) -> None:
    there = await asyncio.to_thread(unpacked, project_cache(), tmp_path)
    assert (await run(f"{there}/curl", "--version", env={})).startswith("curl ")


async def test_the_story_over_grpcurl(
    city: City, edge: RunningEdge, mesh: RunningMesh, tmp_path: Path
) -> None:
    place, alice = await city.place(), city.customer()
    told = await run(
        "bash",
        "examples/grpcurl.sh",
        env=story(edge, mesh, alice.name, place)
        | {"PATH": f"{folder_with_grpcurl(tmp_path)}:{os.environ['PATH']}"},
    )
    for service in ("reservation", "deposit", "restaurant", "history"):
        assert f"dinemesh.{service}.v1.{service.capitalize()}Service" in told
    assert "SandboxService" not in told, "the edge lists what it does not serve"
    assert '"state": "RESERVATION_STATE_CANCELLED"' in told
    assert "TIMELINE_ENTRY_KIND_RESERVATION_PLACED" in told
    await ended_well(alice, place)


async def test_the_story_over_the_generated_python_client(
    city: City, edge: RunningEdge, mesh: RunningMesh
) -> None:
    place, alice = await city.place(times=[], terms=policy(free_cancel_seconds=3 * 86_400)), city.customer()
    in_a_week = evenings(place.zone)[0]
    in_two_days = in_a_week - dt.timedelta(days=5)  # could not be changed any more
    await place.open([in_two_days, in_a_week], 20)
    told = await run(
        sys.executable,
        "-m",
        "examples.booking",
        f"--at={place.name}",
        env={"TOKEN": mesh.token(alice.name, "customer"), "EDGE": edge.address},
    )
    assert "reserved for two" in told
    assert "the restaurant has accepted: CONFIRMED" in told
    assert "four people now, in 2 deposits, CONFIRMED" in told
    assert "cancelled: 40.00 EUR go back, 0.00 EUR are forfeited" in told
    assert told.count("deposit: captured 20.00 EUR, held 0.00 EUR, refunded 20.00 EUR") == 2
    # The time of the table is told as the timeline tells it, too.
    (utc,) = re.findall(r"there \((\d\d:\d\d UTC)\)", told)
    assert f", {utc}" in told
    await ended_well(alice, place)
