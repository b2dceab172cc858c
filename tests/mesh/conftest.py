"""The meshes of these stories: one on SQLite for most of them, one on mixed engines for a sample.

Each is started when the first story asks for it, serves all of them, and is audited after the last one.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Generator, Iterator
from typing import Any

import pytest

from local_mesh.broker import RunningBroker
from tests.mesh.people import City
from tests.support.mesh import RunningMesh
from tests.support.postgres import PostgresServer

ON_POSTGRESQL = ("reservation", "history")
"""The services that stand on PostgreSQL in the mixed mesh; the others stand on SQLite."""

on_both_engines = pytest.mark.parametrize("mesh", ["sqlite", "mixed"], indirect=True)
"""Runs a story on each mesh."""


@pytest.fixture(scope="session")
def running_meshes() -> dict[str, RunningMesh]:
    """The meshes that were started so far, by their engines."""
    return {}


@pytest.fixture(scope="session")
def sqlite_mesh(
    tmp_path_factory: pytest.TempPathFactory, broker: RunningBroker, running_meshes: dict[str, RunningMesh]
) -> Iterator[RunningMesh]:
    mesh = RunningMesh(tmp_path_factory.mktemp("mesh"), broker.fresh_url())
    mesh.start()
    running_meshes["sqlite"] = mesh
    yield mesh
    mesh.stop()


@pytest.fixture(scope="session")
def mixed_mesh(
    tmp_path_factory: pytest.TempPathFactory,
    broker: RunningBroker,
    postgres: PostgresServer,
    running_meshes: dict[str, RunningMesh],
) -> Iterator[RunningMesh]:
    databases = {name: postgres.fresh(f"{name}_svc") for name in ON_POSTGRESQL}
    mesh = RunningMesh(tmp_path_factory.mktemp("mixed-mesh"), broker.fresh_url(), databases=databases)
    mesh.start()
    running_meshes["mixed"] = mesh
    yield mesh
    mesh.stop()


@pytest.fixture
def mesh(request: pytest.FixtureRequest) -> RunningMesh:
    """The running mesh on SQLite; with `on_both_engines` also the mixed one."""
    found: RunningMesh = request.getfixturevalue(f"{getattr(request, 'param', 'sqlite')}_mesh")
    return found


@pytest.fixture
async def city(mesh: RunningMesh) -> AsyncIterator[City]:
    city = City(mesh)
    yield city
    await city.come_to_rest()
    await city.close()


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """The audit looks at what all stories left behind, so it comes last."""
    items.sort(key=lambda item: item.nodeid.startswith("tests/mesh/test_audit.py"))


@pytest.hookimpl(hookwrapper=True)
def pytest_runtest_makereport(item: pytest.Item) -> Generator[None, Any, None]:
    """A story that failed shows the end of each part's log."""
    outcome = yield
    report = outcome.get_result()
    running = getattr(item, "funcargs", {}).get("mesh")
    if report.failed and isinstance(running, RunningMesh):
        for part in running.parts.values():
            report.sections.append((part.name, part.last_words(8)))
