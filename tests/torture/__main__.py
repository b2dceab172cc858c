"""python -m tests.torture --seconds N [--seed S] [--engine sqlite|postgresql]: one randomised run.

On a mesh of its own. Exit code 0: it holds. 1: a violation. 3: void, it proves nothing."""

from __future__ import annotations

import argparse
import asyncio
import logging
import secrets
import shutil
import signal
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path

from local_mesh.broker import RunningBroker, project_cache, start_broker, unpack_broker
from tests.support.broker_cluster import NODES, RunningCluster
from tests.support.forked import ForkServer
from tests.support.mesh import Launch, RunningMesh
from tests.support.ports import free_ports
from tests.support.postgres import PostgresServer
from tests.torture.databases import Database, following, keep, launch, on_postgresql, on_sqlite
from tests.torture.disks import enter
from tests.torture.plan import Fault
from tests.torture.run import SETTINGS, Outcome, describe, torture

ENGINES = ("sqlite", "postgresql")
EXIT_VIOLATION = 1
EXIT_VOID = 3


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.torture", description=__doc__)
    parser.add_argument("--seconds", type=_seconds, default=60.0, help="of stories and faults (%(default)g)")
    parser.add_argument("--seed", type=int, help="chooses everything; a new one is made up and printed")
    parser.add_argument("--engine", choices=ENGINES, default=ENGINES[0], help="of the services' databases")
    parser.add_argument("--broker-nodes", type=int, choices=(1, NODES), default=NODES, help="(%(default)s)")
    parser.add_argument(
        "--faults",
        type=_faults,
        metavar="NAME,...",
        help=f"only these: {', '.join(fault.name.lower() for fault in Fault)}; none: the control run",
    )
    parser.add_argument("--forked", action="store_true", help="start processes faster: more faults a minute")
    options = parser.parse_args(arguments)
    unpack_broker(project_cache(), lambda text: print(text, file=sys.stderr, flush=True))
    enter("tests.torture", sys.argv[1:] if arguments is None else arguments)
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # PostgreSQL would outlive us
    # That the broker goes away is what a run is about.
    logging.disable(logging.CRITICAL)
    seed = secrets.randbelow(1_000_000) if options.seed is None else options.seed
    print(f"seed {seed}", flush=True)
    folder = Path(tempfile.mkdtemp(prefix="dinemesh-torture-"))
    with _running(folder, options.engine, options.broker_nodes, forked=options.forked) as (
        mesh,
        broker,
        databases,
    ):
        outcome = asyncio.run(
            torture(
                seed,
                options.seconds,
                mesh,
                broker,
                engine=options.engine,
                faults=options.faults,
                databases=databases,
            )
        )
        if outcome.violations:
            keep(databases)
    print(describe(outcome), flush=True)
    return _end(outcome, folder)


def _end(outcome: Outcome, folder: Path) -> int:
    if outcome.violations:
        print(f"databases and logs are kept in {folder}", flush=True)
        return EXIT_VIOLATION
    shutil.rmtree(folder, ignore_errors=True)
    return EXIT_VOID if outcome.void else 0


def _seconds(text: str) -> float:
    value = float(text)
    if not 0 < value < float("inf"):
        raise argparse.ArgumentTypeError(f"{text} is not a number of seconds above 0")
    return value


def _faults(names: str) -> frozenset[Fault]:
    if names == "none":
        return frozenset()
    known = {fault.name.lower(): fault for fault in Fault}
    if unknown := [name for name in names.split(",") if name not in known]:
        raise argparse.ArgumentTypeError(
            f"there is no fault {', '.join(unknown)}; there are none, {', '.join(known)}"
        )
    return frozenset(known[name] for name in names.split(","))


Broker = RunningBroker | RunningCluster


@contextmanager
def _running(
    folder: Path, engine: str, nodes: int, *, forked: bool
) -> Iterator[tuple[RunningMesh, Broker, dict[str, Database]]]:
    with ExitStack() as stack:
        if engine == "postgresql":
            server = PostgresServer(folder / "postgresql")
            stack.callback(server.stop)
            databases = on_postgresql(folder, server)
        else:
            databases = on_sqlite(folder)
        broker = _broker(folder, nodes)
        stack.callback(broker.stop)
        start: Launch = launch
        if forked:
            forks = ForkServer(folder / "forks.log")
            stack.callback(forks.close)
            start = following(forks.launch_with_points)
        url = broker.fresh_url()
        urls = {name: one.url for name, one in databases.items()}
        mesh = RunningMesh(folder, url, databases=urls, settings=SETTINGS, launch=start)
        mesh.start()
        stack.callback(mesh.stop)
        yield mesh, broker, databases


def _broker(folder: Path, nodes: int) -> Broker:
    if nodes == NODES:
        cluster = RunningCluster(folder / "rabbitmq")
        cluster.start()
        return cluster
    amqp, dist, epmd = free_ports(3)
    return start_broker(folder / "rabbitmq", amqp, dist, epmd)


if __name__ == "__main__":
    sys.exit(main())
