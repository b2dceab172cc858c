"""The restaurant service on a real database of each engine."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable

import pytest

from dinemesh.kit.store import Store


@pytest.fixture
async def store(fresh_database: Callable[[str], str]) -> AsyncIterator[Store]:
    store = Store.open(fresh_database("restaurant_svc"))
    yield store
    await store.close()
