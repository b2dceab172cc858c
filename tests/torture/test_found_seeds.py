"""Seeds that once found something, each with what it was. A short run of each must hold."""

from __future__ import annotations

import pytest

from local_mesh.broker import RunningBroker
from tests.torture.conftest import FreshMesh
from tests.torture.run import describe, torture

FOUND = [
    # The restaurant heard so little that nothing could be reordered: void.
    pytest.param(11, 8, "postgresql", id="11"),
]


@pytest.mark.timeout(600)
@pytest.mark.parametrize(("seed", "seconds", "engine"), FOUND)
async def test_what_a_seed_once_found_is_gone(
    seed: int, seconds: float, engine: str, fresh_mesh: FreshMesh, broker_to_kill: RunningBroker
) -> None:
    outcome = await torture(seed, seconds, fresh_mesh(engine), broker_to_kill, engine=engine)
    print(describe(outcome))  # noqa: T201 - shown when it fails
    assert (outcome.violations, outcome.void) == ([], [])
