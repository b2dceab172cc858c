"""docs/CLIENTS.md where the toolchain is always at hand: buf. `make clients` runs the others (clients.py)."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from protos.export import export
from tests.edge.client_pages import block, blocks
from tests.edge.clients import CLIENTS, shell
from tests.mesh.people import City
from tests.support.edge import RunningEdge

BUF = "buf"


def test_every_block_of_the_page_is_run() -> None:
    assert set(blocks()) == {*CLIENTS, BUF}


@pytest.mark.parametrize("reflected", [False, True], ids=["schema", "reflection"])
async def test_buf_finds_a_table(city: City, edge: RunningEdge, tmp_path: Path, reflected: bool) -> None:
    place = await city.place()
    contracts = tmp_path / "contracts"
    export(contracts)
    schema = "--schema $CONTRACTS/dinemesh.binpb "
    command = block(BUF)
    assert schema in command
    told = await shell(
        command.replace(schema, "") if reflected else command,
        tmp_path,
        CONTRACTS=str(contracts),
        BUF_CACHE_DIR=str(tmp_path / "cache"),
        EDGE=edge.address,
        RESTAURANT=place.id,
        DATE=place.slots[0].astimezone(place.zone).date().isoformat(),
    )
    slots = json.loads(told)["slots"]
    assert slots[0]["dineTime"]
    assert slots[0]["available"] is True
