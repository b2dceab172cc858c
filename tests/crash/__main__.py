"""`python -m tests.crash --all`: every case on both engines, with a table; without it, those on SQLite.

`--only WORDS` runs the cases whose service, point, work or story contain the words, to look at one again.
"""

from __future__ import annotations

import argparse
import asyncio
import shutil
import sys
import tempfile
import uuid
from collections.abc import Sequence
from pathlib import Path

from local_mesh.broker import start_broker
from tests.crash.cases import Cases, Group, each
from tests.crash.run import Databases, Result, Yard, run
from tests.support.forked import ForkServer
from tests.support.ports import free_ports
from tests.support.postgres import PostgresServer


def main(arguments: Sequence[str] | None = None) -> int:
    """Exit code 1 if anything was wrong, void or never passed."""
    options = _parser().parse_args(arguments)
    engines = ("sqlite", "postgresql") if options.all else (options.engine,)
    # Short: the name of PostgreSQL's socket has at most 107 characters.
    folder = Path(tempfile.mkdtemp(prefix="dinemesh-crash-"))
    postgres = PostgresServer(folder / "data") if "postgresql" in engines else None
    amqp, dist, epmd = free_ports(3)
    broker = start_broker(folder / "rabbitmq", amqp, dist, epmd)
    forks = ForkServer(folder / "forks.log")
    results = []
    try:
        for engine in engines:
            database = postgres.fresh if postgres and engine == "postgresql" else _sqlite(folder)
            yard = Yard(folder / engine, forks.launch_with_points, broker.fresh_url, database)
            results.append(_exercise(engine, yard, options))
            print(results[-1], flush=True)
    finally:
        forks.close()
        broker.stop()
        if postgres is not None:
            postgres.stop()
    good = all(result.is_good for result in results)
    if good:
        shutil.rmtree(folder, ignore_errors=True)
    else:
        print(f"the logs of all processes are in {folder}")
    return 0 if good else 1


def _exercise(engine: str, yard: Yard, options: argparse.Namespace) -> Result:
    def choose(cases: Cases) -> list[Group]:
        found = {case: story for case, story in cases.items() if options.only in f"{case} {story.__name__}"}
        return each(found)[:: options.every]

    return asyncio.run(
        run(
            engine,
            yard,
            side_by_side=options.side_by_side,
            times=options.times,
            choose=choose,
            say=lambda line: print(line, flush=True),
        )
    )


def _sqlite(folder: Path) -> Databases:
    return lambda package: f"sqlite:///{folder}/{package}-{uuid.uuid4().hex[:8]}.db"


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m tests.crash", description="Die at every crash point.")
    parser.add_argument("--all", action="store_true", help="on both engines")
    parser.add_argument("--engine", choices=("sqlite", "postgresql"), default="sqlite")
    parser.add_argument(
        "--side-by-side", type=int, default=4, metavar="N", help="meshes at once (%(default)s)"
    )
    parser.add_argument("--times", type=int, default=1, metavar="N", help="die again after coming back")
    parser.add_argument("--every", type=int, default=1, metavar="N", help="only every Nth case")
    parser.add_argument("--only", default="", metavar="WORDS", help="cases that contain these words")
    return parser


if __name__ == "__main__":
    sys.exit(main())
