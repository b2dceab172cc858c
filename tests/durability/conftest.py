"""The people around a mesh whose parts fail; each file brings its `mesh`."""

from __future__ import annotations

from collections.abc import AsyncIterator

import pytest

from tests.mesh.people import City
from tests.support.mesh import RunningMesh


@pytest.fixture
async def city(mesh: RunningMesh) -> AsyncIterator[City]:
    pids = {name: part.pid for name, part in mesh.parts.items()}
    city = City(mesh)
    yield city
    await city.close()
    assert pids == {name: part.pid for name, part in mesh.parts.items() if part.running}, "restarted by hand"
