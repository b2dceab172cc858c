"""Worlds to damage."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest

from tests.operations.world import SERVICES, Record, World


@pytest.fixture
def provider() -> Iterator[Record]:
    record = Record()  # type: ignore[abstract]  # it is only ever asked for its charges
    yield record
    record.close()


@pytest.fixture
def world(sqlite_templates: Callable[[str], str], provider: Record) -> Iterator[World]:
    world = World({name: sqlite_templates(f"{name}_svc") for name in SERVICES}, provider)
    yield world
    world.close()
