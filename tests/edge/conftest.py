"""One mesh and one edge before it for all tests here; whoever breaks or limits something starts another."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import AsyncIterator, Callable, Generator, Iterator
from pathlib import Path
from typing import Any

import grpc
import httpx
import pytest

from local_mesh.broker import RunningBroker
from tests.edge.stand_in import StandIn
from tests.mesh.people import City, Doors
from tests.support.edge import Behind, Config, RunningEdge
from tests.support.mesh import SERVICES, Keys, RunningMesh

CALL_SECONDS = 15.0
"""No answer takes so long; a test that waits for more is wrong."""


@pytest.fixture(scope="session")
def mesh(tmp_path_factory: pytest.TempPathFactory, broker: RunningBroker) -> Iterator[RunningMesh]:
    """The services behind the edge."""
    mesh = RunningMesh(tmp_path_factory.mktemp("mesh-behind-the-edge"), broker.fresh_url())
    mesh.start()
    yield mesh
    mesh.stop()


@pytest.fixture(scope="session")
def edge(tmp_path_factory: pytest.TempPathFactory, mesh: RunningMesh) -> Iterator[RunningEdge]:
    """The edge as it is configured, but for rates that no test reaches by accident."""
    edge = RunningEdge(mesh, tmp_path_factory.mktemp("edge"))
    edge.start()
    edge.wait_until_healthy()
    yield edge
    edge.stop()


@pytest.fixture
def own_edge(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Callable[..., RunningEdge]]:
    """Starts a further edge: `own_edge(customer_rate_burst=3, ...)`, arguments as of RunningEdge; before the
    mesh, or before what is given as `behind`."""
    started: list[RunningEdge] = []

    def start(*, behind: Behind | None = None, **arguments: Any) -> RunningEdge:
        mesh: Behind = request.getfixturevalue("mesh") if behind is None else behind
        edge = RunningEdge(mesh, tmp_path / f"edge-{len(started)}", **arguments)
        started.append(edge)
        edge.start()
        return edge

    yield start
    for edge in started:
        edge.stop()


@pytest.fixture
async def http(edge: RunningEdge) -> AsyncIterator[httpx.AsyncClient]:
    """An HTTP/1.1 client of the edge."""
    async with httpx.AsyncClient(base_url=edge.url, timeout=CALL_SECONDS) as client:
        yield client


@pytest.fixture(scope="session")
def stand_in(tmp_path_factory: pytest.TempPathFactory) -> Iterator[StandIn]:
    """Behind `edge_alone`, in place of the services."""
    stand_in = StandIn(Keys(tmp_path_factory.mktemp("keys")))
    yield stand_in
    stand_in.stop()


@pytest.fixture(scope="session")
def edge_alone(tmp_path_factory: pytest.TempPathFactory, stand_in: StandIn) -> Iterator[RunningEdge]:
    """The edge as it is configured, for tests about Envoy alone: nobody else refuses anything."""
    edge = RunningEdge(stand_in, tmp_path_factory.mktemp("edge-alone"))
    edge.start()
    yield edge
    edge.stop()


@pytest.fixture
async def alone(edge_alone: RunningEdge, stand_in: StandIn) -> AsyncIterator[httpx.AsyncClient]:
    """An HTTP/1.1 client of it; nothing has arrived behind it yet."""
    stand_in.seen.clear()
    async with httpx.AsyncClient(base_url=edge_alone.url, timeout=CALL_SECONDS) as client:
        yield client


@pytest.fixture
async def channel_alone(edge_alone: RunningEdge) -> AsyncIterator[grpc.aio.Channel]:
    """A gRPC channel to it."""
    async with grpc.aio.insecure_channel(edge_alone.address) as channel:
        yield channel


@pytest.fixture
async def city(mesh: RunningMesh) -> AsyncIterator[City]:
    """People who talk to the services directly; they prepare what a test needs."""
    city = City(mesh)
    yield city
    await city.close()


@pytest.fixture
async def doors(mesh: RunningMesh, edge: RunningEdge) -> AsyncIterator[Doors]:
    """Stubs of the services, through the edge."""
    doors = Doors(mesh, **dict.fromkeys(SERVICES, edge.address))
    yield doors
    await doors.close()


def lasting(config: Config) -> None:
    """Buckets fill every ten seconds instead of every second, so that a slow machine sees them empty too."""
    for listener in config["static_resources"]["listeners"]:
        for manager in listener["filter_chains"][0]["filters"]:
            for filter_ in manager["typed_config"].get("http_filters", ()):
                if filter_["name"].startswith("limit of "):
                    limit = filter_["typed_config"]
                    for holder in (limit, *limit.get("descriptors", ())):
                        holder.get("token_bucket", {})["fill_interval"] = "10s"


def put_in_place(file: Path, text: str) -> None:
    """Replaces a file as a whole, as whoever rotates keys does."""
    partial = file.with_suffix(".partial")
    partial.write_text(text)
    partial.replace(file)


async def calls_logged(
    mesh: RunningMesh, service: str, correlation_id: str, count: int = 1, seconds: float = 10
) -> list[dict[str, Any]]:
    """Waits for the lines in which a service says what calls it has answered under a correlation id."""
    end = time.monotonic() + seconds
    while True:
        lines = [one for one in mesh[service].log.read_text().splitlines() if f'"{correlation_id}"' in one]
        found = [line for line in map(json.loads, lines) if line["message"] == "call"]
        if len(found) >= count:
            return found
        assert time.monotonic() < end, f"{service} has logged {len(found)} calls of {correlation_id}"
        await asyncio.sleep(0.02)


@pytest.hookimpl(hookwrapper=True)
def pytest_runtest_makereport(item: pytest.Item) -> Generator[None, Any, None]:
    """A test that failed shows the end of each log."""
    outcome = yield
    report = outcome.get_result()
    arguments = getattr(item, "funcargs", {})
    if report.failed and isinstance(running := arguments.get("edge"), RunningEdge):
        report.sections.append(("edge", running.last_words(12)))
    if report.failed and isinstance(behind := arguments.get("mesh"), RunningMesh):
        for part in behind.parts.values():
            report.sections.append((part.name, part.last_words(8)))
