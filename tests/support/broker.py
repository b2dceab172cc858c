"""A real RabbitMQ for the tests: own ports, own folder, started once a session and gone with it."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from local_mesh.broker import RunningBroker, start_broker
from tests.support.ports import free_ports


@pytest.fixture(scope="session")
def broker(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningBroker]:
    """The session's broker. `broker.fresh_url()` gives a virtual host of its own to whoever asks."""
    amqp, dist, epmd = free_ports(3)
    running = start_broker(tmp_path_factory.mktemp("rabbitmq"), amqp, dist, epmd)
    yield running
    running.stop()
