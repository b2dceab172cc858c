"""Three nodes of RabbitMQ on this machine that are one cluster, with what prod is told to run.

A node is killed (`kill`), hangs (`pause`), or is cut off: it and the others live and serve their clients, and
no longer take calls from each other (`cut_off`). None of it needs a privilege.
"""

from __future__ import annotations

import os
import re
import secrets
import signal
import time
from collections.abc import Iterator, Sequence
from contextlib import suppress
from pathlib import Path

import pytest

from local_mesh.broker import BrokerPorts, RunningBroker, project_cache, unpack_broker
from local_mesh.failure import Failure
from tests.support.mesh import state_of
from tests.support.ports import free_ports
from tests.support.process import ROOT

NODES = 3
CLUSTER_CONF = ROOT / "k8s" / "components" / "rabbitmq" / "cluster.conf"
"""What k8s/README.md tells prod to run."""
START_SECONDS = 180
"""Three at once on two cores that do other things, too."""


class RunningCluster:
    """Nodes are named by their place, 0 to 2."""

    def __init__(self, home: Path) -> None:
        files = unpack_broker(project_cache(), lambda _: None)
        epmd, *ports = free_ports(1 + 2 * NODES)
        self.names = [f"dinemesh-{place}@localhost" for place in range(NODES)]
        cookie = secrets.token_hex(16)
        self.nodes: list[RunningBroker] = []
        for place, name in enumerate(self.names):
            folder = home / f"node-{place}"
            folder.mkdir(parents=True)
            file = folder / ".erlang.cookie"
            file.write_text(cookie)
            file.chmod(0o400)
            self.nodes.append(
                RunningBroker(
                    files,
                    folder,
                    BrokerPorts(ports[2 * place], ports[2 * place + 1], epmd),
                    node=name,
                    configuration=configuration(self.names),
                    own_epmd=place == 0,
                )
            )

    def start(self) -> None:
        """Start all nodes and wait until they are one cluster. Raises Failure if they never are."""
        for node in self.nodes:
            node.spawn()
        for node in self.nodes:
            node.wait_until_ready(START_SECONDS)
        self.wait_until_whole()

    def stop(self) -> None:
        """End all nodes, also one that hangs."""
        for place, node in reversed(list(enumerate(self.nodes))):
            with suppress(KeyError, ProcessLookupError):
                self.resume(place)
            node.kill()  # what is in them is needed no more
            node.stop()

    def fresh_url(self) -> str:
        """The URL of a new virtual host, naming all nodes."""
        first, *rest = [self.nodes[0].fresh_url(), *(node.url for node in self.nodes[1:])]
        host = first.rpartition("/")[2]
        return ",".join([first, *(url + host for url in rest)])

    def running(self) -> list[int]:
        """The nodes that the first one that answers holds for running."""
        for node in self._awake():
            with suppress(Failure):
                told = node.evaluate("rabbit_nodes:all_running()")
                return [place for place, name in enumerate(self.names) if name in told]
        return []

    def wait_until_whole(self, seconds: float = START_SECONDS) -> None:
        """Wait until each node holds all of them for running."""
        end = time.monotonic() + seconds
        while not all(self._sees_all(node) for node in self.nodes):
            if time.monotonic() > end:
                raise Failure(f"after {seconds:g} s these are together: {self.running()}")
            time.sleep(0.1)

    def leaders(self, url: str) -> dict[str, int]:
        """By name of a queue in the virtual host of `url`, quorum or stream, the node that leads it; queues
        that nobody leads are left out."""
        host = url.rpartition("/")[2]
        told = self._somebody().evaluate(
            "[{binary_to_list(element(4, amqqueue:get_name(Q))), case amqqueue:get_pid(Q) of "
            "P when is_pid(P) -> node(P); "
            "{Ra, _} -> case ra_leaderboard:lookup_leader(Ra) of {_, N} -> N; _ -> nobody end; "
            f'_ -> nobody end}} || Q <- rabbit_amqqueue:list(<<"{host}">>)]'
        )
        found = re.findall(r"""\{"([^"]+)", '([^']+)'\}""", told)
        return {queue: self.names.index(node) for queue, node in found if node in self.names}

    def kill(self, place: int) -> None:
        """kill -9 a node; `nodes[place].start()` brings it back with its data."""
        self.nodes[place].kill()

    def pause(self, place: int) -> None:
        """SIGSTOP: the node hangs, its ports stay open."""
        pid = self.nodes[place].pid
        os.kill(pid, signal.SIGSTOP)
        end = time.monotonic() + 5
        while state_of(pid) != "T":
            assert time.monotonic() < end, f"node {place} does not stop at SIGSTOP"
            time.sleep(0.01)

    def resume(self, place: int) -> None:
        os.kill(self.nodes[place].pid, signal.SIGCONT)

    def cut_off(self, place: int) -> None:
        """From now on this node and the others refuse each other: each holds another cookie of the other."""
        name, others = self.names[place], self._others(place)
        for other in others:
            self.nodes[other].evaluate(f"erlang:set_cookie('{name}', '{secrets.token_hex(16)}')")
        # In one go: a node that has lost one of the others and not yet both is in no minority.
        self.nodes[place].evaluate(
            ", ".join(
                [f"erlang:set_cookie('{self.names[one]}', '{secrets.token_hex(16)}')" for one in others]
                + [f"erlang:disconnect_node('{self.names[one]}')" for one in others]
            )
        )

    def let_back(self, place: int) -> None:
        """Undo `cut_off`."""
        for other in self._others(place):
            for one, trusted in ((other, place), (place, other)):
                self.nodes[one].evaluate(f"erlang:set_cookie('{self.names[trusted]}', erlang:get_cookie())")

    def _others(self, place: int) -> Sequence[int]:
        return [other for other in range(NODES) if other != place]

    def _awake(self) -> Iterator[RunningBroker]:
        """Those that can be asked."""
        return (node for node in self.nodes if node.is_running and state_of(node.pid) != "T")

    def _somebody(self) -> RunningBroker:
        for node in self._awake():
            with suppress(Failure):
                node.evaluate("true = rabbit:is_running()")
                return node
        raise Failure("no node of the cluster answers")

    def _sees_all(self, node: RunningBroker) -> bool:
        with suppress(Failure):
            return all(name in node.evaluate("rabbit_nodes:all_running()") for name in self.names)
        return False


def configuration(names: Sequence[str]) -> str:
    """What three nodes of these names are told besides: the file that prod is told to use, and each other."""
    return CLUSTER_CONF.read_text() + "".join(
        f"cluster_formation.classic_config.nodes.{place} = {name}\n" for place, name in enumerate(names, 1)
    )


@pytest.fixture(scope="module")
def broker_cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningCluster]:
    """Three nodes of a module's own, which it may kill."""
    cluster = RunningCluster(tmp_path_factory.mktemp("cluster"))
    try:
        cluster.start()
        yield cluster
    finally:
        cluster.stop()
