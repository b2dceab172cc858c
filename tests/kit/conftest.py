"""A database and an outbox for words."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from pathlib import Path

import pytest

from dinemesh.kit.outbox import Outbox
from dinemesh.kit.store import Store
from tests.kit.words import encode, opened, outbox_rows


@pytest.fixture
async def store(fresh_database: Callable[[str], str]) -> AsyncIterator[Store]:
    async with opened(fresh_database("")) as store:
        yield store


@pytest.fixture
async def sqlite_store(tmp_path: Path) -> AsyncIterator[Store]:
    async with opened(f"sqlite:///{tmp_path}/words.db") as store:
        yield store


@pytest.fixture
def outbox() -> Outbox:
    return Outbox(outbox_rows, encode, "words")
