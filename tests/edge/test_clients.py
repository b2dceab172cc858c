"""docs/CLIENTS.md where the toolchain is always at hand: buf. `make clients` runs the others (clients.py)."""

from __future__ import annotations

import pytest

from tests.edge.client_pages import block, blocks
from tests.edge.clients import CLIENTS, Bench, bench, contracts

__all__ = ["bench", "contracts"]


def test_every_block_of_the_page_is_run() -> None:
    assert set(blocks()) == set(CLIENTS)


@pytest.mark.parametrize("reflected", [False, True], ids=["schema", "reflection"])
async def test_buf_books_is_refused_watches_and_cancels(bench: Bench, reflected: bool) -> None:
    schema = " --schema $CONTRACTS/dinemesh.binpb"
    commands = block("buf")
    assert schema in commands
    await bench.run("buf", commands.replace(schema, "") if reflected else commands)
