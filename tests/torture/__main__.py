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

from local_mesh.broker import RunningBroker, start_broker
from tests.crash.forked import Nursery
from tests.support.mesh import SERVICES, Launch, RunningMesh, launch
from tests.support.ports import free_ports
from tests.support.postgres import PostgresServer
from tests.torture.run import SETTINGS, Outcome, describe, torture

ENGINES = ("sqlite", "postgresql")
EXIT_VIOLATION = 1
EXIT_VOID = 3


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.torture", description=__doc__)
    parser.add_argument("--seconds", type=float, default=60.0, help="of stories and faults (%(default)g)")
    parser.add_argument("--seed", type=int, help="chooses everything; a new one is made up and printed")
    parser.add_argument("--engine", choices=ENGINES, default=ENGINES[0], help="of the services' databases")
    parser.add_argument("--without-faults", action="store_true", help="the control run")
    parser.add_argument("--forked", action="store_true", help="start processes faster: more faults a minute")
    options = parser.parse_args(arguments)
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # PostgreSQL would outlive us
    # That the broker goes away is what a run is about.
    logging.disable(logging.CRITICAL)
    seed = secrets.randbelow(1_000_000) if options.seed is None else options.seed
    print(f"seed {seed}", flush=True)
    folder = Path(tempfile.mkdtemp(prefix="dinemesh-torture-"))
    with _running(folder, options.engine, forked=options.forked) as (mesh, broker):
        outcome = asyncio.run(
            torture(
                seed,
                options.seconds,
                mesh,
                broker,
                engine=options.engine,
                with_faults=not options.without_faults,
            )
        )
    print(describe(outcome), flush=True)
    return _end(outcome, folder)


def _end(outcome: Outcome, folder: Path) -> int:
    if outcome.violations:
        print(f"databases and logs are kept in {folder}", flush=True)
        return EXIT_VIOLATION
    shutil.rmtree(folder, ignore_errors=True)
    return EXIT_VOID if outcome.void else 0


@contextmanager
def _running(folder: Path, engine: str, *, forked: bool) -> Iterator[tuple[RunningMesh, RunningBroker]]:
    with ExitStack() as stack:
        databases = {}
        if engine == "postgresql":
            server = PostgresServer(folder / "postgresql")
            stack.callback(server.stop)
            databases = {name: server.fresh(f"{name}_svc") for name in SERVICES}
        amqp, dist, epmd = free_ports(3)
        broker = start_broker(folder / "rabbitmq", amqp, dist, epmd)
        stack.callback(broker.stop)
        start: Launch = launch
        if forked:
            nursery = Nursery(folder / "nursery.log")
            stack.callback(nursery.close)
            start = nursery.launch
        url = broker.fresh_url()
        mesh = RunningMesh(folder, url, databases=databases, settings=SETTINGS, launch=start)
        mesh.start()
        stack.callback(mesh.stop)
        yield mesh, broker


if __name__ == "__main__":
    sys.exit(main())
