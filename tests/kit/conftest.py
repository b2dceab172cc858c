"""A database and an outbox for words."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from pathlib import Path

import pytest
from sqlalchemy import create_engine

from dinemesh.kit.outbox import Outbox
from dinemesh.kit.store import Store
from tests.kit.words import encode, metadata, outbox_rows


@pytest.fixture
async def store(fresh_database: Callable[[str], str]) -> AsyncIterator[Store]:
    url = fresh_database("")
    engine = create_engine(url)
    metadata.create_all(engine)
    engine.dispose()
    store = Store.open(url)
    yield store
    await store.close()


@pytest.fixture
async def sqlite_store(tmp_path: Path) -> AsyncIterator[Store]:
    url = f"sqlite:///{tmp_path}/words.db"
    engine = create_engine(url)
    metadata.create_all(engine)
    engine.dispose()
    store = Store.open(url)
    yield store
    await store.close()


@pytest.fixture
def outbox() -> Outbox:
    return Outbox(outbox_rows, encode, "words")
