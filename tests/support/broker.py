"""A real RabbitMQ for the tests: own ports, own folder, started once a session and gone with it."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Protocol

import pytest

from dinemesh.kit.bus import EXCHANGE
from local_mesh import broker_users
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


def _bindings(url: str, queue: str) -> str:
    vhost = url.rpartition("/")[2] or "/"
    return (
        f'[B || B <- rabbit_binding:list(<<"{vhost}">>), element(4, element(2, B)) =:= <<"{EXCHANGE}">>, '
        f'element(4, element(4, B)) =:= <<"{queue}">>]'
    )


def is_bound(broker: RunningBroker, url: str, queue: str) -> bool:
    """Whether a queue has a binding."""
    return int(broker.evaluate(f"length({_bindings(url, queue)})")) > 0


def unbind(broker: RunningBroker, url: str, queue: str) -> None:
    """What RabbitMQ does by mistake (rabbitmq-server 4236, 8994, 12782): all bindings of a queue are gone."""
    assert is_bound(broker, url, queue), f"void: {queue} was not bound"
    broker.evaluate(f'[rabbit_binding:remove(B, <<"test">>) || B <- {_bindings(url, queue)}]')


def delete_exchange(broker: RunningBroker, url: str) -> None:
    """The exchange of the events is gone, and with it all its bindings."""
    vhost = url.rpartition("/")[2] or "/"
    name = f'rabbit_misc:r(<<"{vhost}">>, exchange, <<"{EXCHANGE}">>)'
    assert broker.evaluate(f'rabbit_exchange:delete({name}, false, <<"test">>)') == "ok", "void"


class Evaluates(Protocol):
    """A broker that runs Erlang expressions."""

    def evaluate(self, expression: str) -> str: ...


@contextmanager
def block_publishers(broker: Evaluates) -> Iterator[None]:
    """The broker takes itself to be short of memory: it takes nothing from publishers."""
    limit = broker.evaluate("vm_memory_monitor:get_vm_memory_high_watermark()")
    broker.evaluate("vm_memory_monitor:set_vm_memory_high_watermark({absolute, 1000000})")
    try:
        assert "memory" in broker.evaluate("rabbit_alarm:get_alarms()"), "void: there is no alarm"
        yield
    finally:
        broker.evaluate(f"vm_memory_monitor:set_vm_memory_high_watermark({limit})")


def forget_policies(broker: RunningBroker, url: str) -> None:
    """As a broker that no file of definitions has told how long to keep the log."""
    vhost = url.rpartition("/")[2]
    names = f'[proplists:get_value(name, P) || P <- rabbit_policy:list(<<"{vhost}">>)]'
    assert int(broker.evaluate(f"length({names})")) > 0, "void: there was no policy"
    broker.evaluate(f'[rabbit_policy:delete(<<"{vhost}">>, N, <<"test">>) || N <- {names}]')


def learn_policies(broker: RunningBroker, url: str) -> None:
    """What the mesh's definitions say of policies."""
    vhost = url.rpartition("/")[2]
    told = json.dumps({"policies": broker_users.definitions({}, vhost)["policies"]})
    broker.evaluate(f"rabbit_definitions:import_raw(<<{json.dumps(told)}>>)")
