"""Runs need a broker that they may kill, and a mesh of their own."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator

import pytest

from local_mesh.broker import RunningBroker, start_broker
from tests.support.forked import forks
from tests.support.mesh import SERVICES, RunningMesh
from tests.support.ports import free_ports
from tests.support.postgres import PostgresServer
from tests.torture.run import SETTINGS


@pytest.fixture(autouse=True)
def quiet() -> Iterator[None]:
    """That the broker goes away is what a run is about; thousands of lines do not tell it better."""
    noisy = [logging.getLogger(name) for name in ("aiormq", "dinemesh.kit.bus")]
    levels = [one.level for one in noisy]
    for one in noisy:
        one.setLevel(logging.CRITICAL)
    yield
    for one, level in zip(noisy, levels, strict=True):
        one.setLevel(level)


FreshMesh = Callable[[str], RunningMesh]


@pytest.fixture(scope="session")
def broker_to_kill(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningBroker]:
    amqp, dist, epmd = free_ports(3)
    broker = start_broker(tmp_path_factory.mktemp("rabbitmq-to-kill"), amqp, dist, epmd)
    yield broker
    broker.stop()


@pytest.fixture(scope="module")
def fresh_mesh(
    tmp_path_factory: pytest.TempPathFactory,
    broker_to_kill: RunningBroker,
    request: pytest.FixtureRequest,
) -> Iterator[FreshMesh]:
    """Starts a mesh of the test's own on an engine; the one before it is stopped."""
    started: list[RunningMesh] = []

    def stop() -> None:
        while started:
            started.pop().stop()

    def start(engine: str) -> RunningMesh:
        stop()
        databases = {}
        if engine == "postgresql":
            server: PostgresServer = request.getfixturevalue("postgres")
            databases = {name: server.fresh(f"{name}_svc") for name in SERVICES}
        folder, url = tmp_path_factory.mktemp("mesh"), broker_to_kill.fresh_url()
        mesh = RunningMesh(
            folder, url, databases=databases, settings=SETTINGS, launch=forks().launch_with_points
        )
        started.append(mesh)
        mesh.start()
        return mesh

    yield start
    stop()
