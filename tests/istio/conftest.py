"""What stands behind an edge that is looked at alone, and clients of one as tests/edge has them."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.edge.conftest import alone, channel_alone, city, doors, http  # noqa: F401
from tests.edge.stand_in import StandIn
from tests.support.mesh import Keys


@pytest.fixture(scope="module")
def behind(tmp_path_factory: pytest.TempPathFactory) -> Iterator[StandIn]:
    """In place of all four services."""
    stand_in = StandIn(Keys(tmp_path_factory.mktemp("keys")))
    yield stand_in
    stand_in.stop()
