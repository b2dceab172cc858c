"""The examples are run: an example that is not run is wrong.

grpcurl is a Go tool and need not be installed: its lines are run, unchanged, by tests/support/grpcurl.py,
which takes services, methods and fields from reflection v1 as grpcurl does.
"""

from __future__ import annotations

import asyncio
import os
import sys
from pathlib import Path

import pytest
from google.type.money_pb2 import Money

from dinemesh.deposit.v1 import deposit_pb2
from examples import booking
from local_mesh import dialogue
from local_mesh.settings import BEHIND_THE_EDGE
from tests.mesh.people import CANCELLED, City, Customer, Place
from tests.support.grpcurl import folder_with_grpcurl
from tests.support.mesh import ROOT, RunningMesh


async def run(*command: str, env: dict[str, str]) -> str:
    """What the command prints; fails with all of it if it fails."""
    kept = {key: value for key, value in os.environ.items() if not key.startswith("DINEMESH_")}
    process = await asyncio.create_subprocess_exec(
        *command,
        cwd=ROOT,
        env=kept | env,
        stdin=asyncio.subprocess.DEVNULL,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )
    out, err = await asyncio.wait_for(process.communicate(), 60)
    assert process.returncode == 0, f"{command}\n{out.decode()}\n{err.decode()}"
    return out.decode()


async def ended_well(customer: Customer, place: Place) -> None:
    (reservation,) = await customer.reservations()
    assert reservation.state == CANCELLED
    assert reservation.restaurant_id == place.id
    await customer.sees_deposits(
        reservation, *[deposit_pb2.DEPOSIT_STATE_REFUNDED] * len(reservation.deposits)
    )


@pytest.mark.parametrize(
    ("money", "words"),
    [
        (Money(currency_code="EUR", units=12, nanos=500_000_000), "12.50 EUR"),
        (Money(currency_code="JPY", units=12000), "12000 JPY"),
        (Money(currency_code="KWD", units=1, nanos=250_000_000), "1.250 KWD"),
        (Money(currency_code="USD", units=-1, nanos=-10_000_000), "-1.01 USD"),
        (Money(), "nothing"),
    ],
)
def test_the_example_and_the_demo_show_money_with_the_digits_of_its_currency(
    money: Money, words: str
) -> None:
    assert booking.in_words(money) == words
    if money.currency_code:
        amount, code = words.split()
        assert dialogue.money(money) == f"{code} {amount}"


async def test_the_same_story_without_a_token_says_how_to_get_one(mesh: RunningMesh) -> None:
    kept = {key: value for key, value in os.environ.items() if key != "TOKEN"}
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "examples.booking", cwd=ROOT, env=kept, stderr=asyncio.subprocess.PIPE
    )
    _, said = await process.communicate()
    assert process.returncode == 2
    assert "make token SUB=alice ROLE=customer" in said.decode()


async def test_the_story_over_grpcurl_at_the_own_port_of_each_service(
    city: City, mesh: RunningMesh, tmp_path: Path
) -> None:
    place, alice = await city.place(), city.customer()
    day = place.slots[0].astimezone(place.zone).date()
    told = await run(
        "bash",
        "examples/grpcurl.sh",
        env={f"{name.upper()}_ADDRESS": mesh[name].address for name in BEHIND_THE_EDGE}
        | {
            "PATH": f"{folder_with_grpcurl(tmp_path)}:{os.environ['PATH']}",
            "EDGE": "there-is-none:1",
            "DIRECT": "yes",
            "TOKEN": mesh.token(alice.name, "customer"),
            "RESTAURANT": place.id,
            "DATE": day.isoformat(),
        },
    )
    assert "dinemesh.history.v1.HistoryService" in told
    assert '"state": "RESERVATION_STATE_CANCELLED"' in told
    assert "TIMELINE_ENTRY_KIND_RESERVATION_PLACED" in told
    await ended_well(alice, place)
