"""Both proxies between reservation and deposit, in front of servers that fail as a test says."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.policy.backends import Backend
from tests.policy.ways import PROXIES, Edit, Way

Open = Callable[..., Way]


@pytest.fixture(params=PROXIES)
def open_way(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Open]:
    """Opens ways through a proxy, and closes them in the end. `edit` changes its configuration."""
    opened: list[Way] = []

    def open_one(backends: list[Backend] | None = None, edit: Edit | None = None) -> Way:
        opened.append(Way(request.param, tmp_path / str(len(opened)), backends, edit))
        return opened[-1]

    yield open_one
    for one in opened:
        one.close()


@pytest.fixture
def way(open_way: Open) -> Way:
    return open_way()
