"""A real RabbitMQ for the tests: own ports, own folder, started once a session and gone with it."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from local_mesh.broker import RunningBroker, start_broker
from tests.support.ports import free_ports


def _run(home: Path) -> Iterator[RunningBroker]:
    amqp, dist, epmd = free_ports(3)
    running = start_broker(home, amqp, dist, epmd)
    yield running
    running.kill()  # in order, it would put away hundreds of queues that nobody needs: half a minute
    running.stop()


@pytest.fixture(scope="session")
def broker(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningBroker]:
    """The session's broker. `broker.fresh_url()` gives a virtual host of its own to whoever asks."""
    yield from _run(tmp_path_factory.mktemp("rabbitmq"))


@pytest.fixture
def own_broker(tmp_path: Path) -> Iterator[RunningBroker]:
    """A broker of the test's own, which it may stop and kill."""
    yield from _run(tmp_path / "rabbitmq")
